"""Hand shared secrets to programs of this host, on one unix socket.

Stage: edge of the agent. Trusts the kernel's word for who asks (SO_PEERCRED) and what the
configuration allows; nothing in a request. Guarantees that the socket has mode 0600, that a secret goes
only to the users and volumes that its section names, straight from the TPM to the socket, and that
each answer and refusal is logged. Keeps no secret.

Protocol: a line with the secret's name, answered by its bytes and the end of the stream; nothing at
all is a refusal, and the agent's log says why. systemd-cryptsetup sends no line: its socket is bound
to the abstract name NUL RANDOM /cryptsetup/ VOLUME (crypttab(5), KEY-FILE as AF_UNIX socket).
"""

import asyncio
import os
import re
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from hostagent.failure import CallFailed, Failure, FailureKind
from hostagent.settings import SecretSettings
from hostagent.shared import SharedSecrets

SOCKET = "secrets.sock"
_MAX_LINE = 128
_ASK_WITHIN_S = 5.0
_SEND_WITHIN_S = 10.0
_AT_ONCE = 8
_AGAIN_S = 0.2
_CRYPTSETUP = re.compile(rb"\0[0-9a-f]+/cryptsetup/(.+)", re.DOTALL)

_log = structlog.get_logger("hostagent.secrets")


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretDesk:
    """Answers connections."""

    secrets: SharedSecrets
    known: Mapping[str, SecretSettings]

    async def answer(self, connection: socket.socket) -> None:
        """Answer one connection and close it; never raises."""
        with connection:
            try:
                user = _peer_user(connection)
                name = await self._name(connection)
                secret = self._allowed(name, user)
                await self.secrets.lend(secret.subject or name, lambda key: _send(connection, key))
            except CallFailed as error:
                _log.warning(
                    "secret",
                    action="refused",
                    reason=error.failure.reason,
                    detail=error.failure.detail,
                )
            except (OSError, TimeoutError) as failure:
                _log.warning("secret", action="refused", reason="BROKEN", detail=str(failure))
            else:
                _log.info("secret", action="handed-out", name=name, user=user)

    async def _name(self, connection: socket.socket) -> str:
        """Which secret is asked for: by the peer's name, or by a line."""
        peer = connection.getpeername()
        volume = _CRYPTSETUP.fullmatch(peer) if isinstance(peer, bytes) else None
        if volume is None:
            return await asyncio.wait_for(_line(connection), _ASK_WITHIN_S)
        wanted = volume[1].decode("utf-8", "replace")
        for name, secret in self.known.items():
            if wanted in secret.volumes:
                return name
        raise CallFailed(_no("VOLUME_UNKNOWN", f"no secret is for volume {wanted!r}"))

    def _allowed(self, name: str, user: int) -> SecretSettings:
        secret = self.known.get(name)
        if secret is None or user not in secret.users:
            raise CallFailed(_no("SECRET_NOT_ALLOWED", f"{name!r} is not for user {user}"))
        return secret


@asynccontextmanager
async def secrets_served(run_dir: Path, desk: SecretDesk) -> AsyncIterator[Path]:
    """Listen for the time of the block. Raises OSError."""
    path = run_dir / SOCKET
    path.unlink(missing_ok=True)
    mask = os.umask(0o177)  # the socket must never exist with a wider mode
    try:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
    finally:
        os.umask(mask)
    listener.listen(_AT_ONCE)
    listener.setblocking(False)
    serving = asyncio.create_task(_serve(listener, desk))
    try:
        yield path
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        listener.close()
        path.unlink(missing_ok=True)


async def _serve(listener: socket.socket, desk: SecretDesk) -> None:
    loop, slots, tasks = asyncio.get_running_loop(), asyncio.Semaphore(_AT_ONCE), set()

    async def answered(connection: socket.socket) -> None:
        try:
            await desk.answer(connection)
        finally:
            slots.release()

    try:
        while True:
            await slots.acquire()
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as failure:  # out of descriptors, for one: that passes
                slots.release()
                _log.warning("secret", action="refused", reason="BROKEN", detail=str(failure))
                await asyncio.sleep(_AGAIN_S)
                continue
            connection.setblocking(False)
            task = asyncio.create_task(answered(connection))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _line(connection: socket.socket) -> str:
    loop, line = asyncio.get_running_loop(), b""
    while not line.endswith(b"\n"):
        part = await loop.sock_recv(connection, _MAX_LINE)
        line += part
        if not part or len(line) > _MAX_LINE:
            raise CallFailed(_no("INVALID_REQUEST", "a line with a name is expected"))
    return line[:-1].decode("utf-8", "replace")


def _send(connection: socket.socket, key: bytearray) -> None:
    """Runs in the thread that holds the opened secret: no copy of it is made on the way."""
    connection.settimeout(_SEND_WITHIN_S)
    connection.sendall(key)
    connection.shutdown(socket.SHUT_WR)


def _peer_user(connection: socket.socket) -> int:
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return int(struct.unpack("3i", credentials)[1])


def _no(reason: str, detail: str) -> Failure:
    return Failure(kind=FailureKind.LOCAL, reason=reason, detail=detail)
