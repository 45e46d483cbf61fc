"""The socket for shared secrets, apart from what it hands out."""

import asyncio
import errno
from pathlib import Path

from hostagent import secret_desk
from hostagent.secret_desk import SecretDesk, secrets_served


class NobodysSecrets:
    """Lends nothing: every name is refused before."""


async def test_a_moment_without_descriptors_ends_no_service(tmp_path: Path, monkeypatch) -> None:
    """T2: accept fails when the process has too many files open; later callers are answered again."""
    monkeypatch.setattr(secret_desk, "_AGAIN_S", 0.0)
    loop = asyncio.get_running_loop()
    accept, failures = loop.sock_accept, [OSError(errno.EMFILE, "too many open files")] * 10

    async def failing(listener):
        if failures:
            raise failures.pop()
        return await accept(listener)

    monkeypatch.setattr(loop, "sock_accept", failing)
    desk = SecretDesk(secrets=NobodysSecrets(), known={})
    async with secrets_served(tmp_path, desk) as path, asyncio.timeout(10):
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"nothing\n")
        assert await reader.read() == b""
        writer.close()
    assert not failures
