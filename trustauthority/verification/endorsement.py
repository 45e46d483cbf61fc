"""Is this the EK of a genuine TPM, according to an anchor of ours?

Stage: verification. Trusts on entry the anchors, the policy and the revocations; the certificate and
the intermediates are bytes of anybody. Guarantees on exit that the certificate has the profile of an
EK certificate, chains by signatures over original bytes to an anchor, and was not taken back. Says «a
TPM», not «our host»: an inventory or an approval does (pitfall 32). Never touches a network.
Source: TCG EK Credential Profile 2.6; RFC 5280; pitfalls 22-31; N20.
"""

from datetime import datetime
from hashlib import sha256

from cryptography.hazmat.primitives import serialization

from trustauthority.codec.tpm_key import public_key
from trustauthority.codec.tpm_public import decode_public
from trustauthority.codec.x509 import decode_certificate
from trustauthority.codec.x509_keys import certificate_key
from trustauthority.errors import (
    ChainUntrusted,
    EkCertificateRevoked,
    EndorsementRejected,
    ResidencyUnproven,
)
from trustauthority.model.certificate import Certificate
from trustauthority.model.endorsement import (
    CaAnchor,
    CertificateChain,
    CertificateRole,
    EndorsementPolicy,
    EndorsementRule,
    Revocations,
    VerifiedEndorsement,
)
from trustauthority.verification.ektemplate import check_endorsement_key
from trustauthority.verification.endorsement_chain import AnchorSet, CertificatePool, ChainSearch
from trustauthority.verification.endorsement_profile import (
    AIK_CERTIFICATE,
    EK_CERTIFICATE,
    check_attestation_certificate,
    check_authority_certificate,
    check_endorsement_certificate,
    refused,
    role_of,
)
from trustauthority.verification.revocation import check_denied

NOTHING_RELAXED = EndorsementPolicy()
NOTHING_REVOKED = Revocations()


def verify_endorsement(
    certificate: bytes,
    *,
    intermediates: CertificatePool,
    anchors: AnchorSet,
    now: datetime,
    policy: EndorsementPolicy = NOTHING_RELAXED,
    revocations: Revocations = NOTHING_REVOKED,
) -> VerifiedEndorsement:
    """Verify the certificate of an EK.

    Args:
        certificate: DER, PEM, or the content of the NV index.
        intermediates: CA certificates to build a chain from; none of them is trusted.
        anchors: what the cluster trusts.
        now: the time to judge by, with a time zone.
        policy: what is relaxed.
        revocations: CRLs and the deny list.

    Raises:
        MalformedEvidence: the bytes are no certificate.
        ChainUntrusted: no chain to an anchor.
        EkCertificateRevoked: it or one of its CAs was taken back.
        EndorsementRejected: any other rule; metadata ``rule``, ``issuer``, ``serial``.
    """
    # (1) The bytes are one certificate, of bounded size.
    decoded = decode_certificate(certificate)
    # (2) Its profile, its chain, its revocation.
    chain, anchor = _verify_leaf(
        decoded, CertificateRole.ENDORSEMENT_KEY, intermediates, anchors, now, policy, revocations
    )
    # (3) The anchor may vouch for this manufacturer.
    _check_manufacturer(decoded, anchor)
    return VerifiedEndorsement(
        public_key=certificate_key(decoded.public_key_info),
        public_key_info=decoded.public_key_info.raw,
        certificate_sha256=decoded.fingerprint,
        tpm=decoded.tpm,
        chain=chain,
        anchor_id=anchor.anchor_id,
        not_after=min(one.not_after for one in chain),
    )


def verify_uncertified_endorsement(
    ek_public: bytes, *, anchors: AnchorSet, revocations: Revocations = NOTHING_REVOKED
) -> VerifiedEndorsement:
    """Verify an EK that has no certificate: an operator named this very key.

    Args:
        ek_public: TPMT_PUBLIC of the EK.
        anchors: what the cluster trusts.
        revocations: the deny list.

    Raises:
        MalformedEvidence: no TPMT_PUBLIC.
        ChainUntrusted: no anchor names its hash.
        EkCertificateRevoked: the hash is on the deny list.
        EndorsementRejected: not an EK by its template, or a weak key.
    """
    public = decode_public(ek_public)
    digest = sha256(ek_public).digest()
    if digest in revocations.denied:
        raise EkCertificateRevoked(
            f"EK {digest.hex()} is on the deny list", rule=EndorsementRule.DENIED, ek=digest.hex()
        )
    anchor = anchors.single(digest)
    if anchor is None:
        raise ChainUntrusted(
            f"EK {digest.hex()} has no certificate and no anchor names it",
            rule=EndorsementRule.ANCHOR_DIFFERS,
            ek=digest.hex(),
        )
    try:
        check_endorsement_key(public)
    except ResidencyUnproven as error:
        raise EndorsementRejected(
            error.message, rule=EndorsementRule.TEMPLATE, ek=digest.hex()
        ) from error
    key = public_key(public)
    return VerifiedEndorsement(
        public_key=key,
        public_key_info=key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
        certificate_sha256=None,
        tpm=None,
        chain=(),
        anchor_id=anchor.anchor_id,
        not_after=None,
    )


def require_same_key(endorsement: VerifiedEndorsement, ek_public: bytes) -> None:
    """Refuse an EK public that is not the endorsed key: only that one gets credentials (pitfall 22).

    Raises:
        MalformedEvidence: no TPMT_PUBLIC.
        AlgorithmUnsupported: no key of an algorithm we use.
        EndorsementRejected: another key.
    """
    if public_key(decode_public(ek_public)) != endorsement.public_key:
        raise EndorsementRejected(
            "the EK public is not the key of the EK certificate",
            rule=EndorsementRule.KEY_DIFFERS,
            anchor=endorsement.anchor_id,
        )


def verify_certificate(
    certificate: Certificate,
    *,
    intermediates: CertificatePool,
    anchors: AnchorSet,
    now: datetime,
    policy: EndorsementPolicy = NOTHING_RELAXED,
    revocations: Revocations = NOTHING_REVOKED,
) -> CertificateChain:
    """Verify a certificate of any role it claims: EK, AK or vendor CA (the offline tool's question).

    Raises:
        ChainUntrusted, EkCertificateRevoked, EndorsementRejected: as ``verify_endorsement`` does.
    """
    role = role_of(certificate)
    chain, anchor = _verify_leaf(
        certificate, role, intermediates, anchors, now, policy, revocations
    )
    if role is not CertificateRole.AUTHORITY:
        _check_manufacturer(certificate, anchor)
    return CertificateChain(role=role, certificates=chain, anchor_id=anchor.anchor_id)


def _verify_leaf(
    certificate: Certificate,
    role: CertificateRole,
    intermediates: CertificatePool,
    anchors: AnchorSet,
    now: datetime,
    policy: EndorsementPolicy,
    revocations: Revocations,
) -> tuple[tuple[Certificate, ...], CaAnchor]:
    # (1) Nobody denied it.
    check_denied(certificate, revocations)
    # (2) It is what its role asks for.
    purposes: frozenset[str] | None
    match role:
        case CertificateRole.ENDORSEMENT_KEY:
            check_endorsement_certificate(certificate, now, policy)
            purposes = frozenset({EK_CERTIFICATE})
        case CertificateRole.ATTESTATION_KEY:
            check_attestation_certificate(certificate, now, policy)
            named = certificate.extended_key_usage
            purposes = None if named is None else named & {EK_CERTIFICATE, AIK_CERTIFICATE}
        case CertificateRole.AUTHORITY:
            check_authority_certificate(certificate, now, policy)
            purposes = None
        case _:
            raise refused(EndorsementRule.ROLE, certificate, "is no EK's, no AK's and no CA's")
    # (3) It chains to an anchor, and no issuer took anything back.
    return ChainSearch(
        intermediates=intermediates,
        anchors=anchors,
        now=now,
        policy=policy,
        revocations=revocations,
        purposes=purposes,
    ).find(certificate)


def _check_manufacturer(certificate: Certificate, anchor: CaAnchor) -> None:
    manufacturer = certificate.tpm.manufacturer_name
    if anchor.manufacturers is not None and manufacturer not in anchor.manufacturers:
        raise refused(
            EndorsementRule.MANUFACTURER,
            certificate,
            f"its anchor does not vouch for manufacturer {manufacturer!r}",
        )
