"""The clock guard: N33 and N86."""

from hypothesis import given
from hypothesis import strategies as st

from trustauthority.model.placement import DEFAULT_TERMS
from trustauthority.placement.clock import (
    TOLERANCE_MS,
    ClockGuard,
    ClockReading,
    least_skew_ms,
    observe,
)

FENCE = 3_620_000
HOUR = 3_600_000
START = 1_700_000_000_000


def reading(wall: int, boot: int, boot_id: str = "one") -> ClockReading:
    return ClockReading(wall_ms=START + wall, boot_ms=boot, boot_id=boot_id)


def seen(*readings: ClockReading) -> ClockGuard:
    guard = ClockGuard()
    for each in readings:
        guard = observe(guard, each, longest_fence_ms=FENCE)
    return guard


class TestObserve:
    def test_first_reading_holds_nobody(self) -> None:
        """A new database has no fences to protect."""
        assert seen(reading(0, 5)).hold_owners_until_ms == 0

    def test_time_that_passes_evenly(self) -> None:
        """No hold while both clocks agree."""
        assert seen(reading(0, 5), reading(HOUR, HOUR + 5)).hold_owners_until_ms == 0

    def test_step_forward(self) -> None:
        """An hour's step: owners stay for the longest fence (N86)."""
        guard = seen(reading(0, 5), reading(HOUR, 6))
        assert guard.hold_owners_until_ms == START + HOUR + FENCE

    def test_many_small_steps(self) -> None:
        """Steps that each hide in the tolerance add up."""
        small = [reading(n * (TOLERANCE_MS + 1), n) for n in range(3)]
        assert seen(*small).hold_owners_until_ms > 0

    def test_step_back_and_forth(self) -> None:
        """Coming back from a step back is a step forward for what was decided meanwhile."""
        guard = seen(reading(0, 5), reading(-HOUR, 6), reading(1, 7))
        assert guard.hold_owners_until_ms == START + 1 + FENCE

    def test_step_back_keeps_the_mark(self) -> None:
        """The high-water mark stops decisions until the clock caught up (N33)."""
        assert seen(reading(0, 5), reading(-HOUR, 6)).high_water_ms == START

    def test_another_boot(self) -> None:
        """After a reboot nothing says how the wall clock moved: hold."""
        guard = seen(reading(0, 5), reading(10, 1, "two"))
        assert guard.hold_owners_until_ms == START + 10 + FENCE

    def test_hold_is_not_shortened(self) -> None:
        """A second step prolongs, never shortens."""
        once = seen(reading(0, 5), reading(HOUR, 6))
        twice = observe(once, reading(0, 7), longest_fence_ms=FENCE)
        again = observe(twice, reading(HOUR, 8), longest_fence_ms=FENCE)
        assert again.hold_owners_until_ms >= once.hold_owners_until_ms

    @given(
        st.lists(st.tuples(st.integers(-HOUR, HOUR), st.integers(0, HOUR)), min_size=1, max_size=12)
    )
    def test_marks_only_grow(self, moves) -> None:
        """Whatever the clocks do, neither mark ever falls (S6, N33, N86)."""
        guard, wall, boot = ClockGuard(), 0, 0
        for by_wall, by_boot in moves:
            wall, boot = wall + by_wall, boot + by_boot
            after = observe(guard, reading(wall, boot), longest_fence_ms=FENCE)
            assert after.high_water_ms >= guard.high_water_ms
            assert after.hold_owners_until_ms >= guard.hold_owners_until_ms
            guard = after

    @given(st.lists(st.tuples(st.integers(0, HOUR), st.integers(0, HOUR)), min_size=1, max_size=12))
    def test_no_fence_passes_early(self, moves) -> None:
        """A fence counted from any decision is not passed before as much real time passed (N86)."""
        guard, wall, boot = ClockGuard(), 0, 0
        decided: list[tuple[int, int]] = []
        guard = observe(guard, reading(0, 0), longest_fence_ms=FENCE)
        for by_wall, by_boot in moves:
            decided.append((START + wall, boot))
            wall, boot = wall + by_wall, boot + by_boot
            guard = observe(guard, reading(wall, boot), longest_fence_ms=FENCE)
            now = START + wall
            for at_wall, at_boot in decided:
                passed = now >= at_wall + FENCE and now >= guard.hold_owners_until_ms
                assert not passed or boot - at_boot >= FENCE - TOLERANCE_MS


class TestLeastSkew:
    @given(st.integers(1, 10**8), st.integers(0, 10**7), st.integers(0, 20), st.integers(0, 10_000))
    def test_covers_a_slow_host(self, lease, more, drift, reaction) -> None:
        """Destroyed by the slow clock, plus the time it takes, is before the fence (N87, S8)."""
        skew = least_skew_ms(lease, more, drift_per_mille=drift, reaction_ms=reaction)
        by_host = lease + more + skew // 2
        real = by_host + by_host * drift / 1_000 + reaction
        assert real <= lease + more + skew

    def test_defaults_are_enough(self) -> None:
        """The shipped lease classes cover one per mille and two seconds."""
        for terms in DEFAULT_TERMS.values():
            assert terms.is_unlimited or terms.skew_ms >= least_skew_ms(terms.lease_ms)
