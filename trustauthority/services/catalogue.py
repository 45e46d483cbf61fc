"""Clusters: who may join them, and what good means. Each widening of trust is audited (I-E)."""

import hashlib
from collections.abc import Sequence

from trustauthority.codec.x509 import decode_certificate
from trustauthority.errors import AlreadyExists, InvalidRequest, NotFound, PolicyInvalid
from trustauthority.model.audit import AuditEvent
from trustauthority.model.catalogue import (
    AnchorEntry,
    AnchorKind,
    ClusterEntry,
    EkType,
    InventoryEntry,
)
from trustauthority.model.identifiers import ClusterId, is_name
from trustauthority.ports import Store, Transaction
from trustauthority.services.policies import (
    DEFAULT_DOCUMENT,
    cluster_policy,
    document_sha256,
    parse_policy,
)

MAX_INVENTORY = 10_000
FAR_FUTURE_MS = 253_402_300_799_000
"""31 December 9999: for anchors that are a single key."""


class CatalogueService:
    """Administration of clusters, anchors, inventory and policies."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def create_cluster(self, name: str, *, by: str) -> ClusterEntry:
        """Make a cluster with the default policy."""
        if not is_name(name):
            raise InvalidRequest("name: 1-63 characters of a-z 0-9 . _ -", field="name")
        policy = parse_policy(DEFAULT_DOCUMENT)
        async with self._store.transaction() as tx:
            entry = ClusterEntry(
                cluster_id=ClusterId(name),
                policy_document=DEFAULT_DOCUMENT,
                policy_sha256=document_sha256(DEFAULT_DOCUMENT),
                policy_epoch=1,
                applied_at_ms=tx.now_ms,
                applied_by=by,
                created_at_ms=tx.now_ms,
                live_grants_cap=policy.grants.max_live_per_host,
                new_grants_cap=policy.grants.max_new_per_hour,
                warned_hosts_take=policy.grants.warned_hosts_take,
            )
            if not await tx.catalogue.create_cluster(entry):
                raise AlreadyExists(f"there is a cluster {name!r}", kind="cluster", name=name)
            await _audit(tx, by, "cluster.create", name)
        return entry

    async def clusters(self) -> Sequence[ClusterEntry]:
        """List clusters."""
        async with self._store.snapshot() as tx:
            return await tx.catalogue.clusters()

    async def apply_policy(
        self, cluster: str, document: str, *, by: str, dry_run: bool
    ) -> tuple[int, str]:
        """Put a policy document in force; returns its epoch and hash."""
        policy, sha256 = parse_policy(document), document_sha256(document)
        async with self._store.transaction() as tx:
            current, _ = await cluster_policy(tx, cluster)
            await _require_rules(tx, policy.runtime.rules)
            if dry_run:
                return current.policy_epoch, sha256
            entry = ClusterEntry(
                cluster_id=current.cluster_id,
                policy_document=document,
                policy_sha256=sha256,
                policy_epoch=current.policy_epoch,
                applied_at_ms=tx.now_ms,
                applied_by=by,
                created_at_ms=current.created_at_ms,
                live_grants_cap=policy.grants.max_live_per_host,
                new_grants_cap=policy.grants.max_new_per_hour,
                warned_hosts_take=policy.grants.warned_hosts_take,
            )
            epoch = await tx.catalogue.apply_policy(entry)
            await _audit(
                tx, by, "policy.apply", cluster, policy_sha256=sha256, policy_epoch=epoch or 0
            )
            return epoch or 0, sha256

    async def policy(self, cluster: str) -> ClusterEntry:
        """The cluster with its policy document."""
        async with self._store.snapshot() as tx:
            return (await cluster_policy(tx, cluster))[0]

    async def add_anchor(
        self,
        *,
        cluster: str,
        kind: AnchorKind,
        certificate: bytes,
        ek_sha256: bytes,
        ek_type: str,
        by: str,
        dry_run: bool,
    ) -> AnchorEntry:
        """Accept the TPMs of a CA, or one EK."""
        if ek_type not in ("", *EkType):
            raise InvalidRequest("ek_type is rsa or ecc", field="ek_type")
        async with self._store.transaction() as tx:
            await cluster_policy(tx, cluster)
            entry = _anchor(
                cluster, kind, certificate, ek_sha256, EkType(ek_type or "rsa"), by, tx.now_ms
            )
            for other in await tx.catalogue.anchors(""):
                if other.anchor_id == entry.anchor_id and other.ek_type is not entry.ek_type:
                    raise AlreadyExists(
                        f"this anchor admits {other.ek_type} EKs in cluster {other.cluster_id}: one "
                        "anchor admits one kind, or a TPM could be two hosts",
                        kind="anchor",
                        name=entry.anchor_id,
                    )
            if dry_run:
                return entry
            if not await tx.catalogue.put_anchor(entry):
                raise AlreadyExists(
                    "the cluster has this anchor already", kind="anchor", name=entry.anchor_id
                )
            await _audit(
                tx, by, "anchor.add", cluster, anchor=entry.anchor_id, anchor_subject=entry.subject
            )
        return entry

    async def anchors(self, cluster: str) -> Sequence[AnchorEntry]:
        """List anchors."""
        async with self._store.snapshot() as tx:
            return await tx.catalogue.anchors(cluster)

    async def remove_anchor(self, cluster: str, anchor_id: str, *, by: str) -> None:
        """Stop accepting an anchor for new enrolments."""
        async with self._store.transaction() as tx:
            if not await tx.catalogue.remove_anchor(ClusterId(cluster), anchor_id):
                raise NotFound(f"no anchor {anchor_id!r} there", kind="anchor", name=anchor_id)
            await _audit(tx, by, "anchor.remove", cluster, anchor=anchor_id)

    async def add_inventory(
        self, entries: Sequence[tuple[str, str, str, str]], *, by: str, dry_run: bool
    ) -> int:
        """Register machines: (cluster, hex hash of the EK, name, class; both or empty); all or none."""
        if not 0 < len(entries) <= MAX_INVENTORY:
            raise InvalidRequest(f"1 to {MAX_INVENTORY} entries", field="entries")
        added = 0
        async with self._store.transaction() as tx:
            for cluster in {entry[0] for entry in entries}:
                await cluster_policy(tx, cluster)
            for machine in entries:
                entry = _inventory_entry(*machine, by=by, now_ms=tx.now_ms)
                if dry_run:
                    added += await tx.inventory.find(entry.cluster_id, entry.ek_sha256) is None
                elif await tx.inventory.put(entry):
                    added += 1
                    await _audit(
                        tx,
                        by,
                        "inventory.add",
                        entry.cluster_id,
                        ek_sha256=entry.ek_sha256,
                        name=entry.name,
                        host_class=entry.host_class,
                    )
        return added

    async def inventory(self, cluster: str) -> Sequence[InventoryEntry]:
        """List machines."""
        async with self._store.snapshot() as tx:
            return await tx.inventory.entries(cluster)

    async def remove_inventory(self, cluster: str, ek_sha256: str, *, by: str) -> None:
        """Strike a machine off; an enrolled host stays what it is until it is removed."""
        async with self._store.transaction() as tx:
            if not await tx.inventory.remove(ClusterId(cluster), ek_sha256.lower()):
                raise NotFound("no such machine there", kind="inventory", name=ek_sha256)
            await _audit(tx, by, "inventory.remove", cluster, ek_sha256=ek_sha256)


async def _require_rules(tx: Transaction, sha256: str) -> None:
    if sha256 and await tx.catalogue.rules(sha256) is None:
        raise PolicyInvalid(
            f"runtime.rules: {sha256} was not uploaded here; ta policy runtime upload FILE",
            fields="runtime.rules",
        )


def _anchor(
    cluster: str,
    kind: AnchorKind,
    certificate: bytes,
    ek_sha256: bytes,
    ek_type: EkType,
    by: str,
    now_ms: int,
) -> AnchorEntry:
    if kind is AnchorKind.EK:
        if len(ek_sha256) != 32:
            raise InvalidRequest("ek_sha256 has 32 bytes", field="ek_sha256")
        anchor_id, subject, der, expires_ms = ek_sha256.hex(), "one EK", b"", FAR_FUTURE_MS
    else:
        decoded = decode_certificate(certificate)
        if not decoded.is_authority:
            raise InvalidRequest(
                "an anchor is a CA certificate; for a single TPM give the hash of its EK",
                field="certificate",
            )
        der, subject = decoded.raw, decoded.subject.text
        anchor_id = hashlib.sha256(der).hexdigest()
        expires_ms = int(decoded.not_after.timestamp() * 1000)
    return AnchorEntry(
        cluster_id=ClusterId(cluster),
        anchor_id=anchor_id,
        kind=kind,
        ek_type=ek_type,
        subject=subject,
        certificate=der,
        expires_at_ms=expires_ms,
        added_at_ms=now_ms,
        added_by=by,
    )


def _inventory_entry(
    cluster: str, ek_sha256: str, name: str, host_class: str, *, by: str, now_ms: int
) -> InventoryEntry:
    digest = ek_sha256.lower()
    if len(digest) != 64 or any(digit not in "0123456789abcdef" for digit in digest):
        raise InvalidRequest("ek_sha256 is 64 hex digits", field="ek_sha256")
    if name and not is_name(name):
        raise InvalidRequest("name: 1-63 characters of a-z 0-9 . _ -", field="name")
    if host_class and not is_name(host_class):
        raise InvalidRequest("host_class: 1-63 characters of a-z 0-9 . _ -", field="host_class")
    return InventoryEntry(
        cluster_id=ClusterId(cluster),
        ek_sha256=digest,
        name=name,
        host_class=host_class,
        added_at_ms=now_ms,
        added_by=by,
    )


async def _audit(
    tx: Transaction, by: str, operation: str, subject: str, **details: str | int
) -> None:
    await tx.audit.append(
        AuditEvent(actor=by, operation=operation, subject=subject, decision="done", details=details)
    )
