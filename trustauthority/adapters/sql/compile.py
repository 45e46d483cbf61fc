"""Conditions and terms of ``placement.condition`` as SQL over the rows of one scene.

What it guarantees: a compiled condition holds exactly when ``condition.holds`` says so for the rows
as they are when the statement runs (a property test compares both for every transition). A
comparison with something absent is false here by itself, before SQL sees it, because SQLAlchemy
turns ``= NULL`` into ``IS NULL``. What it does not do: run anything. Source: design 3.
"""

from collections.abc import Iterator, Mapping
from typing import Any, assert_never

from sqlalchemy import (
    ColumnElement,
    Null,
    Table,
    and_,
    case,
    false,
    func,
    literal,
    null,
    or_,
    select,
    true,
)

from trustauthority.adapters.sql import tables
from trustauthority.model.identifiers import HostId
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
    Literal,
    Now,
    Scene,
    Sum,
    Term,
    Transition,
    Write,
    value_of,
)

NEW_GRANTS_WINDOW_MS = 3_600_000
"""The window in which ``new_grants`` counts: one hour."""
TABLES: Mapping[str, Table] = {
    "authority": tables.authority,
    "cluster": tables.cluster,
    "host": tables.host,
    "vm": tables.vm,
    "intent": tables.intent,
    "grant": tables.grant,
    "move": tables.move,
}
_INT64 = range(-(2**63), 2**63)


class Compiler:
    """Conditions as SQL; ``keys`` names the row of each record, ``None`` where there is none."""

    def __init__(self, scene: Scene, keys: Mapping[str, Any], *, own: str | None = None) -> None:
        self._scene = scene
        self._keys = keys
        self._own = own
        """The record whose table the statement updates: its columns are the row's own."""

    def key_of(self, name: str) -> ColumnElement[bool]:
        """The row of ``name``: its primary key is what the scene was read by."""
        if self._keys[name] is None:
            return false()
        matches: ColumnElement[bool] = _key(TABLES[name]) == self._keys[name]
        return matches

    def rules(self, transition: Transition) -> ColumnElement[bool]:
        """All rules of a transition."""
        return and_(true(), *(self.condition(rule.condition) for rule in transition.rules))

    def unchanged(self, writes: tuple[Write, ...]) -> ColumnElement[bool]:
        """Every column that the writes are computed from still holds what was read."""
        read = {field for write in writes for field in _fields_read(write)}
        ordered = sorted(read, key=lambda each: (each.record, each.name))
        return and_(true(), *(self._same(each) for each in ordered))

    def condition(self, condition: Condition) -> ColumnElement[bool]:
        """One condition; comparisons with NULL do not hold."""
        match condition:
            case Compare(left, comparison, right):
                return _compare(self.term(left), comparison, self.term(right))
            case Absent(term):
                return self.term(term).is_(None)
            case AllOf(conditions):
                return and_(true(), *(self.condition(each) for each in conditions))
            case AnyOf(conditions):
                return or_(false(), *(self.condition(each) for each in conditions))
            case _:
                assert_never(condition)

    def term(self, term: Term) -> ColumnElement[Any]:
        """One term: a column, a scalar subquery, a bound value, or arithmetic on them."""
        match term:
            case Field(name, column):
                return self._field(name, column)
            case Asked() | Now() | Literal():
                return _bound(value_of(term, self._scene))
            case Sum(terms):
                total, *others = [self.term(each) for each in terms]
                for other in others:
                    total = total + other
                return total
            case Largest(left, right):
                one, two = self.term(left), self.term(right)
                return case((one >= two, one), (two > one, two), else_=null())
            case _:
                assert_never(term)

    def _field(self, name: str, column: str) -> ColumnElement[Any]:
        if self._keys[name] is None:
            return null()
        if name == "host" and column == "live_grants":
            return live_grants(self._keys["host"], self._keys["vm"])
        if name == "host" and column == "new_grants":
            return new_grants(self._keys["host"], self._scene.now_ms)
        if name == self._own:
            return TABLES[name].c[column]
        table = TABLES[name].alias()
        key = _key(TABLES[name]).name
        return select(table.c[column]).where(table.c[key] == self._keys[name]).scalar_subquery()

    def _same(self, field: Field) -> ColumnElement[bool]:
        column = self._field(field.record, field.name)
        if isinstance(column, Null):
            return true()
        return column.is_not_distinct_from(plain(value_of(field, self._scene)))


def live_grants(host: HostId | None, vm: str | None) -> ColumnElement[int]:
    """How many VMs other than ``vm`` a host owns."""
    table = tables.vm.alias()
    return (
        select(func.count())
        .select_from(table)
        .where(table.c.owner == (host or ""), table.c.vm_id != (vm or ""))
        .scalar_subquery()
    )


def new_grants(host: HostId | None, now_ms: int) -> ColumnElement[int]:
    """How many grants a host was authorised for within the window."""
    table = tables.grant.alias()
    since_ms = now_ms - NEW_GRANTS_WINDOW_MS
    return (
        select(func.count())
        .select_from(table)
        .where(table.c.host_id == (host or ""), table.c.authorised_at_ms > since_ms)
        .scalar_subquery()
    )


def plain(value: Any) -> Any:
    """A value as the driver takes it: enumerations by their text."""
    return str(value) if isinstance(value, str) else value


def values_of(write: Write, scene: Scene) -> dict[str, Any]:
    """What a write assigns, by column."""
    return {name: plain(value_of(term, scene)) for name, term in write.values}


def _bound(value: Any) -> ColumnElement[Any]:
    """A bound value. No column holds a number beyond 64 bits: it equals nothing (N84)."""
    if value is None or (isinstance(value, int) and value not in _INT64):
        return null()
    return literal(plain(value))


def _key(table: Table) -> Any:
    return next(iter(table.primary_key))


def _fields_read(write: Write) -> Iterator[Field]:
    for _, term in write.values:
        yield from _fields_of(term)
    if write.when is not None:
        yield from _fields_in(write.when)


def _fields_in(condition: Condition) -> Iterator[Field]:
    match condition:
        case Compare(left, _, right):
            yield from _fields_of(left)
            yield from _fields_of(right)
        case Absent(term):
            yield from _fields_of(term)
        case AllOf(conditions) | AnyOf(conditions):
            for each in conditions:
                yield from _fields_in(each)
        case _:
            assert_never(condition)


def _fields_of(term: Term) -> Iterator[Field]:
    match term:
        case Field():
            yield term
        case Sum(terms):
            for each in terms:
                yield from _fields_of(each)
        case Largest(left, right):
            yield from _fields_of(left)
            yield from _fields_of(right)
        case Asked() | Now() | Literal():
            return
        case _:
            assert_never(term)


def _compare(
    left: ColumnElement[Any], comparison: Comparison, right: ColumnElement[Any]
) -> ColumnElement[bool]:
    if isinstance(left, Null) or isinstance(right, Null):
        return false()
    match comparison:
        case Comparison.EQUAL:
            return left == right
        case Comparison.NOT_EQUAL:
            return left != right
        case Comparison.LESS:
            return left < right
        case Comparison.AT_MOST:
            return left <= right
        case _:
            assert_never(comparison)
