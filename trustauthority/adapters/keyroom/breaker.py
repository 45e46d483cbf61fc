"""A circuit breaker: a KMS that does not answer is left alone for a while, then tried by one order.

Stage: adapter, pure: the time is an argument. Guarantees that a dead KMS costs its own orders a
refusal at once instead of a timeout each, and that it is asked again without anybody's doing. Counts
outages only: a refusal is an answer. Source: N56.
"""


class Breaker:
    """Closed, resting, or half open with one order on trial."""

    def __init__(self, *, trip_after: int, rest_s: float) -> None:
        self._trip_after = trip_after
        self._rest_s = rest_s
        self._failures = 0
        self._rests_until = 0.0
        self._on_trial = False

    def wait_s(self, now: float) -> float | None:
        """None if an order may go ahead; otherwise the seconds until one may try again.

        Whoever got None reports back with one of ``answered``, ``failed`` and ``gave_up``.
        """
        if self._failures < self._trip_after:
            return None
        if now < self._rests_until:
            return self._rests_until - now
        if self._on_trial:
            return self._rest_s
        self._on_trial = True
        return None

    def answered(self) -> None:
        """The KMS answered, be it with a refusal."""
        self._failures = 0
        self._on_trial = False

    def failed(self, now: float) -> None:
        """The KMS could not be reached or was late."""
        self._failures = min(self._failures + 1, self._trip_after)
        self._on_trial = False
        if self._failures == self._trip_after:
            self._rests_until = now + self._rest_s

    def gave_up(self) -> None:
        """The order ended for a reason that says nothing about the KMS."""
        self._on_trial = False
