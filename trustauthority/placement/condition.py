"""Conditions and writes as data: evaluated here, compiled to SQL by the store, so both are the same.

What it is: the smallest expression language that a conditional ``UPDATE`` needs, with SQL's
treatment of absence (a comparison with ``None`` does not hold, and there is no negation to invert
that). What it trusts: that terms name fields of ``model.placement`` records (a test walks all).
What it guarantees: evaluation is total and pure. What it does not do: decide; see
``placement.authority``. Source: design 3 ("decide with a write").
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple, assert_never

from trustauthority.errors import TrustAuthorityError
from trustauthority.model.identifiers import HostId
from trustauthority.model.placement import PlacementState
from trustauthority.model.requests import Request

Value = str | int | bool | bytes | None


# --- terms -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Field:
    """A column of one row of ``PlacementState``: record name, field name."""

    record: str
    name: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A field of the request: a bound parameter."""

    name: str


@dataclass(frozen=True, slots=True)
class Now:
    """The store's time of this decision, milliseconds."""


@dataclass(frozen=True, slots=True)
class Hour:
    """The hour of the week (UTC) of this decision, as lists of hours name it."""


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant."""

    value: Value


@dataclass(frozen=True, slots=True)
class Sum:
    """The sum of integer terms; absent when one of them is."""

    terms: tuple["Term", ...]


@dataclass(frozen=True, slots=True)
class Largest:
    """The larger of two integer terms (``GREATEST`` or scalar ``MAX``)."""

    left: "Term"
    right: "Term"


@dataclass(frozen=True, slots=True)
class Smallest:
    """The smaller of two integer terms."""

    left: "Term"
    right: "Term"


Term = Field | Asked | Now | Hour | Literal | Sum | Largest | Smallest


# --- conditions ------------------------------------------------------------------------------


class Comparison(StrEnum):
    """The comparisons, by their SQL operators."""

    EQUAL = "="
    NOT_EQUAL = "<>"
    LESS = "<"
    AT_MOST = "<="


@dataclass(frozen=True, slots=True)
class Compare:
    """Two terms in a relation; does not hold when either is absent."""

    left: Term
    comparison: Comparison
    right: Term


@dataclass(frozen=True, slots=True)
class Absent:
    """The term is ``NULL``: no such row, or nothing in the column."""

    term: Term


@dataclass(frozen=True, slots=True)
class Listed:
    """The item is in a list that is kept as the text ``,a,b,``. Items are names: no comma in them."""

    item: Term
    names: Term


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every condition holds."""

    conditions: tuple["Condition", ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one condition holds."""

    conditions: tuple["Condition", ...]


Condition = Compare | Absent | Listed | AllOf | AnyOf


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A named precondition, the error that its failure is, and what to say about it."""

    name: str
    """Stable; in the audit log, in ``explain`` and in tests."""
    error: type[TrustAuthorityError]
    condition: Condition
    says: str
    """What does not hold when this rule fails, safe to show."""


# --- writes ----------------------------------------------------------------------------------


class WriteKind(StrEnum):
    """What happens to the row."""

    UPDATE = "update"
    INSERT = "insert"


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """Assignments to one row, all computed from the values before the decision."""

    record: str
    kind: WriteKind = WriteKind.UPDATE
    values: tuple[tuple[str, Term], ...]
    when: Condition | None = None
    """The write is left out, and nothing else changes, where this does not hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """Preconditions and effects of one decision: one transaction, one audit row."""

    name: str
    rules: tuple[Rule, ...]
    writes: tuple[Write, ...]
    audit: str
    """Action of the audit row that is written in the same transaction."""


# --- evaluation ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What terms are evaluated in."""

    state: PlacementState
    request: Request
    now_ms: int


Reading = Callable[[Scene], Value]
Predicate = Callable[[Scene], bool]


class Weighed(NamedTuple):
    """What the store found about one (VM, host)."""

    host_id: HostId | None
    """None when there is no such host."""
    vm_known: bool
    holds: int
    """Bit i: the i-th condition that was asked about holds."""


def value_of(term: Term, scene: Scene) -> Value:
    """Evaluate a term; absent rows and columns give ``None``."""
    return reading(term)(scene)


def holds(condition: Condition, scene: Scene) -> bool:
    """Say whether a condition holds, as ``WHERE`` would."""
    return predicate(condition)(scene)


@lru_cache(maxsize=1024)
def reading(term: Term) -> Reading:
    """Make the function that evaluates a term, once."""
    match term:
        case Field(record, name):
            return lambda scene: _attribute(getattr(scene.state, record), name)
        case Asked(name):
            return lambda scene: _attribute(scene.request, name)
        case Now() | Hour():
            tell = hour_of_week if isinstance(term, Hour) else int
            return lambda scene: tell(scene.now_ms)
        case Literal(value):
            return lambda _scene: value
        case Sum(terms):
            parts = tuple(map(reading, terms))
            return lambda scene: _sum([part(scene) for part in parts])
        case Largest(left, right) | Smallest(left, right):
            first, second = reading(left), reading(right)
            choose = max if isinstance(term, Largest) else min
            return lambda scene: _extreme(choose, first(scene), second(scene))
        case _:
            assert_never(term)


@lru_cache(maxsize=1024)
def predicate(condition: Condition) -> Predicate:
    """Make the function that says whether a condition holds, once: many are asked at a time."""
    match condition:
        case Compare(left, comparison, right):
            first, second, compare = reading(left), reading(right), _COMPARE[comparison]
            return lambda scene: compare(first(scene), second(scene))
        case Absent(term):
            read = reading(term)
            return lambda scene: read(scene) is None
        case Listed(item, names):
            wanted, among = reading(item), reading(names)
            return lambda scene: _listed(wanted(scene), among(scene))
        case AllOf(conditions):
            every = tuple(map(predicate, conditions))
            return lambda scene: all(each(scene) for each in every)
        case AnyOf(conditions):
            some = tuple(map(predicate, conditions))
            return lambda scene: any(each(scene) for each in some)
        case _:
            assert_never(condition)


def failing(transition: Transition, scene: Scene) -> tuple[Rule, ...]:
    """The rules that do not hold, in the order in which they are told."""
    return tuple(rule for rule in transition.rules if not holds(rule.condition, scene))


def apply(transition: Transition, scene: Scene, rows: dict[str, type[Any]]) -> PlacementState:
    """The state after the transition's writes; ``rows`` gives the class of inserted records."""
    changed: dict[str, Any] = {}
    for write in transition.writes:
        if write.when is not None and not holds(write.when, scene):
            continue
        values = {name: value_of(term, scene) for name, term in write.values}
        if write.kind is WriteKind.INSERT:
            changed[write.record] = rows[write.record](**values)
        else:
            changed[write.record] = replace(getattr(scene.state, write.record), **values)
    return replace(scene.state, **changed)


def fields_of(record: type[Any]) -> frozenset[str]:
    """Names of a record's columns."""
    return frozenset(each.name for each in fields(record))


def hour_of_week(now_ms: int) -> str:
    """``h0`` for Monday 00:00 to 01:00 UTC, up to ``h167``."""
    return f"h{(now_ms // 3_600_000 + 72) % 168}"  # 1970 began on a Thursday


def _listed(item: Value, names: Value) -> bool:
    return isinstance(item, str) and isinstance(names, str) and f",{item}," in names


def _attribute(record: object, name: str) -> Value:
    return None if record is None else getattr(record, name)


def _sum(values: list[Value]) -> Value:
    numbers = [value for value in values if isinstance(value, int)]
    return sum(numbers) if len(numbers) == len(values) else None


def _extreme(choose: Callable[[int, int], int], left: Value, right: Value) -> Value:
    if isinstance(left, int) and isinstance(right, int):
        return choose(left, right)
    return None


def _equal(left: Value, right: Value) -> bool:
    return left is not None and right is not None and left == right


def _not_equal(left: Value, right: Value) -> bool:
    return left is not None and right is not None and left != right


def _less(left: Value, right: Value) -> bool:
    return isinstance(left, int) and isinstance(right, int) and left < right


def _at_most(left: Value, right: Value) -> bool:
    return isinstance(left, int) and isinstance(right, int) and left <= right


_COMPARE: Mapping[Comparison, Callable[[Value, Value], bool]] = {
    Comparison.EQUAL: _equal,
    Comparison.NOT_EQUAL: _not_equal,
    Comparison.LESS: _less,
    Comparison.AT_MOST: _at_most,
}
