"""KeyAdministrationService: the life of VM keys. Served by the key role."""

import asyncio
from typing import Any

from trustauthority.errors import FailedPrecondition, InvalidRequest
from trustauthority.keyrelease.states import KeyStep
from trustauthority.rpc import convert, convert_keys
from trustauthority.rpc.interceptor import current_caller
from trustauthority.services.holders import HolderQuestion, HolderService
from trustauthority.services.keyadmin import KeyAdministration, KeyName
from trustauthority.services.keyproviders import KeyProviderService
from trustauthority.services.keyroll import KeyRollService
from trustauthority.services.releasepolicies import ReleasePolicyService
from trustauthority.services.rewrap import RewrapService
from trustauthority.v1 import keyadmin_pb2 as pb
from trustauthority.v1 import keyadmin_pb2_grpc

MAX_SIGNATURE = 128
"""Bytes: Ed25519 has 64, P-256 in DER form at most 72."""
_STEPS = {
    KeyStep.SUSPEND: pb.KEY_STEP_SUSPEND,
    KeyStep.RESUME: pb.KEY_STEP_RESUME,
    KeyStep.DEACTIVATE: pb.KEY_STEP_DEACTIVATE,
    KeyStep.COMPROMISE: pb.KEY_STEP_COMPROMISE,
}


class KeyAdminRpc(keyadmin_pb2_grpc.KeyAdministrationServiceServicer):
    """States, providers and jobs of keys."""

    def __init__(
        self,
        service: KeyAdministration,
        providers: KeyProviderService,
        rewrap: RewrapService,
        holders: HolderService,
        policies: ReleasePolicyService,
        roll: KeyRollService,
        wake: asyncio.Event,
        import_public: bytes,
    ) -> None:
        self._service = service
        self._providers = providers
        self._rewrap = rewrap
        self._holders = holders
        self._policies = policies
        self._roll = roll
        self._wake = wake
        self._import_public = import_public

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

    # --- roll ----------------------------------------------------------------------------------

    async def RollKey(self, request: pb.RollKeyRequest, context: Any) -> pb.RollKeyResponse:
        """Make the next key of a VM."""
        key = await self._roll.roll(
            convert.name(request.vm_id, "vm_id"),
            by=current_caller().name,
            dry_run=request.dry_run,
        )
        return pb.RollKeyResponse(key=convert.vm_key(key))

    async def SwitchKey(self, request: pb.SwitchKeyRequest, context: Any) -> pb.SwitchKeyResponse:
        """Let another key be released."""
        if request.key_epoch < 1:
            raise InvalidRequest("key_epoch is positive", field="key_epoch")
        key = await self._roll.switch(
            convert.name(request.vm_id, "vm_id"),
            request.key_epoch,
            by=current_caller().name,
            dry_run=request.dry_run,
        )
        return pb.SwitchKeyResponse(key=convert.vm_key(key))

    # --- import --------------------------------------------------------------------------------

    async def GetImportKey(
        self, request: pb.GetImportKeyRequest, context: Any
    ) -> pb.GetImportKeyResponse:
        """Tell the import key's public part."""
        if not self._import_public:
            raise FailedPrecondition("this authority has no import key")
        return pb.GetImportKeyResponse(public_key=self._import_public)

    async def ImportKey(self, request: pb.ImportKeyRequest, context: Any) -> pb.ImportKeyResponse:
        """Take in a passphrase."""
        key = await self._service.take_in(
            convert.name(request.vm_id, "vm_id"),
            request.sealed_key,
            provider=convert.optional_name(request.provider, "provider"),
            by=current_caller().name,
        )
        return pb.ImportKeyResponse(key=convert.vm_key(key))

    # --- providers -----------------------------------------------------------------------------

    async def ListKeyProviders(
        self, request: pb.ListKeyProvidersRequest, context: Any
    ) -> pb.ListKeyProvidersResponse:
        """List providers."""
        views = await self._providers.views()
        return pb.ListKeyProvidersResponse(providers=[convert_keys.provider(v) for v in views])

    async def GetKeyProvider(
        self, request: pb.GetKeyProviderRequest, context: Any
    ) -> pb.GetKeyProviderResponse:
        """Show one provider."""
        view = await self._providers.view(convert.name(request.name, "name"))
        return pb.GetKeyProviderResponse(provider=convert_keys.provider(view))

    async def CreateKeyProvider(
        self, request: pb.CreateKeyProviderRequest, context: Any
    ) -> pb.CreateKeyProviderResponse:
        """Make a provider's first KEK."""
        name = convert.name(request.name, "name")
        await self._providers.create(name, by=current_caller().name)
        view = await self._providers.view(name)
        return pb.CreateKeyProviderResponse(provider=convert_keys.provider(view))

    async def SetDefaultKeyProvider(
        self, request: pb.SetDefaultKeyProviderRequest, context: Any
    ) -> pb.SetDefaultKeyProviderResponse:
        """Choose a cluster's provider."""
        await self._providers.set_default(
            convert.name(request.cluster, "cluster"),
            convert.name(request.provider, "provider"),
            by=current_caller().name,
        )
        return pb.SetDefaultKeyProviderResponse()

    # --- rewrap --------------------------------------------------------------------------------

    async def StartRewrap(
        self, request: pb.StartRewrapRequest, context: Any
    ) -> pb.StartRewrapResponse:
        """Begin a job."""
        job = await self._rewrap.start(
            convert.name(request.provider, "provider"),
            target=convert.optional_name(request.target, "target"),
            new_kek=request.new_kek,
            by=current_caller().name,
            dry_run=request.dry_run,
        )
        self._wake.set()
        return pb.StartRewrapResponse(rewrap=convert_keys.rewrap(job))

    async def ListRewraps(
        self, request: pb.ListRewrapsRequest, context: Any
    ) -> pb.ListRewrapsResponse:
        """List jobs."""
        jobs = await self._rewrap.jobs(limit=convert.page_size(request.page_size))
        return pb.ListRewrapsResponse(rewraps=[convert_keys.rewrap(job) for job in jobs])

    async def GetRewrap(self, request: pb.GetRewrapRequest, context: Any) -> pb.GetRewrapResponse:
        """Show one job."""
        job = await self._rewrap.get(convert.name(request.job_id, "job_id"))
        return pb.GetRewrapResponse(rewrap=convert_keys.rewrap(job))

    async def CancelRewrap(
        self, request: pb.CancelRewrapRequest, context: Any
    ) -> pb.CancelRewrapResponse:
        """End a job."""
        job_id = convert.name(request.job_id, "job_id")
        job = await self._rewrap.cancel(job_id, by=current_caller().name)
        return pb.CancelRewrapResponse(rewrap=convert_keys.rewrap(job))

    # --- who held what -------------------------------------------------------------------------

    async def ListKeyHolders(
        self, request: pb.ListKeyHoldersRequest, context: Any
    ) -> pb.ListKeyHoldersResponse:
        """List releases."""
        question = HolderQuestion(
            host=convert.optional_name(request.host, "host"),
            baseline=convert_keys.variant(request.baseline),
            tpm=convert.text(request.tpm, "tpm"),
            since_ms=request.since.ToMilliseconds(),
        )
        held, place = await self._holders.page(
            question,
            after=convert_keys.place(request.page_token),
            limit=convert.page_size(request.page_size),
        )
        return pb.ListKeyHoldersResponse(
            held=[convert_keys.held_key(each) for each in held],
            next_page_token="" if place is None else str(place),
        )

    # --- release policies ----------------------------------------------------------------------

    async def GetReleasePolicy(
        self, request: pb.GetReleasePolicyRequest, context: Any
    ) -> pb.GetReleasePolicyResponse:
        """Show a VM's release policy."""
        view = await self._policies.get(convert.name(request.vm_id, "vm_id"))
        return pb.GetReleasePolicyResponse(policy=convert_keys.release_policy(view))

    async def SetReleasePolicy(
        self, request: pb.SetReleasePolicyRequest, context: Any
    ) -> pb.SetReleasePolicyResponse:
        """Put the next version in force."""
        if len(request.signature) > MAX_SIGNATURE:
            raise InvalidRequest("signature: nobody's is that long", field="signature")
        view = await self._policies.put(
            convert.name(request.vm_id, "vm_id"),
            request.document,
            request.signature,
            by=current_caller().name,
            dry_run=request.dry_run,
        )
        return pb.SetReleasePolicyResponse(policy=convert_keys.release_policy(view))

    async def SetHostRegion(
        self, request: pb.SetHostRegionRequest, context: Any
    ) -> pb.SetHostRegionResponse:
        """Say in which region a host is."""
        await self._policies.set_region(
            convert.name(request.host, "host"),
            convert.optional_name(request.region, "region"),
            by=current_caller().name,
        )
        return pb.SetHostRegionResponse()


def _key_name(
    request: pb.ChangeKeyStateRequest | pb.DestroyKeyRequest | pb.CancelDestroyKeyRequest,
) -> KeyName:
    if request.key_epoch < 0:
        raise InvalidRequest("key_epoch is not negative", field="key_epoch")
    return KeyName(vm=convert.name(request.vm_id, "vm_id"), key_epoch=request.key_epoch)
