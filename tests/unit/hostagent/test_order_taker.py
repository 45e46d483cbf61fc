"""Orders are wishes: what is checked before one is carried out, and what is told of it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from hostagent import order_taker
from hostagent.failure import CallFailed, Failure, FailureKind
from hostagent.migration import MoveOrder, MoveProgress, MoveResult, MoveStep
from hostagent.order_taker import OrderTaker, Peers
from trustauthority.v1 import placement_pb2 as pb

ME, DOMAIN = "h-me", "7b000000-0000-4000-8000-000000000001"
RUNNING, DONE, FAILED, CANCELLING, CANCELLED = (
    pb.MOVE_ORDER_STATE_RUNNING,
    pb.MOVE_ORDER_STATE_DONE,
    pb.MOVE_ORDER_STATE_FAILED,
    pb.MOVE_ORDER_STATE_CANCELLING,
    pb.MOVE_ORDER_STATE_CANCELLED,
)
LIMIT_S = 5


def failed(kind: FailureKind, reason: str = "X") -> CallFailed:
    return CallFailed(Failure(kind=kind, reason=reason))


def order(number: int = 1, **changes: Any) -> pb.MoveOrder:
    values = {
        "order_id": f"order-{number:010}",
        "vm_id": f"vm-{number}",
        "source_host_id": ME,
        "destination_host_id": "h-there",
        "destination_host_name": "esx-2",
        "state": pb.MOVE_ORDER_STATE_ORDERED,
    }
    made = pb.MoveOrder(**(values | changes))
    made.created_at.FromMilliseconds(number)
    return made


class FakeOrders:
    """The authority: open orders, and what was reported. Refuses where a test says so."""

    def __init__(self, *orders: pb.MoveOrder) -> None:
        self.open = {each.order_id: each for each in orders}
        self.reports: list[pb.ReportMoveOrderRequest] = []
        self.refuses: Callable[[pb.ReportMoveOrderRequest], CallFailed | None] = lambda _: None
        self.unreadable = 0

    async def own(self) -> list[pb.MoveOrder]:
        if self.unreadable:
            self.unreadable -= 1
            raise failed(FailureKind.NO_ANSWER)
        return list(self.open.values())

    async def report(self, request: pb.ReportMoveOrderRequest) -> pb.MoveOrder:
        refusal = self.refuses(request)
        if refusal is not None:
            raise refusal
        self.reports.append(request)
        stands = self.open[request.order_id]
        if request.state in {DONE, FAILED, CANCELLED}:
            del self.open[request.order_id]
        return stands

    def told(self, state: int) -> list[pb.ReportMoveOrderRequest]:
        return [each for each in self.reports if each.state == state]


class FakeMoves:
    """Migrations: asked for, and let go by the test."""

    def __init__(self) -> None:
        self.begun: list[MoveOrder] = []
        self.go = asyncio.Event()
        self.result = MoveResult(ok=True, vm="vm-1")
        self.steps: list[MoveProgress] = []
        self.cancelled = 0
        self.stopped: list[str] = []
        """Domains whose copies were ended."""
        self.stays = MoveResult(
            ok=False, vm="vm-1", reason="CANCELLED", detail="the copy was stopped"
        )

    async def stop_copy(self, domain: str) -> None:
        self.stopped.append(domain)

    async def move(
        self, wanted: MoveOrder, observe: Callable[[MoveProgress], None], stop: asyncio.Event
    ) -> MoveResult:
        self.begun.append(wanted)
        try:
            for step in self.steps:
                observe(step)
            going = [asyncio.create_task(each.wait()) for each in (self.go, stop)]
            await asyncio.wait(going, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                return self.stays
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.result


@asynccontextmanager
async def taking(
    orders: FakeOrders,
    moves: FakeMoves,
    *,
    at_once: int = 2,
    runs: bool = True,
    poll_s: float = 300,
) -> AsyncIterator[OrderTaker]:
    taker = OrderTaker(
        orders=orders,
        host_id=lambda: ME,
        domain_of=lambda _vm: DOMAIN if runs else None,
        peers=Peers(
            uri="qemu+tls://{host}/system", migrate_uri="tls://{host}", tls=True, unsafe=False
        ),
        move=moves.move,
        stop_copy=moves.stop_copy,
        at_once=at_once,
        poll_s=poll_s,
    )
    task = asyncio.create_task(taker.run())
    taker.look()
    try:
        yield taker
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not holds():  # noqa: ASYNC110 - fakes have no events
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch) -> None:
    monkeypatch.setattr(order_taker, "_BEAT_S", 0.01)
    monkeypatch.setattr(order_taker, "_AGAIN_S", 0.01)


async def test_begins_tells_and_ends() -> None:
    """The order is begun by a report, moved to the destination by name, and told as done."""
    orders, moves = FakeOrders(order()), FakeMoves()
    moves.steps = [
        MoveProgress(step=MoveStep.OFFERED),
        MoveProgress(step=MoveStep.COPYING, percent=42),
    ]
    async with taking(orders, moves):
        await until(lambda: any(each.percent == 42 for each in orders.reports))
        moves.go.set()
        await until(lambda: orders.told(DONE))
    assert moves.begun[0].to_uri == "qemu+tls://esx-2/system"
    assert (moves.begun[0].domain, moves.begun[0].tls) == (DOMAIN, True)
    assert orders.reports[0].state == RUNNING
    assert orders.reports[0].phase == pb.MOVE_PHASE_OFFER
    assert orders.told(DONE)[0].phase == pb.MOVE_PHASE_RESUME


@pytest.mark.parametrize("kind", [FailureKind.REFUSED, FailureKind.NO_ANSWER])
async def test_a_beginning_that_was_not_taken_moves_nothing(kind: FailureKind) -> None:
    """Cancelled or lapsed in between, or nobody to ask: the VM is left alone."""
    orders, moves = FakeOrders(order()), FakeMoves()
    asked: list[object] = []

    def refuse(request: pb.ReportMoveOrderRequest) -> CallFailed:
        asked.append(request)
        return failed(kind)

    orders.refuses = refuse
    tries = 1 if kind is FailureKind.REFUSED else order_taker._TELL_TRIES
    async with taking(orders, moves) as taker:
        await until(lambda: len(asked) >= tries)
        await until(lambda: not taker._moving)
    assert moves.begun == []


async def test_another_hosts_order() -> None:
    """An order that names another source is nobody's business here, whoever sent it."""
    orders, moves = FakeOrders(order(source_host_id="h-other"), order(2)), FakeMoves()
    async with taking(orders, moves):
        await until(lambda: moves.begun)
    assert [each.order_id for each in orders.reports] == [order(2).order_id]


async def test_a_vm_that_does_not_run_here() -> None:
    """The lease is the truth: without one the order fails with a reason."""
    orders, moves = FakeOrders(order()), FakeMoves()
    async with taking(orders, moves, runs=False):
        await until(lambda: orders.told(FAILED))
    assert "does not run on this host" in orders.told(FAILED)[0].detail
    assert moves.begun == []


@pytest.mark.parametrize("name", ["", "a b", "../x", "x/system?no_verify=1#", "A", "x" * 64, "a\n"])
async def test_a_destination_that_is_no_name(name: str) -> None:
    """N44: nothing but a name goes into the address of another libvirt."""
    orders, moves = FakeOrders(order(destination_host_name=name)), FakeMoves()
    async with taking(orders, moves):
        await until(lambda: orders.told(FAILED))
    assert moves.begun == []


async def test_failure_is_told_in_words_on_one_line() -> None:
    """What libvirt said reaches who ordered it, printable and bounded."""
    orders, moves = FakeOrders(order()), FakeMoves()
    moves.result = MoveResult(ok=False, reason="NOT_COPIED", detail="no\nroute\x1b[31m" + "x" * 999)
    moves.go.set()
    async with taking(orders, moves):
        await until(lambda: orders.told(FAILED))
    detail = orders.told(FAILED)[0].detail
    assert detail.startswith("NOT_COPIED: no route [31m")
    assert len(detail) <= 500


async def test_so_many_at_once() -> None:
    """Two copies share the network, not five; the next begins when one has ended, oldest first."""
    orders, moves = FakeOrders(*(order(number) for number in range(5, 0, -1))), FakeMoves()
    async with taking(orders, moves, at_once=2) as taker:
        await until(lambda: len(moves.begun) == 2)
        assert set(taker._moving) == {"vm-1", "vm-2"}
        moves.go.set()
        await until(lambda: len(orders.told(DONE)) == 5)


async def test_an_order_of_a_dead_process_fails() -> None:
    """An agent that was restarted does not know the move: the order ends, and blocks nothing (L3)."""
    orders, moves = FakeOrders(order(state=RUNNING)), FakeMoves()
    async with taking(orders, moves):
        await until(lambda: orders.told(FAILED))
    assert "restarted" in orders.told(FAILED)[0].detail
    assert moves.begun == []


async def test_asks_again_when_there_was_no_answer() -> None:
    """A lost answer to the question for orders is not the end of orders."""
    orders, moves = FakeOrders(order()), FakeMoves()
    orders.unreadable = 2
    async with taking(orders, moves):
        await until(lambda: moves.begun)


async def test_finds_orders_without_a_hint() -> None:
    """Hints are best effort: it looks by itself, too."""
    orders, moves = FakeOrders(), FakeMoves()
    async with taking(orders, moves, poll_s=0.02):
        await asyncio.sleep(0.05)
        orders.open[order().order_id] = order()
        await until(lambda: moves.begun)


async def test_an_agent_that_ends_cancels_its_moves() -> None:
    """The copy is cancelled, which ends its offer; the order lapses or fails by the next process."""
    orders, moves = FakeOrders(order()), FakeMoves()
    async with taking(orders, moves):
        await until(lambda: moves.begun)
    assert moves.cancelled == 1
    assert orders.told(DONE) == []


async def test_taken_back_while_it_runs() -> None:
    """By a hint: the copy is asked to stop, and that the VM stays is told."""
    orders, moves = FakeOrders(order()), FakeMoves()
    async with taking(orders, moves) as taker:
        await until(lambda: moves.begun)
        orders.open[order().order_id].state = CANCELLING
        taker.look()
        await until(lambda: orders.told(CANCELLED))
        assert not taker._stops
    assert orders.told(CANCELLED)[0].detail == "CANCELLED: the copy was stopped"
    assert orders.told(FAILED) == []


async def test_taken_back_and_the_hint_is_lost(monkeypatch) -> None:
    """The answer to its own progress says so, too."""
    monkeypatch.setattr(order_taker, "_ALIVE_S", 0.01)
    orders, moves = FakeOrders(order()), FakeMoves()
    async with taking(orders, moves):
        await until(lambda: moves.begun)
        orders.open[order().order_id].state = CANCELLING
        await until(lambda: orders.told(CANCELLED))


async def test_taken_back_while_its_beginning_was_told() -> None:
    """The answer to the beginning says it already: nothing is copied by a move that stops at once."""
    orders, moves = FakeOrders(order()), FakeMoves()
    orders.refuses = lambda request: setattr(orders.open[request.order_id], "state", CANCELLING)
    async with taking(orders, moves):
        await until(lambda: orders.told(CANCELLED))


async def test_taken_back_too_late() -> None:
    """libvirt had finished: the move is told as done, whatever was asked."""
    orders, moves = FakeOrders(order()), FakeMoves()
    moves.stays = MoveResult(ok=True, vm="vm-1")
    async with taking(orders, moves) as taker:
        await until(lambda: moves.begun)
        orders.open[order().order_id].state = CANCELLING
        taker.look()
        await until(lambda: orders.told(DONE))
    assert orders.told(CANCELLED) == []


async def test_another_order_goes_on() -> None:
    """One that is taken back stops itself only."""
    orders, moves = FakeOrders(order(), order(2)), FakeMoves()
    async with taking(orders, moves) as taker:
        await until(lambda: len(moves.begun) == 2)
        orders.open[order().order_id].state = CANCELLING
        taker.look()
        await until(lambda: orders.told(CANCELLED))
        assert list(taker._moving) == ["vm-2"]


async def test_one_of_a_dead_process_is_taken_back() -> None:
    """A restarted agent ends the copy that goes on without it, and says that it did not watch it."""
    orders, moves = FakeOrders(order(state=CANCELLING)), FakeMoves()
    async with taking(orders, moves):
        await until(lambda: orders.told(FAILED))
    assert moves.stopped == [DOMAIN]
    assert moves.begun == []
    assert "restarted" in orders.told(FAILED)[0].detail


async def test_another_hosts_order_is_taken_back() -> None:
    """It stops nothing here."""
    orders, moves = FakeOrders(order(state=CANCELLING, source_host_id="h-other")), FakeMoves()
    async with taking(orders, moves, poll_s=0.02):
        await asyncio.sleep(0.1)
    assert (moves.stopped, orders.reports) == ([], [])
