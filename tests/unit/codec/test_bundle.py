"""The container of evidence bundles: exactly what the manifest lists, or MalformedEvidence with the place."""

import hashlib
import io
import json
import tarfile

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trustauthority.codec.bundle import (
    FORMAT,
    MAX_BUNDLE_BYTES,
    MAX_PARTS,
    VERSION,
    decode_bundle,
    encode_bundle,
)
from trustauthority.errors import MalformedEvidence

PARTS = {"quote.attest": b"attest", "boot.log": b"x" * 512, "ima.log": b""}
GOOD = encode_bundle({"nonce": "00ff"}, PARTS, made_at_s=1_700_000_000)


def listed(parts):
    """The manifest's list of parts, right."""
    return {
        name: {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        for name, body in parts.items()
    }


def manifest_of(parts, **fields):
    """A manifest's text that fits these parts."""
    whole = {"format": FORMAT, "version": VERSION, "files": listed(parts)} | fields
    return json.dumps(whole).encode()


def tar_of(entries, kind=tarfile.USTAR_FORMAT):
    """A tar as another program writes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, body in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            tar.addfile(entry, io.BytesIO(body))
    return buffer.getvalue()


def refused(data, text, part="bundle"):
    """The refusal of these bytes, which must say where and what."""
    with pytest.raises(MalformedEvidence, match=text) as caught:
        decode_bundle(data)
    assert caught.value.part == part
    return caught.value


def test_what_is_written_is_read():
    """Parts and manifest come back; an empty part is left out."""
    bundle = decode_bundle(GOOD)
    assert bundle.parts == {"quote.attest": b"attest", "boot.log": b"x" * 512}
    assert bundle.hex("nonce") == b"\x00\xff"
    assert bundle.number("ima_offset") == 0


def test_other_programs_read_it():
    """It is a tar like any other: nobody needs our program to look inside."""
    with tarfile.open(fileobj=io.BytesIO(GOOD)) as tar:
        assert tar.getnames() == ["manifest.json", "quote.attest", "boot.log"]
        assert tar.extractfile("boot.log").read() == b"x" * 512


def test_what_other_programs_write_is_read():
    """The agent writes with another library; padding at the end of a tar may be longer."""
    parts = {"a": b"1", "b": b"2"}
    data = tar_of([("manifest.json", manifest_of(parts)), *parts.items()])
    assert decode_bundle(data).parts == parts


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(GOOD) * 8 - 1))
@example(8 * 1024)
def test_no_flipped_bit_passes_as_another_bundle(bit):
    """N13: a flipped bit is refused, or was one that carries nothing (mode, owner, time)."""
    data = bytearray(GOOD)
    data[bit // 8] ^= 1 << bit % 8
    try:
        bundle = decode_bundle(bytes(data))
    except MalformedEvidence:
        return
    good = decode_bundle(GOOD)
    flipped_in_manifest = 512 <= bit // 8 < 1024
    assert bundle.parts == good.parts
    assert flipped_in_manifest or bundle.manifest == good.manifest


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=4096))
def test_any_bytes_are_a_bundle_or_malformed(data):
    """Total: no other error than MalformedEvidence leaves the codec."""
    with pytest.raises(MalformedEvidence):
        decode_bundle(data)


@pytest.mark.parametrize("length", [0, 1, 511, 512, 600, 1024, 1500, len(GOOD) - 1])
def test_cut_anywhere_it_is_none(length):
    """A copy that broke off is named as such."""
    with pytest.raises(MalformedEvidence):
        decode_bundle(GOOD[:length])


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param([("a", b"1"), ("a", b"1")], id="doubled"),
        pytest.param([("a", b"1"), ("a", b"2")], id="doubled-with-other-content"),
        pytest.param(
            [("manifest.json", manifest_of({"a": b"1"})), ("a", b"1")], id="two-manifests"
        ),
    ],
)
def test_a_part_stands_once(entries):
    """Two parts of one name: readers would take different ones (N13)."""
    refused(tar_of([("manifest.json", manifest_of({"a": b"1"})), *entries]), "twice")


@pytest.mark.parametrize(
    ("listed_parts", "there"),
    [
        ({"a": b"1"}, {}),
        ({}, {"a": b"1"}),
        ({"a": b"1"}, {"a": b"2"}),
        ({"a": b"1"}, {"b": b"1"}),
        ({"a": b"1"}, {"a": b"1", "b": b"1"}),
    ],
)
def test_the_parts_are_those_of_the_manifest(listed_parts, there):
    """Missing, extra, other content, other name: all refused."""
    data = tar_of([("manifest.json", manifest_of(listed_parts)), *there.items()])
    refused(data, "not those of the manifest", "manifest.json")


@pytest.mark.parametrize(
    ("manifest", "text"),
    [
        (b"", "no manifest"),
        (b" " * ((1 << 20) + 1), "no manifest"),
        (b"\xff", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"format":"x","format":"y"}', "not JSON"),
        (b"[]", "not a trustauthority"),
        (b'{"format":"other"}', "not a trustauthority"),
        (manifest_of({}, version=2), "version 1"),
        (manifest_of({}, version=True), "version 1"),
        (manifest_of({}, version="1"), "version 1"),
        (manifest_of({}, files=[]), "not those of the manifest"),
        (manifest_of({}, files=None), "not those of the manifest"),
    ],
)
def test_a_manifest_that_is_none(manifest, text):
    """Unknown formats and versions are refused, not guessed at."""
    refused(tar_of([("manifest.json", manifest)] if manifest else []), text, "manifest.json")


def entry(**changed):
    """One tar entry with a right checksum and changed header fields: offset → bytes."""
    data = bytearray(tar_of([("a", b"1")])[:1024])
    for place, value in changed.items():
        at = int(place[1:])
        data[at : at + len(value)] = value
    data[148:156] = b" " * 8
    data[148:156] = f"{sum(data[:512]):06o}\0 ".encode()
    return bytes(data) + bytes(1024)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (entry(_156=b"2"), "plain file"),
        (entry(_156=b"5"), "plain file"),
        (entry(_156=b"L"), "plain file"),
        (entry(_257=b"ustar  \0"), "plain file"),
        (entry(_0=b"../etc\0"), "a name that"),
        (entry(_0=b"/etc\0"), "a name that"),
        (entry(_0=b"\0"), "a name that"),
        (entry(_0=b"a\0b"), "a name that"),
        (entry(_0=b"\xe9"), "a name that"),
        (entry(_0=b"\x1b["), "a name that"),
        (entry(_0=b"a" * 100), "a name that"),
        (entry(_345=b"prefix"), "a name that"),
        (entry(_124=b"\x80" + bytes(11)), "a size"),
        (entry(_124=b" " * 12), "a size"),
        (entry(_124=b"9" * 11 + b"\0"), "a size"),
        (entry(_124=b"77777777777\0"), "cut off"),
        (entry(_600=b"\x01"), "padding"),
    ],
)
def test_an_entry_that_no_bundle_has(data, text):
    """Links, folders, paths out of the folder, huge sizes and hidden bytes are refused by name (N13)."""
    refused(data, text)


def test_a_wrong_checksum_is_refused():
    """The header's own sum is looked at too."""
    data = bytearray(entry())
    data[148] ^= 1
    assert refused(bytes(data), "plain file").offset == 0


def test_nothing_hides_behind_the_end():
    """Bytes after the closing blocks are bytes that no reader looks at."""
    refused(GOOD + b"\0" * 511 + b"x", "after the last part")
    refused(GOOD + b"\0", "after the last part")


def test_there_is_a_most_of_everything():
    """N21: sizes and counts are bounded before anything is kept."""
    parts = {f"p{number}": b"1" for number in range(MAX_PARTS + 1)}
    refused(encode_bundle({}, parts, made_at_s=0), "too many")
    refused(bytes(MAX_BUNDLE_BYTES + 1), "256 MiB")


@pytest.mark.parametrize(
    ("key", "value"),
    [("text", 1), ("text", None), ("hex", "0"), ("hex", "zz"), ("hex", "AA"), ("hex", "aa bb")],
)
def test_a_field_is_what_it_must_be(key, value):
    """A field of another kind is malformed, never taken for empty."""
    bundle = decode_bundle(encode_bundle({"field": value}, {}, made_at_s=0))
    with pytest.raises(MalformedEvidence):
        getattr(bundle, key)("field")


@pytest.mark.parametrize("value", [-1, True, 1.5, "1", None, 1 << 41])
def test_a_count_is_a_number_in_range(value):
    """Offsets are counts: nothing negative, fractional or endless."""
    bundle = decode_bundle(encode_bundle({"field": value}, {}, made_at_s=0))
    with pytest.raises(MalformedEvidence, match="not a number"):
        bundle.number("field")


def test_a_missing_part_is_named():
    """Who reads a part that is not there learns its name."""
    with pytest.raises(MalformedEvidence, match=r"no ak\.public"):
        decode_bundle(GOOD).part("ak.public")
