"""Advice: never raises, never says yes where a rule of host or VM says no."""

from dataclasses import replace

import pytest
from support.placement_rows import CLUSTER, NOW, VM, A, B, ask, host, intent, owned, state, vm

from trustauthority.model.placement import UNLIMITED_MS, ClusterRecord
from trustauthority.placement import authority
from trustauthority.placement.authority import Accepted
from trustauthority.placement.condition import Weighed
from trustauthority.placement.decide import STEPS, PlacementQuestion, advise, place
from trustauthority.placement.transitions import GRANT


def question(host_id=A):
    return PlacementQuestion(vm_id=VM, host_id=host_id)


class TestPlace:
    def test_yes(self) -> None:
        """A good host and nothing left to do."""
        advice = place(question(), state(), NOW)
        assert (advice.allowed, advice.grantable_now, advice.unmet) == (True, True, ())

    def test_yes_with_steps(self) -> None:
        """Another owner and no intent are steps for the scheduler, not a no."""
        advice = place(question(B), replace(owned(), host=host(B)), NOW)
        assert advice.allowed
        assert not advice.grantable_now
        assert [step.rule for step in advice.steps] == ["reason", "clear-of-others"]

    def test_no_names_everything(self) -> None:
        """Every missing thing is named, with the reason that the host would be told."""
        bad = state(host=host(B, revoked=True, attested_until_ms=0), vm=vm(last_owner=B))
        advice = place(question(B), bad, NOW)
        assert not advice.allowed
        told = [(each.rule, each.reason) for each in advice.unmet]
        assert told == [
            ("host-not-revoked", "HOST_REVOKED"),
            ("attested-now", "HOST_NOT_ATTESTED"),
        ]

    @pytest.mark.parametrize("rows", [state(host=None), state(vm=None), state(host=None, vm=None)])
    def test_unknown(self, rows) -> None:
        """No such host or VM: no."""
        assert not place(question(), rows, NOW).allowed

    def test_rows_of_another_host(self) -> None:
        """Rows that do not answer the question never give a yes."""
        assert not place(question(B), state(), NOW).allowed

    def test_crash_is_a_no(self) -> None:
        """An exception inside a rule is a no that says so (S12)."""
        broken = replace(state(), cluster=None)  # type: ignore[arg-type]
        broken = replace(broken, vm=object())  # type: ignore[arg-type]
        advice = place(question(), broken, NOW)
        assert not advice.allowed
        assert advice.unmet[-1].rule == "check-crashed"

    def test_warns(self) -> None:
        """Unlimited leases and any-host policies are flagged wherever they show."""
        risky = state(vm=vm(lease_ms=UNLIMITED_MS, any_host_of_cluster=True))
        assert len(place(question(), risky, NOW).warnings) == 2

    @pytest.mark.parametrize(
        "rows",
        [
            state(),
            state(host=host(admitted=False)),
            state(host=host(B)),
            state(host=host(B), intent=intent()),
            state(cluster=ClusterRecord(cluster_id=CLUSTER, policy_epoch=8)),
            replace(owned(), grant=None),
        ],
    )
    def test_agrees_with_the_grant(self, rows) -> None:
        """What is called grantable now is granted now, and nothing else (N47 is the time between)."""
        assert rows.host is not None
        advice = place(question(rows.host.host_id), rows, NOW)
        _, outcome = authority.grant(rows, ask(rows.host.host_id), NOW)
        assert advice.grantable_now == isinstance(outcome, Accepted)

    @pytest.mark.parametrize("rule", [rule.name for rule in GRANT.rules])
    def test_a_bit_that_is_not_set_is_a_no_or_a_step(self, rule) -> None:
        """Each rule that the store did not find to hold is told, and nothing else (N47)."""
        names = [each.name for each in GRANT.rules]
        held = sum(1 << place for place, name in enumerate(names) if name != rule)
        (told,) = advise([(VM, A)], [Weighed(host_id=A, vm_known=True, holds=held)])
        assert [each.rule for each in (*told.unmet, *told.steps)] == [rule]
        assert not told.grantable_now
        assert told.allowed == (rule in {step.name for step in STEPS})

    def test_nothing_found_is_a_no(self) -> None:
        """An answer without a bit names every rule; one fewer than asked is no answer at all."""
        (told,) = advise([(VM, A)], [Weighed(host_id=A, vm_known=True, holds=0)])
        assert len(told.unmet) + len(told.steps) == len(GRANT.rules)
        assert not told.allowed
        with pytest.raises(ValueError, match="zip"):
            advise([(VM, A), (VM, B)], [Weighed(host_id=A, vm_known=True, holds=0)])

    def test_yes_then_revoked(self) -> None:
        """The check says yes, the host is revoked before it starts: no key (N47)."""
        assert place(question(), state(), NOW).grantable_now
        revoked = state(host=host(revoked=True, trust_epoch=5))
        _, outcome = authority.grant(revoked, ask(), NOW + 1)
        assert not isinstance(outcome, Accepted)
