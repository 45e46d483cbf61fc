"""Move orders on SQL: each change is one conditional statement."""

from collections.abc import Sequence

from sqlalchemy import (
    ColumnElement,
    and_,
    case,
    delete,
    desc,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from trustauthority.adapters.sql import tables
from trustauthority.adapters.sql.catalogue import Repository
from trustauthority.adapters.sql.rows import columns, record
from trustauthority.model.identifiers import HostId, RequestId
from trustauthority.model.moveorder import (
    HANDING_OVER,
    OPEN,
    MoveOrder,
    OrderPhase,
    OrderReport,
    OrderState,
)

_order = tables.move_order
_OPEN_STATES = sorted(str(state) for state in OPEN)


class SqlMoveOrders(Repository):
    """The MoveOrders port."""

    async def place(self, order: MoveOrder, *, most_per_host: int) -> bool:
        """Insert an order if its source owns the VM, no other one of it is open, and there is room."""
        values = columns(order)
        others = select(_order.c.order_id).where(_order.c.vm_id == order.vm_id, self._is_open())
        owned = select(tables.vm.c.vm_id).where(
            tables.vm.c.vm_id == order.vm_id, tables.vm.c.owner == order.source
        )
        allowed = and_(
            owned.exists(),
            ~others.exists(),
            self._busy(order.source) < most_per_host,
            self._busy(order.destination) < most_per_host,
        )
        row = [literal(value, type_=_order.c[name].type) for name, value in values.items()]
        done = await self._connection.execute(
            insert(_order).from_select(list(values), select(*row).where(allowed))
        )
        return done.rowcount == 1

    async def get(self, order_id: RequestId) -> MoveOrder | None:
        """Find an order."""
        found = await self._select(_order.c.order_id == order_id, limit=1)
        return found[0] if found else None

    async def entries(
        self, *, vm: str, source: str, host: str, open_only: bool, limit: int
    ) -> Sequence[MoveOrder]:
        """List orders, newest first; empty arguments don't filter. ``host`` is either end."""
        wanted: list[ColumnElement[bool]] = [self._is_open()] if open_only else []
        if vm:
            wanted.append(_order.c.vm_id == vm)
        if source:
            wanted.append(_order.c.source == source)
        if host:
            wanted.append(or_(_order.c.source == host, _order.c.destination == host))
        return await self._select(*wanted, limit=limit)

    async def report(self, source: HostId, report: OrderReport, *, until_ms: int) -> bool:
        """Write what the source says, while the order is open and has not lapsed."""
        cancelling = _order.c.state == str(OrderState.CANCELLING)
        may = [cancelling] if report.state is OrderState.CANCELLED else []
        told: ColumnElement[str] = literal(str(report.state))
        if report.state is OrderState.RUNNING:  # decided here: a cancellation may come in between
            told = case((cancelling, _order.c.state), else_=told)
        done = await self._connection.execute(
            update(_order)
            .where(_order.c.order_id == report.order_id, _order.c.source == source)
            .where(self._is_open(), *may)
            .values(
                state=told,
                phase=str(report.phase),
                percent=report.percent,
                detail=report.detail,
                updated_at_ms=self._now_ms,
                expires_ms=until_ms,
            )
        )
        return done.rowcount == 1

    async def cancel(self, order_id: RequestId, *, unless_begun: bool) -> bool:
        """Take back an order that waits, or have its source stop one that runs."""
        waits = _order.c.state == str(OrderState.ORDERED)
        at_home = select(tables.vm.c.vm_id).where(
            tables.vm.c.vm_id == _order.c.vm_id, tables.vm.c.owner == _order.c.source
        )
        stoppable = and_(
            _order.c.state == str(OrderState.RUNNING),
            _order.c.phase.not_in(sorted(map(str, HANDING_OVER))),
            at_home.exists(),
        )
        stopped, asked = str(OrderState.CANCELLED), str(OrderState.CANCELLING)
        done = await self._connection.execute(
            update(_order)
            .where(_order.c.order_id == order_id, _order.c.expires_ms > self._now_ms)
            .where(waits if unless_begun else or_(waits, stoppable))
            .values(state=case((waits, stopped), else_=asked), updated_at_ms=self._now_ms)
        )
        return done.rowcount == 1

    async def purge(self, *, before_ms: int) -> None:
        """Forget orders that ended or lapsed before a time (L4)."""
        ended = or_(_order.c.state.not_in(_OPEN_STATES), _order.c.expires_ms <= self._now_ms)
        await self._connection.execute(
            delete(_order).where(_order.c.updated_at_ms < before_ms, ended)
        )

    def _is_open(self) -> ColumnElement[bool]:
        return and_(_order.c.state.in_(_OPEN_STATES), _order.c.expires_ms > self._now_ms)

    def _busy(self, host: HostId) -> ColumnElement[int]:
        either = or_(_order.c.source == host, _order.c.destination == host)
        counted = select(func.count()).select_from(_order).where(either, self._is_open())
        return counted.scalar_subquery()

    async def _select(self, *wanted: ColumnElement[bool], limit: int) -> list[MoveOrder]:
        newest = (desc(_order.c.created_at_ms), _order.c.order_id)
        query = select(_order).where(*wanted).order_by(*newest).limit(limit)
        rows = await self._connection.execute(query)
        return [
            record(MoveOrder, row, state=OrderState, phase=OrderPhase) for row in rows.mappings()
        ]
