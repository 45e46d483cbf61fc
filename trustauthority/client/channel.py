"""Calls to an authority: mutual TLS from a context, request ids, checkpoints, retries, deadlines.

Stage: client. Trusts the context. Guarantees: only a server with a certificate of the pinned CA is
talked to; every request echoes the highest audit checkpoint; reads are retried, changes are not;
each failure is a ``ClientError``. A call that a process does not serve goes to the context's other
address, because roles may be one process or several. Does not print or cache answers.
"""

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self, TypeVar

import grpc
from cryptography import x509

from trustauthority import errors
from trustauthority.client.checkpoints import METADATA_KEY, CheckpointKeeper
from trustauthority.client.contexts import Context
from trustauthority.client.errors import UNIMPLEMENTED, ClientError, client_error
from trustauthority.client.files import read_private, read_public
from trustauthority.client.retry import retrying

REQUEST_ID_KEY = "ta-request-id"
MAX_MESSAGE_SIZE = 16 * 1024 * 1024
"""Bytes of one message: a page of 1,000 audit entries stays far below."""
_KEY_ROLE_SERVICES = frozenset({"KeyProviderServiceStub", "VmServiceStub"})

Stub = TypeVar("Stub")
Request = TypeVar("Request")
Reply = TypeVar("Reply")
Unary = Callable[[Stub], grpc.UnaryUnaryMultiCallable[Request, Reply]]
Streaming = Callable[[Stub], grpc.UnaryStreamMultiCallable[Request, Reply]]


def _ignore(_text: str) -> None:
    """Nobody listens."""


class Authority:
    """An open connection to the authority of one context."""

    def __init__(
        self,
        context: Context,
        *,
        keeper: CheckpointKeeper,
        timeout_s: float,
        warn: Callable[[str], None] = _ignore,
    ) -> None:
        self.context = context
        self.keeper = keeper
        self._timeout_s = timeout_s
        self._warn = warn
        self._told: set[str] = set()
        self._credentials = _credentials(context)
        self._channels: dict[str, grpc.Channel] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for channel in self._channels.values():
            channel.close()

    def read(
        self,
        service: Callable[[grpc.Channel], Stub],
        method: Unary[Stub, Request, Reply],
        request: Request,
    ) -> Reply:
        """Ask something that changes nothing, again if there is no answer. Raises ClientError."""
        deadline = time.monotonic() + self._timeout_s
        return retrying(
            lambda: self._call(service, method, request, deadline), timeout_s=self._timeout_s
        )

    def write(
        self,
        service: Callable[[grpc.Channel], Stub],
        method: Unary[Stub, Request, Reply],
        request: Request,
    ) -> Reply:
        """Change something, once. Raises ClientError; without an answer the outcome is unknown."""
        return self._call(service, method, request, time.monotonic() + self._timeout_s)

    def stream(
        self,
        service: Callable[[grpc.Channel], Stub],
        method: Streaming[Stub, Request, Reply],
        request: Request,
        *,
        endless: bool = False,
    ) -> Iterator[Reply]:
        """Read a stream of answers, within the timeout unless it is endless. Raises ClientError."""
        request_id = secrets.token_hex(16)
        call = method(service(self._channel(self._addresses(service)[0])))(
            request,
            timeout=None if endless else self._timeout_s,
            metadata=self._metadata(request_id),
        )
        try:
            yield from call
            self._observe(call)
        except grpc.RpcError as error:
            self._observe(error)
            raise client_error(error, request_id=request_id) from error
        finally:
            call.cancel()

    def _call(
        self,
        service: Callable[[grpc.Channel], Stub],
        method: Unary[Stub, Request, Reply],
        request: Request,
        deadline: float,
    ) -> Reply:
        first, *others = self._addresses(service)
        try:
            return self._call_at(first, service, method, request, deadline)
        except ClientError as error:
            # Nothing ran at an address that does not know the call, so asking elsewhere is safe.
            if error.reason != UNIMPLEMENTED or not others:
                raise
            return self._call_at(others[0], service, method, request, deadline)

    def _call_at(
        self,
        address: str,
        service: Callable[[grpc.Channel], Stub],
        method: Unary[Stub, Request, Reply],
        request: Request,
        deadline: float,
    ) -> Reply:
        request_id = secrets.token_hex(16)
        try:
            reply, call = method(service(self._channel(address))).with_call(
                request,
                timeout=max(0.001, deadline - time.monotonic()),
                metadata=self._metadata(request_id),
            )
        except grpc.RpcError as error:
            self._observe(error)
            failure = client_error(error, request_id=request_id)
            failure.metadata.setdefault("address", address)
            raise failure from error
        self._observe(call)
        return reply

    def _addresses(self, service: object) -> list[str]:
        addresses = [self.context.server, self.context.key_server]
        if getattr(service, "__name__", "") in _KEY_ROLE_SERVICES:
            addresses.reverse()
        return [address for address in dict.fromkeys(addresses) if address]

    def _channel(self, address: str) -> grpc.Channel:
        if address not in self._channels:
            self._channels[address] = grpc.secure_channel(
                address, self._credentials, options=_OPTIONS
            )
        return self._channels[address]

    def _metadata(self, request_id: str) -> tuple[tuple[str, str | bytes], ...]:
        kept = self.keeper.kept()
        echo = ((METADATA_KEY, kept.encode()),) if kept else ()
        return ((REQUEST_ID_KEY, request_id), *echo)

    def _observe(self, call: object) -> None:
        """Look at the checkpoint that rides on an answer, errors too."""
        if not isinstance(call, grpc.Call):
            return
        for key, value in (*(call.initial_metadata() or ()), *(call.trailing_metadata() or ())):
            if key == METADATA_KEY and isinstance(value, bytes):
                with contextlib.suppress(OSError):  # a full disk must not stop a revocation
                    self._tell(self.keeper.observe(value))

    def _tell(self, problem: str) -> None:
        if problem and problem not in self._told:
            self._told.add(problem)
            self._warn(problem)


_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_SIZE),
    ("grpc.enable_http_proxy", 0),
    ("grpc.primary_user_agent", "ta"),
)


def _credentials(context: Context) -> grpc.ChannelCredentials:
    """Load what the context names. Raises InsecureFile or ConfigurationInvalid."""
    anchors = read_public(context.ca, "CA certificate")
    chain = read_public(context.certificate, "certificate")
    for path, content in ((context.ca, anchors), (context.certificate, chain)):
        try:
            x509.load_pem_x509_certificates(content)
        except ValueError as error:
            raise errors.ConfigurationInvalid(
                f"{path} holds no PEM certificate", path=str(path)
            ) from error
    return grpc.ssl_channel_credentials(
        root_certificates=anchors,
        private_key=read_private(context.key, "private key"),
        certificate_chain=chain,
    )
