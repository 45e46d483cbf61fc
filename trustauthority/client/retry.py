"""Ask again when there was no answer, but only for calls that change nothing.

Stage: client. Guarantees that a call is made at most ``ATTEMPTS`` times and not after its deadline,
with back-off and jitter, or after the delay that the server asked for. Does not repeat a change:
whether it happened is unknown, and only its author can decide.
"""

from collections.abc import Callable
from typing import TypeVar

import stamina

from trustauthority import errors
from trustauthority.client.errors import ClientError
from trustauthority.client.reasons import UNAVAILABLE

ATTEMPTS = 3
"""Enough for a node that restarts behind a load balancer; a person is waiting."""
LONGEST_DELAY_S = 2.0
"""Seconds: a server that asks for more gets no second try now, the person is told instead."""
RETRIED_REASONS = frozenset(
    {UNAVAILABLE, errors.StoreUnavailable.reason, errors.DependencyUnavailable.reason}
)

T = TypeVar("T")


def retrying(call: Callable[[], T], *, timeout_s: float) -> T:
    """Return what ``call`` returns, trying again on ClientErrors that a moment may heal."""
    stamina.instrumentation.set_on_retry_hooks(())  # its default would log to the data stream
    for attempt in stamina.retry_context(
        on=_worth_another_try,
        attempts=ATTEMPTS,
        timeout=timeout_s,
        wait_initial=0.1,
        wait_max=LONGEST_DELAY_S,
        wait_jitter=0.2,
    ):
        with attempt:
            return call()
    raise AssertionError("stamina re-raises the last error")  # pragma: no cover


def _worth_another_try(error: Exception) -> bool | float:
    if not isinstance(error, ClientError) or error.reason not in RETRIED_REASONS:
        return False
    if error.retry_after_s is None:
        return True
    return error.retry_after_s if 0 < error.retry_after_s <= LONGEST_DELAY_S else False
