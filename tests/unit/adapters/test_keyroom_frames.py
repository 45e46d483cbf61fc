"""What the key room and its child say to each other."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.keyroom_orders import binding, release_order, room_settings

from trustauthority.adapters.keyroom.child import serve
from trustauthority.adapters.keyroom.frames import (
    HEADER,
    MAX_FRAME,
    decode_body,
    encode_frame,
    frame_length,
    order_from_json,
    order_to_json,
    settings_to_json,
)
from trustauthority.adapters.kms.settings import KmipSettings, provider_from_json
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.grant import ReleaseOrder
from trustauthority.model.placement import Purpose

KMS = KmipSettings(
    host="kms.example",
    port=5696,
    ca=Path("/etc/ca.pem"),
    certificate=Path("/etc/c.pem"),
    key=Path("/etc/c.key"),
    timeout_s=2.5,
    version="1.2",
)
ORDER = release_order("kek-1", b"\x01" * 60)

digests = st.dictionaries(st.integers(0, 23), st.binary(min_size=1, max_size=64), min_size=1)
orders = st.builds(
    replace,
    st.just(ORDER),
    binding=st.builds(
        binding,
        clock_bound=st.integers(0, 2**64 - 1),
        grant_epoch=st.integers(0, 2**64 - 1),
        purpose=st.sampled_from(Purpose),
        storage_name=st.binary(max_size=66),
    ),
    wrapped=st.binary(max_size=4200),
    aad=st.binary(max_size=300),
    counters=st.binary(max_size=8),
    sealed_pcrs=st.dictionaries(st.sampled_from(HashAlgorithm), digests),
)


def through_a_frame(message):
    frame = encode_frame(message)
    assert frame_length(frame[:HEADER]) == len(frame) - HEADER
    return decode_body(frame[HEADER:])


class TestOrders:
    @given(order=orders)
    def test_an_order_arrives_as_it_left(self, order):
        """N84: numbers up to 2^64 - 1 and every byte; banks and PCRs in their order."""
        arrived = order_from_json(through_a_frame(order_to_json(order)))
        assert arrived == order
        assert list(arrived.sealed_pcrs) == list(order.sealed_pcrs)
        assert [list(v) for v in arrived.sealed_pcrs.values()] == [
            list(v) for v in order.sealed_pcrs.values()
        ]

    def test_the_largest_order_fits(self):
        """Three banks of 24 PCRs and a 4 KiB key are far from the limit."""
        pcrs = {bank: {i: bytes(64) for i in range(24)} for bank in HashAlgorithm}
        assert encode_frame(order_to_json(replace(ORDER, wrapped=bytes(4200), sealed_pcrs=pcrs)))

    def test_every_field_of_an_order_is_sent(self):
        """A new field that nobody encodes would reach the child as something else."""
        assert set(order_to_json(ORDER)) == set(ReleaseOrder.__dataclass_fields__)
        assert set(order_to_json(ORDER)["binding"]) == set(type(ORDER.binding).__dataclass_fields__)

    @pytest.mark.parametrize("field", sorted(ReleaseOrder.__dataclass_fields__))
    def test_an_order_without_a_field_is_none(self, field):
        """No default stands for something that was not said."""
        message = order_to_json(ORDER)
        del message[field]
        with pytest.raises(KeyError):
            order_from_json(message)


class TestSettings:
    def test_a_provider_arrives_as_it_left(self):
        """The child asks the KMS that was configured."""
        settings = room_settings(KMS, Path("/etc/release.key"))
        told = through_a_frame(settings_to_json(settings))
        assert provider_from_json(told["providers"]["default"]) == KMS
        assert told["release_key"] == "/etc/release.key"


class TestFrames:
    def test_a_frame_has_a_limit(self):
        """Neither side makes the other allocate what it likes."""
        with pytest.raises(ValueError, match="too long"):
            encode_frame({"x": "y" * MAX_FRAME})

    @pytest.mark.parametrize(
        "header",
        [
            b"",
            b"\0",
            b"\0\0\0",
            bytes(4),
            bytes(5),
            (MAX_FRAME + 1).to_bytes(4, "big"),
            b"\xff" * 4,
        ],
    )
    def test_wrong_headers_are_refused(self, header):
        """Zero, short, long or larger than the limit."""
        with pytest.raises(ValueError, match="length"):
            frame_length(header)

    @pytest.mark.parametrize("body", [b"", b"[]", b"1", b"null", b"{", b"\xff", b'{"a":1}x'])
    def test_what_is_no_object_is_refused(self, body):
        """One shape of message only."""
        with pytest.raises(ValueError, match=r"."):
            decode_body(body)


class TestServe:
    @pytest.mark.parametrize(
        "sent",
        [
            b"\0\0",
            b"\xff\xff\xff\xff",
            b"\0\0\0\x09{}",
            b"\0\0\0\x02[]",
            encode_frame({"order": "x"}),
        ],
    )
    def test_a_child_does_not_guess(self, sent):
        """A broken first frame ends it without an answer."""
        replies = io.BytesIO()
        with pytest.raises((ValueError, KeyError)):
            serve(io.BytesIO(sent), replies)
        assert replies.getvalue() == b""

    def test_it_ends_with_its_parent(self):
        """The end of the pipe is the end of the child."""
        replies = io.BytesIO()
        configuration = settings_to_json(room_settings(KMS, Path("/etc/release.key")))
        serve(io.BytesIO(encode_frame({"configure": configuration})), replies)
        assert replies.getvalue() == encode_frame({"ok": "ready"})
