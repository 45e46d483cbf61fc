"""The authority as the gateway calls it: the ordinary client, from threads of its own.

Stage: edge. Guarantees that a call that hangs ends with its deadline and never blocks others, that
the highest audit checkpoint is kept and echoed as by every client, and that answers are plain data in
the form of ``ta -o json``. Never asks for anything that holds a key.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from starlette.concurrency import run_in_threadpool

from trustauthority.client.channel import Authority
from trustauthority.client.errors import ClientError
from trustauthority.client.plain import plain
from trustauthority.v1 import keyprovider_pb2 as keys
from trustauthority.v1 import placement_pb2 as placement
from trustauthority.v1.keyprovider_pb2_grpc import VmServiceStub
from trustauthority.v1.placement_pb2_grpc import PlacementServiceStub

Json = dict[str, Any]
MAX_QUEUED = 256
"""Events that a slow reader may have waiting; then its stream ends, and goes on from its cursor."""


class SlowReader(Exception):
    """Somebody reads slower than things happen."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """Calls, each in a thread. All raise ClientError."""

    authority: Authority

    async def check(self, candidates: list[tuple[str, str]]) -> Json:
        """May these VMs run there?"""
        questions = [placement.PlacementCandidate(vm_id=vm, host=host) for vm, host in candidates]
        request = placement.CheckPlacementRequest(candidates=questions)
        return await self._read(PlacementServiceStub, lambda s: s.CheckPlacement, request)

    async def candidates(self, vm: str) -> Json:
        """The hosts of a VM's cluster, best first."""
        request = placement.ListCandidatesRequest(vm_id=vm)
        return await self._read(PlacementServiceStub, lambda s: s.ListCandidates, request)

    async def intents(self, vm: str) -> Json:
        """Reasons that hosts were given."""
        request = placement.ListIntentsRequest(vm_id=vm)
        return await self._read(PlacementServiceStub, lambda s: s.ListIntents, request)

    async def intend(self, vm: str, host: str, ttl_ms: int, *, by: str) -> Json:
        """Give a host a reason to ask, for the caller ``by``."""
        request = placement.CreateIntentRequest(vm_id=vm, host=host, ttl_ms=ttl_ms)
        return await self._write(PlacementServiceStub, lambda s: s.CreateIntent, request, by)

    async def orders(self, *, vm: str, host: str, order_id: str, open_only: bool) -> Json:
        """Move orders."""
        request = placement.ListMoveOrdersRequest(
            vm_id=vm, host=host, order_id=order_id, open_only=open_only
        )
        return await self._read(PlacementServiceStub, lambda s: s.ListMoveOrders, request)

    async def order(
        self, vm: str, destination: str, *, ttl_ms: int, dry_run: bool, by: str
    ) -> Json:
        """Order a move, for the caller ``by``."""
        request = placement.OrderMoveRequest(
            vm_id=vm, destination=destination, ttl_ms=ttl_ms, dry_run=dry_run
        )
        return await self._write(PlacementServiceStub, lambda s: s.OrderMove, request, by)

    async def cancel(self, order_id: str, *, by: str) -> Json:
        """Take an order back, for the caller ``by``."""
        request = placement.CancelMoveOrderRequest(order_id=order_id)
        return await self._write(PlacementServiceStub, lambda s: s.CancelMoveOrder, request, by)

    async def vms(self, *, host: str, page_size: int, page_token: str) -> Json:
        """Protected VMs."""
        request = keys.ListVmsRequest(host=host, page_size=page_size, page_token=page_token)
        return await self._read(VmServiceStub, lambda s: s.ListVms, request)

    async def vm(self, vm: str) -> Json:
        """One VM."""
        return await self._read(VmServiceStub, lambda s: s.GetVm, keys.GetVmRequest(vm_id=vm))

    async def events(self, cursor: str, vms: list[str]) -> AsyncIterator[Json]:
        """What happens, from a cursor on. Raises SlowReader too."""
        reading = _Reading(self.authority, cursor, vms)
        try:
            async for event in reading.events():
                yield event
        finally:
            reading.end()

    async def _read(self, stub: Any, method: Any, request: Any) -> Json:
        service = self.authority.on(stub)
        return plain(await run_in_threadpool(service.read, method, request))

    async def _write(self, stub: Any, method: Any, request: Any, by: str) -> Json:
        write = partial(self.authority.on(stub).write, on_behalf_of=by)
        return plain(await run_in_threadpool(write, method, request))


class _Reading:
    """A stream that a thread reads into a bounded queue."""

    def __init__(self, authority: Authority, cursor: str, vms: list[str]) -> None:
        self._authority = authority
        self._request = placement.WatchPlacementRequest(cursor=cursor, vm_ids=vms)
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Json | Exception | None] = asyncio.Queue(MAX_QUEUED + 1)
        self._calls: list[grpc.Call] = []
        self._ended = threading.Event()

    async def events(self) -> AsyncIterator[Json]:
        threading.Thread(target=self._read, name="events", daemon=True).start()
        while True:
            event = await self._queue.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                return
            yield event

    def end(self) -> None:
        """Nobody reads any more: end the call, which ends the thread."""
        self._ended.set()
        for call in self._calls:
            call.cancel()

    def _read(self) -> None:
        last: Exception | None = None
        try:
            service = self._authority.on(PlacementServiceStub)
            stream = service.stream(
                lambda s: s.WatchPlacement, self._request, endless=True, on_call=self._began
            )
            for event in stream:
                self._tell(self._put, plain(event))
        except ClientError as error:
            last = error
        except Exception as error:  # noqa: BLE001 - told to whoever reads, or the stream would hang
            last = error
        self._tell(self._put_last, last)

    def _began(self, call: grpc.Call) -> None:
        self._calls.append(call)
        if self._ended.is_set():
            call.cancel()

    def _tell(self, put: Callable[[Any], None], event: object) -> None:
        with suppress(RuntimeError):  # the loop is gone: so is the reader
            self._loop.call_soon_threadsafe(put, event)

    def _put(self, event: Json) -> None:
        if self._ended.is_set():
            return
        if self._queue.qsize() >= MAX_QUEUED:
            self.end()
            self._queue.put_nowait(SlowReader("you read slower than things happen"))
            return
        self._queue.put_nowait(event)

    def _put_last(self, event: Exception | None) -> None:
        if not self._ended.is_set():
            self._queue.put_nowait(event)
