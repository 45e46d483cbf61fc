"""Revocation lists: original bytes to model.

Stage: codec. Trusts nothing on entry. On exit the signed bytes are kept as they came and each revoked
serial number is there once; no signature was checked. Lists whose scope we don't evaluate (indirect,
delta, by reason, attribute certificates) are refused, never read as if they were complete.
Source: RFC 5280 section 5.
"""

from datetime import datetime
from hashlib import sha256
from types import MappingProxyType
from typing import Final

from trustauthority.codec.der import (
    BIT_STRING,
    GENERALIZED_TIME,
    INTEGER,
    SEQUENCE,
    UTC_TIME,
    DerElement,
    DerReader,
    context,
    instant,
    integer,
    octet_aligned,
)
from trustauthority.codec.x509 import decode_signature_algorithm
from trustauthority.codec.x509_extensions import (
    AUTHORITY_KEY_IDENTIFIER,
    decode_authority_key_identifier,
    decode_extensions,
    extension_value,
)
from trustauthority.codec.x509_framing import pem_blocks
from trustauthority.codec.x509_names import decode_name
from trustauthority.errors import MalformedEvidence
from trustauthority.model.certificate import CertificateRevocationList, Extension

MAX_REVOCATION_LIST: Final = 16 * 1024 * 1024
"""Bytes of one file with a CRL."""
_TIMES: Final = (UTC_TIME, GENERALIZED_TIME)
_PART: Final = "certificate revocation list"


def decode_revocation_list(data: bytes) -> CertificateRevocationList:
    """Decode one CRL from DER or PEM.

    Raises:
        MalformedEvidence: not exactly one complete CRL; says which part, at which byte of the DER.
    """
    if len(data) > MAX_REVOCATION_LIST:
        raise MalformedEvidence("too long", part=_PART, offset=MAX_REVOCATION_LIST)
    if data[:1] != b"\x30":
        blocks = [der for _, label, der in pem_blocks(data, part=_PART) if label == b"X509 CRL"]
        if len(blocks) != 1:
            raise MalformedEvidence("not one CRL", part=_PART, offset=0)
        data = blocks[0]
    file = DerReader(data, part=_PART)
    outer = file.read(_PART, SEQUENCE).reader()
    file.finish()
    signed = outer.read("tbsCertList", SEQUENCE)
    algorithm = outer.read("signatureAlgorithm", SEQUENCE)
    signature = octet_aligned(outer.read("signatureValue", BIT_STRING))
    outer.finish()

    reader = signed.reader()
    if reader.next_is(INTEGER):
        reader.read("version", INTEGER)
    if reader.read("signature", SEQUENCE).raw != algorithm.raw:
        raise algorithm.malformed("differs from the algorithm that was signed")
    issuer = decode_name(reader.read("issuer", SEQUENCE))
    this_update = instant(reader.read("thisUpdate", *_TIMES))
    next_update = instant(reader.read("nextUpdate")) if reader.next_is(*_TIMES) else None
    revoked = _revoked(reader.read("revokedCertificates")) if reader.next_is(SEQUENCE) else {}
    extensions = _extensions(reader)
    reader.finish()
    authority = extension_value(extensions, AUTHORITY_KEY_IDENTIFIER)
    return CertificateRevocationList(
        fingerprint=sha256(data).digest(),
        to_be_signed=signed.raw,
        signature_algorithm=decode_signature_algorithm(algorithm),
        signature=signature,
        issuer=issuer,
        this_update=this_update,
        next_update=next_update,
        revoked=MappingProxyType(revoked),
        authority_key_identifier=(
            None if authority is None else decode_authority_key_identifier(authority)
        ),
    )


def _revoked(element: DerElement) -> dict[int, datetime]:
    reader = element.reader()
    revoked: dict[int, datetime] = {}
    while not reader.at_end:
        entry = reader.read("revoked certificate", SEQUENCE).reader()
        serial = integer(entry.read("userCertificate", INTEGER))
        revoked[serial] = instant(entry.read("revocationDate", *_TIMES))
        if not entry.at_end:
            _refuse_critical(decode_extensions(entry.read("crlEntryExtensions", SEQUENCE)))
        entry.finish()
    return revoked


def _extensions(reader: DerReader) -> tuple[Extension, ...]:
    if reader.at_end:
        return ()
    inside = reader.read("crlExtensions", context(0)).reader()
    extensions = decode_extensions(inside.read("crlExtensions", SEQUENCE))
    inside.finish()
    _refuse_critical(extensions)
    return extensions


def _refuse_critical(extensions: tuple[Extension, ...]) -> None:
    """Every critical CRL extension narrows what the list says; we evaluate none of them."""
    for extension in extensions:
        if extension.critical:
            raise MalformedEvidence(
                f"critical extension {extension.object_identifier}: no complete list of one CA",
                part=_PART,
                offset=0,
            )
