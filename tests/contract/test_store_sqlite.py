"""What is true of the SQLite file: journal, sync, mode, schema, versions (N37, N60)."""

import asyncio
import os
import re
import sqlite3
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from fakes.clock import FakeClock
from support.stores import SqliteStores, rows_of

from trustauthority.adapters.sql import tables
from trustauthority.adapters.sql.engine import open_sqlite, require_version
from trustauthority.adapters.sql.schema import migrate
from trustauthority.adapters.sql.store import open_store
from trustauthority.errors import ConfigurationInvalid, InsecureFile, StoreUnavailable

PROJECT = Path(__file__).resolve().parents[2]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestConnection:
    async def test_every_connection_is_safe(self, files: SqliteStores) -> None:
        """Rollback journal, never WAL, full sync, on each connection of the pool (N37)."""
        store = await files.open()
        wanted = {
            "journal_mode": "truncate",
            "synchronous": 2,
            "foreign_keys": 1,
            "secure_delete": 1,
            "trusted_schema": 0,
            "busy_timeout": 10_000,
        }
        connections = [store._engine.connect() for _ in range(6)]
        try:
            for connection in connections:
                await connection.start()
                await connection.execution_options(reading=True)
                for name, value in wanted.items():
                    found = await connection.exec_driver_sql(f"PRAGMA {name}")
                    assert found.scalar_one() == value, name
        finally:
            for connection in connections:
                await connection.close()

    async def test_wal_is_left_behind(self, files: SqliteStores) -> None:
        """A file that was set to WAL by hand is taken out of it (N37)."""
        await (await files.open()).close()
        with sqlite3.connect(files.path) as plain:
            assert plain.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
        plain.close()
        await files.open()
        plain = sqlite3.connect(files.path)
        assert plain.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        plain.close()
        assert not files.path.with_name("authority.db-wal").exists()

    async def test_wal_in_use_is_refused(self, files: SqliteStores) -> None:
        """While another program keeps the file in WAL mode, nothing is decided (N37)."""
        await (await files.open()).close()
        other = sqlite3.connect(files.path)
        other.execute("PRAGMA journal_mode=WAL")
        other.execute("SELECT * FROM authority").fetchall()
        with pytest.raises(StoreUnavailable):
            await files.open(busy_timeout_ms=50)
        other.close()

    @pytest.mark.parametrize("version", [(3, 7, 17), (3, 34, 1)])
    def test_old_sqlite_is_refused(self, version) -> None:
        """A SQLite without RETURNING is refused by version, before it fails in a decision."""
        with pytest.raises(ConfigurationInvalid, match=r"3\.35"):
            require_version(version)

    def test_wal_bug_versions_are_usable(self) -> None:
        """The versions whose WAL can corrupt are usable, as no WAL is ever written (N37)."""
        for version in ((3, 35, 0), (3, 40, 1), (3, 51, 2), (3, 51, 3)):
            require_version(version)


class TestFile:
    async def test_made_for_its_owner(self, files: SqliteStores) -> None:
        """Nobody else can read the database or its journal, whatever the umask (N60)."""
        before = os.umask(0)
        try:
            store = await open_store(files.path, files.clock)
            async with store.transaction():
                journal = files.path.with_name("authority.db-journal")
                assert mode_of(journal) == 0o600
            await store.close()
        finally:
            os.umask(before)
        assert mode_of(files.path) == 0o600

    @pytest.mark.parametrize("mode", [0o644, 0o604, 0o640, 0o620, 0o602, 0o601])
    async def test_open_to_others_is_refused(self, files: SqliteStores, mode) -> None:
        """A database that others can use is refused with what to do (N60)."""
        await (await files.open()).close()
        files.path.chmod(mode)
        with pytest.raises(InsecureFile, match="chmod 600"):
            await open_store(files.path, files.clock)

    async def test_a_link_is_refused(self, files: SqliteStores, tmp_path: Path) -> None:
        """A link may lead anywhere (N60)."""
        await (await files.open()).close()
        link = tmp_path / "link.db"
        link.symlink_to(files.path)
        with pytest.raises(ConfigurationInvalid):
            await open_store(link, files.clock)

    async def test_must_exist(self, tmp_path: Path) -> None:
        """A running authority does not begin anew because a file is missing (N91)."""
        path = tmp_path / "gone.db"
        with pytest.raises(ConfigurationInvalid, match=re.escape(str(path))):
            await open_store(path, FakeClock(), must_exist=True)
        assert not path.exists()

    async def test_no_folder(self, tmp_path: Path) -> None:
        """A missing folder is named, not made."""
        with pytest.raises(ConfigurationInvalid, match="No such file"):
            await open_store(tmp_path / "nothing" / "a.db", FakeClock())


class TestSchema:
    async def test_migrations_make_the_tables(self, files: SqliteStores) -> None:
        """What the migrations make is what ``tables.py`` says, to the column."""
        store = await files.open()
        async with store._engine.connect() as connection:

            def differences(sync) -> object:
                options = {"compare_type": True, "compare_server_default": True}
                context = MigrationContext.configure(sync, opts=options)
                return compare_metadata(context, tables.metadata)

            assert await connection.run_sync(differences) == []

    async def test_checks_are_made_too(self, files: SqliteStores) -> None:
        """Check constraints, which a comparison does not see, are in the file as well (N84)."""
        await (await files.open()).close()
        plain = sqlite3.connect(files.path)
        text = "\n".join(row[0] or "" for row in plain.execute("SELECT sql FROM sqlite_master"))
        plain.close()
        for table in tables.metadata.tables.values():
            for each in table.constraints:
                if type(each).__name__ == "CheckConstraint":
                    assert f"CONSTRAINT {each.name} CHECK" in text

    async def test_one_authority_row(self, files: SqliteStores) -> None:
        """A new database begins at epoch 1, with nothing seen and nothing halted."""
        store = await files.open()
        (row,) = await rows_of(store, tables.authority)
        assert row == {
            "id": 1,
            "global_epoch": 1,
            "no_report_before_ms": 0,
            "high_water_ms": 0,
            "hold_owners_until_ms": 0,
            "boot_id": "",
            "least_offset_ms": 0,
            "longest_fence_ms": 0,
            "halted_because": "",
            "era": 0,
        }

    async def test_again_changes_nothing(self, files: SqliteStores) -> None:
        """Opening a database that is up to date does not write to it."""
        await (await files.open()).close()
        before = files.path.read_bytes()
        await (await files.open()).close()
        assert files.path.read_bytes() == before

    async def test_newer_database_is_refused(self, files: SqliteStores) -> None:
        """A database of a newer version is not guessed at, and not touched."""
        await (await files.open()).close()
        with sqlite3.connect(files.path) as plain:
            plain.execute("UPDATE alembic_version SET version_num = '9999'")
        plain.close()
        before = files.path.read_bytes()
        with pytest.raises(ConfigurationInvalid, match="newer version"):
            await files.open()
        assert files.path.read_bytes() == before

    async def test_other_programs_database(self, files: SqliteStores) -> None:
        """Tables of something else are left alone."""
        files.path.touch(mode=0o600)
        with sqlite3.connect(files.path) as plain:
            plain.execute("CREATE TABLE recipes (name TEXT)")
        plain.close()
        with pytest.raises(ConfigurationInvalid, match="another program"):
            await files.open()

    async def test_no_database(self, files: SqliteStores) -> None:
        """A file that is no database is named as such, and not overwritten."""
        files.path.touch(mode=0o600)
        files.path.write_bytes(b"-----BEGIN CERTIFICATE-----\n" * 40)
        with pytest.raises(ConfigurationInvalid, match="not a database"):
            await files.open()
        assert files.path.read_bytes().startswith(b"-----BEGIN")

    async def test_two_processes_migrate_at_once(self, files: SqliteStores) -> None:
        """Roles that start together on an empty file make the tables once."""
        engines = [open_sqlite(files.path) for _ in range(3)]
        try:
            await asyncio.gather(*(migrate(engine) for engine in engines))
        finally:
            for engine in engines:
                await engine.dispose()
        plain = sqlite3.connect(files.path)
        assert plain.execute("SELECT count(*) FROM authority").fetchone() == (1,)
        assert plain.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
        plain.close()

    def test_migrations_are_in_the_wheel(self, tmp_path: Path) -> None:
        """An installed authority can make its tables."""
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
        subprocess.run(build, cwd=PROJECT, check=True, capture_output=True, timeout=60)
        (wheel,) = tmp_path.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
        folder = Path("trustauthority/adapters/sql/migrations")
        wanted = [*(PROJECT / folder).glob("*.py"), *(PROJECT / folder).glob("versions/*.py")]
        assert len(wanted) >= 4
        assert {str(path.relative_to(PROJECT)) for path in wanted} <= names
