"""Transitions of ``placement.authority`` on SQL: decide with a write.

The rules of a transition become the ``WHERE`` clause of its first write, with the columns of other
rows as scalar subqueries; no row written means refused, whatever was read before. What is written
is computed from columns that were read first, and the deciding statement also demands that these
still hold what was read, so that a stale read can only lead to a refusal, never to a wrong write.
Source: design 3, 6.3-6.6.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Executable, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from trustauthority.adapters.sql import key_tables, tables
from trustauthority.adapters.sql.compile import (
    DECISIONS,
    LIVE_GRANTS,
    NEW_GRANTS,
    TABLES,
    values_of,
)
from trustauthority.adapters.sql.looks import Looks
from trustauthority.adapters.sql.rows import record
from trustauthority.adapters.sql.weigh import weigh
from trustauthority.errors import Conflict, RollbackDetected
from trustauthority.model.identifiers import HostId, RequestId, VmId
from trustauthority.model.lease import OnLeaseLoss
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
from trustauthority.model.requests import (
    BreakGlassConfirmRequest,
    BreakGlassRenewRequest,
    BreakGlassRequest,
    Request,
    RevokeAllRequest,
    RevokeRequest,
    SwitchRequest,
)
from trustauthority.placement.authority import transition_for, why_not
from trustauthority.placement.condition import (
    AllOf,
    Condition,
    Rule,
    Scene,
    Transition,
    Weighed,
    Write,
    WriteKind,
    holds,
)

_STANDING = select(
    tables.host, LIVE_GRANTS.label("live_grants"), NEW_GRANTS.label("new_grants")
).where(tables.host.c.host_id == bindparam("key_host"))
_BY_GLASS = (BreakGlassRequest, BreakGlassConfirmRequest, BreakGlassRenewRequest)
"""Requests that look at a break-glass; no other does."""
_RACED = (
    Rule(
        name="raced",
        error=Conflict,
        condition=AllOf(()),
        says="another decision about this VM came first; repeat with the same request id",
    ),
)


class _RowsChanged(Exception):
    """A later write of a transition found other rows than its first one: undo both."""


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

    async def look(self, questions: Sequence[tuple[str, str]]) -> Sequence[PlacementState]:
        """Read the rows that decisions about these (VM, host id or name) would look at."""
        return await Looks(self._connection, self._now_ms).answer(questions)

    async def weigh(
        self, questions: Sequence[tuple[str, str]], conditions: tuple[Condition, ...]
    ) -> Sequence[Weighed]:
        """Say which conditions hold for each (VM, host id or name)."""
        return await weigh(self._connection, questions, conditions, now_ms=self._now_ms)

    async def move(self, move_id: RequestId) -> Move | None:
        """Read one move: its recorded outcome."""
        return await self._move(move_id)

    async def set_draining(self, host: HostId, *, draining: bool) -> None:
        """Let a host take no VM any more, or take VMs again."""
        row = tables.host.c.host_id == host
        await self._connection.execute(update(tables.host).where(row).values(draining=draining))

    # --- the deciding statement ----------------------------------------------------------------

    async def _write(self, transition: Transition, scene: Scene, keys: Mapping[str, Any]) -> bool:
        """Write the transition; False when its rules did not hold or another write came first."""
        decision = DECISIONS[transition.name]
        parameters = decision.parameters(scene, keys)
        if decision.first is None:
            found = await self._connection.execute(decision.statement, parameters)
            return found.first() is not None
        rest = [w for w in transition.writes[1:] if w.when is None or holds(w.when, scene)]
        try:
            async with self._connection.begin_nested():
                await self._one_row(decision.statement, parameters)
                for write in rest:
                    await self._one_row(self._following(write, scene, keys), {})
        except (IntegrityError, _RowsChanged):
            return False  # a rule does not hold, or the request id was decided in between
        return True

    async def _one_row(self, statement: Executable, parameters: Mapping[str, Any]) -> None:
        done = await self._connection.execute(statement, parameters)
        if done.rowcount != 1:
            raise _RowsChanged

    def _following(self, write: Write, scene: Scene, keys: Mapping[str, Any]) -> Executable:
        table, values = TABLES[write.record], values_of(write, scene)
        if write.kind is WriteKind.INSERT:
            if write.record == "grant":
                values["authorised_at_ms"] = self._now_ms
            return insert(table).values(replays=0, **values)
        row = next(iter(table.primary_key)) == keys[write.record]
        return update(table).where(row).values(**values)

    async def _require_not_halted(self, request: Request) -> None:
        """A rolled-back database decides nothing, except to take trust away."""
        if isinstance(request, RevokeRequest | RevokeAllRequest):
            return
        because = await self._connection.scalar(select(tables.authority.c.halted_because))
        if because:
            raise RollbackDetected(
                f"releases are stopped: {because}. See docs/how-to/restore.md.", detail=because
            )

    # --- rows ------------------------------------------------------------------------------------

    async def _rows_of(self, request: Request) -> tuple[PlacementState, Mapping[str, Any]]:
        move_id = getattr(request, "move_id", None)
        host = getattr(request, "host_id", None)
        if isinstance(request, SwitchRequest):
            move = await self._move(move_id)
            host = host if move is None else move.destination
        return await self._rows(
            vm=getattr(request, "vm_id", None),
            host=host,
            request_id=getattr(request, "request_id", None),
            move_id=move_id,
            by_glass=isinstance(request, _BY_GLASS),
        )

    async def _rows(
        self,
        *,
        vm: VmId | None,
        host: HostId | None,
        request_id: RequestId | None,
        move_id: RequestId | None,
        by_glass: bool,
    ) -> tuple[PlacementState, Mapping[str, Any]]:
        grant = await self._grant(request_id)
        if move_id is None and grant is not None:
            move_id = grant.move_id
        intent = await self._intent(vm, host)
        glass = await self._glass(vm, host) if by_glass else None
        standing = await self._standing(host, vm)
        cluster = None if standing is None else await self._cluster(standing.cluster_id)
        state = PlacementState(
            authority=await self._authority(),
            cluster=cluster or NO_CLUSTER,
            host=standing,
            vm=await self._vm(vm),
            intent=intent,
            grant=grant,
            move=await self._move(move_id),
            policy=await self._policy(vm),
            glass=glass,
        )
        keys = {
            "authority": 1,
            "cluster": None if standing is None else standing.cluster_id,
            "host": host,
            "vm": vm,
            "intent": None if intent is None else intent.intent_id,
            "grant": request_id,
            "move": move_id,
            "policy": vm,
            "glass": None if glass is None else glass.glass_id,
        }
        return state, keys

    async def _first(self, query: Any, bound: Mapping[str, Any] | None = None) -> Any:
        return (await self._connection.execute(query, bound)).mappings().first()

    async def _authority(self) -> AuthorityRecord:
        return record(AuthorityRecord, await self._first(select(tables.authority)))

    async def _cluster(self, cluster: str) -> ClusterRecord:
        query = select(tables.cluster).where(tables.cluster.c.cluster_id == cluster)
        return record(ClusterRecord, await self._first(query))

    async def _standing(self, host: HostId | None, vm: VmId | None) -> HostStanding | None:
        bound = {"key_host": host, "key_vm": vm, "now": self._now_ms}
        row = await self._first(_STANDING, bound)
        return None if row is None else record(HostStanding, row)

    async def _vm(self, vm: VmId | None) -> VmRecord | None:
        row = await self._first(select(tables.vm).where(tables.vm.c.vm_id == vm))
        if row is None:
            return None
        if row["key_state"] is None:
            row = dict(row) | {"key_state": KeyState.PRE_ACTIVE}
        return record(
            VmRecord,
            row,
            state=VmState,
            key_state=KeyState,
            sharing=Sharing,
            on_lease_loss=OnLeaseLoss,
        )

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

    async def _policy(self, vm: VmId | None) -> ReleasePolicyRecord | None:
        table = key_tables.release_policy
        row = await self._first(select(table).where(table.c.vm_id == vm))
        return None if row is None else record(ReleasePolicyRecord, row)

    async def _glass(self, vm: VmId | None, host: HostId | None) -> BreakGlass | None:
        table = tables.break_glass
        query = (
            select(table)
            .where(table.c.vm_id == vm, table.c.host_id == host, table.c.closed_at_ms == 0)
            .order_by(table.c.opened_at_ms.desc(), table.c.glass_id)
            .limit(1)
        )
        row = await self._first(query)
        return None if row is None else record(BreakGlass, row)

    async def _grant(self, request_id: RequestId | None) -> Grant | None:
        query = select(tables.grant).where(tables.grant.c.request_id == request_id)
        row = await self._first(query)
        return None if row is None else record(Grant, row, purpose=Purpose, phase=GrantPhase)

    async def _move(self, move_id: RequestId | None) -> Move | None:
        row = await self._first(select(tables.move).where(tables.move.c.move_id == move_id))
        return None if row is None else record(Move, row, phase=MovePhase)
