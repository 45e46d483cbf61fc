"""The DER walk: strict lengths, original offsets, nothing lenient that nobody needs."""

from datetime import UTC, datetime

import pytest
from support.ek_certificates import integer as encode_integer
from support.ek_certificates import oid

from trustauthority.codec import der
from trustauthority.codec.der import DerReader
from trustauthority.errors import MalformedEvidence


def _element(data: bytes) -> der.DerElement:
    return DerReader(data, part="test").read("test")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x30",
        b"\x30\x01",
        b"\x30\x80\x00\x00",
        b"\x30\x85\x01\x00\x00\x00\x00",
        b"\x30\x81\x05hello",
        b"\x30\x82\x00\x80" + bytes(128),
        b"\x30\x82\x01",
        b"\x3f\x1f\x00",
        b"\x30\x84\xff\xff\xff\xff",
    ],
)
def test_only_the_shortest_definite_length_inside_its_parent_is_read(data: bytes) -> None:
    """Rule 45: cut, indefinite, padded or absurd lengths and long tags are refused."""
    with pytest.raises(MalformedEvidence):
        _element(data)


@pytest.mark.parametrize("tag", [0x1F, 0x3F, 0x5F, 0x7F, 0x9F, 0xBF, 0xDF, 0xFF])
def test_tags_of_several_bytes_are_refused_by_name(tag: int) -> None:
    """Rule 45: what follows such a tag would be read as a length; no certificate here needs one."""
    for data in (bytes((tag, 0x00)), bytes((tag, 0x01, 0x00)), bytes((tag, 0x1F, 0x00))):
        with pytest.raises(MalformedEvidence, match="multi-byte tags"):
            _element(data)
    assert _element(bytes((tag - 1, 0x00))).tag == tag - 1


def test_an_element_never_reaches_beyond_its_parent() -> None:
    """Rule 9: an inner length is bounded by the outer one, not by the buffer."""
    outer = _element(b"\x30\x02\x04\x05" + b"secret")
    with pytest.raises(MalformedEvidence) as caught:
        outer.reader().read("inner")
    assert (caught.value.part, caught.value.offset) == ("inner", 2)


def test_left_over_bytes_are_refused_with_their_offset() -> None:
    """Rule 9: the whole value is consumed."""
    reader = DerReader(b"\x05\x00\x05\x00", part="list")
    reader.read("first")
    with pytest.raises(MalformedEvidence, match="list at byte 2: 2 unexpected bytes"):
        reader.finish()


def test_another_tag_is_named_in_the_error() -> None:
    """The message says what was found and what was due."""
    with pytest.raises(MalformedEvidence, match="tag 0x05 in place of 0x30 or 0x31"):
        DerReader(b"\x05\x00", part="x").read("x", der.SEQUENCE, der.SET)


@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff\xff"])
def test_a_boolean_is_00_or_ff(content: bytes) -> None:
    """X.690 11.1: any other octet would be TRUE for some readers and an error for others."""
    with pytest.raises(MalformedEvidence):
        der.boolean(_element(bytes([1, len(content)]) + content))


@pytest.mark.parametrize("content", [b"", b"\x00\x01", b"\xff\x80"])
def test_an_integer_is_in_its_shortest_form(content: bytes) -> None:
    """X.690 8.3.2: one number has one encoding, or a deny list could be walked around."""
    with pytest.raises(MalformedEvidence):
        der.integer(_element(bytes([2, len(content)]) + content))


@pytest.mark.parametrize("value", [0, 1, 127, 128, 255, 256, -1, -128, -129, 1 << 2048])
def test_integers_keep_their_sign(value: int) -> None:
    """Rule 27: serial numbers of zero and below are read, not refused."""
    assert der.integer(_element(encode_integer(value))) == value


@pytest.mark.parametrize("content", [b"", b"\x08\x00", b"\x01", b"\x01\x01"])
def test_a_bit_string_has_clear_unused_bits(content: bytes) -> None:
    """X.690 11.2.1."""
    with pytest.raises(MalformedEvidence):
        der.bit_string(_element(bytes([3, len(content)]) + content))


def test_keys_and_signatures_are_whole_octets() -> None:
    """A key that ends inside an octet is no key."""
    with pytest.raises(MalformedEvidence, match="unused bits"):
        der.octet_aligned(_element(b"\x03\x02\x01\x80"))


def test_named_bits_are_numbered_from_the_left() -> None:
    """RFC 5280 4.2.1.3: keyCertSign is bit 5."""
    assert der.named_bits(_element(b"\x03\x02\x02\x04")) == {5}


@pytest.mark.parametrize("content", [b"", b"\x80\x01", b"\x2a\x80", b"\x2a\x80\x01", b"\x2a" * 65])
def test_an_object_identifier_has_one_encoding(content: bytes) -> None:
    """Padded arcs and endless ones are refused."""
    with pytest.raises(MalformedEvidence):
        der.object_identifier(_element(bytes([6, len(content)]) + content))


@pytest.mark.parametrize("text", ["2.23.133.8.1", "1.2.840.113549.1.1.11", "2.999.3", "0.9.2342"])
def test_object_identifiers_are_read_in_dotted_form(text: str) -> None:
    """Also with a first arc of 2 and a second above 39."""
    if text == "2.999.3":
        assert der.object_identifier(_element(b"\x06\x03\x88\x37\x03")) == text
    else:
        assert der.object_identifier(_element(oid(text))) == text


@pytest.mark.parametrize(
    ("tag", "text", "year"),
    [
        (0x17, b"491231235959Z", 2049),
        (0x17, b"500101000000Z", 1950),
        (0x18, b"99991231235959Z", 9999),
    ],
)
def test_two_digit_years_turn_at_1950(tag: int, text: bytes, year: int) -> None:
    """RFC 5280 4.1.2.5.1; 9999 is what many TPM vendors write (rule 27)."""
    moment = der.instant(_element(bytes([tag, len(text)]) + text))
    assert (moment.year, moment.tzinfo) == (year, UTC)


def test_a_time_is_read_to_the_second() -> None:
    """Every field counts."""
    text = b"20240229132456Z"
    assert der.instant(_element(b"\x18\x0f" + text)) == datetime(
        2024, 2, 29, 13, 24, 56, tzinfo=UTC
    )


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        (0x17, b"4901010000Z"),
        (0x17, b"490101000000+0000"),
        (0x17, b"491301000000Z"),
        (0x17, b"490230000000Z"),
        (0x17, b"49010100000aZ"),
        (0x18, b"490101000000Z"),
        (0x18, b"20490101000000.5Z"),
        (0x18, b"00000101000000Z"),
        (0x18, b"204901010000000"),
    ],
)
def test_other_forms_of_time_are_refused(tag: int, text: bytes) -> None:
    """RFC 5280 4.1.2.5: UTC, with seconds, without fractions, and a date that exists."""
    with pytest.raises(MalformedEvidence):
        der.instant(_element(bytes([tag, len(text)]) + text))
