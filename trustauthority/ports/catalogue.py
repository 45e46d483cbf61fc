"""Ports of what administrators keep: clusters, anchors, trust lists, inventory, baselines."""

from collections.abc import Sequence
from typing import Protocol

from trustauthority.model.baseline import BaselineState, MatchedVariant
from trustauthority.model.catalogue import (
    AnchorEntry,
    BaselineEntry,
    ClusterEntry,
    InventoryEntry,
    RevocationListEntry,
)
from trustauthority.model.identifiers import ClusterId


class Catalogue(Protocol):
    """Clusters, anchors and inventory."""

    async def create_cluster(self, entry: ClusterEntry) -> bool:
        """Insert a cluster; False when the name is taken."""

    async def clusters(self, cluster: str = "") -> Sequence[ClusterEntry]:
        """List clusters by name: one, or (empty) all."""

    async def apply_policy(self, entry: ClusterEntry) -> int | None:
        """Replace a cluster's policy; returns the new policy epoch, None for an unknown cluster."""

    async def put_anchor(self, entry: AnchorEntry) -> bool:
        """Insert an anchor; False when it is there already."""

    async def anchors(self, cluster: str) -> Sequence[AnchorEntry]:
        """List anchors, of one cluster or (empty) of all."""

    async def remove_anchor(self, cluster: ClusterId, anchor_id: str) -> bool:
        """Remove an anchor; False when there is none."""

    async def put_rules(self, sha256: str, document: bytes, *, by: str) -> bool:
        """Keep a runtime rules document under its hash; False when it is there already."""

    async def rules(self, sha256: str) -> bytes | None:
        """Read a runtime rules document."""


class Inventory(Protocol):
    """EKs of machines that are ours."""

    async def put(self, entry: InventoryEntry) -> bool:
        """Insert an entry; False when that EK is there already."""

    async def find(self, cluster: ClusterId, ek_sha256: str) -> InventoryEntry | None:
        """Find a machine."""

    async def entries(self, cluster: str) -> Sequence[InventoryEntry]:
        """List machines, of one cluster or (empty) of all."""

    async def remove(self, cluster: ClusterId, ek_sha256: str) -> bool:
        """Strike a machine off; False when there is none."""


class TrustLists(Protocol):
    """What TPM makers took back: revocation lists of their CAs, per cluster."""

    async def put(self, entry: RevocationListEntry) -> bool:
        """Keep a list; False when the cluster has it already."""

    async def entries(self, cluster: str) -> Sequence[RevocationListEntry]:
        """List them, of one cluster or (empty) of all, by issuer and age."""

    async def remove(self, cluster: ClusterId, list_id: str) -> bool:
        """Forget a list; False when there is none."""


class Baselines(Protocol):
    """Variants of components and their life."""

    async def propose(self, entry: BaselineEntry) -> bool:
        """Insert a proposal; False when the component has a variant of this name."""

    async def entries(self, cluster: str) -> Sequence[BaselineEntry]:
        """List variants, of one cluster or (empty) of all."""

    async def set_state(
        self, variants: Sequence[BaselineEntry], state: BaselineState, *, by: str
    ) -> bool:
        """Approve or retire exactly these contents; False when one changed meanwhile: roll back."""

    async def raise_policy_epoch(self, cluster: ClusterId) -> int:
        """Make hosts attest anew under what is approved now; returns the new policy epoch."""

    async def matched(self, cluster: ClusterId, variants: Sequence[MatchedVariant]) -> None:
        """Remember that a host matched these now."""
