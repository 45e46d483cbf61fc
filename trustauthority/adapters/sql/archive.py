"""Verdicts and evidence blobs on SQL, content-addressed."""

import hashlib
from collections.abc import Mapping

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from trustauthority.adapters.sql import tables
from trustauthority.adapters.sql.rows import insert_once

_blob = tables.blob
_verdict = tables.verdict


class SqlEvidenceArchive:
    """The EvidenceArchive port."""

    def __init__(self, connection: AsyncConnection, now_ms: int) -> None:
        self._connection = connection
        self._now_ms = now_ms

    async def put_blob(self, content: bytes) -> bytes:
        """Keep bytes once; returns their SHA-256."""
        sha256 = hashlib.sha256(content).digest()
        known = select(_blob.c.sha256).where(_blob.c.sha256 == sha256)
        if await self._connection.scalar(known) is None:  # a boot log is large: don't send it twice
            row = {"sha256": sha256, "content": content, "stored_at_ms": self._now_ms}
            await insert_once(self._connection, _blob, row)
        return sha256

    async def get_blob(self, sha256: bytes) -> bytes | None:
        """Read bytes back."""
        rows = await self._connection.execute(
            select(_blob.c.content).where(_blob.c.sha256 == sha256)
        )
        row = rows.first()
        return None if row is None else bytes(row.content)

    async def put_verdict(self, verdict_id: str, values: Mapping[str, object]) -> None:
        """Keep a verdict with its seal and report."""
        await self._connection.execute(insert(_verdict).values(verdict_id=verdict_id, **values))

    async def get_verdict(self, verdict_id: str) -> Mapping[str, object] | None:
        """Read a verdict back."""
        rows = await self._connection.execute(
            select(_verdict).where(_verdict.c.verdict_id == verdict_id)
        )
        row = rows.mappings().first()
        return None if row is None else dict(row)
