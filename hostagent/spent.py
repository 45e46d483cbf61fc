"""How long this process spent in what, so that the time of a start can be told apart.

Stage: pure but for the clock. Guarantees sums that only grow, of wall-clock time; what happens at the same time is
counted each time. Decides nothing: no time-out and no lease looks at it.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

TPM, AUTHORITY = "tpm", "authority"


@dataclass(slots=True)
class Spent:
    """Sums of seconds, by what they were spent in."""

    _seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Count the time of a block, also of one that fails. One thread at a time per name."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds[what] = self._seconds.get(what, 0.0) + time.monotonic() - began

    def so_far(self) -> Mapping[str, float]:
        """Seconds by name, now."""
        return dict(self._seconds)


def milliseconds_since(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, int]:
    """What was spent between two looks, as ``tpm_ms``, ``authority_ms``."""
    spent = {what: seconds - before.get(what, 0.0) for what, seconds in after.items()}
    return {f"{what}_ms": round(1000 * seconds) for what, seconds in sorted(spent.items())}
