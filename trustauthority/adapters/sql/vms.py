"""Protected VMs, intents and wrapped keys on SQL."""

from collections.abc import Sequence

from sqlalchemy import desc, insert, select, update

from trustauthority.adapters.sql import tables
from trustauthority.adapters.sql.catalogue import Repository
from trustauthority.adapters.sql.rows import columns, record
from trustauthority.model.identifiers import HostId, VmId
from trustauthority.model.placement import UNLIMITED_MS, KeyState, LeaseClass, VmState
from trustauthority.model.vm import IntentEntry, VmEntry, VmKeyEntry

_vm = tables.vm
_key = tables.vm_key
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
            record(VmEntry, row, key_state=KeyState, lease_class=LeaseClass)
            for row in rows.mappings()
        ]


class SqlKeys(Repository):
    """The Keys port."""

    async def put(self, entry: VmKeyEntry) -> bool:
        """Insert a key if its epoch is the next one of its VM, and make it the VM's newest."""
        moved = await self._connection.execute(
            update(_vm)
            .where(_vm.c.vm_id == entry.vm_id, _vm.c.key_epoch == entry.key_epoch - 1)
            .values(key_epoch=entry.key_epoch, key_state=str(entry.state))
        )
        if moved.rowcount != 1:
            return False
        await self._connection.execute(insert(_key).values(**columns(entry)))
        return True

    async def newest(self, vm: VmId) -> VmKeyEntry | None:
        """The newest key of a VM."""
        query = select(_key).where(_key.c.vm_id == vm).order_by(desc(_key.c.key_epoch)).limit(1)
        row = (await self._connection.execute(query)).mappings().first()
        return None if row is None else record(VmKeyEntry, row, state=KeyState)

    async def page(self, *, after: str, limit: int) -> Sequence[VmKeyEntry]:
        """The newest keys of VMs, by VM."""
        query = (
            select(_key)
            .join(_vm, (_vm.c.vm_id == _key.c.vm_id) & (_vm.c.key_epoch == _key.c.key_epoch))
            .where(_key.c.vm_id > after)
            .order_by(_key.c.vm_id)
            .limit(limit)
        )
        rows = await self._connection.execute(query)
        return [record(VmKeyEntry, row, state=KeyState) for row in rows.mappings()]

    async def kek(self, provider: str) -> str | None:
        """The KEK id that a provider name stands for."""
        query = select(tables.provider.c.kek_id).where(tables.provider.c.name == provider)
        row = (await self._connection.execute(query)).first()
        return None if row is None else str(row.kek_id)

    async def put_kek(self, provider: str, kek_id: str) -> bool:
        """Record a provider's KEK; False when it has one already."""
        return await self._insert(
            tables.provider, name=provider, kek_id=kek_id, created_at_ms=self._now_ms
        )
