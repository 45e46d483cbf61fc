"""Notice what libvirt does with a protected VM without calling a hook.

Stage: I/O of the agent. libvirt calls no hook for block copies, snapshots, hot-plug, save and dump. A
running domain's definition shows the first three while they last, its state shows a save afterwards;
memory snapshots and dumps show nowhere, only polkit prevents those (deploy/libvirt). Trusts libvirt.
Guarantees that what is noticed stands in the log and in the domain's metadata, and that, where the
host is configured so, a VM whose decrypted disk leaks is destroyed. Comes after the fact: seconds.
"""

import asyncio
from dataclasses import dataclass, field

import structlog

from hostagent.channel import new_request_id
from hostagent.domain import DefinitionInvalid, Domain, read_domain
from hostagent.lease_model import Phase, Stopped
from hostagent.libvirt_vms import Known, LibvirtVms
from hostagent.vm_keeper import VmKeeper

_log = structlog.get_logger("hostagent.libvirt")
_CHANGED = "it runs with other devices than it was started with; another start may be refused"
_SAVED = (
    "its memory was saved to a file, and holds the key of its disk: remove the file"
    " (virsh managedsave-remove); it can't be restored"
)
_AFTER_HOOK_S = 1.0
"""libvirt keeps the domain locked until its hook is through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspector:
    """Looks at running VMs, and back at those that ended."""

    vms: LibvirtVms
    keeper: VmKeeper
    destroys: bool
    """Whether an exposed VM is destroyed; it is only told otherwise."""
    _looks: set[asyncio.Task[None]] = field(default_factory=set)

    async def look(self, vm_id: str) -> bool:
        """Compare a running VM with what was started; whether QEMU was seen."""
        known = self.vms.known.get(vm_id)
        if known is None or self.keeper.view(vm_id).phase is not Phase.RUNNING:
            return False
        code, definition, _ = await self.vms.virsh.run("dumpxml", known.uuid)
        if code != 0 or self.vms.known.get(vm_id) is not known:
            return False
        try:
            domain = read_domain(definition.encode())
        except DefinitionInvalid as failure:
            _log.warning("definition-unreadable", vm=vm_id, detail=str(failure))
            return False
        if domain.active:
            await self._compare(vm_id, known, domain)
        return domain.active

    async def _compare(self, vm_id: str, known: Known, domain: Domain) -> None:
        if domain.exposures:
            await self._exposed(vm_id, known, "; ".join(domain.exposures))
        elif domain.profile_sha256.hex() != known.profile:
            if known.told != _CHANGED:
                _log.warning("definition-changed", vm=vm_id, detail=_CHANGED)
            await self.vms.tell(known, _CHANGED, live=True)

    async def _exposed(self, vm_id: str, known: Known, how: str) -> None:
        if known.told != how:
            _log.error("exposed", vm=vm_id, detail=how, destroyed=self.destroys)
        await self.vms.tell(known, how, live=True)
        if self.destroys and self.vms.known.get(vm_id) is known:
            self.keeper.receive(vm_id, Stopped(fresh_id=new_request_id()))

    def look_back(self, vm_id: str, known: Known) -> None:
        """Soon after a VM ended: say so if its memory was saved."""
        look = asyncio.create_task(self._look_back(vm_id, known))
        self._looks.add(look)
        look.add_done_callback(self._looks.discard)

    async def _look_back(self, vm_id: str, known: Known) -> None:
        await asyncio.sleep(_AFTER_HOOK_S)
        state = await self.vms.virsh.state(known.uuid)
        if state is not None and state.endswith("(saved)"):
            _log.error("memory-saved", vm=vm_id, detail=_SAVED)
            await self.vms.tell(known, _SAVED, live=False)
