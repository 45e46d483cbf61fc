"""The X.509 extensions that decide whether a certificate is an EK's, an AK's or a CA's.

Stage: codec. Trusts nothing on entry. On exit each extension is there at most once and its critical
flag is kept; the known ones are decoded. Does not judge: an unknown critical extension is refused by
``verification`` after the known ones were processed (pitfall 26). Source: RFC 5280 section 4.2.
"""

from typing import Final

from trustauthority.codec.der import (
    BIT_STRING,
    BOOLEAN,
    INTEGER,
    OBJECT_IDENTIFIER,
    OCTET_STRING,
    SEQUENCE,
    DerElement,
    DerReader,
    boolean,
    context,
    integer,
    named_bits,
    object_identifier,
)
from trustauthority.model.certificate import (
    AuthorityKeyIdentifier,
    BasicConstraints,
    Extension,
    KeyUsage,
)

SUBJECT_KEY_IDENTIFIER: Final = "2.5.29.14"
KEY_USAGE: Final = "2.5.29.15"
SUBJECT_ALTERNATIVE_NAME: Final = "2.5.29.17"
BASIC_CONSTRAINTS: Final = "2.5.29.19"
NAME_CONSTRAINTS: Final = "2.5.29.30"
CERTIFICATE_POLICIES: Final = "2.5.29.32"
AUTHORITY_KEY_IDENTIFIER: Final = "2.5.29.35"
EXTENDED_KEY_USAGE: Final = "2.5.29.37"

_KEY_USAGE_BITS: Final = tuple(KeyUsage)


def decode_extensions(element: DerElement) -> tuple[Extension, ...]:
    """``Extensions``: a sequence of at least one.

    Raises:
        MalformedEvidence: not DER, or the same extension twice.
    """
    reader = element.reader()
    found: dict[str, Extension] = {}
    while not reader.at_end:
        item = reader.read("extension", SEQUENCE)
        extension = _extension(item)
        if extension.object_identifier in found:
            raise item.malformed(f"extension {extension.object_identifier} stands twice")
        found[extension.object_identifier] = extension
    if not found:
        raise element.malformed("an empty list of extensions")
    return tuple(found.values())


def _extension(item: DerElement) -> Extension:
    reader = item.reader()
    identifier = object_identifier(reader.read("extension id", OBJECT_IDENTIFIER))
    critical = False
    if reader.next_is(BOOLEAN):  # Intel and Nuvoton encode FALSE although it is the default
        critical = boolean(reader.read("critical", BOOLEAN))
    value = reader.read(f"extension {identifier}", OCTET_STRING).content
    reader.finish()
    return Extension(object_identifier=identifier, critical=critical, value=value)


def _single(value: bytes, part: str, *tags: int) -> DerElement:
    """The only element of an extension's value."""
    reader = DerReader(value, part=part)
    element = reader.read(part, *tags)
    reader.finish()
    return element


def decode_basic_constraints(value: bytes) -> BasicConstraints:
    """``BasicConstraints``; an absent ``cA`` is FALSE.

    Raises:
        MalformedEvidence: not DER, or a path length below 0.
    """
    element = _single(value, "basicConstraints", SEQUENCE)
    reader = element.reader()
    authority = reader.next_is(BOOLEAN) and boolean(reader.read("cA", BOOLEAN))
    path_length = integer(reader.read("pathLen", INTEGER)) if reader.next_is(INTEGER) else None
    reader.finish()
    if path_length is not None and path_length < 0:
        raise element.malformed("a negative path length")
    return BasicConstraints(certificate_authority=authority, path_length=path_length)


def decode_key_usage(value: bytes) -> frozenset[KeyUsage]:
    """``KeyUsage`` as a set. Bits without a name grant nothing; two ST CAs have bit 14 set.

    Raises:
        MalformedEvidence: not DER.
    """
    bits = named_bits(_single(value, "keyUsage", BIT_STRING))
    return frozenset(_KEY_USAGE_BITS[bit] for bit in bits if bit < len(_KEY_USAGE_BITS))


def decode_extended_key_usage(value: bytes) -> frozenset[str]:
    """``ExtKeyUsageSyntax`` as a set of OIDs.

    Raises:
        MalformedEvidence: not DER, or empty.
    """
    element = _single(value, "extKeyUsage", SEQUENCE)
    reader = element.reader()
    purposes: set[str] = set()
    while not reader.at_end:
        purposes.add(object_identifier(reader.read("key purpose", OBJECT_IDENTIFIER)))
    if not purposes:
        raise element.malformed("no purpose")
    return frozenset(purposes)


def decode_authority_key_identifier(value: bytes) -> AuthorityKeyIdentifier:
    """``AuthorityKeyIdentifier``: key identifier and serial number; the issuer names are not needed.

    Raises:
        MalformedEvidence: not DER.
    """
    reader = _single(value, "authorityKeyIdentifier", SEQUENCE).reader()
    key_identifier: bytes | None = None
    serial: int | None = None
    if reader.next_is(context(0, constructed=False)):
        key_identifier = reader.read("keyIdentifier").content
    if reader.next_is(context(1)):
        reader.read("authorityCertIssuer")
    if reader.next_is(context(2, constructed=False)):
        serial = integer(reader.read("authorityCertSerialNumber"))
    reader.finish()
    return AuthorityKeyIdentifier(key_identifier=key_identifier, serial_number=serial)


def decode_subject_key_identifier(value: bytes) -> bytes:
    """``SubjectKeyIdentifier``.

    Raises:
        MalformedEvidence: not DER.
    """
    return _single(value, "subjectKeyIdentifier", OCTET_STRING).content


def extension_value(extensions: tuple[Extension, ...], identifier: str) -> bytes | None:
    """The value of the extension with this OID, or None."""
    for extension in extensions:
        if extension.object_identifier == identifier:
            return extension.value
    return None
