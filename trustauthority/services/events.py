"""What happens to hosts, VMs, moves, intents and orders, from a cursor on: the audit log, retold.

What it guarantees: every decision about placement is told once per cursor, in order, refused ones
too, with the records it is about as they are now. A cursor names a place in one era of the log: after
an accepted loss it is refused, and its holder has to list everything anew. What it does not do: tell
of time passing. A standing ends at ``attested_until`` and a lease at ``lease_until`` without an event.
"""

import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from trustauthority.errors import Conflict, InvalidRequest, NotFound
from trustauthority.model.audit import AuditEntry
from trustauthority.model.identifiers import HostId, RequestId
from trustauthority.model.moveorder import MoveOrder
from trustauthority.model.vm import VmEntry
from trustauthority.ports import Store, Transaction
from trustauthority.services.follow import Follower
from trustauthority.services.hosts import HostView, find_host, view_of

MAX_CURSOR = 40
_CURSOR = re.compile(r"e([0-9]{1,18})-([0-9]{1,18})")


class EventKind(StrEnum):
    """What kind of thing happened."""

    NOTHING = "unspecified"
    HOST = "host"
    VM = "vm"
    MOVE = "move"
    INTENT = "intent"
    ORDER = "order"
    CLUSTER = "cluster"


_KINDS: Mapping[str, EventKind] = {
    "host": EventKind.HOST,
    "vm": EventKind.VM,
    "key": EventKind.VM,
    "lease": EventKind.VM,
    "move": EventKind.MOVE,
    "order": EventKind.ORDER,
    "placement": EventKind.INTENT,
    "policy": EventKind.CLUSTER,
    "cluster": EventKind.CLUSTER,
}
"""By the noun of the operation."""
_OF_VMS = frozenset({EventKind.VM, EventKind.MOVE, EventKind.INTENT, EventKind.ORDER})
_OF_ALL_HOSTS = frozenset({"host.revoke-all"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementEvent:
    """One event, with the records it is about as they are now."""

    cursor: str
    kind: EventKind = EventKind.NOTHING
    operation: str = ""
    subject: str = ""
    decision: str = ""
    reason: str = ""
    time_ms: int = 0
    actor: str = ""
    vm: VmEntry | None = None
    host: HostView | None = None
    order: MoveOrder | None = None


class PlacementEvents:
    """The stream of events."""

    def __init__(self, store: Store, follower: Follower) -> None:
        self._store = store
        self._follower = follower

    async def watch(
        self, cursor: str, *, vms: frozenset[str], caller: str
    ) -> AsyncGenerator[Sequence[PlacementEvent], None]:
        """Batches of events after ``cursor``; the first has only the cursor to go on from.

        Raises:
            Conflict: the cursor is of another era of the log, or beyond its end.
            RateLimited: as ``Follower.follow``.
        """
        era, position = await self._begin(cursor)
        yield (PlacementEvent(cursor=_cursor(era, position)),)
        async with aclosing(self._follower.follow(position, caller=caller)) as batches:
            async for batch in batches:
                if batch:
                    position = batch[-1].sequence + 1
                told = await self._told(batch, era, vms)
                yield told or (PlacementEvent(cursor=_cursor(era, position)),)

    async def _begin(self, cursor: str) -> tuple[int, int]:
        async with self._store.snapshot() as tx:
            era, size = await tx.audit.era(), await tx.audit.size()
        if not cursor:
            return era, size
        match = _CURSOR.fullmatch(cursor)
        if match is None:
            raise InvalidRequest("cursor: as an event told it", field="cursor")
        known_era, position = int(match[1]), int(match[2])
        if known_era != era or position > size:
            raise Conflict(
                "the log begins anew since that cursor: list everything, then watch without one",
                kind="cursor",
                name=cursor,
            )
        return era, position

    async def _told(
        self, batch: Sequence[AuditEntry], era: int, vms: frozenset[str]
    ) -> Sequence[PlacementEvent]:
        entries = [json.loads(entry.content) for entry in batch]
        wanted = [entry for entry in entries if _is_wanted(entry, vms)]
        if not wanted:
            return ()
        async with self._store.snapshot() as tx:
            records = _Records(tx)
            return [await records.event(entry, era) for entry in wanted]


def kind_of(operation: str) -> EventKind:
    """What kind of thing an operation is; NOTHING where it is not about placement."""
    if operation in _OF_ALL_HOSTS:
        return EventKind.CLUSTER
    return _KINDS.get(operation.partition(".")[0], EventKind.NOTHING)


class _Records:
    """Each record is read once per batch, however many events are about it."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._known: dict[tuple[str, str], Any] = {}

    async def event(self, entry: Mapping[str, Any], era: int) -> PlacementEvent:
        kind, subject = kind_of(entry["operation"]), str(entry["subject"])
        order_id = str(entry["details"].get("order", ""))
        return PlacementEvent(
            cursor=_cursor(era, entry["sequence"] + 1),
            kind=kind,
            operation=entry["operation"],
            subject=subject,
            decision=entry["decision"],
            reason=entry["reason"],
            time_ms=entry["time_ms"],
            actor=entry["actor"],
            vm=await self._once("vm", subject) if kind in _OF_VMS else None,
            host=await self._once("host", subject) if kind is EventKind.HOST else None,
            order=await self._once("order", order_id) if kind is EventKind.ORDER else None,
        )

    async def _once(self, what: str, name: str) -> Any:
        if (what, name) not in self._known:
            self._known[what, name] = await self._read(what, name)
        return self._known[what, name]

    async def _read(self, what: str, name: str) -> Any:
        if what == "vm":
            return await self._tx.vms.get(name)
        if what == "order":
            return await self._tx.orders.get(RequestId(name))
        try:
            return await view_of(self._tx, await find_host(self._tx, HostId(name)))
        except NotFound:
            return None


def _is_wanted(entry: Mapping[str, Any], vms: frozenset[str]) -> bool:
    kind = kind_of(entry["operation"])
    if kind is EventKind.NOTHING:
        return False
    return not vms or (kind in _OF_VMS and entry["subject"] in vms)


def _cursor(era: int, position: int) -> str:
    return f"e{era}-{position}"
