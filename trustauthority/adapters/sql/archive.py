"""Verdicts and evidence blobs on SQL, content-addressed."""

import hashlib
from collections.abc import Mapping, Sequence

from sqlalchemy import Select, and_, delete, exists, func, insert, not_, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import ColumnElement

from trustauthority.adapters.sql import tables
from trustauthority.adapters.sql.rows import insert_once
from trustauthority.model.retention import KeptVerdict

_blob = tables.blob
_verdict = tables.verdict
_host = tables.host


def _is_newest() -> ColumnElement[bool]:
    """Whether a row of ``verdict`` is its host's newest one."""
    newest = and_(
        _host.c.host_id == _verdict.c.host_id, _host.c.verdict_id == _verdict.c.verdict_id
    )
    return exists().where(newest)


_PARTS: Select[tuple[str, bytes, bytes, int]] = select(
    _verdict.c.evidence_sha256,
    _verdict.c.boot_log_sha256,
    _verdict.c.ima_log_sha256,
    _verdict.c.size,
)


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
            row = {
                "sha256": sha256,
                "content": content,
                "size": len(content),
                "stored_at_ms": self._now_ms,
            }
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
        size = sum(len(str(values[name])) for name in ("document", "seal", "report"))
        row = {"verdict_id": verdict_id, "size": size, **values}
        await self._connection.execute(insert(_verdict).values(**row))

    async def get_verdict(self, verdict_id: str) -> Mapping[str, object] | None:
        """Read a verdict back."""
        rows = await self._connection.execute(
            select(_verdict).where(_verdict.c.verdict_id == verdict_id)
        )
        row = rows.mappings().first()
        return None if row is None else dict(row)

    async def removable(
        self, *, passed_before_ms: int, failed_before_ms: int, limit: int
    ) -> Sequence[KeptVerdict]:
        """List what may go, those that passed first, oldest first; never a host's newest verdict."""
        found: list[KeptVerdict] = []
        for passed, before_ms in ((True, passed_before_ms), (False, failed_before_ms)):
            rows = await self._connection.execute(
                select(_verdict.c.verdict_id, _verdict.c.decided_at_ms)
                .where(
                    _verdict.c.passed.is_(passed),
                    _verdict.c.decided_at_ms < before_ms,
                    not_(_is_newest()),
                )
                .order_by(_verdict.c.decided_at_ms)
                .limit(limit - len(found))
            )
            found += [
                KeptVerdict(
                    verdict_id=row.verdict_id, passed=passed, decided_at_ms=row.decided_at_ms
                )
                for row in rows
            ]
        return found

    async def remove(self, verdicts: Sequence[KeptVerdict]) -> int:
        """Remove verdicts and the blobs that no other verdict rests on; returns the bytes freed."""
        return sum([await self._remove(each.verdict_id) for each in verdicts])

    async def _remove(self, verdict_id: str) -> int:
        chosen = _verdict.c.verdict_id == verdict_id
        row = (await self._connection.execute(_PARTS.where(chosen))).first()
        if row is None:
            return 0
        gone = await self._connection.execute(delete(_verdict).where(chosen, not_(_is_newest())))
        if not gone.rowcount:
            return 0
        freed = int(row.size)
        parts = {bytes.fromhex(row.evidence_sha256), row.boot_log_sha256, row.ima_log_sha256}
        for sha256 in sorted(map(bytes, parts)):
            freed += await self._remove_blob(sha256)
        return freed

    async def _remove_blob(self, sha256: bytes) -> int:
        """Remove one blob unless a verdict still rests on it."""
        size = await self._connection.scalar(select(_blob.c.size).where(_blob.c.sha256 == sha256))
        used = exists().where(
            or_(
                _verdict.c.evidence_sha256 == sha256.hex(),
                _verdict.c.boot_log_sha256 == sha256,
                _verdict.c.ima_log_sha256 == sha256,
            )
        )
        gone = await self._connection.execute(
            delete(_blob).where(_blob.c.sha256 == sha256, not_(used))
        )
        return int(size or 0) if gone.rowcount else 0

    async def stored_bytes(self) -> int:
        """Count the bytes of verdicts and blobs."""
        totals = [
            await self._connection.scalar(select(func.coalesce(func.sum(column), 0)))
            for column in (_verdict.c.size, _blob.c.size)
        ]
        return sum(int(total or 0) for total in totals)
