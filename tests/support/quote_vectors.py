"""The quote vectors: one genuine quote per scheme, and each defect by itself, named after it.

``tests/vectors/build_quotes.py`` writes them to ``tests/vectors/quotes``; a test rebuilds them and
compares byte by byte, so none can drift from its name.
"""

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from support import tpm_structures as build
from support.deterministic_keys import roca_private_key, rsa_private_key

NONCE = hashlib.sha256(b"nonce of the quote vectors").digest()
PCRS = {"sha256": {index: hashlib.sha256(b"pcr %d" % index).digest() for index in (0, 1, 2, 4, 7)}}
SHA1_PCRS = {
    "sha1": {
        index: hashlib.sha1(b"pcr %d" % index, usedforsecurity=False).digest() for index in (0, 7)
    }
}
ORDER_P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@dataclass(frozen=True)
class QuoteVector:
    """Files of one case and the verdict that is right for it."""

    name: str
    expect: str
    """genuine, refused or malformed."""
    reason: str | None
    why: str
    attest: bytes
    signature: bytes
    key: bytes
    pcrs: dict[str, Any]
    nonce: bytes = NONCE
    allow_sha1: bool = False
    findings: tuple[str, ...] = field(default=())
    """Words that must appear among the findings."""

    def files(self) -> dict[str, bytes]:
        """The files, by name."""
        return {
            "attest.bin": self.attest,
            "sig.tpmt": self.signature,
            "ak.tpmt": self.key,
            "pcrs.json": (json.dumps(self.pcrs, indent=1) + "\n").encode(),
        }

    def entry(self) -> dict[str, Any]:
        """The line of index.json."""
        return {
            "name": self.name,
            "expect": self.expect,
            "reason": self.reason,
            "why": self.why,
            "nonce": self.nonce.hex(),
            "allow_sha1": self.allow_sha1,
            "findings": list(self.findings),
        }


def _ec(curve: str = "P-256", **fields: Any) -> build.SoftwareKey:
    secret = int.from_bytes(hashlib.sha256(curve.encode()).digest(), "big") >> 1
    private = ec.derive_private_key(secret, build.CURVES[curve][1])
    return build.SoftwareKey(private=private, curve=curve, **fields)


def _rsa(scheme: str = "rsassa", **fields: Any) -> build.SoftwareKey:
    return build.SoftwareKey(private=rsa_private_key("vectors"), scheme=scheme, **fields)


EC = _ec()
RSA = _rsa()


def _hex(pcrs: dict[str, dict[int, bytes]]) -> dict[str, dict[str, str]]:
    return {
        bank: {str(index): value.hex() for index, value in values.items()}
        for bank, values in pcrs.items()
    }


def _vector(
    name: str, why: str, *, key: build.SoftwareKey = EC, reason: str | None = None, **fields: Any
) -> QuoteVector:
    """A quote that differs from a genuine one in ``fields`` only; they go to ``make_quote``."""
    pcrs = fields.pop("pcrs", PCRS)
    verdict = {k: fields.pop(k) for k in ("allow_sha1", "findings", "nonce") if k in fields}
    quote = build.make_quote(key, pcrs=pcrs, extra_data=fields.pop("extra_data", NONCE), **fields)
    expect = {None: "genuine", "EVIDENCE_MALFORMED": "malformed"}.get(reason, "refused")
    return QuoteVector(
        name=name,
        expect=expect,
        reason=reason,
        why=why,
        attest=quote.attest,
        signature=quote.signature,
        key=key.public,
        pcrs=_hex(pcrs),
        **verdict,
    )


def _genuine() -> list[QuoteVector]:
    negated = _vector("good_s_negated", "(r, n - s) is valid too: signatures name nothing (13)")
    r, s = _rs(negated.signature)
    negated = replace(negated, signature=negated.signature[:4] + EC.encode_rs(r, ORDER_P256 - s))
    return [
        _vector("good_rsassa", "RSASSA-SHA256", key=RSA),
        _vector("good_rsapss", "RSAPSS is a legal scheme of an AK (11)", key=_rsa("rsapss")),
        _vector("good_rsassa_sha384", "the digest follows the scheme (8)", key=_rsa(hash="sha384")),
        _vector("good_ecdsa_p256", "ECDSA P-256"),
        _vector(
            "good_ecdsa_p384", "SHA-384 over a SHA-256 bank (8)", key=_ec("P-384", hash="sha384")
        ),
        _vector("good_ecdsa_p521", "66-byte r and s", key=_ec("P-521", hash="sha512")),
        _vector("good_two_banks", "digest over all banks in order (6)", pcrs=SHA1_PCRS | PCRS),
        _vector("good_bitmap_of_one_byte", "sizeofSelect 1 (7)", selected=_selected(size=1)),
        _vector("good_bitmap_of_four_bytes", "sizeofSelect 4 (7)", selected=_selected(size=4)),
        _vector(
            "good_clock_not_safe",
            "safe=NO is a finding, not a refusal (16)",
            clock=(1_000, 5, 2, 0),
            findings=("safe is NO",),
        ),
        _vector(
            "good_sha1_by_policy",
            "old AKs and a SHA-1 bank, where a policy names them (12)",
            key=_rsa(hash="sha1"),
            pcrs=SHA1_PCRS,
            allow_sha1=True,
            findings=("SHA-1",),
        ),
        negated,
    ]


def _selected(*, size: int = 3, banks: dict[str, tuple[int, ...]] | None = None) -> bytes:
    return build.selection(banks or {"sha256": tuple(PCRS["sha256"])}, size=size)


def _rs(signature: bytes) -> tuple[int, int]:
    return int.from_bytes(signature[6:38], "big"), int.from_bytes(signature[40:], "big")


def _structure() -> list[QuoteVector]:
    no_quote, malformed = "NOT_A_QUOTE", "EVIDENCE_MALFORMED"
    good = _vector("", "", key=RSA)
    name = build.sized(b"\0\x0b" + bytes(32))
    return [
        _vector("magic_wrong", "one byte of the magic (1)", magic=0x54434700, reason=no_quote),
        _vector("magic_swapped", "little-endian magic (1)", magic=0x474354FF, reason=no_quote),
        _vector(
            "type_certify",
            "a certification with the same extraData (2)",
            kind=build.CERTIFY,
            reason=no_quote,
            selected=name,
            digest=name[2:],
        ),
        _vector("type_nv", "TPM_ST_ATTEST_NV (2)", kind=0x8014, reason=no_quote),
        _vector("type_creation", "TPM_ST_ATTEST_CREATION (2)", kind=0x801A, reason=no_quote),
        _vector("type_time", "TPM_ST_ATTEST_TIME (2)", kind=0x8019, reason=no_quote),
        _resigned("attest_trailing_byte", "a byte after the structure (9)", lambda a: a + b"\0"),
        _resigned("attest_truncated", "last byte missing (9)", lambda a: a[:-1]),
        _vector(
            "selection_of_unknown_bank",
            "hash 0x0027 is not known (6)",
            selected=struct.pack(">I", 1) + build.selection_entry(0x0027, (0,)),
            reason=malformed,
        ),
        _vector("bitmap_of_no_byte", "sizeofSelect 0 (7)", selected=_raw(0), reason=malformed),
        _vector("bitmap_of_five_bytes", "sizeofSelect 5 (7)", selected=_raw(5), reason=malformed),
        replace(
            good,
            name="signature_trailing_byte",
            why="a byte after TPMT_SIGNATURE (9)",
            signature=good.signature + b"\0",
            expect="malformed",
            reason=malformed,
        ),
        replace(
            good,
            name="signature_truncated",
            why="last byte missing (9)",
            signature=good.signature[:-1],
            expect="malformed",
            reason=malformed,
        ),
        replace(
            good,
            name="signature_without_header",
            why="the plain signature, as some tools write it, does not say its scheme (11)",
            signature=good.signature[6:],
            expect="malformed",
            reason=malformed,
        ),
    ]


def _raw(size: int) -> bytes:
    return struct.pack(">IHB", 1, 0x000B, size) + bytes(size)


def _resigned(name: str, why: str, change: Callable[[bytes], bytes]) -> QuoteVector:
    """A structure that is broken and signed as it is."""
    good = _vector(name, why, reason="EVIDENCE_MALFORMED")
    attest = change(good.attest)
    return replace(good, attest=attest, signature=EC.sign(attest))


def _freshness_and_selection() -> list[QuoteVector]:
    mismatch, selection = "CHALLENGE_MISMATCH", "PCR_SELECTION_REJECTED"
    values = PCRS["sha256"]
    relabelled = _vector(
        "pcrs_relabelled",
        "PCR 16 and 23, which anybody can reset, shown as PCR 0 and 1 (4)",
        pcrs={"sha256": {16: values[0], 23: values[1]}},
        reason=selection,
    )
    missing = _vector("pcr_missing", "a PCR is quoted and not shown (4)", reason=selection)
    extra = _vector("pcr_extra", "a PCR is shown and not quoted (4)", reason=selection)
    other_bank = _vector("bank_missing", "a bank is shown and not quoted (4)", reason=selection)
    other_index = {"sha256": {index: values[index] for index in (0, 1, 2, 4)}}
    return [
        _vector("nonce_padded", "NONCE ‖ 0000 (3)", extra_data=NONCE + b"\0\0", reason=mismatch),
        _vector("nonce_prefix", "first 20 bytes only (3)", extra_data=NONCE[:20], reason=mismatch),
        _vector(
            "nonce_other", "last bit flipped (3)", extra_data=NONCE[:-1] + b"\0", reason=mismatch
        ),
        _vector("nonce_empty", "no nonce in the quote (3)", extra_data=b"", reason=mismatch),
        _vector(
            "selection_none",
            "count 0 (5)",
            selected=struct.pack(">I", 0),
            digest=_hash(),
            reason=selection,
        ),
        _vector(
            "bitmap_empty",
            "one bank, no PCR (5)",
            selected=_raw(3),
            digest=_hash(),
            reason=selection,
        ),
        _vector(
            "bank_twice",
            "the same bank listed twice (6)",
            selected=struct.pack(">I", 2) + 2 * _selected()[4:],
            reason=selection,
        ),
        _vector(
            "pcr_24",
            "PCR 24 does not exist (7)",
            pcrs={"sha256": {24: values[0]}},
            selected=_selected(size=4, banks={"sha256": (24,)}),
            reason=selection,
        ),
        _vector(
            "pcr_31",
            "PCR 31 does not exist (7)",
            pcrs={"sha256": {31: values[0]}},
            selected=_selected(size=4, banks={"sha256": (31,)}),
            reason=selection,
        ),
        _vector("sha1_bank_alone", "no claim rests on SHA-1 (6)", pcrs=SHA1_PCRS, reason=selection),
        replace(relabelled, pcrs=_hex({"sha256": {0: values[0], 1: values[1]}})),
        replace(missing, pcrs=_hex(other_index)),
        replace(extra, pcrs=_hex({"sha256": values | {23: bytes(32)}})),
        replace(other_bank, pcrs=_hex(SHA1_PCRS | PCRS)),
    ]


def _hash(data: bytes = b"") -> bytes:
    return hashlib.sha256(data).digest()


def _digests() -> list[QuoteVector]:
    reason = "PCR_DIGEST_MISMATCH"
    values = b"".join(PCRS["sha256"].values())
    changed = _vector("pcr_value_changed", "one bit of PCR 7 (8)", reason=reason)
    swapped = _vector("pcr_values_swapped", "the values of PCR 0 and 1 (8)", reason=reason)
    shown = PCRS["sha256"]
    both = SHA1_PCRS | PCRS
    sha1 = b"".join(SHA1_PCRS["sha1"].values())
    return [
        _vector(
            "digest_of_bank_hash",
            "SHA-256 digest under a SHA-384 scheme (8)",
            key=_ec("P-384", hash="sha384"),
            digest=_hash(values),
            reason=reason,
        ),
        _vector(
            "digest_sha1",
            "SHA-1 digest under a SHA-256 scheme (8)",
            digest=hashlib.sha1(values, usedforsecurity=False).digest(),
            reason=reason,
        ),
        _vector(
            "digest_banks_swapped",
            "banks in another order than selected (6)",
            pcrs=both,
            digest=_hash(values + sha1),
            reason=reason,
        ),
        _vector("digest_empty", "no digest", digest=b"", reason=reason),
        replace(
            changed, pcrs=_hex({"sha256": shown | {7: shown[7][:-1] + bytes([shown[7][-1] ^ 1])}})
        ),
        replace(swapped, pcrs=_hex({"sha256": shown | {0: shown[1], 1: shown[0]}})),
    ]


def _signatures() -> list[QuoteVector]:
    reason = "QUOTE_SIGNATURE_INVALID"
    bad = _vector("", "", reason=reason)
    rsa_bad = _vector("", "", key=RSA, reason=reason)
    r, s = _rs(bad.signature)
    head = bad.signature[:4]
    flipped = bytearray(bad.attest)
    flipped[-1] ^= 1
    return [
        replace(
            bad, name="attest_bit_flipped", why="signed before the flip (10)", attest=bytes(flipped)
        ),
        replace(bad, name="key_other", why="signed by another key", key=_other_key().public),
        replace(bad, name="key_of_other_type", why="ECDSA under an RSA key (14)", key=RSA.public),
        replace(
            rsa_bad, name="key_of_other_type_rsa", why="RSASSA under an EC key (14)", key=EC.public
        ),
        replace(bad, name="r_zero", why="r = 0 (13)", signature=head + EC.encode_rs(0, s)),
        replace(bad, name="s_zero", why="s = 0 (13)", signature=head + EC.encode_rs(r, 0)),
        replace(
            bad, name="r_order", why="r = n (13)", signature=head + EC.encode_rs(ORDER_P256, s)
        ),
        replace(
            bad, name="s_order", why="s = n (13)", signature=head + EC.encode_rs(r, ORDER_P256)
        ),
        replace(
            bad,
            name="r_short",
            why="31 bytes of r (N15)",
            signature=head + build.sized(bad.signature[6:37]) + build.sized(bad.signature[40:]),
        ),
        replace(
            bad,
            name="s_padded",
            why="33 bytes of s (N15)",
            signature=head + bad.signature[4:38] + build.sized(b"\0" + bad.signature[40:]),
        ),
        replace(
            rsa_bad,
            name="scheme_other",
            why="RSASSA under an AK of RSAPSS (11)",
            key=_rsa("rsapss").public,
        ),
        replace(
            rsa_bad,
            name="scheme_relabelled",
            why="RSASSA that calls itself RSAPSS (11)",
            signature=b"\0\x16" + rsa_bad.signature[2:],
        ),
        replace(
            rsa_bad,
            name="hash_relabelled",
            why="SHA-256 that calls itself SHA-384 (11)",
            signature=b"\0\x14\0\x0c" + rsa_bad.signature[4:],
        ),
        replace(
            rsa_bad,
            name="hash_other",
            why="SHA-384 under an AK of SHA-256 (11)",
            signature=RSA.sign(rsa_bad.attest, hash_name="sha384"),
        ),
        replace(
            bad,
            name="hmac",
            why="a MAC proves nothing to us",
            signature=struct.pack(">HH", 0x0005, 0x000B) + bytes(32),
        ),
        replace(
            rsa_bad,
            name="rsa_block_short",
            why="255 bytes of signature (9)",
            signature=rsa_bad.signature[:4] + build.sized(rsa_bad.signature[6:-1]),
        ),
        _vector("sha1_signature", "no policy allows it (12)", key=_rsa(hash="sha1"), reason=reason),
    ]


def _other_key() -> build.SoftwareKey:
    return build.SoftwareKey(private=ec.derive_private_key(12345, ec.SECP256R1()))


def _keys() -> list[QuoteVector]:
    reason = "QUOTE_SIGNATURE_INVALID"
    good = _vector("", "", reason=reason)
    area = EC.public
    return [
        _vector(
            "rsa_1024", "too short (14)", key=_weak(rsa_private_key("weak", 1024)), reason=reason
        ),
        _vector(
            "rsa_2041",
            "not a size of a TPM key (14)",
            key=_weak(rsa_private_key("weak", 2041)),
            reason=reason,
        ),
        _vector(
            "rsa_exponent_3",
            "exponent 3 (14)",
            key=_weak(rsa_private_key("weak", 2048, 3)),
            reason=reason,
        ),
        _vector(
            "rsa_roca", "CVE-2017-15361 (15)", key=_weak(roca_private_key("weak")), reason=reason
        ),
        _vector(
            "ak_not_restricted",
            "it signs whatever it is given (19)",
            key=_ec(attributes=build.AK_ATTRIBUTES & ~build.RESTRICTED),
            reason=reason,
        ),
        _vector(
            "ak_not_fixed_tpm",
            "it may have left the TPM (19)",
            key=_ec(attributes=build.AK_ATTRIBUTES & ~build.FIXED_TPM),
            reason=reason,
        ),
        _vector(
            "ak_imported",
            "sensitiveDataOrigin is clear (19)",
            key=_ec(attributes=build.AK_ATTRIBUTES & ~build.SENSITIVE_DATA_ORIGIN),
            reason=reason,
        ),
        _vector(
            "ak_decrypts",
            "decrypt is set (19)",
            key=_ec(attributes=build.AK_ATTRIBUTES | build.DECRYPT),
            reason=reason,
        ),
        replace(
            good,
            name="ak_scheme_open",
            why="scheme NULL (19)",
            key=build.public_area(EC.private.public_key(), build.AK_ATTRIBUTES),
        ),
        replace(
            good,
            name="curve_bn_p256",
            why="a curve outside the list (13)",
            key=_relabelled(area, 0x0010),
        ),
        replace(
            good,
            name="point_off_curve",
            why="y changed (13)",
            key=area[:-1] + bytes([area[-1] ^ 1]),
        ),
        replace(
            good,
            name="ak_trailing_byte",
            why="a byte after the public (9)",
            key=area + b"\0",
            expect="malformed",
            reason="EVIDENCE_MALFORMED",
        ),
        replace(
            good,
            name="ak_reserved_attribute",
            why="bit 0 of the attributes is reserved",
            key=area[:7] + bytes([area[7] | 1]) + area[8:],
            expect="malformed",
            reason="EVIDENCE_MALFORMED",
        ),
    ]


def _weak(private: Any) -> build.SoftwareKey:
    return build.SoftwareKey(private=private, scheme="rsassa")


def _relabelled(area: bytes, curve: int) -> bytes:
    """The same public, claiming another curve of the same size."""
    offset = area.index(struct.pack(">HH", 0x0003, 0x0010) + b"\0\x20")
    return area[:offset] + struct.pack(">H", curve) + area[offset + 2 :]


def quote_vectors() -> list[QuoteVector]:
    """All vectors, genuine ones first."""
    groups = (_genuine, _structure, _freshness_and_selection, _digests, _signatures, _keys)
    return [vector for group in groups for vector in group()]
