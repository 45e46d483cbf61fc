"""What the services know that nobody else may: HMAC keys, CAs, signing keys. Never printed."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from joserfc.jwk import ECKey

from trustauthority.services.certificates import CertificateAuthority


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthoritySecrets:
    """Keys of one authority. A role gets only those it needs; the others are None."""

    origin: str
    """Origin line of the audit log; also issuer of reports."""
    authority_ca_sha256: bytes
    """SHA-256 of the CA certificate that agents have pinned."""
    audit_key: Ed25519PrivateKey = field(repr=False)
    challenge_keys: Mapping[int, bytes] = field(repr=False)
    """HMAC keys by kid; the highest kid signs."""
    host_ca: CertificateAuthority | None = field(default=None, repr=False)
    admin_ca: CertificateAuthority | None = field(default=None, repr=False)
    report_key: ECKey | None = field(default=None, repr=False)
    release_public: ec.EllipticCurvePublicKey | None = None
    """Public part of the key role's release key, told to hosts at activation."""
