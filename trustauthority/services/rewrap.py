"""All VM keys of a provider to another KEK: online, key by key, by whichever process is alive (N59).

What it guarantees: a key's row holds one wrapping at any time, and changes from the old one to the new
one by one conditional write, together with the job's progress and an audit entry; a worker that was
replaced or a job that was cancelled writes nothing more. A worker may be killed anywhere: the next one
goes on after its time is over. Releases go on meanwhile, under whichever KEK the row names. What it does
not do: see a key (``ports.KeyRoom``), or destroy the old KEK.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace

from trustauthority.errors import (
    FailedPrecondition,
    KmsUnavailable,
    NotFound,
    TrustAuthorityError,
)
from trustauthority.model.audit import AuditEvent
from trustauthority.model.keyjob import JobState, RewrapJob, RewrapOrder
from trustauthority.model.vm import VmKeyEntry
from trustauthority.ports import Journal, KeyRoom, Store, Transaction
from trustauthority.services.keyproviders import KeyProviderService
from trustauthority.services.orders import wrapping_aad

BATCH = 50
"""Keys that are read at a time."""
WORKER_MS = 60_000
"""Somebody else goes on with a job that its worker has not written to for this long."""
WAIT_MS = 30_000
"""After a pass in which keys were left over, the KMS is left alone this long."""
GIVE_UP_AFTER = 3
"""Failures in a row that end a pass: the KMS is away, the other keys need not be tried now."""


class _Replaced(Exception):
    """Another worker has the job, or it was cancelled: nothing of this step is written."""


class RewrapService:
    """Starts, shows and does rewrap jobs."""

    def __init__(
        self, store: Store, room: KeyRoom, providers: KeyProviderService, journal: Journal
    ) -> None:
        self._store = store
        self._room = room
        self._providers = providers
        self._journal = journal
        self._worker = secrets.token_urlsafe(12)

    # --- administration ------------------------------------------------------------------------

    async def start(
        self, provider: str, *, target: str, new_kek: bool, by: str, dry_run: bool = False
    ) -> RewrapJob:
        """Begin to wrap every key of a provider again.

        Args:
            provider: whose keys.
            target: the provider that wraps them afterwards; empty for the same one.
            new_kek: make the next version of the target's KEK first.
            by: who asks.
            dry_run: count only; with ``new_kek`` nothing is made.

        Raises:
            NotFound: the provider has no KEK, or the target is not configured.
            FailedPrecondition: a job for these keys runs.
            KmsUnavailable: no KEK was made; nothing changed.
        """
        target = target or provider
        async with self._store.snapshot() as tx:
            await _require_startable(tx, provider, target)
            if dry_run:
                kek = await tx.key_providers.current(target)
                wanted = "" if kek is None or new_kek else kek.kek_id
                job = _job(tx.now_ms, provider, target, wanted, by=by)
                _, total = await tx.rewrap_jobs.remaining(job, limit=1)
                return replace(job, total=total)
        if target not in self._room.providers:
            raise NotFound(
                f"no KMS is configured for key provider {target!r}", kind="provider", name=target
            )
        turn = self._providers.rotate if new_kek else self._providers.kek
        kek = await turn(target, by=by)
        async with self._store.transaction() as tx:
            await _require_startable(tx, provider, target)
            job = _job(tx.now_ms, provider, target, kek.kek_id, by=by)
            _, total = await tx.rewrap_jobs.remaining(job, limit=1)
            job = replace(job, total=total)
            await tx.rewrap_jobs.add(job)
            details: dict[str, str | int] = {
                "job": job.job_id,
                "target": target,
                "kek": kek.kek_id,
                "keys": total,
            }
            await _audit(tx, "provider.rewrap", provider, by=by, details=details)
        return job

    async def jobs(self, *, limit: int) -> Sequence[RewrapJob]:
        """Jobs, newest first."""
        async with self._store.snapshot() as tx:
            return await tx.rewrap_jobs.page(limit=limit)

    async def get(self, job_id: str) -> RewrapJob:
        """One job. Raises NotFound."""
        async with self._store.snapshot() as tx:
            job = await tx.rewrap_jobs.get(job_id)
        if job is None:
            raise NotFound(f"there is no job {job_id!r}; see ta key jobs", kind="job", name=job_id)
        return job

    async def cancel(self, job_id: str, *, by: str) -> RewrapJob:
        """End a job; keys that were wrapped again stay so. Raises NotFound, FailedPrecondition."""
        job = await self.get(job_id)
        async with self._store.transaction() as tx:
            if not await tx.rewrap_jobs.cancel(job_id):
                raise FailedPrecondition(f"job {job_id} is {job.state} already", state=job.state)
            details = {"job": job_id}
            await _audit(tx, "provider.cancel-rewrap", job.provider, by=by, details=details)
        return await self.get(job_id)

    # --- the work ------------------------------------------------------------------------------

    async def work(self) -> None:
        """Go on with every job that is free, until it is done or has to wait."""
        async with self._store.snapshot() as tx:
            jobs, now_ms = await tx.rewrap_jobs.unfinished(), tx.now_ms
        for job in jobs:
            if job.wait_until_ms <= now_ms:
                await self._work_at(job)

    async def _work_at(self, job: RewrapJob) -> None:
        async with self._store.transaction() as tx:
            until_ms = tx.now_ms + WORKER_MS
            mine = await tx.rewrap_jobs.claim(job.job_id, worker=self._worker, until_ms=until_ms)
        if mine is None:
            return
        try:
            await self._finish(await self._pass(mine))
        except _Replaced:
            self._journal.record("rewrap_replaced", job=job.job_id)

    async def _pass(self, job: RewrapJob) -> RewrapJob:
        """Look at each key that is left once; stops early when the KMS is away."""
        in_a_row = 0
        while in_a_row < GIVE_UP_AFTER:
            async with self._store.snapshot() as tx:
                keys, _ = await tx.rewrap_jobs.remaining(job, limit=BATCH)
            if not keys:
                break
            for key in keys:
                failed = job.failed
                job = await self._one(job, key)
                in_a_row = in_a_row + 1 if job.failed > failed else 0
                if in_a_row >= GIVE_UP_AFTER:
                    break
        return job

    async def _one(self, job: RewrapJob, key: VmKeyEntry) -> RewrapJob:
        """Wrap one key again; a KMS that fails leaves it as it was, for the next pass."""
        place = replace(job, after_vm=key.vm_id, after_epoch=key.key_epoch)
        try:
            wrapped = await self._room.rewrap(_order(job, key))
        except KmsUnavailable as failure:
            failed = replace(
                place, failed=job.failed + 1, detail=f"VM {key.vm_id}: {failure.message}"
            )
            async with self._store.transaction() as tx:
                return await self._save(tx, failed)
        now = replace(key, provider=job.target, kek_id=job.target_kek_id, wrapped=wrapped)
        async with self._store.transaction() as tx:
            if not await tx.keys.replace(key, now):
                return await self._save(tx, place)  # it changed meanwhile: the next pass sees it
            details: dict[str, str | int] = {
                "job": job.job_id,
                "key_epoch": key.key_epoch,
                "provider": job.target,
                "kek": job.target_kek_id,
                "old_kek": key.kek_id,
            }
            await _audit(tx, "key.rewrap", key.vm_id, by="authority", details=details)
            return await self._save(tx, replace(place, done=job.done + 1))

    async def _finish(self, job: RewrapJob) -> None:
        async with self._store.transaction() as tx:
            begin = replace(job, after_vm="", after_epoch=0)
            _, left = await tx.rewrap_jobs.remaining(begin, limit=1)
            if left:
                waiting = replace(begin, failed=0, wait_until_ms=tx.now_ms + WAIT_MS)
                await self._save(tx, waiting)
                return
            await self._save(tx, replace(begin, state=JobState.DONE, failed=0, detail=""))
            details: dict[str, str | int] = {"job": job.job_id, "keys": job.done}
            await _audit(tx, "provider.rewrapped", job.provider, by="authority", details=details)
        self._journal.record("rewrapped", provider=job.provider, keys=job.done)

    async def _save(self, tx: Transaction, job: RewrapJob) -> RewrapJob:
        saved = replace(job, worker_until_ms=tx.now_ms + WORKER_MS, updated_at_ms=tx.now_ms)
        if not await tx.rewrap_jobs.save(saved, worker=self._worker):
            raise _Replaced
        return saved


async def work_quietly(service: RewrapService, journal: Journal) -> None:
    """One round of work; a store that stands still, or has no room, ends the round only."""
    try:
        await service.work()
    except TrustAuthorityError as error:
        journal.record("rewrap_failed", reason=error.reason, detail=error.message)


async def _require_startable(tx: Transaction, provider: str, target: str) -> None:
    if await tx.key_providers.current(provider) is None:
        raise NotFound(f"provider {provider!r} wraps no key", kind="provider", name=provider)
    for job in await tx.rewrap_jobs.unfinished():
        if {job.provider, job.target} & {provider, target}:
            raise FailedPrecondition(
                f"job {job.job_id} of these providers runs; see ta key jobs", job=job.job_id
            )


def _job(now_ms: int, provider: str, target: str, kek_id: str, *, by: str) -> RewrapJob:
    return RewrapJob(
        job_id=secrets.token_hex(8),
        provider=provider,
        target=target,
        target_kek_id=kek_id,
        total=0,
        created_at_ms=now_ms,
        created_by=by,
        updated_at_ms=now_ms,
    )


def _order(job: RewrapJob, key: VmKeyEntry) -> RewrapOrder:
    return RewrapOrder(
        provider=key.provider,
        kek_id=key.kek_id,
        wrapped=key.wrapped,
        aad=wrapping_aad(key.vm_id, key.key_epoch, key.provider),
        target=job.target,
        target_kek_id=job.target_kek_id,
        target_aad=wrapping_aad(key.vm_id, key.key_epoch, job.target),
    )


async def _audit(
    tx: Transaction, operation: str, subject: str, *, by: str, details: Mapping[str, str | int]
) -> None:
    event = AuditEvent(
        actor=by, operation=operation, subject=subject, decision="done", details=details
    )
    await tx.audit.append(event)
