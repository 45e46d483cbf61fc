"""Hosts that keep what they have and take nothing: drained, or with warnings where policy says so."""

from dataclasses import replace

import pytest
from support.placement_rows import (
    CLUSTER,
    NOW,
    VM,
    A,
    B,
    accepted,
    ask,
    confirmation,
    handover,
    host,
    offer,
    owned,
    preparation,
    reason,
    refused,
    renewal,
    state,
    vm,
)

from trustauthority.model.placement import ClusterRecord
from trustauthority.model.verdict import Check, CheckState
from trustauthority.placement import authority
from trustauthority.placement.decide import PlacementQuestion, place

CHOOSY = ClusterRecord(cluster_id=CLUSTER, policy_epoch=7, warned_hosts_take=False)


def offered():
    """A offered the VM to B; the rows are those of B's preparation."""
    rows = accepted(authority.offer(owned(), offer(6), NOW))
    return replace(rows, host=host(B), grant=None)


class TestDraining:
    def test_starts_nothing(self) -> None:
        """A drained host gets no grant, not even for what it ran last (6.3)."""
        rows = state(host=host(draining=True))
        done = authority.grant(rows, ask(), NOW)
        assert refused(rows, done) == ["host-not-draining"]
        assert reason(done) == "KEY_NOT_PERMITTED"

    def test_prepares_nothing(self) -> None:
        """A move to a drained host is refused before a key leaves."""
        rows = replace(offered(), host=host(B, draining=True))
        assert refused(rows, authority.prepare(rows, preparation(), NOW)) == ["host-not-draining"]

    def test_goes_on(self) -> None:
        """What it runs goes on and may leave: renewal, offer and give-back are not touched."""
        rows = replace(owned(), host=host(draining=True))
        accepted(authority.renew(rows, renewal(6), NOW + 1))
        accepted(authority.offer(rows, offer(6), NOW + 1))

    def test_a_prepared_move_ends(self) -> None:
        """Drained after the preparation: the switch still succeeds, or the VM would be lost."""
        rows = accepted(authority.prepare(offered(), preparation(), NOW))
        rows = accepted(authority.confirm(rows, confirmation(B, "p1"), NOW))
        drained = replace(rows, host=replace(rows.host, draining=True))
        assert accepted(authority.switch(drained, handover(), NOW)).vm.owner == B

    def test_advice_says_no(self) -> None:
        """The check names it, so that no scheduler sends a VM there."""
        advice = place(PlacementQuestion(vm_id=VM, host_id=A), state(host=host(draining=True)), NOW)
        assert [each.rule for each in advice.unmet] == ["host-not-draining"]


class TestWarned:
    @pytest.mark.parametrize(
        ("warned", "cluster", "taken"),
        [
            (True, CHOOSY, False),
            (False, CHOOSY, True),
            (True, replace(CHOOSY, warned_hosts_take=True), True),
        ],
    )
    def test_takes_by_policy(self, warned, cluster, taken) -> None:
        """A VM that another host ran last is taken with warnings only where policy lets it."""
        rows = state(host=host(B, warned=warned), cluster=cluster, vm=vm(any_host_of_cluster=True))
        done = authority.grant(rows, ask(B), NOW)
        assert isinstance(done[1], authority.Accepted) is taken
        if not taken:
            assert refused(rows, done) == ["host-not-warned"]

    def test_keeps_its_own(self) -> None:
        """It starts again what it ran last, and renews."""
        accepted(authority.grant(state(host=host(warned=True), cluster=CHOOSY), ask(), NOW))
        rows = replace(owned(), host=host(warned=True), cluster=CHOOSY)
        accepted(authority.renew(rows, renewal(6), NOW + 1))

    def test_gives_away(self) -> None:
        """It may send its VMs to others."""
        rows = replace(owned(), host=host(warned=True), cluster=CHOOSY)
        accepted(authority.offer(rows, offer(6), NOW))

    def test_receives_none(self) -> None:
        """A move to it is refused before a key leaves."""
        rows = replace(offered(), host=host(B, warned=True), cluster=CHOOSY)
        assert refused(rows, authority.prepare(rows, preparation(), NOW)) == ["host-not-warned"]


def check(state_: CheckState, *children: Check) -> Check:
    return Check(id="x", title="x", state=state_, children=children)


class TestVerdictWarns:
    @pytest.mark.parametrize(
        ("passed", "checks", "warned"),
        [
            (True, (check(CheckState.PASSED),), False),
            (True, (check(CheckState.PASSED), check(CheckState.WARNING)), True),
            (True, (check(CheckState.PASSED, check(CheckState.WARNING)),), True),
            (True, (check(CheckState.SKIPPED),), False),
            (False, (check(CheckState.WARNING), check(CheckState.FAILED)), False),
        ],
    )
    def test_any_leaf(self, passed, checks, warned) -> None:
        """A warning anywhere in the tree of a passed verdict counts; a failed one is no warning."""
        from trustauthority.model.verdict import Verdict

        verdict = Verdict(
            host_id=A,
            cluster=CLUSTER,
            passed=passed,
            checks=checks,
            policy="p",
            policy_sha256="0" * 64,
            policy_epoch=1,
            baseline="",
            decided_at_ms=NOW,
            attested_until_ms=NOW,
        )
        assert verdict.warned is warned
