"""Faults of SQLite's world: no room, kills, other programs that hold the file (N35, N36)."""

import asyncio
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from support.stores import A, SqliteStores, host_row, populate, rows_of

from trustauthority.adapters.sql import tables
from trustauthority.adapters.sql.store import SqlStore
from trustauthority.errors import StoreUnavailable
from trustauthority.model.audit import AuditEvent

TESTS = Path(__file__).resolve().parents[1]
ENTRY = AuditEvent(actor="a", operation="o", subject="s", decision="done")


class Disk:
    """How many pages the database may have, on every connection."""

    def __init__(self, store: SqlStore) -> None:
        self.pages = 2**30
        event.listen(store._engine.sync_engine, "begin", self._limit)

    def _limit(self, connection: Any) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count={self.pages}")


def pages_of(path: Path) -> int:
    plain = sqlite3.connect(path)
    (pages,) = plain.execute("PRAGMA page_count").fetchone()
    plain.close()
    return int(pages)


class TestNoRoom:
    async def test_full_disk(self, files: SqliteStores) -> None:
        """Without room nothing is decided and nothing is half-written; with room it goes on (N35)."""
        store = await files.open()
        disk = Disk(store)
        await populate(store)

        async def decide() -> None:
            async with store.transaction() as tx:
                await tx.hosts.set_revoked(A, revoked=True)
                await tx.audit.append(ENTRY)
                await tx.archive.put_blob(os.urandom(200_000))

        disk.pages = pages_of(files.path) + 2
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="full"):
                await decide()
            assert not (await host_row(store, A)).revoked
            assert await rows_of(store, tables.audit) == []
        plain = sqlite3.connect(files.path)
        assert plain.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        plain.close()
        disk.pages = 2**30
        await decide()
        assert (await host_row(store, A)).revoked
        assert len(await rows_of(store, tables.audit)) == 1

    async def test_read_only_file_system(self, files: SqliteStores) -> None:
        """A database that can't be written decides nothing, and lists go on (N35)."""
        store = await files.open()
        await populate(store)

        def read_only(connection: Any) -> None:
            reading = connection.get_execution_options().get("reading", False)
            connection.exec_driver_sql("PRAGMA query_only=ON" if not reading else "SELECT 1")

        event.listen(store._engine.sync_engine, "begin", read_only)
        with pytest.raises(StoreUnavailable, match="readonly"):
            async with store.transaction():
                pass
        assert await host_row(store, A)

    async def test_damaged_file(self, files: SqliteStores) -> None:
        """A file whose pages are gone is an error, never an empty answer (N36)."""
        store = await files.open()
        await populate(store)
        await store.close()
        content = files.path.read_bytes()
        files.path.write_bytes(content[:8192] + b"\x5a" * (len(content) - 8192))
        with pytest.raises(StoreUnavailable):
            async with store.transaction() as tx:
                await tx.hosts.get(A)


class TestClosing:
    async def test_closing_waits_for_what_is_under_way(self, files: SqliteStores) -> None:
        """A store that closes lets a decision end, leaves no connection open, decides no more (N35)."""
        store = await files.open()
        begun, may_end = asyncio.Event(), asyncio.Event()

        async def decide() -> int:
            async with store.transaction() as tx:
                begun.set()
                await may_end.wait()
                return await tx.audit.append(ENTRY)

        deciding = asyncio.create_task(decide())
        await begun.wait()
        closing = asyncio.create_task(store.close())
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailable, match="closed"):
            async with store.snapshot():
                pass
        assert not closing.done()
        may_end.set()
        assert await deciding == 0
        await closing
        assert store._engine.pool.checkedin() == 0
        with pytest.raises(StoreUnavailable, match="closed"):
            await decide()


class TestBusy:
    HOLDER = (
        "import sqlite3, sys\n"
        "held = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "held.execute('BEGIN EXCLUSIVE')\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )

    def _hold(self, path: Path) -> subprocess.Popen[bytes]:
        holder = subprocess.Popen(
            [sys.executable, "-c", self.HOLDER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        return holder

    async def test_another_process_holds_the_file(self, files: SqliteStores) -> None:
        """Waiting for another process ends, for everyone who waits, and then it works (N35, L3)."""
        store = await files.open(busy_timeout_ms=200)
        await populate(store)
        holder = self._hold(files.path)

        async def decide() -> int:
            async with store.transaction() as tx:
                return await tx.audit.append(ENTRY)

        try:
            begun = time.monotonic()
            told = await asyncio.gather(*(decide() for _ in range(8)), return_exceptions=True)
            assert time.monotonic() - begun < 5
            assert all(isinstance(each, StoreUnavailable) for each in told)
            with pytest.raises(StoreUnavailable):
                async with store.snapshot() as tx:
                    await tx.audit.size()
        finally:
            holder.communicate()
        assert await decide() == 0

    async def test_waiting_in_turn(self, files: SqliteStores) -> None:
        """A transaction that never ends does not make the others wait for ever (L3)."""
        store = await files.open(busy_timeout_ms=100)
        async with store.transaction():
            with pytest.raises(StoreUnavailable, match="busy"):
                async with store.transaction():
                    pass
        async with store.transaction() as tx:
            assert await tx.audit.append(ENTRY) == 0

    async def test_a_short_wait_is_no_error(self, files: SqliteStores) -> None:
        """Two nodes that write at once both succeed: one waits (L1)."""
        first, second = await files.open(), await files.open()

        async def decide(store: SqlStore) -> int:
            async with store.transaction() as tx:
                return await tx.audit.append(ENTRY)

        async with first.transaction() as tx:
            waiting = asyncio.create_task(decide(second))
            await tx.audit.append(ENTRY)
        assert await waiting == 1


class TestCancel:
    async def test_a_commit_is_never_cancelled(self, files: SqliteStores) -> None:
        """A caller that gives up during the commit learns of it after the outcome (design 7)."""
        store = await files.open()
        await populate(store)
        committing = asyncio.Event()
        reader = sqlite3.connect(files.path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM authority").fetchall()  # a reader holds the commit up

        async def decide() -> None:
            async with store.transaction() as tx:
                await tx.hosts.set_revoked(A, revoked=True)
                await tx.audit.append(ENTRY)
                event.listen(store._engine.sync_engine, "commit", lambda _: committing.set())

        task = asyncio.create_task(decide())
        try:
            await committing.wait()
            for _ in range(2):
                task.cancel()
                done, _ = await asyncio.wait({task}, timeout=0.05)
                assert not done
        finally:
            reader.close()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await host_row(store, A)).revoked
        assert len(await rows_of(store, tables.audit)) == 1


def test_killed_writers(tmp_path: Path) -> None:
    """kill -9 while it writes: the file stays whole and no acknowledged entry is lost (N36).

    ``TA_KILLS=1000`` is the long form.
    """
    kills = int(os.environ.get("TA_KILLS", "20"))
    done = subprocess.run(
        [sys.executable, "-m", "support.store_writer", str(tmp_path), str(kills), "20261122"],
        cwd=TESTS,
        env=os.environ | {"PYTHONPATH": f"{TESTS}:{TESTS.parent}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60 + 3 * kills,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= kills
