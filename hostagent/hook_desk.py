"""What libvirt's hook asks about a protected VM, and what libvirt's state asks for by itself.

Stage: between hook socket and ``vm_desk``. Trusts the socket's mode for who asks, nothing in a
definition. Guarantees that no start and no arrival is allowed without a lease or a taken offer, the
profile that the VM was protected with and secrets in libvirt; that an open move switches only when
QEMU is gone here; and that an arrived VM runs only after its claim was accepted (ADR 0011).
"""

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

from hostagent.channel import new_request_id
from hostagent.control import Json, refusal
from hostagent.domain import DefinitionInvalid, Domain, read_domain
from hostagent.failure import CallFailed
from hostagent.inspector import Inspector
from hostagent.lease_model import Claim, GiveUp, HandOver, Phase, Stopped, VmAction
from hostagent.libvirt_vms import Known, LibvirtVms, is_active
from hostagent.spent import milliseconds_since
from hostagent.vm_desk import VM_ID, VmDesk

_log = structlog.get_logger("hostagent.hook")
_ARRIVING = re.compile(r"paused \((migrating|starting up)\)")
_LEFT = frozenset({Phase.RUNNING, Phase.PAUSED})
_HERE = _LEFT | {Phase.PREPARED}
_STARTING = (
    "libvirtd serves nobody while it starts, so it can't be lent a key;"
    " hostagent starts VMs with autostart once it does"
)
_BEAT_S = 0.4
_PATIENT_LOOKS = 3
_END_S = 5.0
_LOOK_EVERY = 20
"""Beats between looks at a VM, for what no hook told; more when there are more VMs than that."""


@dataclass(slots=True, kw_only=True)
class HookDesk:
    """Answers hooks; tends what libvirt does not call hooks for."""

    desk: VmDesk
    vms: LibvirtVms
    may_ask: Callable[[], bool]
    patience_s: float
    """How long a start waits for an agent that is not attested yet (rack power-on)."""
    inspector: Inspector
    spent: Callable[[], Mapping[str, float]] = dict
    """Seconds that this process spent in what, for the log."""
    _missed: dict[str, int] = field(default_factory=dict)
    """How many looks in a row a VM that should start or arrive was not there."""

    async def handle(self, request: Json) -> Json:
        """Answer one hook. Raises CallFailed, KeyError, TypeError, ValueError."""
        try:
            domain = read_domain(request["definition"].encode())
        except DefinitionInvalid as failure:
            return refusal("DEFINITION_INVALID", str(failure))
        if domain.name != request["name"] or not VM_ID.fullmatch(domain.vm_id):
            return refusal(
                "DEFINITION_INVALID", "its mark has no id of a VM: 1-63 of a-z 0-9 . _ -"
            )
        operation, began, before = request["operation"], time.monotonic(), self.spent()
        answer = await self._answer(operation, domain)
        _log.info(
            "hook",
            action=operation,
            vm=domain.vm_id,
            outcome="allowed" if answer["ok"] else "refused",
            reason=answer.get("reason", ""),
            ms=round(1000 * (time.monotonic() - began)),
            **milliseconds_since(before, self.spent()),
        )
        return answer

    async def _answer(self, operation: str, domain: Domain) -> Json:
        match operation:
            case "prepare":
                return await self._prepare(domain)
            case "migrate":
                return await self._migrate(domain)
            case "started":
                return await self._started(domain)
            case "release":
                return await self._release(domain)
            case unknown:
                return refusal("INVALID_REQUEST", f"operation {unknown} is not known", 2)

    # --- operations --------------------------------------------------------------------------

    async def _prepare(self, domain: Domain) -> Json:
        if self._is_prepared(domain):
            return self._watched(domain)
        await self._settle_former_life(domain.vm_id)
        await self._let_end(domain.vm_id)
        if self.desk.keeper.view(domain.vm_id).phase is not Phase.IDLE:
            return self._busy(domain)
        return await self._obtain(domain, move_id="")

    async def _migrate(self, domain: Domain) -> Json:
        if not domain.move_id:
            detail = "nobody offered it to this host: migrate it with «hostagent vm migrate»"
            return refusal("MOVE_NOT_OFFERED", detail)
        await self._let_end(domain.vm_id)
        if self.desk.keeper.view(domain.vm_id).phase is not Phase.IDLE:
            return self._busy(domain)
        answer = await self._obtain(domain, move_id=domain.move_id)
        return {"ok": True} if answer["ok"] else answer  # prepare follows, and has it watched

    async def _let_end(self, vm_id: str) -> None:
        """Stopped and started again in one breath: the grant may still be on its way back."""
        await self.desk.keeper.settled(
            vm_id, lambda v: v.phase is not Phase.GIVING_BACK, min(self.patience_s, _END_S)
        )

    async def _obtain(self, domain: Domain, *, move_id: str) -> Json:
        if not domain.disk_secrets:
            return refusal("NOT_ENCRYPTED", "it is marked as protected, but has no encrypted disk")
        if not await self.vms.virsh.answers():
            return refusal("LIBVIRT_STARTING", _STARTING)
        if not await self._patiently():
            return refusal("HOST_NOT_READY", "this host is not attested now; see hostagent status")
        vm_id, keeper = domain.vm_id, self.desk.keeper
        self.vms.note(vm_id, domain, incoming=bool(move_id))
        try:
            answer = await self.desk.lend_key(
                vm_id,
                move_id=move_id,
                profile_sha256=domain.profile_sha256,
                hand_out=lambda key: self.vms.lend(vm_id, domain, key),
            )
        except (CallFailed, OSError):
            keeper.receive(vm_id, Stopped(fresh_id=new_request_id()))
            raise
        return self._watched(domain) if answer["ok"] else answer

    async def _started(self, domain: Domain) -> Json:
        """QEMU has the key now, so libvirt need not."""
        phase = self.desk.keeper.view(domain.vm_id).phase
        if not self._is_ours(domain) or phase not in {Phase.RUNNING, Phase.PREPARED}:
            return refusal("LEASE_OVER", f"this host is «{phase.value}» with the VM")
        await self.vms.take_back(domain.vm_id)
        self.vms.started(domain.vm_id)
        return {"ok": True}

    async def _release(self, domain: Domain) -> Json:
        """QEMU is gone: the last step of a move away, or the end of the VM here."""
        if self._is_ours(domain):
            known = self.vms.known[domain.vm_id]
            self._gone(domain.vm_id)
            await self.vms.take_back(domain.vm_id)
            self.inspector.look_back(domain.vm_id, known)
        return {"ok": True}

    def _gone(self, vm_id: str) -> None:
        """Let the lease follow; nothing that waits may stand between the look and the step."""
        keeper = self.desk.keeper
        view = keeper.view(vm_id)
        if view.phase is Phase.RUNNING and view.move_id and view.errand is None:
            keeper.receive(vm_id, HandOver())
        elif view.phase in {Phase.REQUESTING, Phase.PREPARING}:
            keeper.receive(vm_id, GiveUp())
        elif view.phase is not Phase.SWITCHING:
            keeper.receive(vm_id, Stopped(fresh_id=new_request_id()))

    # --- by itself ---------------------------------------------------------------------------

    async def tend(self) -> None:
        """Claim what arrived, give back what ended unseen. Runs until cancelled."""
        beat, busy = 0, dict[str, asyncio.Task[None]]()
        try:
            while True:
                await asyncio.sleep(_BEAT_S)
                beat += 1
                every = max(_LOOK_EVERY, len(self.vms.known))  # one look a beat, with many VMs
                for place, vm_id in enumerate(list(self.vms.known)):
                    if vm_id not in busy or busy[vm_id].done():  # nobody waits for another's VM
                        tending = self._tend(vm_id, looks=(beat + place) % every == 0)
                        busy[vm_id] = asyncio.create_task(tending)
        finally:
            for task in busy.values():
                task.cancel()
            await asyncio.gather(*busy.values(), return_exceptions=True)

    async def _tend(self, vm_id: str, *, looks: bool) -> None:
        try:
            known, phase = self.vms.known[vm_id], self.desk.keeper.view(vm_id).phase
            if phase is Phase.PREPARED and known.started:
                await self._claim(vm_id)
            if looks and phase in _HERE:
                await self._look(vm_id, known, phase)
        except Exception:  # noqa: BLE001 - a bug for one VM must not end the care for all
            _log.exception("tending-failed", vm=vm_id)

    async def _look(self, vm_id: str, known: Known, phase: Phase) -> None:
        if phase is Phase.PREPARED or not known.started:
            await self._miss(vm_id)
        elif not await self.inspector.look(vm_id):
            await self._settle_former_life(vm_id)

    async def _claim(self, vm_id: str) -> None:
        known, keeper = self.vms.known[vm_id], self.desk.keeper
        state = await self.vms.virsh.state(known.uuid)
        if state is None or _ARRIVING.fullmatch(state) or not is_active(state):
            return
        if state.startswith("running"):  # the caller left out --suspend (ADR 0011)
            await self.vms.act(VmAction.PAUSE, vm_id, "it arrived before its move was switched")
        keeper.receive(vm_id, Claim(fresh_id=new_request_id()))
        await keeper.settled(vm_id, lambda view: view.renewal is None, self.desk.timeout_s)

    async def _miss(self, vm_id: str) -> None:
        """What is not there at three looks will not start or arrive: make room for the next try.

        The hook may have died, or given up, before the agent's answer came; then nobody starts QEMU.
        """
        known, keeper = self.vms.known.get(vm_id), self.desk.keeper
        if known is None:
            return
        before, state = keeper.view(vm_id), await self.vms.virsh.state(known.uuid)
        if state is None or is_active(state) or self.vms.known.get(vm_id) is not known:
            self._missed.pop(vm_id, None)
            return
        self._missed[vm_id] = self._missed.get(vm_id, 0) + 1
        if self._missed[vm_id] >= _PATIENT_LOOKS and keeper.view(vm_id).phase is before.phase:
            del self._missed[vm_id]
            _log.warning("never-came", vm=vm_id, state=state)
            keeper.receive(vm_id, Stopped(fresh_id=new_request_id()))

    async def _settle_former_life(self, vm_id: str) -> None:
        """A VM whose QEMU is gone while its lease goes on is given back."""
        known, keeper = self.vms.known.get(vm_id), self.desk.keeper
        if known is None or not known.started or keeper.view(vm_id).phase not in _LEFT:
            return
        state = await self.vms.virsh.state(known.uuid)
        if state is None or is_active(state):
            return
        if keeper.view(vm_id).phase not in _LEFT or self.vms.known.get(vm_id) is not known:
            return  # the release hook came while libvirt was asked
        _log.warning("ended-unseen", vm=vm_id, state=state)
        self._gone(vm_id)
        await keeper.settled(vm_id, lambda v: v.phase is Phase.IDLE, self.desk.timeout_s)

    # --- parts -------------------------------------------------------------------------------

    def _is_ours(self, domain: Domain) -> bool:
        known = self.vms.known.get(domain.vm_id)
        return known is not None and known.uuid == domain.uuid

    def _is_prepared(self, domain: Domain) -> bool:
        phase = self.desk.keeper.view(domain.vm_id).phase
        return phase is Phase.PREPARED and self._is_ours(domain)

    def _watched(self, domain: Domain) -> Json:
        return {"ok": True, "watch": self.vms.watched_file(domain.vm_id)}

    def _busy(self, domain: Domain) -> Json:
        phase = self.desk.keeper.view(domain.vm_id).phase
        detail = (
            f"this host is «{phase.value}» with VM {domain.vm_id} already; see hostagent status"
        )
        return refusal("NOT_NOW", detail)

    async def _patiently(self) -> bool:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.patience_s
        while not self.may_ask():
            if loop.time() >= deadline:
                return False
            await asyncio.sleep(0.1)
        return True
