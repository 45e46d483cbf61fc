"""Certificates: original bytes to model.

Stage: codec. Trusts nothing on entry. On exit the structure is sound and the signed bytes are kept
as they came; no signature was checked and nothing may be believed yet. Reads what the strict parsers
refuse although it is genuine: RDN sets out of order, an encoded FALSE, extra data in a signature
AlgorithmIdentifier, RSAES-OAEP keys, serial numbers of zero and below (pitfalls A.1, 24, 25, 27).
Source: RFC 5280 section 4.1.
"""

from collections.abc import Callable
from datetime import datetime
from hashlib import sha256
from typing import Final, TypeVar

from trustauthority.codec import x509_extensions as extensions_of
from trustauthority.codec.der import (
    BIT_STRING,
    GENERALIZED_TIME,
    INTEGER,
    OBJECT_IDENTIFIER,
    SEQUENCE,
    UTC_TIME,
    DerElement,
    DerReader,
    context,
    instant,
    integer,
    object_identifier,
    octet_aligned,
)
from trustauthority.codec.x509_extensions import decode_extensions, extension_value
from trustauthority.codec.x509_framing import (
    certificates_inside,
    der_sequence,
    pem_blocks,
    unframe,
)
from trustauthority.codec.x509_names import decode_alternative_name, decode_name
from trustauthority.errors import MalformedEvidence
from trustauthority.model.certificate import (
    Certificate,
    Extension,
    SignatureAlgorithm,
    SubjectPublicKeyInfo,
)

MAX_BUNDLE: Final = 64 * 1024 * 1024
"""Bytes of one file with many certificates."""

_BUNDLE_LABELS: Final = frozenset({b"CERTIFICATE", b"PKCS7", b"CMS"})

_Decoded = TypeVar("_Decoded")


def decode_certificate(data: bytes) -> Certificate:
    """Decode one certificate from DER, PEM, or the content of an NV index.

    Raises:
        MalformedEvidence: not exactly one certificate; says which part, at which byte of the DER.
    """
    return _certificate(unframe(data, part="certificate", label=b"CERTIFICATE"))


def decode_certificates(data: bytes) -> tuple[Certificate, ...]:
    """Decode a PEM bundle, DER one after the other, PKCS #7, or any form of ``decode_certificate``.

    Raises:
        MalformedEvidence: one of them does not decode, or there is none.
    """
    if len(data) > MAX_BUNDLE:
        raise MalformedEvidence("too long", part="certificate bundle", offset=MAX_BUNDLE)
    if data[:1] == b"\x30":
        found = der_sequence(data, part="certificate")
    elif b"-----BEGIN " in data:
        found = (
            unframe(der, part="certificate", label=b"")
            for _, label, der in pem_blocks(data, part="certificate bundle")
            if label in _BUNDLE_LABELS
        )
    else:
        return (decode_certificate(data),)
    certificates = tuple(
        _certificate(each) for der in found for each in certificates_inside(der, part="certificate")
    )
    if not certificates:
        raise MalformedEvidence("no certificate", part="certificate bundle", offset=0)
    return certificates


def split_chain(data: bytes) -> tuple[bytes, ...]:
    """Split certificates that stand one after the other, DER; none for no bytes.

    Raises:
        MalformedEvidence: the bytes are no such sequence.
    """
    reader = DerReader(data, part="certificate chain")
    found = []
    while not reader.at_end:
        found.append(reader.read("certificate", SEQUENCE).raw)
    return tuple(found)


def decode_chain(data: bytes) -> tuple[Certificate, ...]:
    """Decode certificates that stand one after the other, DER; none for no bytes.

    Raises:
        MalformedEvidence: one of them does not decode.
    """
    return tuple(_certificate(each) for each in split_chain(data))


def _certificate(der: bytes) -> Certificate:
    """Decode exactly the DER of one certificate, whose end was already checked."""
    outer = DerReader(der, part="certificate").read("certificate", SEQUENCE).reader()
    signed = outer.read("tbsCertificate", SEQUENCE)
    algorithm_element = outer.read("signatureAlgorithm", SEQUENCE)
    signature = octet_aligned(outer.read("signatureValue", BIT_STRING))
    outer.finish()

    reader = signed.reader()
    version = _version(reader)
    serial_number = integer(reader.read("serialNumber", INTEGER))
    inner_algorithm = reader.read("signature", SEQUENCE)
    if inner_algorithm.raw != algorithm_element.raw:
        raise algorithm_element.malformed("differs from the algorithm that was signed")
    issuer = decode_name(reader.read("issuer", SEQUENCE))
    not_before, not_after = _validity(reader.read("validity", SEQUENCE))
    subject = decode_name(reader.read("subject", SEQUENCE))
    public_key_info = decode_public_key_info(reader.read("subjectPublicKeyInfo", SEQUENCE))
    _skip_unique_identifiers(reader)
    extensions = _extensions(reader, version)
    reader.finish()

    return Certificate(
        raw=der,
        fingerprint=sha256(der).digest(),
        to_be_signed=signed.raw,
        version=version,
        serial_number=serial_number,
        signature_algorithm=decode_signature_algorithm(algorithm_element),
        signature=signature,
        issuer=issuer,
        subject=subject,
        not_before=not_before,
        not_after=not_after,
        public_key_info=public_key_info,
        extensions=extensions,
        basic_constraints=_decoded(
            extensions,
            extensions_of.BASIC_CONSTRAINTS,
            extensions_of.decode_basic_constraints,
        ),
        key_usage=_decoded(
            extensions,
            extensions_of.KEY_USAGE,
            extensions_of.decode_key_usage,
        ),
        extended_key_usage=_decoded(
            extensions,
            extensions_of.EXTENDED_KEY_USAGE,
            extensions_of.decode_extended_key_usage,
        ),
        authority_key_identifier=_decoded(
            extensions,
            extensions_of.AUTHORITY_KEY_IDENTIFIER,
            extensions_of.decode_authority_key_identifier,
        ),
        subject_key_identifier=_decoded(
            extensions,
            extensions_of.SUBJECT_KEY_IDENTIFIER,
            extensions_of.decode_subject_key_identifier,
        ),
        subject_alternative_name=_decoded(
            extensions,
            extensions_of.SUBJECT_ALTERNATIVE_NAME,
            decode_alternative_name,
        ),
    )


def _decoded(
    extensions: tuple[Extension, ...], identifier: str, decode: Callable[[bytes], _Decoded]
) -> _Decoded | None:
    """The decoded extension, or None when it is absent."""
    value = extension_value(extensions, identifier)
    return None if value is None else decode(value)


def _version(reader: DerReader) -> int:
    """``[0] EXPLICIT Version DEFAULT v1``."""
    if not reader.next_is(context(0)):
        return 1
    inside = reader.read("version").reader()
    element = inside.read("version", INTEGER)
    inside.finish()
    number = integer(element)
    if number not in {0, 1, 2}:
        raise element.malformed(f"no such version: {number}")
    return number + 1


def _validity(element: DerElement) -> tuple[datetime, datetime]:
    """``Validity``: notBefore and notAfter; their order is judged later."""
    reader = element.reader()
    not_before = instant(reader.read("notBefore", UTC_TIME, GENERALIZED_TIME))
    not_after = instant(reader.read("notAfter", UTC_TIME, GENERALIZED_TIME))
    reader.finish()
    return not_before, not_after


def _skip_unique_identifiers(reader: DerReader) -> None:
    """``issuerUniqueID`` and ``subjectUniqueID`` mean nothing to anyone; they may be there."""
    for number in (1, 2):
        if reader.next_is(context(number, constructed=False)):
            reader.read("unique identifier")


def _extensions(reader: DerReader, version: int) -> tuple[Extension, ...]:
    """``[3] EXPLICIT Extensions``, in version 3 only."""
    if reader.at_end:
        return ()
    wrapper = reader.read("extensions", context(3))
    if version != 3:
        raise wrapper.malformed(f"extensions in a certificate of version {version}")
    inside = wrapper.reader()
    extensions = decode_extensions(inside.read("extensions", SEQUENCE))
    inside.finish()
    return extensions


def decode_signature_algorithm(element: DerElement) -> SignatureAlgorithm:
    """An AlgorithmIdentifier; what follows the parameters is kept, not read (Intel OnDie CA roots).

    Raises:
        MalformedEvidence: it does not start with an OID, or what follows is not DER.
    """
    reader = element.reader()
    identifier = object_identifier(reader.read("algorithm", OBJECT_IDENTIFIER))
    parameters = None if reader.at_end else reader.read("algorithm parameters").raw
    while not reader.at_end:
        reader.read("algorithm parameters")
    return SignatureAlgorithm(raw=element.raw, object_identifier=identifier, parameters=parameters)


def decode_public_key_info(element: DerElement) -> SubjectPublicKeyInfo:
    """A SubjectPublicKeyInfo, undigested: ``codec.x509_keys`` makes a key of it.

    Raises:
        MalformedEvidence: not an AlgorithmIdentifier and a BIT STRING of whole octets.
    """
    reader = element.reader()
    algorithm = reader.read("key algorithm", SEQUENCE).reader()
    identifier = object_identifier(algorithm.read("key algorithm", OBJECT_IDENTIFIER))
    parameters = None if algorithm.at_end else algorithm.read("key parameters").raw
    algorithm.finish()
    key = octet_aligned(reader.read("subjectPublicKey", BIT_STRING))
    reader.finish()
    return SubjectPublicKeyInfo(
        raw=element.raw, algorithm=identifier, parameters=parameters, key=key
    )
