"""Transitions of ``placement.transitions`` as SQL statements, each built once and then only bound.

What it guarantees: the ``WHERE`` clause holds exactly when ``condition.holds`` says so for the rows
as they are when the statement runs (a property test compares both for every transition). Whatever
is absent is bound as NULL, which equals nothing. What it does not do: run anything; see
``placement``. Source: design 3 ("decide with a write").

Parameters: those of ``conditions``; ``key_R`` is the primary key of record R, ``was_R_F`` what a
column held when it was read, ``new_F`` what the first write assigns to column F.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, assert_never

from sqlalchemy import (
    ColumnElement,
    Executable,
    Insert,
    Select,
    Table,
    Update,
    and_,
    bindparam,
    func,
    insert,
    literal,
    select,
    true,
    update,
)

from trustauthority.adapters.sql import key_tables, tables
from trustauthority.adapters.sql.conditions import condition, plain
from trustauthority.placement.condition import (
    Absent,
    AllOf,
    AnyOf,
    Asked,
    Compare,
    Condition,
    Field,
    Largest,
    Listed,
    Rule,
    Scene,
    Smallest,
    Sum,
    Term,
    Transition,
    Write,
    WriteKind,
    hour_of_week,
    value_of,
)
from trustauthority.placement.transitions import (
    ABORT_REPLAY,
    GIVE_BACK_REPLAY,
    REVOKE,
    REVOKE_ALL,
    SWITCH_REPLAY,
    TRANSITIONS,
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
    "glass": tables.break_glass,
    "policy": key_tables.release_policy,
}
_READ = {name: table.alias(f"{name}_row") for name, table in TABLES.items()}
_COUNTED_VM, _COUNTED_GRANT = tables.vm.alias("counted_vm"), tables.grant.alias("counted_grant")
_INT64 = range(-(2**63), 2**63)

LIVE_GRANTS: ColumnElement[int] = (
    select(func.count())
    .where(
        _COUNTED_VM.c.owner == bindparam("key_host"),
        _COUNTED_VM.c.vm_id != func.coalesce(bindparam("key_vm"), ""),
    )
    .scalar_subquery()
)
"""How many VMs other than the one asked for the host owns."""
NEW_GRANTS: ColumnElement[int] = (
    select(func.count())
    .where(
        _COUNTED_GRANT.c.host_id == bindparam("key_host"),
        _COUNTED_GRANT.c.authorised_at_ms > bindparam("now") - NEW_GRANTS_WINDOW_MS,
    )
    .scalar_subquery()
)
"""How many grants the host was authorised for within the window."""

_NOT_HALTED = select(_READ["authority"].c.halted_because).scalar_subquery() == ""
_WHILE_HALTED = (REVOKE, REVOKE_ALL)
"""A rolled-back database decides nothing, except to take trust away (N91)."""

_CHOSEN_BY = {
    GIVE_BACK_REPLAY.name: frozenset({Field("vm", "owner"), Field("vm", "last_owner")}),
    SWITCH_REPLAY.name: frozenset({Field("move", "phase")}),
    ABORT_REPLAY.name: frozenset({Field("move", "phase")}),
}
"""What made ``transition_for`` take the outcome for recorded, where no rule asks for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The statement that decides a transition, and what it must be told."""

    statement: Executable
    """Writes (or, where a transition writes nothing, finds) exactly one row when all rules hold."""
    names: frozenset[str]
    """Its parameters."""
    asked: tuple[str, ...]
    was: tuple[Field, ...]
    """Columns that must still hold what was read: values to be written come from them, or the
    choice of this transition."""
    first: Write | None

    def parameters(self, scene: Scene, keys: Mapping[str, Any]) -> dict[str, Any]:
        """Everything the statement is bound to."""
        bound = {f"key_{name}": value for name, value in keys.items()}
        bound |= {"now": scene.now_ms, "hour": hour_of_week(scene.now_ms)}
        bound |= {f"ask_{name}": _bound(getattr(scene.request, name)) for name in self.asked}
        bound |= {f"was_{f.record}_{f.name}": plain(value_of(f, scene)) for f in self.was}
        if self.first is not None:
            values = values_of(self.first, scene)
            bound |= {f"new_{name}": value for name, value in values.items()}
        return {name: value for name, value in bound.items() if name in self.names}


def values_of(write: Write, scene: Scene) -> dict[str, Any]:
    """What a write assigns, by column."""
    return {name: plain(value_of(term, scene)) for name, term in write.values}


def _bound(value: Any) -> Any:
    """A request's field. No column holds a number beyond 64 bits: it equals nothing (N84)."""
    return None if isinstance(value, int) and value not in _INT64 else plain(value)


def _compile(transition: Transition) -> Decision:
    first = transition.writes[0] if transition.writes else None
    own = first.record if first is not None and first.kind is WriteKind.UPDATE else None
    read = {f for w in transition.writes for f in _read_by(w)}
    was = sorted(read | _CHOSEN_BY.get(transition.name, frozenset()), key=str)
    asked = {a for rule in transition.rules for a in _asked_in(rule)}
    column = partial(_field, own=own)
    where = and_(
        true() if transition in _WHILE_HALTED else _NOT_HALTED,
        *(condition(rule.condition, column) for rule in transition.rules),
        *(column(f).is_not_distinct_from(_was(f)) for f in was),
    )
    statement = _statement(first, where)
    return Decision(
        statement=statement,
        names=frozenset(statement.compile().params),
        asked=tuple(sorted(asked)),
        was=tuple(was),
        first=first,
    )


def _statement(first: Write | None, where: ColumnElement[bool]) -> Select[Any] | Update | Insert:
    if first is None:
        return select(literal(1)).where(where)
    if first.when is not None:
        raise TypeError("the write that decides a transition is never left out")
    table = TABLES[first.record]
    new = {name: bindparam(f"new_{name}", type_=table.c[name].type) for name, _ in first.values}
    if first.kind is WriteKind.UPDATE:
        row = _key(table) == bindparam(f"key_{first.record}")
        return update(table).where(row, where).values(**new)
    extra: dict[str, ColumnElement[Any]] = {"replays": literal(0)}
    if first.record == "grant":
        extra["authorised_at_ms"] = bindparam("now")
    values = new | extra
    return insert(table).from_select([*values], select(*values.values()).where(where))


def _field(field: Field, own: str | None) -> ColumnElement[Any]:
    """A column: of the row that is being written, or of another one by a scalar subquery."""
    if (field.record, field.name) == ("host", "live_grants"):
        return LIVE_GRANTS
    if (field.record, field.name) == ("host", "new_grants"):
        return NEW_GRANTS
    if field.record == own:
        return TABLES[own].c[field.name]
    row = _READ[field.record]
    key = row.c[_key(TABLES[field.record]).name]
    here = key == bindparam(f"key_{field.record}")
    return select(row.c[field.name]).where(here).scalar_subquery()


def _was(field: Field) -> ColumnElement[Any]:
    column = TABLES[field.record].c[field.name]
    return bindparam(f"was_{field.record}_{field.name}", type_=column.type)


def _key(table: Table) -> Any:
    return next(iter(table.primary_key))


# --- what a transition looks at ----------------------------------------------------------------


def _read_by(write: Write) -> Iterator[Field]:
    terms = [leaf for _, term in write.values for leaf in _leaves(term)]
    terms += [] if write.when is None else list(_leaves_in(write.when))
    yield from (leaf for leaf in terms if isinstance(leaf, Field))


def _asked_in(rule: Rule) -> Iterator[str]:
    yield from (leaf.name for leaf in _leaves_in(rule.condition) if isinstance(leaf, Asked))


def _leaves_in(asked: Condition) -> Iterator[Term]:
    match asked:
        case Compare(left, _, right):
            yield from _leaves(left)
            yield from _leaves(right)
        case Absent(term):
            yield from _leaves(term)
        case Listed(item, names):
            yield from _leaves(item)
            yield from _leaves(names)
        case AllOf(conditions) | AnyOf(conditions):
            for each in conditions:
                yield from _leaves_in(each)
        case _:
            assert_never(asked)


def _leaves(term: Term) -> Iterator[Term]:
    match term:
        case Sum(terms):
            for each in terms:
                yield from _leaves(each)
        case Largest(left, right) | Smallest(left, right):
            yield from _leaves(left)
            yield from _leaves(right)
        case _:
            yield term


DECISIONS: Mapping[str, Decision] = {each.name: _compile(each) for each in TRANSITIONS}
"""Every transition's deciding statement, by the transition's name."""
