"""SQLite behind SQLAlchemy: rollback journal, full sync, one writer at a time.

Version 3.7.0-3.51.2 of SQLite can corrupt a database when a WAL is reset, so this engine never uses
WAL, whatever is linked: the rollback journal in TRUNCATE mode has no such flaw (N37). ``BEGIN
IMMEDIATE`` takes the write lock before anything is read, so that a decision never rests on a stale
read, in this process or in another one (S2, N48). The file is created for its owner only, and
refused when others can use it (N60).
"""

import os
import sqlite3
import stat
from pathlib import Path
from typing import Any

from sqlalchemy import URL, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from trustauthority.errors import ConfigurationInvalid, InsecureFile

BUSY_TIMEOUT_MS = 10_000
"""How long to wait for another process's transaction before StoreUnavailable."""
OLDEST_SQLITE = (3, 35, 0)
"""The first version with ``RETURNING``."""
PRAGMAS = (
    ("synchronous", "FULL"),
    ("foreign_keys", "ON"),
    ("secure_delete", "ON"),  # a deleted row does not stay readable in the file
    ("temp_store", "MEMORY"),  # nothing of a transaction lands in a shared /tmp
    ("trusted_schema", "OFF"),
)


def open_sqlite(
    path: Path, *, busy_timeout_ms: int = BUSY_TIMEOUT_MS, must_exist: bool = False
) -> AsyncEngine:
    """Open (or create) the database file; the caller disposes of the engine.

    Raises:
        ConfigurationInvalid: the linked SQLite is too old, or the file can't be had.
        InsecureFile: others can use the file, or it belongs to someone else.
    """
    require_version(sqlite3.sqlite_version_info)
    _require_private(path, must_exist=must_exist)
    url = URL.create("sqlite+aiosqlite", database=str(path))
    engine = create_async_engine(url, pool_size=4, max_overflow=4, pool_timeout=10)
    event.listen(engine.sync_engine, "connect", _configure_with(busy_timeout_ms))
    event.listen(engine.sync_engine, "begin", _begin)
    return engine


def require_version(linked: tuple[int, ...]) -> None:
    """Refuse a SQLite that lacks what decisions are written with. Raises ConfigurationInvalid."""
    if linked < OLDEST_SQLITE:
        raise ConfigurationInvalid(
            f"SQLite {'.'.join(map(str, linked))} is linked; 3.35 or newer is needed"
        )


def _require_private(path: Path, *, must_exist: bool) -> None:
    """Create the file for its owner only, or check that it is so (N60)."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (0 if must_exist else os.O_CREAT)
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise ConfigurationInvalid(
            f"can't open the database {path}: {error.strerror}", path=str(path)
        ) from error
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise ConfigurationInvalid(f"the database {path} is not a file", path=str(path))
    if status.st_uid not in (os.geteuid(), 0):
        raise InsecureFile(f"the database {path} belongs to another user", path=str(path))
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InsecureFile(
            f"the database {path} can be used by others (mode "
            f"{stat.S_IMODE(status.st_mode):04o}); run chmod 600 {path}",
            path=str(path),
        )


def _configure_with(busy_timeout_ms: int) -> Any:
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy, not the driver, says BEGIN
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={int(busy_timeout_ms)}")
        cursor.execute("PRAGMA journal_mode=TRUNCATE")
        mode = cursor.fetchone()[0]
        for name, value in PRAGMAS:
            cursor.execute(f"PRAGMA {name}={value}")
        cursor.close()
        if mode != "truncate":  # someone else has the file open in WAL mode
            raise sqlite3.OperationalError(f"the journal mode is {mode}, not truncate (N37)")

    return configure


def _begin(connection: Any) -> None:
    reading = connection.get_execution_options().get("reading", False)
    # advice can't turn into a decision: a snapshot that writes is an error
    connection.exec_driver_sql(f"PRAGMA query_only={'ON' if reading else 'OFF'}")
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
