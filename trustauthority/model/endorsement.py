"""Endorsements: what vouches for a TPM, what we trust for it, and what we believe at the end.

Stage: model. Anchors, policies and revocations come from operators; a ``VerifiedEndorsement`` comes
from ``verification.endorsement`` only. Source: TCG EK Credential Profile 2.6; pitfalls 22-32.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from trustauthority.model.certificate import (
    Certificate,
    CertificateRevocationList,
    KeyUsage,
    TpmIdentity,
)

MAX_CHAIN = 8
"""Certificates from leaf to anchor, both included; genuine chains have at most 5 (N20)."""


class AnchorKind(StrEnum):
    """What an operator trusts: everything below a CA, or one single TPM."""

    CA_CERTIFICATE = "ca-certificate"
    EK_HASH = "ek-hash"


class CertificateRole(StrEnum):
    """What a certificate is for."""

    ENDORSEMENT_KEY = "ek"
    ATTESTATION_KEY = "ak"
    AUTHORITY = "ca"
    OTHER = "other"
    """Platform certificates and whatever else: no key of a TPM, no CA."""


class EndorsementRule(StrEnum):
    """The rule that a refused certificate broke. Shown to users, never renamed."""

    NO_ISSUER = "issuer-unknown"
    SIGNATURE = "signature-invalid"
    ALGORITHM = "algorithm-unsupported"
    SHA1 = "sha1-signature"
    CHAIN_LENGTH = "chain-too-long"
    CHAIN_BUDGET = "chain-too-many-candidates"
    NOT_YET_VALID = "not-yet-valid"
    EXPIRED = "expired"
    WEAK_KEY = "weak-key"
    VERSION = "version-not-3"
    BASIC_CONSTRAINTS = "basic-constraints"
    PATH_LENGTH = "path-length"
    KEY_USAGE = "key-usage"
    EXTENDED_KEY_USAGE = "extended-key-usage"
    SUBJECT_ALTERNATIVE_NAME = "subject-alternative-name"
    NAME_CONSTRAINTS = "name-constraints"
    CRITICAL_EXTENSION = "unknown-critical-extension"
    ROLE = "role"
    MANUFACTURER = "manufacturer-not-covered"
    ANCHOR_DIFFERS = "ek-not-anchored"
    KEY_DIFFERS = "ek-key-differs"
    TEMPLATE = "ek-template"
    REVOKED = "revoked"
    DENIED = "denied"
    CRL_SIGNATURE = "crl-signature-invalid"
    CRL_MISSING = "crl-missing"
    CRL_OUTDATED = "crl-out-of-date"
    MALFORMED_KEY = "key-malformed"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaAnchor:
    """A CA certificate, trusted as it stands: its own signature is not relied upon."""

    certificate: Certificate
    manufacturers: frozenset[str] | None = None
    """TPM manufacturers it may vouch for (``IFX``, ``STM`` …); None: any (pitfall 28)."""

    @property
    def kind(self) -> AnchorKind:
        """``ca-certificate``."""
        return AnchorKind.CA_CERTIFICATE

    @property
    def anchor_id(self) -> str:
        """Kind and SHA-256 of the certificate."""
        return f"{self.kind}:{self.certificate.fingerprint.hex()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EkHashAnchor:
    """One TPM, by the SHA-256 of its EK's TPMT_PUBLIC; with it no certificate is needed."""

    sha256: bytes

    def __post_init__(self) -> None:
        if len(self.sha256) != 32:
            raise ValueError(f"a SHA-256 has 32 bytes, not {len(self.sha256)}")

    @property
    def kind(self) -> AnchorKind:
        """``ek-hash``."""
        return AnchorKind.EK_HASH

    @property
    def anchor_id(self) -> str:
        """Kind and hash."""
        return f"{self.kind}:{self.sha256.hex()}"


Anchor = CaAnchor | EkHashAnchor


@dataclass(frozen=True, slots=True, kw_only=True)
class EndorsementPolicy:
    """What an operator may relax, each by its name; the default relaxes nothing."""

    ignore_ek_not_after: bool = False
    """Accept EK and AK certificates past notAfter: a TPM outlives many of them (pitfall 27)."""
    ignore_ca_not_after: bool = False
    """Accept CA certificates past notAfter."""
    allow_sha1_signatures: bool = False
    """Accept SHA-1 signatures of CAs over intermediate CAs."""
    allow_sha1_leaf: bool = False
    """Accept one over an EK or AK: Infineon signed those of its older chips so until 2018."""
    require_crl: bool = False
    """Refuse unless each issuer has a CRL that is in date."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocations:
    """What was taken back: CRLs from files and a deny list of our own (pitfall 29)."""

    lists: tuple[CertificateRevocationList, ...] = ()
    denied: frozenset[bytes] = frozenset()
    """SHA-256 of a certificate's DER, of its SubjectPublicKeyInfo, or of an EK's TPMT_PUBLIC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateChain:
    """Certificates from the one in question up to an anchor; each signature was checked."""

    role: CertificateRole
    certificates: tuple[Certificate, ...]
    anchor_id: str

    @property
    def leaf(self) -> Certificate:
        """The certificate in question."""
        return self.certificates[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedEndorsement:
    """An EK that an anchor vouches for. Constructed in ``verification.endorsement`` only.

    It says «the EK of a genuine TPM», never «our host» (pitfall 32) and not yet that the TPM at hand
    holds it: TPM2_MakeCredential does that.
    """

    public_key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
    public_key_info: bytes
    """SubjectPublicKeyInfo: of the certificate as it stands, or built for an EK without one."""
    certificate_sha256: bytes | None
    """None for an EK without a certificate."""
    tpm: TpmIdentity | None
    """Manufacturer, model and version; None for an EK without a certificate."""
    chain: tuple[Certificate, ...]
    """From the EK's certificate to the anchor; empty for an EK without one."""
    anchor_id: str
    not_after: datetime | None
    """When the first certificate of the chain ends; None without one."""


DECRYPTING_KEY_USAGE = frozenset({KeyUsage.KEY_ENCIPHERMENT, KeyUsage.KEY_AGREEMENT})
"""What an EK must be usable for: one of these. The TCG's profile (2.6, 3.5.4) has the first for RSA and the
second for ECC; Intel certifies ECC keys with the first, Microsoft's Pluton RSA keys with the second."""
