"""DER as a walk over the original bytes: nothing is copied before it is needed, nothing is re-encoded.

Stage: codec. Trusts nothing on entry. On exit every element lies inside its parent, has a definite
length in its shortest form, and remembers where it stands in the input, so that a signature is
checked over the very bytes that were signed. Does not judge what real TPM vendors get wrong without
harm: the order inside a SET, extra fields of an AlgorithmIdentifier, an encoded DEFAULT, a zero or
negative serial number (pitfalls 25, 27). Source: ITU-T X.690 (2021) sections 8.1 and 10.1.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from trustauthority.errors import MalformedEvidence

BOOLEAN: Final = 0x01
INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
NULL: Final = 0x05
OBJECT_IDENTIFIER: Final = 0x06
ENUMERATED: Final = 0x0A
UTC_TIME: Final = 0x17
GENERALIZED_TIME: Final = 0x18
SEQUENCE: Final = 0x30
SET: Final = 0x31

MAX_OBJECT_IDENTIFIER: Final = 64  # bytes; the longest OID of the TPM world has 13


def context(number: int, *, constructed: bool = True) -> int:
    """The tag octet of ``[number]``."""
    return (0xA0 if constructed else 0x80) | number


@dataclass(frozen=True, slots=True)
class DerElement:
    """One TLV: ``data[start:body]`` is its header, ``data[body:end]`` its content."""

    data: bytes
    tag: int
    start: int
    body: int
    end: int
    part: str

    @property
    def raw(self) -> bytes:
        """Header and content, as they stand in the input."""
        return self.data[self.start : self.end]

    @property
    def content(self) -> bytes:
        """Content octets."""
        return self.data[self.body : self.end]

    def reader(self) -> "DerReader":
        """A reader over the elements inside this one."""
        return DerReader(self.data, part=self.part, start=self.body, end=self.end)

    def malformed(self, message: str) -> MalformedEvidence:
        """The error to raise for this element."""
        return MalformedEvidence(message, part=self.part, offset=self.start)


class DerReader:
    """Reads the elements of one constructed value, in order, and never beyond its end."""

    __slots__ = ("data", "end", "part", "position")

    def __init__(self, data: bytes, *, part: str, start: int = 0, end: int | None = None) -> None:
        self.data = data
        self.part = part
        self.position = start
        self.end = len(data) if end is None else end

    @property
    def at_end(self) -> bool:
        """Whether everything was read."""
        return self.position >= self.end

    def next_is(self, *tags: int) -> bool:
        """Whether another element follows and has one of these tags."""
        return self.position < self.end and self.data[self.position] in tags

    def read(self, part: str, *tags: int) -> DerElement:
        """Read the next element, which must have one of ``tags`` (any tag if none are given).

        Raises:
            MalformedEvidence: missing, of another tag, or not in DER.
        """
        start = self.position
        if start + 2 > self.end:
            raise MalformedEvidence("the element is missing or cut", part=part, offset=start)
        tag = self.data[start]
        if tags and tag not in tags:
            expected = " or ".join(f"0x{one:02x}" for one in tags)
            raise MalformedEvidence(
                f"tag 0x{tag:02x} in place of {expected}", part=part, offset=start
            )
        if tag & 0x1F == 0x1F:
            raise MalformedEvidence("multi-byte tags are not used here", part=part, offset=start)
        body, length = self._length(start + 1, part)
        if length > self.end - body:
            raise MalformedEvidence(
                f"{length} bytes announced, {self.end - body} left", part=part, offset=start
            )
        self.position = body + length
        return DerElement(self.data, tag, start, body, body + length, part)

    def _length(self, position: int, part: str) -> tuple[int, int]:
        """Where the content starts and how long it is; only the shortest form is DER."""
        first = self.data[position]
        if first < 0x80:
            return position + 1, first
        octets = first & 0x7F
        if not 1 <= octets <= 4:
            raise MalformedEvidence("length is indefinite or absurd", part=part, offset=position)
        body = position + 1 + octets
        if body > self.end:
            raise MalformedEvidence("the length is cut", part=part, offset=position)
        length = int.from_bytes(self.data[position + 1 : body], "big")
        if length < 0x80 or length >> (8 * (octets - 1)) == 0:
            raise MalformedEvidence(
                "length is not in its shortest form", part=part, offset=position
            )
        return body, length

    def finish(self) -> None:
        """Refuse anything left over.

        Raises:
            MalformedEvidence: bytes follow the last element.
        """
        if not self.at_end:
            left = self.end - self.position
            raise MalformedEvidence(
                f"{left} unexpected bytes follow", part=self.part, offset=self.position
            )


def boolean(element: DerElement) -> bool:
    """A BOOLEAN: FALSE is 00 and TRUE is FF, no other octet is DER."""
    if element.content not in {b"\x00", b"\xff"}:
        raise element.malformed("not a DER boolean")
    return element.content == b"\xff"


def integer(element: DerElement) -> int:
    """A signed INTEGER in its shortest form."""
    content = element.content
    if not content:
        raise element.malformed("an integer without octets")
    padded = len(content) > 1 and (
        (content[0] == 0x00 and content[1] < 0x80) or (content[0] == 0xFF and content[1] >= 0x80)
    )
    if padded:
        raise element.malformed("integer is not in its shortest form")
    return int.from_bytes(content, "big", signed=True)


def bit_string(element: DerElement) -> tuple[bytes, int]:
    """The octets of a BIT STRING and the number of unused bits, which must be zero bits."""
    content = element.content
    if not content or content[0] > 7 or (content[0] and len(content) == 1):
        raise element.malformed("not a bit string")
    unused = content[0]
    if unused and content[-1] & ((1 << unused) - 1):
        raise element.malformed("unused bits are set")
    return content[1:], unused


def octet_aligned(element: DerElement) -> bytes:
    """The octets of a BIT STRING that holds whole octets (keys and signatures)."""
    octets, unused = bit_string(element)
    if unused:
        raise element.malformed("unused bits where whole octets are due")
    return octets


def named_bits(element: DerElement) -> frozenset[int]:
    """The numbers of the set bits of a named-bit BIT STRING (such as KeyUsage)."""
    octets, _ = bit_string(element)
    return frozenset(
        8 * index + bit
        for index, octet in enumerate(octets)
        for bit in range(8)
        if octet & (0x80 >> bit)
    )


def object_identifier(element: DerElement) -> str:
    """An OBJECT IDENTIFIER in dotted form."""
    content = element.content
    if not content or len(content) > MAX_OBJECT_IDENTIFIER or content[-1] & 0x80:
        raise element.malformed("not an object identifier")
    arcs: list[int] = []
    value, first_of_arc = 0, True
    for octet in content:
        if first_of_arc and octet == 0x80:
            raise element.malformed("object identifier is not in its shortest form")
        value = (value << 7) | (octet & 0x7F)
        first_of_arc = not octet & 0x80
        if first_of_arc:
            arcs.append(value)
            value = 0
    top = min(arcs[0] // 40, 2)
    return ".".join(str(arc) for arc in (top, arcs[0] - 40 * top, *arcs[1:]))


def instant(element: DerElement) -> datetime:
    """A Time (UTCTime or GeneralizedTime) in UTC with seconds, as RFC 5280 section 4.1.2.5 asks."""
    content = element.content
    short = element.tag == UTC_TIME
    if len(content) != (13 if short else 15) or content[-1:] != b"Z" or not content[:-1].isdigit():
        raise element.malformed("not a time in UTC with seconds")
    digits = content[:-1].decode("ascii")
    if short:
        digits = ("20" if digits[:2] < "50" else "19") + digits
    month, day, hour, minute, second = (int(digits[at : at + 2]) for at in range(4, 14, 2))
    try:
        return datetime(int(digits[:4]), month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as error:
        raise element.malformed("no such date") from error
