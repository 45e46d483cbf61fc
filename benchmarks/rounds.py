"""Timings that can be trusted on a shared machine: CPU time, interleaved rounds, canaries, A/A.

Each round runs every contender once, in turn, between two canaries; what is compared are ratios within
a round. A round in which a canary ran more than 15 % off its median is dropped: the machine changed its
speed meanwhile. Nothing here knows what is measured.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from time import process_time_ns

OFF = 0.15
SAME = (0.95, 1.05)
"""Within which the ratio of a contender to itself must be."""

Contender = Callable[[], float]
"""Runs a batch and returns microseconds of CPU per unit."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Microseconds of each contender, round by round."""

    rounds: tuple[Mapping[str, float], ...]
    dropped: int
    canary_us: float

    def median(self, name: str) -> float:
        """The typical round."""
        return median(each[name] for each in self.rounds)

    def least(self, name: str) -> float:
        """The best round."""
        return min(each[name] for each in self.rounds)

    def ratio(self, name: str, to: str) -> float:
        """Median of the ratios within rounds."""
        return median(each[name] / each[to] for each in self.rounds)

    def over(self, name: str, base: str) -> float:
        """Median of the differences within rounds."""
        return median(each[name] - each[base] for each in self.rounds)


def here(call: Callable[[], object], batch: int) -> Contender:
    """A contender in this process: ``batch`` calls in a row."""

    def run() -> float:
        start = process_time_ns()
        for _ in range(batch):
            call()
        return (process_time_ns() - start) / batch / 1_000

    return run


def interleave(contenders: Mapping[str, Contender], rounds: int) -> Timings:
    """Run the contenders in turn, ``rounds`` times and once before that to warm up."""
    for run in contenders.values():
        run()
    kept: list[tuple[tuple[float, float], dict[str, float]]] = []
    for _ in range(rounds):
        before = _canaries()
        times = {name: run() for name, run in contenders.items()}
        after = _canaries()
        kept.append(((max(before[0], after[0]), max(before[1], after[1])), times))
    usual = [median(canary[kind] for canary, _ in kept) for kind in (0, 1)]
    good = [
        times
        for canary, times in kept
        if all(abs(canary[kind] / usual[kind] - 1) <= OFF for kind in (0, 1))
    ]
    return Timings(tuple(good), rounds - len(good), sum(usual))


def same_twice(contender: Contender, rounds: int) -> float:
    """The ratio of a contender to itself: how far this machine can be trusted now."""
    return interleave({"one": contender, "other": contender}, rounds).ratio("one", "other")


def _canaries() -> tuple[float, float]:
    """Microseconds of fixed work of two kinds: hashing alone stays even when arithmetic slows down."""
    start = process_time_ns()
    hashlib.sha256(_BLOCK).digest()
    middle = process_time_ns()
    for _ in range(3):
        pow(3, _EXPONENT, _MODULUS)
    return (middle - start) / 1_000, (process_time_ns() - middle) / 1_000


_BLOCK = bytes(1 << 20)
_MODULUS = (1 << 1279) - 1
_EXPONENT = (1 << 300) + 12345
