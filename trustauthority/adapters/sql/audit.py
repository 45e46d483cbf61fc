"""The audit log on SQL: one row per entry, each with the tree's right edge after it."""

from collections.abc import Sequence

from sqlalchemy import desc, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from trustauthority.adapters.sql import tables
from trustauthority.codec.tlog import EMPTY_ROOT, HASH_SIZE, Frontier, leaf_hash
from trustauthority.model.audit import AuditEntry, AuditEvent, canonical_entry

_audit = tables.audit


class SqlAuditLog:
    """The AuditLog port."""

    def __init__(self, connection: AsyncConnection, now_ms: int) -> None:
        self._connection = connection
        self._now_ms = now_ms

    async def append(self, event: AuditEvent) -> int:
        """Append an entry in the transaction of the decision that it records."""
        frontier = await self._frontier(None)
        content = canonical_entry(event, sequence=frontier.size, time_ms=self._now_ms)
        leaf = leaf_hash(content)
        await self._connection.execute(
            insert(_audit).values(
                sequence=frontier.size,
                content=content,
                leaf=leaf,
                frontier=b"".join(frontier.append(leaf).nodes),
                operation=event.operation,
                subject=event.subject,
                actor=event.actor,
            )
        )
        return frontier.size

    async def size(self) -> int:
        """How many entries there are."""
        return (await self._frontier(None)).size

    async def root(self, size: int) -> bytes:
        """The root of the tree of the first ``size`` entries.

        Raises:
            ValueError: there are not that many; the caller asks for sizes that it knows.
        """
        if size == 0:
            return EMPTY_ROOT
        frontier = await self._frontier(size)
        if frontier.size != size:
            raise ValueError(f"the log has no {size} entries")
        return frontier.root()

    async def entries(self, *, start: int, limit: int) -> Sequence[AuditEntry]:
        """Entries in order."""
        query = (
            select(_audit.c.sequence, _audit.c.content, _audit.c.leaf)
            .where(_audit.c.sequence >= start)
            .order_by(_audit.c.sequence)
            .limit(limit)
        )
        return [_entry(row) for row in await self._connection.execute(query)]

    async def about(self, *, operation: str, subject: str, limit: int) -> Sequence[AuditEntry]:
        """Entries of one kind about one subject, newest first."""
        query = (
            select(_audit.c.sequence, _audit.c.content, _audit.c.leaf)
            .where(_audit.c.operation == operation, _audit.c.subject == subject)
            .order_by(desc(_audit.c.sequence))
            .limit(limit)
        )
        return [_entry(row) for row in await self._connection.execute(query)]

    async def halt(self, because: str) -> None:
        """Stop all releases until an accepted loss."""
        await self._connection.execute(update(tables.authority).values(halted_because=because))

    async def era(self) -> int:
        """Which beginning of the log this is; grows with each accepted loss."""
        column = tables.authority.c.era
        return int((await self._connection.execute(select(column))).scalar_one())

    async def halted_because(self) -> str:
        """Why releases are stopped; empty when they are not."""
        return str(
            (await self._connection.execute(select(tables.authority.c.halted_because))).scalar_one()
        )

    async def _frontier(self, size: int | None) -> Frontier:
        """The right edge of the tree of the first ``size`` entries, or of all of them."""
        query = select(_audit.c.sequence, _audit.c.frontier)
        query = (
            query.order_by(desc(_audit.c.sequence)).limit(1)
            if size is None
            else query.where(_audit.c.sequence == size - 1)
        )
        row = (await self._connection.execute(query)).first()
        if row is None:
            return Frontier()
        nodes = bytes(row.frontier)
        return Frontier(
            size=row.sequence + 1,
            nodes=tuple(nodes[at : at + HASH_SIZE] for at in range(0, len(nodes), HASH_SIZE)),
        )


def _entry(row: object) -> AuditEntry:
    return AuditEntry(
        sequence=row.sequence,  # type: ignore[attr-defined]
        content=bytes(row.content),  # type: ignore[attr-defined]
        leaf=bytes(row.leaf),  # type: ignore[attr-defined]
    )
