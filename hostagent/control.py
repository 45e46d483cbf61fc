"""The agent's control socket: one JSON object per line, for root (or the agent's user) on this host.

Stage: edge of the agent. Trusts the socket's mode (0600, in a folder of mode 0700) and checks the
peer's user id besides. Guarantees that a request has at most 64 KiB and that a handler's failure is
an answer. Never carries a key: keys go into files. Protocol: docs/reference/hostagent.md.
"""

import asyncio
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog

from hostagent.failure import CallFailed

MAX_LINE = 65_536
"""Bytes; a saved grant in base64 has a third of it."""
SOCKET_NAME = "control.sock"
HOOK_SOCKET = "hook.sock"
MAX_HOOK_LINE = 8 << 20
"""Bytes: a definition of 1 MiB, as JSON writes it at worst."""

Json = dict[str, Any]
Handler = Callable[[Json], Awaitable[Json]]

_log = structlog.get_logger("hostagent.control")


class NoDaemon(Exception):
    """Nobody listens on the control socket."""


def refusal(reason: str, detail: str, exit_code: int = 1) -> Json:
    """The answer to a request that was not done."""
    return {"ok": False, "reason": reason, "detail": detail, "exit_code": exit_code}


async def serve(
    run_dir: Path, handle: Handler, *, name: str = SOCKET_NAME, limit: int = MAX_LINE
) -> asyncio.Server:
    """Listen on a socket; a stale one of a dead agent is replaced. Raises OSError."""
    path = run_dir / name
    path.unlink(missing_ok=True)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if _peer_user(writer) in {0, os.geteuid()}:
                await _converse(reader, writer, handle)
        finally:
            writer.close()

    mask = os.umask(0o177)  # the socket must never exist with a wider mode
    try:
        return await asyncio.start_unix_server(connected, path=path, limit=limit)
    finally:
        os.umask(mask)


async def ask(run_dir: Path, request: Json, timeout_s: float) -> Json:
    """Send one request to the daemon and return its answer.

    Raises NoDaemon when none listens, TimeoutError when it does not answer.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(run_dir / SOCKET_NAME, limit=MAX_LINE)
    except (FileNotFoundError, ConnectionRefusedError) as failure:
        raise NoDaemon(f"no agent listens on {run_dir / SOCKET_NAME}") from failure
    try:
        writer.write(json.dumps(request).encode() + b"\n")
        line = await asyncio.wait_for(reader.readline(), timeout_s)
    finally:
        writer.close()
    answer = json.loads(line) if line else refusal("NO_ANSWER", "the agent hung up", 5)
    return answer if isinstance(answer, dict) else refusal("NO_ANSWER", "not an object", 5)


async def _converse(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handle: Handler
) -> None:
    while True:
        try:
            line = await reader.readline()
        except (ValueError, ConnectionError):  # too long, or gone
            return
        if not line:
            return
        writer.write(json.dumps(await _answer(line, handle)).encode() + b"\n")
        try:
            await writer.drain()
        except ConnectionError:
            return


async def _answer(line: bytes, handle: Handler) -> Json:
    try:
        request = json.loads(line)
    except ValueError:
        return refusal("INVALID_REQUEST", "not JSON", 2)
    if not isinstance(request, dict) or not isinstance(request.get("do"), str):
        return refusal("INVALID_REQUEST", "an object with «do» is expected", 2)
    try:
        return await handle(request)
    except CallFailed as error:
        return refusal(error.failure.reason, error.failure.detail, error.failure.exit_code)
    except (KeyError, TypeError, ValueError) as failure:
        return refusal("INVALID_REQUEST", f"a field is missing or wrong: {failure}", 2)
    except Exception:  # noqa: BLE001 - a bug in one request must not end the leases of others
        _log.exception("control-failed", do=request["do"])
        return refusal("INTERNAL", "see the log of the agent", 70)


def _peer_user(writer: asyncio.StreamWriter) -> int:
    peer: socket.socket = writer.get_extra_info("socket")
    _, user, _ = struct.unpack(
        "3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    return int(user)
