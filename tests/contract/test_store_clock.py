"""The contract of the store's clock: it never goes back, and a jump frees no VM (N33, N86)."""

import pytest
from fakes.clock import FakeClock
from support.stores import FENCE_MS, HOUR_MS, VM, A, B, Stores, populate, rows_of

from trustauthority.adapters.sql import tables
from trustauthority.adapters.sql.store import MAX_STEP_BACK_MS, SqlStore
from trustauthority.errors import StoreUnavailable
from trustauthority.model.identifiers import HostId, RequestId
from trustauthority.model.requests import GrantRequest, RenewRequest


async def ask(store: SqlStore, host: HostId, request: str) -> tuple[str, ...]:
    """Ask for the VM; the names of the rules that failed."""
    async with store.transaction() as tx:
        wanted = GrantRequest(request_id=RequestId(request * 16), vm_id=VM, host_id=host)
        _, failed = await tx.placement.decide(wanted)
    return tuple(rule.name for rule in failed)


class TestBack:
    async def test_nothing_is_decided_until_caught_up(self, stores: Stores) -> None:
        """Ten minutes back: every decision waits until the clock passed the mark again (N33)."""
        store = await stores.open()
        await populate(store)
        stores.clock.step_ms(-600_000)
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="already decided"):
                await ask(store, A, "1")
            stores.clock.pass_ms(299_000)
        stores.clock.pass_ms(2_000)
        assert await ask(store, A, "1") == ()

    async def test_wandering_is_not_a_step(self, stores: Stores) -> None:
        """A clock that is slewed back a little decides, at the time of the mark (N33, L1)."""
        store = await stores.open()
        await populate(store)
        mark_ms = stores.clock.wall_ms
        stores.clock.step_ms(-MAX_STEP_BACK_MS)
        async with store.transaction() as tx:
            assert tx.now_ms == mark_ms
        stores.clock.step_ms(-1)
        with pytest.raises(StoreUnavailable):
            await ask(store, A, "1")

    async def test_a_refused_transaction_leaves_the_mark(self, stores: Stores) -> None:
        """Asking while the clock is behind does not lower the mark."""
        store = await stores.open()
        await populate(store)
        before = await rows_of(store, tables.authority)
        stores.clock.step_ms(-HOUR_MS)
        with pytest.raises(StoreUnavailable):
            await ask(store, A, "1")
        assert await rows_of(store, tables.authority) == before


class TestForward:
    async def test_time_that_passes_frees_the_vm(self, stores: Stores) -> None:
        """One moment before the fence another host is refused, at the fence it is not (N48, L1)."""
        store = await stores.open()
        await populate(store)
        assert await ask(store, A, "1") == ()
        stores.clock.pass_ms(FENCE_MS - 1)
        assert await ask(store, B, "2") == ("clear-of-others",)
        stores.clock.pass_ms(1)
        assert await ask(store, B, "3") == ()

    @pytest.mark.parametrize("step_ms", [251, HOUR_MS, 24 * HOUR_MS])
    async def test_a_step_frees_nothing(self, stores: Stores, step_ms) -> None:
        """After a step no VM changes owner for the longest fence; its owner goes on (N86)."""
        store = await stores.open()
        await populate(store, lease_ms=HOUR_MS)
        longest_ms = HOUR_MS + 1_000
        assert await ask(store, A, "1") == ()
        stores.clock.step_ms(step_ms)
        assert await ask(store, B, "2") == ("clear-of-others",)
        stores.clock.pass_ms(longest_ms - 1)
        assert await ask(store, B, "3") == ("clear-of-others",)
        async with store.transaction() as tx:
            request = RenewRequest(
                request_id=RequestId("4" * 16), vm_id=VM, host_id=A, grant_epoch=1
            )
            assert (await tx.placement.decide(request))[1] == ()

    async def test_the_hold_ends(self, stores: Stores) -> None:
        """A longest fence after the step, owners may change again (L1)."""
        store = await stores.open()
        await populate(store)
        assert await ask(store, A, "1") == ()
        stores.clock.step_ms(HOUR_MS)
        assert await ask(store, B, "2") == ("clear-of-others",)
        stores.clock.pass_ms(FENCE_MS)
        assert await ask(store, B, "3") == ()

    async def test_a_slow_step_adds_up(self, stores: Stores) -> None:
        """Steps that each hide in the tolerance are noticed together (N86)."""
        store = await stores.open()
        await populate(store)
        assert await ask(store, A, "1") == ()
        for _ in range(FENCE_MS // 200 + 1):
            stores.clock.step_ms(200)
            async with store.transaction():
                pass
        assert await ask(store, B, "2") == ("clear-of-others",)

    async def test_another_boot(self, stores: Stores) -> None:
        """Nothing says how the clock moved while the machine was off: hold (N86)."""
        store = await stores.open()
        await populate(store)
        assert await ask(store, A, "1") == ()
        stores.clock.reboot(down_ms=FENCE_MS)
        assert await ask(store, B, "2") == ("clear-of-others",)
        stores.clock.pass_ms(FENCE_MS)
        assert await ask(store, B, "3") == ()

    async def test_a_step_while_nothing_ran(self, stores: Stores) -> None:
        """The guard is in the database: a step between two processes counts (N86)."""
        first = await stores.open()
        await populate(first)
        assert await ask(first, A, "1") == ()
        await first.close()
        stores.clock.step_ms(HOUR_MS)
        assert await ask(await stores.open(), B, "2") == ("clear-of-others",)


class PausingClock(FakeClock):
    """A machine that is paused between the readings of its two clocks, some times."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses = 0

    def now_ms(self) -> int:
        if self.pauses:
            self.pauses -= 1
            self.pass_ms(400)
        return super().now_ms()


async def test_a_pause_between_readings_is_no_step(stores: Stores) -> None:
    """Both clocks are read together, or again: a busy machine holds nobody (L1)."""
    clock = PausingClock()
    store = await stores.open(clock)
    for pauses in (3, 0, 9, 0):
        clock.pauses = pauses
        async with store.transaction():
            pass
    (row,) = await rows_of(store, tables.authority)
    assert row["hold_owners_until_ms"] == 0
