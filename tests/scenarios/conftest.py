"""One authority per test, on its own SQLite file."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.simulated_authority import SimulatedAuthority


@pytest.fixture
async def authority(tmp_path: Path) -> AsyncIterator[SimulatedAuthority]:
    """An authority with the cluster ``prod``, without hosts."""
    started = await SimulatedAuthority.start(tmp_path)
    yield started
    await started.close()
