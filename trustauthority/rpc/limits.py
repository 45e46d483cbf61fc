"""Rate limits per peer address, for calls that cost before anybody is known (N43)."""

from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from trustauthority.errors import RateLimited


class PeerLimits:
    """Moving windows in memory: a restart forgets them, which costs nothing but a second."""

    def __init__(self, *, enrolment_per_second: int = 20, calls_per_second: int = 500) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._enrolment = RateLimitItemPerSecond(enrolment_per_second)
        self._calls = RateLimitItemPerSecond(calls_per_second)

    def check(self, peer: str, method: str) -> None:
        """Count a call.

        Raises:
            RateLimited: too many of this kind from this address.
        """
        enrolling = "EnrolmentService/" in method
        limit, kind = (self._enrolment, "enrol") if enrolling else (self._calls, "call")
        if not self._limiter.hit(limit, kind, peer):
            raise RateLimited("too many calls from this address; wait a second", retryAfterMs=1000)
