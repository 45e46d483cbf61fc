"""Conditions as data: what the store compiles to SQL is what the core evaluates."""

import sqlite3
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.placement_rows import NOW, ask, state

from trustauthority.errors import TrustAuthorityError
from trustauthority.model import placement as nouns
from trustauthority.model.releasepolicy import ReleasePolicyRecord
from trustauthority.placement import break_glass, move_rules, release_policy, rules
from trustauthority.placement.condition import (
    Absent,
    AllOf,
    AnyOf,
    Asked,
    Compare,
    Comparison,
    Condition,
    Field,
    Largest,
    Listed,
    Literal,
    Scene,
    Smallest,
    Sum,
    Term,
    WriteKind,
    fields_of,
    holds,
)
from trustauthority.placement.decide import ADVICE
from trustauthority.placement.transitions import TRANSITIONS

RECORDS = {
    "authority": nouns.AuthorityRecord,
    "cluster": nouns.ClusterRecord,
    "host": nouns.HostStanding,
    "vm": nouns.VmRecord,
    "intent": nouns.Intent,
    "grant": nouns.Grant,
    "move": nouns.Move,
    "glass": nouns.BreakGlass,
    "policy": ReleasePolicyRecord,
}
ASKABLE = {"request_id", "vm_id", "host_id", "grant_epoch", "move_id", "destination"} | {
    "response_hash"
}


def terms(thing: Term | Condition) -> Iterator[Term]:
    """Every term inside."""
    match thing:
        case Compare(left, _, right) | Largest(left, right) | Smallest(left, right):
            yield from terms(left)
            yield from terms(right)
        case Absent(term):
            yield from terms(term)
        case Listed(item, names):
            yield from terms(item)
            yield from terms(names)
        case AllOf(inner) | AnyOf(inner) | Sum(inner):
            for each in inner:
                yield from terms(each)
        case _:
            yield thing


def all_terms() -> Iterator[Term]:
    for transition in TRANSITIONS:
        for rule in transition.rules:
            yield from terms(rule.condition)
        for write in transition.writes:
            for _, term in write.values:
                yield from terms(term)
            if write.when is not None:
                yield from terms(write.when)


class TestTables:
    def test_every_term_names_a_column(self) -> None:
        """A misspelt column would be absent, and a rule on it would never hold."""
        for term in all_terms():
            if isinstance(term, Field):
                assert term.name in fields_of(RECORDS[term.record]), term
            if isinstance(term, Asked):
                assert term.name in ASKABLE, term

    def test_every_write_names_columns(self) -> None:
        """Inserts are complete, updates exist."""
        for transition in TRANSITIONS:
            for write in transition.writes:
                columns = fields_of(RECORDS[write.record])
                names = {name for name, _ in write.values}
                assert names <= columns
                assert write.kind is WriteKind.UPDATE or "phase" in names

    def test_every_rule_has_a_stable_name_and_error(self) -> None:
        """Names are unique; each maps to one reason of the error table."""
        found = [
            each
            for module in (rules, move_rules, break_glass, release_policy)
            for each in vars(module).values()
            if isinstance(each, rules.Rule)
        ]
        by_name = {rule.name: rule for rule in found}
        assert len(by_name) == len({id(rule) for rule in found})
        assert all(issubclass(rule.error, TrustAuthorityError) for rule in found)

    def test_whoever_gains_anything_has_standing(self) -> None:
        """Whatever gives a key, a lease or the right to run asks for the whole standing (S1)."""
        for name in ("grant", "share", "grant-replay", "confirm", "renew", "prepare", "switch"):
            transition = next(each for each in TRANSITIONS if each.name == name)
            assert set(rules.STANDING) <= set(transition.rules), name

    def test_break_glass_leaves_out_the_verdict_alone(self) -> None:
        """Break-glass: of the whole standing only verdict, its policy, age and warnings are not asked for."""
        verdict = {rules.POLICY_EPOCH_CURRENT, rules.ATTESTED_NOW, rules.EVIDENCE_NEW_ENOUGH}
        by_glass = {each.name: set(each.rules) for each in break_glass.TRANSITIONS}
        asked = set(rules.STANDING) - verdict
        assert len(by_glass) == 4
        for name, found in by_glass.items():
            assert asked | {break_glass.GLASS_OPEN, break_glass.QUOTE_NEW_ENOUGH} <= found, name
        grant = next(each for each in TRANSITIONS if each.name == "grant")
        assert set(grant.rules) - by_glass["break-glass"] == verdict | {
            rules.REASON,
            rules.MAY_TAKE,
        }
        confirm = next(each for each in TRANSITIONS if each.name == "confirm")
        assert set(confirm.rules) - by_glass["break-glass-confirm"] == verdict
        renew = next(each for each in TRANSITIONS if each.name == "renew")
        assert set(renew.rules) - by_glass["break-glass-renew"] == verdict

    def test_no_other_decision_looks_at_a_break_glass(self) -> None:
        """Break-glass: no ordinary decision has a way round the verdict in it."""
        special = set(break_glass.TRANSITIONS)
        for transition in TRANSITIONS:
            found = [term for rule in transition.rules for term in terms(rule.condition)]
            found += [term for write in transition.writes for _, term in write.values]
            reads = any(isinstance(each, Field) and each.record == "glass" for each in found)
            assert reads == (transition in special), transition.name

    def test_what_makes_an_owner_asks_for_an_exclusive_subject(self) -> None:
        """A shared secret never gets an owner, an exclusive one is never shared."""
        for transition in TRANSITIONS:
            owner = any(
                name == "owner" and term != Literal(None)
                for write in transition.writes
                for name, term in write.values
            )
            if owner or transition.name in {"renew", "offer", "prepare", "break-glass-renew"}:
                assert rules.VM_EXCLUSIVE in transition.rules, transition.name
        share = next(each for each in TRANSITIONS if each.name == "share")
        assert rules.VM_SHARED in share.rules
        assert {write.record for write in share.writes} == {"grant", "intent"}

    def test_asks_only_about_rows(self) -> None:
        """Advice has no request: a condition on one would never hold, or hold for another's."""
        found = [term for condition in ADVICE for term in terms(condition)]
        assert not [term for term in found if isinstance(term, Asked)]
        looked_at = {term.record for term in found if isinstance(term, Field)}
        assert looked_at == {"authority", "cluster", "host", "vm", "intent", "policy"}

    def test_audit_actions(self) -> None:
        """Every decision has an audit action (I-D)."""
        assert all(transition.audit for transition in TRANSITIONS)


def sql(thing: Term | Condition) -> str:
    """A literal SQL rendering, to compare meanings with SQLite's."""
    match thing:
        case Literal(value):
            return "NULL" if value is None else repr(int(value))
        case Sum(inner):
            return "(" + " + ".join(map(sql, inner)) + ")"
        case Largest(left, right):
            return f"MAX({sql(left)}, {sql(right)})"
        case Smallest(left, right):
            return f"MIN({sql(left)}, {sql(right)})"
        case Compare(left, comparison, right):
            return f"({sql(left)} {comparison} {sql(right)})"
        case Absent(term):
            return f"({sql(term)} IS NULL)"
        case AllOf(inner):
            return "(" + " AND ".join(map(sql, inner)) + ")"
        case AnyOf(inner):
            return "(" + " OR ".join(map(sql, inner)) + ")"
    raise AssertionError(thing)


literals = st.builds(Literal, st.none() | st.integers(-3, 3))
numbers = st.recursive(
    literals,
    lambda inner: (
        st.builds(Largest, inner, inner)
        | st.builds(Smallest, inner, inner)
        | st.builds(Sum, st.lists(inner, min_size=1, max_size=3).map(tuple))
    ),
    max_leaves=4,
)
comparisons = st.builds(Compare, numbers, st.sampled_from(Comparison), numbers) | st.builds(
    Absent, numbers
)
conditions = st.recursive(
    comparisons,
    lambda inner: (
        st.builds(AllOf, st.lists(inner, min_size=1, max_size=3).map(tuple))
        | st.builds(AnyOf, st.lists(inner, min_size=1, max_size=3).map(tuple))
    ),
    max_leaves=6,
)


class TestTerms:
    @pytest.mark.parametrize(
        "changes", [{"lease_ms": 0}, {"lease_ms": -1}, {"continue_for_ms": -1}, {"skew_ms": -1}]
    )
    def test_terms_of_a_lease(self, changes) -> None:
        """A lease without length, or a negative margin, does not exist."""
        with pytest.raises(ValueError, match="lease"):
            nouns.LeaseTerms(**{"lease_ms": 1, "skew_ms": 0, **changes})

    def test_fence_of_an_unlimited_lease(self) -> None:
        """Its fence is ordinary arithmetic and fits 64 bits beside any time."""
        unlimited = nouns.DEFAULT_TERMS[nouns.LeaseClass.UNLIMITED]
        assert unlimited.is_unlimited
        assert 4 * 10**12 + unlimited.fence_ms < 2**63 - 1


class TestMeaning:
    @given(conditions)
    def test_same_as_sql(self, condition) -> None:
        """Absence means to the core what NULL means to WHERE, for any condition."""
        with sqlite3.connect(":memory:") as database:
            found = database.execute(f"SELECT 1 WHERE {sql(condition)}").fetchone()
        database.close()
        scene = Scene(state=state(), request=ask(), now_ms=NOW)
        assert holds(condition, scene) == (found is not None)

    @given(st.sampled_from(["", "a", "b", "a,b", ",", "%", "_", "ab", None]), st.data())
    def test_lists_mean_the_same_in_sql(self, item, data) -> None:
        """A name is in a list whole or not at all, also where it looks like a pattern."""
        names = data.draw(st.lists(st.sampled_from(["a", "b", "ab", "%", "_"]), max_size=3))
        kept = data.draw(st.sampled_from([f",{','.join(names)},", "", None]))
        condition = Listed(Literal(item), Literal(kept))
        scene = Scene(state=state(), request=ask(), now_ms=NOW)
        with sqlite3.connect(":memory:") as database:
            query = "SELECT 1 WHERE instr(?, ',' || ? || ',') > 0"
            found = database.execute(query, (kept, item)).fetchone()
        database.close()
        assert holds(condition, scene) == (found is not None)
        if item in ("a", "b", "ab") and kept is not None:
            assert holds(condition, scene) == (item in names and kept != "")

    @pytest.mark.parametrize("record", ["host", "vm", "intent", "grant", "move"])
    def test_absent_rows_satisfy_nothing(self, record) -> None:
        """A comparison with a row that is not there never holds (fail closed)."""
        scene = Scene(state=state(**{record: None}), request=ask(), now_ms=NOW)
        for name in sorted(fields_of(RECORDS[record])):
            for comparison in Comparison:
                assert not holds(Compare(Field(record, name), comparison, Literal(1)), scene)
