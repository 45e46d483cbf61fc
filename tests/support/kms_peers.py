"""Real KMSes of each kind on the loopback, each with the same switches for what goes wrong.

A peer is started once per module of tests. ``settings`` is how the product reaches it; the context
managers let something go wrong for the time of a block. What a peer can't show, it says.
"""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from kms_mock import pki
from support.kms_process import MockKmsProcess
from trustauthority.adapters.kms.kmip import KmipKms
from trustauthority.adapters.kms.pkcs11 import _kek
from trustauthority.adapters.kms.providers import open_kms
from trustauthority.adapters.kms.settings import Pkcs11Settings, ProviderSettings

VM_KEY = b"a passphrase of a virtual machine"
AAD = b'{"format":"ta-vm-key-v1","keyEpoch":1,"provider":"default","vm":"vm-1"}'


class Peer:
    """A KMS of the tests."""

    name: ClassVar[str]
    home: ClassVar[str] = ""
    """Folder and worker that it shares with another peer; its own, if empty."""
    algorithm: ClassVar[int]
    """The third byte of its blobs."""
    has_network: ClassVar[bool] = True
    """Whether there are certificates, time limits and answers on a wire."""
    tells_time: ClassVar[bool] = True
    """Whether it answers with what its clock says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stack = ExitStack()
        self._opened: list[Any] = []

    def start(self) -> None:
        """Start it; ``close`` ends what is on ``stack``."""
        raise NotImplementedError

    def close(self) -> None:
        self.stack.close()

    def settings(self, **changes: Any) -> ProviderSettings:
        """How its rightful client reaches it."""
        raise NotImplementedError

    @cached_property
    def kek(self) -> str:
        """A KEK of the rightful client."""
        return str(self.kms().create_kek("ta-kek-default"))

    @cached_property
    def wrapped(self) -> bytes:
        """``VM_KEY`` under that KEK, bound to ``AAD``."""
        return bytes(self.kms().wrap(self.kek, bytearray(VM_KEY), AAD))

    def kms(self, **changes: Any) -> Any:
        """An adapter of the rightful client."""
        return self.open(self.settings(**changes))

    def open(self, settings: ProviderSettings) -> Any:
        """An adapter whose connections end with the test."""
        self._opened.append(open_kms(settings))
        return self._opened[-1]

    def close_clients(self) -> None:
        """End what a test left open."""
        while self._opened:
            self._opened.pop().close()

    def stranger(self) -> ProviderSettings:
        """Another client, known to it, who may not use our KEKs."""
        raise NotImplementedError

    def unknown(self) -> ProviderSettings:
        """A client whose credential has ended or was never good."""
        raise NotImplementedError

    def slow(self) -> AbstractContextManager[None]:
        """It answers, but after a long time."""
        raise NotImplementedError

    def down(self) -> AbstractContextManager[None]:
        """It is not there."""
        raise NotImplementedError

    def truncating(self, after: int) -> AbstractContextManager[None]:
        """Its answers end early."""
        raise NotImplementedError

    def lying(self) -> AbstractContextManager[None]:
        """It unwraps to another key than was wrapped."""
        raise NotImplementedError

    def revoking(self) -> AbstractContextManager[None]:
        """It takes back our credential, and gives it again."""
        raise NotImplementedError

    def take_out_of_use(self, kek_id: str) -> str:
        """Let the people who run the KMS end a KEK; returns a pattern of what we say then."""
        raise NotImplementedError


class KmipPeer(Peer):
    """kms-mock: PyKMIP's engine over mutual TLS."""

    name = "kmip"
    algorithm = 1

    def start(self) -> None:
        self._mock = MockKmsProcess(self.folder / "kms")
        self._mock.start()
        self.stack.callback(self._mock.kill)
        pki.issue(self._mock.folder, "tenant")
        pki.issue(self._mock.folder, "ended", lifetime=timedelta(days=-1))

    def settings(self, **changes: Any) -> ProviderSettings:
        return self._mock.settings(**changes)

    def stranger(self) -> ProviderSettings:
        return self._mock.settings("tenant")

    def unknown(self) -> ProviderSettings:
        return self._mock.settings("ended")

    def slow(self) -> AbstractContextManager[None]:
        return self._mock.fault("slow:60")

    def down(self) -> AbstractContextManager[None]:
        return self._mock.fault("down")

    def truncating(self, after: int) -> AbstractContextManager[None]:
        return self._mock.fault("truncated")

    def lying(self) -> AbstractContextManager[None]:
        return self._mock.fault("wrong-key")

    def revoking(self) -> AbstractContextManager[None]:
        return self._mock.fault("revoked")

    def take_out_of_use(self, kek_id: str) -> str:
        KmipKms(self._mock.settings()).revoke(kek_id, compromised=True)
        return "is compromised in the KMS, not active"


class Pkcs11Peer(Peer):
    """SoftHSM2, behind a module of the tests that spoils what it is told to."""

    name = "pkcs11"
    algorithm = 2
    has_network = False
    tells_time = False
    mechanism = "aes-gcm"

    def start(self) -> None:
        self.module = self.folder / "module.so"
        configuration = self.folder / "softhsm2.conf"
        configuration.write_text(
            f"directories.tokendir = {self.folder / 'tokens'}\nobjectstore.backend = file\n"
            "log.level = ERROR\n"
        )
        self._environment = {
            "SOFTHSM2_CONF": str(configuration),
            "TA_TEST_PKCS11_FAULT": str(self.folder / "fault"),
        }
        if self.module.exists():  # one library and one set of tokens per process
            return
        (self.folder / "tokens").mkdir()
        source = Path(__file__).with_name("pkcs11_faults.c")
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", self.module, source, "-ldl"],
            check=True,
        )
        self._token("ta", "12345678")
        self._token("tenant", "87654321")
        self.write_secret("wrong", "00000000")

    def _token(self, label: str, pin: str) -> None:
        subprocess.run(
            [
                *("softhsm2-util", "--init-token", "--free", "--label", label),
                *("--pin", pin, "--so-pin", "1111"),
            ],
            env=self._environment,
            check=True,
            capture_output=True,
        )
        self.write_secret(label, pin)

    def write_secret(self, name: str, word: str) -> Path:
        path = self.folder / f"{name}.pin"
        path.touch(mode=0o600)
        path.write_text(f"{word}\n")
        return path

    def settings(self, **changes: Any) -> ProviderSettings:
        fields = {
            "module": self.module,
            "token": "ta",
            "pin": self.folder / "ta.pin",
            "mechanism": self.mechanism,
            "environment": self._environment,
        }
        return Pkcs11Settings(**(fields | changes))

    def stranger(self) -> ProviderSettings:
        return self.settings(token="tenant", pin=self.folder / "tenant.pin")

    def unknown(self) -> ProviderSettings:
        return self.settings(pin=self.folder / "wrong.pin")

    @contextmanager
    def fault(self, what: str) -> Iterator[None]:
        (self.folder / "fault").write_text(what)
        try:
            yield
        finally:
            (self.folder / "fault").unlink()

    def slow(self) -> AbstractContextManager[None]:
        return self.fault("slow 60")

    def down(self) -> AbstractContextManager[None]:
        return self.fault("removed")

    def truncating(self, after: int) -> AbstractContextManager[None]:
        return self.fault("truncated")

    def lying(self) -> AbstractContextManager[None]:
        return self.fault("wrong-key")

    @contextmanager
    def revoking(self) -> Iterator[None]:
        """The PIN was changed by somebody else."""
        self.write_secret("ta", "00000000")
        try:
            yield
        finally:
            self.write_secret("ta", "12345678")

    def take_out_of_use(self, kek_id: str) -> str:
        self.kms()._ask(lambda session: _find(session, kek_id).destroy())
        return "has no such KEK"


class KeyWrapPeer(Pkcs11Peer):
    """SoftHSM2 with AES key wrap instead of AES-GCM."""

    name = "pkcs11-key-wrap"
    home = "pkcs11"
    algorithm = 3
    mechanism = "aes-key-wrap"


def _find(session: Any, kek_id: str) -> Any:
    return _kek(session, bytes.fromhex(kek_id))


def copy_of(path: Path, folder: Path, mode: int) -> Path:
    """A copy of a private file with another mode."""
    made = folder / path.name
    shutil.copy(path, made)
    made.chmod(mode)
    return made
