"""Conditions of ``placement.condition`` as SQL expressions.

What it guarantees: the expression is true exactly when ``condition.holds`` says so for the same rows
(property tests compare both); it may be NULL where that says no. What it does not do: know where a
column comes from: ``Column`` says so. Source: design 3 ("decide with a write").

Parameters: ``ask_F`` is a field of the request, ``now`` and ``hour`` the time.
"""

from collections.abc import Callable
from typing import Any, assert_never

from sqlalchemy import (
    ColumnElement,
    Integer,
    String,
    and_,
    bindparam,
    case,
    false,
    literal,
    null,
    or_,
    true,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from trustauthority.placement.condition import (
    Absent,
    AllOf,
    AnyOf,
    Asked,
    Compare,
    Comparison,
    Condition,
    Field,
    Hour,
    Largest,
    Listed,
    Literal,
    Now,
    Smallest,
    Sum,
    Term,
)

Column = Callable[[Field], ColumnElement[Any]]
"""Where the field of a record is found in a statement."""


class _Position(FunctionElement[int]):
    """Where a text begins in another one, counted from 1; 0 when it is not in it."""

    type = Integer()
    inherit_cache = True


@compiles(_Position)
def _instr(element: _Position, compiler: Any, **how: Any) -> str:
    return f"instr({compiler.process(element.clauses, **how)})"


@compiles(_Position, "postgresql")
def _strpos(element: _Position, compiler: Any, **how: Any) -> str:
    return f"strpos({compiler.process(element.clauses, **how)})"


def condition(asked: Condition, column: Column) -> ColumnElement[bool]:
    """Express a condition."""
    match asked:
        case Compare(left, comparison, right):
            return _compare(_term(left, column), comparison, _term(right, column))
        case Absent(term):
            return _term(term, column).is_(None)
        case Listed(item, names):
            wanted = literal(",") + _term(item, column) + literal(",")
            return _Position(_term(names, column), wanted) > 0
        case AllOf(conditions):
            return and_(true(), *(condition(each, column) for each in conditions))
        case AnyOf(conditions):
            return or_(false(), *(condition(each, column) for each in conditions))
        case _:
            assert_never(asked)


def plain(value: Any) -> Any:
    """A value as the driver takes it: enumerations by their text."""
    return str(value) if isinstance(value, str) else value


def _term(term: Term, column: Column) -> ColumnElement[Any]:
    match term:
        case Field():
            return column(term)
        case Asked(name):
            return bindparam(f"ask_{name}")
        case Now() | Hour():
            by_hour = isinstance(term, Hour)
            return bindparam("hour", type_=String()) if by_hour else bindparam("now")
        case Literal(value):
            if value is None:
                raise TypeError("nothing compares with NULL; say Absent")
            return literal(plain(value))
        case Sum(terms):
            total, *others = [_term(each, column) for each in terms]
            for other in others:
                total = total + other
            return total
        case Largest(left, right) | Smallest(left, right):
            one, two = _term(left, column), _term(right, column)
            least, most = (one, two) if isinstance(term, Smallest) else (two, one)
            return case((one >= two, most), (two > one, least), else_=null())
        case _:
            assert_never(term)


def _compare(
    left: ColumnElement[Any], comparison: Comparison, right: ColumnElement[Any]
) -> ColumnElement[bool]:
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
