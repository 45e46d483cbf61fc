"""SQLite behind SQLAlchemy: rollback journal, full sync, one writer at a time.

Version 3.7.0-3.51.2 of SQLite can corrupt a database when a WAL is reset, so this engine never uses
WAL: the rollback journal in TRUNCATE mode has no such flaw (N37). ``BEGIN IMMEDIATE`` takes the
write lock before anything is read, so that a decision never rests on a stale read, in this process
or in another one (S2, N48).
"""

from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

BUSY_TIMEOUT_MS = 10_000
"""How long to wait for another process's transaction before StoreUnavailable."""
PRAGMAS = (
    "PRAGMA journal_mode=TRUNCATE",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}",
    "PRAGMA secure_delete=ON",
)


def open_sqlite(path: Path) -> AsyncEngine:
    """Open (or create) the database file; the caller disposes of the engine."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", pool_size=4, max_overflow=4)
    event.listen(engine.sync_engine, "connect", _configure)
    event.listen(engine.sync_engine, "begin", _begin)
    return engine


def _configure(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy, not the driver, says BEGIN
    cursor = connection.cursor()
    for pragma in PRAGMAS:
        cursor.execute(pragma)
    cursor.close()


def _begin(connection: Any) -> None:
    reading = connection.get_execution_options().get("reading", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
