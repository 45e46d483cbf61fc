"""Distinguished names and the directory names that identify a TPM.

Stage: codec. Trusts nothing on entry. On exit the exact bytes are kept; the text is for people only
and carries no control character (N44). Names are compared by attributes and text, because one
vendor's CA spells its name in another string type than the certificates that it issued; the
signature decides anyway. Source: RFC 5280 sections 4.1.2.4 and 7.1, RFC 4514, TCG EK Credential
Profile 2.6 section 3.1.2.
"""

from collections.abc import Iterator
from typing import Final

from trustauthority.codec.der import (
    OBJECT_IDENTIFIER,
    SEQUENCE,
    SET,
    DerElement,
    DerReader,
    context,
    object_identifier,
)
from trustauthority.errors import MalformedEvidence
from trustauthority.model.certificate import Name, SubjectAlternativeName, TpmIdentity

ORGANIZATION: Final = "2.5.4.10"
TPM_MANUFACTURER: Final = "2.23.133.2.1"
TPM_MODEL: Final = "2.23.133.2.2"
TPM_VERSION: Final = "2.23.133.2.3"

_DIRECTORY_NAME: Final = context(4)
_ATTRIBUTE_NAMES: Final = {
    "2.5.4.3": "CN",
    "2.5.4.5": "serialNumber",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.9": "street",
    ORGANIZATION: "O",
    "2.5.4.11": "OU",
    "0.9.2342.19200300.100.1.25": "DC",
    TPM_MANUFACTURER: "tpmManufacturer",
    TPM_MODEL: "tpmModel",
    TPM_VERSION: "tpmVersion",
}
_ENCODINGS: Final = {
    0x0C: "utf-8",
    0x12: "ascii",
    0x13: "ascii",
    0x14: "latin-1",
    0x16: "ascii",
    0x1A: "ascii",
    0x1C: "utf-32-be",
    0x1E: "utf-16-be",
}
_RESERVED: Final = frozenset(',+"\\<>;=')


def decode_name(element: DerElement) -> Name:
    """A Name: an RDNSequence, kept as it stands.

    Raises:
        MalformedEvidence: the bytes are no Name.
    """
    relative = [[(oid, _text(value)) for oid, value in one] for one in _relative_names(element)]
    return Name(
        raw=element.raw,
        text=",".join(_labelled(oid, text) for one in reversed(relative) for oid, text in one),
        organization=next(
            (_shown(text) for one in relative for oid, text in one if oid == ORGANIZATION), None
        ),
        canonical=tuple(
            tuple(sorted((oid, " ".join(text.split()).casefold()) for oid, text in one))
            for one in relative
        ),
    )


def decode_alternative_name(value: bytes) -> SubjectAlternativeName:
    """The TPM attributes in the directory names of a SubjectAltName extension.

    Raises:
        MalformedEvidence: no GeneralNames, or one attribute with two values.
    """
    part = "subjectAltName"
    outer = DerReader(value, part=part)
    names = outer.read(part, SEQUENCE)
    outer.finish()
    found: dict[str, str] = {}
    directories = 0
    reader = names.reader()
    while not reader.at_end:
        general = reader.read("GeneralName")
        if general.tag != _DIRECTORY_NAME:
            continue
        directories += 1
        inside = general.reader()
        for relative in _relative_names(inside.read("directoryName", SEQUENCE)):
            _collect(relative, found)
        inside.finish()
    return SubjectAlternativeName(
        tpm=TpmIdentity(
            manufacturer=found.get(TPM_MANUFACTURER),
            model=found.get(TPM_MODEL),
            version=found.get(TPM_VERSION),
        ),
        directory_names=directories,
    )


_TPM_ATTRIBUTES: Final = frozenset({TPM_MANUFACTURER, TPM_MODEL, TPM_VERSION})


def _collect(relative: list[tuple[str, DerElement]], found: dict[str, str]) -> None:
    """Add the TPM attributes of one RDN to what was found; a second, other value is a contradiction."""
    for identifier, value in relative:
        if identifier not in _TPM_ATTRIBUTES:
            continue
        text = _shown(_text(value))
        if found.setdefault(identifier, text) != text:
            raise value.malformed(f"attribute {identifier} has two values")


def _labelled(identifier: str, text: str) -> str:
    """One attribute for people."""
    escaped = "".join(f"\\{one}" if one in _RESERVED else one for one in text)
    return f"{_ATTRIBUTE_NAMES.get(identifier, identifier)}={_shown(escaped)}"


def _relative_names(name: DerElement) -> Iterator[list[tuple[str, DerElement]]]:
    """(OID, value) pairs of each RDN. SETs need not be sorted: Nuvoton's are not (pitfall 25)."""
    sequence = name.reader()
    while not sequence.at_end:
        relative = sequence.read("RelativeDistinguishedName", SET).reader()
        if relative.at_end:
            raise MalformedEvidence("an empty set", part=relative.part, offset=relative.position)
        attributes: list[tuple[str, DerElement]] = []
        while not relative.at_end:
            attribute = relative.read("AttributeTypeAndValue", SEQUENCE).reader()
            identifier = object_identifier(attribute.read("attribute type", OBJECT_IDENTIFIER))
            attributes.append((identifier, attribute.read("attribute value")))
            attribute.finish()
        yield attributes


def _text(value: DerElement) -> str:
    """The text of a string value; bytes that are none in its encoding are escaped, never dropped."""
    encoding = _ENCODINGS.get(value.tag)
    if encoding is None:
        return "#" + value.raw.hex()
    return value.content.decode(encoding, errors="backslashreplace")


def _shown(text: str) -> str:
    """The text with what is not printable escaped."""
    return "".join(one if one.isprintable() else f"\\u{ord(one):04x}" for one in text)
