"""The stage of the demo: processes, ports, software hosts. Everything lies below one folder."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support.boots import BOOTS, replay_boot
from support.swtpm import SoftwareTpm, TpmMaker

BIN = Path(sys.executable).parent
READY_S = 60
_PORTS = range(20_000, 32_000)
"""Below those that the kernel gives to clients: a server that was stopped gets its port again."""


class DemoFailed(Exception):
    """An expectation did not hold, or a process did not start."""


@dataclass(slots=True)
class Result:
    """What a command said."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def said(self) -> str:
        """Everything it printed."""
        return self.out + self.err

    def json(self) -> dict:
        """Its answer, when it was asked for JSON."""
        try:
            return json.loads(self.out)
        except ValueError as error:
            raise DemoFailed(f"not JSON: {self.said}") from error


@dataclass(slots=True)
class Host:
    """A software host: a TPM, a boot, an agent configuration."""

    name: str
    folder: Path
    tpm: SoftwareTpm
    config: Path
    boot: str = ""


@dataclass(slots=True)
class Stage:
    """All processes of the demo, ended by id when it is over."""

    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    logs: dict[str, IO[bytes]] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    hosts: dict[str, Host] = field(default_factory=dict)
    keep: bool = False
    secret: bytes = b""
    """The VM key as one host opened it: to be looked for everywhere else."""

    # --- processes -----------------------------------------------------------------------------

    def address(self, name: str) -> str:
        """A loopback address with a port of its own, the same one each time it is asked for."""
        if name not in self.ports:
            self.ports[name] = _free_port(taken=self.ports.values())
        return f"127.0.0.1:{self.ports[name]}"

    def start(self, name: str, *command: str | Path, ready: str) -> float:
        """Start a process and wait until its log says that it is ready; returns the seconds."""
        path = self.folder / "logs" / f"{name}.log"
        path.parent.mkdir(exist_ok=True)
        seen = path.stat().st_size if path.exists() else 0
        log = path.open("ab")
        began = time.monotonic()
        self.processes[name] = subprocess.Popen(
            [str(BIN / str(command[0])), *map(str, command[1:])],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=self.environment(),
            start_new_session=self.keep,
        )
        self.logs[name] = log
        while ready.encode() not in path.read_bytes()[seen:]:
            if self.processes[name].poll() is not None or time.monotonic() - began > READY_S:
                raise DemoFailed(f"{name} did not start:\n{path.read_text()[-2000:]}")
            time.sleep(0.05)
        return time.monotonic() - began

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        """End a process that this stage started."""
        process = self.processes.pop(name, None)
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
        self.logs.pop(name).close()

    def pids(self) -> list[int]:
        """Every process of the stage, software TPMs included."""
        tpms = [host.tpm.pid for host in self.hosts.values() if host.tpm.pid]
        return [*(process.pid for process in self.processes.values()), *tpms]

    def close(self) -> None:
        """End everything."""
        for name in reversed(tuple(self.processes)):
            self.stop(name)
        for host in self.hosts.values():
            host.tpm.stop()

    def environment(self) -> dict[str, str]:
        """The environment of every command: quiet TPM library, contexts of the demo, bytecode kept."""
        inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        return inherited | {
            "PYTHONPYCACHEPREFIX": str(ROOT / ".build" / "pycache"),
            "TA_CONTEXTS_FILE": str(self.folder / "authority" / "identity" / "contexts.toml"),
            "TSS2_LOG": "all+none",
            "NO_COLOR": "1",
            "COLUMNS": "140",
        }

    def run(self, *command: str | Path, timeout: float = 90) -> Result:
        """Run a command to its end."""
        began = time.monotonic()
        done = subprocess.run(
            [str(BIN / str(command[0])), *map(str, command[1:])],
            capture_output=True,
            text=True,
            env=self.environment(),
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return Result(done.returncode, done.stdout, done.stderr, time.monotonic() - began)

    def ta(self, *arguments: str | Path) -> Result:
        """Run ta."""
        return self.run("ta", *arguments)

    def agent(self, host: str, *arguments: str | Path) -> Result:
        """Run hostagent on a host."""
        words = [*map(str, arguments), "--config", str(self.hosts[host].config)]
        return self.run("hostagent", *words)

    # --- hosts ---------------------------------------------------------------------------------

    def make_host(self, name: str, maker: TpmMaker, boot: str) -> Host:
        """Manufacture a TPM, measure a captured boot into it, and configure an agent."""
        folder = self.folder / name
        tpm = SoftwareTpm.manufacture(
            folder / "tpm", maker=maker, serial=name, outlives_parent=self.keep
        )
        (folder / "state").mkdir(mode=0o700)
        host = Host(name=name, folder=folder, tpm=tpm, config=folder / "hostagent.toml")
        self.hosts[name] = host
        self.boot_host(name, boot)
        host.config.write_text(self._agent_config(host))
        host.config.chmod(0o600)
        return host

    def boot_host(self, name: str, boot: str) -> None:
        """Power a host on with a captured boot: its PCRs are then those of the real machine."""
        host = self.hosts[name]
        if host.tpm.pid:
            host.tpm.reset()
        else:
            host.tpm.start()
        for part in ("boot", "run"):  # a reboot empties /run
            shutil.rmtree(host.folder / part, ignore_errors=True)
        (host.folder / "run").mkdir(mode=0o700)
        replay_boot(host.tpm.tcti, BOOTS / boot, into=host.folder / "boot")
        host.boot = boot

    def _agent_config(self, host: Host) -> str:
        return f"""\
[authority]
ca_file = "{self.folder / "authority" / "identity" / "authority-ca.crt"}"
enrol = "{self.address("enrol")}"
mtls = "{self.address("mutual")}"
key = "{self.address("key")}"
placement = "{self.address("admin")}"

[host]
name = "{host.name}"
cluster = "lab"

[tpm]
tcti = "{host.tpm.tcti}"
endorsement = "rsa2048"

[paths]
state_dir = "{host.folder / "state"}"
run_dir = "{host.folder / "run"}"
boot_log = "{host.folder / "boot" / "eventlog.bin"}"
ima_log = "{host.folder / "boot" / "ima.bin"}"

[intervals]
answer_timeout_ms = 6000
"""


def _free_port(taken: Collection[int]) -> int:
    """A port that nobody listens on; stages that are set up at the same time look in other places."""
    first = os.getpid() * 97 % len(_PORTS)
    for port in (*_PORTS[first:], *_PORTS[:first]):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in taken:
                return port
    raise DemoFailed("no port is free")
