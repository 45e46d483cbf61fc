"""What a certificate must say to be an EK's, an AK's, or that of a CA above them.

Stage: verification. Trusts only that the certificate decodes; its signature is checked elsewhere.
Guarantees on return that the certificate fits the role: constraints, usages, TPM attributes, strength
of the key, validity, and no critical extension that nobody processed. Every refusal names the rule,
the issuer and the serial number. Source: TCG EK Credential Profile 2.6 section 3; RFC 5280 sections
4.2 and 6.1.4; pitfalls 14, 15, 26-28.
"""

from datetime import datetime
from typing import Final

from cryptography.hazmat.primitives.asymmetric import rsa

from trustauthority.codec.tpm_key import PublicKey
from trustauthority.codec.x509_extensions import (
    AUTHORITY_KEY_IDENTIFIER,
    BASIC_CONSTRAINTS,
    CERTIFICATE_POLICIES,
    EXTENDED_KEY_USAGE,
    KEY_USAGE,
    NAME_CONSTRAINTS,
    SUBJECT_ALTERNATIVE_NAME,
    SUBJECT_KEY_IDENTIFIER,
    extension_value,
)
from trustauthority.codec.x509_keys import certificate_key
from trustauthority.errors import AlgorithmUnsupported, EndorsementRejected, MalformedEvidence
from trustauthority.model.certificate import Certificate, KeyUsage
from trustauthority.model.endorsement import (
    DECRYPTING_KEY_USAGE,
    CertificateRole,
    EndorsementPolicy,
    EndorsementRule,
)
from trustauthority.verification.keystrength import check_rsa_strength

EK_CERTIFICATE: Final = "2.23.133.8.1"
"""tcg-kp-EKCertificate."""
AIK_CERTIFICATE: Final = "2.23.133.8.3"
"""tcg-kp-AIKCertificate."""
ANY_PURPOSE: Final = "2.5.29.37.0"

_PROCESSED: Final = frozenset(
    {
        SUBJECT_ALTERNATIVE_NAME,
        BASIC_CONSTRAINTS,
        KEY_USAGE,
        EXTENDED_KEY_USAGE,
        AUTHORITY_KEY_IDENTIFIER,
        SUBJECT_KEY_IDENTIFIER,
        CERTIFICATE_POLICIES,  # any policy will do, so there is nothing more to process
    }
)
_CERTIFYING: Final = frozenset({KeyUsage.KEY_CERT_SIGN, KeyUsage.CRL_SIGN})


def refused(
    rule: EndorsementRule,
    certificate: Certificate,
    message: str,
    *,
    kind: type[EndorsementRejected] = EndorsementRejected,
) -> EndorsementRejected:
    """The error that names the certificate and the rule it broke."""
    return kind(
        f"{certificate.label}: {message}",
        rule=rule,
        issuer=certificate.issuer.text,
        serial=certificate.serial_text,
    )


def role_of(certificate: Certificate) -> CertificateRole:
    """What the certificate claims to be. A claim only: the checks of that role follow."""
    usage = certificate.key_usage or frozenset()
    purposes = certificate.extended_key_usage
    if certificate.is_authority or usage & _CERTIFYING:
        return CertificateRole.AUTHORITY
    if purposes is not None and not purposes & {EK_CERTIFICATE, AIK_CERTIFICATE, ANY_PURPOSE}:
        return CertificateRole.OTHER
    if usage & DECRYPTING_KEY_USAGE and AIK_CERTIFICATE not in (purposes or ()):
        return CertificateRole.ENDORSEMENT_KEY
    if KeyUsage.DIGITAL_SIGNATURE in usage:
        return CertificateRole.ATTESTATION_KEY
    return CertificateRole.OTHER


def check_endorsement_certificate(
    certificate: Certificate, now: datetime, policy: EndorsementPolicy
) -> None:
    """Check the profile of an EK certificate.

    Raises:
        EndorsementRejected: naming the first rule that it breaks.
    """
    # (1) The subject alternative name, because what follows may call it an unprocessed extension.
    _check_tpm_attributes(certificate)
    # (2) No other critical extension may go unprocessed.
    _check_extensions(certificate)
    # (3) A leaf: it is no CA in any way.
    _check_leaf(certificate)
    # (4) A key that decrypts, for the purpose of EKs.
    strong_certificate_key(certificate)
    _check_usage(certificate, DECRYPTING_KEY_USAGE)
    _check_purpose(certificate, frozenset({EK_CERTIFICATE}))
    # (5) In its time.
    check_validity(certificate, now, ignore_not_after=policy.ignore_ek_not_after)


def check_attestation_certificate(
    certificate: Certificate, now: datetime, policy: EndorsementPolicy
) -> None:
    """Check the profile of an AK certificate; some clouds give it the purpose of an EK.

    Raises:
        EndorsementRejected: naming the first rule that it breaks.
    """
    _check_tpm_attributes(certificate)
    _check_extensions(certificate)
    _check_leaf(certificate)
    strong_certificate_key(certificate)
    _check_usage(certificate, frozenset({KeyUsage.DIGITAL_SIGNATURE}))
    _check_purpose(certificate, frozenset({EK_CERTIFICATE, AIK_CERTIFICATE}))
    check_validity(certificate, now, ignore_not_after=policy.ignore_ek_not_after)


def check_authority_certificate(
    certificate: Certificate,
    now: datetime,
    policy: EndorsementPolicy,
    *,
    purposes: frozenset[str] | None = None,
    authorities_below: int = 0,
) -> None:
    """Check that a certificate may issue, for ``purposes``, above so many other CAs.

    Args:
        certificate: of the CA.
        now: the time to judge by.
        policy: what is relaxed.
        purposes: extended key usages of the leaf; None if it has none to respect.
        authorities_below: CAs between it and the leaf that are not self-issued.

    Raises:
        EndorsementRejected: naming the first rule that it breaks.
    """
    _check_extensions(certificate)
    if certificate.version != 3:
        raise refused(EndorsementRule.VERSION, certificate, "a CA certificate is of version 3")
    constraints = certificate.basic_constraints
    if constraints is None or not constraints.certificate_authority:
        raise refused(EndorsementRule.BASIC_CONSTRAINTS, certificate, "is not a CA's")
    if constraints.path_length is not None and constraints.path_length < authorities_below:
        raise refused(
            EndorsementRule.PATH_LENGTH,
            certificate,
            f"allows {constraints.path_length} CAs below it, not {authorities_below}",
        )
    if certificate.key_usage is None or KeyUsage.KEY_CERT_SIGN not in certificate.key_usage:
        raise refused(EndorsementRule.KEY_USAGE, certificate, "keyCertSign is missing")
    if purposes is not None:
        _check_purpose(certificate, purposes)
    strong_certificate_key(certificate)
    check_validity(certificate, now, ignore_not_after=policy.ignore_ca_not_after)


def check_validity(certificate: Certificate, now: datetime, *, ignore_not_after: bool) -> None:
    """Refuse a certificate before its time, and after it unless told otherwise.

    Raises:
        EndorsementRejected: ``not-yet-valid`` or ``expired``.
    """
    if now < certificate.not_before:
        start = certificate.not_before.isoformat()
        raise refused(EndorsementRule.NOT_YET_VALID, certificate, f"is valid from {start} on")
    if now > certificate.not_after and not ignore_not_after:
        end = certificate.not_after.isoformat()
        raise refused(EndorsementRule.EXPIRED, certificate, f"was valid until {end}")


def strong_certificate_key(certificate: Certificate) -> PublicKey:
    """The key of a certificate, when it is strong enough.

    Raises:
        EndorsementRejected: weak, with the ROCA fingerprint, malformed, or of another algorithm.
    """
    try:
        key = certificate_key(certificate.public_key_info)
        if isinstance(key, rsa.RSAPublicKey):
            numbers = key.public_numbers()
            check_rsa_strength(modulus=numbers.n, exponent=numbers.e)
    except AlgorithmUnsupported as error:
        raise refused(EndorsementRule.WEAK_KEY, certificate, error.message) from error
    except MalformedEvidence as error:
        raise refused(EndorsementRule.MALFORMED_KEY, certificate, error.message) from error
    return key


def _check_tpm_attributes(certificate: Certificate) -> None:
    """Manufacturer, model and version are there; critical when they are all the name there is."""
    rule = EndorsementRule.SUBJECT_ALTERNATIVE_NAME
    if not certificate.tpm.is_complete:
        raise refused(rule, certificate, "TPM manufacturer, model or version is missing")
    critical = any(
        extension.critical
        for extension in certificate.extensions
        if extension.object_identifier == SUBJECT_ALTERNATIVE_NAME
    )
    if certificate.subject.is_empty and not critical:
        raise refused(rule, certificate, "must be critical when the subject is empty")


def _check_extensions(certificate: Certificate) -> None:
    if extension_value(certificate.extensions, NAME_CONSTRAINTS) is not None:
        raise refused(
            EndorsementRule.NAME_CONSTRAINTS,
            certificate,
            "has name constraints, which no TPM vendor uses and we don't evaluate",
        )
    for extension in certificate.extensions:
        if extension.critical and extension.object_identifier not in _PROCESSED:
            raise refused(
                EndorsementRule.CRITICAL_EXTENSION,
                certificate,
                f"critical extension {extension.object_identifier} is not known",
            )


def _check_leaf(certificate: Certificate) -> None:
    # Its version is 3: only that has the subject alternative name that was found before.
    if certificate.is_authority:
        raise refused(EndorsementRule.BASIC_CONSTRAINTS, certificate, "acts as a CA")
    usage = certificate.key_usage or frozenset()
    if usage & _CERTIFYING:
        raise refused(EndorsementRule.KEY_USAGE, certificate, "may sign certificates or CRLs")


def _check_usage(certificate: Certificate, one_of: frozenset[KeyUsage]) -> None:
    if not one_of & (certificate.key_usage or frozenset()):
        needed = " or ".join(sorted(one_of))
        raise refused(EndorsementRule.KEY_USAGE, certificate, f"{needed} is missing")


def _check_purpose(certificate: Certificate, accepted: frozenset[str]) -> None:
    """An absent extension allows every purpose; a present one must allow one of ours."""
    found = certificate.extended_key_usage
    if found is not None and not found & (accepted | {ANY_PURPOSE}):
        raise refused(
            EndorsementRule.EXTENDED_KEY_USAGE,
            certificate,
            f"is for {', '.join(sorted(found))}, not for {' or '.join(sorted(accepted))}",
        )
