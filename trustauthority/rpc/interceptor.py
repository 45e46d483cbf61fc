"""What happens around each call, once: caller, matrix, checkpoint echo, errors, one log line.

Any exception that is not ours is INTERNAL with an error id, its text only in the log (S12). A request
that does not decode, and a call that belongs to the other listener, are refused like any other: with
one ErrorInfo, the checkpoint and the request id.
"""

import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import grpc

from trustauthority.errors import InvalidRequest, RateLimited, RoleRequired, TrustAuthorityError
from trustauthority.model.identifiers import is_name
from trustauthority.ports import Journal
from trustauthority.rpc.authorize import Caller, Listener, authorize, rule_of
from trustauthority.rpc.errors import abort, code_of
from trustauthority.rpc.identity import CallerResolver
from trustauthority.rpc.limits import PeerLimits
from trustauthority.services.audit import AuditService

CHECKPOINT_KEY = "ta-checkpoint-bin"
REQUEST_ID_KEY = "ta-request-id"
BEHALF_KEY = "ta-on-behalf-of"
MAX_CHECKPOINT_BYTES = 4096
MAX_REQUEST_ID = 64
RECHECK_S = 5.0
"""What a stream tells is told to somebody who was allowed to hear it at most this long ago."""

_caller: ContextVar[Caller] = ContextVar("caller")
_UNDECODABLE = object()
"""Stands for bytes that are no message of the call's type."""


def current_caller() -> Caller:
    """Who makes the call that is being served."""
    return _caller.get()


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler of one listener."""

    def __init__(
        self,
        resolver: CallerResolver,
        audit: AuditService,
        journal: Journal,
        limits: PeerLimits,
    ) -> None:
        self._resolver = resolver
        self._audit = audit
        self._journal = journal
        self._limits = limits

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of one call."""
        method = handler_call_details.method
        handler = await continuation(handler_call_details) or self._elsewhere(method)
        if handler is None:
            return None
        if handler.response_streaming:
            return self._wrap_stream(handler, method)
        return self._wrap_unary(handler, method)

    def _elsewhere(self, method: str) -> Any:
        """A handler for calls of the other listener: who asks for one is told so (N02).

        A call that this listener has, but that belongs to a role of another process, stays
        UNIMPLEMENTED: clients then ask that process.
        """
        rule = rule_of(method)
        listener = self._resolver.listener
        if listener is Listener.ENROL or (rule is not None and rule.listener is not listener):
            return grpc.stream_stream_rpc_method_handler(_never)
        return None

    def _wrap_unary(self, handler: Any, method: str) -> Any:
        inner = handler.stream_unary if handler.request_streaming else handler.unary_unary

        async def call(request: Any, context: Any) -> Any:
            served = _Call(method, context)
            try:
                await self._begin(served)
                reply = await inner(_decoded(request, handler), context)
                await self._attach(served)
            except BaseException as failure:
                await self._end(served, failure)
                raise
            self._line(served, "OK")
            return reply

        make = (
            grpc.stream_unary_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        return make(call, _total(handler.request_deserializer), handler.response_serializer)

    def _wrap_stream(self, handler: Any, method: str) -> Any:
        inner = handler.stream_stream if handler.request_streaming else handler.unary_stream

        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            served = _Call(method, context)
            try:
                await self._begin(served)
                await self._attach(served)
                replies = inner(_decoded(request, handler), context)
                if hasattr(replies, "__aiter__"):
                    async with aclosing(replies) as open_replies:
                        async for reply in open_replies:
                            await self._require_still(served)
                            yield reply
                else:
                    await replies  # this servicer writes to the context by itself
                await self._attach(served)
            except BaseException as failure:
                await self._end(served, failure)
                raise
            self._line(served, "OK")

        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )
        return make(call, _total(handler.request_deserializer), handler.response_serializer)

    async def _begin(self, served: "_Call") -> None:
        context = served.context
        peer = _address(context.peer())
        self._limits.check(peer, served.method)
        caller = served.caller = _on_behalf(await self._admit(served, peer), served.metadata)
        _caller.set(caller)
        if caller.listener is Listener.MUTUAL:
            await self._check_echo(context.invocation_metadata() or ())

    async def _admit(self, served: "_Call", peer: str) -> Caller:
        caller = await self._resolver.resolve(peer, served.context.auth_context())
        served.caller = caller
        authorize(served.method, caller)
        served.admitted = time.monotonic()
        return caller

    async def _require_still(self, served: "_Call") -> None:
        """A stream of an identity ends with its revocation, or its certificate; hosts get hints only."""
        caller = served.caller
        asked_lately = time.monotonic() - served.admitted < RECHECK_S
        if caller is not None and caller.host is None and not asked_lately:
            await self._admit(served, _address(served.context.peer()))

    async def _check_echo(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        notes = [value for key, value in metadata if key == CHECKPOINT_KEY and value]
        for note in notes:
            if not isinstance(note, bytes) or len(note) > MAX_CHECKPOINT_BYTES or len(notes) > 1:
                raise InvalidRequest(
                    "one checkpoint is echoed, of at most 4 KiB", field=CHECKPOINT_KEY
                )
            await self._audit.check_echo(note.decode("utf-8", "replace"))

    async def _end(self, served: "_Call", failure: BaseException) -> None:
        """Turn a failure into the status of the call, unless the caller hung up or it has one."""
        if not isinstance(failure, Exception):  # the caller hung up, or the process ends
            self._line(served, "CANCELLED")
            return
        if isinstance(failure, grpc.aio.AbortError):  # a standard service ended its call
            self._line(served, "ABORT")
            return
        error = (
            failure
            if isinstance(failure, TrustAuthorityError)
            else self._internal(served.method, failure)
        )
        self._line(served, code_of(type(error)).name, error.reason)
        if isinstance(error, RoleRequired):
            await self._alarm(served)
        await self._attach(served, cheaply=isinstance(error, RateLimited))
        await abort(served.context, error)

    async def _alarm(self, served: "_Call") -> None:
        """A known caller reaches for what is not its own: whoever reads the audit log hears of it."""
        if served.caller is None:
            return
        try:
            if await self._audit.record_refusal(served.caller.name, served.method):
                self._journal.record(
                    "access_refused", caller=served.caller.name, method=served.method
                )
        except TrustAuthorityError as error:
            self._journal.record("alarm_unrecorded", reason=error.reason)

    async def _attach(self, served: "_Call", *, cheaply: bool = False) -> None:
        """Put request id and checkpoint on the reply; a reply without one is still a reply."""
        trailing: list[tuple[str, str | bytes]] = [(REQUEST_ID_KEY, served.request_id)]
        try:
            note = await self._audit.checkpoint(cheaply=cheaply)
        except TrustAuthorityError as error:
            self._journal.record("checkpoint_unavailable", reason=error.reason)
        except Exception as failure:  # noqa: BLE001 - the outcome of the call is decided already
            self._internal(served.method, failure)
        else:
            trailing.append((CHECKPOINT_KEY, note.encode()))
        served.context.set_trailing_metadata(tuple(trailing))

    def _internal(self, method: str, failure: BaseException) -> TrustAuthorityError:
        error_id = secrets.token_hex(8)
        self._journal.crash(error_id, method, failure)
        return TrustAuthorityError(
            f"internal error {error_id}; the authority's log says more", errorId=error_id
        )

    def _line(self, served: "_Call", code: str, reason: str = "") -> None:
        self._journal.record(
            "rpc",
            method=served.method,
            code=code,
            reason=reason,
            caller="" if served.caller is None else served.caller.actor,
            request_id=served.request_id,
            duration_ms=round((time.monotonic() - served.began) * 1000, 1),
        )


class _Call:
    """One call while it is served."""

    def __init__(self, method: str, context: Any) -> None:
        self.method = method
        self.context = context
        self.began = self.admitted = time.monotonic()
        self.caller: Caller | None = None
        self.metadata: dict[str, str | bytes] = dict(context.invocation_metadata() or ())
        sent = self.metadata.get(REQUEST_ID_KEY)
        usable = isinstance(sent, str) and 0 < len(sent) <= MAX_REQUEST_ID
        self.request_id = str(sent) if usable else secrets.token_hex(16)


def _on_behalf(caller: Caller, metadata: Mapping[str, str | bytes]) -> Caller:
    """The caller, with whom it says that it asks for. A host asks for itself."""
    said = metadata.get(BEHALF_KEY)
    if said is None:
        return caller
    if caller.identity is None or not isinstance(said, str) or not is_name(said):
        raise InvalidRequest("an identity may say for whom it asks: one name", field=BEHALF_KEY)
    return replace(caller, on_behalf_of=said)


async def _never(_request: Any, _context: Any) -> AsyncIterator[bytes]:
    """Serves nothing: the matrix refuses the call before."""
    raise InvalidRequest("this call is not served here", field="method")
    yield b""


def _total(decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    """A decoder that does not raise: what fails inside of gRPC bypasses the error table."""

    def total(content: bytes) -> Any:
        if decode is None:
            return content
        try:
            return decode(content)
        except Exception:  # noqa: BLE001 - whatever the library raises, the bytes are wrong
            return _UNDECODABLE

    return total


def _decoded(request: Any, handler: Any) -> Any:
    return _decoded_parts(request) if handler.request_streaming else _message(request)


async def _decoded_parts(parts: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for part in parts:
        yield _message(part)


def _message(request: Any) -> Any:
    if request is _UNDECODABLE:
        raise InvalidRequest("the request does not decode as its message", field="request")
    return request


def _address(peer: str) -> str:
    """The address of a peer without its port: what limits count by."""
    kind, _, rest = peer.partition(":")
    return rest.rpartition(":")[0] if kind in ("ipv4", "ipv6") else kind
