"""KeyProviderService and VmService."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from trustauthority.errors import InvalidRequest
from trustauthority.model.placement import LeaseClass, Sharing
from trustauthority.ports import Store
from trustauthority.rpc import convert, convert_placement
from trustauthority.rpc.attestation import calling_host
from trustauthority.rpc.breakglass import open_break_glasses
from trustauthority.rpc.interceptor import current_caller
from trustauthority.rpc.records import vm_messages
from trustauthority.services.follow import Follower
from trustauthority.services.keyadmin import KeyAdministration
from trustauthority.services.keys import KeyService
from trustauthority.services.placement import NewVm, PlacementService
from trustauthority.services.releasepolicies import ReleasePolicyService
from trustauthority.services.vmchanges import VmChanges
from trustauthority.services.vmwatch import VmWatch
from trustauthority.v1 import keyprovider_pb2 as pb
from trustauthority.v1 import keyprovider_pb2_grpc

_PURPOSES = {pb.KEY_PURPOSE_START, pb.KEY_PURPOSE_MIGRATE, pb.KEY_PURPOSE_SHARE}


class KeyProviderRpc(keyprovider_pb2_grpc.KeyProviderServiceServicer):
    """VM keys, served by the key role."""

    def __init__(
        self, service: KeyService, admin: KeyAdministration, policies: ReleasePolicyService
    ) -> None:
        self._service = service
        self._admin = admin
        self._policies = policies

    async def CreateKey(self, request: pb.CreateKeyRequest, context: Any) -> pb.CreateKeyResponse:
        """Make a VM key."""
        key = await self._admin.create(
            convert.name(request.vm_id, "vm_id"),
            provider=convert.optional_name(request.provider, "provider"),
            by=current_caller().name,
        )
        return pb.CreateKeyResponse(key=convert.vm_key(key))

    async def ListKeys(self, request: pb.ListKeysRequest, context: Any) -> pb.ListKeysResponse:
        """List VM keys."""
        size = convert.page_size(request.page_size)
        after = convert.optional_name(request.page_token, "page_token")
        keys = await self._admin.page(after=after, limit=size)
        return pb.ListKeysResponse(
            keys=[convert.vm_key(key) for key in keys],
            next_page_token=keys[-1].vm_id if len(keys) == size else "",
        )

    async def GetKey(self, request: pb.GetKeyRequest, context: Any) -> pb.GetKeyResponse:
        """Show one VM key and its releases."""
        vm = convert.name(request.vm_id, "vm_id")
        key, releases = await self._admin.get(vm)
        allowed = (entry for entry in releases if entry["decision"] == "allowed")
        return pb.GetKeyResponse(
            key=convert.vm_key(key),
            releases=[convert.key_release(entry) for entry in allowed],
            epochs=[convert.vm_key(each) for each in await self._admin.epochs(vm)],
            release_policy=(await self._policies.get(vm)).lines,
        )

    async def RequestKey(
        self, request: pb.RequestKeyRequest, context: Any
    ) -> pb.RequestKeyResponse:
        """Release a key to the calling host."""
        migrating = request.purpose == pb.KEY_PURPOSE_MIGRATE
        if request.purpose not in _PURPOSES:
            raise InvalidRequest("purpose must be given", field="purpose")
        if migrating != bool(request.move_id):
            raise InvalidRequest("move_id belongs to purpose migrate", field="move_id")
        released = await self._service.request(
            calling_host(),
            vm=convert.name(request.vm_id, "vm_id"),
            request_id=convert.request_id(request.request_id),
            move_id=convert.request_id(request.move_id, "move_id") if migrating else "",
            shared=request.purpose == pb.KEY_PURPOSE_SHARE,
        )
        return pb.RequestKeyResponse(
            request_id=released.request_id,
            grant_epoch=released.grant_epoch,
            lease=convert.lease(released.terms),
            key_grant=released.key_grant,
            profile_digest=released.profile_sha256,
        )

    async def RenewLease(
        self, request: pb.RenewLeaseRequest, context: Any
    ) -> pb.RenewLeaseResponse:
        """Let the owner go on."""
        terms = await self._service.renew(
            calling_host(),
            vm=convert.name(request.vm_id, "vm_id"),
            grant_epoch=convert.epoch(request.grant_epoch),
            request_id=convert.request_id(request.request_id),
        )
        return pb.RenewLeaseResponse(
            request_id=request.request_id,
            grant_epoch=request.grant_epoch,
            lease=convert.lease(terms),
        )

    async def GiveBackKey(
        self, request: pb.GiveBackKeyRequest, context: Any
    ) -> pb.GiveBackKeyResponse:
        """Free a VM."""
        await self._service.give_back(
            calling_host(),
            vm=convert.name(request.vm_id, "vm_id"),
            grant_epoch=convert.epoch(request.grant_epoch),
            request_id=convert.request_id(request.request_id),
        )
        return pb.GiveBackKeyResponse(request_id=request.request_id)


class VmRpc(keyprovider_pb2_grpc.VmServiceServicer):
    """Protected VMs."""

    def __init__(self, service: PlacementService, store: Store, follower: Follower) -> None:
        self._service = service
        self._changes = VmChanges(store)
        self._watch = VmWatch(store, follower)
        self._store = store

    async def ProtectVm(self, request: pb.ProtectVmRequest, context: Any) -> pb.ProtectVmResponse:
        """Record a VM."""
        lease_class = (
            convert.chosen(convert.LEASE_CLASSES, request.lease_class, "lease_class")
            if request.lease_class
            else LeaseClass.STANDARD
        )
        entry = await self._service.protect(
            NewVm(
                vm_id=request.vm_id,
                cluster=convert.name(request.cluster, "cluster"),
                lease_class=lease_class,
                any_host=request.any_host,
                sharing=Sharing.SHARED
                if request.sharing == pb.SHARING_SHARED
                else Sharing.EXCLUSIVE,
                profile_sha256=request.profile_digest,
            ),
            by=current_caller().name,
        )
        return pb.ProtectVmResponse(vm=convert.vm(entry, {}))

    async def ListVms(self, request: pb.ListVmsRequest, context: Any) -> pb.ListVmsResponse:
        """List VMs."""
        size = convert.page_size(request.page_size)
        after = convert.optional_name(request.page_token, "page_token")
        host = convert.optional_name(request.host, "host")
        vms = await self._service.page(after=after, limit=size, host=host)
        return pb.ListVmsResponse(
            vms=await vm_messages(self._store, vms),
            next_page_token=vms[-1].vm_id if len(vms) == size else "",
        )

    async def GetVm(self, request: pb.GetVmRequest, context: Any) -> pb.GetVmResponse:
        """Show one VM."""
        entry = await self._service.get(convert.name(request.vm_id, "vm_id"))
        glasses = await open_break_glasses(self._store, entry.vm_id)
        messages = await vm_messages(self._store, [entry])
        policy = await ReleasePolicyService(self._store).get(entry.vm_id)
        return pb.GetVmResponse(vm=messages[0], break_glasses=glasses, release_policy=policy.lines)

    async def WatchVms(
        self, request: pb.WatchVmsRequest, context: Any
    ) -> AsyncIterator[pb.WatchVmsResponse]:
        """VMs as they are, then as they change, until the caller hangs up or the process stops."""
        wanted = convert_placement.watched(request.vm_ids)
        caller = current_caller().name
        async with aclosing(self._watch.watch(wanted, caller=caller)) as told:
            async for each in told:
                yield pb.WatchVmsResponse(
                    vms=await vm_messages(self._store, each.vms),
                    complete=each.complete,
                    now=convert.timestamp(each.now_ms),
                )

    async def ReprofileVm(
        self, request: pb.ReprofileVmRequest, context: Any
    ) -> pb.ReprofileVmResponse:
        """Replace the digest of a VM's profile."""
        entry = await self._changes.reprofile(
            convert.name(request.vm_id, "vm_id"),
            request.profile_digest,
            replaces=request.replaces,
            by=current_caller().name,
            dry_run=request.dry_run,
        )
        return pb.ReprofileVmResponse(vm=(await vm_messages(self._store, [entry]))[0])

    async def RetireVm(self, request: pb.RetireVmRequest, context: Any) -> pb.RetireVmResponse:
        """Take a VM out of placement for good."""
        entry = await self._changes.retire(
            convert.name(request.vm_id, "vm_id"),
            even_if_held=request.even_if_held,
            why=convert.text(request.why, "why"),
            by=current_caller().name,
            dry_run=request.dry_run,
        )
        return pb.RetireVmResponse(vm=(await vm_messages(self._store, [entry]))[0])
