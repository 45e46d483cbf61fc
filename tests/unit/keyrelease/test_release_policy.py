"""Release policies: documents that are refused, hours, signatures, and what decisions see of them."""

import json
from base64 import b64encode
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from trustauthority.errors import OwnerSignatureInvalid, PolicyInvalid
from trustauthority.keyrelease.releasepolicy import (
    LABEL,
    check_owner_signature,
    decision_record,
    decode_release_policy,
    encode_release_policy,
    explain,
    hours_of,
)
from trustauthority.model.baseline import Component
from trustauthority.placement.condition import hour_of_week

ED = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
EC = ec.derive_private_key(7, ec.SECP256R1())


def spki(key) -> str:
    der = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return b64encode(der).decode()


GOOD = {
    "format": "ta-release-policy-v1",
    "vm": "payroll",
    "version": 3,
    "clusters": ["prod"],
    "hostClasses": ["r650"],
    "regions": ["eu"],
    "maxEvidenceAgeMs": 60_000,
    "variants": {"kernel": ["k1", "k2"]},
    "hours": ["mon-fri 08-18", "sat 09-10"],
    "ownerKey": spki(ED),
}


def document(**changes) -> bytes:
    return json.dumps(GOOD | changes).encode()


class TestDocument:
    def test_what_is_read_is_what_was_written(self) -> None:
        """The canonical bytes say all of it and are read back the same."""
        policy = decode_release_policy(document())
        assert (policy.version, policy.regions, policy.variants) == (
            3,
            ("eu",),
            {Component.KERNEL: ("k1", "k2")},
        )
        assert decode_release_policy(encode_release_policy(policy)) == policy
        assert encode_release_policy(policy) == encode_release_policy(
            decode_release_policy(json.dumps(GOOD, indent=3).encode())
        )

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("format", "ta-release-policy-v2"),
            ("vm", "../x"),
            ("vm", None),
            ("version", 0),
            ("version", True),
            ("version", 1.0),
            ("version", 2**53),
            ("clusters", "prod"),
            ("clusters", ["a,b"]),
            ("hostClasses", [""]),
            ("regions", ["a"] * 65),
            ("regions", [7]),
            ("maxEvidenceAgeMs", -1),
            ("maxEvidenceAgeMs", "60s"),
            ("variants", ["kernel"]),
            ("variants", {"kernle": ["k"]}),
            ("variants", {"kernel": "k"}),
            ("hours", "daily 00-24"),
            ("hours", ["mon-fri"]),
            ("hours", ["mon 18-08"]),
            ("hours", ["fri-mon 08-18"]),
            ("hours", ["mon 08-25"]),
            ("hours", ["mon 8-18"]),
            ("hours", ["xyz 08-18"]),
            ("ownerKey", "AAAA"),
            ("ownerKey", "*"),
            ("ownerKey", 7),
            ("unknown", 1),
        ],
    )
    def test_refused(self, field, value) -> None:
        """A field that is wrong, or that nobody knows, refuses the whole document."""
        with pytest.raises(PolicyInvalid) as refusal:
            decode_release_policy(document(**{field: value}))
        assert field.split(".")[0] in refusal.value.message

    @pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b"[" * 10_000, b" " * 16_385])
    def test_what_is_no_document(self, content) -> None:
        """Any other bytes are refused."""
        with pytest.raises(PolicyInvalid):
            decode_release_policy(content)

    @given(st.binary(max_size=200))
    def test_any_bytes(self, content) -> None:
        """Total: nothing but PolicyInvalid."""
        with pytest.raises(PolicyInvalid):
            decode_release_policy(content)

    def test_weak_owner_keys(self) -> None:
        """Only Ed25519 and P-256 may own."""
        for key in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())):
            with pytest.raises(PolicyInvalid, match="ownerKey"):
                decode_release_policy(document(ownerKey=spki(key)))


class TestDecision:
    def test_columns(self) -> None:
        """Lists are kept so that no name is found in a part of another one."""
        record = decision_record(decode_release_policy(document()))
        assert (record.clusters, record.regions) == (",prod,", ",eu,")
        assert (record.variants_kernel, record.variants_firmware) == (",k1,k2,", "")
        assert record.hours.startswith(",h8,h9,")
        assert record.hours.count("h") == 5 * 10 + 1

    def test_hours(self) -> None:
        """Monday 08-18 is hours 8 to 17; the week ends on Sunday 24."""
        assert hours_of("mon 08-18") == frozenset(range(8, 18))
        assert hours_of("daily 00-24") == frozenset(range(168))
        assert hours_of("sun 23-24") == {167}

    def test_the_hour_of_a_time(self) -> None:
        """1970-01-01 was a Thursday; 2026-11-23 13:30 UTC is a Monday."""
        assert hour_of_week(0) == "h72"
        assert hour_of_week(1_795_440_600_000) == "h13"

    def test_explained(self) -> None:
        """Each limit is said in words; none is left out."""
        lines = explain(decode_release_policy(document()))
        assert len(lines) == 7
        for word in ("prod", "r650", "eu", "60000", "k1, k2", "mon-fri 08-18", "owner"):
            assert any(word in line for line in lines), word
        free = {"format": GOOD["format"], "vm": "a", "version": 1}
        assert explain(decode_release_policy(json.dumps(free).encode())) == (
            "the cluster's policy accepts it",
        )


class TestSignature:
    @pytest.mark.parametrize("key", [ED, EC], ids=["Ed25519", "P-256"])
    def test_over_the_canonical_bytes(self, key) -> None:
        """The owner's signature counts for this version of this VM's policy, and for nothing else."""
        policy = decode_release_policy(document())
        content = encode_release_policy(policy)
        how = () if key is ED else (ec.ECDSA(hashes.SHA256()),)
        signature = key.sign(LABEL + content, *how)
        check_owner_signature(spki(key), content, signature)
        others = [
            encode_release_policy(replace(policy, version=4)),
            encode_release_policy(replace(policy, vm="other")),
            encode_release_policy(replace(policy, regions=())),
        ]
        for other in others:
            with pytest.raises(OwnerSignatureInvalid):
                check_owner_signature(spki(key), other, signature)
        for wrong in (b"", signature[:-1], signature + b"\0", key.sign(content, *how)):
            with pytest.raises(OwnerSignatureInvalid):
                check_owner_signature(spki(key), content, wrong)
        stranger = EC if key is ED else ED
        with pytest.raises(OwnerSignatureInvalid):
            check_owner_signature(spki(stranger), content, signature)
