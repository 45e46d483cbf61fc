"""The HTTP application: who calls, how much, what; each answer is JSON or a problem document.

Stage: edge. Trusts nothing in a request. Guarantees that nobody is answered (but for health and the
description) before it is known who asks, that each caller stays below its rate, that bodies are
bounded, and that no exception becomes text for callers. Format: docs/reference/gateway.md.
"""

import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import structlog
from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from trustauthority import errors
from trustauthority.client.errors import ClientError
from trustauthority.gateway import bodies, problems
from trustauthority.gateway.authority import Json, SlowReader, Upstream
from trustauthority.gateway.bodies import flag, parameters, read_body
from trustauthority.gateway.callers import Caller, Callers
from trustauthority.gateway.openapi import DESCRIPTION
from trustauthority.gateway.problems import Refused, problem
from trustauthority.gateway.settings import LimitSettings

PEER_CERTIFICATE = "ta_peer_certificate"
"""Where ``serve`` puts the client certificate (DER) that TLS accepted."""
SLOW_READER = "SLOW_READER"
MAX_CURSOR = 64

_log = structlog.get_logger("gateway")
Answer = Callable[["Gateway", Request], Awaitable[Response]]


@dataclass(slots=True)
class Gateway:
    """What all requests share."""

    upstream: Upstream
    callers: Callers
    limits: LimitSettings
    streams: dict[str, int] = field(default_factory=dict)
    """Open event streams by caller."""
    _limiter: FixedWindowRateLimiter = field(
        default_factory=lambda: FixedWindowRateLimiter(MemoryStorage())
    )

    def caller_of(self, request: Request) -> Caller:
        """Who asks. Raises Refused."""
        certificate = request.scope.get(PEER_CERTIFICATE)
        headers = request.headers.getlist("authorization")
        found = None
        if len(headers) == 1:
            found = self.callers.by_token(headers[0])
        elif not headers and certificate:
            found = self.callers.by_certificate(certificate)
        if found is None:
            detail = "a client certificate or one bearer token of a known caller is needed"
            raise Refused(401, errors.Unauthenticated.reason, detail)
        return found

    def count(self, caller: Caller) -> None:
        """Count a call. Raises Refused."""
        rate = RateLimitItemPerSecond(self.limits.calls_per_second)
        if not self._limiter.hit(rate, caller.name):
            detail = f"more than {self.limits.calls_per_second} calls in a second"
            raise Refused(429, errors.RateLimited.reason, detail)

    def open_stream(self, caller: Caller) -> None:
        """Count a stream. Raises Refused."""
        mine, everybodys = self.streams.get(caller.name, 0), sum(self.streams.values())
        if mine >= self.limits.streams or everybodys >= self.limits.all_streams:
            detail = f"{mine} streams of yours are open, {everybodys} in all"
            raise Refused(429, errors.RateLimited.reason, detail)
        self.streams[caller.name] = mine + 1

    def close_stream(self, caller: Caller) -> None:
        """It ended."""
        self.streams[caller.name] -= 1
        if not self.streams[caller.name]:
            del self.streams[caller.name]


def application(gateway: Gateway) -> Starlette:
    """The routes."""

    def known(answer: Answer) -> Callable[[Request], Awaitable[Response]]:
        async def serve(request: Request) -> Response:
            return await _served(gateway, answer, request)

        return serve

    async def refused(_request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        reason = errors.NotFound.reason if status == 404 else bodies.INVALID
        return problem(status, reason, "there is no such resource, or not with this method")

    order = "/v1/orders/{order}"
    return Starlette(
        routes=[
            Route("/healthz", _health),
            Route("/openapi.json", _description),
            Route("/v1/placement/check", known(_check), methods=["POST"]),
            Route("/v1/vms", known(_vms)),
            Route("/v1/vms/{vm}", known(_vm)),
            Route("/v1/vms/{vm}/candidates", known(_candidates)),
            Route("/v1/intents", known(_intents)),
            Route("/v1/intents", known(_intend), methods=["POST"]),
            Route("/v1/orders", known(_orders)),
            Route("/v1/orders", known(_order), methods=["POST"]),
            Route(order, known(_one_order)),
            Route(order, known(_cancel), methods=["DELETE"]),
            Route("/v1/events", known(_events)),
        ],
        exception_handlers={HTTPException: refused},
    )


async def _served(gateway: Gateway, answer: Answer, request: Request) -> Response:
    caller: Caller | None = None
    try:
        caller = gateway.caller_of(request)
        gateway.count(caller)
        request.state.caller = caller
        response = await answer(gateway, request)
    except Refused as refusal:
        response = problem(
            refusal.status, refusal.reason, refusal.detail, metadata=refusal.metadata
        )
    except ClientError as error:
        response = problems.of_authority(error)
    except Exception:  # noqa: BLE001 - a bug is an answer with an id, never its text
        error_id = secrets.token_hex(8)
        _log.exception("crashed", error_id=error_id, path=request.url.path)
        reason = errors.TrustAuthorityError.reason
        response = problem(500, reason, f"internal error {error_id}; the gateway's log says more")
    _log.info(
        "request",
        caller="" if caller is None else caller.name,
        method=request.method,
        path=request.scope["path"][:200],
        status=response.status_code,
    )
    return response


# --- answers ---------------------------------------------------------------------------------


async def _health(_request: Request) -> Response:
    """The process serves; whether the authority does is what the calls tell."""
    return JSONResponse({"status": "ok"})


async def _description(_request: Request) -> Response:
    return JSONResponse(DESCRIPTION)


async def _check(gateway: Gateway, request: Request) -> Response:
    body = await read_body(request, bodies.Questions, most=gateway.limits.body_bytes)
    asked = [(each.vm, each.host) for each in body.candidates]
    return JSONResponse(await gateway.upstream.check(asked))


async def _candidates(gateway: Gateway, request: Request) -> Response:
    parameters(request)
    return JSONResponse(await gateway.upstream.candidates(request.path_params["vm"]))


async def _vms(gateway: Gateway, request: Request) -> Response:
    asked = parameters(request, "host", "pageSize", "pageToken")
    size = asked.get("pageSize", "0")
    if not size.isascii() or not size.isdigit() or int(size) > 500:
        raise Refused(400, bodies.INVALID, "pageSize: 1 to 500", field="pageSize")
    found = await gateway.upstream.vms(
        host=asked.get("host", ""), page_size=int(size), page_token=asked.get("pageToken", "")
    )
    return JSONResponse(found)


async def _vm(gateway: Gateway, request: Request) -> Response:
    parameters(request)
    return JSONResponse((await gateway.upstream.vm(request.path_params["vm"]))["vm"])


async def _intents(gateway: Gateway, request: Request) -> Response:
    asked = parameters(request, "vm")
    return JSONResponse(await gateway.upstream.intents(asked.get("vm", "")))


async def _intend(gateway: Gateway, request: Request) -> Response:
    body = await read_body(request, bodies.NewIntent, most=gateway.limits.body_bytes)
    made = await gateway.upstream.intend(
        body.vm, body.host, body.ttlMs, by=request.state.caller.name
    )
    return JSONResponse(made["intent"], 201)


async def _orders(gateway: Gateway, request: Request) -> Response:
    asked = parameters(request, "vm", "host", "open")
    found = await gateway.upstream.orders(
        vm=asked.get("vm", ""),
        host=asked.get("host", ""),
        order_id="",
        open_only=flag(asked.get("open", ""), "open"),
    )
    return JSONResponse(found)


async def _order(gateway: Gateway, request: Request) -> Response:
    body = await read_body(request, bodies.NewOrder, most=gateway.limits.body_bytes)
    made: Json = await gateway.upstream.order(
        body.vm,
        body.destination,
        ttl_ms=body.ttlMs,
        dry_run=body.dryRun,
        by=request.state.caller.name,
    )
    return JSONResponse(made["order"], 200 if body.dryRun else 201)


async def _one_order(gateway: Gateway, request: Request) -> Response:
    parameters(request)
    order_id = request.path_params["order"]
    found = await gateway.upstream.orders(vm="", host="", order_id=order_id, open_only=False)
    return JSONResponse(found["orders"][0])


async def _cancel(gateway: Gateway, request: Request) -> Response:
    order_id, by = request.path_params["order"], request.state.caller.name
    return JSONResponse((await gateway.upstream.cancel(order_id, by=by))["order"])


async def _events(gateway: Gateway, request: Request) -> Response:
    """Server-sent events; the id of each is its cursor, so that a browser's client goes on by itself."""
    asked = parameters(request, "cursor", "vm")
    cursor = request.headers.get("last-event-id", "") or asked.get("cursor", "")
    if len(cursor) > MAX_CURSOR:
        raise Refused(400, bodies.INVALID, "cursor: as an event told it", field="cursor")
    caller: Caller = request.state.caller
    gateway.open_stream(caller)
    events = gateway.upstream.events(cursor, [asked["vm"]] if asked.get("vm") else [])
    try:
        first = await anext(aiter(events))  # a refusal is still an answer with a status
    except BaseException:
        gateway.close_stream(caller)
        raise
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    told = _told(first, events)

    async def end() -> None:
        gateway.close_stream(caller)
        await events.aclose()  # type: ignore[attr-defined] # it is a generator

    return _Events(told, end, headers)


class _Events(StreamingResponse):
    """A stream that ends once, also when its caller hangs up before the first event leaves."""

    def __init__(
        self, told: AsyncIterator[str], end: Callable[[], Awaitable[None]], headers: dict[str, str]
    ) -> None:
        super().__init__(told, media_type="text/event-stream", headers=headers)
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As Starlette has it; a generator that was never begun would not end by itself."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._end()


async def _told(first: Json, events: AsyncIterator[Json]) -> AsyncIterator[str]:
    cursor = first["cursor"]
    try:
        yield _sse(first)
        async for event in events:
            cursor = event["cursor"]
            yield _sse(event)
    except SlowReader as error:
        yield _end(SLOW_READER, str(error), cursor)
    except ClientError as error:
        yield _end(error.reason, error.message, cursor)


def _sse(event: Json) -> str:
    name = event["kind"] if event["operation"] else "alive"
    return f"id: {event['cursor']}\nevent: {name}\ndata: {_line(event)}\n\n"


def _end(reason: str, detail: str, cursor: str) -> str:
    """The last event of a stream that ends by the gateway: why, and where to go on."""
    content = {"reason": reason, "detail": detail, "cursor": cursor}
    return f"event: end\ndata: {_line(content)}\n\n"


def _line(content: Any) -> str:
    return json.dumps(content, separators=(",", ":"))  # ASCII, so there is no line break in it
