"""Wrapped VM keys on SQL: one row per VM and key epoch, changed by comparison with what was read.

What it guarantees: a key changes only where it is still, in every column that says how it may be used,
what the caller judged; the VM's row follows in the same transaction. What it does not do: decide.
"""

from collections.abc import Sequence

from sqlalchemy import Select, and_, func, select, update

from trustauthority.adapters.sql import tables
from trustauthority.adapters.sql.catalogue import Repository
from trustauthority.adapters.sql.rows import columns, record
from trustauthority.model.identifiers import VmId
from trustauthority.model.placement import KeyState
from trustauthority.model.vm import VmKeyEntry

_vm = tables.vm
_key = tables.vm_key
_JUDGED = ("state", "provider", "kek_id", "wrapped", "escrowed", "created_at_ms", "destroy_at_ms")
"""Columns that must still be what they were."""
_IS_CURRENT = and_(_vm.c.vm_id == _key.c.vm_id, _vm.c.key_epoch == _key.c.key_epoch)


class SqlKeys(Repository):
    """The Keys port."""

    async def put(self, entry: VmKeyEntry) -> bool:
        """Insert a key if its epoch is the next one of its VM; the first one becomes current."""
        newest = select(func.coalesce(func.max(_key.c.key_epoch), 0))
        known = await self._connection.scalar(newest.where(_key.c.vm_id == entry.vm_id))
        vm = update(_vm).where(_vm.c.vm_id == entry.vm_id)
        first = entry.key_epoch == 1
        changed = await self._connection.execute(
            vm.where(_vm.c.key_epoch == 0).values(key_epoch=1, key_state=str(entry.state))
            if first
            else vm.where(_vm.c.key_epoch > 0).values(key_epoch=_vm.c.key_epoch)
        )
        if changed.rowcount != 1 or entry.key_epoch != int(known or 0) + 1:
            return False
        return await self._insert(_key, **columns(entry))

    async def make_current(self, was: VmKeyEntry, now: VmKeyEntry) -> bool:
        """Let another key of a VM be the one that is released; False when ``was`` is not current."""
        moved = await self._connection.execute(
            update(_vm)
            .where(_vm.c.vm_id == was.vm_id, _vm.c.key_epoch == was.key_epoch)
            .values(key_epoch=now.key_epoch, key_state=str(now.state))
        )
        return moved.rowcount == 1

    async def current(self, vm: VmId) -> VmKeyEntry | None:
        """The key that is released for a VM."""
        found = await self._entries(select(_key).join(_vm, _IS_CURRENT).where(_key.c.vm_id == vm))
        return found[0] if found else None

    async def epochs(self, vm: VmId) -> Sequence[VmKeyEntry]:
        """Every key that a VM ever had, newest first."""
        query = select(_key).where(_key.c.vm_id == vm).order_by(_key.c.key_epoch.desc())
        return await self._entries(query)

    async def page(self, *, after: str, limit: int) -> Sequence[VmKeyEntry]:
        """The current keys of VMs, by VM."""
        query = select(_key).join(_vm, _IS_CURRENT).where(_key.c.vm_id > after)
        return await self._entries(query.order_by(_key.c.vm_id).limit(limit))

    async def replace(self, was: VmKeyEntry, now: VmKeyEntry) -> bool:
        """Change a key if it still is what it was; the VM's row follows."""
        judged = [_key.c[name] == value for name, value in columns(was).items() if name in _JUDGED]
        changed = await self._connection.execute(
            update(_key)
            .where(_key.c.vm_id == was.vm_id, _key.c.key_epoch == was.key_epoch, *judged)
            .values(**columns(now))
        )
        if changed.rowcount != 1:
            return False
        await self._connection.execute(
            update(_vm)
            .where(_vm.c.vm_id == now.vm_id, _vm.c.key_epoch == now.key_epoch)
            .values(key_state=str(now.state))
        )
        return True

    async def due(self, *, limit: int) -> Sequence[VmKeyEntry]:
        """Keys whose time of destruction has come."""
        query = (
            select(_key)
            .where(_key.c.destroy_at_ms > 0, _key.c.destroy_at_ms <= self._now_ms)
            .order_by(_key.c.destroy_at_ms)
            .limit(limit)
        )
        return await self._entries(query)

    async def in_states(self, states: frozenset[KeyState]) -> Sequence[VmKeyEntry]:
        """Keys of all epochs in some states."""
        return await self._entries(select(_key).where(_key.c.state.in_(map(str, states))))

    async def _entries(self, query: Select[tuple[object, ...]]) -> list[VmKeyEntry]:
        rows = (await self._connection.execute(query)).mappings().all()
        return [record(VmKeyEntry, row, state=KeyState) for row in rows]
