"""A software TPM as a test host has it: manufactured with EK certificates, powered, reset, cleared.

Shared by tests/tpm, the scenario tests and the demo (deploy/demo adds tests/ to its path). What
comes out is a real TPM 2.0 (libtpms) behind a Unix socket; nothing here imitates TPM behaviour.

    ca = TpmMaker(tmp_path / "maker")
    with SoftwareTpm.manufacture(tmp_path / "tpm", maker=ca, serial="host-a") as tpm:
        agent_connects_to(tpm.tcti)

Sockets live in a short temporary directory of their own, because a Unix socket path may have at
most 107 bytes and pytest's directories are long.
"""

import atexit
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tpm2_pytss import ESAPI, ESYS_TR, TCTILdr
from tpm2_pytss.constants import TPM2_SU

EK_RSA_CERTIFICATE = 0x01C00002  # TCG EK Credential Profile 2.5, section 2.2.1.4
EK_P384_CERTIFICATE = 0x01C00016
EK_RSA_HANDLE = 0x81010001
EK_P384_HANDLE = 0x81010016

_START_LIMIT = 10.0  # seconds
_SETUP_LIMIT = 60.0  # seconds; RSA key generation takes one to three


class SoftwareTpmFailed(Exception):
    """swtpm or swtpm_setup did not do what was asked; the message holds its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmIdentity:
    """resetCount and restartCount of a TPM and whether its clock is safe (TPMS_CLOCK_INFO)."""

    reset_count: int
    restart_count: int
    clock: int
    safe: bool


class TpmMaker:
    """A TPM manufacturer: a private certificate authority that signs EK certificates.

    Every maker has the same names in its certificates and keys of its own, which is exactly what
    an attacker who imitates a manufacturer has.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "state").mkdir(exist_ok=True)
        self._write(
            "localca.conf",
            statedir=self.directory / "state",
            signingkey=self.directory / "state/signkey.pem",
            issuercert=self.directory / "state/issuercert.pem",
            certserial=self.directory / "state/certserial",
        )
        (self.directory / "localca.options").write_text(
            "--platform-manufacturer Example\n--platform-model SoftwareHost\n--platform-version 1.0\n"
        )
        self._write(
            "setup.conf",
            create_certs_tool=_program("swtpm_localca"),
            create_certs_tool_config=self.directory / "localca.conf",
            create_certs_tool_options=self.directory / "localca.options",
        )

    @property
    def root_certificate(self) -> Path:
        """The root certificate (PEM); it exists after the first TPM was manufactured."""
        return self.directory / "state/swtpm-localca-rootca-cert.pem"

    @property
    def issuer_certificate(self) -> Path:
        """The intermediate certificate (PEM) that issues EK certificates; exists like the root."""
        return self.directory / "state/issuercert.pem"

    @property
    def setup_config(self) -> Path:
        """The configuration for swtpm_setup."""
        return self.directory / "setup.conf"

    def _write(self, name: str, **settings: Path | str) -> None:
        lines = "".join(f"{key} = {value}\n" for key, value in settings.items())
        (self.directory / name).write_text(lines)


class SoftwareTpm:
    """One TPM: its state folder and, while powered, its swtpm process."""

    def __init__(self, directory: Path, *, outlives_parent: bool = False) -> None:
        """A TPM whose state is in `directory`; `manufacture` or `copy_state` makes one.

        With `outlives_parent` the process stays when this one ends (the demo with KEEP=1);
        otherwise the kernel ends it even if this process is killed, so a TPM must be started
        from a thread that lives at least as long as the TPM is needed.
        """
        self.directory = directory.absolute()
        self._outlives_parent = outlives_parent
        self._process: subprocess.Popen[bytes] | None = None
        self._sockets: Path | None = None

    @classmethod
    def manufacture(
        cls,
        directory: Path,
        *,
        maker: TpmMaker,
        serial: str = "host",
        banks: tuple[str, ...] = ("sha1", "sha256"),
        outlives_parent: bool = False,
    ) -> Self:
        """Make a TPM with an RSA-2048 and a P-384 EK and their certificates in NV; not started."""
        tpm = cls(directory, outlives_parent=outlives_parent)
        tpm._state.mkdir(parents=True)
        log = tpm.directory / "setup.log"
        command = [
            *(_program("swtpm_setup"), "--tpm2", "--tpmstate", str(tpm._state)),
            *("--config", str(maker.setup_config), "--logfile", str(log)),
            *("--create-ek-cert", "--create-platform-cert", "--lock-nvram"),
            *("--pcr-banks", ",".join(banks), "--vmid", serial),
        ]
        if os.geteuid() == 0:
            command += ["--runas", "root"]  # else it would drop to user tss and lose the folder
        done = subprocess.run(command, capture_output=True, timeout=_SETUP_LIMIT, check=False)
        if done.returncode != 0:
            shown = log.read_text() if log.exists() else done.stderr.decode()
            raise SoftwareTpmFailed(f"swtpm_setup ended with {done.returncode}:\n{shown}")
        return tpm

    @property
    def tcti(self) -> str:
        """The TCTI string for tpm2-pytss and tpm2-tools; the same over every reset."""
        return f"swtpm:path={self._socket}"

    @property
    def pid(self) -> int | None:
        """Process id of swtpm while powered."""
        return self._process.pid if self._process else None

    def start(self, *, resume: bool = False, locality: int = 0) -> Self:
        """Power on and do TPM2_Startup: CLEAR, or STATE when `resume` (wake from suspend).

        A platform that measures before its BIOS runs starts the TPM from locality 3; PCR 0 then
        begins with that number, and the event log says so (StartupLocality).
        """
        if self._process is not None:
            raise SoftwareTpmFailed("this TPM is powered already")
        startup = "none" if locality else "state" if resume else "clear"
        guard = () if self._outlives_parent else (_program("setpriv"), "--pdeathsig", "KILL")
        command = [
            *(*guard, _program("swtpm"), "socket", "--tpm2", "--tpmstate", f"dir={self._state}"),
            *("--server", f"type=unixio,path={self._socket}"),
            *("--ctrl", f"type=unixio,path={self._socket}.ctrl"),
            *("--flags", f"not-need-init,startup-{startup}"),
            *("--log", f"file={self._log},level=1,truncate"),
        ]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=self._outlives_parent,
        )
        if not self._outlives_parent:
            atexit.register(self.stop)
        self._await_sockets()
        if locality:
            self._startup(locality, TPM2_SU.STATE if resume else TPM2_SU.CLEAR)
        # The sockets listen before TPM2_Startup is done; a power cut in between would not count.
        self.identity()
        return self

    def stop(self) -> None:
        """Cut the power (SIGKILL: no TPM2_Shutdown, as when a cable is pulled); idempotent."""
        atexit.unregister(self.stop)
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(timeout=_START_LIMIT)
            self._process = None
        if self._sockets is not None:
            for leftover in self._sockets.iterdir():
                leftover.unlink()

    def discard(self) -> None:
        """Stop and remove the socket folder; the state folder stays."""
        self.stop()
        if self._sockets is not None:
            shutil.rmtree(self._sockets)
            self._sockets = None

    def reset(self) -> None:
        """A power cut and a new start: TPM Reset, resetCount grows, PCRs are at their reset values."""
        self.stop()
        self.start()

    def shutdown_clear(self) -> None:
        """An orderly reboot, TPM2_Shutdown(CLEAR) then Startup(CLEAR): resetCount grows."""
        self._shutdown(TPM2_SU.CLEAR)
        self.stop()
        self.start()

    def shutdown_state(self, *, resume: bool = False) -> None:
        """TPM2_Shutdown(STATE), then a TPM Restart, or with `resume` a TPM Resume (PCRs survive).

        Both make restartCount grow and leave resetCount alone (TPM 2.0 part 1, section 12.2.3).
        """
        self._shutdown(TPM2_SU.STATE)
        self.stop()
        self.start(resume=resume)

    def clear(self) -> None:
        """TPM2_Clear with the (empty) lockout authorisation: a new storage seed, the EK stays."""
        with self.connect() as tpm:
            tpm.clear(ESYS_TR.LOCKOUT)

    def identity(self) -> TpmIdentity:
        """The reset counters as TPM2_ReadClock tells them."""
        with self.connect() as tpm:
            info = tpm.read_clock().clockInfo
            return TpmIdentity(
                reset_count=int(info.resetCount),
                restart_count=int(info.restartCount),
                clock=int(info.clock),
                safe=bool(info.safe),
            )

    def read_nv(self, index: int) -> bytes:
        """The whole content of an NV index that the owner may read, such as an EK certificate."""
        with self.connect() as tpm:
            handle = tpm.tr_from_tpmpublic(index)
            size = int(tpm.nv_read_public(handle)[0].nvPublic.dataSize)
            pieces = []
            for offset in range(0, size, 512):
                piece = tpm.nv_read(
                    handle, min(512, size - offset), offset, auth_handle=ESYS_TR.OWNER
                )
                pieces.append(bytes(piece))
            return b"".join(pieces)

    @contextmanager
    def connect(self) -> Iterator[ESAPI]:
        """An ESAPI context on this TPM, closed at the end."""
        with ESAPI(self.tcti) as tpm:
            yield tpm

    def copy_state(self, directory: Path) -> "SoftwareTpm":
        """A second TPM with the state of this moment: a clone, or a snapshot to roll back to."""
        ignore = shutil.ignore_patterns(".lock")
        shutil.copytree(self._state, directory.absolute() / "state", ignore=ignore)
        return SoftwareTpm(directory, outlives_parent=self._outlives_parent)

    def __enter__(self) -> Self:
        return self if self._process is not None else self.start()

    def __exit__(self, *_: object) -> None:
        self.discard()

    @property
    def _state(self) -> Path:
        return self.directory / "state"

    @property
    def _log(self) -> Path:
        return self.directory / "swtpm.log"

    @property
    def _socket(self) -> Path:
        if self._sockets is None:
            self._sockets = Path(tempfile.mkdtemp(prefix="swtpm-"))
        return self._sockets / "tpm"

    def _shutdown(self, kind: int) -> None:
        with self.connect() as tpm:
            tpm.shutdown(kind)

    def _startup(self, locality: int, kind: int) -> None:
        with TCTILdr("swtpm", self.tcti.removeprefix("swtpm:")) as transport:
            transport.set_locality(locality)
            with ESAPI(transport) as tpm:
                tpm.startup(kind)
            transport.set_locality(0)

    def _await_sockets(self) -> None:
        deadline = time.monotonic() + _START_LIMIT
        while not (_accepts(self._socket) and _accepts(Path(f"{self._socket}.ctrl"))):
            ended = self._process is None or self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                shown = self._log.read_text() if self._log.exists() else "(no log)"
                self.discard()
                raise SoftwareTpmFailed(f"swtpm did not start:\n{shown}")
            time.sleep(0.005)


def _accepts(path: Path) -> bool:
    if not path.exists():
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin")
    if found is None:
        raise SoftwareTpmFailed(f"{name} is not installed; `make setup` installs it")
    return found
