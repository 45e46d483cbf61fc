"""Releases that race over three processes: N48 where it counts, with a KMS between the transactions."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from support.simulated_authority import REPORT_KEY, VM, SimulatedAuthority

TESTS = Path(__file__).resolve().parents[1]
PROCESSES = 3
LIMIT_S = 90.0


async def started(plan: dict[str, Any]) -> asyncio.subprocess.Process:
    """A process that waits for the word to begin."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "support.release_racer"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(TESTS), str(TESTS.parent)))},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(plan).encode() + b"\n")
    assert await asyncio.wait_for(process.stdout.readline(), LIMIT_S) == b"ready\n"
    return process


async def finished(process: asyncio.subprocess.Process) -> list[list[Any]]:
    """What its requests came to."""
    out, _ = await asyncio.wait_for(process.communicate(), LIMIT_S)
    assert process.returncode == 0
    found: list[list[Any]] = json.loads(out)
    return found


async def test_three_processes_one_grant(authority: SimulatedAuthority) -> None:
    """N48, S2: six hosts ask at once through three processes; one gets the key, five are told why not."""
    hosts = await authority.trusted(*(f"esx-{number}" for number in range(2 * PROCESSES)))
    await authority.add_vm(any_host=True)
    plan = {
        "database": str(authority.stores.path),
        "now_ms": authority.clock.now_ms(),
        "keks": {name: key.hex() for name, key in authority.room.keks.items()},
        "jwks": {"keys": [REPORT_KEY.as_dict(private=False)]},
        "vm": VM,
    }
    pairs = [hosts[2 * n : 2 * n + 2] for n in range(PROCESSES)]
    racers = await asyncio.gather(
        *(
            started(plan | {"requests": [[h.host_id, f"request-{h.name:0>12}"] for h in pair]})
            for pair in pairs
        )
    )
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write(b"go\n")
    told = [each for some in await asyncio.gather(*map(finished, racers)) for each in some]
    (winner,) = [each for each in told if isinstance(each[1], int)]
    assert winner[1] == 1
    refused = [each[1] for each in told if not isinstance(each[1], int)]
    assert refused == ["GRANT_HELD_ELSEWHERE"] * 5
    entry = await authority.placement.get(VM)
    assert (entry.owner, entry.grant_epoch) == (winner[0], 1)
    released = [e for e in await authority.log("key.release") if e["decision"] == "allowed"]
    assert [each["actor"] for each in released] == [f"host:{winner[0]}"]
    assert len(await authority.log("key.request")) == 6
