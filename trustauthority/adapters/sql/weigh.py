"""Which conditions hold, for many (VM, host) at once: one statement, evaluated by the database.

What it guarantees: bit i of an answer is set exactly when ``condition.holds`` says so of the i-th
condition, for the rows that a request of this host for this VM would look at (a property test
compares both). What it does not do: decide. It reads a snapshot, so its answers are advice.
Source: design 6.5 ("CheckPlacement"), promises N47.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    String,
    Table,
    bindparam,
    case,
    func,
    literal,
    select,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from trustauthority.adapters.sql import key_tables, tables
from trustauthority.adapters.sql.compile import NEW_GRANTS_WINDOW_MS
from trustauthority.adapters.sql.conditions import condition
from trustauthority.model.identifiers import HostId
from trustauthority.placement.condition import Condition, Field, Weighed, hour_of_week

_pairs = func.json_each(bindparam("asked", type_=String)).table_valued("key", "value")
_asked = (
    select(
        _pairs.c.key.label("place"),
        func.json_extract(_pairs.c.value, "$[0]", type_=String).label("vm"),
        func.json_extract(_pairs.c.value, "$[1]", type_=String).label("host"),
    )
    .cte("asked")
    .prefix_with("MATERIALIZED", dialect="sqlite")
)
_host, _vm, _policy = tables.host, tables.vm, key_tables.release_policy
_by_id, _by_name = tables.host.alias("by_id"), tables.host.alias("by_name")
_owned, _granted, _newest = tables.vm.alias("owned"), tables.grant, tables.intent.alias("newest")

_THE_HOST = func.coalesce(
    select(_by_id.c.host_id).where(_by_id.c.host_id == _asked.c.host).scalar_subquery(),
    select(_by_name.c.host_id).where(_by_name.c.reserved_name == _asked.c.host).scalar_subquery(),
)
"""Hosts by what they were asked for as: the id is a stronger claim than the name."""
_THE_INTENT = (
    select(_newest.c.intent_id)
    .where(
        _newest.c.vm_id == _asked.c.vm,
        _newest.c.destination == _host.c.host_id,
        _newest.c.used_by.is_(None),
    )
    .order_by(_newest.c.expires_ms.desc())
    .limit(1)
    .scalar_subquery()
)
_COUNTED: Mapping[str, ColumnElement[int]] = {
    "live_grants": select(func.count())
    .where(_owned.c.owner == _host.c.host_id, _owned.c.vm_id != _asked.c.vm)
    .scalar_subquery(),
    "new_grants": select(func.count())
    .where(_granted.c.host_id == _host.c.host_id, _granted.c.authorised_at_ms > bindparam("since"))
    .scalar_subquery(),
}
_ROWS: Mapping[str, Table] = {
    "authority": tables.authority,
    "cluster": tables.cluster,
    "host": _host,
    "vm": _vm,
    "intent": tables.intent,
    "policy": _policy,
}
"""Records that advice looks at. A condition about another one is a programming error."""


async def weigh(
    connection: AsyncConnection,
    questions: Sequence[tuple[str, str]],
    conditions: tuple[Condition, ...],
    *,
    now_ms: int,
) -> Sequence[Weighed]:
    """Evaluate the conditions for each (VM id, host id or name), in order."""
    bound = {
        "asked": json.dumps(questions),
        "now": now_ms,
        "hour": hour_of_week(now_ms),
        "since": now_ms - NEW_GRANTS_WINDOW_MS,
    }
    rows = (await connection.execute(_statement(conditions), bound)).all()
    return [
        Weighed(
            host_id=None if host_id is None else HostId(host_id),
            vm_known=vm_id is not None,
            holds=holds,
        )
        for host_id, vm_id, holds in rows
    ]


@lru_cache(maxsize=8)
def _statement(conditions: tuple[Condition, ...]) -> Select[Any]:
    held: ColumnElement[int] = literal(0)
    for place, each in enumerate(conditions):
        held = held + case((condition(each, _column), literal(1 << place)), else_=literal(0))
    rows = (
        _asked.join(tables.authority, tables.authority.c.id == 1)
        .outerjoin(_host, _host.c.host_id == _THE_HOST)
        .outerjoin(_vm, _vm.c.vm_id == _asked.c.vm)
        .outerjoin(tables.cluster, tables.cluster.c.cluster_id == _host.c.cluster_id)
        .outerjoin(_policy, _policy.c.vm_id == _asked.c.vm)
        .outerjoin(tables.intent, tables.intent.c.intent_id == _THE_INTENT)
    )
    found = select(_host.c.host_id, _vm.c.vm_id, held.cast(BigInteger))
    return found.select_from(rows).order_by(_asked.c.place)


def _column(field: Field) -> ColumnElement[Any]:
    if field.record == "host" and field.name in _COUNTED:
        return _COUNTED[field.name]
    return _ROWS[field.record].c[field.name]
