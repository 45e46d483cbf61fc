"""How long evidence is kept: old verdicts go, with what only they rested on (rule 67).

What it guarantees: a host's newest verdict and its evidence are never removed; each batch is one transaction
with its own audit entry, and one purge has a bounded number of them. What it does not do: shorten the audit
log, which keeps the hashes of verdicts and evidence for ever. Time is the store's.
"""

import asyncio
from dataclasses import dataclass

from trustauthority.errors import TrustAuthorityError
from trustauthority.model.audit import AuditEvent
from trustauthority.model.retention import KeptVerdict, Retention
from trustauthority.ports import Journal, Store, Transaction

BATCH = 200
"""Verdicts per transaction: the write lock is free again after some ten milliseconds."""
MAX_BATCHES = 500
"""Per purge: 100,000 verdicts an hour are more than 10,000 hosts that attest every 15 minutes give."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """What one purge removed."""

    verdicts: int
    freed_bytes: int
    stored_bytes: int
    """What is still kept."""


class RetentionService:
    """Removes what need not be kept any more."""

    def __init__(self, store: Store, journal: Journal, retention: Retention, node: str) -> None:
        self._store = store
        self._journal = journal
        self._retention = retention
        self._node = node

    async def purge(self, stopping: asyncio.Event) -> Purged:
        """Remove what is past its time, then what is above the bound; ends early when asked to stop."""
        verdicts = freed = 0
        for _ in range(MAX_BATCHES):
            if stopping.is_set():
                break
            removed, bytes_freed = await self._batch()
            verdicts, freed = verdicts + removed, freed + bytes_freed
            if not removed:
                break
        async with self._store.snapshot() as tx:
            stored = await tx.archive.stored_bytes()
        above = stored > self._retention.max_bytes
        if verdicts or above:
            self._journal.record(
                "evidence-purge", verdicts=verdicts, freed=freed, stored=stored, above_bound=above
            )
        return Purged(verdicts=verdicts, freed_bytes=freed, stored_bytes=stored)

    async def run(self, stopping: asyncio.Event, *, every_s: float) -> None:
        """Purge again and again until ``stopping`` is set; a purge that fails is told and tried again."""
        while not stopping.is_set():
            try:
                await self.purge(stopping)
            except TrustAuthorityError as error:
                self._journal.record("evidence-purge", failed=error.reason, why=error.message)
            except Exception as error:  # noqa: BLE001 - evidence that stays too long must not end the process
                self._journal.record("evidence-purge", failed="INTERNAL", why=type(error).__name__)
            try:
                await asyncio.wait_for(stopping.wait(), timeout=every_s)
            except TimeoutError:
                continue

    async def _batch(self) -> tuple[int, int]:
        """Remove one batch: how many verdicts, how many bytes."""
        async with self._store.snapshot() as tx:
            if not (await self._chosen(tx))[0]:
                return 0, 0  # the usual case takes no write lock
        async with self._store.transaction() as tx:
            chosen, why = await self._chosen(tx)
            freed = await tx.archive.remove(chosen)
            if not chosen:
                return 0, 0
            await tx.audit.append(self._entry(chosen, freed, why))
        return len(chosen), freed

    async def _chosen(self, tx: Transaction) -> tuple[tuple[KeptVerdict, ...], str]:
        """What goes next, and why."""
        keep = self._retention
        aged = await tx.archive.removable(
            passed_before_ms=tx.now_ms - keep.keep_passed_ms,
            failed_before_ms=tx.now_ms - keep.keep_failed_ms,
            limit=BATCH,
        )
        if aged:
            return tuple(aged), "past its time"
        if await tx.archive.stored_bytes() <= keep.max_bytes:
            return (), ""
        # Down to the bound and not far below it: a tenth of a batch at a time.
        oldest = await tx.archive.removable(
            passed_before_ms=tx.now_ms + 1, failed_before_ms=tx.now_ms + 1, limit=BATCH // 10
        )
        return tuple(oldest), "above the bound"

    def _entry(self, chosen: tuple[KeptVerdict, ...], freed: int, why: str) -> AuditEvent:
        times = [each.decided_at_ms for each in chosen]
        return AuditEvent(
            actor="authority",
            operation="evidence.purge",
            subject=self._node,
            decision="done",
            reason=why,
            details={
                "verdicts": len(chosen),
                "failed_ones": sum(not each.passed for each in chosen),
                "bytes": freed,
                "oldest_ms": min(times),
                "newest_ms": max(times),
            },
        )
