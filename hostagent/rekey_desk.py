"""Give the disks of a VM a new key: a slot for the new passphrase first, the old ones erased if asked for.

Stage: edge of the agent. Trusts qemu-img and libvirt of this host. Guarantees that at each moment the
old or the new key opens each disk, that running it again finishes what was cut off anywhere, that the
passphrase of the old key is in this process's memory only and for a limited time, and that this host
opens no older key once the new one opens every disk. What was fetched is given back whatever
happened. Does not re-encrypt: copies of a disk made before open with the old key for ever.
"""

import asyncio
from dataclasses import dataclass, field

import structlog

from hostagent.control import Json
from hostagent.domain import DefinitionInvalid
from hostagent.failure import CallFailed, Failure, FailureKind
from hostagent.grant import wipe
from hostagent.lease_model import Phase
from hostagent.libvirt_vms import disk_passphrase
from hostagent.luks import LuksFailed, active_slots, add_passphrase, leave_only, opens
from hostagent.protect_desk import require_at_rest
from hostagent.rekey import (
    Rekeying,
    RekeyRefused,
    RekeyStep,
    next_step,
    read_rekeying,
    require_epoch,
)
from hostagent.virsh import Virsh
from hostagent.vm_desk import VmDesk

HOLD_S = 900.0
"""How long an old passphrase is kept while somebody switches the VM to its new key."""
COPIES = (
    "copies of the disks made before still open with the old key: after a compromise, only"
    " re-encrypting the disks helps"
)

_log = structlog.get_logger("hostagent.vm")


@dataclass(slots=True)
class HeldPassphrase:
    """A passphrase in memory, until its time is over."""

    key_epoch: int
    value: bytearray = field(repr=False)
    timer: asyncio.TimerHandle


@dataclass(slots=True)
class HeldPassphrases:
    """Passphrases of VMs' old keys. Used in one event loop."""

    held: dict[str, HeldPassphrase] = field(default_factory=dict)

    def keep(self, vm_id: str, key_epoch: int, value: bytearray) -> None:
        """Keep one, instead of what was kept for this VM."""
        self.drop(vm_id)
        timer = asyncio.get_running_loop().call_later(HOLD_S, self.drop, vm_id)
        self.held[vm_id] = HeldPassphrase(key_epoch=key_epoch, value=value, timer=timer)

    def take(self, vm_id: str) -> tuple[int, bytearray]:
        """Key epoch and passphrase, the caller's to wipe now; 0 and nothing when there is none."""
        found = self.held.pop(vm_id, None)
        if found is None:
            return 0, bytearray()
        found.timer.cancel()
        return found.key_epoch, found.value

    def drop(self, vm_id: str) -> None:
        """Overwrite and forget."""
        wipe(self.take(vm_id)[1])


@dataclass(slots=True, kw_only=True)
class _Run:
    """One run: what it knows, while the key is open in a thread."""

    plan: Rekeying
    wanted: int
    leave_only: bool
    old: bytearray = field(repr=False)
    old_epoch: int
    key_epoch: int = 0
    step: RekeyStep | None = None
    added: list[str] = field(default_factory=list)
    erased: int = 0

    def expect(self, key_epoch: int) -> None:
        """Before the key is handed out. Raises CallFailed."""
        try:
            require_epoch(key_epoch, self.wanted)
        except RekeyRefused as failure:
            raise _refused("NOT_NOW", str(failure), 1) from failure
        self.key_epoch = key_epoch

    def take(self, key: bytearray) -> None:
        """What the key is for, done. Raises CallFailed; what was added before stays added."""
        passphrase = bytearray(disk_passphrase(key, self.plan.vm_id))
        try:
            self._take(passphrase)
        except RekeyRefused as failure:
            raise _refused("NOT_NOW", str(failure), 1) from failure
        except (LuksFailed, OSError) as failure:
            raise _failed(str(failure)) from failure
        finally:
            if self.step is not RekeyStep.HOLD:
                wipe(passphrase)

    def _take(self, passphrase: bytearray) -> None:
        closed = {t: image for t, image in self.plan.disks if not opens(image, passphrase)}
        step = next_step(
            self.key_epoch,
            self.wanted,
            closed=tuple(closed),
            holds_older=0 < self.old_epoch < self.key_epoch,
            vm_id=self.plan.vm_id,
        )
        if step is RekeyStep.HOLD:
            self.old_epoch, self.old = self.key_epoch, passphrase
        else:
            for target, image in closed.items():
                add_passphrase(image, self.old, passphrase)
                self._tell("key-slot-added", target)
                self.added.append(target)
            for target, image in self.plan.disks if self.leave_only else ():
                self.erased += (gone := leave_only(image, passphrase))
                self._tell("key-slots-erased", target, slots=gone)
        self.step = step

    def _tell(self, action: str, target: str, **more: int) -> None:
        vm_id, epoch = self.plan.vm_id, self.key_epoch
        _log.info("vm", action=action, vm=vm_id, disk=target, key_epoch=epoch, **more)


@dataclass(frozen=True, slots=True, kw_only=True)
class RekeyDesk:
    """Gives disks of VMs another key."""

    desk: VmDesk
    virsh: Virsh
    held: HeldPassphrases

    async def handle(self, request: Json) -> Json:
        """The next step. Raises CallFailed, or KeyError, TypeError, ValueError for no request."""
        domain, wanted = str(request["domain"]), int(request["to"])
        if wanted < 1:
            raise ValueError("to: a key epoch counts from 1")
        plan = await self._plan(domain)
        await require_at_rest(self.virsh, plan.domain, plan.uuid)
        await asyncio.to_thread(_require_luks, plan)
        if self.desk.keeper.view(plan.vm_id).phase is not Phase.IDLE:
            phase = self.desk.keeper.view(plan.vm_id).phase
            raise _refused("NOT_NOW", f"{domain}: this host is «{phase}» with the VM", 1)
        old_epoch, old = self.held.take(plan.vm_id)
        run = _Run(
            plan=plan,
            wanted=wanted,
            leave_only=bool(request.get("leave_only")),
            old=old,
            old_epoch=old_epoch,
        )
        try:
            await self._borrow(run)
        finally:
            self._put_back(run, old)
        return _described(run)

    async def _plan(self, domain: str) -> Rekeying:
        code, definition, problem = await self.virsh.run("dumpxml", "--inactive", domain)
        if code != 0:
            raise _refused("NO_SUCH_DOMAIN", problem, 3)
        try:
            return read_rekeying(definition.encode())
        except DefinitionInvalid as failure:
            raise _refused("DEFINITION_INVALID", f"{domain}: {failure}", 2) from failure

    async def _borrow(self, run: _Run) -> None:
        vm_id = run.plan.vm_id
        async with self.desk.borrowing(vm_id):
            answer = await self.desk.lend_key(
                vm_id,
                move_id="",
                profile_sha256=run.plan.profile_sha256,
                hand_out=run.take,
                expect=run.expect,
            )
        if not answer["ok"]:
            raise _refused(answer["reason"], answer["detail"], int(answer["exit_code"]))

    def _put_back(self, run: _Run, old: bytearray) -> None:
        """The old passphrase is of use until the new one opens every disk."""
        if run.old is not old:
            wipe(old)
        if run.step in {RekeyStep.ADD, RekeyStep.DONE}:
            wipe(run.old)
        elif run.old:
            self.held.keep(run.plan.vm_id, run.old_epoch, run.old)


def _described(run: _Run) -> Json:
    return {
        "ok": True,
        "vm": run.plan.vm_id,
        "domain": run.plan.domain,
        "step": str(run.step),
        "key_epoch": run.key_epoch,
        "disks": [target for target, _ in run.plan.disks],
        "added": run.added,
        "erased_slots": run.erased,
    }


def _require_luks(plan: Rekeying) -> None:
    """Each disk is what the definition says, before a key is asked for. Raises CallFailed."""
    for target, image in plan.disks:
        try:
            active_slots(image)
        except LuksFailed as failure:
            raise _failed(f"disk {target}: {failure}") from failure


def _refused(reason: str, detail: str, exit_code: int) -> CallFailed:
    kind = FailureKind.REFUSED
    return CallFailed(Failure(kind=kind, reason=reason, detail=detail, exit_code=exit_code))


def _failed(detail: str) -> CallFailed:
    return CallFailed(Failure(kind=FailureKind.LOCAL, reason="DISK_NOT_REKEYED", detail=detail))


def rekey_shown(answer: Json, wanted: int) -> list[str]:
    """For people: what happened, and what comes next."""
    vm = answer["vm"]
    if answer["step"] == RekeyStep.HOLD:
        opens_now = f"key {answer['key_epoch']} opens the disks; its passphrase is held for"
        then = f"Next: «ta key roll {vm} --to {wanted}», then this again"
        return [f"{opens_now} {HOLD_S / 60:.0f} minutes. {then}"]
    lines = [
        f"{disk}: opens with key {wanted}" + ("" if disk in answer["added"] else ", as before")
        for disk in answer["disks"]
    ]
    if answer["erased_slots"]:
        lines.append("nothing else opens them: their other key slots are erased")
    return [*lines, COPIES]
