"""A parent of a key room in a process of its own, whose memory a test can search.

Reads settings as JSON from its arguments (no secret among them), makes a VM key, says what it has,
then releases it over and over until its standard input ends.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

from support.keyroom_orders import AAD, release_order, room_settings
from trustauthority.adapters.keyroom import ChildKeyRoom
from trustauthority.adapters.kms.settings import provider_from_json

CANARY = os.urandom(32)
"""Something that IS in this process's memory: a search that does not find it finds nothing."""


async def main() -> None:
    kms, folder = provider_from_json(json.loads(sys.argv[1])), Path(sys.argv[2])
    room = ChildKeyRoom(room_settings(kms, folder / "release.key", batch=8))
    kek_id = await room.create_kek("default")
    wrapped = (await room.create_key("default", kek_id, AAD)).wrapped
    grant = await room.release(release_order(kek_id, wrapped))
    news = {
        "kek_id": kek_id,
        "wrapped": wrapped.hex(),
        "grant": grant.hex(),
        "children": [child.pid for child in room._pools["default"]._children],
        "canary": [byte ^ 0xFF for byte in CANARY],
    }
    sys.stdout.write(json.dumps(news) + "\n")
    sys.stdout.flush()
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    while not ended.done():
        await room.release(release_order(kek_id, wrapped))
    await room.close()


if __name__ == "__main__":
    asyncio.run(main())
