"""Break-glasses on SQL: opened, listed and closed by people; used by ``placement`` only."""

from collections.abc import Sequence

from sqlalchemy import desc, insert, select, update

from trustauthority.adapters.sql import tables
from trustauthority.adapters.sql.catalogue import Repository
from trustauthority.adapters.sql.rows import columns, record
from trustauthority.model.identifiers import HostId, RequestId, VmId
from trustauthority.model.placement import Grant
from trustauthority.model.vm import BreakGlassEntry

_glass = tables.break_glass


class SqlBreakGlasses(Repository):
    """The BreakGlasses port."""

    async def put(self, entry: BreakGlassEntry) -> None:
        """Keep one."""
        await self._connection.execute(insert(_glass).values(**columns(entry)))

    async def open_for(self, vm: VmId, host: HostId) -> BreakGlassEntry | None:
        """The newest one for a VM and a host that is not closed and not expired."""
        query = (
            select(_glass)
            .where(
                _glass.c.vm_id == vm,
                _glass.c.host_id == host,
                _glass.c.closed_at_ms == 0,
                _glass.c.expires_ms > self._now_ms,
            )
            .order_by(desc(_glass.c.opened_at_ms), _glass.c.glass_id)
            .limit(1)
        )
        row = (await self._connection.execute(query)).mappings().first()
        return None if row is None else record(BreakGlassEntry, row)

    async def let_through(self, grant: Grant) -> bool:
        """Whether one, whatever became of it since, gave this grant."""
        query = select(_glass.c.glass_id).where(
            _glass.c.vm_id == grant.vm_id,
            _glass.c.host_id == grant.host_id,
            _glass.c.used_by == grant.request_id,
        )
        return (await self._connection.execute(query.limit(1))).first() is not None

    async def page(self, *, open_only: bool, limit: int) -> Sequence[BreakGlassEntry]:
        """Newest first; only those that are open now, or all."""
        query = select(_glass).order_by(desc(_glass.c.opened_at_ms), _glass.c.glass_id).limit(limit)
        if open_only:
            query = query.where(_glass.c.closed_at_ms == 0, _glass.c.expires_ms > self._now_ms)
        rows = await self._connection.execute(query)
        return [record(BreakGlassEntry, row) for row in rows.mappings()]

    async def close(self, glass_id: RequestId, *, by: str) -> BreakGlassEntry | None:
        """Close one that is not closed; None when there is no such."""
        closed = await self._connection.execute(
            update(_glass)
            .where(_glass.c.glass_id == glass_id, _glass.c.closed_at_ms == 0)
            .values(closed_at_ms=self._now_ms, closed_by=by)
        )
        if closed.rowcount != 1:
            return None
        query = select(_glass).where(_glass.c.glass_id == glass_id)
        row = (await self._connection.execute(query)).mappings().one()
        return record(BreakGlassEntry, row)
