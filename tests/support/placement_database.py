"""A whole small database of placement as plain records, and the pure decision over it.

The oracle of the store: ``state_of`` says which rows a decision looks at, ``pure_step`` decides with
``placement.authority`` and writes the result back. Tests compare a database with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from sqlalchemy import Connection, Table, delete, insert, select

from trustauthority.adapters.sql import key_tables, tables
from trustauthority.adapters.sql.rows import columns, record
from trustauthority.model.identifiers import ClusterId, HostId, RequestId, VmId
from trustauthority.model.placement import (
    NO_CLUSTER,
    AuthorityRecord,
    BreakGlass,
    ClusterRecord,
    Grant,
    GrantPhase,
    HostStanding,
    Intent,
    KeyState,
    Move,
    MovePhase,
    PlacementState,
    Purpose,
    Sharing,
    VmRecord,
    VmState,
)
from trustauthority.model.releasepolicy import ReleasePolicyRecord
from trustauthority.model.requests import Request, SwitchRequest
from trustauthority.placement import authority as pure
from trustauthority.placement.authority import Outcome, Refused

HOUR_MS = 3_600_000
_COUNTS = ("live_grants", "new_grants")


@dataclass(frozen=True, kw_only=True)
class Database:
    """Every row, by its key."""

    authority: AuthorityRecord
    clusters: Mapping[str, ClusterRecord]
    hosts: Mapping[str, HostStanding]
    vms: Mapping[str, VmRecord]
    intents: Mapping[str, Intent] = field(default_factory=dict)
    grants: Mapping[str, Grant] = field(default_factory=dict)
    moves: Mapping[str, Move] = field(default_factory=dict)
    authorised_ms: Mapping[str, int] = field(default_factory=dict)
    """When each grant was authorised."""
    glasses: Mapping[str, BreakGlass] = field(default_factory=dict)
    policies: Mapping[str, ReleasePolicyRecord] = field(default_factory=dict)


def state_of(database: Database, request: Request, now_ms: int) -> PlacementState:
    """The rows that a decision about this request looks at."""
    grant = database.grants.get(getattr(request, "request_id", ""))
    move_id = getattr(request, "move_id", None) or (grant.move_id if grant else None)
    move = database.moves.get(move_id or "")
    host_id = getattr(request, "host_id", "")
    if isinstance(request, SwitchRequest) and move is not None:
        host_id = move.destination
    vm_id = getattr(request, "vm_id", "")
    host = _standing(database, host_id, vm_id, now_ms)
    intents = [
        each
        for each in database.intents.values()
        if (each.vm_id, each.destination, each.used_by) == (vm_id, host_id, None)
    ]
    glasses = [
        each
        for each in database.glasses.values()
        if (each.vm_id, each.host_id, each.closed_at_ms) == (vm_id, host_id, 0)
    ]
    by_glass = type(request).__name__.startswith("BreakGlass")
    return PlacementState(
        policy=database.policies.get(vm_id),
        glass=min(glasses, key=lambda each: each.glass_id, default=None) if by_glass else None,
        authority=database.authority,
        cluster=database.clusters[host.cluster_id] if host else NO_CLUSTER,
        host=host,
        vm=database.vms.get(vm_id),
        intent=max(intents, key=lambda each: each.expires_ms, default=None),
        grant=grant,
        move=move,
    )


def pure_step(database: Database, request: Request, now_ms: int) -> tuple[Database, Outcome]:
    """Decide as the pure core does, and write what it says."""
    before = state_of(database, request, now_ms)
    after, outcome = pure.decide(before, request, now_ms)
    if isinstance(outcome, Refused):
        return database, outcome
    return _written(database, after, now_ms), outcome


def _written(database: Database, after: PlacementState, now_ms: int) -> Database:
    def put(rows: Mapping[str, Any], key: str, row: Any) -> Mapping[str, Any]:
        return rows if row is None else {**rows, getattr(row, key): row}

    fresh = {} if after.grant is None else {after.grant.request_id: now_ms}
    bare = None if after.host is None else replace(after.host, live_grants=0, new_grants=0)
    return replace(
        database,
        authority=after.authority,
        hosts=put(database.hosts, "host_id", bare),
        vms=put(database.vms, "vm_id", after.vm),
        intents=put(database.intents, "intent_id", after.intent),
        grants=put(database.grants, "request_id", after.grant),
        moves=put(database.moves, "move_id", after.move),
        glasses=put(database.glasses, "glass_id", after.glass),
        authorised_ms=fresh | dict(database.authorised_ms),
    )


def _standing(database: Database, host: str, vm: str, now_ms: int) -> HostStanding | None:
    row = database.hosts.get(host)
    if row is None:
        return None
    live = [each for each in database.vms.values() if each.owner == host and each.vm_id != vm]
    new = [
        each
        for each in database.grants.values()
        if each.host_id == host and database.authorised_ms[each.request_id] > now_ms - HOUR_MS
    ]
    return replace(row, live_grants=len(live), new_grants=len(new))


# --- the same in a real database ---------------------------------------------------------------

_FILLED = (
    tables.grant,
    tables.move,
    tables.intent,
    tables.break_glass,
    key_tables.release_policy,
    tables.vm,
    tables.host,
    tables.cluster,
    tables.authority,
)


def fill(connection: Connection, database: Database) -> None:
    """Make a real database hold exactly these rows."""
    for table in _FILLED:
        connection.execute(delete(table))
    _insert(connection, tables.authority, [database.authority], {"id": 1})
    _insert(connection, tables.cluster, database.clusters.values(), {})
    _insert(connection, tables.host, database.hosts.values(), {})
    _insert(connection, tables.vm, database.vms.values(), {})
    _insert(connection, tables.intent, database.intents.values(), {})
    _insert(connection, tables.move, database.moves.values(), {})
    _insert(connection, tables.break_glass, database.glasses.values(), {})
    _insert(connection, key_tables.release_policy, database.policies.values(), {})
    for name, grant in database.grants.items():
        at = {"authorised_at_ms": database.authorised_ms[name]}
        _insert(connection, tables.grant, [grant], at)


def dump(connection: Connection) -> Database:
    """Read every row back."""

    def read(table: Table, kind: type[Any], key: str, **convert: Any) -> Mapping[str, Any]:
        found = connection.execute(select(table)).mappings()
        rows = [record(kind, {**dict.fromkeys(_COUNTS, 0), **row}, **convert) for row in found]
        return {getattr(row, key): row for row in rows}

    (authority,) = connection.execute(select(tables.authority)).mappings()
    grants = tables.grant.c
    at = connection.execute(select(grants.request_id, grants.authorised_at_ms))
    return Database(
        authority=record(AuthorityRecord, authority),
        clusters=read(tables.cluster, ClusterRecord, "cluster_id"),
        hosts=read(tables.host, HostStanding, "host_id"),
        vms=read(tables.vm, VmRecord, "vm_id", state=VmState, key_state=KeyState, sharing=Sharing),
        glasses=read(tables.break_glass, BreakGlass, "glass_id"),
        policies=read(key_tables.release_policy, ReleasePolicyRecord, "vm_id"),
        intents=read(tables.intent, Intent, "intent_id"),
        grants=read(tables.grant, Grant, "request_id", purpose=Purpose, phase=GrantPhase),
        moves=read(tables.move, Move, "move_id", phase=MovePhase),
        authorised_ms={row.request_id: row.authorised_at_ms for row in at},
    )


_ANY: Mapping[type, object] = {int: 0, str: "", bytes: b"", bool: False}


def _insert(connection: Connection, table: Table, rows: Any, extra: Mapping[str, Any]) -> None:
    for row in rows:
        own = {each.name for each in fields(row)} & set(table.c.keys())
        values = {name: value for name, value in columns(row).items() if name in own}
        for column in table.c:
            if column.name not in values and not column.nullable:
                unique = getattr(row, "host_id", "") if column.unique else ""
                kind = column.type.python_type
                values[column.name] = kind(unique, "ascii") if kind is bytes else _ANY[kind]
                if unique and kind is str:
                    values[column.name] = unique
        connection.execute(insert(table).values(**values | extra))


# --- a small world -----------------------------------------------------------------------------

NOW_MS = 10 * HOUR_MS
CLUSTER, OTHER_CLUSTER = ClusterId("prod"), ClusterId("lab")
VM, OTHER_VM = VmId("db-1"), VmId("db-2")
A, B = HostId("h-a"), HostId("h-b")
BOOT, OTHER_BOOT = bytes(7) + b"\x01", bytes(7) + b"\x02"


def name(text: str) -> RequestId:
    """An id of the right length."""
    return RequestId(text.ljust(16, "-"))


def _host(host: HostId) -> HostStanding:
    return HostStanding(
        host_id=host,
        cluster_id=CLUSTER,
        admitted=True,
        trust_epoch=4,
        verdict_trust_epoch=4,
        verdict_policy_epoch=7,
        verdict_global_epoch=2,
        challenged_at_ms=NOW_MS - 1_000,
        attested_until_ms=NOW_MS + 100_000,
        boot=BOOT,
        host_class="r650",
        region="eu",
        variant_firmware="f1",
        variant_kernel="k1",
    )


def good() -> Database:
    """Both hosts are in good standing; A had the VM last and gave it back."""
    lab = ClusterRecord(cluster_id=OTHER_CLUSTER, policy_epoch=7, live_grants_cap=2)
    vm = VmRecord(
        vm_id=VM, cluster_id=CLUSTER, lease_ms=3_000, skew_ms=1_000, last_owner=A, grant_epoch=5
    )
    return Database(
        authority=AuthorityRecord(global_epoch=2, high_water_ms=NOW_MS),
        clusters={
            CLUSTER: ClusterRecord(cluster_id=CLUSTER, policy_epoch=7, warned_hosts_take=False),
            OTHER_CLUSTER: lab,
        },
        hosts={A: _host(A), B: _host(B)},
        vms={VM: vm, OTHER_VM: replace(vm, vm_id=OTHER_VM, owner=A, fence_until_ms=NOW_MS + 9)},
    )
