"""The engines that the contract of the store ports is checked against."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.stores import ENGINES, SqliteStores, Stores


@pytest.fixture(params=sorted(ENGINES))
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stores]:
    """An empty database of each engine, and stores on it."""
    factory = ENGINES[request.param](tmp_path)
    yield factory
    await factory.close()


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[SqliteStores]:
    """A database file: for what is true of SQLite only."""
    factory = SqliteStores(tmp_path)
    yield factory
    await factory.close()
