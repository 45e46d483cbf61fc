"""Serve the gateway: uvicorn with TLS 1.3, and the client certificate of each connection.

Stage: edge. Guarantees that only what ``settings`` allows is listened on, that certificates of the
configured CA alone are accepted, and that a connection's certificate reaches the application as TLS
checked it, never from a header.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from trustauthority.client.channel import Authority
from trustauthority.client.checkpoints import CheckpointKeeper
from trustauthority.client.files import read_private
from trustauthority.errors import ConfigurationInvalid
from trustauthority.gateway.app import PEER_CERTIFICATE, Gateway, application
from trustauthority.gateway.authority import Upstream
from trustauthority.gateway.callers import load_callers
from trustauthority.gateway.settings import GatewaySettings, TlsSettings

KEEP_ALIVE_S = 15
DRAIN_S = 5
REQUEST_S = 10.0
"""A connection on which no request is served gets the next one, whole, within one or two of these."""
MAX_HEADER_BYTES = 16_384
_TICKS_PER_SIGN = 50
"""A sign of life every five seconds."""

_log = structlog.get_logger("gateway")


class _Connection(H11Protocol):
    """HTTP/1.1 whose scope holds the certificate that the client showed.

    Who sends no request, or one that does not end, takes one of a bounded number of places: such a
    connection is closed. uvicorn's own limit ends with the first byte of a request.
    """

    _idle_in: object = None
    """The request after which nothing came until the last look; None before the first one."""
    _look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """As uvicorn has it; then remember whom TLS let in."""
        super().connection_made(transport)
        session = transport.get_extra_info("ssl_object")
        certificate = session.getpeercert(binary_form=True) if session is not None else None
        inner = self.app

        async def known(scope: Any, receive: Any, send: Any) -> None:
            scope[PEER_CERTIFICATE] = certificate
            await inner(scope, receive, send)

        self.app = known
        self._look = self.loop.call_later(REQUEST_S, self._close_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn has it; then stop to look."""
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def _close_if_idle(self) -> None:
        last: Any = self.cycle  # None before the first request, whatever its type says
        served = last is not None and not last.response_complete
        if not served and last is self._idle_in:
            self.transport.abort()
            return
        self._idle_in = self if served else last
        self._look = self.loop.call_later(REQUEST_S, self._close_if_idle)


class _Server(uvicorn.Server):
    """Says that it serves when it does, and as long as its loop turns."""

    def __init__(self, config: uvicorn.Config, tell: Callable[[str], None]) -> None:
        super().__init__(config)
        self._tell = tell

    async def startup(self, sockets: Any = None) -> None:
        """As uvicorn has it; then tell where it listens."""
        await super().startup(sockets)
        if self.started:
            self._tell("READY=1")
            addresses = [bound.getsockname()[:2] for each in self.servers for bound in each.sockets]
            _log.info("serving", addresses=[f"{host}:{port}" for host, port in addresses])

    async def on_tick(self, counter: int) -> bool:
        """As uvicorn has it, ten times a second; now and then say that it comes here."""
        if counter % _TICKS_PER_SIGN == 0:
            self._tell("WATCHDOG=1")
        return await super().on_tick(counter)

    async def shutdown(self, sockets: Any = None) -> None:
        """Say so; then as uvicorn has it."""
        self._tell("STOPPING=1")
        await super().shutdown(sockets)


def serve(
    settings: GatewaySettings,
    *,
    started: Callable[[uvicorn.Server], None] = lambda _: None,
    tell: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve until a signal comes; ``tell`` hears how it is, in the words of sd_notify(3).

    Raises ConfigurationInvalid, InsecureFile at start.
    """
    callers = load_callers(settings.callers)
    keeper = CheckpointKeeper(
        path=settings.state_dir / "checkpoint", audit_key=settings.context.audit_key
    )
    listen, limits = settings.listen, settings.limits
    with Authority(
        settings.context, keeper=keeper, timeout_s=settings.authority.timeout_s, warn=_warn
    ) as authority:
        gateway = Gateway(upstream=Upstream(authority), callers=callers, limits=limits)
        config = uvicorn.Config(
            application(gateway),
            host=listen.address,
            port=listen.port,
            http=_Connection,
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # who calls is told by TLS or a token, never by a header
            server_header=False,
            date_header=True,
            limit_concurrency=limits.connections,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=DRAIN_S,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            **_tls(listen.tls),
        )
        config.load()
        if listen.tls is not None:
            _harden(config, listen.tls)
        server = _Server(config, tell)
        started(server)
        asyncio.run(server.serve())


def _warn(text: str) -> None:
    _log.warning("authority", detail=text)


def _tls(tls: TlsSettings | None) -> dict[str, Any]:
    if tls is None:
        return {}
    read_private(tls.key, "private key")
    return {"ssl_certfile": str(tls.certificate), "ssl_keyfile": str(tls.key)}


def _harden(config: uvicorn.Config, tls: TlsSettings) -> None:
    """TLS 1.3 only, no resumption tickets, and certificates of one CA, if any."""
    context = config.ssl
    if context is None:
        raise ConfigurationInvalid("listen.tls: no TLS came of it", field="listen.tls")
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    if tls.client_ca is not None:
        try:
            context.load_verify_locations(cafile=str(tls.client_ca))
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationInvalid(
                f"can't use the client CA {tls.client_ca}: {error}", path=str(tls.client_ca)
            ) from error
        # optional: a caller without one may show a token; a wrong one ends the handshake
        context.verify_mode = ssl.CERT_OPTIONAL
