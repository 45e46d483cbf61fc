"""The bounds of one blob: N58, N84 and the open-by of 6.4 (3)."""

from dataclasses import replace

import pytest
from support.placement_rows import BOOT, LEASE, NOW, OTHER_BOOT, owned

from trustauthority.errors import TrustAuthorityError
from trustauthority.keyrelease.decide import (
    CLOCK_MAX,
    QuoteTime,
    release,
)
from trustauthority.model.placement import Grant, KeyState


def grant() -> Grant:
    found = owned().grant
    assert found is not None
    return found


QUOTE = QuoteTime(boot=BOOT, clock_ms=500_000, received_ms=NOW - 10_000)


def plan(**changes):
    good = {"key_state": KeyState.ACTIVE, "key_epoch": 1, "quote": QUOTE, "now_ms": NOW}
    return release(grant(), **{**good, **changes})


class TestRelease:
    def test_open_by_is_the_lease_end(self) -> None:
        """A short lease bounds the blob; T is the same moment by the TPM's clock."""
        bounds = plan()
        assert bounds.open_by_ms == NOW + LEASE
        assert bounds.clock_limit_ms == 500_000 + 10_000 + LEASE

    def test_open_by_is_two_minutes(self) -> None:
        """A long lease does not make the blob a cache."""
        long = replace(grant(), lease_until_ms=NOW + 10**9)
        bounds = release(long, key_state=KeyState.ACTIVE, key_epoch=1, quote=QUOTE, now_ms=NOW)
        assert bounds.open_by_ms == NOW + 120_000

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"key_epoch": 2}, "KEY_NOT_PERMITTED"),
            ({"quote": replace(QUOTE, boot=OTHER_BOOT)}, "FENCED"),
            ({"quote": replace(QUOTE, received_ms=NOW - 60_001)}, "QUOTE_TOO_OLD"),
            ({"quote": replace(QUOTE, received_ms=NOW + 1)}, "QUOTE_TOO_OLD"),
            ({"now_ms": NOW + LEASE}, "FENCED"),
            ({"quote": replace(QUOTE, clock_ms=CLOCK_MAX)}, "HOST_NOT_ATTESTED"),
            ({"quote": replace(QUOTE, clock_ms=CLOCK_MAX - LEASE)}, "HOST_NOT_ATTESTED"),
            ({"quote": replace(QUOTE, clock_ms=-1)}, "HOST_NOT_ATTESTED"),
        ],
    )
    def test_refused(self, changes, told) -> None:
        """Another key, another boot, an old quote, a late release, a wrapping clock (N84)."""
        with pytest.raises(TrustAuthorityError) as refusal:
            plan(**changes)
        assert refusal.value.reason == told

    def test_clock_near_its_end(self) -> None:
        """The last T that exists is still allowed, unsigned (N84)."""
        last = CLOCK_MAX - 10_000 - LEASE
        assert plan(quote=replace(QUOTE, clock_ms=last)).clock_limit_ms == CLOCK_MAX

    @pytest.mark.parametrize("key_state", [s for s in KeyState if s is not KeyState.ACTIVE])
    def test_only_active_keys(self, key_state) -> None:
        """Suspended, deactivated, compromised or destroyed: denied (N58)."""
        with pytest.raises(TrustAuthorityError) as refusal:
            plan(key_state=key_state)
        assert refusal.value.reason == "KEY_NOT_PERMITTED"
