"""Distinguished names and the directory names that identify a TPM.

Stage: codec. Trusts nothing on entry. On exit the exact bytes are kept for comparison; the text is
for people only and carries no control character (N44). Does not normalise: two names are the same
when their bytes are. Source: RFC 5280 section 4.1.2.4, RFC 4514, TCG EK Credential Profile 2.6
section 3.1.2.
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
    "2.5.4.10": "O",
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
    parts = [f"{label}={text}" for label, text in _labelled(element)]
    return Name(raw=element.raw, text=",".join(reversed(parts)))


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
        for identifier, value_element in _attributes(inside.read("directoryName", SEQUENCE)):
            text = _text(value_element)
            if found.setdefault(identifier, text) != text and identifier in _TPM_ATTRIBUTES:
                raise value_element.malformed(f"attribute {identifier} has two values")
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


def _labelled(name: DerElement) -> Iterator[tuple[str, str]]:
    """Attribute names and escaped texts, in the order of the bytes."""
    for identifier, value in _attributes(name):
        text = "".join(f"\\{one}" if one in _RESERVED else one for one in _text(value))
        yield _ATTRIBUTE_NAMES.get(identifier, identifier), text


def _attributes(name: DerElement) -> Iterator[tuple[str, DerElement]]:
    """(OID, value) of each attribute. SETs need not be sorted: Nuvoton's are not (pitfall 25)."""
    sequence = name.reader()
    while not sequence.at_end:
        relative = sequence.read("RelativeDistinguishedName", SET).reader()
        if relative.at_end:
            raise MalformedEvidence("an empty set", part=relative.part, offset=relative.position)
        while not relative.at_end:
            attribute = relative.read("AttributeTypeAndValue", SEQUENCE).reader()
            identifier = object_identifier(attribute.read("attribute type", OBJECT_IDENTIFIER))
            value = attribute.read("attribute value")
            attribute.finish()
            yield identifier, value


def _text(value: DerElement) -> str:
    """The text of a string value; what is not printable is escaped, never dropped."""
    encoding = _ENCODINGS.get(value.tag)
    if encoding is None:
        return "#" + value.raw.hex()
    text = value.content.decode(encoding, errors="backslashreplace")
    return "".join(one if one.isprintable() else f"\\u{ord(one):04x}" for one in text)
