"""Was a certificate taken back, by its issuer or by us?

Stage: verification. Trusts the issuer's certificate as far as the chain already showed it, and the deny
list. Guarantees on return that no CRL of that issuer lists the certificate and that nobody denied it.
A CRL that claims the issuer but isn't signed by it is a refusal, not a thing to skip. An outdated CRL
still revokes; it only fails to reassure. Source: RFC 5280 section 6.3; pitfall 29.
"""

from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from itertools import pairwise

from cryptography.exceptions import InvalidSignature

from trustauthority.codec.x509_keys import (
    certificate_key,
    check_certificate_signature,
    uses_sha1,
)
from trustauthority.errors import (
    AlgorithmUnsupported,
    EkCertificateRevoked,
    EndorsementRejected,
    MalformedEvidence,
)
from trustauthority.model.certificate import Certificate, CertificateRevocationList, KeyUsage
from trustauthority.model.endorsement import EndorsementPolicy, EndorsementRule, Revocations
from trustauthority.verification.endorsement_profile import refused


def check_taken_back(
    chain: Sequence[Certificate],
    ek_public: bytes,
    now: datetime,
    policy: EndorsementPolicy,
    revocations: Revocations,
) -> None:
    """Look again at a chain that was verified when its host enrolled.

    Args:
        chain: from the EK certificate to the anchor; empty for an EK without certificate.
        ek_public: TPMT_PUBLIC of the EK.
        now: the time to judge by, with a time zone.
        policy: whether CRLs are required.
        revocations: CRLs and the deny list.

    Raises:
        EkCertificateRevoked: one of them, or the EK itself, was taken back.
        EndorsementRejected: a CRL is not what it claims, or one is required and missing or old.
    """
    digest = sha256(ek_public).digest()
    if digest in revocations.denied:
        raise EkCertificateRevoked(
            f"EK {digest.hex()} is on the deny list", rule=EndorsementRule.DENIED, ek=digest.hex()
        )
    for certificate in chain[:1]:
        check_denied(certificate, revocations)
    for certificate, issuer in pairwise(chain):
        check_revocation(certificate, issuer, now, policy, revocations)


def check_denied(certificate: Certificate, revocations: Revocations) -> None:
    """Refuse a certificate whose own hash, or whose key's, is on the deny list.

    Raises:
        EkCertificateRevoked: it is.
    """
    hashes = {certificate.fingerprint, sha256(certificate.public_key_info.raw).digest()}
    if hashes & revocations.denied:
        raise refused(
            EndorsementRule.DENIED,
            certificate,
            "is on the deny list",
            kind=EkCertificateRevoked,
        )


def check_revocation(
    certificate: Certificate,
    issuer: Certificate,
    now: datetime,
    policy: EndorsementPolicy,
    revocations: Revocations,
) -> None:
    """Look a certificate up in the CRLs of its issuer, and the issuer in the deny list.

    Raises:
        EkCertificateRevoked: one of the two was taken back.
        EndorsementRejected: a CRL is not what it claims, or one is required and missing or old.
    """
    check_denied(issuer, revocations)
    current = False
    for revoked in revocations.lists:
        if not concerns(revoked, issuer):
            continue
        check_list_signature(revoked, issuer)
        if certificate.serial_number in revoked.revoked:
            when = revoked.revoked[certificate.serial_number].isoformat()
            raise refused(
                EndorsementRule.REVOKED,
                certificate,
                f"was revoked by its issuer on {when}",
                kind=EkCertificateRevoked,
            )
        current = current or _is_current(revoked, now)
    if policy.require_crl and not current:
        missing = not any(concerns(revoked, issuer) for revoked in revocations.lists)
        raise refused(
            EndorsementRule.CRL_MISSING if missing else EndorsementRule.CRL_OUTDATED,
            certificate,
            f"no CRL of {issuer.label!r} is {'known' if missing else 'in date'}",
        )


def concerns(revoked: CertificateRevocationList, issuer: Certificate) -> bool:
    """Whether the list is of this CA: by name, and by key where both say which."""
    if revoked.issuer.canonical != issuer.subject.canonical:
        return False
    authority = revoked.authority_key_identifier
    identifier = None if authority is None else authority.key_identifier
    known = issuer.subject_key_identifier
    return identifier is None or known is None or identifier == known


def check_list_signature(revoked: CertificateRevocationList, issuer: Certificate) -> None:
    """Refuse a CRL that this CA did not sign.

    Raises:
        EndorsementRejected: it did not, or may not.
    """
    try:
        if KeyUsage.CRL_SIGN not in (issuer.key_usage or ()):
            raise _unsound(issuer, "its key may not sign CRLs")
        if uses_sha1(revoked.signature_algorithm):
            raise _unsound(issuer, "it is signed with SHA-1")
        check_certificate_signature(
            certificate_key(issuer.public_key_info),
            revoked.to_be_signed,
            revoked.signature,
            revoked.signature_algorithm,
        )
    except InvalidSignature:
        raise _unsound(issuer, "it is not signed by that key") from None
    except (AlgorithmUnsupported, MalformedEvidence) as error:
        raise _unsound(issuer, error.message) from error


def _unsound(issuer: Certificate, why: str) -> EndorsementRejected:
    return refused(
        EndorsementRule.CRL_SIGNATURE, issuer, f"a CRL in its name can't be relied upon: {why}"
    )


def _is_current(revoked: CertificateRevocationList, now: datetime) -> bool:
    return revoked.this_update <= now and (
        revoked.next_update is not None and now <= revoked.next_update
    )
