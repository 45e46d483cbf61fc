"""Rows to records and back: columns are named as fields, enumerations are made again."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from enum import Enum
from typing import Any, TypeVar

from sqlalchemy import RowMapping, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

Record = TypeVar("Record")

_INSERT: Mapping[str, Callable[[Table], Any]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}


def record(
    kind: type[Record], row: RowMapping | Mapping[str, Any], /, **convert: Callable[[Any], Any]
) -> Record:
    """Build a record from the columns that its fields name; ``convert`` maps single ones."""
    values: dict[str, Any] = {}
    for each in fields(kind):  # type: ignore[arg-type]  # Record is always a dataclass
        value = row[each.name]
        if each.name in convert and value is not None:
            value = convert[each.name](value)
        values[each.name] = value
    return kind(**values)


def columns(entry: object, /, **override: Any) -> Mapping[str, Any]:
    """The column values of a record; ``override`` replaces or adds single ones."""
    values = {each.name: getattr(entry, each.name) for each in fields(entry)}  # type: ignore[arg-type]
    plain = {name: str(v) if isinstance(v, Enum) else v for name, v in values.items()}
    return plain | override


async def insert_once(connection: AsyncConnection, table: Table, values: Mapping[str, Any]) -> bool:
    """Insert a row; False when a unique key of it is taken. Any other broken constraint raises."""
    statement = _INSERT[connection.dialect.name](table).values(**values).on_conflict_do_nothing()
    return (await connection.execute(statement)).rowcount == 1
