"""X.509 certificates and revocation lists as they were signed, with what TPM endorsement needs of them.

Stage: model. Constructed by ``codec.x509`` from untrusted bytes: a field here is a claim until
``verification`` has checked the signature. Source: RFC 5280; TCG EK Credential Profile 2.6.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TypeAlias

_MANUFACTURER_ID = re.compile(r"id:[0-9A-Fa-f]{8}")


CanonicalName: TypeAlias = tuple[tuple[tuple[str, str], ...], ...]
"""Per RDN its (OID, text) pairs, sorted, case and runs of spaces folded (RFC 5280 section 7.1)."""


class KeyUsage(StrEnum):
    """Bits of the KeyUsage extension (RFC 5280 section 4.2.1.3), in their order."""

    DIGITAL_SIGNATURE = "digitalSignature"
    CONTENT_COMMITMENT = "contentCommitment"
    KEY_ENCIPHERMENT = "keyEncipherment"
    DATA_ENCIPHERMENT = "dataEncipherment"
    KEY_AGREEMENT = "keyAgreement"
    KEY_CERT_SIGN = "keyCertSign"
    CRL_SIGN = "cRLSign"
    ENCIPHER_ONLY = "encipherOnly"
    DECIPHER_ONLY = "decipherOnly"


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """A distinguished name: its exact DER and a one-line text for people."""

    raw: bytes
    """DER of the RDNSequence, header included."""
    canonical: CanonicalName
    """What is compared: vendors encode one name as PrintableString here and UTF8String there."""
    organization: str | None
    """The first organizationName, for grouping by vendor."""
    text: str
    """RFC 4514 text; control and non-ASCII-printable characters are escaped."""

    @property
    def is_empty(self) -> bool:
        """Whether the name has no attribute at all (usual for EK certificates)."""
        return self.raw == b"\x30\x00"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """One extension, undecoded."""

    object_identifier: str
    critical: bool
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BasicConstraints:
    """Whether the subject is a CA, and how many CAs may follow below it (None: any number)."""

    certificate_authority: bool
    path_length: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityKeyIdentifier:
    """How the certificate names its issuer's key; each part may be missing."""

    key_identifier: bytes | None
    serial_number: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmIdentity:
    """What the subject alternative name says about the TPM (TCG EK Credential Profile 2.6, 3.1.2)."""

    manufacturer: str | None
    """Attribute 2.23.133.2.1, usually ``id:`` and eight hex digits (``id:49465800`` is IFX)."""
    model: str | None
    """Attribute 2.23.133.2.2: the part number."""
    version: str | None
    """Attribute 2.23.133.2.3: the firmware version when the certificate was issued."""

    @property
    def is_complete(self) -> bool:
        """Whether all three attributes are there."""
        return None not in {self.manufacturer, self.model, self.version}

    @property
    def manufacturer_name(self) -> str | None:
        """The manufacturer as people write it (``IFX``), or the text as it stands if it has no id."""
        text = self.manufacturer
        if text is None or not _MANUFACTURER_ID.fullmatch(text):
            return text
        letters = bytes.fromhex(text[3:]).rstrip(b"\0 ")
        return letters.decode("ascii") if letters.isalnum() else text.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectAlternativeName:
    """Only directory names are read: nothing else in it can identify a TPM."""

    tpm: TpmIdentity
    directory_names: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureAlgorithm:
    """The algorithm that a signature claims: its exact DER, its OID and its parameters."""

    raw: bytes
    object_identifier: str
    parameters: bytes | None
    """DER of the parameters (None: absent). What follows them is kept in ``raw`` only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectPublicKeyInfo:
    """The public key as the certificate holds it."""

    raw: bytes
    algorithm: str
    """OID of the key's algorithm."""
    parameters: bytes | None
    """DER of the algorithm's parameters (None: absent)."""
    key: bytes
    """Content of the BIT STRING."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A decoded certificate that keeps every byte that was signed. None of it is verified."""

    raw: bytes
    """Exactly the DER of the certificate, without vendor header or padding."""
    fingerprint: bytes
    """SHA-256 over ``raw``."""
    to_be_signed: bytes
    """The original TBSCertificate bytes, header included."""
    version: int
    """1, 2 or 3."""
    serial_number: int
    """May be zero or negative: real vendors did that (pitfall 27)."""
    signature_algorithm: SignatureAlgorithm
    signature: bytes
    issuer: Name
    subject: Name
    not_before: datetime
    not_after: datetime
    public_key_info: SubjectPublicKeyInfo
    extensions: tuple[Extension, ...]
    basic_constraints: BasicConstraints | None
    key_usage: frozenset[KeyUsage] | None
    extended_key_usage: frozenset[str] | None
    """Purposes as OIDs; None when the extension is absent."""
    authority_key_identifier: AuthorityKeyIdentifier | None
    subject_key_identifier: bytes | None
    subject_alternative_name: SubjectAlternativeName | None

    @property
    def is_authority(self) -> bool:
        """Whether the certificate claims to be a CA's."""
        return self.basic_constraints is not None and self.basic_constraints.certificate_authority

    @property
    def is_self_issued(self) -> bool:
        """Whether issuer and subject are the same name."""
        return self.issuer.canonical == self.subject.canonical and not self.subject.is_empty

    @property
    def tpm(self) -> TpmIdentity:
        """What the certificate claims about the TPM; nothing of it when there is no such name."""
        name = self.subject_alternative_name
        if name is None:
            return TpmIdentity(manufacturer=None, model=None, version=None)
        return name.tpm

    @property
    def serial_text(self) -> str:
        """The serial number in hexadecimal, with its sign."""
        return f"{self.serial_number:x}"

    @property
    def label(self) -> str:
        """A text that tells certificates apart in messages."""
        return self.subject.text or f"serial {self.serial_text} of {self.issuer.text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateRevocationList:
    """A decoded CRL that keeps every byte that was signed. None of it is verified."""

    fingerprint: bytes
    """SHA-256 over the DER."""
    to_be_signed: bytes
    signature_algorithm: SignatureAlgorithm
    signature: bytes
    issuer: Name
    this_update: datetime
    next_update: datetime | None
    revoked: Mapping[int, datetime]
    """Serial number to revocation date."""
    authority_key_identifier: AuthorityKeyIdentifier | None
