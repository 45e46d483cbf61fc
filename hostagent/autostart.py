"""Start protected VMs that libvirt's autostart could not, once after each boot of the host.

Stage: I/O of the agent. Why: while libvirtd autostarts, it serves nobody, so no key can be lent to
it; and after a power failure the authority may come up later than the hosts. Trusts libvirt for
which domains have autostart set. Guarantees that this happens once a boot (the mark lies where a
reboot empties), only while this host is attested, with a bounded number of tries for each VM, and
that each start goes through the hook like any other and leaves saved memory behind, which could not be
restored anyway. Does not start VMs that somebody stopped later.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from hostagent.domain import DefinitionInvalid, read_domain
from hostagent.virsh import Virsh

_log = structlog.get_logger("hostagent.autostart")
_MARK = "autostarted"
_TRIES = 12
_FIRST_S, _LONGEST_S = 2.0, 60.0
_START_S = 120.0
"""Longer than the hook's own deadline."""
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Autostart:
    """The VMs of this host that start with it."""

    virsh: Virsh
    run_dir: Path
    attested: Callable[[], bool]
    first_s: float = _FIRST_S

    async def run(self) -> None:
        """Start what has autostart set and does not run; then do nothing until the next boot."""
        mark = self.run_dir / _MARK
        if mark.exists():
            return
        waiting = set(await self._wanted())
        for attempt in range(_TRIES):
            waiting = {vm for vm in waiting if not await self._start(vm)}
            if not waiting:
                break
            await asyncio.sleep(min(self.first_s * 2**attempt, _LONGEST_S))
        for uuid in sorted(waiting):
            _log.error("autostart", domain=uuid, outcome="given up", tries=_TRIES)
        mark.touch(mode=0o600)

    async def _ready(self) -> None:
        while not (self.attested() and await self.virsh.answers()):  # noqa: ASYNC110 - libvirt is asked
            await asyncio.sleep(_LOOK_S)

    async def _wanted(self) -> list[str]:
        """The uuids of protected domains with autostart that do not run."""
        while True:
            await self._ready()
            code, out, _ = await self.virsh.run("list", "--autostart", "--inactive", "--uuid")
            if code == 0:
                return [uuid for uuid in out.split() if await self._is_protected(uuid)]
            await asyncio.sleep(_LOOK_S)

    async def _is_protected(self, uuid: str) -> bool:
        _, definition, _ = await self.virsh.run("dumpxml", "--inactive", uuid)
        try:
            return bool(read_domain(definition.encode()).vm_id)
        except DefinitionInvalid:
            return False

    async def _start(self, uuid: str) -> bool:
        """Try once; whether nothing is left to do for this VM."""
        await self._ready()
        code, out, _ = await self.virsh.run("list", "--autostart", "--inactive", "--uuid")
        if code == 0 and uuid not in out.split():
            return True  # it runs, or somebody wants it no more
        code, _, problem = await self.virsh.run("start", "--force-boot", uuid, limit_s=_START_S)
        _log.info(
            "autostart", domain=uuid, outcome="refused" if code else "started", detail=problem
        )
        return code == 0
