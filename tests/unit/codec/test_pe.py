"""The Authenticode hash that firmware extends into PCR 4, on images made here byte by byte.

The hash was checked by hand against shim, GRUB and two kernels of ``tests/vectors/boots``: each gave the
digest in the captured log.
"""

import hashlib
import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pe_images import ALIGN, Built

from trustauthority.codec.pe import MAX_SECTIONS, decode_pe
from trustauthority.errors import MalformedEvidence

GOOD = Built()


def image_hash(data: bytes) -> str:
    """The hash under test."""
    return decode_pe(data).image_hash(hashlib.sha256()).hex()


def by_hand(built: Built) -> str:
    """The hash from its definition: the file without checksum, certificate entry and certificates."""
    data = built.bytes
    optional = 0x40 + 4 + 20
    entry = optional + (112 if built.plus else 96) + 32
    kept = data[: optional + 64] + data[optional + 68 : entry] + data[entry + 8 :]
    return hashlib.sha256(kept[: len(kept) - len(built.certificates)]).hexdigest()


@pytest.mark.parametrize(
    "built",
    [
        GOOD,
        Built(plus=False),
        Built(trailing=b"bytes behind the sections"),
        Built(certificates=b"c" * 64),
        Built(certificates=b"c" * 64, trailing=b"before them"),
        Built(sections=()),
        Built(sections=((b".bss", b""), (b".text", b"x"))),
    ],
)
def test_the_hash_is_that_of_the_definition(built):
    """PCR 4: everything but checksum, certificate entry and certificates, in file order."""
    assert image_hash(built.bytes) == by_hand(built)


def test_signing_changes_nothing():
    """A signed image is measured as the unsigned one: that is what a certificate covers."""
    signed = replace(GOOD, certificates=b"s" * 1000, checksum=0xFFFF)
    assert image_hash(signed.bytes) == image_hash(GOOD.bytes)


def test_sections_are_hashed_in_the_order_of_the_file():
    """The order of the section table does not matter, the order of the bytes does."""
    swapped = replace(GOOD, order=(1, 0))
    assert image_hash(swapped.bytes) == by_hand(swapped)


def test_few_directories_have_no_certificates():
    """An image may end its header before the certificate table."""
    data = replace(GOOD, directories=4).bytes
    optional = 0x40 + 4 + 20
    kept = data[: optional + 64] + data[optional + 68 :]
    image = decode_pe(data)
    assert image.certificate_entry == 0
    assert image_hash(data) == hashlib.sha256(kept).hexdigest()


def test_each_changed_byte_changes_the_hash():
    """All of the file counts, headers and padding included."""
    data = GOOD.bytes
    optional = 0x40 + 4 + 20
    free = set(range(optional + 64, optional + 68)) | set(
        range(optional + 112 + 32, optional + 112 + 40)
    )
    good = image_hash(data)
    for at in range(len(data)):
        flipped = data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]
        try:
            same = image_hash(flipped) == good
        except MalformedEvidence:
            continue
        assert same == (at in free), at


def test_a_section_is_as_long_as_in_memory():
    """systemd-stub measures a section without the padding of the file."""
    image = decode_pe(GOOD.bytes)
    assert image.section(".linux") == b"kernel"
    assert image.section(".initrd") is None
    assert [each.name for each in image.sections] == [".text", ".linux"]


def put(offset: int, size: int, value: int, built: Built = GOOD) -> bytes:
    """The good image with another number in it."""
    data = bytearray(built.bytes)
    data[offset : offset + size] = value.to_bytes(size, "little")
    return bytes(data)


COFF = 0x44
OPTIONAL = COFF + 20
TABLE = OPTIONAL + 240


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not an EFI executable"),
        (b"MZ", "not an EFI executable"),
        (b"\x7fELF" + bytes(100), "not an EFI executable"),
        (b"MZ" + bytes(62), "no PE header"),
        (put(0x3C, 4, 0xFFFF_FFF0), "no PE header"),
        (GOOD.bytes[:0x46], "ends in its headers"),
        (GOOD.bytes[: TABLE + 4], "ends in its headers"),
        (put(OPTIONAL, 2, 0x107), "neither PE32"),
        (put(COFF + 2, 2, MAX_SECTIONS + 1), "97 sections"),
        (put(TABLE + 16, 4, 0x7FFF_FFFF), "ends behind the file"),
        (put(TABLE + 20, 4, 0xFFFF_FFFF), "ends behind the file"),
        (put(OPTIONAL + 60, 4, 16), "do not hold the section table"),
        (put(OPTIONAL + 60, 4, 0x7FFF_FFFF), "do not hold the section table"),
        (put(TABLE + 20, 4, 0), "sections overlap"),
        (put(TABLE + 40 + 20, 4, ALIGN), "sections overlap"),
        (put(OPTIONAL + 108, 4, 5, replace(GOOD, directories=4)), "behind the headers"),
        (Built(certificates=b"c" * 8, certificate_shift=8).bytes, "not the end"),
        (put(OPTIONAL + 112 + 32, 8, 0x0000_0600_0000_0000 + 8), "not the end"),
    ],
)
def test_what_has_no_one_hash_is_refused(data, why):
    """Firmware and we could disagree about it: a refusal with an offset, never a guess."""
    with pytest.raises(MalformedEvidence, match=why) as refused:
        decode_pe(data)
    assert refused.value.part == "PE image"


def test_certificates_may_not_reach_into_a_section():
    """Bytes that are both hashed and left out."""
    data = bytearray(replace(GOOD, certificates=b"c" * 8).bytes)
    entry = OPTIONAL + 112 + 32
    struct.pack_into("<II", data, entry, len(data) - 16, 16)
    with pytest.raises(MalformedEvidence, match="overlap a section"):
        decode_pe(bytes(data))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_an_image_or_malformed(tail):
    """A total function: every input ends in a model or in one error."""
    for data in (tail, GOOD.bytes[:64] + tail, GOOD.bytes[: 600 + len(tail)] + tail):
        try:
            size = len(image_hash(data))
        except MalformedEvidence as error:
            size = 64 if error.part == "PE image" else 0
        assert size == 64
