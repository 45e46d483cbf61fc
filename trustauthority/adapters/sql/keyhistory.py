"""Who received which key, and when that ended: read from the audit log on SQL."""

from collections.abc import Sequence

from sqlalchemy import select

from trustauthority.adapters.sql import tables
from trustauthority.adapters.sql.catalogue import Repository
from trustauthority.model.audit import AuditEntry

_audit = tables.audit
_ENDS = ("key.give-back", "move.switch")
"""What a host itself tells when it has a VM no more."""


class SqlKeyHistory(Repository):
    """The KeyHistory port."""

    async def releases(self, *, actor: str, after: int, limit: int) -> Sequence[AuditEntry]:
        """Entries of releases after a place in the log, in order; of one actor or (empty) of all."""
        query = (
            select(_audit.c.sequence, _audit.c.content, _audit.c.leaf)
            .where(_audit.c.operation == "key.release", _audit.c.sequence > after)
            .order_by(_audit.c.sequence)
            .limit(limit)
        )
        if actor:
            query = query.where(_audit.c.actor == actor)
        rows = await self._connection.execute(query)
        return [AuditEntry(**row) for row in rows.mappings()]

    async def ends(self, *, actor: str, subject: str, after: int) -> Sequence[AuditEntry]:
        """Entries by which a host gave a VM away after a place in the log, in order."""
        query = (
            select(_audit.c.sequence, _audit.c.content, _audit.c.leaf)
            .where(
                _audit.c.operation.in_(_ENDS),
                _audit.c.actor == actor,
                _audit.c.subject == subject,
                _audit.c.sequence > after,
            )
            .order_by(_audit.c.sequence)
        )
        rows = await self._connection.execute(query)
        return [AuditEntry(**row) for row in rows.mappings()]
