"""Move orders: a wish that gives no right, of one VM at a time, that nobody can forget for ever."""

import asyncio

import pytest
from support.simulated_authority import BY, VM, SimulatedAuthority
from support.simulated_host import SimulatedHost

from trustauthority.errors import (
    FailedPrecondition,
    Fenced,
    MoveRefused,
    NotFound,
    SwitchBegun,
)
from trustauthority.model.identifiers import RequestId
from trustauthority.model.moveorder import (
    REPORT_WITHIN_MS,
    MoveOrder,
    OrderPhase,
    OrderReport,
    OrderState,
)
from trustauthority.services.moveorders import DEFAULT_WAIT_MS, KEEP_MS, MOST_PER_HOST, MoveOrders


async def running_vm(
    authority: SimulatedAuthority,
) -> tuple[MoveOrders, SimulatedHost, SimulatedHost, int]:
    """A VM that runs on the first of two trusted hosts."""
    source, destination = await authority.trusted("esx-1", "esx-2")
    await authority.add_vm()
    await authority.intend(source)
    released = await authority.request(source)
    return MoveOrders(authority.store), source, destination, released.grant_epoch


async def place(orders: MoveOrders, destination: str = "esx-2", vm: str = VM) -> MoveOrder:
    return await orders.order(vm, destination, ttl_ms=0, by=BY, dry_run=False)


def said(
    order: MoveOrder,
    state: OrderState = OrderState.RUNNING,
    phase: OrderPhase = OrderPhase.OFFER,
    percent: int = 0,
    detail: str = "",
) -> OrderReport:
    return OrderReport(
        order_id=order.order_id, state=state, phase=phase, percent=percent, detail=detail
    )


async def state_of(authority: SimulatedAuthority, order: MoveOrder) -> OrderState:
    async with authority.store.snapshot() as tx:
        found = await tx.orders.get(order.order_id)
        return found.state_at(tx.now_ms)


class TestOrder:
    async def test_names_the_owner_as_source(self, authority):
        """The owner is asked, nobody else; the order and who gave it are in the audit log."""
        orders, source, destination, _ = await running_vm(authority)
        order = await place(orders)
        assert (order.source, order.destination) == (source.host_id, destination.host_id)
        entry = await authority.last("order.place")
        assert entry["actor"] == BY
        assert entry["details"]["order"] == order.order_id
        assert [each.order_id for each in await orders.of_source(await authority.record(source))]
        assert not await orders.of_source(await authority.record(destination))

    async def test_gives_no_right(self, authority):
        """Sufficient for nothing: neither end can do more with an order than without (N74, N52)."""
        orders, _, destination, epoch = await running_vm(authority)
        await place(orders)
        with pytest.raises(MoveRefused):
            await authority.request(destination, move_id="move-0000000001")
        with pytest.raises(Fenced):
            await authority.keys.renew(
                await authority.record(destination),
                vm=VM,
                grant_epoch=epoch,
                request_id="renewal-0000001",
            )

    async def test_is_needed_for_nothing(self, authority):
        """The owner moves its VM without one."""
        _, source, destination, epoch = await running_vm(authority)
        await authority.placement.offer(
            await authority.record(source),
            vm=VM,
            grant_epoch=epoch,
            destination=destination.host_id,
            move_id="move-0000000001",
        )
        await authority.request(destination, move_id="move-0000000001")

    async def test_dry_run_writes_nothing(self, authority):
        """Only checked: no order, no entry."""
        orders, *_ = await running_vm(authority)
        before = await authority.log()
        await orders.order(VM, "esx-2", ttl_ms=0, by=BY, dry_run=True)
        assert await authority.log() == before
        assert not await orders.entries(vm="", host="", open_only=False, order_id="")

    async def test_refused_where_the_vm_may_not_go(self, authority):
        """A destination that would be refused is refused when it is ordered, with the rule's name."""
        orders, _, destination, _ = await running_vm(authority)
        await authority.hosts.revoke(destination.host_id, why="", by=BY, dry_run=False)
        with pytest.raises(MoveRefused) as refused:
            await place(orders)
        assert refused.value.metadata["rule"] == "host-not-revoked"

    async def test_refused_to_a_drained_host(self, authority):
        """A host that is being emptied is no destination."""
        orders, *_ = await running_vm(authority)
        await authority.hosts.set_draining("esx-2", draining=True, why="", by=BY, dry_run=False)
        with pytest.raises(MoveRefused) as refused:
            await place(orders)
        assert refused.value.metadata["rule"] == "host-not-draining"

    @pytest.mark.parametrize(
        ("vm", "host", "error"),
        [
            ("nothing", "esx-2", NotFound),
            (VM, "nobody", NotFound),
            (VM, "esx-1", MoveRefused),
        ],
    )
    async def test_refused_without_sense(self, authority, vm, host, error):
        """An unknown VM or host, and the owner itself."""
        orders, *_ = await running_vm(authority)
        with pytest.raises(error):
            await place(orders, host, vm)

    async def test_refused_for_a_vm_that_runs_nowhere(self, authority):
        """There is nobody to ask."""
        await authority.trusted("esx-1", "esx-2")
        await authority.add_vm()
        with pytest.raises(FailedPrecondition, match="no host runs"):
            await place(MoveOrders(authority.store))


class TestOneAtATime:
    async def test_sixteen_orders_of_one_vm(self, authority):
        """One order is open per VM, however many are given at once."""
        orders, *_ = await running_vm(authority)
        done = await asyncio.gather(*(place(orders) for _ in range(16)), return_exceptions=True)
        assert sum(isinstance(each, MoveOrder) for each in done) == 1
        assert sum(isinstance(each, FailedPrecondition) for each in done) == 15

    async def test_bounded_per_host(self, authority):
        """Copies of memory share a host's network: so many orders are open from or to one host."""
        source, _ = await authority.trusted("esx-1", "esx-2")
        orders = MoveOrders(authority.store)
        for number in range(MOST_PER_HOST + 1):
            await authority.add_vm(f"vm-{number}")
            await authority.intend(source, f"vm-{number}")
            await authority.request(source, f"vm-{number}")
        for number in range(MOST_PER_HOST):
            await place(orders, vm=f"vm-{number}")
        with pytest.raises(FailedPrecondition, match="orders from or to"):
            await place(orders, vm=f"vm-{MOST_PER_HOST}")

    async def test_another_after_the_first_ended(self, authority):
        """A failed order keeps nothing out."""
        orders, source, *_ = await running_vm(authority)
        first = await place(orders)
        record = await authority.record(source)
        await orders.report(record, said(first))
        await orders.report(record, said(first, OrderState.FAILED, detail="no room"))
        assert (await place(orders)).order_id != first.order_id


class TestTime:
    async def test_lapses_when_nobody_begins(self, authority):
        """A dead agent leaves no lock: the order lapses by the store's clock (L3)."""
        orders, source, destination, _ = await running_vm(authority)
        order = await place(orders)
        authority.pass_ms(DEFAULT_WAIT_MS, source, destination)
        await authority.attest(destination)
        assert await state_of(authority, order) is OrderState.EXPIRED
        assert not await orders.of_source(await authority.record(source))
        with pytest.raises(FailedPrecondition, match="expired"):
            await orders.report(await authority.record(source), said(order))

    async def test_lapses_when_its_source_falls_silent(self, authority):
        """One that runs and is told of no more lapses too; each report keeps it alive."""
        orders, source, destination, _ = await running_vm(authority)
        order = await place(orders)
        record = await authority.record(source)
        for percent in (0, 1, 2):
            await orders.report(record, said(order, percent=percent))
            authority.pass_ms(REPORT_WITHIN_MS - 1, source, destination)
        assert await state_of(authority, order) is OrderState.RUNNING
        authority.pass_ms(1, source, destination)
        assert await state_of(authority, order) is OrderState.EXPIRED
        await authority.attest(destination)
        assert (await place(orders)).order_id != order.order_id

    async def test_ended_orders_are_forgotten(self, authority):
        """L4: after a week an ended order is in the audit log only."""
        orders, source, destination, _ = await running_vm(authority)
        order = await place(orders)
        await orders.cancel(order.order_id, by=BY)
        authority.pass_ms(KEEP_MS + 1, source, destination)
        await authority.attest(source)
        await authority.attest(destination)
        await place(orders)
        with pytest.raises(NotFound):
            await orders.entries(vm="", host="", open_only=False, order_id=order.order_id)


class TestReports:
    async def test_only_the_source_tells(self, authority):
        """Another host, the destination too, has no such order."""
        orders, _, destination, _ = await running_vm(authority)
        order = await place(orders)
        with pytest.raises(NotFound):
            await orders.report(await authority.record(destination), said(order))
        assert await state_of(authority, order) is OrderState.ORDERED

    async def test_unknown_order(self, authority):
        """Made-up ids are nobody's."""
        orders, source, *_ = await running_vm(authority)
        order = await place(orders)
        made_up = OrderReport(
            order_id=RequestId("made-up-0000000001"),
            state=OrderState.RUNNING,
            phase=OrderPhase.OFFER,
            percent=0,
            detail="",
        )
        with pytest.raises(NotFound):
            await orders.report(await authority.record(source), made_up)
        assert await state_of(authority, order) is OrderState.ORDERED

    async def test_progress_is_news_in_steps_of_ten(self, authority):
        """Watchers see it move; the audit log is not filled by it."""
        orders, source, *_ = await running_vm(authority)
        order = await place(orders)
        record = await authority.record(source)
        await orders.report(record, said(order))
        for percent in range(101):
            await orders.report(record, said(order, phase=OrderPhase.COPY, percent=percent))
        await orders.report(record, said(order, OrderState.DONE, OrderPhase.RESUME, 100))
        assert len(await authority.log("order.begin")) == 1
        assert len(await authority.log("order.progress")) == 11
        assert len(await authority.log("order.done")) == 1

    async def test_a_source_that_goes_back_and_forth_fills_no_log(self, authority):
        """T4: what a host says of its progress never goes back, so it is bounded in the audit log."""
        orders, source, *_ = await running_vm(authority)
        order = await place(orders)
        record = await authority.record(source)
        for percent in (90, 0, 90, 0, 90):
            for phase in (OrderPhase.COPY, OrderPhase.OFFER):
                shown = await orders.report(record, said(order, phase=phase, percent=percent))
        assert len(await authority.log("order.begin")) == 1
        assert len(await authority.log("order.progress")) == 0
        assert (shown.phase, shown.percent) == (OrderPhase.COPY, 90)

    @pytest.mark.parametrize("ended", [OrderState.DONE, OrderState.FAILED])
    async def test_an_outcome_is_final(self, authority, ended):
        """A late report changes nothing."""
        orders, source, *_ = await running_vm(authority)
        order = await place(orders)
        record = await authority.record(source)
        await orders.report(record, said(order))
        await orders.report(record, said(order, ended))
        for later in (OrderState.RUNNING, OrderState.DONE, OrderState.FAILED):
            with pytest.raises(FailedPrecondition):
                await orders.report(record, said(order, later))
        assert await state_of(authority, order) is ended


class TestCancel:
    async def test_before_it_began(self, authority):
        """The source may not begin it any more."""
        orders, source, *_ = await running_vm(authority)
        order = await place(orders)
        assert (await orders.cancel(order.order_id, by=BY)).state is OrderState.CANCELLED
        with pytest.raises(FailedPrecondition, match="cancelled"):
            await orders.report(await authority.record(source), said(order))

    async def test_unless_begun(self, authority):
        """Who only wants to take back what waits leaves alone what has begun."""
        orders, source, *_ = await running_vm(authority)
        order = await place(orders)
        await orders.report(await authority.record(source), said(order))
        with pytest.raises(FailedPrecondition, match="running"):
            await orders.cancel(order.order_id, by=BY, unless_begun=True)
        assert await state_of(authority, order) is OrderState.RUNNING
        await orders.cancel(order.order_id, by=BY)
        with pytest.raises(FailedPrecondition, match="cancelling"):
            await orders.cancel(order.order_id, by=BY, unless_begun=True)
        assert len(await authority.log("order.cancel")) == 1

    @pytest.mark.parametrize("unless_begun", [False, True])
    async def test_cancel_against_begin(self, authority, unless_begun):
        """Both at once: who comes second is told, and no cancellation is lost."""
        orders, source, *_ = await running_vm(authority)
        record = await authority.record(source)
        for _ in range(5):
            order = await place(orders)
            cancelled, begun = await asyncio.gather(
                orders.cancel(order.order_id, by=BY, unless_begun=unless_begun),
                orders.report(record, said(order)),
                return_exceptions=True,
            )
            state = await state_of(authority, order)
            if isinstance(cancelled, FailedPrecondition):
                assert unless_begun
                assert state is OrderState.RUNNING
            elif isinstance(begun, FailedPrecondition):
                assert state is OrderState.CANCELLED
                continue
            else:
                assert state is OrderState.CANCELLING
            await orders.report(record, said(order, OrderState.FAILED))


async def copying(authority) -> tuple[MoveOrders, SimulatedHost, SimulatedHost, MoveOrder]:
    """An order whose source copies memory, under an offer that the destination has prepared."""
    orders, source, destination, epoch = await running_vm(authority)
    order = await place(orders)
    record = await authority.record(source)
    await orders.report(record, said(order))
    await authority.placement.offer(
        record, vm=VM, grant_epoch=epoch, destination=destination.host_id, move_id=MOVE
    )
    await authority.request(destination, move_id=MOVE)
    await orders.report(record, said(order, phase=OrderPhase.COPY, percent=40))
    return orders, source, destination, order


MOVE = "move-0000000001"


class TestCancelWhileItRuns:
    @pytest.mark.parametrize("phase", [OrderPhase.SWITCH, OrderPhase.RESUME])
    async def test_not_when_the_vm_is_handed_over(self, authority, phase):
        """QEMU has left its source: to stop there would leave the VM nowhere."""
        orders, source, _, order = await copying(authority)
        await orders.report(await authority.record(source), said(order, phase=phase))
        with pytest.raises(SwitchBegun) as refused:
            await orders.cancel(order.order_id, by=BY)
        assert refused.value.metadata["order"] == order.order_id
        assert await state_of(authority, order) is OrderState.RUNNING
        assert not await authority.log("order.cancel")

    async def test_not_after_the_switch(self, authority):
        """The source has not told yet, but the VM is the destination's: who owns it says more."""
        orders, source, _, order = await copying(authority)
        await authority.placement.switch(await authority.record(source), vm=VM, move_id=MOVE)
        with pytest.raises(SwitchBegun):
            await orders.cancel(order.order_id, by=BY)
        assert await state_of(authority, order) is OrderState.RUNNING

    @pytest.mark.parametrize("wrong", [OrderState.CANCELLED, OrderState.FAILED])
    async def test_takes_no_right_away(self, authority, wrong):
        """A wish as the order was: the switch that libvirt finished all the same is not refused."""
        orders, source, destination, order = await copying(authority)
        await orders.cancel(order.order_id, by=BY)
        record = await authority.record(source)
        epoch = await authority.placement.switch(record, vm=VM, move_id=MOVE)
        shown = await orders.report(record, said(order, wrong))
        assert shown.state is OrderState.DONE
        renewed = await authority.keys.renew(
            await authority.record(destination),
            vm=VM,
            grant_epoch=epoch,
            request_id="renewal-0000001",
        )
        assert renewed is not None

    async def test_the_source_keeps_its_grant(self, authority):
        """It stops the copy and ends its offer; the destination gets nothing any more."""
        orders, source, destination, order = await copying(authority)
        assert (await orders.cancel(order.order_id, by=BY)).state is OrderState.CANCELLING
        record = await authority.record(source)
        await authority.placement.abort(record, vm=VM, move_id=MOVE)
        shown = await orders.report(record, said(order, OrderState.CANCELLED, detail="stopped"))
        assert shown.state is OrderState.CANCELLED
        with pytest.raises(MoveRefused):
            await authority.placement.switch(record, vm=VM, move_id=MOVE)
        with pytest.raises(MoveRefused):
            await authority.request(destination, move_id=MOVE)
        async with authority.store.snapshot() as tx:
            assert (await tx.vms.get(VM)).owner == source.host_id
        assert (await place(orders)).order_id != order.order_id

    async def test_who_and_what_came_of_it_are_audited(self, authority):
        """One entry for the wish, by its caller; one for the end, by the source."""
        orders, source, _, order = await copying(authority)
        for _ in range(3):
            await orders.cancel(order.order_id, by=BY)
        record = await authority.record(source)
        await orders.report(record, said(order, OrderState.CANCELLED, detail="stopped"))
        (asked,), (ended,) = (
            await authority.log("order.cancel"),
            await authority.log("order.cancelled"),
        )
        assert (asked["actor"], asked["details"]["order"]) == (BY, order.order_id)
        assert (ended["actor"], ended["reason"]) == (f"host:{source.host_id}", "stopped")

    async def test_progress_does_not_undo_it(self, authority):
        """A report that was on its way goes on being heard, and the order goes on being cancelled."""
        orders, source, _, order = await copying(authority)
        record = await authority.record(source)
        await asyncio.gather(
            orders.cancel(order.order_id, by=BY),
            *(
                orders.report(record, said(order, phase=OrderPhase.COPY, percent=p))
                for p in (41, 95)
            ),
        )
        shown = await orders.report(record, said(order, phase=OrderPhase.COPY, percent=96))
        assert (shown.state, shown.percent) == (OrderState.CANCELLING, 96)

    @pytest.mark.parametrize("begun", [False, True])
    async def test_a_source_cancels_nothing_by_itself(self, authority, begun):
        """CANCELLED is somebody's wish; a source that says so without one is not believed."""
        orders, source, *_ = await running_vm(authority)
        order = await place(orders)
        record = await authority.record(source)
        if begun:
            await orders.report(record, said(order))
        with pytest.raises(FailedPrecondition):
            await orders.report(record, said(order, OrderState.CANCELLED))
        expected = OrderState.RUNNING if begun else OrderState.ORDERED
        assert await state_of(authority, order) is expected

    async def test_blocks_others_until_it_ended_or_lapsed(self, authority):
        """Its source may still finish the move; one that is silent keeps nobody out for long (L3)."""
        orders, source, destination, order = await copying(authority)
        await orders.cancel(order.order_id, by=BY)
        with pytest.raises(FailedPrecondition, match="is open"):
            await place(orders)
        authority.pass_ms(REPORT_WITHIN_MS, source, destination)
        assert await state_of(authority, order) is OrderState.EXPIRED
        with pytest.raises(FailedPrecondition, match="expired"):
            await orders.cancel(order.order_id, by=BY)

    @pytest.mark.parametrize("ended", [OrderState.DONE, OrderState.FAILED, OrderState.CANCELLED])
    async def test_not_after_it_ended(self, authority, ended):
        """An outcome is final."""
        orders, source, _, order = await copying(authority)
        record = await authority.record(source)
        if ended is OrderState.CANCELLED:
            await orders.cancel(order.order_id, by=BY)
        await orders.report(record, said(order, ended))
        with pytest.raises(FailedPrecondition, match=str(ended)):
            await orders.cancel(order.order_id, by=BY)
