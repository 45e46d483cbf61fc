"""Project Wycheproof against our own signature check, through TPMT_PUBLIC and TPMT_SIGNATURE (N15).

``tests/vectors/wycheproof`` says where the vectors come from. A TPM sends r and s as two sized
integers, so the sets for IEEE P1363 (r and s side by side, of fixed length) are the ones that apply;
each half becomes one TPM2B, and a signature that is too short or too long stays so.
"""

import gzip
import json
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from support import tpm_structures as build

from trustauthority.codec.tpm import decode_public, decode_signature
from trustauthority.errors import QuoteSignatureInvalid, TrustAuthorityError
from trustauthority.verification.signature import check_signature

VECTORS = Path(__file__).parents[2] / "vectors" / "wycheproof" / "signatures.json.gz"
GROUPS = [json.loads(line) for line in gzip.decompress(VECTORS.read_bytes()).splitlines()]
FILES = sorted({group["file"] for group in GROUPS})
CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}


@dataclass(frozen=True)
class Row:
    """One test: the structures a host would send, and what Wycheproof says of them."""

    file: str
    public: bytes
    message: bytes
    signature: bytes
    number: int
    comment: str
    flags: frozenset[str]
    result: str
    exponent: int


def rows(file: str) -> list[Row]:
    """The tests of one Wycheproof file."""
    return [row for group in GROUPS if group["file"] == file for row in group_rows(group)]


def group_rows(group) -> list[Row]:
    """The tests of one key."""
    key, hash_name = group["key"], group["sha"].replace("-", "").lower()
    scheme = {"e": "ecdsa", "s": "rsassa", "p": "rsapss"}[
        group["file"][0 if group["file"].startswith("ecdsa") else 4]
    ]
    if scheme == "ecdsa":
        curve = build.CURVES[CURVES[key["curve"]]][1]
        numbers = ec.EllipticCurvePublicNumbers(int(key["wx"], 16), int(key["wy"], 16), curve)
    else:
        numbers = rsa.RSAPublicNumbers(int(key["publicExponent"], 16), int(key["modulus"], 16))
    header = struct.pack(">HH", build.SCHEMES[scheme], build.HASH_IDS[hash_name])
    public = build.public_area(numbers.public_key(), build.AK_ATTRIBUTES, scheme=header)
    return [
        Row(
            file=group["file"],
            public=public,
            message=bytes.fromhex(message),
            signature=header + tpm_values(bytes.fromhex(signature), scheme),
            number=number,
            comment=comment,
            flags=frozenset(flags.split()),
            result=result,
            exponent=0 if scheme == "ecdsa" else numbers.e,
        )
        for number, comment, flags, message, signature, result in group["tests"]
    ]


def tpm_values(raw: bytes, scheme: str) -> bytes:
    """A signature in the shape of TPMU_SIGNATURE."""
    if scheme != "ecdsa":
        return build.sized(raw)
    half = len(raw) // 2
    return build.sized(raw[:half]) + build.sized(raw[half:])


def verdict(row: Row) -> str:
    """Accepted, or the class that refuses; anything else than our own errors fails the test."""
    try:
        check_signature(decode_public(row.public), row.message, decode_signature(row.signature))
    except TrustAuthorityError as error:
        return type(error).__name__
    return "accepted"


def is_refused_by_rule(row: Row) -> bool:
    """Sound, and still not ours: only exponent 65537, and MGF1 with the scheme's hash (pitfalls 11, 14)."""
    return row.exponent not in {0, 65537} or "mgf1sha1" in row.file


def is_accepted_by_rule(row: Row) -> bool:
    """A genuine signature whose only oddness is the length of its salt.

    TPM 2.0 fixes no salt length and chips differ (pitfall 11), so the key's owner chose it, not us.
    """
    salted = "rsa_pss" in row.file and row.comment.startswith("s_len changed to ")
    return salted and not is_refused_by_rule(row)


@pytest.mark.parametrize("file", FILES)
def test_every_valid_signature_verifies(file):
    """What Wycheproof calls valid verifies, so that no refusal below is one of everything (N15)."""
    found = [row for row in rows(file) if row.result == "valid"]
    verdicts = {row.number: verdict(row) for row in found if not is_refused_by_rule(row)}
    assert set(verdicts.values()) <= {"accepted"}
    assert len(verdicts) >= (0 if "mgf1sha1" in file else 7)


@pytest.mark.parametrize("file", FILES)
def test_nothing_else_verifies(file):
    """What Wycheproof calls invalid, or merely acceptable, is refused with one of our errors (N15)."""
    bad = [row for row in rows(file) if row.result != "valid"]
    assert len(bad) >= 42
    verdicts = {row.number: verdict(row) for row in bad if not is_accepted_by_rule(row)}
    assert set(verdicts.values()) <= {"QuoteSignatureInvalid", "MalformedEvidence"}


@pytest.mark.parametrize("file", FILES)
def test_sound_signatures_of_keys_that_are_not_ours_are_refused(file):
    """RSA exponent 3, or a mask made with another hash, is refused though the numbers fit (pitfall 14)."""
    others = [row for row in rows(file) if is_refused_by_rule(row)]
    assert all(verdict(row) == "QuoteSignatureInvalid" for row in others)


@pytest.mark.parametrize("file", [file for file in FILES if "p1363" in file])
def test_halves_of_another_length_are_refused(file):
    """The fixed-length trap: r and s without leading zeros, or both a byte longer, are refused (N15)."""
    row = next(row for row in rows(file) if row.result == "valid")
    values = decode_signature(row.signature).values
    header = row.signature[:4]
    for change in (lambda part: part[1:], lambda part: b"\0" + part, lambda part: b""):
        for sides in ((True, False), (False, True), (True, True)):
            changed = [
                change(part) if side else part for part, side in zip(values, sides, strict=True)
            ]
            raw = header + b"".join(map(build.sized, changed))
            with pytest.raises(QuoteSignatureInvalid, match="bytes each"):
                check_signature(decode_public(row.public), row.message, decode_signature(raw))
    short = [row for row in rows(file) if "SignatureSize" in row.flags and row.result != "valid"]
    assert all(verdict(each) == "QuoteSignatureInvalid" for each in short)


def test_the_set_is_whole():
    """As many tests as the README says, of each verdict: nobody thinned the set out (N15)."""
    counted = Counter(row.result for file in FILES for row in rows(file))
    by_rule = [
        row
        for file in FILES
        for row in rows(file)
        if row.result != "valid" and is_accepted_by_rule(row)
    ]
    assert dict(counted) == {"valid": 1585, "invalid": 1961, "acceptable": 5}
    assert len(by_rule) == 30
