"""VMs as they are, then each one again as it changes."""

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from trustauthority.model.audit import AuditEntry
from trustauthority.model.vm import VmEntry
from trustauthority.ports import Store
from trustauthority.services.events import EventKind, kind_of
from trustauthority.services.follow import Follower
from trustauthority.services.placement import find_vm

PAGE = 500
_CHANGES = frozenset({EventKind.VM, EventKind.MOVE})


@dataclass(frozen=True, slots=True, kw_only=True)
class VmsNow:
    """Some VMs, as stored at a time."""

    vms: Sequence[VmEntry]
    complete: bool
    """All that are watched were told once."""
    now_ms: int


class VmWatch:
    """The stream of VMs."""

    def __init__(self, store: Store, follower: Follower) -> None:
        self._store = store
        self._follower = follower

    async def watch(self, wanted: frozenset[str], *, caller: str) -> AsyncGenerator[VmsNow, None]:
        """All that are watched, then changes. Raises NotFound for one that is not there."""
        position = await self._size()  # before the first reading: a change in between is told twice
        async with aclosing(self._everything(wanted)) as pages:
            async for page in pages:
                yield page
        async with aclosing(self._follower.follow(position, caller=caller)) as batches:
            async for batch in batches:
                yield await self._now(sorted(_changed(batch, wanted)))

    async def _now(self, vms: Sequence[str]) -> VmsNow:
        async with self._store.snapshot() as tx:
            found = [await tx.vms.get(vm) for vm in vms]
            there = [entry for entry in found if entry is not None]
            return VmsNow(vms=there, complete=True, now_ms=tx.now_ms)

    async def _size(self) -> int:
        async with self._store.snapshot() as tx:
            return await tx.audit.size()

    async def _everything(self, wanted: frozenset[str]) -> AsyncGenerator[VmsNow, None]:
        after = ""
        while True:
            async with self._store.snapshot() as tx:
                if wanted:
                    page = [await find_vm(tx, vm) for vm in sorted(wanted)]
                else:
                    page = list(await tx.vms.page(after=after, limit=PAGE))
                now_ms = tx.now_ms
            last = bool(wanted) or len(page) < PAGE
            yield VmsNow(vms=page, complete=last, now_ms=now_ms)
            if last:
                return
            after = page[-1].vm_id


def _changed(batch: Sequence[AuditEntry], wanted: frozenset[str]) -> set[str]:
    entries = [json.loads(entry.content) for entry in batch]
    vms = {str(each["subject"]) for each in entries if kind_of(each["operation"]) in _CHANGES}
    return vms & wanted if wanted else vms
