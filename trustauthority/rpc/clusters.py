"""ClusterService: anchors, inventory, policies, baselines."""

from collections.abc import AsyncIterator
from typing import Any

from trustauthority.appraisal.baseline import decode_baseline, summary_lines
from trustauthority.codec.runtimerules import MAX_DOCUMENT_BYTES
from trustauthority.errors import InvalidRequest
from trustauthority.model.catalogue import BaselineEntry, ClusterEntry, RevocationListEntry
from trustauthority.ports import Store
from trustauthority.rpc import convert, convert_clusters
from trustauthority.rpc.convert_update import announced_update
from trustauthority.rpc.interceptor import current_caller
from trustauthority.services.baselines import BaselineService, VariantName
from trustauthority.services.catalogue import CatalogueService
from trustauthority.services.policies import parse_policy
from trustauthority.services.runtimerules import RuntimeRulesService
from trustauthority.services.trustlists import MAX_LIST_BYTES, TrustListService
from trustauthority.v1 import admin_pb2 as pb
from trustauthority.v1 import admin_pb2_grpc

CHUNK_BYTES = 256 * 1024
MAX_HOSTS_COUNTED = 100_000


class ClusterRpc(admin_pb2_grpc.ClusterServiceServicer):
    """Clusters: who may join, and what good means."""

    def __init__(
        self, catalogue: CatalogueService, baselines: BaselineService, store: Store
    ) -> None:
        self._rules = RuntimeRulesService(store)
        self._trust_lists = TrustListService(store)
        self._catalogue = catalogue
        self._baselines = baselines
        self._store = store

    async def CreateCluster(
        self, request: pb.CreateClusterRequest, context: Any
    ) -> pb.CreateClusterResponse:
        """Make a cluster."""
        entry = await self._catalogue.create_cluster(request.name, by=current_caller().name)
        return pb.CreateClusterResponse(cluster=await self._cluster(entry))

    async def ListClusters(
        self, request: pb.ListClustersRequest, context: Any
    ) -> pb.ListClustersResponse:
        """List clusters."""
        entries = await self._catalogue.clusters()
        return pb.ListClustersResponse(clusters=[await self._cluster(each) for each in entries])

    async def AddAnchor(self, request: pb.AddAnchorRequest, context: Any) -> pb.AddAnchorResponse:
        """Accept a CA, or one EK."""
        if len(request.certificate) > 64 * 1024:
            raise InvalidRequest("the certificate has more than 64 KiB", field="certificate")
        entry = await self._catalogue.add_anchor(
            cluster=convert.name(request.cluster, "cluster"),
            kind=convert.chosen(convert.ANCHOR_KINDS, request.kind, "kind"),
            certificate=request.certificate,
            ek_sha256=request.ek_sha256,
            ek_type=request.ek_type,
            by=current_caller().name,
            dry_run=request.dry_run,
        )
        return pb.AddAnchorResponse(anchor=convert_clusters.anchor(entry))

    async def ListAnchors(
        self, request: pb.ListAnchorsRequest, context: Any
    ) -> pb.ListAnchorsResponse:
        """List anchors."""
        entries = await self._catalogue.anchors(convert.optional_name(request.cluster, "cluster"))
        return pb.ListAnchorsResponse(anchors=[convert_clusters.anchor(each) for each in entries])

    async def RemoveAnchor(
        self, request: pb.RemoveAnchorRequest, context: Any
    ) -> pb.RemoveAnchorResponse:
        """Stop accepting an anchor."""
        await self._catalogue.remove_anchor(
            convert.name(request.cluster, "cluster"),
            convert.sha256_hex(request.anchor_id, "anchor_id"),
            by=current_caller().name,
        )
        return pb.RemoveAnchorResponse()

    async def AddCrl(self, request: pb.AddCrlRequest, context: Any) -> pb.AddCrlResponse:
        """Go by a revocation list."""
        if not 0 < len(request.crl) <= MAX_LIST_BYTES:
            raise InvalidRequest("a revocation list has 1 byte to 1 MiB", field="crl")
        entry = await self._trust_lists.add(
            convert.name(request.cluster, "cluster"),
            request.crl,
            by=current_caller().name,
            dry_run=request.dry_run,
        )
        return pb.AddCrlResponse(crl=_crl(entry))

    async def ListCrls(self, request: pb.ListCrlsRequest, context: Any) -> pb.ListCrlsResponse:
        """List revocation lists."""
        entries = await self._trust_lists.entries(convert.optional_name(request.cluster, "cluster"))
        return pb.ListCrlsResponse(crls=[_crl(each) for each in entries])

    async def RemoveCrl(self, request: pb.RemoveCrlRequest, context: Any) -> pb.RemoveCrlResponse:
        """Forget a revocation list."""
        await self._trust_lists.remove(
            convert.name(request.cluster, "cluster"),
            convert.sha256_hex(request.crl_id, "crl_id"),
            by=current_caller().name,
        )
        return pb.RemoveCrlResponse()

    async def AddInventory(
        self, request: pb.AddInventoryRequest, context: Any
    ) -> pb.AddInventoryResponse:
        """Register machines."""
        added = await self._catalogue.add_inventory(
            [
                (
                    convert.name(each.cluster, "cluster"),
                    each.ek_sha256,
                    each.name,
                    each.host_class,
                )
                for each in request.entries
            ],
            by=current_caller().name,
            dry_run=request.dry_run,
        )
        return pb.AddInventoryResponse(added=added)

    async def ListInventory(
        self, request: pb.ListInventoryRequest, context: Any
    ) -> pb.ListInventoryResponse:
        """List machines."""
        cluster = convert.optional_name(request.cluster, "cluster")
        entries = await self._catalogue.inventory(cluster)
        return pb.ListInventoryResponse(
            entries=[convert_clusters.inventory_entry(each) for each in entries]
        )

    async def RemoveInventory(
        self, request: pb.RemoveInventoryRequest, context: Any
    ) -> pb.RemoveInventoryResponse:
        """Strike a machine off."""
        await self._catalogue.remove_inventory(
            convert.name(request.cluster, "cluster"),
            convert.sha256_hex(request.ek_sha256, "ek_sha256"),
            by=current_caller().name,
        )
        return pb.RemoveInventoryResponse()

    async def UploadRuntimeRules(
        self, request_iterator: AsyncIterator[pb.UploadRuntimeRulesRequest], context: Any
    ) -> pb.UploadRuntimeRulesResponse:
        """Keep a runtime rules document."""
        document, dry_run = bytearray(), False
        async for part in request_iterator:
            dry_run = dry_run or part.dry_run
            document += part.chunk
            if len(document) > MAX_DOCUMENT_BYTES:
                raise InvalidRequest("the document has more than 64 MiB", field="chunk")
        rules, added = await self._rules.upload(
            bytes(document), by=current_caller().name, dry_run=dry_run
        )
        return pb.UploadRuntimeRulesResponse(
            sha256=rules.sha256,
            files=len(rules.digests),
            excluded=len(rules.excluded),
            keyrings=[ring.name for ring in rules.keyrings],
            added=added,
        )

    async def GetRuntimeRules(
        self, request: pb.GetRuntimeRulesRequest, context: Any
    ) -> AsyncIterator[pb.GetRuntimeRulesResponse]:
        """Stream a document."""
        document = await self._rules.document(convert.sha256_hex(request.sha256, "sha256"))
        for start in range(0, len(document), CHUNK_BYTES):
            yield pb.GetRuntimeRulesResponse(chunk=document[start : start + CHUNK_BYTES])

    async def ApplyPolicy(
        self, request: pb.ApplyPolicyRequest, context: Any
    ) -> pb.ApplyPolicyResponse:
        """Put a policy in force."""
        epoch, sha256 = await self._catalogue.apply_policy(
            convert.name(request.cluster, "cluster"),
            request.document,
            by=current_caller().name,
            dry_run=request.dry_run,
        )
        return pb.ApplyPolicyResponse(policy_epoch=epoch, policy_sha256=sha256)

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: Any) -> pb.GetPolicyResponse:
        """The policy in force."""
        entry = await self._catalogue.policy(convert.name(request.cluster, "cluster"))
        return pb.GetPolicyResponse(
            document=entry.policy_document,
            policy_epoch=entry.policy_epoch,
            policy_sha256=entry.policy_sha256,
            applied_at=convert.timestamp(entry.applied_at_ms),
            applied_by=entry.applied_by,
        )

    async def CaptureBaseline(
        self, request: pb.CaptureBaselineRequest, context: Any
    ) -> pb.CaptureBaselineResponse:
        """Propose variants."""
        proposed = await self._baselines.capture(
            _variant(request),
            convert.name(request.host, "host"),
            host_class=convert.optional_name(request.host_class, "host_class"),
            by=current_caller().name,
        )
        return pb.CaptureBaselineResponse(
            baselines=[_baseline(each) for each in proposed.entries], sha256=proposed.sha256
        )

    async def PredictBaseline(
        self, request: pb.PredictBaselineRequest, context: Any
    ) -> pb.PredictBaselineResponse:
        """Propose what an update will measure."""
        prediction, proposed = await self._baselines.predict(
            VariantName(
                cluster=convert.name(request.cluster, "cluster"),
                name=convert.name(request.name, "name"),
            ),
            announced_update(request),
            by=current_caller().name,
            dry_run=request.dry_run,
        )
        return pb.PredictBaselineResponse(
            baselines=[_baseline(each) for each in proposed.entries],
            sha256=proposed.sha256,
            bank=prediction.bank,
            pcrs=[
                pb.PredictedPcr(index=pcr, value=value)
                for pcr, value in prediction.registers.items()
            ],
        )

    async def ApproveBaseline(
        self, request: pb.ApproveBaselineRequest, context: Any
    ) -> pb.ApproveBaselineResponse:
        """Put variants in force."""
        entries, epoch = await self._baselines.approve(
            _variant(request),
            sha256=convert.sha256_hex(request.sha256, "sha256"),
            by=current_caller().name,
            dry_run=request.dry_run,
        )
        return pb.ApproveBaselineResponse(
            baselines=[_baseline(each) for each in entries], policy_epoch=epoch
        )

    async def RetireBaseline(
        self, request: pb.RetireBaselineRequest, context: Any
    ) -> pb.RetireBaselineResponse:
        """Take variants out of force."""
        entries, _ = await self._baselines.retire(
            _variant(request), by=current_caller().name, dry_run=request.dry_run
        )
        return pb.RetireBaselineResponse(baselines=[_baseline(each) for each in entries])

    async def ListBaselines(
        self, request: pb.ListBaselinesRequest, context: Any
    ) -> pb.ListBaselinesResponse:
        """List baselines."""
        entries = await self._baselines.entries(convert.optional_name(request.cluster, "cluster"))
        return pb.ListBaselinesResponse(baselines=[_baseline(each) for each in entries])

    async def DiffBaseline(
        self, request: pb.DiffBaselineRequest, context: Any
    ) -> pb.DiffBaselineResponse:
        """Compare a host with variants."""
        matches, checks = await self._baselines.diff(
            _variant(request), convert.name(request.host, "host")
        )
        return pb.DiffBaselineResponse(
            matches=matches, checks=[convert.check(each) for each in checks]
        )

    async def _cluster(self, entry: ClusterEntry) -> pb.Cluster:
        policy = parse_policy(entry.policy_document)
        async with self._store.snapshot() as tx:
            hosts = await tx.hosts.page(cluster=entry.cluster_id, after="", limit=MAX_HOSTS_COUNTED)
        return convert_clusters.cluster(
            entry,
            policy_name=policy.name,
            hosts=len(hosts),
            by_inventory=policy.endorsement.admit_by_inventory,
        )


def _variant(
    request: pb.CaptureBaselineRequest
    | pb.ApproveBaselineRequest
    | pb.RetireBaselineRequest
    | pb.DiffBaselineRequest,
) -> VariantName:
    """Which variants a request is about."""
    return VariantName(
        cluster=convert.name(request.cluster, "cluster"),
        name=convert.name(request.name, "name"),
        component=convert.component(request.component),
    )


def _baseline(entry: BaselineEntry) -> pb.Baseline:
    return convert_clusters.baseline(entry, summary_lines(decode_baseline(entry.document)))


def _crl(entry: RevocationListEntry) -> pb.Crl:
    """A revocation list."""
    return pb.Crl(
        crl_id=entry.list_id,
        cluster=entry.cluster_id,
        issuer=entry.issuer,
        revoked=entry.revoked,
        this_update=convert.timestamp(entry.this_update_ms),
        next_update=convert.timestamp(entry.next_update_ms) if entry.next_update_ms else None,
        added_at=convert.timestamp(entry.added_at_ms),
        added_by=entry.added_by,
    )
