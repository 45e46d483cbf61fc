"""KeyAdministrationService: the life of VM keys. Served by the key role."""

from typing import Any

from trustauthority.errors import InvalidRequest
from trustauthority.keyrelease.states import KeyStep
from trustauthority.rpc import convert
from trustauthority.rpc.interceptor import current_caller
from trustauthority.services.keyadmin import KeyAdministration, KeyName
from trustauthority.v1 import keyadmin_pb2 as pb
from trustauthority.v1 import keyadmin_pb2_grpc

_STEPS = {
    KeyStep.SUSPEND: pb.KEY_STEP_SUSPEND,
    KeyStep.RESUME: pb.KEY_STEP_RESUME,
    KeyStep.DEACTIVATE: pb.KEY_STEP_DEACTIVATE,
    KeyStep.COMPROMISE: pb.KEY_STEP_COMPROMISE,
}


class KeyAdminRpc(keyadmin_pb2_grpc.KeyAdministrationServiceServicer):
    """States of keys."""

    def __init__(self, service: KeyAdministration) -> None:
        self._service = service

    async def ChangeKeyState(
        self, request: pb.ChangeKeyStateRequest, context: Any
    ) -> pb.ChangeKeyStateResponse:
        """Take a key one step further."""
        key = await self._service.change(
            _key_name(request),
            convert.chosen(_STEPS, request.step, "step"),
            why=convert.text(request.why, "why"),
            by=current_caller().name,
            dry_run=request.dry_run,
        )
        return pb.ChangeKeyStateResponse(key=convert.vm_key(key))

    async def DestroyKey(
        self, request: pb.DestroyKeyRequest, context: Any
    ) -> pb.DestroyKeyResponse:
        """Have a key destroyed later."""
        key = await self._service.destroy(
            _key_name(request),
            why=convert.text(request.why, "why"),
            by=current_caller().name,
            dry_run=request.dry_run,
        )
        return pb.DestroyKeyResponse(key=convert.vm_key(key))

    async def CancelDestroyKey(
        self, request: pb.CancelDestroyKeyRequest, context: Any
    ) -> pb.CancelDestroyKeyResponse:
        """Take a destruction back."""
        key = await self._service.cancel_destroy(
            _key_name(request),
            why=convert.text(request.why, "why"),
            by=current_caller().name,
            dry_run=request.dry_run,
        )
        return pb.CancelDestroyKeyResponse(key=convert.vm_key(key))


def _key_name(
    request: pb.ChangeKeyStateRequest | pb.DestroyKeyRequest | pb.CancelDestroyKeyRequest,
) -> KeyName:
    if request.key_epoch < 0:
        raise InvalidRequest("key_epoch is not negative", field="key_epoch")
    return KeyName(vm=convert.name(request.vm_id, "vm_id"), key_epoch=request.key_epoch)
