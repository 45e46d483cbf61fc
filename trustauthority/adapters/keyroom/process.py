"""One child process of the key room and the pipes to it.

Stage: adapter, in the key role. Trusts a child to answer one frame per order and no more. Guarantees
that it is started without environment, isolated, in a session of its own, and is configured before it
is used. Does not decide when a child ends: ``pool`` does.
"""

import asyncio
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from trustauthority.adapters.keyroom.frames import HEADER, decode_body, encode_frame, frame_length

COMMAND = (
    sys.executable,
    *("-I", "-X", "utf8", "-m", "trustauthority.adapters.keyroom.child"),
)
BROKEN = (OSError, EOFError, ValueError)
"""A pipe that ended or a frame that is none; asyncio's IncompleteReadError is an EOFError."""


class Child:
    """One child process and the pipes to it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.keys = 0
        self.expired = False

    @classmethod
    async def start(cls, command: Sequence[str], configuration: Mapping[str, Any]) -> "Child":
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
            reply = await child.ask(encode_frame({"configure": configuration}))
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
        """One framed order and its reply. Raises one of ``BROKEN`` when there is no good reply."""
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
