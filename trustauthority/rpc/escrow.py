"""EscrowService: VM keys sealed to an offline key. Served by the key role."""

from typing import Any

from trustauthority.errors import InvalidRequest
from trustauthority.keyrelease.escrow import ANSWER_SIZE, CHALLENGE_SIZE
from trustauthority.rpc import convert
from trustauthority.rpc.interceptor import current_caller
from trustauthority.services.escrow import EscrowService
from trustauthority.v1 import escrow_pb2 as pb
from trustauthority.v1 import escrow_pb2_grpc

_RESEAL_MOST, _RESEAL_DEFAULT = 50, 10


class EscrowRpc(escrow_pb2_grpc.EscrowServiceServicer):
    """Export, sealing anew, drills."""

    def __init__(self, service: EscrowService, *, origin: str) -> None:
        self._service = service
        self._origin = origin

    async def ExportEscrow(
        self, request: pb.ExportEscrowRequest, context: Any
    ) -> pb.ExportEscrowResponse:
        """Escrowed keys of some VMs."""
        page = await self._service.export(
            after=convert.optional_name(request.page_token, "page_token"),
            limit=convert.page_size(request.page_size),
            by=current_caller().name,
        )
        return pb.ExportEscrowResponse(
            origin=self._origin,
            keys=[
                pb.EscrowedKey(
                    vm_id=key.vm_id, key_epoch=key.key_epoch, state=key.state, blob=key.escrowed
                )
                for key in page.keys
            ],
            next_page_token=page.after,
            missing=page.missing,
        )

    async def ResealEscrow(
        self, request: pb.ResealEscrowRequest, context: Any
    ) -> pb.ResealEscrowResponse:
        """Seal keys of some VMs to the escrow key of today."""
        if not 0 <= request.page_size <= _RESEAL_MOST:
            raise InvalidRequest(f"page_size is at most {_RESEAL_MOST}", field="page_size")
        done = await self._service.reseal(
            after=convert.optional_name(request.page_token, "page_token"),
            limit=request.page_size or _RESEAL_DEFAULT,
            by=current_caller().name,
        )
        return pb.ResealEscrowResponse(
            resealed=done.resealed,
            current=done.current,
            failed=done.failed,
            next_page_token=done.after,
        )

    async def BeginDrill(
        self, request: pb.BeginDrillRequest, context: Any
    ) -> pb.BeginDrillResponse:
        """Ask a question about a VM's key."""
        vm = convert.name(request.vm_id, "vm_id")
        drill = await self._service.begin_drill(vm, by=current_caller().name)
        return pb.BeginDrillResponse(
            origin=drill.binding.origin,
            key_epoch=drill.binding.key_epoch,
            challenge=drill.challenge,
            blob=drill.blob,
        )

    async def RecordDrill(
        self, request: pb.RecordDrillRequest, context: Any
    ) -> pb.RecordDrillResponse:
        """Judge and record the answer."""
        vm, key_epoch = (
            convert.name(request.vm_id, "vm_id"),
            convert.epoch(request.key_epoch, "key_epoch"),
        )
        for field, value, size in (
            ("challenge", request.challenge, CHALLENGE_SIZE),
            ("answer", request.answer, ANSWER_SIZE),
        ):
            if len(value) != size:
                raise InvalidRequest(f"{field} has {size} bytes", field=field)
        passed = await self._service.record_drill(
            vm,
            key_epoch=key_epoch,
            challenge=request.challenge,
            answer=request.answer,
            by=current_caller().name,
        )
        return pb.RecordDrillResponse(passed=passed)
