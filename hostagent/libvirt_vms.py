"""Have libvirt pause, resume and end VMs; lend it keys for the moment of a start.

Stage: I/O of the agent. Trusts libvirt on this host and the definitions that its hook hands over.
Guarantees that a key is in libvirt only between the hook's ``prepare`` and ``started`` (or ``release``), as
an ephemeral private secret, that «done» is said of a state that libvirt confirmed, that a VM which
somebody else paused is not resumed, and that the watchdog outside this process reads each new
deadline. Decides nothing about leases.
"""

import hashlib
import hmac
from dataclasses import asdict, dataclass, field
from pathlib import Path
from xml.sax.saxutils import quoteattr

import structlog

from hostagent.domain import STATE, Domain
from hostagent.failure import CallFailed, Failure, FailureKind
from hostagent.files import BrokenState, read_json, write_json
from hostagent.lease_model import VmAction
from hostagent.virsh import ABSENT, Virsh

_log = structlog.get_logger("hostagent.libvirt")
_DISK = b"trustauthority disk passphrase v1\0"
_VTPM = b"trustauthority vtpm passphrase v1\0"


@dataclass(slots=True, kw_only=True)
class Known:
    """A VM's domain on this host; stored, and read by the watchdog."""

    name: str
    uuid: str
    secrets: tuple[str, ...] = ()
    """What libvirt may hold of its key now."""
    at_ms: int = 0
    """CLOCK_BOOTTIME at which the watchdog kills QEMU."""
    started: bool = False
    profile: str = ""
    """Hex profile digest of the definition that was started."""
    told: str = ""
    """What was said last of how the running VM differs from that."""
    held: bool = False
    """Paused by the agent, or incoming: the agent may resume it."""


@dataclass(slots=True)
class LibvirtVms:
    """Enforcement through libvirt."""

    virsh: Virsh
    run_dir: Path
    known: dict[str, Known] = field(default_factory=dict)
    name: str = "libvirt"

    def __post_init__(self) -> None:
        for name in ("vms", "lent"):
            (self.run_dir / name).mkdir(mode=0o700, exist_ok=True)
        for path in (self.run_dir / "vms").glob("*.json"):
            found = read_json(path)
            if found is None:
                continue
            try:
                known = Known(**{**found, "secrets": tuple(found["secrets"])})
            except (KeyError, TypeError) as failure:
                raise BrokenState(f"{path} is damaged: stop its VM, then remove it") from failure
            self.known[path.stem] = known

    # --- what the hook's desk does -----------------------------------------------------------

    def note(self, vm_id: str, domain: Domain, *, incoming: bool) -> None:
        """Remember which domain a VM is, before its key is asked for. Raises OSError."""
        self.known[vm_id] = Known(
            name=domain.name,
            uuid=domain.uuid,
            secrets=domain.secrets,
            profile=domain.profile_sha256.hex(),
            held=incoming,
        )
        self._store(vm_id)

    def lend(self, vm_id: str, domain: Domain, key: bytearray) -> None:
        """Set the domain's secrets from the opened key. Blocks. Raises CallFailed, OSError."""
        disk = f"<usage type='volume'><volume>ta:{vm_id}:"
        for number, uuid in enumerate(domain.disk_secrets):
            self._lend(uuid, f"{disk}{number}</volume></usage>", disk_passphrase(key, vm_id))
        if domain.vtpm_secret:
            passphrase = vtpm_passphrase(key, vm_id)
            self._lend(
                domain.vtpm_secret,
                f"<usage type='vtpm'><name>ta:{vm_id}</name></usage>",
                passphrase,
            )

    def _lend(self, uuid: str, usage: str, value: bytes | bytearray) -> None:
        (self.run_dir / "lent" / uuid).touch(mode=0o600)
        problem = self.virsh.set_secret(uuid, usage, value)
        if problem:
            failure = Failure(
                kind=FailureKind.LOCAL, reason="SECRET_NOT_SET", detail=f"libvirt: {problem}"
            )
            raise CallFailed(failure)

    async def take_back(self, vm_id: str) -> bool:
        """Have libvirt forget the VM's secrets, and say whether it did."""
        known = self.known.get(vm_id)
        for uuid in known.secrets if known is not None else ():
            mark = self.run_dir / "lent" / uuid
            if not mark.exists():
                continue
            code, _, problem = await self.virsh.run("secret-undefine", uuid)
            if code != 0 and "not found" not in problem:
                _log.error("secret-not-taken-back", vm=vm_id, secret=uuid, detail=problem)
                return False
            mark.unlink(missing_ok=True)
        return True

    def started(self, vm_id: str) -> None:
        """QEMU was started. Raises OSError."""
        self.known[vm_id].started = True
        self._store(vm_id)

    def watched_file(self, vm_id: str) -> str:
        """The file, in ``run_dir/vms``, that the watchdog of a VM reads."""
        return f"{vm_id}.json"

    # --- Enforcement -------------------------------------------------------------------------

    def arm(self, vm_id: str, at_ms: int) -> None:
        """Let the watchdog know until when the VM may be left alone. Raises OSError."""
        known = self.known.get(vm_id)
        if known is not None:
            known.at_ms = at_ms
            self._store(vm_id)

    async def act(self, action: VmAction, vm_id: str, why: str) -> bool:
        """Pause, resume or end a VM's domain, and say whether that is done."""
        known = self.known.get(vm_id)
        if known is None:
            return True  # its key went to somebody else on this host, not to libvirt
        if action is VmAction.DESTROY:
            return await self._destroy(vm_id, known, why)
        state = await self.virsh.state(known.uuid)
        if state is None:
            return False
        match action:
            case VmAction.PAUSE:
                return await self._pause(vm_id, known, state, why)
            case VmAction.RESUME:
                return await self._resume(vm_id, known, state)
            case _:
                return True

    async def _pause(self, vm_id: str, known: Known, state: str, why: str) -> bool:
        if state.startswith("running"):
            known.held = True
            self._store(vm_id)
            code, _, _ = await self.virsh.run("suspend", known.uuid)
            if code != 0:
                return False
            await self._tell(known, why, live=True)
        return await self.take_back(vm_id)

    async def _resume(self, vm_id: str, known: Known, state: str) -> bool:
        if not known.held or not state.startswith("paused"):
            return True
        code, _, _ = await self.virsh.run("resume", known.uuid)
        if code == 0:
            known.held = False
            self._store(vm_id)
            await self._tell(known, "", live=True)
        return code == 0

    async def _destroy(self, vm_id: str, known: Known, why: str) -> bool:
        """First of all end it: time runs, and an inactive domain takes no harm.

        One that never started may wait in its hook for this very end: libvirt would have us wait
        for the hook, so it is left alone unless it turns out to live.
        """
        ended = -1
        if known.started or is_active(await self.virsh.state(known.uuid) or "unknown"):
            ended, _, _ = await self.virsh.run("destroy", known.uuid)
        state = await self.virsh.state(known.uuid)
        if state is None or is_active(state):
            return False
        if ended == 0 and why:
            await self._tell(known, why, live=False)
        if not await self.take_back(vm_id):
            return False
        if self.known.get(vm_id) is known:
            del self.known[vm_id]
            self._path(vm_id).unlink(missing_ok=True)
        return True

    async def tell(self, known: Known, why: str, *, live: bool) -> None:
        """Say something where an administrator looks, once."""
        if known.told != why:
            known.told = why
            await self._tell(known, why, live=live)

    async def _tell(self, known: Known, why: str, *, live: bool) -> None:
        """Leave the reason where an administrator looks: the domain's metadata. Best effort."""
        change = ("--set", f"<state why={quoteattr(why)}/>") if why else ("--remove",)
        where = ("metadata", known.uuid, STATE, "--key", "ta", *change)
        await self.virsh.run(*where, "--config")
        if live:
            await self.virsh.run(*where, "--live")

    # --- parts -------------------------------------------------------------------------------

    def _path(self, vm_id: str) -> Path:
        return self.run_dir / "vms" / self.watched_file(vm_id)

    def _store(self, vm_id: str) -> None:
        write_json(self._path(vm_id), asdict(self.known[vm_id]))


def is_active(state: str) -> bool:
    """Whether QEMU lives, or may live, in a state as ``Virsh.state`` says it."""
    return not state.startswith(("shut off", ABSENT, "crashed"))


def disk_passphrase(key: bytes | bytearray, vm_id: str) -> bytes:
    """The LUKS passphrase of a VM's disks, derived from its key: HMAC-SHA256, in hex.

    Hex, because QEMU takes a passphrase only if it is UTF-8.
    """
    return hmac.new(key, _DISK + vm_id.encode(), hashlib.sha256).hexdigest().encode()


def vtpm_passphrase(key: bytes | bytearray, vm_id: str) -> bytes:
    """The passphrase of a VM's vTPM state, derived from its key: HMAC-SHA256, in hex."""
    return hmac.new(key, _VTPM + vm_id.encode(), hashlib.sha256).hexdigest().encode()
