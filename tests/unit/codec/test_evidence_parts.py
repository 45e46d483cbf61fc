"""The parts of an Attest stream: sizes are looked at before anything else (rule 65, N41)."""

import pytest

from trustauthority.codec.evidence import decode_evidence
from trustauthority.errors import InvalidRequest
from trustauthority.model import evidence as limits

PARTS = {
    "challenge": b"c",
    "attest": b"a",
    "signature": b"s",
    "pcr_values": b"p",
    "boot_log": b"",
    "ima_offset": 0,
    "ima_log": b"",
}
MOST = {
    "attest": limits.MAX_ATTEST_BYTES,
    "signature": limits.MAX_SIGNATURE_BYTES,
    "pcr_values": limits.MAX_PCR_BYTES,
    "boot_log": limits.MAX_BOOT_LOG_BYTES,
    "ima_log": limits.MAX_IMA_BYTES,
}


@pytest.mark.parametrize("name", MOST)
def test_a_part_has_at_most_its_size(name):
    """One byte more than the limit is refused, with the part's name."""
    whole = decode_evidence(**PARTS | {name: bytes(MOST[name])})
    assert len(getattr(whole, name)) == MOST[name]
    with pytest.raises(InvalidRequest, match=f"more than {MOST[name]}") as caught:
        decode_evidence(**PARTS | {name: bytes(MOST[name] + 1)})
    assert caught.value.metadata["field"] == name


@pytest.mark.parametrize("name", ["attest", "signature", "pcr_values"])
def test_a_quote_without_one_of_its_parts_is_none(name):
    """Logs may be empty, the quote may not."""
    with pytest.raises(InvalidRequest, match=f"{name} is empty") as caught:
        decode_evidence(**PARTS | {name: b""})
    assert caught.value.metadata["field"] == name


@pytest.mark.parametrize("offset", [-1, (1 << 40) + 1, 1 << 63, -(1 << 63)])
def test_an_impossible_offset(offset):
    """An offset is not negative and at most a terabyte."""
    assert decode_evidence(**PARTS | {"ima_offset": 1 << 40}).ima_offset == 1 << 40
    with pytest.raises(InvalidRequest, match="out of range") as caught:
        decode_evidence(**PARTS | {"ima_offset": offset})
    assert caught.value.metadata["field"] == "ima_offset"
