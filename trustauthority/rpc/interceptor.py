"""What happens around each call, once: caller, matrix, checkpoint echo, errors, one log line.

Any exception that is not ours is INTERNAL with an error id, its text only in the log (S12).
"""

import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import grpc

from trustauthority.errors import InvalidRequest, TrustAuthorityError
from trustauthority.ports import Journal
from trustauthority.rpc.authorize import Caller, Listener, authorize
from trustauthority.rpc.errors import abort, code_of
from trustauthority.rpc.identity import CallerResolver
from trustauthority.rpc.limits import PeerLimits
from trustauthority.services.audit import AuditService

CHECKPOINT_KEY = "ta-checkpoint-bin"
REQUEST_ID_KEY = "ta-request-id"
MAX_CHECKPOINT_BYTES = 4096

_caller: ContextVar[Caller] = ContextVar("caller")


def current_caller() -> Caller:
    """Who makes the call that is being served."""
    return _caller.get()


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler."""

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
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        if handler.response_streaming:
            return self._wrap_stream(handler, method)
        return self._wrap_unary(handler, method)

    def _wrap_unary(self, handler: Any, method: str) -> Any:
        inner = handler.stream_unary if handler.request_streaming else handler.unary_unary

        async def call(request: Any, context: Any) -> Any:
            async def run() -> Any:
                return await inner(request, context)

            return await self._serve(method, context, run)

        make = (
            grpc.stream_unary_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        return make(call, handler.request_deserializer, handler.response_serializer)

    def _wrap_stream(self, handler: Any, method: str) -> Any:
        inner = handler.stream_stream if handler.request_streaming else handler.unary_stream

        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            began = time.monotonic()
            error: TrustAuthorityError | None = None
            try:
                await self._begin(method, context)
                await self._attach(context)
                async for reply in inner(request, context):
                    yield reply
            except TrustAuthorityError as failure:
                error = failure
            except (Exception, grpc.aio.AbortError) as failure:
                if isinstance(failure, grpc.aio.AbortError):
                    raise
                error = self._internal(method, failure)
            self._line(method, began, error)
            if error is not None:
                await abort(context, error)

        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )
        return make(call, handler.request_deserializer, handler.response_serializer)

    async def _serve(self, method: str, context: Any, run: Callable[[], Awaitable[Any]]) -> Any:
        began = time.monotonic()
        error: TrustAuthorityError
        try:
            await self._begin(method, context)
            reply = await run()
            await self._attach(context)
        except TrustAuthorityError as failure:
            error = failure
        except Exception as failure:  # noqa: BLE001 - nothing foreign crosses the boundary
            error = self._internal(method, failure)
        else:
            self._line(method, began, None)
            return reply
        self._line(method, began, error)
        await self._attach(context)
        return await abort(context, error)

    async def _begin(self, method: str, context: Any) -> None:
        metadata = dict(context.invocation_metadata() or ())
        peer = _address(context.peer())
        self._limits.check(peer, method)
        caller = await self._resolver.resolve(peer, context.auth_context())
        authorize(method, caller)
        _caller.set(caller)
        note = metadata.get(CHECKPOINT_KEY)
        if note and caller.listener is Listener.MUTUAL:
            if not isinstance(note, bytes) or len(note) > MAX_CHECKPOINT_BYTES:
                raise InvalidRequest("the echoed checkpoint is too long", field=CHECKPOINT_KEY)
            await self._audit.check_echo(note.decode("utf-8", "replace"))

    async def _attach(self, context: Any) -> None:
        metadata = dict(context.invocation_metadata() or ())
        request_id = metadata.get(REQUEST_ID_KEY)
        trailing: list[tuple[str, str | bytes]] = []
        if isinstance(request_id, str) and len(request_id) <= 64:
            trailing.append((REQUEST_ID_KEY, request_id))
        try:
            trailing.append((CHECKPOINT_KEY, (await self._audit.checkpoint()).encode()))
        except TrustAuthorityError as error:
            self._journal.record("checkpoint_unavailable", reason=error.reason)
        context.set_trailing_metadata(tuple(trailing))

    def _internal(self, method: str, failure: BaseException) -> TrustAuthorityError:
        error_id = secrets.token_hex(8)
        self._journal.crash(error_id, method, failure)
        return TrustAuthorityError(
            f"internal error {error_id}; the authority's log says more", errorId=error_id
        )

    def _line(self, method: str, began: float, error: TrustAuthorityError | None) -> None:
        caller = _caller.get(None)
        self._journal.record(
            "rpc",
            method=method,
            code="OK" if error is None else code_of(type(error)).name,
            reason="" if error is None else error.reason,
            caller="" if caller is None else caller.name,
            duration_ms=round((time.monotonic() - began) * 1000, 1),
        )


def _address(peer: str) -> str:
    """The address of a peer without its port: what limits count by."""
    kind, _, rest = peer.partition(":")
    return rest.rpartition(":")[0] if kind in ("ipv4", "ipv6") else kind
