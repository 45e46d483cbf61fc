"""Hosts that listen for wishes: best effort, bounded, in memory. The lease is the guarantee."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress

from trustauthority.errors import RateLimited, TrustAuthorityError
from trustauthority.model.audit import AuditEntry
from trustauthority.ports import Journal
from trustauthority.services.follow import Follower
from trustauthority.v1 import attestation_pb2 as pb

PAUSE_S = 2.0
MAX_STREAMS = 4
"""Of one host: a connection that died is noticed late, so one is not enough."""
MAX_WAITING = 16
"""Wishes a slow host may have waiting; further ones are dropped, its lease ends anyway."""


class Watchers:
    """Queues by host id."""

    def __init__(self) -> None:
        self._closed = False
        self._queues: dict[str, set[asyncio.Queue[pb.WatchHostResponse | None]]] = {}

    @contextmanager
    def subscribe(self, host_id: str) -> Iterator["asyncio.Queue[pb.WatchHostResponse | None]"]:
        """Listen until the block is left; None in the queue says that the process stops.

        Raises:
            RateLimited: the host listens on as many streams as one may.
        """
        if len(self._queues.get(host_id, ())) >= MAX_STREAMS:
            raise RateLimited(f"{MAX_STREAMS} streams of this host are open")
        queue: asyncio.Queue[pb.WatchHostResponse | None] = asyncio.Queue(MAX_WAITING + 1)
        if self._closed:
            queue.put_nowait(None)
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
            if queue.qsize() < MAX_WAITING:
                queue.put_nowait(pb.WatchHostResponse(wish=wish, detail=detail))

    def push_all(self, wish: "pb.HostWish.ValueType", detail: str) -> None:
        """Tell a wish to every host."""
        for host_id in tuple(self._queues):
            self.push(host_id, wish, detail)

    def close(self) -> None:
        """End every stream, and those to come."""
        self._closed = True
        for queue in (queue for queues in self._queues.values() for queue in queues):
            if not queue.full():
                queue.put_nowait(None)


_HINTED = frozenset({"order.place", "order.cancel"})


async def tell_of_orders(follower: Follower, watchers: Watchers, journal: Journal) -> None:
    """Tell hosts of move orders as they are placed or taken back, in whichever process; ends with the process.

    Best effort: a host also asks whenever it connects.
    """
    while not follower.stopping.is_set():
        try:
            start = await follower.size()
            async with aclosing(follower.follow(start, caller="authority")) as batches:
                async for batch in batches:
                    for source in _ordered(batch):
                        watchers.push(
                            source, pb.HOST_WISH_MOVE_ORDERED, "a move was ordered or taken back"
                        )
        except TrustAuthorityError as error:  # the database is away: hints can wait
            journal.record("hints_paused", reason=error.reason)
            with suppress(TimeoutError):
                await asyncio.wait_for(follower.stopping.wait(), timeout=PAUSE_S)


def _ordered(batch: Sequence[AuditEntry]) -> set[str]:
    entries = (json.loads(entry.content) for entry in batch)
    return {each["details"]["source"] for each in entries if each["operation"] in _HINTED}
