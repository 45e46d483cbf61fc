"""Break-glass: the verdict is passed by, and nothing else is (issue 5, slice c)."""

from dataclasses import replace
from typing import Any

import pytest
from support.placement_rows import (
    BOOT,
    FENCE,
    LEASE,
    NOW,
    OTHER_BOOT,
    SKEW,
    VM,
    A,
    B,
    accepted,
    host,
    intent,
    reason,
    refused,
    request_id,
    return_of,
    state,
    vm,
)

from trustauthority.model.placement import BreakGlass, PlacementState, Sharing
from trustauthority.model.requests import (
    BreakGlassConfirmRequest,
    BreakGlassRenewRequest,
    BreakGlassRequest,
    ConfirmRequest,
    GrantRequest,
    RenewRequest,
    RevokeRequest,
)
from trustauthority.placement.authority import decide, give_back, revoke

ASK = BreakGlassRequest(request_id=request_id(), vm_id=VM, host_id=A)
CONFIRM = BreakGlassConfirmRequest(
    request_id=request_id(), vm_id=VM, host_id=A, response_hash=bytes(32)
)
BOX = 2_000
"""How long the break-glass of these tests is open: shorter than a lease."""


def glass(**changes: Any) -> BreakGlass:
    good = BreakGlass(glass_id=request_id("g"), vm_id=VM, host_id=A, expires_ms=NOW + BOX)
    return replace(good, **changes)


def failed(**changes: Any) -> PlacementState:
    """Host A is ours and quoted a moment ago, but its verdict is FAILED; a break-glass is open."""
    good = {
        "host": host(attested_until_ms=0, challenged_at_ms=NOW - 1_000),
        "vm": vm(last_owner=None),
        "glass": glass(),
    }
    return state(**{**good, **changes})


def used() -> PlacementState:
    return accepted(decide(failed(), ASK, NOW))


def renewal(epoch: int) -> BreakGlassRenewRequest:
    return BreakGlassRenewRequest(
        request_id=request_id("n1"), vm_id=VM, host_id=A, grant_epoch=epoch
    )


class TestLetsThrough:
    def test_once_until_it_expires(self) -> None:
        """One host, one VM, once: the lease and so the VM end with the break-glass."""
        after = used()
        assert after.vm is not None
        assert after.glass is not None
        assert after.grant is not None
        assert (after.vm.owner, after.vm.grant_epoch) == (A, 6)
        assert after.vm.lease_until_ms == after.grant.lease_until_ms == NOW + BOX
        assert after.vm.fence_until_ms == NOW + BOX + SKEW
        assert (after.glass.used_by, after.glass.grant_epoch) == (ASK.request_id, 6)
        released = accepted(decide(after, CONFIRM, NOW + 1))
        assert released.grant is not None
        assert released.grant.phase == "released"

    def test_a_long_one_gives_no_longer_lease_than_the_vm_has(self) -> None:
        """I-B: leases are renewed, however long the break-glass is."""
        after = accepted(decide(failed(glass=glass(expires_ms=NOW + 10**9)), ASK, NOW))
        assert after.vm is not None
        assert after.vm.lease_until_ms == NOW + LEASE
        assert after.vm.fence_until_ms == NOW + FENCE
        renewed = accepted(decide(after, renewal(6), NOW + 1_000))
        assert renewed.vm is not None
        assert renewed.vm.lease_until_ms == NOW + 1_000 + LEASE

    def test_an_unlimited_lease_ends_with_it_too(self) -> None:
        """Time-boxed: a VM whose lease never ends has one that does under a break-glass."""
        after = accepted(decide(failed(vm=vm(lease_ms=2**53)), ASK, NOW))
        assert after.vm is not None
        assert after.vm.lease_until_ms == NOW + BOX

    def test_under_a_policy_that_changed_since(self) -> None:
        """The policy is what broke: its epoch is not asked for."""
        stale = host(attested_until_ms=0, verdict_policy_epoch=1, challenged_at_ms=NOW)
        assert accepted(decide(failed(host=stale), ASK, NOW)).grant is not None

    def test_a_retry_gets_the_same_grant(self) -> None:
        """N27: the reply was lost; the same id gets the same epoch."""
        again = accepted(decide(used(), ASK, NOW + 1))
        assert again.vm == used().vm
        assert again.grant is not None
        assert again.grant.replays == 1

    def test_renewals_end_with_it(self) -> None:
        """Time-boxed: a renewal never reaches beyond the break-glass, and ends with it."""
        after = used()
        renewed = accepted(decide(after, renewal(6), NOW + 1_000))
        assert renewed.vm is not None
        assert renewed.vm.lease_until_ms == NOW + BOX
        assert refused(after, decide(after, renewal(6), NOW + BOX)) == ["break-glass-open"]


def spoiled(which: str, **changes: Any) -> PlacementState:
    rows = failed()
    return replace(rows, **{which: replace(getattr(rows, which), **changes)})


REFUSALS = {
    "expired": (spoiled("glass", expires_ms=NOW), "break-glass-open"),
    "closed": (spoiled("glass", closed_at_ms=NOW - 1), "break-glass-open"),
    "another host": (spoiled("glass", host_id=B), "break-glass-open"),
    "another vm": (spoiled("glass", vm_id="db-2"), "break-glass-open"),
    "none at all": (failed(glass=None), "break-glass-open"),
    "used": (spoiled("glass", used_by=request_id("r0")), "break-glass-unused"),
    "revoked host": (spoiled("host", revoked=True), "host-not-revoked"),
    "revoked and back without a quote": (spoiled("host", trust_epoch=5), "trust-epoch-current"),
    "every host revoked": (spoiled("host", verdict_global_epoch=1), "global-epoch-current"),
    "not admitted": (spoiled("host", admitted=False), "host-admitted"),
    "cluster by vendor": (spoiled("cluster", may_hold_keys=False), "host-admitted"),
    "not enrolled": (failed(host=None), "host-admitted"),
    "never quoted": (spoiled("host", challenged_at_ms=0), "quoted-lately"),
    "quote too old": (spoiled("host", challenged_at_ms=NOW - 60_001), "quoted-lately"),
    "older than an administrator accepts": (
        spoiled("host", no_report_before_ms=NOW),
        "quote-new-enough",
    ),
    "held elsewhere": (
        spoiled("vm", owner=B, fence_until_ms=NOW + 1, lease_until_ms=NOW + 1),
        "clear-of-others",
    ),
    "fence of another not passed": (spoiled("vm", fence_until_ms=NOW + 1), "clear-of-others"),
    "vm of another cluster": (spoiled("vm", cluster_id="lab"), "vm-of-cluster"),
    "vm retired": (spoiled("vm", state="retired"), "vm-protected"),
    "key suspended": (spoiled("vm", key_state="suspended"), "key-active"),
    "shared secret": (spoiled("vm", sharing=Sharing.SHARED), "vm-exclusive"),
    "clock behind": (spoiled("authority", high_water_ms=NOW + 1), "clock-forward"),
    "cap on live grants": (spoiled("host", live_grants=10**6), "live-grants-cap"),
    "cap on new grants": (spoiled("host", new_grants=10**6), "new-grants-cap"),
}


class TestLetsNothingElseThrough:
    @pytest.mark.parametrize("case", REFUSALS)
    def test_refused(self, case) -> None:
        """Expired, other host, other VM, revoked, used, held elsewhere, no fresh quote: no key."""
        rows, rule = REFUSALS[case]
        assert rule in refused(rows, decide(rows, ASK, NOW))

    def test_a_second_request_gets_nothing(self) -> None:
        """Single use: another request id is refused, by break-glass and by the ordinary way."""
        after = replace(used(), grant=None)
        again = replace(ASK, request_id=request_id("r2"))
        assert refused(after, decide(after, again, NOW + 1)) == ["break-glass-unused"]
        ordinary = GrantRequest(request_id=request_id("r3"), vm_id=VM, host_id=A)
        assert "attested-now" in refused(after, decide(after, ordinary, NOW + 1))

    def test_another_host_gets_nothing_by_it(self) -> None:
        """The asker is the authenticated caller, whatever row was read."""
        rows = failed(host=host(B, attested_until_ms=0, challenged_at_ms=NOW))
        asked = replace(ASK, host_id=B)
        assert "break-glass-open" in refused(rows, decide(rows, asked, NOW))

    def test_the_ordinary_way_stays_closed(self) -> None:
        """An open break-glass changes no ordinary decision."""
        rows = failed(intent=intent(A))
        ordinary = GrantRequest(request_id=request_id(), vm_id=VM, host_id=A)
        assert "attested-now" in refused(rows, decide(rows, ordinary, NOW))
        after = used()
        confirm = ConfirmRequest(
            request_id=ASK.request_id, vm_id=VM, host_id=A, response_hash=bytes(32)
        )
        assert "attested-now" in refused(after, decide(after, confirm, NOW))
        renew = RenewRequest(request_id=request_id("n"), vm_id=VM, host_id=A, grant_epoch=6)
        assert "attested-now" in refused(after, decide(after, renew, NOW))

    @pytest.mark.parametrize(
        ("changes", "rule"),
        [
            ({"closed_at_ms": NOW}, "break-glass-open"),
            ({"expires_ms": NOW}, "break-glass-open"),
            ({"used_by": request_id("r0")}, "break-glass-of-grant"),
        ],
    )
    def test_no_key_leaves_after_it_is_over(self, changes, rule) -> None:
        """N90, S7: closed or expired between the two transactions: transaction 2 refuses."""
        after = used()
        assert after.glass is not None
        over = replace(after, glass=replace(after.glass, **changes))
        for request in (CONFIRM, ASK):
            assert rule in refused(over, decide(over, request, NOW))

    def test_no_key_leaves_after_a_revocation(self) -> None:
        """S7: break-glass never helps a revoked host, also between the transactions."""
        after = used()
        gone, _ = revoke(after, RevokeRequest(host_id=A), NOW)
        for request in (CONFIRM, ASK, renewal(6)):
            assert "host-not-revoked" in refused(gone, decide(gone, request, NOW))
        assert reason(decide(gone, CONFIRM, NOW)) == "HOST_REVOKED"

    @pytest.mark.parametrize(
        ("rows", "rule"),
        [
            ({"boot": OTHER_BOOT}, "same-boot"),
            ({"revoked": True}, "host-not-revoked"),
            ({"trust_epoch": 5}, "trust-epoch-current"),
        ],
    )
    def test_renewal_of_a_host_that_changed(self, rows, rule) -> None:
        """A rebooted host needs another break-glass; a revoked one gets none."""
        after = used()
        assert after.host is not None
        assert after.host.boot == BOOT
        changed = replace(after, host=replace(after.host, **rows))
        assert rule in refused(changed, decide(changed, renewal(6), NOW))

    def test_renewal_under_another_epoch(self) -> None:
        """What the host got by another grant is not renewed by break-glass."""
        after = used()
        assert "break-glass-of-epoch" in refused(after, decide(after, renewal(5), NOW))
        assert after.vm is not None
        later = replace(after, vm=replace(after.vm, grant_epoch=7))
        assert "break-glass-of-epoch" in refused(later, decide(later, renewal(7), NOW))

    def test_given_back_is_given_back(self) -> None:
        """The grant is an ordinary one in everything else: giving back frees the VM at once."""
        after = accepted(give_back(replace(used(), grant=None), return_of(6), NOW))
        assert after.vm is not None
        assert (after.vm.owner, after.vm.fence_until_ms) == (None, 0)
        assert "asker-owns" in refused(after, decide(after, renewal(6), NOW))
