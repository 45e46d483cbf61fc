"""The Store port on SQLAlchemy: units of work with a guarded clock.

The store's clock is the only clock of decisions. It never goes back: a transaction that would begin
more than ``MAX_STEP_BACK_MS`` before the high-water mark is refused (N33). When the wall clock
outran CLOCK_BOOTTIME, owners do not change for the longest fence (N86).
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from trustauthority.adapters.sql import tables
from trustauthority.adapters.sql.archive import SqlEvidenceArchive
from trustauthority.adapters.sql.audit import SqlAuditLog
from trustauthority.adapters.sql.catalogue import SqlBaselines, SqlCatalogue, SqlInventory
from trustauthority.adapters.sql.enrolments import SqlEnrolments
from trustauthority.adapters.sql.hosts import SqlHosts
from trustauthority.adapters.sql.identities import SqlIdentities
from trustauthority.adapters.sql.placement import SqlPlacement
from trustauthority.adapters.sql.rows import columns
from trustauthority.adapters.sql.vms import SqlKeys, SqlVms
from trustauthority.errors import StoreUnavailable
from trustauthority.placement.clock import ClockGuard, ClockReading, observe
from trustauthority.ports import Clock

MAX_STEP_BACK_MS = 2_000
"""A clock may wander this far back (NTP slewing); further, and nothing is decided."""


class SqlTransaction:
    """One unit of work on one connection."""

    def __init__(self, connection: AsyncConnection, now_ms: int) -> None:
        self.now_ms = now_ms
        self.hosts = SqlHosts(connection, now_ms)
        self.enrolments = SqlEnrolments(connection, now_ms)
        self.archive = SqlEvidenceArchive(connection, now_ms)
        self.catalogue = SqlCatalogue(connection, now_ms)
        self.inventory = SqlInventory(connection, now_ms)
        self.baselines = SqlBaselines(connection, now_ms)
        self.vms = SqlVms(connection, now_ms)
        self.keys = SqlKeys(connection, now_ms)
        self.placement = SqlPlacement(connection, now_ms)
        self.identities = SqlIdentities(connection, now_ms)
        self.audit = SqlAuditLog(connection, now_ms)


class SqlStore:
    """Units of work on one database."""

    def __init__(self, engine: AsyncEngine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._writer = asyncio.Lock()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[SqlTransaction]:
        """Begin a unit of work that may write."""
        async with self._writer:
            try:
                async with self._engine.begin() as connection:
                    now_ms = await self._advance_clock(connection)
                    yield SqlTransaction(connection, now_ms)
            except DBAPIError as error:
                raise StoreUnavailable(
                    f"the database refused: {error.orig}. Check disk space and permissions."
                ) from error

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[SqlTransaction]:
        """Begin a read-only unit of work."""
        try:
            async with self._engine.connect() as plain:
                connection = await plain.execution_options(reading=True)
                yield SqlTransaction(connection, self._clock.now_ms())
                await connection.rollback()
        except DBAPIError as error:
            raise StoreUnavailable(f"the database refused: {error.orig}") from error

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()

    async def _advance_clock(self, connection: AsyncConnection) -> int:
        """Bring the clock guard up to date in this transaction; returns the time of decisions."""
        authority = tables.authority
        reading = ClockReading(
            wall_ms=self._clock.now_ms(),
            boot_ms=self._clock.boottime_ms(),
            boot_id=self._clock.boot_id(),
        )
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
