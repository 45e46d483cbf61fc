"""Connections to the servers of a KMIP KMS: mutual TLS, one after the other until one answers.

Stage: adapter, run in the key room's child only. Trusts nothing on the network: TLS 1.2 or newer, 1.3
where the server has it, both sides with certificates, the server's host name checked (PyKMIP does not
check it). Guarantees: one connection per use; everything that goes wrong in one comes out as
KmsUnavailable in words of our own. Source: KMIP 1.4 section 7 and profiles.
"""

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from kmip.core import enums
from kmip.pie.client import ProxyKmipClient
from kmip.pie.exceptions import KmipOperationFailure
from kmip.services.kmip_client import KMIPProxy

from trustauthority.adapters.kms.credentials import client_tls
from trustauthority.adapters.kms.port import is_outage, outage
from trustauthority.adapters.kms.settings import KmipSettings
from trustauthority.adapters.kms.trouble import REFUSED_LOGIN, Trouble, refused, trouble_of
from trustauthority.errors import KmsUnavailable

_VERSIONS = {
    "1.1": enums.KMIPVersion.KMIP_1_1,
    "1.2": enums.KMIPVersion.KMIP_1_2,
    "1.3": enums.KMIPVersion.KMIP_1_3,
    "1.4": enums.KMIPVersion.KMIP_1_4,
    "2.0": enums.KMIPVersion.KMIP_2_0,
}
Answer = TypeVar("Answer")


class KmipServer:
    """One server of the KMS."""

    def __init__(self, settings: KmipSettings, host: str, port: int) -> None:
        self._settings = settings
        self._host = host
        self._port = port
        self.name = f"{host}:{port}"

    def connect(self) -> Any:
        """Connect, as PyKMIP's client; what goes wrong is not translated: see ``kmip_trouble``."""
        settings = self._settings
        context = client_tls(
            settings.ca, settings.certificate, settings.key, minimum=ssl.TLSVersion.TLSv1_2
        )
        # an empty configuration file, or PyKMIP would read the one in somebody's home folder
        client = ProxyKmipClient(hostname=self._host, port=self._port, config_file="/dev/null")
        client.proxy = _TlsProxy(self._host, self._port, settings, context)
        try:
            client.open()
        except BaseException:
            client.proxy.close()
            raise
        return client


class KmipServers:
    """All of them; the one that answered last is asked first."""

    def __init__(self, settings: KmipSettings) -> None:
        self.all = [KmipServer(settings, host, port) for host, port in settings.servers()]
        self._order = list(self.all)

    def ask(self, operation: Callable[[Any], Answer], *, again: bool = True) -> Answer:
        """Carry out an operation on the first server that answers.

        Args:
            operation: Gets PyKMIP's client; raises KmsUnavailable to say no.
            again: Whether it may be sent a second time when the first server did not answer. What
                makes a key is sent once, or a key would be left over that nobody knows of.
        """
        failures: list[KmsUnavailable] = []
        for server in tuple(self._order):
            attempt = _attempt(server, operation)
            if attempt.failure is None:
                self._order.remove(server)
                self._order.insert(0, server)
                return attempt.answer  # type: ignore[return-value]  # there is one: nothing failed
            failures.append(attempt.failure)
            if attempt.connected and not (again and is_outage(attempt.failure)):
                raise attempt.failure
        if len(failures) == 1:
            raise failures[0]
        message = "; ".join(failure.message for failure in failures)
        raise outage(message) if any(map(is_outage, failures)) else KmsUnavailable(message)


@dataclass(slots=True, kw_only=True)
class _Attempt(Generic[Answer]):
    connected: bool = False
    answer: Answer | None = None
    failure: KmsUnavailable | None = None


def _attempt(server: KmipServer, operation: Callable[[Any], Answer]) -> _Attempt[Answer]:
    """One connection to one server. Nothing of a foreign error is carried along."""
    attempt: _Attempt[Answer] = _Attempt()
    client: Any = None
    try:
        client = server.connect()
        attempt.connected = True
        attempt.answer = operation(client)
    except KmsUnavailable as refusal:
        attempt.failure = refusal.with_traceback(None)
    except Exception as failure:  # noqa: BLE001  foreign text may quote an answer: none passes
        attempt.failure = kmip_trouble(failure).error(server.name)
    finally:
        if client is not None:
            client.proxy.close()
    return attempt


def kmip_trouble(failure: Exception) -> Trouble:
    """What happened, without any text that a peer chose."""
    match failure:
        case KmipOperationFailure(reason=enums.ResultReason.AUTHENTICATION_NOT_SUCCESSFUL):
            return REFUSED_LOGIN
        case KmipOperationFailure(reason=enums.ResultReason() as reason):
            return refused(f"refused: {reason.name.lower().replace('_', ' ')}")
        case _:
            return trouble_of(failure)


class _TlsProxy(KMIPProxy):  # type: ignore[misc]  # PyKMIP has no types
    """PyKMIP's connection with the host name checked, our timeout, and an orderly end."""

    def __init__(
        self, host: str, port: int, settings: KmipSettings, context: ssl.SSLContext
    ) -> None:
        super().__init__(
            host=host,
            port=port,
            config_file="/dev/null",
            kmip_version=_VERSIONS[settings.version],
        )
        self._context = context
        self._limit = settings.timeout_s
        self.server_time_s: int | None = None
        """What the clock of the server said in its newest answer."""

    def _create_socket(self, sock: socket.socket) -> None:
        sock.settimeout(self._limit)
        self.socket = self._context.wrap_socket(sock, server_hostname=self.host)

    def _send_and_receive_message(self, request: Any) -> Any:
        try:
            response = super()._send_and_receive_message(request)
        except (ConnectionError, EOFError):
            # with TLS 1.3 a server refuses our certificate after the handshake: what it said about
            # that may still lie in the socket, and it is the better reason
            with suppress(ConnectionError):
                self.socket.recv(1)
            raise
        stamp = response.response_header.time_stamp
        self.server_time_s = None if stamp is None else int(stamp.value)
        return response

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
