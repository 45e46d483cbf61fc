"""Trust lists: what TPM makers and we ourselves took back, and whether that concerns a host.

What it guarantees: a list whose CA is known gets in only signed by it, and no list replaces a newer one; one
that is added or removed makes every host of the cluster attest anew; at each attestation the chain that a
host enrolled with is held against the lists of that time, and whatever can't be looked at fails (N04).
"""

from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, datetime

from trustauthority.codec.x509 import decode_certificate, decode_chain, split_chain
from trustauthority.codec.x509_crl import decode_revocation_list
from trustauthority.errors import AlreadyExists, NotFound, TrustAuthorityError
from trustauthority.model.audit import AuditEvent
from trustauthority.model.catalogue import AnchorKind, RevocationListEntry
from trustauthority.model.certificate import Certificate, CertificateRevocationList
from trustauthority.model.endorsement import Revocations
from trustauthority.model.host import HostRecord
from trustauthority.model.identifiers import ClusterId
from trustauthority.model.policy import EndorsementPolicy
from trustauthority.ports import Store, Transaction
from trustauthority.services.endorsement import endorsement_policy
from trustauthority.services.policies import cluster_policy
from trustauthority.verification.revocation import (
    check_list_signature,
    check_taken_back,
    concerns,
)

MAX_LIST_BYTES = 1 << 20
PAGE = 500
MAX_REMEMBERED = 10_000
"""Hosts whose chain is not looked at again while nothing changed."""


def revocations_of(lists: Sequence[RevocationListEntry], policy: EndorsementPolicy) -> Revocations:
    """What a cluster took back.

    Raises:
        MalformedEvidence: a stored list does not decode.
    """
    return Revocations(
        lists=tuple(decode_revocation_list(entry.document) for entry in lists),
        denied=frozenset(bytes.fromhex(each) for each in policy.denied),
    )


class TakenBack:
    """Says of enrolled hosts whether their TPM was taken back; remembers while nothing changes."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[object, ...], str] = OrderedDict()

    def reason(
        self,
        host: HostRecord,
        lists: Sequence[RevocationListEntry],
        policy: EndorsementPolicy,
        now_ms: int,
    ) -> str:
        """Why the host's TPM counts no more, in words; empty when nothing speaks against it."""
        if not lists and not policy.denied and not policy.require_crl:
            return ""
        # with lists required to be in date, time itself changes the answer
        hour = now_ms // 3_600_000 if policy.require_crl else 0
        key = (host.host_id, host.ek_chain, tuple(each.list_id for each in lists), policy, hour)
        if key not in self._known:
            self._known[key] = _reason(host, lists, policy, now_ms)
            while len(self._known) > MAX_REMEMBERED:
                self._known.popitem(last=False)
        return self._known[key]


def _reason(
    host: HostRecord, lists: Sequence[RevocationListEntry], policy: EndorsementPolicy, now_ms: int
) -> str:
    try:
        check_taken_back(
            decode_chain(host.ek_chain),
            host.ek_public,
            datetime.fromtimestamp(now_ms / 1000, UTC),
            endorsement_policy(policy),
            revocations_of(lists, policy),
        )
    except TrustAuthorityError as error:
        return error.message
    except Exception as error:  # noqa: BLE001 - fail closed: what can't be looked at is no approval
        return f"the check crashed: {type(error).__name__}"
    return ""


class TrustListService:
    """Revocation lists of clusters."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(
        self, cluster: str, document: bytes, *, by: str, dry_run: bool
    ) -> RevocationListEntry:
        """Go by a revocation list from now on; every host of the cluster must attest anew.

        Raises:
            MalformedEvidence: it is none. EndorsementRejected: its CA did not sign it. AlreadyExists: this one, or a newer one of that CA, is there.
        """
        decoded = decode_revocation_list(document)
        async with self._store.snapshot() as tx:
            await cluster_policy(tx, cluster)
            authorities = await _known_authorities(tx, cluster)
        for issuer in authorities:
            if concerns(decoded, issuer):
                check_list_signature(decoded, issuer)
        async with self._store.transaction() as tx:
            entry = _entry(cluster, document, decoded, by=by, now_ms=tx.now_ms)
            older = await _older(tx, entry, decoded)
            if dry_run:
                return entry
            await tx.trust_lists.put(entry)
            for each in older:
                await tx.trust_lists.remove(entry.cluster_id, each.list_id)
            epoch = await tx.baselines.raise_policy_epoch(entry.cluster_id)
            await _audit(
                tx,
                by,
                "crl.add",
                cluster,
                list=entry.list_id,
                issuer=entry.issuer,
                revoked=entry.revoked,
                policy_epoch=epoch,
            )
        return entry

    async def entries(self, cluster: str) -> Sequence[RevocationListEntry]:
        """List them."""
        async with self._store.snapshot() as tx:
            return await tx.trust_lists.entries(cluster)

    async def remove(self, cluster: str, list_id: str, *, by: str) -> None:
        """Go by a list no more.

        Raises:
            NotFound: there is none.
        """
        async with self._store.transaction() as tx:
            if not await tx.trust_lists.remove(ClusterId(cluster), list_id):
                raise NotFound(f"no revocation list {list_id!r} there", kind="crl", name=list_id)
            epoch = await tx.baselines.raise_policy_epoch(ClusterId(cluster))
            await _audit(tx, by, "crl.remove", cluster, list=list_id, policy_epoch=epoch)


async def _known_authorities(tx: Transaction, cluster: str) -> list[Certificate]:
    """The CAs of a cluster: its anchors, and those in the chains of its hosts; each once."""
    found = {
        anchor.certificate: None
        for anchor in await tx.catalogue.anchors(cluster)
        if anchor.kind is AnchorKind.CA
    }
    after = ""
    while hosts := await tx.hosts.page(cluster=cluster, after=after, limit=PAGE):
        for host in hosts:
            found |= dict.fromkeys(split_chain(host.ek_chain)[1:])
        after = hosts[-1].host_id
    return [decode_certificate(each) for each in found]


def _entry(
    cluster: str, document: bytes, decoded: CertificateRevocationList, *, by: str, now_ms: int
) -> RevocationListEntry:
    ends = decoded.next_update
    return RevocationListEntry(
        cluster_id=ClusterId(cluster),
        list_id=decoded.fingerprint.hex(),
        issuer=decoded.issuer.text,
        document=document,
        revoked=len(decoded.revoked),
        this_update_ms=int(decoded.this_update.timestamp() * 1000),
        next_update_ms=0 if ends is None else int(ends.timestamp() * 1000),
        added_at_ms=now_ms,
        added_by=by,
    )


async def _older(
    tx: Transaction, entry: RevocationListEntry, decoded: CertificateRevocationList
) -> list[RevocationListEntry]:
    """The lists that this one replaces: those of the same CA and key.

    Raises:
        AlreadyExists: one of them is not older, so that nobody brings an old list back.
    """
    older = []
    for each in await tx.trust_lists.entries(entry.cluster_id):
        known = decode_revocation_list(each.document)
        same = known.issuer.canonical == decoded.issuer.canonical and _key(known) == _key(decoded)
        if not same:
            continue
        if each.this_update_ms >= entry.this_update_ms:
            raise AlreadyExists(
                "the cluster has this list, or a newer one of that CA",
                kind="crl",
                name=each.list_id,
            )
        older.append(each)
    return older


def _key(decoded: CertificateRevocationList) -> bytes | None:
    identifier = decoded.authority_key_identifier
    return None if identifier is None else identifier.key_identifier


async def _audit(
    tx: Transaction, by: str, operation: str, cluster: str, **details: str | int
) -> None:
    await tx.audit.append(
        AuditEvent(
            actor=by, operation=operation, subject=cluster, decision="done", details=dict(details)
        )
    )
