"""The children that carry out the orders of one provider: started, kept warm, used up, ended.

Stage: adapter, in the key role. A provider has its own slots and its own children, so that a KMS
which is slow or dead holds up nobody else, and a library of one provider never shares a process with
the keys of another, unless an order moves a key between the two. Guarantees: a child that is late,
dies or answers nonsense is killed and costs one order; it ends after ``batch`` keys or ``lifetime_s``;
a spare is kept warm, so that nobody waits for Python to start.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from trustauthority.adapters.keyroom.process import BROKEN, Child
from trustauthority.adapters.keyroom.settings import KeyRoomSettings
from trustauthority.errors import KmsUnavailable


class Pool:
    """Children with one configuration. Belongs to one event loop."""

    def __init__(
        self, settings: KeyRoomSettings, command: Sequence[str], configuration: Mapping[str, Any]
    ) -> None:
        self._settings = settings
        self._command = command
        self._configuration = configuration
        self.slots = asyncio.Semaphore(settings.parallel)
        self._idle: list[Child] = []
        self._children: set[Child] = set()
        self._spare: asyncio.Task[Child] | None = None
        self._starting: set[asyncio.Task[Child]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    async def start(self) -> None:
        """Warm the first child; without, the first order does. Never fails: orders will tell."""
        if not self._idle and self._spare is None:
            self._spare = self._warm()
        if self._spare is not None:
            await asyncio.wait({self._spare}, timeout=self._settings.timeout_s)

    async def close(self) -> None:
        """End the children; orders in flight fail with KmsUnavailable."""
        self._closed = True
        for starting in tuple(self._starting):
            starting.cancel()
        if self._starting:
            await asyncio.wait(self._starting)
        for child in tuple(self._children):
            self._end(child)
        if self._ending:
            await asyncio.wait(self._ending)

    async def ask(self, frame: bytes, *, shows_a_key: bool) -> dict[str, Any]:
        """Let a child carry out an order; call it with a slot taken.

        The child comes back only if it answered in order and has keys and time left.

        Raises:
            KmsUnavailable: no child can be started, or it ended in the middle.
        """
        child = await self._take()
        if shows_a_key:
            if child.keys == 0:
                asyncio.get_running_loop().call_later(
                    self._settings.lifetime_s, self._expire, child
                )
            child.keys += 1
        answered = False
        try:
            reply = await child.ask(frame)
            answered = True
        except BROKEN:
            raise KmsUnavailable(
                "a child of the key room ended in the middle of an order"
            ) from None
        finally:
            if answered and child.keys < self._settings.batch and not child.expired:
                self._idle.append(child)
            else:
                self._end(child)
        return reply

    # --- children ------------------------------------------------------------------------------

    async def _take(self) -> Child:
        """A living idle child, or the spare; sees to it that there is a spare afterwards."""
        child: Child | None = None
        while child is None and self._idle:
            candidate = self._idle.pop()
            if candidate.alive:
                child = candidate
            else:
                self._end(candidate)
        if child is None:
            child = await self._started()
        if not self._idle and self._spare is None and not self._closed:
            self._spare = self._warm()
        return child

    async def _started(self) -> Child:
        spare, self._spare = self._spare, None
        if spare is None or _is_dead(spare):
            spare = self._warm()
        try:
            child = await asyncio.shield(spare)
        except asyncio.CancelledError:
            spare.add_done_callback(self._keep)  # it starts all the same, for the next order
            raise
        except BROKEN:
            raise KmsUnavailable("the key room can't start a child; its log says why") from None
        return child

    def _warm(self) -> asyncio.Task[Child]:
        task = asyncio.get_running_loop().create_task(self._start_child())
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        task.add_done_callback(_look_at)
        return task

    async def _start_child(self) -> Child:
        child = await Child.start(self._command, self._configuration)
        self._children.add(child)
        if self._closed:
            self._end(child)
        return child

    def _keep(self, started: asyncio.Task[Child]) -> None:
        if not started.cancelled() and started.exception() is None:
            self._idle.append(started.result())

    def _expire(self, child: Child) -> None:
        child.expired = True
        if child in self._idle:
            self._idle.remove(child)
            self._end(child)

    def _end(self, child: Child) -> None:
        child.kill()
        self._children.discard(child)
        task = asyncio.get_running_loop().create_task(child.gone())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


def _is_dead(started: asyncio.Task[Child]) -> bool:
    if not started.done():
        return False
    return started.cancelled() or started.exception() is not None or not started.result().alive


def _look_at(task: asyncio.Task[Child]) -> None:
    """Take note of a failed start, which nobody may be waiting for."""
    if not task.cancelled():
        task.exception()
