"""PlacementService: advice and intents for schedulers, the steps of a move for hosts."""

from typing import Any

from trustauthority.model.placement import MovePhase
from trustauthority.ports import Store
from trustauthority.rpc import convert, convert_placement
from trustauthority.rpc.attestation import calling_host
from trustauthority.rpc.events import EventCalls
from trustauthority.rpc.interceptor import current_caller
from trustauthority.rpc.orders import MoveOrderCalls
from trustauthority.rpc.records import host_names
from trustauthority.services.events import PlacementEvents
from trustauthority.services.follow import Follower
from trustauthority.services.moveorders import MoveOrders
from trustauthority.services.placement import PlacementService
from trustauthority.v1 import placement_pb2 as pb

OUTCOMES = {
    MovePhase.SWITCHED: pb.MOVE_OUTCOME_SWITCHED,
    MovePhase.ABORTED: pb.MOVE_OUTCOME_ABORTED,
    MovePhase.OFFERED: pb.MOVE_OUTCOME_OPEN,
    MovePhase.PREPARED: pb.MOVE_OUTCOME_OPEN,
}


class PlacementRpc(MoveOrderCalls, EventCalls):
    """May this VM run there, and moves."""

    def __init__(self, service: PlacementService, store: Store, follower: Follower) -> None:
        self._service = service
        self._orders = MoveOrders(store)
        self._events = PlacementEvents(store, follower)
        self._store = store

    async def CheckPlacement(
        self, request: pb.CheckPlacementRequest, context: Any
    ) -> pb.CheckPlacementResponse:
        """Answer each question."""
        questions = [
            (convert.name(each.vm_id, "vm_id"), convert.name(each.host, "host"))
            for each in request.candidates
        ]
        decisions = await self._service.check(questions)
        return pb.CheckPlacementResponse(
            answers=[
                convert_placement.answer(vm, host, decision)
                for (vm, host), decision in zip(questions, decisions, strict=True)
            ]
        )

    async def ListCandidates(
        self, request: pb.ListCandidatesRequest, context: Any
    ) -> pb.ListCandidatesResponse:
        """Rank the hosts of a VM's cluster."""
        ranked = await self._service.candidates(convert.name(request.vm_id, "vm_id"))
        return pb.ListCandidatesResponse(
            candidates=[convert_placement.candidate(each) for each in ranked]
        )

    async def CreateIntent(
        self, request: pb.CreateIntentRequest, context: Any
    ) -> pb.CreateIntentResponse:
        """Write an intent."""
        entry = await self._service.create_intent(
            convert.name(request.vm_id, "vm_id"),
            convert.name(request.host, "host"),
            ttl_ms=request.ttl_ms,
            by=current_caller().actor,
        )
        names = await host_names(self._store, {entry.destination})
        return pb.CreateIntentResponse(intent=convert.intent(entry, names))

    async def ListIntents(
        self, request: pb.ListIntentsRequest, context: Any
    ) -> pb.ListIntentsResponse:
        """List intents."""
        entries = await self._service.intents(convert.optional_name(request.vm_id, "vm_id"))
        names = await host_names(self._store, {entry.destination for entry in entries})
        return pb.ListIntentsResponse(intents=[convert.intent(each, names) for each in entries])

    async def OfferMove(self, request: pb.OfferMoveRequest, context: Any) -> pb.OfferMoveResponse:
        """The owner offers a VM."""
        move = await self._service.offer(
            calling_host(),
            vm=convert.name(request.vm_id, "vm_id"),
            grant_epoch=convert.epoch(request.grant_epoch),
            destination=convert.name(request.destination, "destination"),
            move_id=convert.request_id(request.request_id),
        )
        return pb.OfferMoveResponse(
            request_id=request.request_id, expires_at=convert.timestamp(move.expires_ms)
        )

    async def SwitchMove(
        self, request: pb.SwitchMoveRequest, context: Any
    ) -> pb.SwitchMoveResponse:
        """The paused owner hands over."""
        grant_epoch = await self._service.switch(
            calling_host(),
            vm=convert.name(request.vm_id, "vm_id"),
            move_id=convert.request_id(request.request_id),
        )
        return pb.SwitchMoveResponse(request_id=request.request_id, grant_epoch=grant_epoch)

    async def AbortMove(self, request: pb.AbortMoveRequest, context: Any) -> pb.AbortMoveResponse:
        """Either party ends a move."""
        await self._service.abort(
            calling_host(),
            vm=convert.name(request.vm_id, "vm_id"),
            move_id=convert.request_id(request.request_id),
        )
        return pb.AbortMoveResponse(request_id=request.request_id)

    async def GetMove(self, request: pb.GetMoveRequest, context: Any) -> pb.GetMoveResponse:
        """The outcome of a move, for its parties."""
        move, entry = await self._service.outcome(
            calling_host(),
            vm=convert.name(request.vm_id, "vm_id"),
            move_id=convert.request_id(request.request_id),
        )
        if move is None or entry is None:
            return pb.GetMoveResponse()
        return pb.GetMoveResponse(
            outcome=OUTCOMES[move.phase],
            grant_epoch=entry.grant_epoch,
            owner_host_id=entry.owner or "",
        )
