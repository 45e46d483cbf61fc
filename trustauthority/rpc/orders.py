"""The calls of PlacementService about move orders."""

from collections.abc import Sequence
from typing import Any

from trustauthority.model.moveorder import MoveOrder
from trustauthority.ports import Store
from trustauthority.rpc import convert, convert_placement
from trustauthority.rpc.attestation import calling_host
from trustauthority.rpc.interceptor import current_caller
from trustauthority.rpc.records import names_in
from trustauthority.services.moveorders import MoveOrders
from trustauthority.v1 import placement_pb2 as pb
from trustauthority.v1 import placement_pb2_grpc


class MoveOrderCalls(placement_pb2_grpc.PlacementServiceServicer):
    """Orders: placed by schedulers, carried out by hosts."""

    _orders: MoveOrders
    _store: Store

    async def OrderMove(self, request: pb.OrderMoveRequest, context: Any) -> pb.OrderMoveResponse:
        """Ask the owner of a VM to move it."""
        order = await self._orders.order(
            convert.name(request.vm_id, "vm_id"),
            convert.name(request.destination, "destination"),
            ttl_ms=request.ttl_ms,
            by=current_caller().actor,
            dry_run=request.dry_run,
        )
        return pb.OrderMoveResponse(order=(await self._told([order]))[0])

    async def ListMoveOrders(
        self, request: pb.ListMoveOrdersRequest, context: Any
    ) -> pb.ListMoveOrdersResponse:
        """List orders."""
        order_id = request.order_id
        orders = await self._orders.entries(
            vm=convert.optional_name(request.vm_id, "vm_id"),
            host=convert.optional_name(request.host, "host"),
            open_only=request.open_only,
            order_id=convert.request_id(order_id, "order_id") if order_id else "",
        )
        return pb.ListMoveOrdersResponse(orders=await self._told(orders))

    async def ListOwnMoveOrders(
        self, request: pb.ListOwnMoveOrdersRequest, context: Any
    ) -> pb.ListOwnMoveOrdersResponse:
        """What the calling host is to carry out."""
        orders = await self._orders.of_source(calling_host())
        return pb.ListOwnMoveOrdersResponse(orders=await self._told(orders))

    async def CancelMoveOrder(
        self, request: pb.CancelMoveOrderRequest, context: Any
    ) -> pb.CancelMoveOrderResponse:
        """Take an order back."""
        order_id = convert.request_id(request.order_id, "order_id")
        order = await self._orders.cancel(
            order_id, by=current_caller().actor, unless_begun=request.unless_begun
        )
        return pb.CancelMoveOrderResponse(order=(await self._told([order]))[0])

    async def ReportMoveOrder(
        self, request: pb.ReportMoveOrderRequest, context: Any
    ) -> pb.ReportMoveOrderResponse:
        """The source tells how far an order is."""
        order = await self._orders.report(calling_host(), convert_placement.report(request))
        return pb.ReportMoveOrderResponse(order=(await self._told([order]))[0])

    async def _told(self, orders: Sequence[MoveOrder]) -> list[pb.MoveOrder]:
        async with self._store.snapshot() as tx:
            ends = {end for order in orders for end in (order.source, order.destination)}
            names, now_ms = await names_in(tx, ends), tx.now_ms
        return [convert_placement.order(each, names, now_ms) for each in orders]
