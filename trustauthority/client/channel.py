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
from typing import Generic, Self, TypeAlias, TypeVar, cast

import grpc
from cryptography import x509

from trustauthority import errors
from trustauthority.client.checkpoints import METADATA_KEY, CheckpointKeeper
from trustauthority.client.contexts import Context
from trustauthority.client.errors import ClientError, client_error
from trustauthority.client.files import read_private, read_public
from trustauthority.client.reasons import UNIMPLEMENTED
from trustauthority.client.retry import retrying

REQUEST_ID_KEY = "ta-request-id"
BEHALF_KEY = "ta-on-behalf-of"
MAX_MESSAGE_SIZE = 16 * 1024 * 1024
"""Bytes of one message: a page of 1,000 audit entries stays far below."""
_KEY_ROLE_SERVICES = frozenset(
    {
        "BreakGlassServiceStub",
        "EscrowServiceStub",
        "KeyAdministrationServiceStub",
        "KeyProviderServiceStub",
        "VmServiceStub",
    }
)

Stub = TypeVar("Stub")
Request = TypeVar("Request")
Reply = TypeVar("Reply")
# Strings: grpc's classes are generic in its stubs only.
Unary: TypeAlias = "Callable[[Stub], grpc.UnaryUnaryMultiCallable[Request, Reply]]"
Uploading: TypeAlias = "Callable[[Stub], grpc.StreamUnaryMultiCallable[Request, Reply]]"
Streaming: TypeAlias = "Callable[[Stub], grpc.UnaryStreamMultiCallable[Request, Reply]]"


def _ignore(_text: str) -> None:
    """Nobody listens."""


def _ignore_call(_call: grpc.Call) -> None:
    """Nobody wants to cancel it from elsewhere."""


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
        self.timeout_s = timeout_s
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

    def on(self, service: Callable[[grpc.Channel], Stub]) -> "Service[Stub]":
        """One service of this authority, given its stub class."""
        return Service(self, service)

    def channel(self, address: str) -> grpc.Channel:
        """The channel to an address, opened when it is first needed."""
        if address not in self._channels:
            self._channels[address] = grpc.secure_channel(
                address, self._credentials, options=_OPTIONS
            )
        return self._channels[address]

    def metadata(
        self, request_id: str, on_behalf_of: str = ""
    ) -> tuple[tuple[str, str | bytes], ...]:
        """What rides on a request: its id, the highest checkpoint seen, and for whom it is."""
        kept = self.keeper.kept()
        echo = ((METADATA_KEY, kept.encode()),) if kept else ()
        behalf = ((BEHALF_KEY, on_behalf_of),) if on_behalf_of else ()
        return ((REQUEST_ID_KEY, request_id), *echo, *behalf)

    def observe(self, call: object) -> None:
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


class Service(Generic[Stub]):
    """Calls of one service."""

    def __init__(self, authority: Authority, stub: Callable[[grpc.Channel], Stub]) -> None:
        self._authority = authority
        self._stub = stub

    def read(self, method: "Unary[Stub, Request, Reply]", request: Request) -> Reply:
        """Ask something that changes nothing, again if there is no answer. Raises ClientError."""
        timeout_s = self._authority.timeout_s
        deadline = time.monotonic() + timeout_s
        return retrying(lambda: self._call(method, request, deadline), timeout_s=timeout_s)

    def read_at(
        self, address: str, method: "Unary[Stub, Request, Reply]", request: Request
    ) -> Reply:
        """Ask the process at one address, once. Raises ClientError."""
        deadline = time.monotonic() + self._authority.timeout_s
        return self._call_at(address, method, request, deadline)

    def write(
        self, method: "Unary[Stub, Request, Reply]", request: Request, *, on_behalf_of: str = ""
    ) -> Reply:
        """Change something, once. Raises ClientError; without an answer the outcome is unknown.

        ``on_behalf_of`` names in the audit log whom the caller asks for; it gives no right.
        """
        deadline = time.monotonic() + self._authority.timeout_s
        return self._call(method, request, deadline, on_behalf_of)

    def upload(
        self, method: "Uploading[Stub, Request, Reply]", requests: Iterator[Request]
    ) -> Reply:
        """Send a stream, once. Raises ClientError; without an answer the outcome is unknown."""
        deadline = time.monotonic() + self._authority.timeout_s
        unary = cast("Unary[Stub, Iterator[Request], Reply]", method)
        return self._call_at(self._addresses()[0], unary, requests, deadline)

    def stream(
        self,
        method: "Streaming[Stub, Request, Reply]",
        request: Request,
        *,
        endless: bool = False,
        on_call: "Callable[[grpc.Call], None]" = _ignore_call,
    ) -> Iterator[Reply]:
        """Read a stream of answers, within the timeout unless it is endless. Raises ClientError.

        ``on_call`` gets the call, so that another thread may cancel it.
        """
        timeout_s = None if endless else self._authority.timeout_s
        first, *others = self._addresses()
        told = 0
        try:
            for reply in self._stream_at(first, method, request, timeout_s, on_call):
                told += 1
                yield reply
        except ClientError as error:
            elsewhere = error.reason == UNIMPLEMENTED or error.not_sent
            if told or not others or not elsewhere:
                raise
        else:
            return
        yield from self._stream_at(others[0], method, request, timeout_s, on_call)

    def _stream_at(
        self,
        address: str,
        method: "Streaming[Stub, Request, Reply]",
        request: Request,
        timeout_s: float | None,
        on_call: "Callable[[grpc.Call], None]",
    ) -> Iterator[Reply]:
        request_id = secrets.token_hex(16)
        call = method(self._stub(self._authority.channel(address)))(
            request, timeout=timeout_s, metadata=self._authority.metadata(request_id)
        )
        on_call(call)
        try:
            yield from call
            self._authority.observe(call)
        except grpc.RpcError as error:
            self._authority.observe(error)
            raise client_error(error, request_id=request_id) from error
        finally:
            call.cancel()

    def _call(
        self,
        method: "Unary[Stub, Request, Reply]",
        request: Request,
        deadline: float,
        on_behalf_of: str = "",
    ) -> Reply:
        first, *others = self._addresses()
        try:
            return self._call_at(first, method, request, deadline, on_behalf_of)
        except ClientError as error:
            # Nothing ran where the call is not known or no connection was made: safe to go on.
            if not others or not (error.reason == UNIMPLEMENTED or error.not_sent):
                raise
            try:
                return self._call_at(others[0], method, request, deadline, on_behalf_of)
            except ClientError as second:
                raise (error if second.reason == UNIMPLEMENTED else second) from None

    def _call_at(
        self,
        address: str,
        method: "Unary[Stub, Request, Reply]",
        request: Request,
        deadline: float,
        on_behalf_of: str = "",
    ) -> Reply:
        request_id = secrets.token_hex(16)
        try:
            reply, call = method(self._stub(self._authority.channel(address))).with_call(
                request,
                timeout=max(0.001, deadline - time.monotonic()),
                metadata=self._authority.metadata(request_id, on_behalf_of),
            )
        except grpc.RpcError as error:
            self._authority.observe(error)
            failure = client_error(error, request_id=request_id)
            failure.metadata.setdefault("address", address)
            raise failure from error
        self._authority.observe(call)
        return reply

    def _addresses(self) -> list[str]:
        context = self._authority.context
        addresses = [context.server, context.key_server]
        if getattr(self._stub, "__name__", "") in _KEY_ROLE_SERVICES:
            addresses.reverse()
        return [address for address in dict.fromkeys(addresses) if address]


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
