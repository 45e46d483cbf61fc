"""Shared secrets: several hosts hold one, each attested and under a lease; VMs are unaffected."""

from dataclasses import replace
from typing import Any

import pytest
from support.placement_rows import (
    LEASE,
    NOW,
    VM,
    A,
    B,
    accepted,
    ask,
    confirmation,
    host,
    intent,
    offer,
    refused,
    renewal,
    request_id,
    state,
    vm,
)

from trustauthority.model.placement import PlacementState, Purpose, Sharing
from trustauthority.model.requests import (
    BreakGlassRequest,
    PrepareRequest,
    RevokeRequest,
    ShareRequest,
)
from trustauthority.placement.authority import confirm, decide, grant, renew, revoke
from trustauthority.placement.authority import offer as offer_vm


def share(host_id: str = A, text: str = "r1") -> ShareRequest:
    return ShareRequest(request_id=request_id(text), vm_id=VM, host_id=host_id)


def shared(**changes: Any) -> PlacementState:
    rows = {"sharing": Sharing.SHARED, "any_host_of_cluster": True, "last_owner": None}
    return state(vm=vm(**{**rows, **changes}))


class TestShared:
    def test_two_hosts_hold_it(self) -> None:
        """Several hosts may hold a shared secret, and none of them owns it."""
        first = accepted(decide(shared(), share(), NOW))
        assert first.grant is not None
        assert first.grant.purpose is Purpose.SHARE
        assert first.grant.lease_until_ms == NOW + LEASE
        assert first.vm == shared().vm
        other = replace(first, host=host(B), grant=None)
        second = accepted(decide(other, share(B, "r2"), NOW))
        assert second.vm == shared().vm
        for rows, asker, text in ((first, A, "r1"), (second, B, "r2")):
            released = accepted(confirm(rows, confirmation(asker, text), NOW))
            assert released.grant is not None
            assert released.grant.phase == "released"

    @pytest.mark.parametrize(
        ("spoil", "rule"),
        [
            ({"attested_until_ms": NOW}, "attested-now"),
            ({"revoked": True}, "host-not-revoked"),
            ({"verdict_policy_epoch": 1}, "policy-epoch-current"),
            ({"verdict_global_epoch": 1}, "global-epoch-current"),
            ({"admitted": False}, "host-admitted"),
            ({"cluster_id": "lab"}, "vm-of-cluster"),
            ({"new_grants": 10**6}, "new-grants-cap"),
        ],
    )
    def test_each_holder_has_standing(self, spoil, rule) -> None:
        """S1: shared is not open: every release asks for the whole standing of its host."""
        rows = replace(shared(), host=host(**spoil))
        assert rule in refused(rows, decide(rows, share(), NOW))

    def test_each_holder_has_a_reason(self) -> None:
        """N73: being attested is no reason here either; an intent serves once."""
        rows = shared(any_host_of_cluster=False)
        assert refused(rows, decide(rows, share(), NOW)) == ["reason"]
        wanted = replace(rows, intent=intent(A))
        after = accepted(decide(wanted, share(), NOW))
        assert after.intent is not None
        assert after.intent.used_by == request_id()

    def test_a_revocation_between_the_transactions(self) -> None:
        """S7, N90: no shared secret leaves after an acknowledged revocation, nor after its lease."""
        after = accepted(decide(shared(), share(), NOW))
        gone, _ = revoke(after, RevokeRequest(host_id=A), NOW)
        assert "host-not-revoked" in refused(gone, confirm(gone, confirmation(), NOW))
        assert "grant-in-time" in refused(after, confirm(after, confirmation(), NOW + LEASE))

    def test_nobody_owns_it(self) -> None:
        """It can't be run, renewed, offered, prepared or had by break-glass."""
        rows = shared(owner=A, owner_boot=host().boot)
        prepare = PrepareRequest(
            request_id=request_id("p"), move_id=request_id("m1"), vm_id=VM, host_id=A
        )
        glass = BreakGlassRequest(request_id=request_id("b"), vm_id=VM, host_id=A)
        tries = [
            grant(rows, ask(), NOW),
            renew(rows, renewal(5), NOW),
            offer_vm(rows, offer(5), NOW),
            decide(rows, prepare, NOW),
            decide(rows, glass, NOW),
        ]
        for done in tries:
            assert "vm-exclusive" in refused(rows, done)


class TestExclusive:
    def test_it_is_never_shared(self) -> None:
        """S2: asking for a VM as for a shared secret gets nothing, also from its owner."""
        for rows in (
            state(),
            state(vm=vm(any_host_of_cluster=True)),
            state(vm=vm(owner=A, owner_boot=host().boot)),
        ):
            assert "vm-shared" in refused(rows, decide(rows, share(), NOW))

    def test_no_grant_of_a_vm_is_confirmed_as_shared(self) -> None:
        """S2: the purpose of a row alone releases nothing: the VM must be shared, too."""
        granted = accepted(grant(state(), ask(), NOW))
        assert granted.grant is not None
        forged = replace(
            granted,
            grant=replace(granted.grant, purpose=Purpose.SHARE),
            vm=vm(owner=B, grant_epoch=9),
        )
        assert "grant-still-held" in refused(forged, confirm(forged, confirmation(), NOW))
