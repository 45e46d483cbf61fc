"""What an enrolment leaves on disk: certificate, pinned keys of the authority, host id.

Stage: state of the agent. Trusts the state folder only as far as ``files`` checks it. Guarantees
that an identity is read whole or not at all. The private key is not here: it lives in the TPM.
"""

import base64
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from hostagent.events import Admission
from hostagent.files import BrokenState, read_json, write_json

_FORMAT = 1
_NAME = "identity.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The answer to an activation."""

    host_id: str
    name: str
    cluster: str
    admission: Admission
    certificate_chain: bytes
    """PEM, leaf first; empty while the authority gives none."""
    certificate_expires_at: float
    """Seconds since the epoch."""
    release_public_key: bytes
    """SubjectPublicKeyInfo (DER) of the key that signs KeyGrants."""
    audit_public_key: bytes
    """Ed25519, 32 bytes."""
    audit_origin: str
    attest_interval_ms: int

    def certificate_left_ms(self, now_s: float) -> int | None:
        """Until the certificate ends, by the wall clock; None without a certificate."""
        if not self.certificate_chain:
            return None
        return int((self.certificate_expires_at - now_s) * 1000)

    def renewed(self, chain: bytes) -> "Identity":
        """The same identity with another certificate chain. Raises ValueError when it is none."""
        leaf = x509.load_pem_x509_certificates(chain)[0]
        expires = leaf.not_valid_after_utc.timestamp()
        return replace(self, certificate_chain=chain, certificate_expires_at=expires)

    def release_key(self) -> ec.EllipticCurvePublicKey:
        """The pinned release key. Raises BrokenState when it is none on an elliptic curve."""
        try:
            key = load_der_public_key(self.release_public_key)
        except ValueError as failure:
            raise BrokenState(f"the pinned release key does not decode: {failure}") from failure
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise BrokenState("the pinned release key is not an elliptic-curve key")
        return key


def load_identity(state_dir: Path) -> Identity | None:
    """The stored identity, or None before the first enrolment.

    Raises BrokenState or InsecureFile.
    """
    path = state_dir / _NAME
    document = read_json(path)
    if document is None:
        return None
    if document.get("format") != _FORMAT:
        raise BrokenState(f"{path} is of another format: remove it and enrol again")
    try:
        return _decode(document)
    except (KeyError, TypeError, ValueError, AttributeError) as failure:
        raise BrokenState(f"{path} is damaged: remove it and enrol again") from failure


def store_identity(state_dir: Path, identity: Identity) -> None:
    """Replace the stored identity, atomically and durably."""
    document = {
        "format": _FORMAT,
        "host_id": identity.host_id,
        "name": identity.name,
        "cluster": identity.cluster,
        "admission": identity.admission.value,
        "certificate_chain": identity.certificate_chain.decode("ascii"),
        "certificate_expires_at": identity.certificate_expires_at,
        "release_public_key": base64.b64encode(identity.release_public_key).decode(),
        "audit_public_key": base64.b64encode(identity.audit_public_key).decode(),
        "audit_origin": identity.audit_origin,
        "attest_interval_ms": identity.attest_interval_ms,
    }
    write_json(state_dir / _NAME, document)


def _decode(document: dict[str, Any]) -> Identity:
    return Identity(
        host_id=str(document["host_id"]),
        name=str(document["name"]),
        cluster=str(document["cluster"]),
        admission=Admission(document["admission"]),
        certificate_chain=document["certificate_chain"].encode("ascii"),
        certificate_expires_at=float(document["certificate_expires_at"]),
        release_public_key=base64.b64decode(document["release_public_key"], validate=True),
        audit_public_key=base64.b64decode(document["audit_public_key"], validate=True),
        audit_origin=str(document["audit_origin"]),
        attest_interval_ms=int(document["attest_interval_ms"]),
    )
