"""Clusters, anchors, inventory and baselines on SQL."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Table, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from trustauthority.adapters.sql import tables
from trustauthority.adapters.sql.rows import columns, insert_once, record
from trustauthority.model.baseline import BaselineState, Component, MatchedVariant
from trustauthority.model.catalogue import (
    AnchorEntry,
    AnchorKind,
    BaselineEntry,
    ClusterEntry,
    EkType,
    InventoryEntry,
    RevocationListEntry,
)
from trustauthority.model.identifiers import ClusterId

_cluster = tables.cluster
_anchor = tables.anchor
_inventory = tables.inventory
_baseline = tables.baseline
_revocation_list = tables.revocation_list
_rules = tables.runtime_rules


class Repository:
    """A connection, the time of the transaction, and an insert that tells of duplicates."""

    def __init__(self, connection: AsyncConnection, now_ms: int) -> None:
        self._connection = connection
        self._now_ms = now_ms

    async def _insert(self, table: Table, **values: Any) -> bool:
        return await insert_once(self._connection, table, values)


class SqlCatalogue(Repository):
    """The Catalogue port."""

    async def create_cluster(self, entry: ClusterEntry) -> bool:
        """Insert a cluster; False when the name is taken."""
        return await self._insert(
            _cluster,
            **columns(entry),
            may_hold_keys=True,
            offer_ms=60_000,
            prepare_for_ms=900_000,
        )

    async def clusters(self, cluster: str = "") -> Sequence[ClusterEntry]:
        """List clusters by name: one, or (empty) all."""
        wanted = select(_cluster).order_by(_cluster.c.cluster_id)
        if cluster:
            wanted = wanted.where(_cluster.c.cluster_id == cluster)
        rows = await self._connection.execute(wanted)
        return [record(ClusterEntry, row) for row in rows.mappings()]

    async def apply_policy(self, entry: ClusterEntry) -> int | None:
        """Replace a cluster's policy; returns the new policy epoch, None for an unknown cluster."""
        done = await self._connection.execute(
            update(_cluster)
            .where(_cluster.c.cluster_id == entry.cluster_id)
            .values(
                policy_document=entry.policy_document,
                policy_sha256=entry.policy_sha256,
                policy_epoch=_cluster.c.policy_epoch + 1,
                live_grants_cap=entry.live_grants_cap,
                new_grants_cap=entry.new_grants_cap,
                warned_hosts_take=entry.warned_hosts_take,
                applied_at_ms=self._now_ms,
                applied_by=entry.applied_by,
            )
            .returning(_cluster.c.policy_epoch)
        )
        row = done.first()
        return None if row is None else int(row.policy_epoch)

    async def put_anchor(self, entry: AnchorEntry) -> bool:
        """Insert an anchor; False when it is there already."""
        return await self._insert(_anchor, **columns(entry))

    async def anchors(self, cluster: str) -> Sequence[AnchorEntry]:
        """List anchors, of one cluster or (empty) of all."""
        query = select(_anchor).order_by(_anchor.c.subject)
        if cluster:
            query = query.where(_anchor.c.cluster_id == cluster)
        rows = await self._connection.execute(query)
        return [
            record(AnchorEntry, row, kind=AnchorKind, ek_type=EkType) for row in rows.mappings()
        ]

    async def put_rules(self, sha256: str, document: bytes, *, by: str) -> bool:
        """Keep a runtime rules document under its hash; False when it is there already."""
        row = {"sha256": sha256, "document": document, "uploaded_by": by}
        return await self._insert(_rules, **row, uploaded_at_ms=self._now_ms)

    async def rules(self, sha256: str) -> bytes | None:
        """Read a runtime rules document."""
        query = select(_rules.c.document).where(_rules.c.sha256 == sha256)
        found = await self._connection.scalar(query)
        return None if found is None else bytes(found)

    async def remove_anchor(self, cluster: ClusterId, anchor_id: str) -> bool:
        """Remove an anchor; False when there is none."""
        done = await self._connection.execute(
            delete(_anchor).where(_anchor.c.cluster_id == cluster, _anchor.c.anchor_id == anchor_id)
        )
        return done.rowcount == 1


class SqlTrustLists(Repository):
    """The TrustLists port."""

    async def put(self, entry: RevocationListEntry) -> bool:
        """Keep a list; False when the cluster has it already."""
        return await self._insert(_revocation_list, **columns(entry))

    async def entries(self, cluster: str) -> Sequence[RevocationListEntry]:
        """List them, of one cluster or (empty) of all, by issuer and age."""
        query = select(_revocation_list).order_by(
            _revocation_list.c.issuer, _revocation_list.c.this_update_ms
        )
        if cluster:
            query = query.where(_revocation_list.c.cluster_id == cluster)
        rows = await self._connection.execute(query)
        return [record(RevocationListEntry, row) for row in rows.mappings()]

    async def remove(self, cluster: ClusterId, list_id: str) -> bool:
        """Forget a list; False when there is none."""
        done = await self._connection.execute(
            delete(_revocation_list).where(
                _revocation_list.c.cluster_id == cluster, _revocation_list.c.list_id == list_id
            )
        )
        return done.rowcount == 1


class SqlInventory(Repository):
    """The Inventory port."""

    async def put(self, entry: InventoryEntry) -> bool:
        """Insert an entry; False when that EK is there already."""
        return await self._insert(_inventory, **columns(entry))

    async def find(self, cluster: ClusterId, ek_sha256: str) -> InventoryEntry | None:
        """Find a machine."""
        rows = await self._connection.execute(
            select(_inventory).where(
                _inventory.c.cluster_id == cluster, _inventory.c.ek_sha256 == ek_sha256
            )
        )
        row = rows.mappings().first()
        return None if row is None else record(InventoryEntry, row)

    async def entries(self, cluster: str) -> Sequence[InventoryEntry]:
        """List machines, of one cluster or (empty) of all."""
        query = select(_inventory).order_by(_inventory.c.name, _inventory.c.ek_sha256)
        if cluster:
            query = query.where(_inventory.c.cluster_id == cluster)
        rows = await self._connection.execute(query)
        return [record(InventoryEntry, row) for row in rows.mappings()]

    async def remove(self, cluster: ClusterId, ek_sha256: str) -> bool:
        """Strike a machine off; False when there is none."""
        done = await self._connection.execute(
            delete(_inventory).where(
                _inventory.c.cluster_id == cluster, _inventory.c.ek_sha256 == ek_sha256
            )
        )
        return done.rowcount == 1


class SqlBaselines(Repository):
    """The Baselines port."""

    async def propose(self, entry: BaselineEntry) -> bool:
        """Insert a proposal; False when the component has a variant of this name."""
        return await self._insert(_baseline, **columns(entry))

    async def entries(self, cluster: str) -> Sequence[BaselineEntry]:
        """List variants, of one cluster or (empty) of all."""
        query = select(_baseline).order_by(_baseline.c.name, _baseline.c.captured_at_ms)
        if cluster:
            query = query.where(_baseline.c.cluster_id == cluster)
        rows = await self._connection.execute(query)
        return [
            record(BaselineEntry, row, state=BaselineState, component=Component)
            for row in rows.mappings()
        ]

    async def set_state(
        self, variants: Sequence[BaselineEntry], state: BaselineState, *, by: str
    ) -> bool:
        """Approve or retire exactly these contents; False when one changed meanwhile."""
        for entry in variants:
            done = await self._connection.execute(
                update(_baseline)
                .where(
                    _baseline.c.cluster_id == entry.cluster_id,
                    _baseline.c.component == str(entry.component),
                    _baseline.c.name == entry.name,
                    _baseline.c.sha256 == entry.sha256,
                    _baseline.c.state == str(entry.state),
                )
                .values(state=str(state), approved_by=by)
            )
            if done.rowcount != 1:
                return False
        return True

    async def raise_policy_epoch(self, cluster: ClusterId) -> int:
        """Make hosts attest anew under what is approved now; returns the new policy epoch."""
        bumped = await self._connection.execute(
            update(_cluster)
            .where(_cluster.c.cluster_id == cluster)
            .values(policy_epoch=_cluster.c.policy_epoch + 1)
            .returning(_cluster.c.policy_epoch)
        )
        return int(bumped.scalar_one())

    async def matched(self, cluster: ClusterId, variants: Sequence[MatchedVariant]) -> None:
        """Remember that a host matched these now."""
        for each in variants:
            await self._connection.execute(
                update(_baseline)
                .where(
                    _baseline.c.cluster_id == cluster,
                    _baseline.c.component == str(each.component),
                    _baseline.c.name == each.name,
                )
                .values(last_matched_at_ms=self._now_ms)
            )
