"""Grant, release, renewal, giving back: each refusal by name, and what may not change."""

from dataclasses import replace

import pytest
from support.placement_rows import (
    BOOT,
    FENCE,
    LEASE,
    NOW,
    OTHER_BOOT,
    VM,
    A,
    B,
    accepted,
    ask,
    confirmation,
    host,
    intent,
    owned,
    reason,
    refused,
    renewal,
    request_id,
    return_of,
    state,
    vm,
)

from trustauthority.model.identifiers import ClusterId
from trustauthority.model.placement import (
    AuthorityRecord,
    ClusterRecord,
    GrantPhase,
    KeyState,
    Purpose,
    VmState,
)
from trustauthority.model.requests import FailRequest, RevokeAllRequest, RevokeRequest
from trustauthority.placement import authority


def row(record: str, **changes: object) -> dict[str, object]:
    """One changed row of the good state."""
    return {record: replace(getattr(state(), record), **changes)}


SPOILED = [
    ("clock-forward", "DEPENDENCY_UNAVAILABLE", row("authority", high_water_ms=NOW + 1)),
    ("host-admitted", "HOST_NOT_ADMITTED", row("host", admitted=False)),
    ("host-admitted", "HOST_NOT_ADMITTED", row("cluster", may_hold_keys=False)),
    ("host-not-revoked", "HOST_REVOKED", row("host", revoked=True)),
    ("global-epoch-current", "HOST_REVOKED", row("authority", global_epoch=3)),
    ("trust-epoch-current", "HOST_NOT_ATTESTED", row("host", trust_epoch=5)),
    ("policy-epoch-current", "HOST_NOT_ATTESTED", row("cluster", policy_epoch=8)),
    ("attested-now", "HOST_NOT_ATTESTED", row("host", attested_until_ms=NOW)),
    ("attested-now", "HOST_NOT_ATTESTED", row("host", attested_until_ms=0)),
    ("evidence-new-enough", "HOST_NOT_ATTESTED", row("host", no_report_before_ms=NOW)),
    ("evidence-new-enough", "HOST_NOT_ATTESTED", row("authority", no_report_before_ms=NOW)),
    ("vm-of-cluster", "KEY_NOT_PERMITTED", row("vm", cluster_id=ClusterId("other"))),
    ("vm-protected", "KEY_NOT_PERMITTED", row("vm", state=VmState.RETIRED)),
    ("reason", "KEY_NOT_PERMITTED", row("vm", last_owner=B)),
    ("reason", "KEY_NOT_PERMITTED", row("vm", last_owner=None)),
    ("clear-of-others", "GRANT_HELD_ELSEWHERE", row("vm", owner=B, fence_until_ms=NOW + 1)),
    ("live-grants-cap", "KEY_NOT_PERMITTED", row("host", live_grants=1_000)),
    ("new-grants-cap", "RATE_LIMITED", row("host", new_grants=100)),
]
NOT_ACTIVE = [each for each in KeyState if each is not KeyState.ACTIVE]
STANDING_RULES = 11
"""How many of SPOILED concern the host alone."""


class TestGrant:
    def test_yes(self) -> None:
        """An attested last owner gets the next epoch, a lease and a fence (I-A, S3)."""
        after = accepted(authority.grant(state(), ask(), NOW))
        assert after.vm is not None
        assert (after.vm.owner, after.vm.grant_epoch) == (A, 6)
        assert after.vm.lease_until_ms == NOW + LEASE
        assert after.vm.fence_until_ms == NOW + FENCE
        assert after.vm.owner_boot == BOOT
        assert after.grant is not None
        assert (after.grant.phase, after.grant.purpose) == (GrantPhase.AUTHORISED, Purpose.RUN)
        assert (after.grant.grant_epoch, after.grant.request_id) == (6, request_id())

    @pytest.mark.parametrize(("rule", "told", "changes"), SPOILED)
    def test_each_rule_refuses_alone(self, rule, told, changes) -> None:
        """Each precondition by itself stops a grant and changes nothing (N73, N76, N89, S1)."""
        spoiled = state(**changes)
        done = authority.grant(spoiled, ask(), NOW)
        assert refused(spoiled, done) == [rule]
        assert reason(done) == told

    @pytest.mark.parametrize("key_state", NOT_ACTIVE)
    def test_key_that_is_not_active(self, key_state) -> None:
        """Suspended, deactivated, compromised, destroyed: no release (N58)."""
        spoiled = state(vm=vm(key_state=key_state))
        assert refused(spoiled, authority.grant(spoiled, ask(), NOW)) == ["key-active"]

    def test_unknown_vm_and_forbidden_vm_look_alike(self) -> None:
        """A host can't find out which VMs exist (N73)."""
        unknown = authority.grant(state(vm=None), ask(), NOW)
        forbidden = authority.grant(state(vm=vm(last_owner=B)), ask(), NOW)
        assert reason(unknown) == reason(forbidden) == "KEY_NOT_PERMITTED"

    def test_unknown_host(self) -> None:
        """No row of the host: nothing (fail closed)."""
        spoiled = state(host=None)
        assert "host-admitted" in refused(spoiled, authority.grant(spoiled, ask(), NOW))

    def test_second_host_is_held_off(self) -> None:
        """One grant per VM, whoever asks when (N48, S2)."""
        held = replace(owned(), host=host(B), grant=None, intent=intent())
        done = authority.grant(held, ask(B, "r2"), NOW + FENCE - 1)
        assert refused(held, done) == ["clear-of-others"]

    def test_second_host_after_the_fence(self) -> None:
        """The stored fence, not the lease, lets the next owner in (6.4 (4))."""
        held = replace(owned(), host=host(B), grant=None, intent=intent())
        after = accepted(authority.grant(held, ask(B, "r2"), NOW + FENCE))
        assert after.vm is not None
        assert (after.vm.owner, after.vm.grant_epoch) == (B, 7)

    def test_sixteen_race(self) -> None:
        """Whatever the order, sixteen asks of two hosts give one of them the VM (N48)."""
        rows = state(vm=vm(any_host_of_cluster=True, last_owner=None))
        owners = set()
        for number in range(16):
            asker = (A, B)[number % 2]
            joined = replace(rows, host=host(asker), grant=None)
            rows, _ = authority.grant(joined, ask(asker, f"r{number}"), NOW)
            assert rows.vm is not None
            owners.add(rows.vm.owner)
        assert owners == {A}

    def test_hold_after_a_clock_step(self) -> None:
        """A fence does not count as passed while owners are held (N86)."""
        held = replace(
            owned(),
            host=host(B),
            grant=None,
            intent=intent(expires_ms=NOW + 10 * FENCE),
            authority=AuthorityRecord(global_epoch=2, hold_owners_until_ms=NOW + 2 * FENCE),
        )
        assert refused(held, authority.grant(held, ask(B, "r2"), NOW + FENCE + 1)) == [
            "clear-of-others"
        ]
        accepted(authority.grant(held, ask(B, "r2"), NOW + 2 * FENCE))

    def test_owner_asks_again(self) -> None:
        """The owner's agent lost everything: a new epoch for the same host, at once."""
        again = replace(owned(), grant=None)
        after = accepted(authority.grant(again, ask(A, "r2"), NOW + 1))
        assert after.vm is not None
        assert after.vm.grant_epoch == 7

    def test_fence_never_shrinks(self) -> None:
        """A VM's shorter new terms don't let another in before the old lease is over."""
        before = owned()
        assert before.vm is not None
        shorter = replace(before, grant=None, vm=replace(before.vm, lease_ms=1))
        after = accepted(authority.grant(shorter, ask(A, "r2"), NOW + 1))
        assert after.vm is not None
        assert after.vm.fence_until_ms == NOW + FENCE


class TestIntent:
    def test_is_used_up(self) -> None:
        """An intent is a reason once (6.3)."""
        wished = state(host=host(B), intent=intent())
        after = accepted(authority.grant(wished, ask(B), NOW))
        assert after.intent is not None
        assert after.intent.used_by == request_id()
        again = replace(after, grant=None, vm=vm())
        assert refused(again, authority.grant(again, ask(B, "r2"), NOW)) == ["reason"]

    @pytest.mark.parametrize(
        "changes",
        [{"destination": A}, {"expires_ms": NOW}, {"vm_id": "other"}, {"used_by": "x"}],
    )
    def test_of_something_else(self, changes) -> None:
        """For another host, another VM, expired or used: no reason (N73)."""
        wished = state(host=host(B), intent=intent(**changes))
        assert refused(wished, authority.grant(wished, ask(B), NOW)) == ["reason"]

    def test_is_not_sufficient(self) -> None:
        """A placement caller can't place a VM on a host that is not attested (N47, I-F)."""
        wished = state(host=host(B, attested_until_ms=0), intent=intent())
        assert refused(wished, authority.grant(wished, ask(B), NOW)) == ["attested-now"]


class TestReplay:
    def test_answers_the_same_grant(self) -> None:
        """The same request id never makes a second grant, and it writes (6.4, P4)."""
        before = owned()
        after = accepted(authority.grant(before, ask(), NOW + 1))
        assert after.vm == before.vm
        assert after.grant is not None
        assert after.grant.replays == 1

    def test_of_another_host(self) -> None:
        """A stolen request id gives nothing."""
        before = replace(owned(), host=host(B))
        assert "grant-of-asker" in refused(before, authority.grant(before, ask(B), NOW + 1))

    def test_after_the_lease(self) -> None:
        """A retry that outlived the lease is refused: the host must ask anew (N85)."""
        before = owned()
        assert refused(before, authority.grant(before, ask(), NOW + LEASE)) == ["grant-in-time"]

    def test_after_giving_back(self) -> None:
        """A late duplicate does not bring back what was given back."""
        back = accepted(authority.give_back(owned(), return_of(6), NOW + 1))
        assert refused(back, authority.grant(back, ask(), NOW + 2)) == ["grant-still-held"]


class TestConfirm:
    def authorised(self):
        return accepted(authority.grant(state(), ask(), NOW))

    def test_records_the_release(self) -> None:
        """Transaction 2 writes the response hash before anything leaves (S9, I-D)."""
        after = accepted(authority.confirm(self.authorised(), confirmation(), NOW + 1))
        assert after.grant is not None
        assert (after.grant.phase, after.grant.response_hash) == (GrantPhase.RELEASED, bytes(32))

    def test_revoked_between(self) -> None:
        """The KMS answers after a revocation was acknowledged: nothing leaves (N90, S7)."""
        before = self.authorised()
        revoked = accepted(authority.revoke(before, RevokeRequest(host_id=A), NOW + 1))
        done = authority.confirm(revoked, confirmation(), NOW + 30_000)
        names = refused(revoked, done)
        assert {"host-not-revoked", "grant-epochs-current"} <= set(names)
        assert reason(done) == "HOST_REVOKED"

    def test_revoked_and_attested_again_between(self) -> None:
        """Even a host that is trusted again does not get what was authorised before (N90)."""
        before = self.authorised()
        assert before.host is not None
        newer = replace(before, host=replace(before.host, trust_epoch=5, verdict_trust_epoch=5))
        assert refused(newer, authority.confirm(newer, confirmation(), NOW + 1)) == [
            "grant-epochs-current"
        ]

    def test_all_revoked_between(self) -> None:
        """``revoke all`` stops releases under way (6.6)."""
        before = self.authorised()
        revoked = accepted(authority.revoke_all(before, RevokeAllRequest(), NOW + 1))
        done = authority.confirm(revoked, confirmation(), NOW + 1)
        assert reason(done) == "HOST_REVOKED"

    def test_policy_changed_between(self) -> None:
        """The policy at the commit counts (S1)."""
        before = self.authorised()
        newer = replace(before, cluster=ClusterRecord(cluster_id=before.cluster.cluster_id))
        names = refused(newer, authority.confirm(newer, confirmation(), NOW + 1))
        assert {"policy-epoch-current", "grant-epochs-current"} <= set(names)

    def test_reset_between(self) -> None:
        """A new boot holds nothing of the one before (6.2)."""
        before = self.authorised()
        rebooted = replace(before, host=host(boot=OTHER_BOOT))
        names = refused(rebooted, authority.confirm(rebooted, confirmation(), NOW + 1))
        assert names == ["grant-same-boot"]

    def test_rekeyed_between(self) -> None:
        """The key that was authorised is the one that leaves."""
        before = self.authorised()
        assert before.vm is not None
        rekeyed = replace(before, vm=replace(before.vm, key_epoch=2))
        names = refused(rekeyed, authority.confirm(rekeyed, confirmation(), NOW + 1))
        assert names == ["grant-key-current"]

    def test_too_late(self) -> None:
        """No key leaves after the lease it is for."""
        before = self.authorised()
        assert refused(before, authority.confirm(before, confirmation(), NOW + LEASE)) == [
            "grant-in-time"
        ]

    def test_without_transaction_1(self) -> None:
        """Nothing was authorised, nothing is released (I-D)."""
        names = refused(state(), authority.confirm(state(), confirmation(), NOW))
        assert "grant-of-asker" in names

    def test_failed_then_retried(self) -> None:
        """A dead KMS costs nothing: the same holder may retry or give back at once (6.4 (2))."""
        failure = FailRequest(request_id=request_id(), vm_id=VM, host_id=A)
        failed = accepted(authority.fail(self.authorised(), failure, NOW + 1))
        assert failed.grant is not None
        assert failed.grant.phase is GrantPhase.FAILED
        accepted(authority.grant(failed, ask(), NOW + 2))
        accepted(authority.confirm(failed, confirmation(), NOW + 2))
        back = accepted(authority.give_back(failed, return_of(6), NOW + 2))
        assert back.vm is not None
        assert back.vm.fence_until_ms == 0

    def test_failure_does_not_undo_a_release(self) -> None:
        """A released key stays recorded as released (I-D)."""
        failure = FailRequest(request_id=request_id(), vm_id=VM, host_id=A)
        before = owned()
        assert refused(before, authority.fail(before, failure, NOW)) == ["not-yet-released"]


class TestRenew:
    def test_moves_lease_and_fence(self) -> None:
        """A renewal keeps the epoch and moves both ends."""
        after = accepted(authority.renew(owned(), renewal(6), NOW + 1_000))
        assert after.vm is not None
        assert after.vm.grant_epoch == 6
        assert after.vm.lease_until_ms == NOW + 1_000 + LEASE
        assert after.vm.fence_until_ms == NOW + 1_000 + FENCE

    @pytest.mark.parametrize(("rule", "told", "changes"), SPOILED[:STANDING_RULES])
    def test_needs_standing(self, rule, told, changes) -> None:
        """A host that lost its standing does not get another lease (N55, N89, S7)."""
        spoiled = replace(owned(), **changes)
        done = authority.renew(spoiled, renewal(6), NOW)
        assert refused(spoiled, done) == [rule]
        assert reason(done) == told

    def test_zombie(self) -> None:
        """An old epoch, an old owner, an old boot: FENCED (N52)."""
        assert reason(authority.renew(owned(), renewal(5), NOW)) == "FENCED"
        other = replace(owned(), host=host(B))
        assert reason(authority.renew(other, renewal(6, B), NOW)) == "FENCED"
        rebooted = replace(owned(), host=host(boot=OTHER_BOOT))
        assert reason(authority.renew(rebooted, renewal(6), NOW)) == "FENCED"


class TestGiveBack:
    def test_frees_at_once(self) -> None:
        """Others need not wait for the fence after a give-back (6.4 (6))."""
        back = accepted(authority.give_back(owned(), return_of(6), NOW + 1))
        assert back.vm is not None
        assert (back.vm.owner, back.vm.last_owner, back.vm.grant_epoch) == (None, A, 6)
        wished = replace(back, host=host(B), grant=None, intent=intent())
        after = accepted(authority.grant(wished, ask(B, "r2"), NOW + 1))
        assert after.vm is not None
        assert after.vm.grant_epoch == 7

    def test_again_is_the_same(self) -> None:
        """A retry of a give-back is answered yes and changes nothing."""
        back = accepted(authority.give_back(owned(), return_of(6), NOW + 1))
        assert accepted(authority.give_back(back, return_of(6), NOW + 2)) == back

    def test_late_duplicate(self) -> None:
        """A duplicate of an old give-back can't take away a new grant (N52)."""
        back = accepted(authority.give_back(owned(), return_of(6), NOW + 1))
        new = accepted(authority.grant(replace(back, grant=None), ask(A, "r2"), NOW + 2))
        assert reason(authority.give_back(new, return_of(6), NOW + 3)) == "FENCED"

    def test_by_another(self) -> None:
        """Only the owner gives back."""
        assert reason(authority.give_back(owned(), return_of(6, B), NOW)) == "FENCED"

    def test_needs_no_standing(self) -> None:
        """A revoked host may always let go."""
        revoked = accepted(authority.revoke(owned(), RevokeRequest(host_id=A), NOW))
        accepted(authority.give_back(revoked, return_of(6), NOW + 1))


class TestWhyNot:
    def test_names_everything(self) -> None:
        """Every failed rule is named, the host's first."""
        spoiled = state(host=host(revoked=True), vm=vm(last_owner=B))
        names = [rule.name for rule in authority.why_not(spoiled, ask(), NOW)]
        assert names == ["host-not-revoked", "reason"]

    def test_unexplained_is_still_a_refusal(self) -> None:
        """Rows that changed meanwhile explain nothing; the answer stays no (fail closed)."""
        assert authority.why_not(state(), ask(), NOW) == ()
        assert authority.refusal(()).reason == "DEPENDENCY_UNAVAILABLE"

    def test_retry_after(self) -> None:
        """Who is held off learns for how long at most."""
        held = replace(owned(), host=host(B))
        assert authority.retry_after_ms(held, NOW + 1) == FENCE - 1
        assert authority.retry_after_ms(state(), NOW) is None
        failed = authority.why_not(replace(held, grant=None, intent=intent()), ask(B), NOW)
        told = authority.refusal(failed, retry_after_ms=FENCE)
        assert told.metadata == {"rule": "clear-of-others", "retryAfterMs": str(FENCE)}
