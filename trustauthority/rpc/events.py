"""The call of PlacementService that tells what happens."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from trustauthority.ports import Store
from trustauthority.rpc import convert, convert_placement
from trustauthority.rpc.interceptor import current_caller
from trustauthority.rpc.records import host_names, vm_messages
from trustauthority.services.events import PlacementEvent, PlacementEvents
from trustauthority.v1 import placement_pb2 as pb
from trustauthority.v1 import placement_pb2_grpc


class EventCalls(placement_pb2_grpc.PlacementServiceServicer):
    """The event stream."""

    _events: PlacementEvents
    _store: Store

    async def WatchPlacement(
        self, request: pb.WatchPlacementRequest, context: Any
    ) -> AsyncIterator[pb.WatchPlacementResponse]:
        """Events from a cursor on, until the caller hangs up or the process stops."""
        vms = convert_placement.watched(request.vm_ids)
        caller = current_caller().name
        async with aclosing(self._events.watch(request.cursor, vms=vms, caller=caller)) as batches:
            async for batch in batches:
                for event in batch:
                    yield await self._event(event)

    async def _event(self, event: PlacementEvent) -> pb.WatchPlacementResponse:
        order = None
        if event.order is not None:
            ends = {event.order.source, event.order.destination}
            names = await host_names(self._store, ends)
            order = convert_placement.order(event.order, names, event.time_ms)
        vms = [] if event.vm is None else await vm_messages(self._store, [event.vm])
        return pb.WatchPlacementResponse(
            cursor=event.cursor,
            kind=convert_placement.EVENT_KINDS[event.kind],
            operation=event.operation,
            subject=event.subject,
            decision=event.decision,
            reason=event.reason,
            time=convert.timestamp(event.time_ms),
            actor=event.actor,
            vm=vms[0] if vms else None,
            host=None if event.host is None else convert_placement.host(event.host),
            order=order,
        )
