"""The Store port on SQLAlchemy: units of work with a guarded clock.

The store's clock is the only clock of decisions. It never goes back: a transaction that would begin
more than ``MAX_STEP_BACK_MS`` before the high-water mark is refused (N33). When the wall clock
outran CLOCK_BOOTTIME, owners do not change for the longest fence (N86).
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from sqlalchemy import select, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from trustauthority.adapters.sql import tables
from trustauthority.adapters.sql.archive import SqlEvidenceArchive
from trustauthority.adapters.sql.audit import SqlAuditLog
from trustauthority.adapters.sql.break_glass import SqlBreakGlasses
from trustauthority.adapters.sql.catalogue import (
    SqlBaselines,
    SqlCatalogue,
    SqlInventory,
    SqlTrustLists,
)
from trustauthority.adapters.sql.engine import BUSY_TIMEOUT_MS, open_sqlite
from trustauthority.adapters.sql.enrolments import SqlEnrolments
from trustauthority.adapters.sql.hosts import SqlHosts
from trustauthority.adapters.sql.identities import SqlIdentities
from trustauthority.adapters.sql.keyhistory import SqlKeyHistory
from trustauthority.adapters.sql.keyproviders import SqlKeyProviders, SqlRewrapJobs
from trustauthority.adapters.sql.keys import SqlKeys
from trustauthority.adapters.sql.orders import SqlMoveOrders
from trustauthority.adapters.sql.placement import SqlPlacement
from trustauthority.adapters.sql.releasepolicies import SqlReleasePolicies
from trustauthority.adapters.sql.restart import SqlRestart
from trustauthority.adapters.sql.rows import columns
from trustauthority.adapters.sql.schema import migrate
from trustauthority.adapters.sql.vms import SqlVms
from trustauthority.errors import StoreUnavailable
from trustauthority.placement.clock import ClockGuard, ClockReading, observe
from trustauthority.ports import Clock

MAX_STEP_BACK_MS = 2_000
"""A clock may wander this far back (NTP slewing); further, and nothing is decided."""
MAX_READING_MS = 20
"""Longest time between two clocks read "together"; a pause between them looks like a step."""
_READINGS = 10


class SqlTransaction:
    """One unit of work on one connection."""

    def __init__(self, cancellable: AsyncConnection, now_ms: int) -> None:
        self.now_ms = now_ms
        connection = cast("AsyncConnection", _WholeStatements(cancellable))
        self.hosts = SqlHosts(connection, now_ms)
        self.enrolments = SqlEnrolments(connection, now_ms)
        self.archive = SqlEvidenceArchive(connection, now_ms)
        self.catalogue = SqlCatalogue(connection, now_ms)
        self.trust_lists = SqlTrustLists(connection, now_ms)
        self.inventory = SqlInventory(connection, now_ms)
        self.baselines = SqlBaselines(connection, now_ms)
        self.vms = SqlVms(connection, now_ms)
        self.break_glass = SqlBreakGlasses(connection, now_ms)
        self.keys = SqlKeys(connection, now_ms)
        self.key_history = SqlKeyHistory(connection, now_ms)
        self.key_providers = SqlKeyProviders(connection, now_ms)
        self.release_policies = SqlReleasePolicies(connection, now_ms)
        self.rewrap_jobs = SqlRewrapJobs(connection, now_ms)
        self.placement = SqlPlacement(connection, now_ms)
        self.orders = SqlMoveOrders(connection, now_ms)
        self.identities = SqlIdentities(connection, now_ms)
        self.audit = SqlAuditLog(connection, now_ms)
        self.restart = SqlRestart(connection, now_ms)


class SqlStore:
    """Units of work on one database."""

    def __init__(
        self, engine: AsyncEngine, clock: Clock, *, busy_timeout_ms: int = BUSY_TIMEOUT_MS
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._busy_timeout_ms = busy_timeout_ms
        self._writer = asyncio.Lock()
        self._in_use = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[SqlTransaction]:
        """Begin a unit of work that may write; it commits when the block ends without an error.

        A commit is never cancelled: a caller that gives up waits for its outcome all the same.
        """
        await self._take_turn()
        try:
            with _as_unavailable():
                async with self._connect() as connection:
                    await _uncancelled(_begin(connection))
                    now_ms = await _uncancelled(self._advance_clock(connection))
                    yield SqlTransaction(connection, now_ms)
                    await _uncancelled(connection.commit())
        finally:
            self._writer.release()

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[SqlTransaction]:
        """Begin a read-only unit of work; a write in it fails. Works while the clock is behind."""
        with _as_unavailable():
            async with self._connect() as plain:
                connection = await plain.execution_options(reading=True)
                query = select(tables.authority.c.high_water_ms)
                mark = await _uncancelled(connection.scalar(query))
                now_ms = max(self._clock.now_ms(), int(mark or 0))
                yield SqlTransaction(connection, now_ms)
                await _uncancelled(connection.rollback())

    async def close(self) -> None:
        """Refuse new units of work, let those under way end, and close all connections.

        A connection that comes back to a pool which was disposed of stays open for ever.
        """
        self._closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self._busy_timeout_ms / 1000):
                await self._idle.wait()
        await self._engine.dispose()

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[AsyncConnection]:
        if self._closed:
            raise StoreUnavailable("the database was closed: this process is ending")
        self._in_use += 1
        self._idle.clear()
        try:
            async with self._engine.connect() as connection:
                yield connection
        finally:
            self._in_use -= 1
            if not self._in_use:
                self._idle.set()

    async def _take_turn(self) -> None:
        """One writer at a time in this process; those of others are held off by the database."""
        try:
            async with asyncio.timeout(self._busy_timeout_ms / 1000):
                await self._writer.acquire()
        except TimeoutError as error:
            raise StoreUnavailable("the database is busy: too many decisions wait") from error

    async def _advance_clock(self, connection: AsyncConnection) -> int:
        """Bring the clock guard up to date in this transaction; returns the time of decisions."""
        authority = tables.authority
        reading = _read(self._clock)
        row = (await connection.execute(select(authority))).one()
        if reading.wall_ms < row.high_water_ms - MAX_STEP_BACK_MS:
            raise StoreUnavailable(
                f"the clock stands {row.high_water_ms - reading.wall_ms} ms before a time that was "
                "already decided at; nothing is decided until it caught up"
            )
        guard = ClockGuard(
            high_water_ms=row.high_water_ms,
            hold_owners_until_ms=row.hold_owners_until_ms,
            boot_id=row.boot_id,
            least_offset_ms=row.least_offset_ms,
        )
        guard = observe(guard, reading, longest_fence_ms=row.longest_fence_ms)
        await connection.execute(update(authority).values(**columns(guard)))
        return guard.high_water_ms


async def open_store(
    path: Path, clock: Clock, *, busy_timeout_ms: int = BUSY_TIMEOUT_MS, must_exist: bool = False
) -> SqlStore:
    """Open the SQLite database, bring its tables up to date, and return the store.

    Args:
        path: the file; made for its owner only when there is none and ``must_exist`` is false.
        clock: the clock of decisions.
        busy_timeout_ms: how long to wait for other writers before StoreUnavailable.
        must_exist: refuse to begin an empty database, as a running authority should.

    Raises:
        ConfigurationInvalid, InsecureFile, StoreUnavailable: nothing was changed.
    """
    engine = open_sqlite(path, busy_timeout_ms=busy_timeout_ms, must_exist=must_exist)
    try:
        await migrate(engine)
    except BaseException:
        await engine.dispose()
        raise
    return SqlStore(engine, clock, busy_timeout_ms=busy_timeout_ms)


def _read(clock: Clock) -> ClockReading:
    """Both clocks at one moment: read again while the machine paused in between."""
    boot_id = clock.boot_id()
    readings = []
    for _ in range(_READINGS):
        before_ms, wall_ms, after_ms = clock.boottime_ms(), clock.now_ms(), clock.boottime_ms()
        readings.append((after_ms - before_ms, wall_ms, before_ms))
        if after_ms - before_ms <= MAX_READING_MS:
            break
    _, wall_ms, boot_ms = min(readings)
    return ClockReading(wall_ms=wall_ms, boot_ms=boot_ms, boot_id=boot_id)


async def _begin(connection: AsyncConnection) -> None:
    await connection.begin()


class _WholeStatements:
    """A connection whose statements end before a cancellation is told.

    A statement that is cut off leaves its connection open with its lock, and nobody can write any
    more: a caller that hangs up at the right moment must not be able to do that (N40).
    """

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def execute(self, *arguments: Any, **options: Any) -> Any:
        """As of the connection."""
        return await _uncancelled(self._connection.execute(*arguments, **options))

    async def scalar(self, *arguments: Any, **options: Any) -> Any:
        """As of the connection."""
        return await _uncancelled(self._connection.scalar(*arguments, **options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


async def _uncancelled(work: Coroutine[Any, Any, Any]) -> Any:
    """Wait for ``work`` to end, and only then tell of a cancellation."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result


@contextmanager
def _as_unavailable() -> Iterator[None]:
    """Errors of the database in terms of the port; a broken constraint is a mistake of ours."""
    try:
        yield
    except IntegrityError:
        raise
    except (DBAPIError, PoolTimeout, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        raise StoreUnavailable(
            f"the database refused: {cause}. Check disk space, permissions and other users of it."
        ) from error
