"""Protected VMs and intents on SQL."""

from collections.abc import Sequence

from sqlalchemy import desc, insert, or_, select, true, update

from trustauthority.adapters.sql import tables
from trustauthority.adapters.sql.catalogue import Repository
from trustauthority.adapters.sql.rows import columns, record
from trustauthority.model.identifiers import HostId, VmId
from trustauthority.model.lease import OnLeaseLoss
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

    async def page(self, *, after: str, limit: int, owner: str = "") -> Sequence[VmEntry]:
        """List VMs by id, of one owner or (empty) of all."""
        wanted = _vm.c.vm_id > after
        return await self._select(wanted & (_vm.c.owner == owner) if owner else wanted, limit=limit)

    async def owned_by(self, host: HostId) -> Sequence[VmEntry]:
        """List the VMs whose grant a host holds."""
        return await self._select(_vm.c.owner == host, limit=10_000)

    async def reprofile(self, vm: VmId, profile_sha256: bytes, *, replaces: bytes) -> bool:
        """Replace the digest of the profile; False when it is not the one that was looked at."""
        done = await self._connection.execute(
            update(_vm)
            .where(
                _vm.c.vm_id == vm,
                _vm.c.profile_sha256 == replaces,
                _vm.c.state == str(VmState.PROTECTED),
            )
            .values(profile_sha256=profile_sha256)
        )
        return done.rowcount == 1

    async def retire(self, vm: VmId, *, even_if_held: bool) -> bool:
        """Take a VM out of placement for good; False when a host holds it, or held it lately."""
        free = or_(_vm.c.owner.is_(None), _vm.c.fence_until_ms <= self._now_ms)
        done = await self._connection.execute(
            update(_vm)
            .where(
                _vm.c.vm_id == vm,
                _vm.c.state == str(VmState.PROTECTED),
                true() if even_if_held else free,
            )
            .values(state=str(VmState.RETIRED))
        )
        return done.rowcount == 1

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
            record(
                VmEntry,
                row,
                key_state=KeyState,
                lease_class=LeaseClass,
                state=VmState,
                sharing=Sharing,
                on_lease_loss=OnLeaseLoss,
            )
            for row in rows.mappings()
        ]
