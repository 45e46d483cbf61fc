"""Protected VMs and intents on SQL."""

from collections.abc import Sequence

from sqlalchemy import desc, insert, select, update

from trustauthority.adapters.sql import tables
from trustauthority.adapters.sql.catalogue import Repository
from trustauthority.adapters.sql.rows import columns, record
from trustauthority.model.identifiers import HostId
from trustauthority.model.placement import UNLIMITED_MS, KeyState, LeaseClass, Sharing, VmState
from trustauthority.model.vm import IntentEntry, VmEntry

_vm = tables.vm
_intent = tables.intent


class SqlVms(Repository):
    """The Vms port."""

    async def protect(self, entry: VmEntry, *, by: str) -> bool:
        """Insert a VM; False when the id is taken. Keeps track of the longest fence (N86)."""
        inserted = await self._insert(
            _vm,
            **columns(entry),
            state=str(VmState.PROTECTED),
            owner_boot=b"",
            move_until_ms=0,
            policy_version=0,
            protected_at_ms=self._now_ms,
            protected_by=by,
        )
        fence_ms = entry.lease_ms + entry.continue_for_ms + entry.skew_ms
        if not inserted or entry.lease_ms >= UNLIMITED_MS:  # an unlimited fence never passes anyway
            return inserted
        authority = tables.authority
        await self._connection.execute(
            update(authority)
            .where(authority.c.longest_fence_ms < fence_ms)
            .values(longest_fence_ms=fence_ms)
        )
        return True

    async def get(self, vm: str) -> VmEntry | None:
        """Find a VM."""
        found = await self._select(_vm.c.vm_id == vm, limit=1)
        return found[0] if found else None

    async def page(self, *, after: str, limit: int) -> Sequence[VmEntry]:
        """List VMs by id."""
        return await self._select(_vm.c.vm_id > after, limit=limit)

    async def owned_by(self, host: HostId) -> Sequence[VmEntry]:
        """List the VMs whose grant a host holds."""
        return await self._select(_vm.c.owner == host, limit=10_000)

    async def put_intent(self, entry: IntentEntry) -> None:
        """Keep an intent."""
        await self._connection.execute(insert(_intent).values(**columns(entry)))

    async def intents(self, vm: str) -> Sequence[IntentEntry]:
        """List intents, newest first, of one VM or (empty) of all."""
        query = (
            select(_intent).order_by(desc(_intent.c.created_at_ms), _intent.c.intent_id).limit(500)
        )
        if vm:
            query = query.where(_intent.c.vm_id == vm)
        rows = await self._connection.execute(query)
        return [record(IntentEntry, row) for row in rows.mappings()]

    async def _select(self, condition: object, *, limit: int) -> list[VmEntry]:
        query = select(_vm).where(condition).order_by(_vm.c.vm_id).limit(limit)  # type: ignore[arg-type]
        rows = await self._connection.execute(query)
        return [
            record(VmEntry, row, key_state=KeyState, lease_class=LeaseClass, sharing=Sharing)
            for row in rows.mappings()
        ]
