"""IdentityService, AuditService and StatusService."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from trustauthority.errors import Unauthenticated
from trustauthority.model.audit import AuditEntry
from trustauthority.model.verdict import Standing
from trustauthority.ports import Store
from trustauthority.rpc import convert
from trustauthority.rpc.interceptor import current_caller
from trustauthority.services.audit import AuditService
from trustauthority.services.hosts import view_of
from trustauthority.services.identities import IdentityService
from trustauthority.v1 import admin_pb2 as pb
from trustauthority.v1 import admin_pb2_grpc

TAIL_INTERVAL_S = 0.5
MAX_HOSTS_COUNTED = 100_000
HealthProbe = Callable[[], Awaitable[Sequence[pb.HealthItem]]]


class IdentityRpc(admin_pb2_grpc.IdentityServiceServicer):
    """People and programs that may call."""

    def __init__(self, service: IdentityService) -> None:
        self._service = service

    async def IssueIdentity(
        self, request: pb.IssueIdentityRequest, context: Any
    ) -> pb.IssueIdentityResponse:
        """Certify a key and register it with roles."""
        issued = await self._service.issue(
            name=request.name,
            roles=convert.roles(request.roles),
            request=request.certificate_request,
            ttl_ms=request.ttl_ms,
            by=current_caller().name,
        )
        return pb.IssueIdentityResponse(
            certificate_chain=issued.certificate_chain,
            identity=convert.identity(issued.entry),
            warnings=issued.warnings,
        )

    async def RenewIdentity(
        self, request: pb.RenewIdentityRequest, context: Any
    ) -> pb.RenewIdentityResponse:
        """A new certificate for the key that the caller just used."""
        caller = current_caller()
        key = serialization.load_pem_public_key(caller.key_pem)
        if caller.identity is None or not isinstance(
            key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey
        ):
            raise Unauthenticated("only a registered identity can renew itself")
        issued = await self._service.renew(caller.identity, key, ttl_ms=request.ttl_ms)
        return pb.RenewIdentityResponse(
            certificate_chain=issued.certificate_chain, identity=convert.identity(issued.entry)
        )

    async def RevokeIdentity(
        self, request: pb.RevokeIdentityRequest, context: Any
    ) -> pb.RevokeIdentityResponse:
        """Stop an identity at once."""
        await self._service.revoke(convert.name(request.name, "name"), by=current_caller().name)
        return pb.RevokeIdentityResponse()

    async def ListIdentities(
        self, request: pb.ListIdentitiesRequest, context: Any
    ) -> pb.ListIdentitiesResponse:
        """List identities."""
        entries = await self._service.entries()
        return pb.ListIdentitiesResponse(identities=[convert.identity(each) for each in entries])


class AuditRpc(admin_pb2_grpc.AuditServiceServicer):
    """The log of decisions."""

    def __init__(self, service: AuditService, stopping: asyncio.Event) -> None:
        self._service = service
        self._stopping = stopping

    async def ListAudit(self, request: pb.ListAuditRequest, context: Any) -> pb.ListAuditResponse:
        """A range of entries."""
        entries, checkpoint = await self._service.entries(
            start=request.from_sequence, limit=max(request.limit, 0)
        )
        return pb.ListAuditResponse(
            entries=[_entry(each) for each in entries], checkpoint=checkpoint
        )

    async def TailAudit(
        self, request: pb.TailAuditRequest, context: Any
    ) -> AsyncIterator[pb.TailAuditResponse]:
        """Entries as they come, until the caller hangs up or the process stops."""
        position = request.from_sequence
        while not self._stopping.is_set():
            entries, _ = await self._service.entries(start=position, limit=0)
            for each in entries:
                position = each.sequence + 1
                yield pb.TailAuditResponse(entry=_entry(each))
            if not entries:
                position = max(position, 0)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), timeout=TAIL_INTERVAL_S)

    async def GetCheckpoint(
        self, request: pb.GetCheckpointRequest, context: Any
    ) -> pb.GetCheckpointResponse:
        """The newest checkpoint."""
        return pb.GetCheckpointResponse(
            checkpoint=await self._service.checkpoint(), public_key=self._service.public_key
        )

    async def ProveAudit(
        self, request: pb.ProveAuditRequest, context: Any
    ) -> pb.ProveAuditResponse:
        """RFC 6962 proofs."""
        proof = await self._service.prove(
            sequence=request.sequence, size=request.tree_size, old_size=request.old_tree_size
        )
        return pb.ProveAuditResponse(
            inclusion=proof.inclusion, consistency=proof.consistency, checkpoint=proof.checkpoint
        )


class StatusRpc(admin_pb2_grpc.StatusServiceServicer):
    """One screen about the authority."""

    def __init__(
        self, store: Store, *, version: str, roles: Sequence[str], probes: Sequence[HealthProbe]
    ) -> None:
        self._store = store
        self._version = version
        self._roles = roles
        self._probes = probes

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        """Health of every part."""
        items: list[pb.HealthItem] = []
        async with self._store.snapshot() as tx:
            now_ms = tx.now_ms
            halted = await tx.audit.halted_because()
            size = await tx.audit.size()
            hosts = await tx.hosts.page(cluster="", after="", limit=MAX_HOSTS_COUNTED)
            standings = [(await view_of(tx, host)).standing for host in hosts]
        items.append(
            pb.HealthItem(
                name="releases",
                health=pb.HEALTH_ERROR if halted else pb.HEALTH_OK,
                detail=f"stopped: {halted}; see docs/how-to/restore.md" if halted else "allowed",
            )
        )
        items.append(pb.HealthItem(name="audit log", health=pb.HEALTH_OK, detail=f"{size} entries"))
        for probe in self._probes:
            items.extend(await probe())
        return pb.GetStatusResponse(
            version=self._version,
            roles=self._roles,
            now=convert.timestamp(now_ms),
            hosts_passed=standings.count(Standing.PASSED),
            hosts_failed=standings.count(Standing.FAILED),
            hosts_unknown=standings.count(Standing.UNKNOWN),
            items=items,
        )


def _entry(entry: AuditEntry) -> pb.AuditEntry:
    return pb.AuditEntry(sequence=entry.sequence, content=entry.content)
