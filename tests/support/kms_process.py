"""A kms-mock in its own process on a free port, for the tests of what talks to a KMS."""

import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kms_mock import pki
from kms_mock.faults import NO_FAULT, parse_fault, write_fault
from trustauthority.adapters.kms.settings import KmipSettings

_COMMAND = (sys.executable, "-c", "from kms_mock.main import main; main()")
_START_S = 60
_STOP_S = 10


class MockKmsProcess:
    """The command, its folder, and switches for what goes wrong."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        pki.init(folder)
        (folder / "kms-mock.toml").write_text("port = 0\n")

    def start(self) -> None:
        """Serve, on the port of the time before; returns when ready."""
        log = (self.folder / "stderr.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [*_COMMAND, "serve", str(self.folder), "--port", str(self.port)],
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            assert selector.select(_START_S), "kms-mock did not become ready"
        line = self._process.stdout.readline().decode()
        assert line.startswith("kms-mock ready on 127.0.0.1:"), self.stderr
        self.port = int(line.rpartition(":")[2])

    def kill(self, number: int = signal.SIGKILL) -> int:
        """End it; returns its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        os.kill(process.pid, number)
        try:
            return process.wait(_STOP_S)
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr.log").read_text()

    def settings(self, client: str = "client", **changes: object) -> KmipSettings:
        """How ``client`` reaches it."""
        fields = {
            "host": "127.0.0.1",
            "port": self.port,
            "ca": self.folder / "ca.pem",
            "certificate": self.folder / f"{client}.pem",
            "key": self.folder / f"{client}.key",
            "timeout_s": 5.0,
        }
        return KmipSettings(**(fields | changes))

    @contextmanager
    def fault(self, what: str) -> Iterator[None]:
        """Let something go wrong for a while."""
        write_fault(self.folder, parse_fault(what))
        try:
            yield
        finally:
            write_fault(self.folder, NO_FAULT)


@contextmanager
def running_kms(folder: Path) -> Iterator[MockKmsProcess]:
    """A KMS for the time of a block."""
    kms = MockKmsProcess(folder)
    kms.start()
    try:
        yield kms
    finally:
        kms.kill()
