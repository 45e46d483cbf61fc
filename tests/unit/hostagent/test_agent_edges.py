"""hostagent's edges: settings, private files, checkpoints, failures, control socket, notification."""

import asyncio
import base64
import json
import os
import socket
import stat

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from google.rpc import code_pb2
from support.agent_authority import Authority, Trouble, status_of
from support.agent_host import write_config

from hostagent.checkpoint import CheckpointMemory, NoteInvalid, Observation, open_checkpoint
from hostagent.control import NoDaemon, ask, refusal, serve
from hostagent.enforcement import ProgramEnforcement
from hostagent.failure import CallFailed, Failure, FailureKind, failure_of
from hostagent.files import (
    InsecureFile,
    check_folder,
    overwrite_and_remove,
    read_private,
    write_private,
)
from hostagent.lease_model import VmAction
from hostagent.notify import Notifier
from hostagent.settings import ConfigurationInvalid, load
from trustauthority.codec.tlog import encode_note

ORIGIN = "authority.test/audit"
KEY = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()


@pytest.fixture
def config(tmp_path):
    for name in ("state", "run"):
        (tmp_path / name).mkdir(mode=0o700)
    authority = Authority()
    authority.enrol_port, authority.mtls_port = 7443, 7444
    (tmp_path / "ca.pem").write_bytes(authority.ca_pem)
    return write_config(tmp_path, authority)


class TestSettings:
    def test_key_and_placement_address_default_to_the_attestation_one(self, config):
        """Roles may be one process: one address is enough."""
        authority = load(config).authority
        assert authority.key_address == authority.placement_address == "127.0.0.1:7444"

    def test_all_problems_are_reported_at_once_with_their_paths(self, config):
        """Unknown keys and wrong values: each has its line, nothing is guessed."""
        text = config.read_text().replace('name = "host-a"', 'name = "Host A"\nnick = "a"')
        config.write_text(text.replace("backoff_first_ms = 50", "backoff_first_ms = -1"))
        with pytest.raises(ConfigurationInvalid) as invalid:
            load(config)
        lines = str(invalid.value).splitlines()
        assert len(lines) == 3
        for path in ("host.name", "host.nick", "intervals.backoff_first_ms"):
            assert any(path in line for line in lines)

    def test_the_environment_redirects_nothing(self, config, monkeypatch):
        """Whom a host trusts is in one file of root's."""
        monkeypatch.setenv("AUTHORITY", json.dumps({"mtls": "evil:1"}))
        assert load(config).authority.mtls == "127.0.0.1:7444"

    @pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o602, 0o604])
    def test_a_file_that_others_touch_is_refused(self, config, mode):
        """N60: readable or writable by group or others: refused, and how to mend it is said."""
        config.chmod(mode)
        with pytest.raises(InsecureFile, match="chmod"):
            load(config)

    @pytest.mark.parametrize("name", ["state", "run"])
    def test_an_open_folder_is_refused(self, config, name):
        """N60: state and leases lie where nobody else looks."""
        (config.parent / name).chmod(0o755)
        with pytest.raises(ConfigurationInvalid, match=f"paths.{name}_dir"):
            load(config)

    def test_a_ca_that_others_can_write_is_refused(self, config):
        """The pinned CA may be read by all and written by root only."""
        ca = config.parent / "ca.pem"
        ca.chmod(0o666)
        with pytest.raises(ConfigurationInvalid, match=r"authority\.ca_file"):
            load(config)

    @pytest.mark.parametrize("count", [0, 2])
    def test_exactly_one_ca_is_pinned(self, config, count):
        """Never trust on first use, and never one of several."""
        ca = config.parent / "ca.pem"
        ca.write_bytes(ca.read_bytes() * count)
        with pytest.raises(ConfigurationInvalid, match=r"authority\.ca_file"):
            load(config)

    @pytest.mark.parametrize(
        "address", ["authority", ":7443", "a b:1", "http://a:1", "a:1/x", "a:123456"]
    )
    def test_addresses_have_a_host_and_a_port(self, config, address):
        """An address that can't be one is refused before anything is connected."""
        config.write_text(config.read_text().replace("127.0.0.1:7443", address))
        with pytest.raises(ConfigurationInvalid, match=r"authority\.enrol"):
            load(config)

    @pytest.mark.parametrize("content", [b"\xff\xfe", b"[authority", b""])
    def test_what_is_no_configuration_is_refused(self, config, content):
        """Broken TOML and an empty file end in a sentence, not in a traceback."""
        config.write_bytes(content)
        with pytest.raises(ConfigurationInvalid):
            load(config)


class TestFiles:
    def test_a_symbolic_link_is_not_followed(self, tmp_path):
        """N60: what is read is the file that was named."""
        (tmp_path / "real").write_bytes(b"x")
        (tmp_path / "link").symlink_to(tmp_path / "real")
        with pytest.raises(OSError, match="symbolic"):
            read_private(tmp_path / "link")

    @pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
    def test_only_regular_files_are_read(self, tmp_path, make):
        """A pipe must not hang the agent, a folder is no file."""
        make(tmp_path / "odd", 0o600)
        with pytest.raises((InsecureFile, IsADirectoryError)):
            read_private(tmp_path / "odd")

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
    def test_a_file_of_somebody_else_is_refused(self, tmp_path):
        """N60: wrong owner."""
        path = tmp_path / "theirs"
        write_private(path, b"x")
        os.chown(path, 12345, -1)
        with pytest.raises(InsecureFile, match="chown"):
            read_private(path)

    def test_written_whole_and_private(self, tmp_path):
        """Mode 0600 from the first byte on, no temporary file left."""
        path = tmp_path / "state"
        write_private(path, b"one")
        write_private(path, bytearray(b"two"))
        assert path.read_bytes() == b"two"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert list(tmp_path.iterdir()) == [path]

    def test_a_key_file_is_overwritten_before_it_goes(self, tmp_path):
        """Another link to the same file shows zeroes, not the key."""
        path, other = tmp_path / "key", tmp_path / "other"
        write_private(path, b"secret")
        other.hardlink_to(path)
        overwrite_and_remove(path)
        overwrite_and_remove(path)
        assert (path.exists(), other.read_bytes()) == (False, bytes(6))

    def test_a_folder_of_mode_0750_is_refused(self, tmp_path):
        """N60: the group has no business in the state folder."""
        tmp_path.chmod(0o750)
        with pytest.raises(InsecureFile):
            check_folder(tmp_path)


def note(size=7, root=b"r" * 32, *, key=KEY, name=ORIGIN, origin=ORIGIN):
    text = f"{origin}\n{size}\n{base64.b64encode(root).decode()}\n"
    public = key.public_key().public_bytes_raw()
    return encode_note(
        text=text, name=name, public_key=public, signature=key.sign(text.encode())
    ).encode()


class TestCheckpoints:
    def memory(self, folder):
        return CheckpointMemory(folder, origin=ORIGIN, public_key=PUBLIC)

    def test_reads_what_the_authority_writes(self):
        """One format on both sides, written twice from C2SP tlog-checkpoint."""
        seen = open_checkpoint(note(), origin=ORIGIN, public_key=PUBLIC)
        assert (seen.size, seen.root) == (7, b"r" * 32)

    def test_any_changed_byte_is_refused(self):
        """The signature covers origin, size and root; the rest is form."""
        good = note()
        for position in range(len(good)):
            changed = bytearray(good)
            changed[position] ^= 0x01
            with pytest.raises(NoteInvalid):
                open_checkpoint(bytes(changed), origin=ORIGIN, public_key=PUBLIC)

    @pytest.mark.parametrize(
        "bad",
        [
            b"",
            b"\n\n",
            note(key=ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))),
            note(origin="authority.test/other"),
            note(name="somebody"),
            note(root=b"short"),
            note(size="-1"),
            note(size="07"),
            note(size="9" * 20),
            note() + b"x" * 20_000,
        ],
    )
    def test_what_is_no_checkpoint_of_this_log_is_refused(self, bad):
        """Another key, log, form or size: nothing of it is believed."""
        with pytest.raises(NoteInvalid):
            open_checkpoint(bad, origin=ORIGIN, public_key=PUBLIC)

    def test_only_grows_and_survives(self, tmp_path):
        """N91: the highest one is kept, by the next process too."""
        memory = self.memory(tmp_path)
        assert memory.observe(note(7)) is Observation.HIGHER
        assert memory.observe(note(9)) is Observation.HIGHER
        assert memory.observe(note(8)) is Observation.KNOWN
        assert self.memory(tmp_path).note == note(9)

    def test_a_fork_is_kept_as_proof(self, tmp_path):
        """N65: both signed notes are in one file, and it is found at the next start."""
        memory = self.memory(tmp_path)
        memory.observe(note(7))
        assert memory.observe(note(7, b"f" * 32)) is Observation.SPLIT_VIEW
        proof = (tmp_path / "checkpoint.conflict").read_bytes()
        assert note(7) in proof
        assert note(7, b"f" * 32) in proof
        assert self.memory(tmp_path).split_view

    def test_a_file_that_was_tampered_with_is_not_echoed(self, tmp_path):
        """What is kept is checked again when it is read."""
        write_private(tmp_path / "checkpoint", note(7)[:-3] + b"AA\n")
        assert (self.memory(tmp_path).note, self.memory(tmp_path).size) == (b"", 0)


class TestFailures:
    def error(self, code, trouble=None):
        trailing = ()
        if trouble is not None:
            trailing = status_of(trouble).trailing_metadata
        metadata = grpc.aio.Metadata(*trailing)
        message = f"test: {trouble.reason}" if trouble else "plain"
        return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details=message)

    @pytest.mark.parametrize(
        ("code", "reason", "kind", "exit_code"),
        [
            ("UNAVAILABLE", "KMS_UNAVAILABLE", FailureKind.NO_ANSWER, 5),
            ("RESOURCE_EXHAUSTED", "RATE_LIMITED", FailureKind.BUSY, 5),
            ("ABORTED", "CHALLENGE_EXPIRED", FailureKind.STALE, 5),
            ("ABORTED", "CONFLICT", FailureKind.NO_ANSWER, 5),
            ("FAILED_PRECONDITION", "LOG_REJECTED", FailureKind.STALE, 5),
            ("ALREADY_EXISTS", "CHALLENGE_ALREADY_USED", FailureKind.STALE, 5),
            ("FAILED_PRECONDITION", "ROLLBACK_DETECTED", FailureKind.ROLLED_BACK, 1),
            ("FAILED_PRECONDITION", "HOST_NOT_ATTESTED", FailureKind.REFUSED, 1),
            ("PERMISSION_DENIED", "KEY_NOT_PERMITTED", FailureKind.REFUSED, 1),
            ("PERMISSION_DENIED", "ROLE_REQUIRED", FailureKind.REFUSED, 4),
            ("UNAUTHENTICATED", "UNAUTHENTICATED", FailureKind.UNKNOWN_CALLER, 4),
            ("UNAUTHENTICATED", "QUOTE_SIGNATURE_INVALID", FailureKind.REFUSED, 4),
            ("NOT_FOUND", "NOT_FOUND", FailureKind.REFUSED, 3),
        ],
    )
    def test_code_and_reason_decide_what_follows(self, code, reason, kind, exit_code):
        """style.md 3.5: one table of codes, reasons and exit codes."""
        trouble = Trouble(code=code_pb2.Code.Value(code), reason=reason)
        failure = failure_of(self.error(grpc.StatusCode[code], trouble))
        assert (failure.kind, failure.reason, failure.exit_code) == (kind, reason, exit_code)

    def test_retry_delay_is_read(self):
        """RetryInfo: not before."""
        trouble = Trouble(code=code_pb2.UNAVAILABLE, retry_ms=1500)
        assert failure_of(self.error(grpc.StatusCode.UNAVAILABLE, trouble)).retry_after_ms == 1500

    def test_details_that_contradict_the_code_are_not_believed(self):
        """An error whose details say something else is read by its code alone."""
        trouble = Trouble(code=code_pb2.NOT_FOUND, reason="ROLLBACK_DETECTED")
        failure = failure_of(self.error(grpc.StatusCode.UNAVAILABLE, trouble))
        assert (failure.kind, failure.reason) == (FailureKind.NO_ANSWER, "UNAVAILABLE")


class TestControl:
    @pytest.fixture
    async def run_dir(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("r", numbered=True)
        folder.chmod(0o700)
        return folder

    async def talk(self, run_dir, handle, line):
        async with await serve(run_dir, handle):
            reader, writer = await asyncio.open_unix_connection(run_dir / "control.sock")
            writer.write(line)
            answer = await asyncio.wait_for(reader.readline(), 5)
            writer.close()
            return json.loads(answer) if answer else None

    async def echo(self, request):
        return {"ok": True, **request}

    async def test_only_its_owner_may_connect(self, run_dir):
        """Mode 0600 from the first moment on."""
        async with await serve(run_dir, self.echo):
            mode = stat.S_IMODE((run_dir / "control.sock").stat().st_mode)
            assert mode == 0o600
            assert await ask(run_dir, {"do": "x"}, 5) == {"ok": True, "do": "x"}

    async def test_nobody_listening_is_said(self, run_dir):
        """No socket, or one that a dead agent left."""
        with pytest.raises(NoDaemon):
            await ask(run_dir, {"do": "status"}, 5)
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(run_dir / "control.sock"))
        with pytest.raises(NoDaemon):
            await ask(run_dir, {"do": "status"}, 5)

    @pytest.mark.parametrize("line", [b"\n", b"[]\n", b"{}\n", b'{"do": 1}\n', b"\xff\n", b"{\n"])
    async def test_what_is_no_request_gets_an_answer(self, run_dir, line):
        """N44: garbage is refused with exit status 2 and changes nothing."""
        answer = await self.talk(run_dir, self.echo, line)
        assert (answer["ok"], answer["exit_code"]) == (False, 2)

    async def test_a_line_without_end_is_cut_off(self, run_dir):
        """64 KiB are the limit of a request."""
        assert await self.talk(run_dir, self.echo, b"x" * 200_000) is None

    @pytest.mark.parametrize(
        ("raised", "reason", "exit_code"),
        [
            (KeyError("vm"), "INVALID_REQUEST", 2),
            (ValueError("vm"), "INVALID_REQUEST", 2),
            (ZeroDivisionError("secret"), "INTERNAL", 70),
            (
                CallFailed(Failure(kind=FailureKind.REFUSED, reason="FENCED", exit_code=1)),
                "FENCED",
                1,
            ),
        ],
    )
    async def test_a_failing_handler_is_an_answer(self, run_dir, raised, reason, exit_code):
        """One bad request ends neither the connection nor the agent."""

        async def fail(_request):
            raise raised

        answer = await self.talk(run_dir, fail, b'{"do": "x"}\n')
        assert (answer["reason"], answer["exit_code"]) == (reason, exit_code)
        assert "secret" not in answer["detail"]

    def test_refusals_have_one_shape(self):
        """Commands print reason and detail, and end with the exit code."""
        assert refusal("R", "d", 4) == {"ok": False, "reason": "R", "detail": "d", "exit_code": 4}


class TestEnforcement:
    def program(self, tmp_path, script):
        path = tmp_path / "vm-enforce"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o700)
        return ProgramEnforcement(program=path, timeout_s=1.0)

    async def test_gets_action_and_vm(self, tmp_path):
        """``PROGRAM pause VM``; exit 0 is done."""
        enforcement = self.program(tmp_path, f'echo "$1 $2" > {tmp_path}/seen')
        assert await enforcement.act(VmAction.PAUSE, "vm-1", "")
        assert (tmp_path / "seen").read_text() == "pause vm-1\n"

    @pytest.mark.parametrize("script", ["exit 1", "sleep 30", "kill -9 $$"])
    async def test_anything_else_is_not_done(self, tmp_path, script):
        """Failing, hanging or dying programs did not pause anything."""
        assert not await self.program(tmp_path, f"exec {script}").act(VmAction.PAUSE, "vm-1", "")

    async def test_an_absent_program_is_not_done(self, tmp_path):
        """A missing program is noticed, not assumed."""
        absent = ProgramEnforcement(program=tmp_path / "none", timeout_s=1.0)
        assert not await absent.act(VmAction.DESTROY, "vm-1", "")


class TestNotify:
    def test_tells_what_changed_and_that_it_lives(self, tmp_path):
        """sd_notify(3): one datagram; the same status is not repeated within a second."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(str(tmp_path / "n"))
            listener.settimeout(5)
            notifier = Notifier(str(tmp_path / "n"))
            notifier.tell("READY=1")
            for now in (0, 10, 999, 1000):
                notifier.alive("passed", now)
            notifier.alive("failed", 1001)
            listener.setblocking(False)
            said = [listener.recv(100) for _ in range(4)]
            with pytest.raises(BlockingIOError):
                listener.recv(100)
        passed = b"WATCHDOG=1\nSTATUS=passed"
        assert said == [b"READY=1", passed, passed, b"WATCHDOG=1\nSTATUS=failed"]

    def test_a_systemd_that_does_not_read_blocks_nothing(self, tmp_path):
        """The loop that keeps leases never waits for a datagram."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(str(tmp_path / "n"))
            notifier = Notifier(str(tmp_path / "n"))
            for _ in range(2000):
                notifier.tell("WATCHDOG=1")
            assert listener.recv(100) == b"WATCHDOG=1"

    def test_without_systemd_nothing_happens(self, tmp_path):
        """No address, or nobody there."""
        Notifier("").tell("READY=1")
        Notifier(str(tmp_path / "absent")).tell("READY=1")
