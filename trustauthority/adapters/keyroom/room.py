"""The key role's side of the key room: starts children, hands them orders, ends them.

Stage: adapter behind ``ports.KeyRoom``. Trusts a child to answer one frame per order. Guarantees:
this process never holds a plaintext key; a child that is late, dies, or answers nonsense is killed
and costs one KmsUnavailable; a child ends after ``batch`` keys or ``lifetime_s``; a spare is kept
warm, so that nobody waits for Python to start. Does not retry: the caller's request id makes that
safe there. Source: design 8; docs/reference/kms.md.
"""

import asyncio
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from trustauthority.adapters.keyroom.frames import (
    HEADER,
    decode_body,
    encode_frame,
    frame_length,
    order_to_json,
    settings_to_json,
)
from trustauthority.adapters.keyroom.settings import KeyRoomSettings
from trustauthority.errors import KmsUnavailable
from trustauthority.model.grant import ReleaseOrder

_COMMAND = (
    sys.executable,
    *("-I", "-X", "utf8", "-m", "trustauthority.adapters.keyroom.child"),
)
_KEY_ORDERS = frozenset({"create_key", "release"})
_BROKEN = (OSError, EOFError, ValueError)
"""A pipe that ended or a frame that is none; asyncio's IncompleteReadError is an EOFError."""


class _Child:
    """One child process and the pipes to it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.keys = 0
        self.expired = False

    @classmethod
    async def start(cls, settings: KeyRoomSettings, command: Sequence[str]) -> "_Child":
        """Start a child and wait until it is confined and configured."""
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={},  # nothing of ours: no variable can change what the child loads or trusts
            cwd="/",
            start_new_session=True,
        )
        child = cls(process)
        try:
            reply = await child.ask(encode_frame({"configure": settings_to_json(settings)}))
            if reply != {"ok": "ready"}:
                raise ValueError("the child did not say that it is ready")
        except BaseException:
            child.kill()
            await child.gone()
            raise
        return child

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.returncode is None

    async def ask(self, frame: bytes) -> dict[str, Any]:
        """One framed order and its reply. Raises one of ``_BROKEN`` when there is no good reply."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise EOFError("the child has no pipes")
        stdin.write(frame)
        await stdin.drain()
        length = frame_length(await stdout.readexactly(HEADER))
        return decode_body(await stdout.readexactly(length))

    def kill(self) -> None:
        """End it now: whatever it still had in memory is gone with it."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def gone(self) -> None:
        """Wait until it has ended."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self._process.wait()


class ChildKeyRoom:
    """``ports.KeyRoom`` with child processes. Belongs to one event loop."""

    def __init__(self, settings: KeyRoomSettings, *, command: Sequence[str] = _COMMAND) -> None:
        self._settings = settings
        self._command = command
        self._slots = asyncio.Semaphore(settings.parallel)
        self._idle: list[_Child] = []
        self._children: set[_Child] = set()
        self._spare: asyncio.Task[_Child] | None = None
        self._starting: set[asyncio.Task[_Child]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    async def start(self) -> None:
        """Warm the first child; without, the first order does. Never fails: orders will tell."""
        if not self._idle and self._spare is None:
            self._spare = self._warm()
        if self._spare is not None:
            await asyncio.wait({self._spare}, timeout=self._settings.timeout_s)

    async def create_kek(self, provider: str) -> str:
        """Make and activate a KEK in the KMS; returns its id. Raises KmsUnavailable."""
        return await self._order("create_kek", provider)

    async def create_key(self, provider: str, kek_id: str, aad: bytes) -> bytes:
        """Make a VM key and return it wrapped. Raises KmsUnavailable."""
        return _bytes(
            await self._order("create_key", provider, {"kek_id": kek_id, "aad": aad.hex()})
        )

    async def release(self, order: ReleaseOrder) -> bytes:
        """Unwrap a VM key and return a signed KeyGrant v1. Raises KmsUnavailable."""
        return _bytes(
            await self._order("release", order.provider, {"release": order_to_json(order)})
        )

    async def health(self, provider: str) -> tuple[bool, str]:
        """Whether the KMS answers and grants can be signed, and a detail that says what to do."""
        try:
            return True, await self._order("health", provider)
        except KmsUnavailable as failure:
            return False, failure.message

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

    # --- orders --------------------------------------------------------------------------------

    async def _order(
        self, order: str, provider: str, details: Mapping[str, Any] | None = None
    ) -> str:
        if self._closed:
            raise KmsUnavailable("the key room is closed")
        if provider not in self._settings.providers:
            raise KmsUnavailable(
                f"no KMS is configured for key provider {provider!r}", provider=provider
            )
        try:
            frame = encode_frame({"order": order, "provider": provider, **(details or {})})
        except ValueError as failure:
            raise KmsUnavailable(str(failure)) from None
        try:
            async with asyncio.timeout(self._settings.timeout_s), self._slots:
                child = await self._take()
                reply = await self._use(child, frame, shows_a_key=order in _KEY_ORDERS)
        except TimeoutError:
            raise KmsUnavailable(
                f"the KMS did not answer within {self._settings.timeout_s:g} s"
            ) from None
        match reply:
            case {"ok": str() as answer}:
                return answer
            case {"error": str() as because}:
                raise KmsUnavailable(because, provider=provider)
            case _:
                raise KmsUnavailable("the key room's child answered with what is no answer")

    async def _use(self, child: _Child, frame: bytes, *, shows_a_key: bool) -> dict[str, Any]:
        """Ask a child; it comes back only if it answered in order and has keys and time left."""
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
        except _BROKEN:
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

    async def _take(self) -> _Child:
        """A living idle child, or the spare; sees to it that there is a spare afterwards."""
        child: _Child | None = None
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

    async def _started(self) -> _Child:
        spare, self._spare = self._spare, None
        if spare is None or _is_dead(spare):
            spare = self._warm()
        try:
            child = await asyncio.shield(spare)
        except asyncio.CancelledError:
            spare.add_done_callback(self._keep)  # it starts all the same, for the next order
            raise
        except _BROKEN:
            raise KmsUnavailable("the key room can't start a child; its log says why") from None
        return child

    def _warm(self) -> asyncio.Task[_Child]:
        task = asyncio.get_running_loop().create_task(self._start_child())
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        task.add_done_callback(_look_at)
        return task

    async def _start_child(self) -> _Child:
        child = await _Child.start(self._settings, self._command)
        self._children.add(child)
        if self._closed:
            self._end(child)
        return child

    def _keep(self, started: asyncio.Task[_Child]) -> None:
        if not started.cancelled() and started.exception() is None:
            self._idle.append(started.result())

    def _expire(self, child: _Child) -> None:
        child.expired = True
        if child in self._idle:
            self._idle.remove(child)
            self._end(child)

    def _end(self, child: _Child) -> None:
        child.kill()
        self._children.discard(child)
        task = asyncio.get_running_loop().create_task(child.gone())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


def _is_dead(started: asyncio.Task[_Child]) -> bool:
    if not started.done():
        return False
    return started.cancelled() or started.exception() is not None or not started.result().alive


def _look_at(task: asyncio.Task[_Child]) -> None:
    """Take note of a failed start, which nobody may be waiting for."""
    if not task.cancelled():
        task.exception()


def _bytes(answer: str) -> bytes:
    try:
        return bytes.fromhex(answer)
    except ValueError:
        raise KmsUnavailable("the key room's child answered with what is no answer") from None
