"""Transitions of ``placement.authority`` compiled to SQL: decide with a write.

The rules of a transition become the ``WHERE`` clause of its first write, with the columns of other
rows as scalar subqueries; no row written means refused, whatever was read before. Values that later
writes need are read first, and the deciding statement also demands that the row it changes is still
the one that was read, so that a stale read can only lead to a refusal, never to a wrong write.
"""

from collections.abc import Mapping
from typing import Any, assert_never

from sqlalchemy import (
    ColumnElement,
    Table,
    and_,
    case,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from trustauthority.adapters.sql import tables
from trustauthority.adapters.sql.rows import record
from trustauthority.errors import Conflict, RollbackDetected
from trustauthority.model.identifiers import HostId, RequestId, VmId
from trustauthority.model.placement import (
    AbortRequest,
    AuthorityRecord,
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
    Request,
    SwitchRequest,
    VmRecord,
    VmState,
)
from trustauthority.placement.authority import transition_for, why_not
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
    Rule,
    Scene,
    Sum,
    Term,
    Transition,
    Write,
    WriteKind,
    holds,
    value_of,
)

NEW_GRANTS_WINDOW_MS = 3_600_000
"""The window in which ``new_grants`` counts: one hour."""

_TABLES: Mapping[str, Table] = {
    "authority": tables.authority,
    "cluster": tables.cluster,
    "host": tables.host,
    "vm": tables.vm,
    "intent": tables.intent,
    "grant": tables.grant,
    "move": tables.move,
}
_EMPTY_CLUSTER = ClusterRecord(cluster_id="", may_hold_keys=False)  # type: ignore[arg-type]


class SqlPlacement:
    """The Placement port."""

    def __init__(self, connection: AsyncConnection, now_ms: int) -> None:
        self._connection = connection
        self._now_ms = now_ms

    async def decide(self, request: Request) -> tuple[PlacementState, tuple[Rule, ...]]:
        """Apply the request's transition; the rules that failed are empty when it was accepted.

        Raises RollbackDetected while releases are halted.
        """
        await self._require_not_halted(request)
        state, keys = await self._rows_of(request)
        transition = transition_for(state, request)
        scene = Scene(state=state, request=request, now_ms=self._now_ms)
        if not await self._write(transition, scene, keys):
            state, _ = await self._rows_of(request)
            return state, why_not(state, request, self._now_ms) or _RACED
        return (await self._rows_of(request))[0], ()

    async def authority(self) -> AuthorityRecord:
        """What holds for every host: the global epoch among it."""
        return await self._authority()

    async def look(self, *, vm: VmId, host: HostId) -> PlacementState:
        """Read the rows that a decision about this VM on this host would look at. Advice only."""
        state, _ = await self._rows(vm=vm, host=host, request_id=None, move_id=None)
        return state

    async def move(self, move_id: RequestId) -> Move | None:
        """Read one move: its recorded outcome."""
        return await self._move(move_id)

    # --- the deciding statement ----------------------------------------------------------------

    async def _write(self, transition: Transition, scene: Scene, keys: Mapping[str, Any]) -> bool:
        """Write the transition; False when its rules did not hold or another write came first."""
        writes = [w for w in transition.writes if w.when is None or holds(w.when, scene)]
        compiler = _Compiler(scene, keys)
        if not writes:
            query = select(literal(value=True)).where(compiler.rules(transition))
            return (await self._connection.execute(query)).first() is not None
        first, *rest = writes
        values = [_values(write, scene) for write in writes]
        table = _TABLES[first.record]
        statement = (
            update(table)
            .where(compiler.key_of(first.record), compiler.rules(transition))
            .where(compiler.unchanged(first.record))
            .values(**values[0])
        )
        try:
            async with self._connection.begin_nested() as savepoint:
                done = await self._connection.execute(statement)
                if done.rowcount != 1:
                    await savepoint.rollback()
                    return False
                for write, fields in zip(rest, values[1:], strict=True):
                    await self._follow(write, fields, compiler)
        except IntegrityError:
            return False  # the request id or move id was decided in between
        return True

    async def _follow(self, write: Write, fields: Mapping[str, Any], compiler: "_Compiler") -> None:
        table = _TABLES[write.record]
        if write.kind is WriteKind.INSERT:
            extra: dict[str, Any] = {"replays": 0}
            if write.record == "grant":
                extra["authorised_at_ms"] = self._now_ms
            await self._connection.execute(insert(table).values(**extra, **fields))
            return
        await self._connection.execute(
            update(table).where(compiler.key_of(write.record)).values(**fields)
        )

    async def _require_not_halted(self, request: Request) -> None:
        """A rolled-back database decides nothing, except to take trust away."""
        row = await self._connection.execute(select(tables.authority.c.halted_because))
        because = str(row.scalar_one())
        if because and type(request).__name__ not in {"RevokeRequest", "RevokeAllRequest"}:
            raise RollbackDetected(
                f"releases are stopped: {because}. See docs/how-to/restore.md.", detail=because
            )

    # --- rows ------------------------------------------------------------------------------------

    async def _rows_of(self, request: Request) -> tuple[PlacementState, Mapping[str, Any]]:
        move_id = getattr(request, "move_id", None)
        host = getattr(request, "host_id", None)
        if isinstance(request, SwitchRequest | AbortRequest) and move_id is not None:
            move = await self._move(move_id)
            if isinstance(request, SwitchRequest) and move is not None:
                host = move.destination
        return await self._rows(
            vm=getattr(request, "vm_id", None),
            host=host,
            request_id=getattr(request, "request_id", None),
            move_id=move_id,
        )

    async def _rows(
        self,
        *,
        vm: VmId | None,
        host: HostId | None,
        request_id: RequestId | None,
        move_id: RequestId | None,
    ) -> tuple[PlacementState, Mapping[str, Any]]:
        grant = await self._grant(request_id)
        if move_id is None and grant is not None:
            move_id = grant.move_id
        intent = await self._intent(vm, host)
        standing = await self._standing(host, vm)
        cluster = None if standing is None else await self._cluster(standing.cluster_id)
        state = PlacementState(
            authority=await self._authority(),
            cluster=cluster or _EMPTY_CLUSTER,
            host=standing,
            vm=await self._vm(vm),
            intent=intent,
            grant=grant,
            move=await self._move(move_id),
        )
        keys = {
            "authority": 1,
            "cluster": None if standing is None else standing.cluster_id,
            "host": host,
            "vm": vm,
            "intent": None if intent is None else intent.intent_id,
            "grant": request_id,
            "move": move_id,
        }
        return state, keys

    async def _first(self, query: Any) -> Any:
        return (await self._connection.execute(query)).mappings().first()

    async def _authority(self) -> AuthorityRecord:
        return record(AuthorityRecord, await self._first(select(tables.authority)))

    async def _cluster(self, cluster: str) -> ClusterRecord:
        query = select(tables.cluster).where(tables.cluster.c.cluster_id == cluster)
        return record(ClusterRecord, await self._first(query))

    async def _standing(self, host: HostId | None, vm: VmId | None) -> HostStanding | None:
        query = select(
            tables.host,
            _live_grants(host, vm).label("live_grants"),
            _new_grants(host, self._now_ms).label("new_grants"),
        ).where(tables.host.c.host_id == host)
        row = await self._first(query)
        return None if row is None else record(HostStanding, row)

    async def _vm(self, vm: VmId | None) -> VmRecord | None:
        row = await self._first(select(tables.vm).where(tables.vm.c.vm_id == vm))
        if row is None:
            return None
        if row["key_state"] is None:
            row = dict(row) | {"key_state": KeyState.PRE_ACTIVE}
        return record(VmRecord, row, state=VmState, key_state=KeyState)

    async def _intent(self, vm: VmId | None, host: HostId | None) -> Intent | None:
        table = tables.intent
        query = (
            select(table)
            .where(table.c.vm_id == vm, table.c.destination == host, table.c.used_by.is_(None))
            .order_by(table.c.expires_ms.desc())
            .limit(1)
        )
        row = await self._first(query)
        return None if row is None else record(Intent, row)

    async def _grant(self, request_id: RequestId | None) -> Grant | None:
        query = select(tables.grant).where(tables.grant.c.request_id == request_id)
        row = await self._first(query)
        return None if row is None else record(Grant, row, purpose=Purpose, phase=GrantPhase)

    async def _move(self, move_id: RequestId | None) -> Move | None:
        row = await self._first(select(tables.move).where(tables.move.c.move_id == move_id))
        return None if row is None else record(Move, row, phase=MovePhase)


class _Compiler:
    """Conditions as SQL over the rows of one scene."""

    def __init__(self, scene: Scene, keys: Mapping[str, Any]) -> None:
        self._scene = scene
        self._keys = keys

    def key_of(self, name: str) -> ColumnElement[bool]:
        """The row of ``name``: its primary key equals what the scene was read by."""
        table = _TABLES[name]
        matches: ColumnElement[bool] = next(iter(table.primary_key)) == self._keys[name]
        return matches

    def unchanged(self, name: str) -> ColumnElement[bool]:
        """The row is still the one that was read."""
        table, row = _TABLES[name], getattr(self._scene.state, name)
        if row is None:
            return true()
        names = [each for each in row.__slots__ if each in table.c]
        return and_(
            *(
                table.c[each].is_not_distinct_from(_plain(getattr(row, each)))
                for each in names
                if not (name == "vm" and each == "key_state")
                and not (name == "authority" and each == "high_water_ms")
            )
        )

    def rules(self, transition: Transition) -> ColumnElement[bool]:
        """All rules of a transition."""
        return and_(true(), *(self.condition(rule.condition) for rule in transition.rules))

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
                return or_(*(self.condition(each) for each in conditions))
            case _:
                assert_never(condition)

    def term(self, term: Term) -> ColumnElement[Any]:
        """One term: a scalar subquery, a bound value, or arithmetic on them."""
        match term:
            case Field(name, column):
                return self._field(name, column)
            case Asked() | Now() | Literal():
                value = _plain(value_of(term, self._scene))
                return null() if value is None else literal(value)
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
        if name == "host" and column == "live_grants":
            return _live_grants(self._keys["host"], self._keys["vm"])
        if name == "host" and column == "new_grants":
            return _new_grants(self._keys["host"], self._scene.now_ms)
        table = _TABLES[name].alias()
        key = next(iter(_TABLES[name].primary_key)).name
        return select(table.c[column]).where(table.c[key] == self._keys[name]).scalar_subquery()


def _live_grants(host: HostId | None, vm: VmId | None) -> ColumnElement[int]:
    table = tables.vm.alias()
    return (
        select(func.count())
        .select_from(table)
        .where(table.c.owner == host, table.c.vm_id != (vm or ""))
        .scalar_subquery()
    )


def _new_grants(host: HostId | None, now_ms: int) -> ColumnElement[int]:
    table = tables.grant.alias()
    return (
        select(func.count())
        .select_from(table)
        .where(table.c.host_id == host, table.c.authorised_at_ms > now_ms - NEW_GRANTS_WINDOW_MS)
        .scalar_subquery()
    )


def _values(write: Write, scene: Scene) -> dict[str, Any]:
    return {name: _plain(value_of(term, scene)) for name, term in write.values}


def _plain(value: Any) -> Any:
    return str(value) if hasattr(value, "value") and isinstance(value, str) else value


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


_RACED = (
    Rule(
        name="raced",
        error=Conflict,
        condition=AllOf(()),
        says="another decision about this VM came first; repeat with the same request id",
    ),
)
