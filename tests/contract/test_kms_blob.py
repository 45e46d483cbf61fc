"""The blob of a wrapped VM key: self-describing, nothing negotiated."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustauthority.adapters.kms.blob import (
    MAX_WRAPPED,
    Blob,
    WrapAlgorithm,
    bound,
    header,
    read_blob,
)
from trustauthority.errors import KmsUnavailable
from trustauthority.model.kms import ProviderKind

GCM = WrapAlgorithm.KEK_GCM
KMIP = ProviderKind.KMIP


def test_the_numbers_are_the_documented_ones():
    """Known answer: blobs live for years, so numbers never change (docs/reference/kms.md)."""
    assert {kind: header(kind, GCM) for kind in ProviderKind} == {
        "kmip": b"\x01\x01\x01",
        "pkcs11": b"\x01\x02\x01",
        "transit": b"\x01\x03\x01",
        "aws": b"\x01\x04\x01",
    }
    assert {each.name: int(each) for each in WrapAlgorithm} == {
        "KEK_GCM": 1,
        "TOKEN_GCM": 2,
        "TOKEN_KEY_WRAP": 3,
        "TRANSIT": 4,
        "AWS": 5,
    }


@given(
    kind=st.sampled_from(ProviderKind),
    algorithm=st.sampled_from(WrapAlgorithm),
    body=st.binary(min_size=1, max_size=5000),
)
def test_a_blob_is_read_as_it_was_written(kind, algorithm, body):
    """Every kind and algorithm arrives with its body."""
    blob = Blob(kind=kind, algorithm=algorithm, body=body)
    assert read_blob(blob.encode(), kind, (algorithm,)) == blob


@pytest.mark.parametrize("other", [kind for kind in ProviderKind if kind is not KMIP])
def test_another_kind_of_provider_is_refused_by_name(other):
    """A key that was moved is not tried under the wrong KMS; the message says whose it is."""
    wrapped = Blob(kind=other, algorithm=GCM, body=b"x").encode()
    with pytest.raises(KmsUnavailable, match=f"by a provider of kind {other}, not kmip"):
        read_blob(wrapped, KMIP, (GCM,))


@pytest.mark.parametrize("algorithm", [0, 2, 3, 4, 255])
def test_an_algorithm_that_was_not_asked_for_is_refused(algorithm):
    """No downgrade: the blob does not choose how it is opened."""
    with pytest.raises(KmsUnavailable, match=f"algorithm {algorithm},"):
        read_blob(bytes((1, 1, algorithm)) + b"x", KMIP, (GCM,))


@pytest.mark.parametrize(
    "start", [b"\x00\x01\x01", b"\x02\x01\x01", b"\x01\x00\x01", b"\x01\x05\x01"]
)
def test_a_format_of_the_future_is_refused(start):
    """Unknown version or kind: nothing is guessed."""
    with pytest.raises(KmsUnavailable, match="format"):
        read_blob(start + b"x", KMIP, (GCM,))


@pytest.mark.parametrize("size", [0, 1, 2, 3, MAX_WRAPPED + 1])
def test_a_blob_of_a_wrong_size_is_refused(size):
    """A truncated or blown-up row of the database is no key (N56)."""
    with pytest.raises(KmsUnavailable, match="length"):
        read_blob(b"\x01" * size, KMIP, (GCM,))


def test_the_header_is_authenticated():
    """Who wrapped it and how is part of what the tag covers (N57)."""
    seen = {bound(kind, each, b"aad") for kind in ProviderKind for each in WrapAlgorithm}
    assert len(seen) == len(ProviderKind) * len(WrapAlgorithm)
    assert all(value.endswith(b"aad") for value in seen)
