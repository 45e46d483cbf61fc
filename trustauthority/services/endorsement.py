"""Which anchor of a cluster accepts an EK: the anchors of the store, handed to the verifier."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from trustauthority.codec.x509 import decode_certificate
from trustauthority.errors import ChainUntrusted
from trustauthority.model.catalogue import AnchorEntry, AnchorKind, EkType
from trustauthority.model.endorsement import (
    CaAnchor,
    EkHashAnchor,
    EndorsementPolicy,
    Revocations,
    VerifiedEndorsement,
)
from trustauthority.model.policy import EndorsementPolicy as ClusterEndorsementPolicy
from trustauthority.model.tpm import TpmAlgorithm, TpmPublic
from trustauthority.verification.endorsement import (
    require_same_key,
    verify_endorsement,
    verify_uncertified_endorsement,
)
from trustauthority.verification.endorsement_chain import AnchorSet, CertificatePool
from trustauthority.verification.revocation import check_taken_back


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedEndorsement:
    """Which anchor accepted an EK, and what its certificate says of the TPM."""

    anchor: str
    tpm: str
    manufacturer: str
    chain: bytes
    """The certificates that were relied upon, from the EK's to the anchor's, DER."""


def accept_endorsement(
    *,
    cluster: str,
    ek: TpmPublic,
    certificate: bytes,
    intermediates: Sequence[bytes],
    anchors: Sequence[AnchorEntry],
    policy: ClusterEndorsementPolicy,
    revocations: Revocations,
    now_ms: int,
) -> AcceptedEndorsement:
    """Find the anchor that accepts an EK: itself, or a CA of its certificate.

    Anchors of another kind of EK do not count: a TPM usually has two EKs, and is one host (N77).

    Raises:
        EndorsementRejected: none does, or the certificate is not this EK's.
        MalformedEvidence: a certificate does not decode.
    """
    now = datetime.fromtimestamp(now_ms / 1000, UTC)
    check_taken_back((), ek.raw, now, endorsement_policy(policy), revocations)
    kind = EkType.RSA if ek.type is TpmAlgorithm.RSA else EkType.ECC
    fitting = [anchor for anchor in anchors if anchor.ek_type is kind]
    if not fitting:
        raise ChainUntrusted(f"cluster {cluster} has no anchor for {kind} EKs", cluster=cluster)
    accepted = AnchorSet(
        CaAnchor(certificate=decode_certificate(anchor.certificate))
        if anchor.kind is AnchorKind.CA
        else EkHashAnchor(sha256=bytes.fromhex(anchor.anchor_id))
        for anchor in fitting
    )
    if accepted.single(hashlib.sha256(ek.raw).digest()) is not None:
        return _describe(
            verify_uncertified_endorsement(ek.raw, anchors=accepted, revocations=revocations)
        )
    if not certificate:
        raise ChainUntrusted(
            "the TPM has no EK certificate and its EK is not an anchor", cluster=cluster
        )
    endorsement = verify_endorsement(
        certificate,
        intermediates=CertificatePool(decode_certificate(each) for each in intermediates),
        anchors=accepted,
        now=now,
        policy=endorsement_policy(policy),
        revocations=revocations,
    )
    require_same_key(endorsement, ek.raw)
    return _describe(endorsement)


def endorsement_policy(policy: ClusterEndorsementPolicy) -> EndorsementPolicy:
    """What a cluster's policy relaxes and requires of certificates."""
    return EndorsementPolicy(
        ignore_ek_not_after=policy.ignore_ek_not_after, require_crl=policy.require_crl
    )


def _describe(endorsement: VerifiedEndorsement) -> AcceptedEndorsement:
    tpm = endorsement.tpm
    said = () if tpm is None else (tpm.manufacturer_name, tpm.model, tpm.version)
    return AcceptedEndorsement(
        anchor=endorsement.anchor_id,
        tpm=" ".join(part for part in said if part) or "no certificate",
        manufacturer="" if tpm is None else tpm.manufacturer_name or "",
        chain=b"".join(certificate.raw for certificate in endorsement.chain),
    )
