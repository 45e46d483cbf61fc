"""KEKs of key providers, defaults of clusters, and rewrap jobs on SQL."""

from collections.abc import Mapping, Sequence

from sqlalchemy import ColumnElement, and_, delete, func, insert, or_, select, tuple_, update

from trustauthority.adapters.sql import key_tables, tables
from trustauthority.adapters.sql.catalogue import Repository
from trustauthority.adapters.sql.rows import columns, record
from trustauthority.model.keyjob import JobState, KekEntry, RewrapJob
from trustauthority.model.placement import KeyState
from trustauthority.model.vm import VmKeyEntry

_kek, _key, _job = key_tables.kek, tables.vm_key, key_tables.rewrap_job
_default = key_tables.default_provider


class SqlKeyProviders(Repository):
    """The KeyProviders port."""

    async def current(self, provider: str) -> KekEntry | None:
        """The KEK that new keys of a provider are wrapped by."""
        found = await self.versions(provider)
        return found[0] if found else None

    async def versions(self, provider: str) -> Sequence[KekEntry]:
        """Every KEK that a provider ever had, newest first."""
        query = select(_kek).where(_kek.c.provider == provider).order_by(_kek.c.version.desc())
        rows = await self._connection.execute(query)
        return [record(KekEntry, row) for row in rows.mappings()]

    async def names(self) -> Sequence[str]:
        """Providers that have a KEK."""
        query = select(_kek.c.provider).distinct().order_by(_kek.c.provider)
        return [str(name) for name in (await self._connection.execute(query)).scalars()]

    async def add_kek(self, entry: KekEntry) -> bool:
        """Record a KEK; False when its version is taken."""
        return await self._insert(_kek, **columns(entry))

    async def keys_by_kek(self, provider: str) -> Mapping[str, int]:
        """How many VM keys each KEK of a provider wraps."""
        query = (
            select(_key.c.kek_id, func.count())
            .where(_key.c.provider == provider, _key.c.wrapped != b"")
            .group_by(_key.c.kek_id)
        )
        return {str(row[0]): int(row[1]) for row in await self._connection.execute(query)}

    async def defaults(self) -> Mapping[str, str]:
        """The default provider of each cluster that has one of its own."""
        rows = await self._connection.execute(select(_default))
        return {row.cluster_id: row.provider for row in rows}

    async def set_default(self, cluster: str, provider: str) -> None:
        """Choose a cluster's default."""
        await self._connection.execute(delete(_default).where(_default.c.cluster_id == cluster))
        values = {"cluster_id": cluster, "provider": provider}
        await self._connection.execute(insert(_default).values(values))


class SqlRewrapJobs(Repository):
    """The RewrapJobs port."""

    async def add(self, job: RewrapJob) -> None:
        """Keep a new job."""
        await self._connection.execute(insert(_job).values(**columns(job)))

    async def get(self, job_id: str) -> RewrapJob | None:
        """Find a job."""
        found = await self._entries(_job.c.job_id == job_id)
        return found[0] if found else None

    async def page(self, *, limit: int) -> Sequence[RewrapJob]:
        """Jobs, newest first."""
        return (await self._entries(_job.c.job_id != ""))[:limit]

    async def unfinished(self) -> Sequence[RewrapJob]:
        """Jobs that somebody must work at, newest first."""
        return await self._entries(_job.c.state == str(JobState.RUNNING))

    async def claim(self, job_id: str, *, worker: str, until_ms: int) -> RewrapJob | None:
        """Take a job that nobody works at, or go on with one's own; None when it is not free."""
        taken = await self._connection.execute(
            update(_job)
            .where(
                _job.c.job_id == job_id,
                _job.c.state == str(JobState.RUNNING),
                or_(_job.c.worker == worker, _job.c.worker_until_ms <= self._now_ms),
            )
            .values(worker=worker, worker_until_ms=until_ms)
        )
        return await self.get(job_id) if taken.rowcount == 1 else None

    async def save(self, job: RewrapJob, *, worker: str) -> bool:
        """Write progress; False when the job is not running or another worker has it."""
        saved = await self._connection.execute(
            update(_job)
            .where(
                _job.c.job_id == job.job_id,
                _job.c.state == str(JobState.RUNNING),
                _job.c.worker == worker,
            )
            .values(**columns(job))
        )
        return saved.rowcount == 1

    async def cancel(self, job_id: str) -> bool:
        """End a running job; False when there is none."""
        ended = await self._connection.execute(
            update(_job)
            .where(_job.c.job_id == job_id, _job.c.state == str(JobState.RUNNING))
            .values(state=str(JobState.CANCELLED), updated_at_ms=self._now_ms)
        )
        return ended.rowcount == 1

    async def remaining(self, job: RewrapJob, *, limit: int) -> tuple[Sequence[VmKeyEntry], int]:
        """The next keys after the job's place, and how many there are from the start."""
        todo = and_(_key.c.provider == job.provider, _key.c.wrapped != b"")
        if job.target == job.provider:
            todo = and_(todo, _key.c.kek_id != job.target_kek_id)
        place = tuple_(_key.c.vm_id, _key.c.key_epoch)
        query = (
            select(_key)
            .where(todo, place > tuple_(job.after_vm, job.after_epoch))
            .order_by(_key.c.vm_id, _key.c.key_epoch)
            .limit(limit)
        )
        rows = (await self._connection.execute(query)).mappings().all()
        count = await self._connection.scalar(select(func.count()).select_from(_key).where(todo))
        return [record(VmKeyEntry, row, state=KeyState) for row in rows], int(count or 0)

    async def _entries(self, condition: ColumnElement[bool]) -> list[RewrapJob]:
        query = select(_job).where(condition).order_by(_job.c.created_at_ms.desc(), _job.c.job_id)
        rows = await self._connection.execute(query)
        return [record(RewrapJob, row, state=JobState) for row in rows.mappings()]
