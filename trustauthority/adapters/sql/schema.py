"""Bringing a database to the schema of this version, by Alembic, in one transaction.

A database from a newer version is refused, never guessed at: its rules may have grown columns that
this version would not check.
"""

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from trustauthority.errors import ConfigurationInvalid, StoreUnavailable


async def migrate(engine: AsyncEngine) -> None:
    """Create or upgrade the tables, and the one row of the authority.

    Concurrent callers wait for one another: the write lock is taken before the version is read.

    Raises:
        ConfigurationInvalid: the file is no database of ours, or of a newer version.
        StoreUnavailable: the database does not answer, or has no room. Nothing was changed.
    """
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_upgrade)
    except DBAPIError as error:
        if "not a database" in str(error.orig):
            raise ConfigurationInvalid(
                f"{engine.url.database} is not a database", path=str(engine.url.database)
            ) from error
        raise StoreUnavailable(f"the database refused its tables: {error.orig}") from error


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", "trustauthority.adapters.sql:migrations")
    config.attributes["connection"] = connection
    script = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection).get_current_heads()
    _require_known(connection, script, current)
    if set(current) != set(script.get_heads()):
        command.upgrade(config, "head")


def _require_known(
    connection: Connection, script: ScriptDirectory, current: tuple[str, ...]
) -> None:
    known = {each.revision for each in script.walk_revisions()}
    unknown = sorted(set(current) - known)
    if unknown:
        raise ConfigurationInvalid(
            f"the database has schema {', '.join(unknown)}, which this version does not know: it "
            "was used by a newer version. Install that version again, or restore a backup.",
            schema=", ".join(unknown),
        )
    if not current and inspect(connection).get_table_names():
        raise ConfigurationInvalid("the database belongs to another program: it has other tables")
