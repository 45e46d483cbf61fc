"""HostService and ReportService."""

import json
from collections.abc import AsyncIterator
from typing import Any

from joserfc.jwk import KeySet

from trustauthority.errors import NotFound
from trustauthority.ports import Store
from trustauthority.rpc import convert
from trustauthority.rpc.interceptor import current_caller
from trustauthority.rpc.watch import Watchers
from trustauthority.services.bundles import evidence_bundle
from trustauthority.services.hosts import HostService
from trustauthority.v1 import admin_pb2 as pb
from trustauthority.v1 import admin_pb2_grpc
from trustauthority.v1.attestation_pb2 import HOST_WISH_ATTEST_NOW, HOST_WISH_REVOKED

CHUNK_BYTES = 256 * 1024


class HostRpc(admin_pb2_grpc.HostServiceServicer):
    """Hosts and their life."""

    def __init__(self, service: HostService, watchers: Watchers, store: Store) -> None:
        self._service = service
        self._store = store
        self._watchers = watchers

    async def ListHosts(self, request: pb.ListHostsRequest, context: Any) -> pb.ListHostsResponse:
        """List hosts with their standing."""
        size = convert.page_size(request.page_size)
        views = await self._service.page(
            cluster=convert.optional_name(request.cluster, "cluster"),
            after=convert.optional_name(request.page_token, "page_token"),
            limit=size,
        )
        return pb.ListHostsResponse(
            hosts=[convert.host(view) for view in views],
            next_page_token=views[-1].host.host_id if len(views) == size else "",
        )

    async def GetHost(self, request: pb.GetHostRequest, context: Any) -> pb.GetHostResponse:
        """Show one host with its newest verdict."""
        view, stored = await self._service.get(convert.name(request.host, "host"))
        return pb.GetHostResponse(
            host=convert.host(view),
            verdict=None if stored is None else convert.stored_verdict(stored),
        )

    async def AdmitHost(self, request: pb.AdmitHostRequest, context: Any) -> pb.AdmitHostResponse:
        """Admit a waiting host."""
        view = await self._service.admit(
            convert.name(request.host, "host"),
            approval_sha256=convert.sha256_hex(request.approval_sha256, "approval_sha256"),
            host_class=convert.optional_name(request.host_class, "host_class"),
            by=current_caller().name,
            dry_run=request.dry_run,
        )
        return pb.AdmitHostResponse(host=convert.host(view))

    async def RebindHost(
        self, request: pb.RebindHostRequest, context: Any
    ) -> pb.RebindHostResponse:
        """Give a name to a new TPM."""
        view = await self._service.rebind(
            convert.name(request.host, "host"),
            convert.name(request.new_host_id, "new_host_id"),
            approval_sha256=convert.sha256_hex(request.approval_sha256, "approval_sha256"),
            by=current_caller().name,
            dry_run=request.dry_run,
        )
        return pb.RebindHostResponse(host=convert.host(view))

    async def RemoveHost(
        self, request: pb.RemoveHostRequest, context: Any
    ) -> pb.RemoveHostResponse:
        """Forget a host."""
        await self._service.remove(
            convert.name(request.host, "host"), by=current_caller().name, dry_run=request.dry_run
        )
        return pb.RemoveHostResponse()

    async def RevokeHost(
        self, request: pb.RevokeHostRequest, context: Any
    ) -> pb.RevokeHostResponse:
        """Revoke a host."""
        name = convert.name(request.host, "host")
        revocation = await self._service.revoke(
            name,
            why=convert.text(request.why, "why"),
            by=current_caller().name,
            dry_run=request.dry_run,
        )
        if not request.dry_run:
            view, _ = await self._service.get(name)
            self._watchers.push(view.host.host_id, HOST_WISH_REVOKED, request.why)
        fences = [vm.fence_until_ms for vm in revocation.running]
        return pb.RevokeHostResponse(
            trust_epoch=revocation.trust_epoch,
            running_vms=[vm.vm_id for vm in revocation.running],
            last_fence_until=convert.timestamp(max(fences, default=0)),
        )

    async def ReinstateHost(
        self, request: pb.ReinstateHostRequest, context: Any
    ) -> pb.ReinstateHostResponse:
        """Undo a revocation."""
        view = await self._service.reinstate(
            convert.name(request.host, "host"),
            why=convert.text(request.why, "why"),
            by=current_caller().name,
            dry_run=request.dry_run,
        )
        self._watchers.push(view.host.host_id, HOST_WISH_ATTEST_NOW, "reinstated")
        return pb.ReinstateHostResponse(host=convert.host(view))

    async def DrainHost(self, request: pb.DrainHostRequest, context: Any) -> pb.DrainHostResponse:
        """Let a host take no VM any more."""
        view = await self._service.set_draining(
            convert.name(request.host, "host"),
            draining=True,
            why=convert.text(request.why, "why"),
            by=current_caller().name,
            dry_run=request.dry_run,
        )
        return pb.DrainHostResponse(host=convert.host(view))

    async def UndrainHost(
        self, request: pb.UndrainHostRequest, context: Any
    ) -> pb.UndrainHostResponse:
        """Let a host take VMs again."""
        view = await self._service.set_draining(
            convert.name(request.host, "host"),
            draining=False,
            why="",
            by=current_caller().name,
            dry_run=request.dry_run,
        )
        return pb.UndrainHostResponse(host=convert.host(view))

    async def RevokeAll(self, request: pb.RevokeAllRequest, context: Any) -> pb.RevokeAllResponse:
        """Revoke every host."""
        epoch = await self._service.revoke_all(
            why=convert.text(request.why, "why"),
            by=current_caller().name,
            dry_run=request.dry_run,
        )
        if not request.dry_run:
            self._watchers.push_all(HOST_WISH_REVOKED, request.why)
        return pb.RevokeAllResponse(global_epoch=epoch)

    async def GetEvidence(
        self, request: pb.GetEvidenceRequest, context: Any
    ) -> AsyncIterator[pb.GetEvidenceResponse]:
        """Stream an evidence bundle."""
        wanted = request.verdict_id and convert.sha256_hex(request.verdict_id, "verdict_id")
        host = convert.name(request.host, "host")
        bundle = await evidence_bundle(self._store, host, verdict_id=wanted)
        for start in range(0, len(bundle), CHUNK_BYTES):
            yield pb.GetEvidenceResponse(chunk=bundle[start : start + CHUNK_BYTES])


class ReportRpc(admin_pb2_grpc.ReportServiceServicer):
    """Signed statements of verdicts."""

    def __init__(self, service: HostService, keys: KeySet) -> None:
        self._service = service
        self._keys = keys

    async def GetReport(self, request: pb.GetReportRequest, context: Any) -> pb.GetReportResponse:
        """A host's newest report."""
        name = convert.name(request.host, "host")
        _, stored = await self._service.get(name)
        if stored is None:
            raise NotFound(f"{name} has no report: it has not attested", kind="report", name=name)
        return pb.GetReportResponse(
            report=str(stored["report"]), verdict=convert.stored_verdict(stored)
        )

    async def GetReportKeys(
        self, request: pb.GetReportKeysRequest, context: Any
    ) -> pb.GetReportKeysResponse:
        """The public keys that reports verify with."""
        return pb.GetReportKeysResponse(jwks=json.dumps(self._keys.as_dict(private=False)))
