"""The engines that the contract of the store ports is checked against."""

import gc
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support.kms_peers import Peer
from support.kms_suite import RunningPeers
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


@pytest.fixture(scope="session")
def running_peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPeers]:
    """KMSes of all kinds, each started when it is first asked for."""
    running = RunningPeers(tmp_path_factory)
    yield running
    running.close()


@pytest.fixture
def peer(request: pytest.FixtureRequest, running_peers: RunningPeers) -> Iterator[Peer]:
    """The KMS that a test is about: see ``each_peer``."""
    running = running_peers.get(request.param)
    gc.disable()
    gc.freeze()
    yield running
    running.close_clients()
    with warnings.catch_warnings():
        # urllib3 leaves the socket of a failed handshake in a cycle with its exception: it is
        # collected here, and not in the middle of some other test
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    gc.unfreeze()
    gc.enable()
