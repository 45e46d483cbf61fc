"""Move orders as commands follow them: placed, watched by the event stream, shown step by step."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from trustauthority.cli.exit import ExitCode, exit_code
from trustauthority.cli.session import Session
from trustauthority.cli.text import printable
from trustauthority.client.errors import ClientError
from trustauthority.client.plain import word
from trustauthority.errors import Conflict

if TYPE_CHECKING:
    from trustauthority.v1.placement_pb2 import MoveOrder

STEPS = ("offer", "prepare", "copy", "switch", "resume")
OPEN_WORDS = frozenset({"ordered", "running", "cancelling"})
_BAR = 20
_RECONNECTS = 30
_PAUSE_S = 1.0


def is_open(order: "MoveOrder") -> bool:
    """Whether it waits, runs, or is being stopped."""
    return word(order, "state") in OPEN_WORDS


def place(ta: Session, vm: str, destination: str, *, ttl_ms: int, dry_run: bool) -> "MoveOrder":
    """Order a move. Raises ClientError."""
    from trustauthority.v1 import placement_pb2 as placement
    from trustauthority.v1.placement_pb2_grpc import PlacementServiceStub

    request = placement.OrderMoveRequest(
        vm_id=vm, destination=destination, ttl_ms=ttl_ms, dry_run=dry_run
    )
    return ta.authority.on(PlacementServiceStub).write(lambda s: s.OrderMove, request).order


def cancel(ta: Session, order_id: str, *, unless_begun: bool) -> "MoveOrder":
    """Take an order back, or (``unless_begun``) only one that waits. Raises ClientError."""
    from trustauthority.v1 import placement_pb2 as placement
    from trustauthority.v1.placement_pb2_grpc import PlacementServiceStub

    request = placement.CancelMoveOrderRequest(order_id=order_id, unless_begun=unless_begun)
    return ta.authority.on(PlacementServiceStub).write(lambda s: s.CancelMoveOrder, request).order


def read(ta: Session, **wanted: str | bool) -> "list[MoveOrder]":
    """List orders. Raises ClientError."""
    from trustauthority.v1 import placement_pb2 as placement
    from trustauthority.v1.placement_pb2_grpc import PlacementServiceStub

    request = placement.ListMoveOrdersRequest()
    for name, value in wanted.items():
        setattr(request, name, value)
    return list(
        ta.authority.on(PlacementServiceStub).read(lambda s: s.ListMoveOrders, request).orders
    )


def news(ta: Session, open_ids: Callable[[], Iterable[str]]) -> "Iterator[list[MoveOrder]]":
    """Orders as they change, by the event stream; those that are open again at each sign of life.

    The signs of life tell what no event tells: an order that lapsed. A stream that breaks is opened
    again. Raises ClientError when there is no answer for long.
    """
    from trustauthority.v1 import placement_pb2 as placement
    from trustauthority.v1.placement_pb2_grpc import PlacementServiceStub

    service, cursor, broken = ta.authority.on(PlacementServiceStub), "", 0
    while True:
        request = placement.WatchPlacementRequest(cursor=cursor)
        try:
            for event in service.stream(lambda s: s.WatchPlacement, request, endless=True):
                cursor, broken = event.cursor, 0
                if event.HasField("order"):
                    yield [event.order]
                elif not event.operation:
                    yield [order for each in open_ids() for order in read(ta, order_id=each)]
        except ClientError as error:
            broken += 1
            if exit_code(error.reason) is not ExitCode.NO_ANSWER or broken > _RECONNECTS:
                raise
            if error.reason == Conflict.reason:  # the log begins anew: so does the stream
                cursor = ""
        time.sleep(_PAUSE_S)


def ended(ta: Session, order: "MoveOrder") -> "MoveOrder":
    """Wait until an order has ended. Raises ClientError."""
    order_id = order.order_id
    for changed in news(ta, lambda: [order_id]):
        order = next((each for each in changed if each.order_id == order_id), order)
        if not is_open(order):
            break
    return order


def told(order: "MoveOrder") -> str:
    """How far an order is, in one line: ``offer ✔  prepare ✔  copy ████──  42 %  switch  resume``."""
    state = word(order, "state")
    if state == "ordered":
        return "waits for the source's agent"
    if state == "cancelling":
        return "is being stopped by the source's agent"
    if state not in OPEN_WORDS | {"done"}:
        return f"{state}: {order.detail}" if order.detail else state
    at = len(STEPS) if state == "done" else _step(order)
    parts = []
    for number, step in enumerate(STEPS):
        if number < at:
            parts.append(f"{step} ✔")
        elif number > at:
            parts.append(step)
        elif step == "copy":
            full = order.percent * _BAR // 100
            parts.append(f"copy {'█' * full}{'─' * (_BAR - full)} {order.percent:3} %")
        else:
            parts.append(f"{step} …")
    return "  ".join(parts)


def _step(order: "MoveOrder") -> int:
    phase = word(order, "phase")
    return STEPS.index(phase) if phase in STEPS else 0


class Progress:
    """The line of one order: redrawn on a terminal, a line per step elsewhere."""

    def __init__(self, ta: Session) -> None:
        self._screen = ta.screen
        self._live = ta.screen.err.isatty() and not ta.screen.quiet
        self._said: object = None

    def show(self, order: "MoveOrder") -> None:
        """Draw it."""
        if self._live:
            self._screen.err.write(f"\r\x1b[K{printable(told(order))}")
            self._screen.err.flush()
            return
        now = (word(order, "state"), word(order, "phase"), order.percent // 10)
        if now != self._said:
            self._said = now
            self._screen.say(told(order))

    def end(self) -> None:
        """Leave the line."""
        if self._live:
            self._screen.err.write("\n")
