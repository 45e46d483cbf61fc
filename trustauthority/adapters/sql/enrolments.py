"""Pending enrolments and used challenges on SQL."""

import json
from dataclasses import asdict

from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from trustauthority.adapters.sql import tables
from trustauthority.adapters.sql.rows import insert_once
from trustauthority.model.host import Enrolment, PendingEnrolment
from trustauthority.model.identifiers import ClusterId, HostId

_pending = tables.pending
_used = tables.challenge_used


class SqlEnrolments:
    """The Enrolments port."""

    def __init__(self, connection: AsyncConnection, now_ms: int) -> None:
        self._connection = connection
        self._now_ms = now_ms

    async def put(self, pending_id: str, row_sha256: bytes, pending: PendingEnrolment) -> None:
        """Keep a pending row."""
        await self._connection.execute(
            insert(_pending).values(
                pending_id=pending_id,
                row_sha256=row_sha256,
                document=encode_pending(pending),
                peer=pending.peer,
                expires_at_ms=pending.expires_at_ms,
            )
        )

    async def take(self, pending_id: str) -> tuple[bytes, PendingEnrolment] | None:
        """Remove and return a pending row that has not expired: one attempt each (rule 21)."""
        done = await self._connection.execute(
            delete(_pending)
            .where(_pending.c.pending_id == pending_id, _pending.c.expires_at_ms > self._now_ms)
            .returning(_pending.c.row_sha256, _pending.c.document)
        )
        row = done.first()
        return None if row is None else (bytes(row.row_sha256), decode_pending(row.document))

    async def count(self, peer: str) -> int:
        """Count the live pending rows of a peer."""
        query = (
            select(func.count())
            .select_from(_pending)
            .where(_pending.c.peer == peer, _pending.c.expires_at_ms > self._now_ms)
        )
        return int((await self._connection.execute(query)).scalar_one())

    async def consume_challenge(self, challenge_sha256: bytes, *, expires_at_ms: int) -> bool:
        """Use a challenge up; False when it was used before (S4, N06)."""
        row = {"challenge_sha256": challenge_sha256, "expires_at_ms": expires_at_ms}
        return await insert_once(self._connection, _used, row)

    async def purge(self) -> None:
        """Forget what has expired (L4)."""
        await self._connection.execute(
            delete(_pending).where(_pending.c.expires_at_ms <= self._now_ms)
        )
        await self._connection.execute(delete(_used).where(_used.c.expires_at_ms <= self._now_ms))


def encode_pending(pending: PendingEnrolment) -> str:
    """Canonical JSON of a pending row; its hash is what the host answers over."""
    enrolment = {
        name: value.hex() if isinstance(value, bytes) else value
        for name, value in asdict(pending.enrolment).items()
    }
    document = asdict(pending) | {"enrolment": enrolment}
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def decode_pending(document: str) -> PendingEnrolment:
    """Read back what ``encode_pending`` wrote."""
    values = json.loads(document)
    fields = values.pop("enrolment")
    for name in (
        "ek_public",
        "ek_certificate",
        "ek_chain",
        "ak_public",
        "tls_public",
        "storage_public",
        "storage_qualified_name",
    ):
        fields[name] = bytes.fromhex(fields[name])
    fields["host_id"] = HostId(fields["host_id"])
    fields["cluster"] = ClusterId(fields["cluster"])
    return PendingEnrolment(enrolment=Enrolment(**fields), **values)
