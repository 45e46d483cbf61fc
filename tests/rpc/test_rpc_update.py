"""The messages of an announced update: sizes and presence are checked before anything is computed."""

import pytest

from trustauthority.errors import InvalidRequest
from trustauthority.rpc.convert_update import MAX_FILES, MAX_SECTIONS, announced_update
from trustauthority.v1 import admin_pb2 as pb

GOOD = pb.FileDigests(
    bank="sha256",
    file=b"f" * 32,
    image=b"i" * 32,
    sections=[pb.SectionDigest(section=".linux", digest=b"s" * 32)],
    load_options=b"o" * 32,
)


def request(digests: pb.FileDigests, **fields) -> pb.PredictBaselineRequest:
    """A request with one file."""
    file = pb.UpdatedFile(role="kernel", digests=[digests])
    return pb.PredictBaselineRequest(**({"host": "esx-1", "files": [file]} | fields))


def spoiled(**fields) -> pb.FileDigests:
    """The good digests with other fields."""
    made = pb.FileDigests()
    made.CopyFrom(GOOD)
    for name in fields:
        made.ClearField(name)
    made.MergeFrom(pb.FileDigests(**fields))
    return made


def test_digests_arrive_by_bank():
    """A file in several banks is one file."""
    (file,) = announced_update(request(GOOD)).files
    assert file["sha256"].role == "kernel"
    assert file["sha256"].image_digest == (b"i" * 32).hex()
    assert file["sha256"].sections == {".linux": (b"s" * 32).hex()}
    bare = pb.FileDigests(bank="sha384", file=b"f" * 48)
    (other,) = announced_update(request(bare)).files
    assert (other["sha384"].image_digest, other["sha384"].load_options) == ("", "")


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (request(spoiled(bank="md5")), "bank"),
        (request(spoiled(bank="sha384")), "file"),
        (request(spoiled(file=b"")), "file"),
        (request(spoiled(image=b"i")), "image"),
        (request(spoiled(load_options=b"o" * 33)), "load_options"),
        (request(spoiled(sections=[pb.SectionDigest(section=".linux")])), "digest"),
        (request(spoiled(sections=[pb.SectionDigest()] * (MAX_SECTIONS + 1))), "sections"),
        (request(GOOD, files=[pb.UpdatedFile()] * (MAX_FILES + 1)), "files"),
        (request(GOOD, files=[pb.UpdatedFile(role="a\nb", digests=[GOOD])]), "role"),
        (request(GOOD, command_line="ro\nquiet"), "command_line"),
        (request(GOOD, command_line="x" * 4097), "command_line"),
        (request(GOOD, host="../host"), "host"),
        (request(GOOD, base="No Name"), "base"),
    ],
)
def test_what_has_a_wrong_size_is_refused(message, field):
    """N44: named by its field, before any prediction."""
    with pytest.raises(InvalidRequest) as refused:
        announced_update(message)
    assert refused.value.metadata["field"] == field
