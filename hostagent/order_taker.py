"""Carry out move orders: ask for them, move the VMs, tell how far each is.

Stage: job of the agent, beside ``migration``. An order is a wish: the move is offered, prepared and
switched as any other, and the authority decides each step. Trusts nothing in an order beyond what it
checks: that it names this host as the source, that the VM runs here under a lease, and that the
destination's name is one. Guarantees that an order is begun only after the authority took the report
of its beginning (so that one which was cancelled is not carried out), that one which is taken back
later is stopped as long as libvirt can, that one VM is moved at a time
by one order and a bounded number at once, and that an order which this process does not know ends as
failed instead of blocking others until it lapses. Hints are best effort: it asks at each connection.
"""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from hostagent.failure import CallFailed, FailureKind
from hostagent.migration import (
    CANCELLED,
    Ask,
    MoveOrder,
    MoveProgress,
    MoveResult,
    MoveStep,
    Observer,
    migrate,
)
from hostagent.virsh import Virsh
from trustauthority.v1 import placement_pb2 as pb

_log = structlog.get_logger("hostagent.orders")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
_BEAT_S = 1.0
"""Progress is told at most so often,"""
_ALIVE_S = 20.0
"""and at least so often: the authority lets an order lapse after two minutes of silence."""
_POLL_S = 300.0
"""It asks at least so often: a hint may be lost."""
_AGAIN_S = 5.0
_TELL_TRIES = 5
_MAX_DETAIL = 500
_STEPS = {
    MoveStep.OFFERED: pb.MOVE_PHASE_PREPARE,
    MoveStep.COPYING: pb.MOVE_PHASE_COPY,
    MoveStep.HANDING_OVER: pb.MOVE_PHASE_SWITCH,
    MoveStep.DONE: pb.MOVE_PHASE_RESUME,
    MoveStep.STAYS: pb.MOVE_PHASE_OFFER,
}

Migrate = Callable[[MoveOrder, Observer, asyncio.Event], Awaitable[MoveResult]]
"""Moves a VM; the event, once set, asks to stop."""
_FOREIGN = frozenset({pb.MOVE_ORDER_STATE_RUNNING, pb.MOVE_ORDER_STATE_CANCELLING})


class Orders(Protocol):
    """The authority, as far as orders go. Both calls raise CallFailed."""

    async def own(self) -> list[pb.MoveOrder]:
        """The open orders of this host."""

    async def report(self, request: pb.ReportMoveOrderRequest) -> pb.MoveOrder:
        """Tell how far an order is; the order as it stands, which may be CANCELLING."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """How this host reaches the libvirt of others; ``{host}`` is the destination's name."""

    uri: str
    migrate_uri: str
    tls: bool
    unsafe: bool

    def order(self, domain: str, destination: str) -> MoveOrder:
        """What ``migration`` is told."""
        return MoveOrder(
            domain=domain,
            destination=destination,
            to_uri=self.uri.replace("{host}", destination),
            migrate_uri=self.migrate_uri.replace("{host}", destination),
            tls=self.tls,
            unsafe=self.unsafe,
        )


@dataclass(slots=True, kw_only=True)
class OrderTaker:
    """The orders that this host carries out. Runs in the agent's loop."""

    orders: Orders
    host_id: Callable[[], str]
    domain_of: Callable[[str], str | None]
    """The domain of a VM that runs here under a lease; None for any other."""
    peers: Peers
    move: Migrate
    stop_copy: Callable[[str], Awaitable[None]]
    """Ends the copy of a domain that leaves this host, whoever began it."""
    at_once: int
    poll_s: float = _POLL_S
    _moving: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    """By VM."""
    _mine: set[str] = field(default_factory=set)
    """Orders that this process began, or refused."""
    _stops: dict[str, asyncio.Event] = field(default_factory=dict)
    """Of the orders that are under way: set when one is taken back."""
    _wanted: asyncio.Event = field(default_factory=asyncio.Event)

    def look(self) -> None:
        """Something may have been ordered."""
        self._wanted.set()

    async def run(self) -> None:
        """Carry out orders until cancelled; what is under way is cancelled too, and ends its offer."""
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wanted.wait(), self.poll_s)
                self._wanted.clear()
                try:
                    await self._take(await self.orders.own())
                except CallFailed as error:
                    _log.warning("orders", outcome="not read", reason=error.failure.reason)
                    await asyncio.sleep(_AGAIN_S)
                    self.look()
        finally:
            for task in self._moving.values():
                task.cancel()
            await asyncio.gather(*self._moving.values(), return_exceptions=True)

    async def _take(self, orders: list[pb.MoveOrder]) -> None:
        self._mine &= {order.order_id for order in orders}
        for order in sorted(orders, key=lambda each: each.created_at.ToNanoseconds()):
            stop = self._stops.get(order.order_id)
            if stop is not None and order.state == pb.MOVE_ORDER_STATE_CANCELLING:
                stop.set()
            if order.order_id in self._mine or order.source_host_id != self.host_id():
                continue
            if order.state in _FOREIGN:
                self._mine.add(order.order_id)
                domain = self.domain_of(order.vm_id)
                if domain and order.state == pb.MOVE_ORDER_STATE_CANCELLING:
                    await self.stop_copy(domain)
                told = "the source's agent was restarted meanwhile: see ta vm show"
                await self._tell(_report(order, pb.MOVE_ORDER_STATE_FAILED, detail=told))
            elif order.vm_id not in self._moving and len(self._moving) < self.at_once:
                self._mine.add(order.order_id)
                self._begin(order)

    def _begin(self, order: pb.MoveOrder) -> None:
        task = asyncio.create_task(self._carry_out(order))
        self._moving[order.vm_id] = task
        task.add_done_callback(lambda _: self._ended(order.vm_id, task))

    def _ended(self, vm_id: str, task: asyncio.Task[None]) -> None:
        self._moving.pop(vm_id, None)
        if not task.cancelled() and task.exception() is not None:
            _log.error("order", vm=vm_id, outcome="crashed", error=repr(task.exception()))
        self.look()  # another one may wait for the place

    async def _carry_out(self, order: pb.MoveOrder) -> None:
        stop = self._stops[order.order_id] = asyncio.Event()
        try:
            await self._move(order, stop)
        finally:
            del self._stops[order.order_id]

    async def _move(self, order: pb.MoveOrder, stop: asyncio.Event) -> None:
        domain, problem = self._checked(order)
        began = _report(order, pb.MOVE_ORDER_STATE_RUNNING, pb.MOVE_PHASE_OFFER)
        if not await self._tell(
            began, stop
        ):  # cancelled, lapsed, nobody to ask: leave the VM alone
            return
        if domain is None:
            await self._tell(_report(order, pb.MOVE_ORDER_STATE_FAILED, detail=problem))
            return
        _log.info("order", order=order.order_id, vm=order.vm_id, to=order.destination_host_name)
        progress = _Progress(self, order, stop)
        telling = asyncio.create_task(progress.tell())
        try:
            done = await self.move(
                self.peers.order(domain, order.destination_host_name), progress.observe, stop
            )
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
        state = pb.MOVE_ORDER_STATE_DONE if done.ok else pb.MOVE_ORDER_STATE_FAILED
        if done.reason == CANCELLED:
            state = pb.MOVE_ORDER_STATE_CANCELLED
        detail = "" if done.ok else f"{done.reason}: {done.detail}"
        phase = pb.MOVE_PHASE_RESUME if done.ok else progress.phase
        _log.info("order", order=order.order_id, vm=order.vm_id, outcome=detail or "moved")
        await self._tell(_report(order, state, phase, percent=progress.percent, detail=detail))

    def _checked(self, order: pb.MoveOrder) -> tuple[str | None, str]:
        if not _NAME.fullmatch(order.destination_host_name):
            return None, "the destination has no name that this host could reach"
        domain = self.domain_of(order.vm_id)
        return domain, "" if domain else "the VM does not run on this host under libvirt"

    async def _tell(
        self, report: pb.ReportMoveOrderRequest, stop: asyncio.Event | None = None
    ) -> bool:
        """Report, with some patience; False when the authority refused it or never answered.

        ``stop`` is set when the order was taken back.
        """
        for attempt in range(_TELL_TRIES):
            try:
                stands = await self.orders.report(report)
            except CallFailed as error:
                _log.warning("order", order=report.order_id, reason=error.failure.reason)
                if error.failure.kind is FailureKind.REFUSED:
                    return False
                await asyncio.sleep(_BEAT_S * (attempt + 1))
            else:
                if stop is not None and stands.state == pb.MOVE_ORDER_STATE_CANCELLING:
                    stop.set()
                return True
        return False


class _Progress:
    """What the observer heard last, told at a bounded rate."""

    def __init__(self, taker: OrderTaker, order: pb.MoveOrder, stop: asyncio.Event) -> None:
        self._taker, self._order, self._stop = taker, order, stop
        self.phase: pb.MovePhase.ValueType = pb.MOVE_PHASE_OFFER
        self.percent = 0
        self._news = asyncio.Event()

    def observe(self, progress: MoveProgress) -> None:
        """The observer that ``migration`` calls."""
        if progress.step in {MoveStep.DONE, MoveStep.STAYS}:
            return  # the outcome is told by whoever has it
        self.phase = _STEPS[progress.step]
        self.percent = max(self.percent, min(100, max(0, progress.percent or 0)))
        self._news.set()

    async def tell(self) -> None:
        """Tell what is new, and now and then that there is nothing new; until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), _ALIVE_S)
            self._news.clear()
            running = pb.MOVE_ORDER_STATE_RUNNING
            report = _report(self._order, running, self.phase, percent=self.percent)
            with contextlib.suppress(CallFailed):
                stands = await self._taker.orders.report(report)
                if stands.state == pb.MOVE_ORDER_STATE_CANCELLING:
                    self._stop.set()
            await asyncio.sleep(_BEAT_S)


def _report(
    order: pb.MoveOrder,
    state: "pb.MoveOrderState.ValueType",
    phase: "pb.MovePhase.ValueType" = pb.MOVE_PHASE_OFFER,
    *,
    percent: int = 0,
    detail: str = "",
) -> pb.ReportMoveOrderRequest:
    shown = "".join(char if char.isprintable() else " " for char in detail)[:_MAX_DETAIL]
    return pb.ReportMoveOrderRequest(
        order_id=order.order_id, state=state, phase=phase, percent=percent, detail=shown
    )


def mover(virsh: Virsh, ask: Ask) -> Migrate:
    """Moves by libvirt, as ``hostagent vm migrate`` does."""

    async def move(order: MoveOrder, observe: Observer, stop: asyncio.Event) -> MoveResult:
        return await migrate(order, virsh=virsh, ask=ask, observe=observe, stop=stop)

    return move
