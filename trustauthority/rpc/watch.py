"""Hosts that listen for wishes: best effort, bounded, in memory. The lease is the guarantee."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from trustauthority.v1 import attestation_pb2 as pb

MAX_WAITING = 16
"""Wishes a slow host may have waiting; further ones are dropped, its lease ends anyway."""


class Watchers:
    """Queues by host id."""

    def __init__(self) -> None:
        self._queues: dict[str, set[asyncio.Queue[pb.WatchHostResponse]]] = {}

    @contextmanager
    def subscribe(self, host_id: str) -> Iterator["asyncio.Queue[pb.WatchHostResponse]"]:
        """Listen until the block is left."""
        queue: asyncio.Queue[pb.WatchHostResponse] = asyncio.Queue(MAX_WAITING)
        self._queues.setdefault(host_id, set()).add(queue)
        try:
            yield queue
        finally:
            self._queues[host_id].discard(queue)
            if not self._queues[host_id]:
                del self._queues[host_id]

    def push(self, host_id: str, wish: "pb.HostWish.ValueType", detail: str) -> None:
        """Tell a wish to every connection of a host."""
        for queue in self._queues.get(host_id, ()):
            if not queue.full():
                queue.put_nowait(pb.WatchHostResponse(wish=wish, detail=detail))

    def push_all(self, wish: "pb.HostWish.ValueType", detail: str) -> None:
        """Tell a wish to every host."""
        for host_id in tuple(self._queues):
            self.push(host_id, wish, detail)
