"""One process of the key role that asks for a VM's key on behalf of hosts: ``python -m support.release_racer``.

Reads one JSON object from standard input: database, time, keys of the fake KMS, verdict keys, requests.
Says ``ready``, waits for a line, then sends all requests at once and prints what each came to.
"""

import asyncio
import json
import sys
import warnings
from pathlib import Path
from typing import Any

from fakes.clock import FakeClock
from fakes.keyroom import FakeKeyRoom, InsecureAdapterWarning
from joserfc.jwk import KeySet

from support.simulated_authority import RecordingJournal
from trustauthority.adapters.sql.store import open_store
from trustauthority.errors import TrustAuthorityError
from trustauthority.services.keys import KeyService


async def ask(keys: KeyService, store: Any, host: str, vm: str, request_id: str) -> list[Any]:
    """One request: the grant epoch, or the reason of the refusal."""
    async with store.snapshot() as tx:
        record = await tx.hosts.get(host)
    assert record is not None
    try:
        released = await keys.request(record, vm=vm, request_id=request_id)
    except TrustAuthorityError as refused:
        return [host, refused.reason]
    return [host, released.grant_epoch]


async def race(plan: dict[str, Any]) -> list[list[Any]]:
    """Send every request of the plan at once."""
    clock = FakeClock()
    clock.pass_ms(plan["now_ms"] - clock.now_ms())
    warnings.simplefilter("ignore", InsecureAdapterWarning)  # this test knows what it uses
    room = FakeKeyRoom()
    room.keks = {name: bytes.fromhex(key) for name, key in plan["keks"].items()}
    store = await open_store(Path(plan["database"]), clock, must_exist=True, busy_timeout_ms=60_000)
    keys = KeyService(store, room, KeySet.import_key_set(plan["jwks"]), RecordingJournal())
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.readline)
    try:
        requests = (ask(keys, store, host, plan["vm"], name) for host, name in plan["requests"])
        return await asyncio.gather(*requests)
    finally:
        await store.close()


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(race(json.loads(sys.stdin.readline())))) + "\n")
