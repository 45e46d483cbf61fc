"""Rows to records: columns are named as fields, enumerations are made again."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from sqlalchemy import RowMapping

Record = TypeVar("Record")


def record(kind: type[Record], row: RowMapping, /, **convert: Callable[[Any], Any]) -> Record:
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
    return {name: str(v) if hasattr(v, "value") else v for name, v in values.items()} | override
