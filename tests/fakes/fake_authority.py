"""A gRPC server on 127.0.0.1 with mutual TLS that answers what a test tells it to.

It serves every method of the protocol, so that a test needs no servicer classes: ``answer`` sets a
reply (a message or a function of the request), ``fail`` sets an error as the authority would send it.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from trustauthority.v1 import (
    admin_pb2,
    attestation_pb2,
    breakglass_pb2,
    escrow_pb2,
    keyadmin_pb2,
    keyprovider_pb2,
    placement_pb2,
)

FILES = (
    admin_pb2,
    attestation_pb2,
    breakglass_pb2,
    escrow_pb2,
    keyadmin_pb2,
    keyprovider_pb2,
    placement_pb2,
)
DOMAIN = "trustauthority.dev"
CHECKPOINT = "ta-checkpoint-bin"


class FakeAuthority:
    """One process of an authority, with the answers of one test."""

    def __init__(self, *, ca: bytes, certificate: bytes, key: bytes) -> None:
        self.answers: dict[str, Any] = {}
        self.requests: list[Message] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.checkpoint = b""
        self._server = grpc.server(ThreadPoolExecutor(max_workers=4))
        self._server.add_generic_rpc_handlers([self._handlers(s) for s in _services()])
        credentials = grpc.ssl_server_credentials(
            [(key, certificate)], root_certificates=ca, require_client_auth=True
        )
        self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self.address = f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.stop(grace=0).wait(5)

    def forget(self) -> None:
        """Start the next test without answers, requests or checkpoint."""
        self.answers.clear()
        self.requests.clear()
        self.metadata.clear()
        self.checkpoint = b""

    def answer(self, method: str, reply: Message | Callable[[Any], Any]) -> None:
        """Answer ``method`` with a message, or with what a function makes of the request."""
        self.answers[method] = reply

    def fail(
        self,
        method: str,
        *,
        code: grpc.StatusCode,
        reason: str = "",
        message: str = "no",
        metadata: dict[str, str] | None = None,
        retry_after_s: float = 0.0,
        times: int = 1_000_000,
        then: Message | None = None,
    ) -> None:
        """Fail ``method`` as the authority does, ``times`` times, then answer ``then``."""
        left = [times]

        def refuse(_request: Message) -> Message | status_pb2.Status:
            left[0] -= 1
            if left[0] < 0 and then is not None:
                return then
            status = status_pb2.Status(code=code.value[0], message=message)
            if reason:
                info = error_details_pb2.ErrorInfo(
                    reason=reason, domain=DOMAIN, metadata=metadata or {}
                )
                status.details.add().Pack(info)
            if retry_after_s:
                delay = Duration(nanos=int(retry_after_s % 1 * 1e9), seconds=int(retry_after_s))
                status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
            return status

        self.answers[method] = refuse

    def request(self, kind: type[Message]) -> Any:
        """The last request of a kind."""
        return [request for request in self.requests if isinstance(request, kind)][-1]

    def _handlers(self, service: Any) -> grpc.GenericRpcHandler:
        handlers = {}
        for method in service.methods:
            make, serve = self._kind(method)
            handlers[method.name] = make(
                serve,
                request_deserializer=GetMessageClass(method.input_type).FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
        return grpc.method_handlers_generic_handler(service.full_name, handlers)

    def _kind(self, method: Any) -> tuple[Any, Any]:
        if method.client_streaming:
            return grpc.stream_unary_rpc_method_handler, self._joined(method.name)
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler, self._stream(method.name)
        return grpc.unary_unary_rpc_method_handler, self._unary(method.name)

    def _joined(self, name: str) -> Callable[[Iterator[Message], grpc.ServicerContext], Any]:
        def serve(requests: Iterator[Message], context: grpc.ServicerContext) -> Any:
            *others, last = requests
            self.requests.extend(others)
            return self._reply(name, last, context)

        return serve

    def _unary(self, name: str) -> Callable[[Message, grpc.ServicerContext], Any]:
        return lambda request, context: self._reply(name, request, context)

    def _stream(self, name: str) -> Callable[[Message, grpc.ServicerContext], Iterator[Any]]:
        def serve(request: Message, context: grpc.ServicerContext) -> Iterator[Any]:
            yield from self._reply(name, request, context)

        return serve

    def _reply(self, name: str, request: Message, context: grpc.ServicerContext) -> Any:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        if self.checkpoint:
            context.set_trailing_metadata(((CHECKPOINT, self.checkpoint),))
        if name not in self.answers:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{name} is not served here")
        answer = self.answers[name]
        reply = answer(request) if callable(answer) else answer
        if isinstance(reply, status_pb2.Status):
            assert reply.code != code_pb2.OK
            status = rpc_status.to_status(reply)
            extra = ((CHECKPOINT, self.checkpoint),) if self.checkpoint else ()
            context.set_trailing_metadata((*status.trailing_metadata, *extra))
            context.set_code(status.code)
            context.set_details(status.details)
            return GetMessageClass(_reply_type(name))()
        return reply


def _services() -> list[Any]:
    return [s for file in FILES for s in file.DESCRIPTOR.services_by_name.values()]


def _reply_type(name: str) -> Any:
    return next(m.output_type for s in _services() for m in s.methods if m.name == name)
