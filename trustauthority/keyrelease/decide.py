"""Until when one released blob may open.

What it is: the arithmetic of open-by and T between the two transactions of
a release. What it trusts: rows that transaction 1 returned. What it guarantees: no plan for a key
that is not active, for another boot, from an old quote, or past the lease; T never wraps around.
What it does not do: decide who holds the VM (``placement.authority``), or wrap (``wrap``).
Source: design 6.4 (2)-(3); promises N58, N84. States: ``keyrelease.states``.
"""

from dataclasses import dataclass

from trustauthority.errors import (
    Fenced,
    HostNotAttested,
    KeyNotPermitted,
    QuoteTooOld,
)
from trustauthority.keyrelease.states import may_release
from trustauthority.model.placement import Grant, KeyState

CLOCK_MAX = 2**64 - 1
"""Largest TPM clock, milliseconds, unsigned."""
OPEN_BY_MS = 120_000
"""A blob is a way in, not a cache: it opens for at most this long after its release."""
QUOTE_AGE_MS = 60_000
"""A quote older than this does not tell the TPM's clock well enough to bound a blob with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteTime:
    """What the newest quote of a host said about its TPM's clock."""

    boot: bytes
    """resetCount and restartCount, 8 bytes big-endian."""
    clock_ms: int
    """TPMS_CLOCK_INFO.clock, unsigned 64 bit."""
    received_ms: int
    """The store's time at which it arrived."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasePlan:
    """The bounds that go into one KeyGrant."""

    open_by_ms: int
    """Store time after which nobody may open the blob."""
    clock_limit_ms: int
    """T: the same bound by the host's TPM clock, unsigned 64 bit."""
    boot: bytes


def release(
    grant: Grant,
    *,
    key_state: KeyState,
    key_epoch: int,
    quote: QuoteTime,
    now_ms: int,
    open_by_limit_ms: int = OPEN_BY_MS,
    quote_age_limit_ms: int = QUOTE_AGE_MS,
) -> ReleasePlan:
    """Bound what is released under a grant that transaction 1 authorised.

    This narrows only: transaction 2 decides again, by a write, before the answer leaves.

    Raises:
        KeyNotPermitted: the key is not active or is not the one authorised.
        Fenced: the host was reset, or the lease ended.
        QuoteTooOld: the newest quote is too old, or from the future.
        HostNotAttested: the TPM's clock is at its end.
    """
    # (1) the key itself
    if not may_release(key_state) or grant.key_epoch != key_epoch:
        raise KeyNotPermitted("the VM's key is not active")
    # (2) the same boot as when it was authorised
    if quote.boot != grant.boot:
        raise Fenced("the host was reset since it asked")
    # (3) a quote young enough to tell the TPM's clock
    if not 0 <= now_ms - quote.received_ms <= quote_age_limit_ms:
        raise QuoteTooOld("the host's newest quote is too old; attest and repeat")
    # (4) a blob that opens now and not after the lease
    open_by = min(grant.lease_until_ms, now_ms + open_by_limit_ms)
    if open_by <= now_ms:
        raise Fenced("the grant's lease ended before the key was released")
    # (5) T, which must exist in 64 bits (N84)
    clock_limit = quote.clock_ms + (open_by - quote.received_ms)
    if not 0 <= quote.clock_ms < clock_limit <= CLOCK_MAX:
        raise HostNotAttested("the TPM's clock is at its end")
    return ReleasePlan(open_by_ms=open_by, clock_limit_ms=clock_limit, boot=grant.boot)
