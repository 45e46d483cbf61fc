"""A real gateway in a thread of its own, in front of a real authority, and HTTP clients of it."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from support.authority import Authority, Credentials
from trustauthority.adapters.keyfiles import SERVER_CA
from trustauthority.gateway.callers import new_token
from trustauthority.gateway.serve import serve
from trustauthority.gateway.settings import GatewaySettings

READY_S = 10


@dataclass(slots=True)
class RunningGateway:
    """Where it listens, and a token that it knows."""

    url: str
    token: str
    other_token: str
    folder: Path
    tls: ssl.SSLContext | None = None
    clients: list[httpx.AsyncClient] = field(default_factory=list)

    def client(self, token: str | None = "", *, tls: Any = None) -> httpx.AsyncClient:
        """An HTTP client: with the known token unless another (or none) is given."""
        shown = self.token if token == "" else token
        headers = {} if shown is None else {"Authorization": f"Bearer {shown}"}
        made = httpx.AsyncClient(
            base_url=self.url, headers=headers, verify=tls or self.tls or False, trust_env=False
        )
        self.clients.append(made)
        return made


def private(path: Path, content: str | bytes) -> Path:
    """A file that only its owner can use."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(0o600)
    return path


def settings_of(
    behind: Authority, identity: Credentials, folder: Path, **changes: Any
) -> tuple[GatewaySettings, str, str]:
    """Settings of a gateway with this identity, and the tokens of its two callers."""
    folder.mkdir(mode=0o700, exist_ok=True)
    (token, digest), (other, other_digest) = new_token(), new_token()
    private(
        folder / "callers.toml",
        f'[[caller]]\nname = "nova"\ntoken_sha256 = "{digest}"\n'
        f'[[caller]]\nname = "script"\ntoken_sha256 = "{other_digest}"\n'
        + changes.pop("more_callers", ""),
    )
    values: dict[str, Any] = {
        "authority": {
            "server": behind.process.addresses["mutual"],
            "ca": str(behind.files.path(SERVER_CA, "crt")),
            "certificate": str(private(folder / "gateway.crt", identity.chain)),
            "key": str(private(folder / "gateway.key", identity.key)),
            "timeout_s": 5,
        },
        "callers": str(folder / "callers.toml"),
        "state_dir": str(folder),
        "listen": {"port": 0},
        "limits": {"calls_per_second": 10_000},
    }
    return GatewaySettings.model_validate(values | changes), token, other


@asynccontextmanager
async def gateway_served(
    behind: Authority, identity: Credentials, folder: Path, **changes: Any
) -> AsyncIterator[RunningGateway]:
    """Serve a gateway."""
    settings, token, other = settings_of(behind, identity, folder, **changes)
    servers: list[uvicorn.Server] = []
    serving = asyncio.create_task(asyncio.to_thread(serve, settings, started=servers.append))
    for _ in range(READY_S * 50):
        if serving.done() or (servers and servers[0].started):
            break
        await asyncio.sleep(0.02)
    if serving.done():
        await serving
    port = servers[0].servers[0].sockets[0].getsockname()[1]
    scheme = "https" if settings.listen.tls else "http"
    running = RunningGateway(
        url=f"{scheme}://localhost:{port}"
        if settings.listen.tls
        else f"{scheme}://127.0.0.1:{port}",
        token=token,
        other_token=other,
        folder=folder,
    )
    try:
        yield running
    finally:
        for client in running.clients:
            await client.aclose()
        servers[0].should_exit = True
        await serving
