"""Move orders: place, list, cancel, and what the source reports of them.

What it guarantees: an order begins only while it is open, for the host that owned the VM; one is open
per VM and a bounded number per host; one that nobody tells of lapses by the store's clock. What it
does not do: move anything. The source's agent offers, and the grant's rules decide (design 6.5).
"""

import secrets
from collections.abc import Sequence
from dataclasses import replace

from trustauthority.errors import (
    FailedPrecondition,
    InvalidRequest,
    MoveRefused,
    NotFound,
    SwitchBegun,
    TrustAuthorityError,
)
from trustauthority.model.audit import AuditEvent
from trustauthority.model.host import HostRecord
from trustauthority.model.identifiers import HostId, RequestId
from trustauthority.model.moveorder import (
    HANDING_OVER,
    REPORT_WITHIN_MS,
    MoveOrder,
    OrderPhase,
    OrderReport,
    OrderState,
)
from trustauthority.model.vm import VmEntry
from trustauthority.placement.decide import PlacementQuestion, place
from trustauthority.ports import Store, Transaction
from trustauthority.services.hosts import find_host
from trustauthority.services.placement import find_vm

DEFAULT_WAIT_MS = 10 * 60_000
MAX_WAIT_MS = 24 * 3_600_000
MOST_PER_HOST = 8
"""Open orders from or to one host: copies of memory share its network."""
KEEP_MS = 7 * 24 * 3_600_000
"""Ended orders are listed for a week; the audit log has them for ever."""
MAX_LISTED = 500
TOLD_PERCENT = 10
"""Progress is audited in steps of this size, so that watchers see it."""


class MoveOrders:
    """Orders of moves."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def order(
        self, vm: str, destination: str, *, ttl_ms: int, by: str, dry_run: bool
    ) -> MoveOrder:
        """Ask the owner of a VM to move it.

        Raises:
            MoveRefused: the destination may not run the VM.
            FailedPrecondition: nobody runs it, or too many orders are open.
        """
        if not 0 <= ttl_ms <= MAX_WAIT_MS:
            raise InvalidRequest("ttl_ms is at most 24 hours", field="ttl_ms")
        async with self._store.transaction() as tx:
            entry, target = await find_vm(tx, vm), await find_host(tx, destination)
            await _require_movable(tx, entry, target)
            order = MoveOrder(
                order_id=RequestId(secrets.token_urlsafe(16)),
                vm_id=entry.vm_id,
                source=HostId(entry.owner or ""),
                destination=target.host_id,
                state=OrderState.ORDERED,
                created_by=by,
                created_at_ms=tx.now_ms,
                updated_at_ms=tx.now_ms,
                expires_ms=tx.now_ms + (ttl_ms or DEFAULT_WAIT_MS),
            )
            if dry_run:
                return order
            await tx.orders.purge(before_ms=tx.now_ms - KEEP_MS)
            if not await tx.orders.place(order, most_per_host=MOST_PER_HOST):
                raise await _why_not_placed(tx, order)
            await tx.audit.append(_event(order, "order.place", by, host=target.name))
        return order

    async def entries(
        self, *, vm: str, host: str, open_only: bool, order_id: str
    ) -> Sequence[MoveOrder]:
        """List orders, newest first, with what time made of them."""
        async with self._store.snapshot() as tx:
            if order_id:
                found = [await find_order(tx, order_id)]
            else:
                party = (await find_host(tx, host)).host_id if host else ""
                found = list(
                    await tx.orders.entries(
                        vm=vm, source="", host=party, open_only=open_only, limit=MAX_LISTED
                    )
                )
        return found

    async def of_source(self, host: HostRecord) -> Sequence[MoveOrder]:
        """The open orders that a host is to carry out."""
        async with self._store.snapshot() as tx:
            return await tx.orders.entries(
                vm="", source=host.host_id, host="", open_only=True, limit=MAX_LISTED
            )

    async def cancel(self, order_id: str, *, by: str, unless_begun: bool = False) -> MoveOrder:
        """Take an order back; the source of one that runs is asked to stop, and tells what came of it.

        It takes no right away: until the VM has left its source, the source keeps its grant and ends
        its own offer; from then on the move can only be finished. Asked twice, it is done once.

        Raises:
            SwitchBegun: the VM has left its source.
            FailedPrecondition: it has ended, or (``unless_begun``) begun.
        """
        async with self._store.transaction() as tx:
            before = await find_order(tx, order_id)
            if not await tx.orders.cancel(before.order_id, unless_begun=unless_begun):
                now = await find_order(tx, order_id)
                if unless_begun or now.state_at(tx.now_ms) is not OrderState.CANCELLING:
                    raise await _why_not_cancelled(tx, now)
                return now
            after = await find_order(tx, order_id)
            await tx.audit.append(_event(after, "order.cancel", by))
            return after

    async def report(self, host: HostRecord, report: OrderReport) -> MoveOrder:
        """Write what the source says of an order; the first RUNNING begins it.

        Raises:
            NotFound: no such order of this host.
            FailedPrecondition: it was cancelled, has ended or lapsed: leave the VM alone.
        """
        async with self._store.transaction() as tx:
            before = await tx.orders.get(report.order_id)
            if before is None or before.source != host.host_id:
                raise NotFound("there is no such order", kind="order", name=report.order_id)
            report = await _as_it_came_out(tx, before, report)
            until_ms = tx.now_ms + REPORT_WITHIN_MS
            if not await tx.orders.report(host.host_id, report, until_ms=until_ms):
                raise FailedPrecondition(
                    f"the order is {before.state_at(tx.now_ms)}: it is not to be carried out",
                    kind="order",
                    name=report.order_id,
                )
            after = await find_order(tx, report.order_id)
            if _is_news(before, after):
                await tx.audit.append(_told(before, after, f"host:{host.host_id}"))
            return after


async def find_order(tx: Transaction, order_id: str) -> MoveOrder:
    """Find an order.

    Raises:
        NotFound: there is none.
    """
    order = await tx.orders.get(RequestId(order_id))
    if order is None:
        raise NotFound(f"there is no order {order_id!r}", kind="order", name=order_id)
    return order


async def _require_movable(tx: Transaction, entry: VmEntry, target: HostRecord) -> None:
    if entry.owner is None:
        raise FailedPrecondition(
            f"no host runs VM {entry.vm_id!r}: start it at its destination with an intent",
            kind="vm",
            name=entry.vm_id,
        )
    if entry.owner == target.host_id:
        raise MoveRefused("the destination is the owner", rule="another-destination")
    (state,) = await tx.placement.look([(entry.vm_id, target.host_id)])
    question = PlacementQuestion(vm_id=entry.vm_id, host_id=target.host_id)
    decision = place(question, state, tx.now_ms)
    if not decision.allowed:
        first = decision.unmet[0]
        raise MoveRefused(f"{target.name}: {first.says}", rule=first.rule, why=first.reason)


_STEPS = tuple(OrderPhase)
_STAYED = frozenset({OrderState.FAILED, OrderState.CANCELLED})


async def _as_it_came_out(tx: Transaction, order: MoveOrder, report: OrderReport) -> OrderReport:
    """A source that lost sight of its move calls it failed; who owns the VM now says more."""
    vm = await tx.vms.get(order.vm_id)
    if report.state in _STAYED and vm is not None and vm.owner == order.destination:
        return replace(report, state=OrderState.DONE, phase=OrderPhase.RESUME, percent=100)
    # never back: each step is in the audit log once, however often a source says it
    return replace(
        report,
        phase=max(order.phase, report.phase, key=_STEPS.index),
        percent=max(order.percent, report.percent),
    )


async def _why_not_placed(tx: Transaction, order: MoveOrder) -> FailedPrecondition:
    others = await tx.orders.entries(
        vm=order.vm_id, source="", host="", open_only=True, limit=MAX_LISTED
    )
    if others:
        known = others[0].order_id
        return FailedPrecondition(f"order {known} of this VM is open", kind="order", name=known)
    return FailedPrecondition(
        f"{MOST_PER_HOST} orders from or to one of the hosts are open; wait for one to end",
        kind="host",
        name=order.destination,
    )


async def _why_not_cancelled(tx: Transaction, order: MoveOrder) -> TrustAuthorityError:
    state, vm = order.state_at(tx.now_ms), await tx.vms.get(order.vm_id)
    left = order.phase in HANDING_OVER or vm is None or vm.owner != order.source
    if state is OrderState.RUNNING and left:
        return SwitchBegun(
            f"VM {order.vm_id!r} has left its source, or is leaving it: the move is finished",
            order=order.order_id,
        )
    return FailedPrecondition(
        f"the order is {state}: it can't be cancelled any more", kind="order", name=order.order_id
    )


def _is_news(before: MoveOrder, after: MoveOrder) -> bool:
    return (before.state, before.phase, before.percent // TOLD_PERCENT) != (
        after.state,
        after.phase,
        after.percent // TOLD_PERCENT,
    )


def _told(before: MoveOrder, after: MoveOrder, by: str) -> AuditEvent:
    if after.state is OrderState.DONE:
        return _event(after, "order.done", by)
    if after.state is OrderState.FAILED:
        return _event(after, "order.fail", by)
    if after.state is OrderState.CANCELLED:
        return _event(after, "order.cancelled", by)
    if before.state is OrderState.ORDERED:
        return _event(after, "order.begin", by)
    return _event(after, "order.progress", by)


def _event(order: MoveOrder, operation: str, by: str, **details: str) -> AuditEvent:
    return AuditEvent(
        actor=by,
        operation=operation,
        subject=order.vm_id,
        decision="failed" if order.state is OrderState.FAILED else "done",
        reason=order.detail,
        details={
            "order": order.order_id,
            "source": order.source,
            "destination": order.destination,
            "phase": str(order.phase),
            "percent": order.percent,
            **details,
        },
    )
