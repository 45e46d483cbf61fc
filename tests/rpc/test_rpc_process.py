"""The real command in a process of its own: TLS versions, log lines, signals, exit codes (N44, N60, N70)."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from support.authority import RPCS, call, named

from trustauthority.main import main

BIN = Path(sys.executable).parent
HOSTILE = ('x\n{"event": "rpc"}', "\x1b[31mred", "x\0y", "../x", "%s%n", "l\u0430b", "x" * 10_000)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "trustauthority"), *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL
    )


@dataclass(slots=True)
class Served:
    """A running command."""

    folder: Path
    ports: dict[str, int]
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> list[str]:
        return (self.folder / "log").read_text(encoding="utf-8").splitlines()

    def channel(self) -> grpc.aio.Channel:
        identity = self.folder / "authority" / "identity"
        credentials = grpc.ssl_channel_credentials(
            (identity / "authority-ca.crt").read_bytes(),
            (identity / "admin.key").read_bytes(),
            (identity / "admin.crt").read_bytes(),
        )
        return grpc.aio.secure_channel(f"127.0.0.1:{self.ports['mutual']}", credentials)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """``trustauthority init`` and ``serve``, for the tests of this module."""
    folder = tmp_path_factory.mktemp("process")
    ports = {name: free_port() for name in ("enrol", "mutual", "key")}
    addresses = [f"--{name}=127.0.0.1:{port}" for name, port in ports.items()]
    words = ("init", "--state", folder / "authority", "--config", folder / "ta.toml", *addresses)
    unsaid = run(*words)
    assert unsaid.returncode == 2
    assert "--escrow-public" in unsaid.stderr
    assert not (folder / "authority").exists()
    made = run(*words, "--no-escrow")
    assert made.returncode == 0, made.stderr
    assert "loses the KMS loses every VM" in made.stderr
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(BIN / "trustauthority", "serve", "--config", folder / "ta.toml"),
                *("--roles", "attest,placement,admin"),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
    running = Served(folder=folder, ports=ports, process=process)
    try:
        deadline = time.monotonic() + 30
        while not any('"serving"' in line for line in running.log):
            assert process.poll() is None, running.log
            assert time.monotonic() < deadline, running.log
            time.sleep(0.05)
        yield running
    finally:
        process.kill()
        process.wait(10)


def handshake(
    command: Served, listener: str, newest: ssl.TLSVersion, *, ciphers: str = ""
) -> str | None:
    """The version that a client with a good certificate gets, or None."""
    identity = command.folder / "authority" / "identity"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(identity / "authority-ca.crt")
    context.load_cert_chain(identity / "admin.crt", identity / "admin.key")
    context.set_alpn_protocols(["h2"])
    context.maximum_version = newest
    if ciphers:
        context.set_ciphers(ciphers)
    with socket.create_connection(("127.0.0.1", command.ports[listener]), timeout=5) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="localhost") as secure:
                return secure.version()
        except (ssl.SSLError, ConnectionError):
            return None


@pytest.mark.parametrize("listener", ["mutual", "enrol"])
def test_tls_1_2_is_refused(command, listener):
    """N70: with every suite that a client may know, on both listeners; 1.3 is spoken."""
    assert handshake(command, listener, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    for ciphers in ("", "ALL:COMPLEMENTOFALL:@SECLEVEL=0", "PSK", "ECDHE-ECDSA-AES256-GCM-SHA384"):
        assert handshake(command, listener, ssl.TLSVersion.TLSv1_2, ciphers=ciphers) is None


async def test_a_log_line_is_one_record_whatever_is_asked(command):
    """N44, N69: ids with newlines and escapes forge no line and color no terminal; each call has one."""
    channel = command.channel()
    before = len(command.log)
    sent = 0
    for value in HOSTILE:
        for name in ("GetHost", "RevokeHost", "RevokeIdentity", "RemoveInventory", "ApplyPolicy"):
            rpc = named(name)
            field = rpc.request.DESCRIPTOR.fields[0].name
            answer = await call(
                channel,
                rpc,
                rpc.request(**{field: value}),
                metadata=[("ta-request-id", f"q-{sent}")],
            )
            assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
            sent += 1
    await channel.close()
    records = [json.loads(line) for line in command.log[before:]]
    lines = [each for each in records if each["event"] == "rpc"]
    assert [each["request_id"] for each in lines] == [f"q-{number}" for number in range(sent)]
    assert {each["caller"] for each in lines} == {"identity:admin"}
    assert {each["event"] for each in records} == {"rpc"}
    assert "\x1b" not in "".join(command.log)


def test_who_does_not_get_in_writes_no_log(command):
    """N40, N44: whatever is thrown at the port, the log holds records and nothing else."""
    before = len(command.log)
    for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 4096, b"\0" * 100):
        with socket.create_connection(("127.0.0.1", command.ports["mutual"]), timeout=5) as scan:
            scan.sendall(noise)
            scan.shutdown(socket.SHUT_WR)
            try:
                while scan.recv(4096):
                    pass
            except ConnectionError:
                continue
    assert handshake(command, "mutual", ssl.TLSVersion.TLSv1_2) is None
    assert command.log[before:] == []
    assert all(json.loads(line)["event"] for line in command.log)


async def test_what_is_served_is_what_the_roles_say(command):
    """N02: this process lacks the key role: its calls are unknown here, not refused."""
    channel = command.channel()
    for rpc in RPCS:
        if rpc.service == "KeyProviderService":
            assert (await call(channel, rpc)).code is grpc.StatusCode.UNIMPLEMENTED
    await channel.close()


def test_a_second_process_on_the_same_port_says_so(command):
    """N60: one line and exit code 2, no trace."""
    done = run("serve", "--config", command.folder / "ta.toml", "--roles", "attest,placement,admin")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "can't listen on 127.0.0.1" in done.stderr


@pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")
def test_open_files_and_wrong_words_end_with_one_line(command, tmp_path, monkeypatch, capsys):
    """N60: exit code 2, the file and the remedy, no trace."""
    config = tmp_path / "open.toml"
    config.write_bytes((command.folder / "ta.toml").read_bytes())
    config.chmod(0o644)
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("long enough to count\n")
    passphrase.chmod(0o644)
    good, out = command.folder / "ta.toml", tmp_path / "backup"
    for words, says in (
        (["serve", "--roles", "admin", "--config", config], f"chmod 640 {config}"),
        (["serve", "--roles", "root", "--config", good], "--roles takes some of"),
        (["backup", out, "--passphrase-file", passphrase, "--config", good], "chmod 600"),
        (["accept-loss", "--config", good], "--yes"),
        (["config", "validate", tmp_path / "nothing.toml"], "can't read"),
    ):
        monkeypatch.setattr(sys, "argv", ["trustauthority", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert (ended.value.code, said.out) == (2, ""), words
        assert says in said.err
        assert said.err.count("\n") == 1
    assert not out.exists()


def test_sigterm_ends_it_in_good_order(tmp_path):
    """N72: exit code 0, systemd is told before, and the last line says that it stopped."""
    ports = [f"--{name}=127.0.0.1:{free_port()}" for name in ("enrol", "mutual", "key")]
    places = ("--state", tmp_path / "a", "--config", tmp_path / "ta.toml")
    made = run("init", "--no-escrow", *places, *ports)
    assert made.returncode == 0, made.stderr
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(30)
        process = subprocess.Popen(
            [BIN / "trustauthority", "serve", "--config", tmp_path / "ta.toml", "--roles", "admin"],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")},
        )
        try:
            assert notify.recv(100) == b"READY=1"
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=10)
            assert process.returncode == 0
            told = [notify.recv(100)]
            while told[-1] != b"STOPPING=1":
                told.append(notify.recv(100))
        finally:
            process.kill()
            process.wait(10)
    events = [json.loads(line)["event"] for line in out.splitlines()]
    assert events == ["serving", "stopped"]
