"""Clusters and what they trust, from the model to protobuf messages."""

from collections.abc import Iterable

from trustauthority.model.catalogue import AnchorEntry, BaselineEntry, ClusterEntry, InventoryEntry
from trustauthority.rpc import convert
from trustauthority.v1 import admin_pb2


def cluster(
    entry: ClusterEntry, *, policy_name: str, hosts: int, by_inventory: bool
) -> admin_pb2.Cluster:
    """A cluster."""
    return admin_pb2.Cluster(
        name=entry.cluster_id,
        policy_epoch=entry.policy_epoch,
        policy_name=policy_name,
        hosts=hosts,
        admit_by_inventory=by_inventory,
        created_at=convert.timestamp(entry.created_at_ms),
    )


def anchor(entry: AnchorEntry) -> admin_pb2.Anchor:
    """An anchor."""
    return admin_pb2.Anchor(
        anchor_id=entry.anchor_id,
        cluster=entry.cluster_id,
        kind=convert.ANCHOR_KINDS[entry.kind],
        ek_type=str(entry.ek_type),
        subject=entry.subject,
        expires_at=convert.timestamp(entry.expires_at_ms),
        added_at=convert.timestamp(entry.added_at_ms),
        added_by=entry.added_by,
    )


def inventory_entry(entry: InventoryEntry) -> admin_pb2.InventoryEntry:
    """A machine."""
    return admin_pb2.InventoryEntry(
        cluster=entry.cluster_id,
        ek_sha256=entry.ek_sha256,
        name=entry.name,
        host_class=entry.host_class,
        added_at=convert.timestamp(entry.added_at_ms),
        added_by=entry.added_by,
    )


def baseline(entry: BaselineEntry, expects: Iterable[str]) -> admin_pb2.Baseline:
    """A variant of a component."""
    return admin_pb2.Baseline(
        name=entry.name,
        cluster=entry.cluster_id,
        state=admin_pb2.BaselineState.Value(f"BASELINE_STATE_{entry.state.name}"),
        sha256=entry.sha256,
        captured_from=entry.captured_from,
        captured_at=convert.timestamp(entry.captured_at_ms),
        approved_by=entry.approved_by,
        last_matched_at=convert.timestamp(entry.last_matched_at_ms),
        expects=expects,
        component=convert.COMPONENTS[entry.component],
        host_class=entry.host_class,
    )
