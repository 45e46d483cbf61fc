"""Follow the audit log: what happened since, batch by batch, without a queue.

What it guarantees: nothing is missed and nothing is buffered, since every follower reads the log
from its own position; followers of one process share the question whether there is anything new. A
follower that falls behind for good is ended. What it does not do: interpret entries.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

from trustauthority.errors import RateLimited
from trustauthority.model.audit import AuditEntry
from trustauthority.ports import Store

INTERVAL_S = 0.5
BATCH = 200
MAX_BEHIND = 20_000
"""Entries. Who once had seen everything and is now that far behind reads slower than things happen."""
IDLE_S = 15.0
"""An empty batch is told after this long, so that a dead connection is noticed."""
MAX_FOLLOWERS = 256
MAX_PER_CALLER = 16


@dataclass(slots=True)
class Follower:
    """The log of one store, for all followers of one process."""

    store: Store
    stopping: asyncio.Event
    interval_s: float = INTERVAL_S
    idle_s: float = IDLE_S
    _callers: dict[str, int] = field(default_factory=dict)
    _size: int = 0
    _read_at: float = -1.0
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def size(self) -> int:
        """How many entries there are: asked of the store once per interval, whoever asks."""
        async with self._reading:
            now = asyncio.get_running_loop().time()
            if self._read_at < 0 or now - self._read_at >= self.interval_s / 2:
                async with self.store.snapshot() as tx:
                    self._size = await tx.audit.size()
                self._read_at = now
            return self._size

    async def follow(
        self, start: int, *, caller: str
    ) -> AsyncGenerator[Sequence[AuditEntry], None]:
        """Batches from ``start`` on, and an empty one when nothing happened for a while.

        Raises:
            RateLimited: too many followers, or this one reads too slowly.
        """
        self._admit(caller)
        try:
            async with aclosing(self._batches(start)) as batches:
                async for batch in batches:
                    yield batch
        finally:
            self._callers[caller] -= 1
            if not self._callers[caller]:
                del self._callers[caller]

    async def _batches(self, position: int) -> AsyncGenerator[Sequence[AuditEntry], None]:
        loop, caught_up = asyncio.get_running_loop(), False
        told_at = loop.time()
        while not self.stopping.is_set():
            size = await self.size()
            if caught_up and size - position > MAX_BEHIND:
                raise RateLimited("you read slower than things happen; go on from your cursor")
            if position < size:
                async with self.store.snapshot() as tx:
                    batch = await tx.audit.entries(start=position, limit=BATCH)
                position += len(batch)
                yield batch
                told_at = loop.time()
                continue
            caught_up = True
            if loop.time() - told_at >= self.idle_s:
                yield ()
                told_at = loop.time()
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), timeout=self.interval_s)

    def _admit(self, caller: str) -> None:
        mine, all_of_them = self._callers.get(caller, 0), sum(self._callers.values())
        if mine >= MAX_PER_CALLER or all_of_them >= MAX_FOLLOWERS:
            raise RateLimited(f"{mine} streams of yours are open, {all_of_them} in all")
        self._callers[caller] = mine + 1
