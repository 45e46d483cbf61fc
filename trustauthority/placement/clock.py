"""The guard on the store's wall clock: decisions never go back, and a jump forward frees no VM.

What it is: the rule of N33 and N86 as a pure function. What it trusts: that wall time and
CLOCK_BOOTTIME were read together on the machine whose clock decides. What it guarantees: after the
wall clock outran CLOCK_BOOTTIME (a step, a resumed or rebooted machine), no fence counts as passed
for the longest fence; a clock behind the high-water mark decides nothing. What it does not do:
notice a wall clock that is merely wrong. Source: design 6.4 (4), 7.
"""

from dataclasses import dataclass, replace

TOLERANCE_MS = 250
"""How far the wall clock may outrun CLOCK_BOOTTIME; inside every skew margin. Both are slewed alike
by the kernel, so that only steps and suspends tear them apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockReading:
    """Both clocks of one machine at one moment."""

    wall_ms: int
    boot_ms: int
    boot_id: str
    """The kernel's boot id: CLOCK_BOOTTIME of two boots can't be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockGuard:
    """What is kept beside the decisions, in the same database."""

    high_water_ms: int = 0
    hold_owners_until_ms: int = 0
    boot_id: str = ""
    least_offset_ms: int = 0
    """The smallest wall minus boot time seen since the last hold: a step back and forth counts."""


def observe(
    guard: ClockGuard,
    reading: ClockReading,
    *,
    longest_fence_ms: int,
    tolerance_ms: int = TOLERANCE_MS,
) -> ClockGuard:
    """Bring the guard up to date; call it in the transaction that decides, before deciding.

    Args:
        guard: as stored.
        reading: taken now.
        longest_fence_ms: the longest lease + continue-for + skew of any limited lease class.
        tolerance_ms: a lead of the wall clock that the skew margins cover.
    """
    offset = reading.wall_ms - reading.boot_ms
    high_water = max(guard.high_water_ms, reading.wall_ms)
    known = reading.boot_id == guard.boot_id
    if known and offset - guard.least_offset_ms <= tolerance_ms:
        least = min(guard.least_offset_ms, offset)
        return replace(guard, high_water_ms=high_water, least_offset_ms=least)
    hold = max(guard.hold_owners_until_ms, reading.wall_ms + longest_fence_ms)
    first = guard == ClockGuard()
    return ClockGuard(
        high_water_ms=high_water,
        hold_owners_until_ms=0 if first else hold,
        boot_id=reading.boot_id,
        least_offset_ms=offset,
    )


def least_skew_ms(
    lease_ms: int,
    continue_for_ms: int = 0,
    *,
    drift_per_mille: int = 1,
    reaction_ms: int = 2_000,
) -> int:
    """The smallest skew with which a slow host destroys its VM before the fence has passed.

    The host destroys at lease + continue-for + skew / 2 by its own clock, which may run slow by
    ``drift_per_mille``, and needs ``reaction_ms`` for it (design 6.4 (4)-(5)).
    """
    behind = drift_per_mille * (lease_ms + continue_for_ms) + 1_000 * reaction_ms
    return -(-2 * behind // (1_000 - drift_per_mille))
