"""KeyProviderService and VmService."""

from typing import Any

from trustauthority.errors import InvalidRequest
from trustauthority.model.placement import LeaseClass
from trustauthority.ports import Store
from trustauthority.rpc import convert
from trustauthority.rpc.attestation import calling_host
from trustauthority.rpc.interceptor import current_caller
from trustauthority.services.keyadmin import KeyAdministration
from trustauthority.services.keys import KeyService
from trustauthority.services.placement import NewVm, PlacementService
from trustauthority.services.releasepolicies import ReleasePolicyService
from trustauthority.v1 import keyprovider_pb2 as pb
from trustauthority.v1 import keyprovider_pb2_grpc


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
        if not migrating and request.purpose != pb.KEY_PURPOSE_START:
            raise InvalidRequest("purpose must be given", field="purpose")
        if migrating != bool(request.move_id):
            raise InvalidRequest("move_id belongs to purpose migrate", field="move_id")
        released = await self._service.request(
            calling_host(),
            vm=convert.name(request.vm_id, "vm_id"),
            request_id=convert.request_id(request.request_id),
            move_id=convert.request_id(request.move_id, "move_id") if migrating else "",
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

    def __init__(self, service: PlacementService, store: Store) -> None:
        self._service = service
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
                profile_sha256=request.profile_digest,
            ),
            by=current_caller().name,
        )
        return pb.ProtectVmResponse(vm=convert.vm(entry, {}))

    async def ListVms(self, request: pb.ListVmsRequest, context: Any) -> pb.ListVmsResponse:
        """List VMs."""
        size = convert.page_size(request.page_size)
        after = convert.optional_name(request.page_token, "page_token")
        vms = await self._service.page(after=after, limit=size)
        names = await host_names(self._store, {vm.owner for vm in vms if vm.owner})
        return pb.ListVmsResponse(
            vms=[convert.vm(vm, names) for vm in vms],
            next_page_token=vms[-1].vm_id if len(vms) == size else "",
        )

    async def GetVm(self, request: pb.GetVmRequest, context: Any) -> pb.GetVmResponse:
        """Show one VM."""
        entry = await self._service.get(convert.name(request.vm_id, "vm_id"))
        names = await host_names(self._store, {entry.owner} if entry.owner else set())
        return pb.GetVmResponse(vm=convert.vm(entry, names))


async def host_names(store: Store, ids: "set[Any]") -> dict[str, str]:
    """Names of hosts by id."""
    names: dict[str, str] = {}
    async with store.snapshot() as tx:
        for host_id in ids:
            host = await tx.hosts.get(host_id)
            names[host_id] = "" if host is None else host.name
    return names
