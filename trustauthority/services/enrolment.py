"""Enrolment: from a TPM's claims to a host identity, in three calls (design.md 6.1).

What it guarantees: an identity is inserted once and never overwritten; the host certificate is
issued from the very pending row that the activation answered for; each attempt uses its row up.
"""

import hashlib
import hmac
import os
import secrets as random
from dataclasses import dataclass

from trustauthority.codec.tpm import (
    decode_public,
    object_name,
    primary_qualified_name,
    public_key,
)
from trustauthority.errors import (
    AlreadyExists,
    ChallengeAlreadyUsed,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    RateLimited,
    ResidencyUnproven,
)
from trustauthority.model.audit import AuditEvent
from trustauthority.model.host import Admission, Enrolment, HostRecord, PendingEnrolment
from trustauthority.model.identifiers import ClusterId, is_name
from trustauthority.model.tpm import HANDLE_OWNER
from trustauthority.ports import Store, Transaction
from trustauthority.services.endorsement import AcceptedEndorsement, accept_endorsement
from trustauthority.services.pending import (
    approval_of,
    host_id_of,
    pending_hash,
    spki_sha256,
    unproven,
)
from trustauthority.services.policies import cluster_policy
from trustauthority.services.secrets import AuthoritySecrets
from trustauthority.services.trustlists import revocations_of
from trustauthority.verification import challenge as challenges
from trustauthority.verification.credential import CREDENTIAL_ENTROPY, make_credential
from trustauthority.verification.residency import (
    ClaimedKeys,
    EnrolmentBinding,
    KeyCertification,
    ResidentKeys,
    verify_residency,
)

CHALLENGE_TTL_MS = 60_000
PENDING_TTL_MS = 60_000
MAX_PENDING_PER_PEER = 32
"""Pending rows of one peer: an unauthenticated caller can't fill the store (N43)."""
MAX_INTERMEDIATES = 8
MAX_PART_BYTES = 8192
_PUBLICS = ("ek_public", "ak_public", "tls_public", "storage_public")
CERTIFICATE_TTL_MS = 24 * 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentClaim:
    """What a host shows of itself; nothing in it is believed."""

    cluster: str
    name: str
    challenge: bytes
    ek_public: bytes
    ek_certificate: bytes
    ek_intermediates: tuple[bytes, ...]
    ak_public: bytes
    tls_public: bytes
    storage_public: bytes
    tls_certification: KeyCertification
    storage_certification: KeyCertification


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingCredential:
    """The answer to a claim: a secret that only the claimed TPM can open."""

    pending_id: str
    credential_blob: bytes
    encrypted_secret: bytes
    pending_sha256: bytes
    expires_in_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivatedHost:
    """An enrolled host and its certificate."""

    host: HostRecord
    certificate_chain: bytes
    certificate_expires_ms: int
    attest_interval_ms: int


class EnrolmentService:
    """Challenge, claim, activation."""

    def __init__(self, store: Store, keys: AuthoritySecrets) -> None:
        self._store = store
        self._keys = keys

    async def challenge(self, *, cluster: str, ek_public: bytes) -> tuple[bytes, int]:
        """Issue a stateless challenge bound to an EK; returns it and its life in milliseconds."""
        _require_size(ek_public, "ek_public")
        async with self._store.snapshot() as tx:
            kid = max(self._keys.challenge_keys)
            token = challenges.encode(
                kid=kid,
                key=self._keys.challenge_keys[kid],
                cluster=cluster,
                purpose=challenges.Purpose.ENROL,
                host=host_id_of(ek_public),
                issued_at_ms=tx.now_ms,
                random=os.urandom(challenges.RANDOM_SIZE),
            )
        return token, CHALLENGE_TTL_MS

    async def enrol(self, claim: EnrolmentClaim, *, peer: str) -> PendingCredential:
        """Check a claim and answer with a credential that only its TPM opens.

        Raises:
            InvalidRequest, ChallengeExpired, ChallengeMismatch, EndorsementRejected, RateLimited.
        """
        _check_claim(claim)
        proven = await self._prove(claim, peer)
        async with self._store.transaction() as tx:
            # (5) one use of the challenge, one pending row, one credential over the AK's name
            expires_ms = tx.now_ms + PENDING_TTL_MS
            if not await tx.enrolments.consume_challenge(
                proven.challenge_id, expires_at_ms=expires_ms
            ):
                raise ChallengeAlreadyUsed("this challenge was used already; ask for a new one")
            pending = await self._pending(tx, claim, proven, peer, expires_ms)
            pending_id = random.token_hex(16)
            row_sha256 = pending_hash(pending_id, pending)
            await tx.enrolments.put(pending_id, row_sha256, pending)
        credential = make_credential(
            proven.keys.ek,
            proven.resident.ak_name,
            self._activation_secret(row_sha256),
            os.urandom(CREDENTIAL_ENTROPY),
        )
        return PendingCredential(
            pending_id=pending_id,
            credential_blob=credential.blob,
            encrypted_secret=credential.encrypted_secret,
            pending_sha256=row_sha256,
            expires_in_ms=PENDING_TTL_MS,
        )

    async def _prove(self, claim: EnrolmentClaim, peer: str) -> "_Proven":
        """Check everything that a stranger sends on a snapshot, so that no check holds the lock."""
        async with self._store.snapshot() as tx:
            # (1) nobody fills the store with enrolments that are never finished
            if await tx.enrolments.count(peer) >= MAX_PENDING_PER_PEER:
                raise RateLimited("too many enrolments wait for activation", retryAfterMs=60_000)
            _, policy = await cluster_policy(tx, claim.cluster)
            anchors = await tx.catalogue.anchors(claim.cluster)
            lists = await tx.trust_lists.entries(claim.cluster)
            now_ms = tx.now_ms
        # (2) the challenge is ours, fresh, and for this EK and cluster
        checked = challenges.check(
            claim.challenge,
            keys=self._keys.challenge_keys,
            cluster=claim.cluster,
            purpose=challenges.Purpose.ENROL,
            host=host_id_of(claim.ek_public),
            now_ms=now_ms,
            ttl_ms=CHALLENGE_TTL_MS,
        )
        # (3) an anchor of the cluster accepts the EK
        keys = _claimed_keys(claim)
        endorsement = accept_endorsement(
            cluster=claim.cluster,
            ek=keys.ek,
            certificate=claim.ek_certificate,
            intermediates=claim.ek_intermediates,
            anchors=anchors,
            policy=policy.endorsement,
            revocations=revocations_of(lists, policy.endorsement),
            now_ms=now_ms,
        )
        # (4) the three keys live beside that EK, certified for this authority, cluster and name
        binding = EnrolmentBinding(
            authority_ca_sha256=self._keys.authority_ca_sha256,
            cluster=claim.cluster,
            host_label=claim.name,
            challenge=claim.challenge,
        )
        return _Proven(
            challenge_id=checked.challenge_id,
            keys=keys,
            resident=verify_residency(keys, binding),
            endorsement=endorsement,
        )

    async def activate(self, pending_id: str, proof: bytes) -> ActivatedHost:
        """Accept the proof of residency and issue the host certificate from that pending row.

        A refusal leaves the row used up and its audit entry written.

        Raises:
            NotFound: no such row, or it expired. ResidencyUnproven: wrong proof; the row is gone.
            AlreadyExists: the host exists with other keys.
        """
        async with self._store.transaction() as tx:
            taken = await tx.enrolments.take(pending_id)
            if taken is None:
                raise NotFound("no such enrolment waits, or it expired", kind="enrolment")
            row_sha256, pending = taken
            good = hmac.compare_digest(
                pending_hash(pending_id, pending), row_sha256
            ) and hmac.compare_digest(self._proof(row_sha256), proof)
            host = await self._insert(tx, pending) if good else None
            if not good:
                await tx.audit.append(unproven(pending))
            _, policy = await cluster_policy(tx, pending.enrolment.cluster)
            now_ms = tx.now_ms
        if not good:
            raise ResidencyUnproven("the credential was not opened by the TPM of this EK")
        if host is None:
            raise AlreadyExists(
                "this TPM is enrolled with other keys; an operator must remove or rebind the host",
                kind="host",
                name=pending.enrolment.host_id,
            )
        chain, expires_ms = self.certify(host, now_ms=now_ms)
        return ActivatedHost(
            host=host,
            certificate_chain=chain,
            certificate_expires_ms=expires_ms,
            attest_interval_ms=policy.evidence.attest_interval_ms,
        )

    def certify(self, host: HostRecord, *, now_ms: int) -> tuple[bytes, int]:
        """Issue the short-lived certificate over the TLS key that lives in the host's TPM."""
        if self._keys.host_ca is None:
            raise FailedPrecondition("this process does not hold the host CA")
        chain = self._keys.host_ca.issue_client(
            public_key(decode_public(host.tls_public)),
            path=f"/host/{host.host_id}",
            now_ms=now_ms,
            ttl_ms=CERTIFICATE_TTL_MS,
        )
        return chain, now_ms + CERTIFICATE_TTL_MS

    async def _pending(
        self,
        tx: Transaction,
        claim: EnrolmentClaim,
        proven: "_Proven",
        peer: str,
        expires_ms: int,
    ) -> PendingEnrolment:
        keys, endorsement = proven.keys, proven.endorsement
        cluster, ek_sha256 = ClusterId(claim.cluster), hashlib.sha256(claim.ek_public).hexdigest()
        listed = await tx.inventory.find(cluster, ek_sha256)
        return PendingEnrolment(
            enrolment=Enrolment(
                host_id=host_id_of(claim.ek_public),
                cluster=cluster,
                name=claim.name,
                ek_public=claim.ek_public,
                ek_sha256=ek_sha256,
                ek_certificate=claim.ek_certificate,
                ak_public=claim.ak_public,
                tls_public=claim.tls_public,
                storage_public=claim.storage_public,
                storage_qualified_name=primary_qualified_name(
                    HANDLE_OWNER, object_name(keys.storage)
                ),
                tls_spki_sha256=spki_sha256(keys.tls),
                approval_sha256=approval_of(
                    claim.name, *(getattr(claim, each) for each in _PUBLICS)
                ),
                anchor=endorsement.anchor,
                tpm=endorsement.tpm,
                tpm_manufacturer=endorsement.manufacturer,
                ek_chain=endorsement.chain,
            ),
            inventory_name=None if listed is None else listed.name,
            peer=peer,
            expires_at_ms=expires_ms,
            inventory_class="" if listed is None else listed.host_class,
        )

    async def _insert(self, tx: Transaction, pending: PendingEnrolment) -> HostRecord | None:
        """Insert the host, or find it unchanged (N93); None when it exists with other keys (N01)."""
        enrolment = pending.enrolment
        known = await tx.hosts.get(enrolment.host_id)
        if known is not None:
            return await self._again(tx, known, enrolment)
        _, policy = await cluster_policy(tx, enrolment.cluster)
        listed = pending.inventory_name in ("", enrolment.name)
        admission = (
            Admission.ADMITTED
            if listed and policy.endorsement.admit_by_inventory
            else Admission.WAITING
        )
        inserted = await tx.hosts.enrol(pending, admission)
        if not inserted and admission is Admission.ADMITTED:
            admission = Admission.WAITING  # the name is taken: an operator decides
            inserted = await tx.hosts.enrol(pending, admission)
        await tx.audit.append(
            AuditEvent(
                actor=f"host:{enrolment.host_id}",
                operation="host.enrol",
                subject=enrolment.host_id,
                decision="done" if inserted else "refused",
                reason="" if inserted else "ALREADY_EXISTS",
                details={
                    "name": enrolment.name,
                    "cluster": enrolment.cluster,
                    "admission": str(admission),
                    "host_class": pending.inventory_class,
                    "ek_sha256": enrolment.ek_sha256,
                    "approval_sha256": enrolment.approval_sha256,
                    "anchor": enrolment.anchor,
                },
            )
        )
        return await tx.hosts.get(enrolment.host_id) if inserted else None

    async def _again(
        self, tx: Transaction, known: HostRecord, enrolment: Enrolment
    ) -> HostRecord | None:
        good = (known.ak_public, known.tls_public, known.storage_public, known.cluster_id) == (
            enrolment.ak_public,
            enrolment.tls_public,
            enrolment.storage_public,
            enrolment.cluster,
        ) and known.admission is not Admission.REMOVED
        await tx.audit.append(
            AuditEvent(
                actor=f"host:{known.host_id}",
                operation="host.reactivate",
                subject=known.host_id,
                decision="done" if good else "refused",
                reason="" if good else "ALREADY_EXISTS",
                details={"name": known.name},
            )
        )
        return known if good else None

    def _activation_secret(self, row_sha256: bytes) -> bytes:
        """Derive the secret of a pending row, so that it is stored nowhere (rule 64)."""
        key = self._keys.challenge_keys[max(self._keys.challenge_keys)]
        return hmac.digest(key, b"trustauthority/activation/v1\0" + row_sha256, "sha256")

    def _proof(self, row_sha256: bytes) -> bytes:
        return hmac.digest(self._activation_secret(row_sha256), row_sha256, "sha256")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Proven:
    """A claim that was checked."""

    challenge_id: bytes
    keys: ClaimedKeys
    resident: ResidentKeys
    endorsement: AcceptedEndorsement


def _claimed_keys(claim: EnrolmentClaim) -> ClaimedKeys:
    return ClaimedKeys(
        ek=decode_public(claim.ek_public),
        ak=decode_public(claim.ak_public),
        tls=decode_public(claim.tls_public),
        storage=decode_public(claim.storage_public),
        tls_certification=claim.tls_certification,
        storage_certification=claim.storage_certification,
    )


def _check_claim(claim: EnrolmentClaim) -> None:
    if not is_name(claim.name):
        raise InvalidRequest(
            "the name has 1-63 characters of a-z 0-9 . _ - and begins and ends with one of a-z 0-9",
            field="name",
        )
    if len(claim.ek_intermediates) > MAX_INTERMEDIATES:
        raise InvalidRequest("more than 8 intermediate certificates", field="ek_intermediates")
    for name in _PUBLICS:
        _require_size(getattr(claim, name), name)
    for part in (claim.ek_certificate, *claim.ek_intermediates):
        if len(part) > 8 * MAX_PART_BYTES:
            raise InvalidRequest("a certificate has more than 64 KiB", field="ek_certificate")


def _require_size(part: bytes, name: str) -> None:
    if not 0 < len(part) <= MAX_PART_BYTES:
        raise InvalidRequest(f"{name} has 1 to {MAX_PART_BYTES} bytes", field=name)
