"""TPM structures: right on what a TPM makes, refused by name on everything else."""

import hashlib
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import tpm_structures as build
from support.corpus import corpus_folder, quote_cases
from tpm2_pytss.types import (
    TPM2B_PUBLIC,
    TPM2B_PUBLIC_KEY_RSA,
    TPMS_ATTEST,
    TPMT_PUBLIC,
    TPMT_SIGNATURE,
)

from trustauthority.codec.tpm import (
    decode_attest,
    decode_public,
    decode_public_sized,
    decode_signature,
    decode_sized,
    encode_public,
    encode_sized,
    object_name,
    primary_qualified_name,
    public_from_key,
    public_key,
    qualified_name,
)
from trustauthority.errors import AlgorithmUnsupported, MalformedEvidence
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.tpm import (
    HANDLE_OWNER,
    CertifyAttest,
    ClockInfo,
    EccCurve,
    EccParameters,
    EccPoint,
    KeyedHashParameters,
    ObjectAttributes,
    OtherAttest,
    PcrSelection,
    QuoteAttest,
    RsaParameters,
    SymmetricCipherParameters,
    TpmAlgorithm,
    TpmPublic,
)

AK = build.SoftwareKey.ecdsa()
RSA_AK = build.SoftwareKey.rsa()
PCRS = {"sha1": {0: b"\1" * 20}, "sha256": {0: b"\2" * 32, 7: b"\3" * 32}}
QUOTE = build.make_quote(AK, pcrs=PCRS, extra_data=b"n" * 32, signer=b"\0\x0b" + b"q" * 32)
USUAL = build.make_quote(
    AK, pcrs={"sha256": {0: bytes(32)}}, extra_data=b"n" * 32, signer=b"\0\x0b" + b"q" * 32
).attest
STORAGE = build.public_area(
    build.rsa_key().public_key(), build.STORAGE_ATTRIBUTES, symmetric=build.AES_128_CFB
)
TEMPLATES = (
    "rsa2048:rsassa-sha256:null",
    "rsa2048:rsapss-sha384:null",
    "rsa2048:rsaes:null",
    "rsa3072:oaep-sha256:null",
    "rsa2048:null:aes128cfb",
    "ecc256:ecdsa-sha256:null",
    "ecc384:ecdsa-sha384:null",
    "ecc521:ecdsa-sha512:null",
    "ecc256:ecdh-sha256:null",
    "ecc256:null:aes256cfb",
    "keyedhash",
    "hmac:sha256",
    "xor:sha256",
    "aes128cfb",
    "aes256",
)


class TestPublicAgainstTheOracle:
    """tpm2-tss marshals; we must read the same and write the same bytes."""

    @pytest.mark.parametrize("template", TEMPLATES)
    def test_every_kind_of_public_round_trips(self, template):
        """Decoding and encoding give the bytes and the name that tpm2-tss gives (pitfall 20)."""
        oracle = TPM2B_PUBLIC.parse(template, "fixedtpm|fixedparent|sensitivedataorigin|noda")
        area = oracle.publicArea
        if area.type == TpmAlgorithm.RSA:
            area.unique.rsa = TPM2B_PUBLIC_KEY_RSA(
                b"\xc5" * (area.parameters.rsaDetail.keyBits // 8)
            )
        raw = area.marshal()

        public = decode_public(raw)

        assert public.raw == raw
        assert encode_public(public) == raw
        assert object_name(public) == bytes(area.get_name())
        assert public.type == area.type
        assert public.attributes == area.objectAttributes

    @pytest.mark.parametrize("key", [AK, RSA_AK], ids=["ecc", "rsa"])
    def test_fields_are_what_tpm2_tss_reads(self, key):
        """Scheme, hash, curve, modulus and point agree with the oracle's reading."""
        area, consumed = TPMT_PUBLIC.unmarshal(key.public)
        public = decode_public(key.public)

        assert consumed == len(key.public)
        assert public.name_alg.tpm_id == area.nameAlg
        assert public.scheme.algorithm == area.parameters.asymDetail.scheme.scheme
        assert public.scheme.hash.tpm_id == area.parameters.asymDetail.scheme.details.anySig.hashAlg
        if isinstance(public.parameters, EccParameters):
            assert public.parameters.curve == area.parameters.eccDetail.curveID
            assert public.unique == EccPoint(x=bytes(area.unique.ecc.x), y=bytes(area.unique.ecc.y))
        else:
            assert public.unique == bytes(area.unique.rsa)
            assert public.parameters.public_exponent == 65537

    def test_sized_public_is_its_content(self):
        """TPM2B_PUBLIC and TPMT_PUBLIC of a key decode to the same model."""
        assert decode_public_sized(build.sized(AK.public)) == decode_public(AK.public)

    def test_public_built_here_has_the_name_the_oracle_gives(self):
        """A sealed object made from fields, not bytes, is named over its encoding."""
        public = TpmPublic(
            type=TpmAlgorithm.KEYEDHASH,
            name_alg=HashAlgorithm.SHA256,
            attributes=ObjectAttributes.NO_DA,
            auth_policy=b"p" * 32,
            parameters=KeyedHashParameters(scheme=None),
            unique=b"u" * 32,
        )
        area, _ = TPMT_PUBLIC.unmarshal(encode_public(public))

        assert object_name(public) == bytes(area.get_name())
        assert public.symmetric is None
        assert public.scheme is None

    def test_storage_parent_shows_its_cipher(self):
        """The cipher for children is readable, since residency rests on it (design 6.1)."""
        public = decode_public(STORAGE)

        assert (public.symmetric.algorithm, public.symmetric.key_bits) == (TpmAlgorithm.AES, 128)
        assert public.symmetric.mode == TpmAlgorithm.CFB

    def test_ecdaa_keeps_its_counter(self):
        """ECDAA's count is part of the public and so of the name."""
        scheme = struct.pack(">HHH", 0x001A, 0x000B, 7)
        raw = build.public_area(AK.private.public_key(), 0, scheme=scheme)

        assert decode_public(raw).scheme.count == 7
        assert encode_public(decode_public(raw)) == raw

    def test_symmetric_key_has_no_scheme(self):
        """A SYMCIPHER public has a cipher and no scheme."""
        raw = struct.pack(">HHI", 0x0025, 0x000B, 0) + build.sized(b"") + build.AES_128_CFB
        public = decode_public(raw + build.sized(b"u" * 32))

        assert isinstance(public.parameters, SymmetricCipherParameters)
        assert public.scheme is None
        assert public.symmetric.key_bits == 128


class TestNames:
    """Names are computed, never taken from the host."""

    def test_name_alg_null_has_no_name(self):
        """An object without a name algorithm can't be named (pitfall 19)."""
        raw = build.public_area(AK.private.public_key(), 0, name_alg=0x0010)

        with pytest.raises(AlgorithmUnsupported, match="NULL"):
            object_name(decode_public(raw))

    def test_qualified_names_chain(self):
        """QN(primary) = H(handle ‖ name), QN(child) = H(QN(parent) ‖ name) (Part 1, 16.5)."""
        name = build.name_of(AK.public)
        primary = primary_qualified_name(HANDLE_OWNER, name)

        assert primary == build.qualified(struct.pack(">I", 0x40000001), name)
        assert qualified_name(primary, name) == build.qualified(primary, name)

    @pytest.mark.parametrize("name", [b"", b"\0", b"\0\x0b", b"\0\x0b" + b"x" * 31, b"\0\x10x"])
    def test_what_is_no_name_is_refused(self, name):
        """A name of the wrong length or unknown hash gives no qualified name."""
        with pytest.raises(AlgorithmUnsupported):
            qualified_name(b"parent", name)

    def test_sm3_names_where_the_library_has_sm3(self):
        """SM3 is computed or refused by name; it never silently becomes another hash."""
        public = decode_public(
            build.public_area(AK.private.public_key(), 0, name_alg=HashAlgorithm.SM3_256.tpm_id)
        )
        if "sm3" not in hashlib.algorithms_available:
            with pytest.raises(AlgorithmUnsupported, match="sm3_256"):
                object_name(public)
            return
        name = object_name(public)
        assert name == b"\0\x12" + hashlib.new("sm3", public.raw).digest()

    def test_a_hash_that_the_library_lacks(self, monkeypatch):
        """A hash that can't be computed here is refused by name, not by a crash."""

        def unavailable(name, data):
            raise ValueError(f"unsupported hash type {name}")

        monkeypatch.setattr("trustauthority.codec.tpm_public.hashlib.new", unavailable)
        with pytest.raises(AlgorithmUnsupported, match="sha256 is not available"):
            object_name(decode_public(AK.public))


class TestMalformedPublic:
    """Every defect has its place in the message."""

    @pytest.mark.parametrize("key", [AK, RSA_AK], ids=["ecc", "rsa"])
    def test_truncated_anywhere(self, key):
        """A public cut at any byte is malformed (N12)."""
        for length in range(len(key.public)):
            with pytest.raises(MalformedEvidence):
                decode_public(key.public[:length])

    def test_trailing_byte(self):
        """Nothing may follow the public (pitfall 9)."""
        with pytest.raises(MalformedEvidence, match="1 bytes after the end") as caught:
            decode_public(AK.public + b"\0")
        assert caught.value.offset == len(AK.public)

    @pytest.mark.parametrize(
        ("offset", "value", "message"),
        [
            (0, b"\x00\x02", "type 0x0002"),
            (2, b"\xff\xff", "nameAlg 0xffff"),
            (4, b"\x80\x00\x00\x00", "reserved bits"),
            (8, b"\x00\x41", "at most 64"),
            (10, b"\x00\x15", "symmetric 0x0015"),
            (12, b"\x00\x14", "scheme 0x0014"),
            (14, b"\x00\x27", "scheme hash 0x0027"),
            (16, b"\x00\x99", "curveID 0x0099"),
            (18, b"\x00\x18", "scheme 0x0018"),
            (20, b"\x00\x81", "at most 128"),
        ],
    )
    def test_field_out_of_range(self, offset, value, message):
        """Unknown ids, reserved bits and oversized buffers are named with their offset."""
        defect = AK.public[:offset] + value + AK.public[offset + len(value) :]

        with pytest.raises(MalformedEvidence, match=message) as caught:
            decode_public(defect)
        assert (caught.value.part, caught.value.offset) == ("TPMT_PUBLIC", offset)

    def test_sized_public_with_wrong_length(self):
        """The length of a TPM2B_PUBLIC is the length of what follows (pitfall 9)."""
        for data in (b"", b"\0", build.sized(AK.public)[:-1], build.sized(AK.public) + b"\0"):
            with pytest.raises(MalformedEvidence):
                decode_public_sized(data)


class TestPublicKey:
    """Only keys that we can rely on mathematically become keys."""

    def test_point_off_the_curve(self):
        """A point that is not on its curve is refused (pitfall 13)."""
        defect = AK.public[:-1] + bytes([AK.public[-1] ^ 1])
        with pytest.raises(MalformedEvidence, match="not on NIST_P256"):
            public_key(decode_public(defect))

    def test_curve_outside_the_allow_list(self):
        """An unknown curve is an error, never a skipped verification (pitfall 13)."""
        defect = AK.public[:16] + b"\x00\x10" + AK.public[18:]
        with pytest.raises(AlgorithmUnsupported, match="BN_P256"):
            public_key(decode_public(defect))

    def test_modulus_of_another_size_than_stated(self):
        """keyBits must be the size of the modulus (pitfall 14)."""
        offset = RSA_AK.public.index(struct.pack(">HI", 2048, 0))
        defect = RSA_AK.public[:offset] + struct.pack(">H", 3072) + RSA_AK.public[offset + 2 :]
        with pytest.raises(MalformedEvidence, match="keyBits says 3072"):
            public_key(decode_public(defect))

    def test_exponent_that_no_library_takes(self):
        """An even exponent is refused as a key, not as a crash (pitfall 14)."""
        offset = RSA_AK.public.index(struct.pack(">HI", 2048, 0)) + 2
        defect = RSA_AK.public[:offset] + struct.pack(">I", 2) + RSA_AK.public[offset + 4 :]
        with pytest.raises(AlgorithmUnsupported, match="RSA key refused"):
            public_key(decode_public(defect))

    def test_sealed_object_is_no_key(self):
        """A keyed hash has no public key."""
        raw = struct.pack(">HHI", 0x0008, 0x000B, 0) + build.sized(b"") + build.NULL
        with pytest.raises(AlgorithmUnsupported, match="KEYEDHASH"):
            public_key(decode_public(raw + build.sized(b"u" * 32)))

    @pytest.mark.parametrize(
        "key",
        [AK, RSA_AK, build.SoftwareKey.ecdsa("P-384"), build.SoftwareKey.ecdsa("P-521")],
        ids=["P-256", "RSA", "P-384", "P-521"],
    )
    def test_bare_key_and_tpm_public_are_the_same_key(self, key):
        """A key described from PEM gives back the key that its TPM public gives."""
        bare = public_from_key(
            key.private.public_key(), attributes=ObjectAttributes.SIGN, scheme=None
        )

        assert public_key(bare) == public_key(decode_public(key.public))
        assert public_key(decode_public(encode_public(bare))) == public_key(bare)

    def test_bare_key_on_a_foreign_curve(self):
        """A bare key outside the allow-list is refused by name."""
        key = build.ec.generate_private_key(build.ec.SECP256K1()).public_key()
        with pytest.raises(AlgorithmUnsupported, match="secp256k1"):
            public_from_key(key, attributes=ObjectAttributes.SIGN, scheme=None)

    def test_bare_key_with_an_exponent_too_large_for_a_tpm(self):
        """An exponent beyond 32 bits has no place in a TPM public."""
        numbers = build.rsa_key().public_key().public_numbers()
        key = build.rsa.RSAPublicNumbers(e=(1 << 32) + 1, n=numbers.n).public_key()
        with pytest.raises(AlgorithmUnsupported, match="32 bits"):
            public_from_key(key, attributes=ObjectAttributes.SIGN, scheme=None)


class TestAttest:
    """Quotes and certifications are read; everything else is named, not guessed."""

    def test_quote_is_what_tpm2_tss_reads(self):
        """Every field of a two-bank quote agrees with the oracle."""
        oracle, _ = TPMS_ATTEST.unmarshal(QUOTE.attest)
        quote = decode_attest(QUOTE.attest)

        assert isinstance(quote, QuoteAttest)
        assert quote.raw == QUOTE.attest
        assert quote.extra_data == bytes(oracle.extraData)
        assert quote.qualified_signer == bytes(oracle.qualifiedSigner)
        assert quote.firmware_version == oracle.firmwareVersion
        assert quote.clock_info == ClockInfo(
            clock=oracle.clockInfo.clock,
            reset_count=oracle.clockInfo.resetCount,
            restart_count=oracle.clockInfo.restartCount,
            safe=bool(oracle.clockInfo.safe),
        )
        assert quote.selection == (
            PcrSelection(bank=HashAlgorithm.SHA1, indices=(0,)),
            PcrSelection(bank=HashAlgorithm.SHA256, indices=(0, 7)),
        )
        assert quote.pcr_digest == bytes(oracle.attested.quote.pcrDigest)

    def test_certification_is_what_tpm2_tss_reads(self):
        """Name and qualified name of a certified key agree with the oracle."""
        message, _ = build.make_certification(
            AK, name=b"\0\x0b" + b"n" * 32, qualified_name=b"\0\x0b" + b"q" * 32
        )
        oracle, _ = TPMS_ATTEST.unmarshal(message)
        certify = decode_attest(message)

        assert isinstance(certify, CertifyAttest)
        assert certify.name == bytes(oracle.attested.certify.name)
        assert certify.qualified_name == bytes(oracle.attested.certify.qualifiedName)
        assert certify.clock_info.position == (5, 2, 1000)

    def test_truncated_anywhere(self):
        """A quote cut at any byte is malformed, never a crash or a shorter quote (N12)."""
        for attest in (QUOTE.attest, USUAL):
            for length in range(len(attest)):
                with pytest.raises(MalformedEvidence):
                    decode_attest(attest[:length])

    def test_certification_truncated_anywhere(self):
        """A certification cut at any byte is malformed (N12)."""
        message, _ = build.make_certification(AK, name=b"n" * 34, qualified_name=b"q" * 34)
        for length in range(len(message)):
            with pytest.raises(MalformedEvidence):
                decode_attest(message[:length])

    def test_trailing_bytes(self):
        """Bytes after the structure are malformed (N12, pitfall 9)."""
        with pytest.raises(MalformedEvidence, match="after the end"):
            decode_attest(QUOTE.attest + b"\0")

    @pytest.mark.parametrize("magic", [0x54434700, 0x474354FF, 0, 0xFF544346])
    def test_wrong_magic_is_no_quote(self, magic):
        """Whatever follows, without the magic it is nothing a TPM made (pitfall 1)."""
        message = build.attest(b"", magic=magic)
        assert decode_attest(message) == OtherAttest(magic=magic, type=0x8018, raw=message)

    @pytest.mark.parametrize("kind", [0x8014, 0x8015, 0x8016, 0x8019, 0x801A, 0x801C, 0])
    def test_other_types_are_no_quote(self, kind):
        """NV, audit, session audit, time, creation: named and left alone (pitfall 2)."""
        message = build.attest(b"", kind=kind)
        assert decode_attest(message) == OtherAttest(magic=build.MAGIC, type=kind, raw=message)

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            (struct.pack(">I", 17), "17 PCR selections"),
            (struct.pack(">I", 0xFFFFFFFF), "at most 16"),
            (struct.pack(">IHB", 1, 0x0027, 3) + bytes(3), "PCR bank 0x0027"),
            (struct.pack(">IHB", 1, 0x000B, 0), "sizeofSelect is 0"),
            (struct.pack(">IHB", 1, 0x000B, 5) + bytes(5), "sizeofSelect is 5"),
            (build.selection({"sha256": (0,)}) + build.sized(bytes(65)), "at most 64"),
        ],
    )
    def test_selection_out_of_range(self, body, message):
        """Counts, banks and bitmap sizes outside of the specification are malformed (pitfall 7)."""
        with pytest.raises(MalformedEvidence, match=message):
            decode_attest(build.attest(body))

    def test_fourth_byte_of_a_bitmap_is_read(self):
        """sizeofSelect 4 is legal form; that PCR 31 does not exist is said later (pitfall 7)."""
        body = build.selection({"sha256": (31,)}, size=4) + build.sized(bytes(32))
        assert decode_attest(build.attest(body)).selection[0].indices == (31,)

    def test_safe_is_yes_or_no(self):
        """A third value of safe is malformed."""
        with pytest.raises(MalformedEvidence, match="safe is 2") as caught:
            decode_attest(build.attest(b"", clock=(0, 0, 0, 2)))
        assert caught.value.offset == 6 + 2 + 2 + 16

    @pytest.mark.parametrize("field", ["signer", "extra_data"])
    def test_oversized_fields(self, field):
        """Names and nonces longer than a TPM can hold are malformed."""
        with pytest.raises(MalformedEvidence, match="at most 66"):
            decode_attest(build.attest(b"", **{field: bytes(67)}))


class TestSignature:
    """TPMT_SIGNATURE of every scheme that can appear."""

    @pytest.mark.parametrize(
        "key",
        [AK, RSA_AK, build.SoftwareKey.rsa("rsapss"), build.SoftwareKey.ecdsa("P-521", "sha512")],
        ids=["ecdsa", "rsassa", "rsapss", "p521"],
    )
    def test_values_are_what_tpm2_tss_reads(self, key):
        """Scheme, hash and values agree with the oracle."""
        raw = key.sign(b"message")
        oracle, _ = TPMT_SIGNATURE.unmarshal(raw)
        signature = decode_signature(raw)

        assert signature.scheme == oracle.sigAlg
        assert signature.hash == key.hash
        if key.scheme == "ecdsa":
            ecdsa = oracle.signature.ecdsa
            assert signature.values == (bytes(ecdsa.signatureR), bytes(ecdsa.signatureS))
        else:
            assert signature.values == (bytes(oracle.signature.rsassa.sig),)

    def test_hmac_is_read_to_be_refused_by_name(self):
        """An HMAC has no public verification; it decodes so that the refusal can say so."""
        raw = struct.pack(">HH", 0x0005, 0x000B) + b"m" * 32
        assert decode_signature(raw).scheme == TpmAlgorithm.HMAC
        with pytest.raises(MalformedEvidence, match="HMAC digest"):
            decode_signature(raw[:-1])

    @pytest.mark.parametrize("key", [AK, RSA_AK], ids=["ecdsa", "rsassa"])
    def test_truncated_anywhere(self, key):
        """A signature cut at any byte is malformed (N12)."""
        raw = key.sign(b"message")
        for length in range(len(raw)):
            with pytest.raises(MalformedEvidence):
                decode_signature(raw[:length])

    @pytest.mark.parametrize(
        ("raw", "message"),
        [
            (AK.sign(b"m") + b"\0", "after the end"),
            (b"\x00\x10", "sigAlg 0x0010"),
            (b"HMAC" + bytes(32), "sigAlg 0x484d"),
            (struct.pack(">HH", 0x0018, 0x0027), "hash 0x0027"),
            (struct.pack(">HHH", 0x0014, 0x000B, 0xFFFF), "at most 2048"),
            (struct.pack(">HHH", 0x0018, 0x000B, 129), "at most 128"),
        ],
        ids=["trailing byte", "null", "raw", "unknown hash", "RSA too long", "r too long"],
    )
    def test_malformed(self, raw, message):
        """Unknown schemes and lengths out of bounds are named (pitfall 9)."""
        with pytest.raises(MalformedEvidence, match=message):
            decode_signature(raw)


class TestSized:
    """TPM2B helpers."""

    def test_round_trip(self):
        """What is put into a TPM2B comes out of it."""
        assert decode_sized(encode_sized(b"abc"), "TPM2B_DATA") == b"abc"

    def test_too_long(self):
        """A TPM2B can't hold more than its length field can say."""
        with pytest.raises(ValueError, match="65535"):
            encode_sized(bytes(65536))

    @pytest.mark.parametrize("data", [b"", b"\0", b"\0\2a", b"\0\1ab"])
    def test_length_is_exact(self, data):
        """A TPM2B that is shorter or longer than it says is malformed."""
        with pytest.raises(MalformedEvidence) as caught:
            decode_sized(data, "TPM2B_DATA")
        assert caught.value.part == "TPM2B_DATA"


class TestClockInfo:
    """64-bit values survive stores that have none."""

    @given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
    def test_blobs_round_trip(self, clock, reset_count, restart_count):
        """The two 8-byte blobs give back the clock, and sort as it does (design 6)."""
        info = ClockInfo(
            clock=clock, reset_count=reset_count, restart_count=restart_count, safe=True
        )
        again = ClockInfo.from_bytes(clock=info.clock_bytes, counters=info.counter_bytes, safe=True)

        assert again == info
        assert info.position == (reset_count, restart_count, clock)

    def test_counters_are_the_bytes_a_policy_compares(self):
        """resetCount ‖ restartCount are the 8 bytes at offset 16 of TPMS_TIME_INFO (design 6.4)."""
        info = ClockInfo(clock=1, reset_count=0x01020304, restart_count=0x05060708, safe=True)
        assert info.counter_bytes == bytes(range(1, 9))

    @pytest.mark.parametrize(
        "fields",
        [
            {"clock": 2**64, "reset_count": 0, "restart_count": 0},
            {"clock": -1, "reset_count": 0, "restart_count": 0},
            {"clock": 0, "reset_count": 2**32, "restart_count": 0},
            {"clock": 0, "reset_count": 0, "restart_count": -1},
        ],
    )
    def test_out_of_range(self, fields):
        """No value that a TPM can't have is representable."""
        with pytest.raises(ValueError, match="64-bit"):
            ClockInfo(**fields, safe=True)

    def test_blobs_of_another_length(self):
        """A blob that is not 8 bytes long is not padded."""
        with pytest.raises(ValueError, match="8 bytes"):
            ClockInfo.from_bytes(clock=bytes(7), counters=bytes(8), safe=True)
        with pytest.raises(ValueError, match="8 bytes"):
            ClockInfo.from_bytes(clock=bytes(8), counters=bytes(9), safe=True)

    def test_curves_know_their_size(self):
        """A P-521 coordinate has 66 bytes, not 65."""
        assert EccCurve.NIST_P521.coordinate_size == 66

    def test_exponent_zero_is_the_default(self):
        """An exponent of 0 on the wire is 65537."""
        parameters = RsaParameters(symmetric=None, scheme=None, key_bits=2048, exponent=0)
        assert parameters.public_exponent == 65537


def _mutated(base: bytes) -> st.SearchStrategy[bytes]:
    """``base`` with a slice replaced by anything, so that most of the structure stays."""
    return st.tuples(st.integers(0, len(base)), st.integers(0, 8), st.binary(max_size=12)).map(
        lambda cut: base[: cut[0]] + cut[2] + base[cut[0] + cut[1] :]
    )


class TestAnyBytes:
    """Total functions: a model or MalformedEvidence, nothing else."""

    @settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow], deadline=None)
    @given(st.binary(max_size=400) | _mutated(AK.public) | _mutated(RSA_AK.public))
    def test_public(self, data):
        """Any bytes give a public that encodes back to them, or MalformedEvidence."""
        try:
            public = decode_public(data)
        except MalformedEvidence:
            return
        assert encode_public(public) == data
        try:
            public_key(public)
        except (MalformedEvidence, AlgorithmUnsupported):
            return

    @settings(max_examples=400, deadline=None)
    @given(st.binary(max_size=400) | _mutated(QUOTE.attest))
    def test_attest(self, data):
        """Any bytes give an attestation that kept them, or MalformedEvidence."""
        try:
            attest = decode_attest(data)
        except MalformedEvidence:
            return
        assert attest.raw == data

    @settings(max_examples=400, deadline=None)
    @given(st.binary(max_size=400) | _mutated(AK.sign(b"m")) | _mutated(RSA_AK.sign(b"m")))
    def test_signature(self, data):
        """Any bytes give a signature whose values are in them, or MalformedEvidence."""
        try:
            signature = decode_signature(data)
        except MalformedEvidence:
            return
        assert all(value in data for value in signature.values)


@pytest.mark.parametrize("case", quote_cases(), ids=lambda case: case.name)
def test_corpus_decodes_as_the_oracle_does(case):
    """Attestations of real TPMs decode field by field as tpm2-tss decodes them."""
    raw = (case / "attest.bin").read_bytes()
    attest = decode_attest(raw)
    if isinstance(attest, OtherAttest):
        assert case.name.startswith(("05_", "07_", "goattest_windows_gcp_creation"))
        return
    oracle, _ = TPMS_ATTEST.unmarshal(raw)
    assert attest.extra_data == bytes(oracle.extraData)
    assert attest.qualified_signer == bytes(oracle.qualifiedSigner)
    assert attest.clock_info.clock == oracle.clockInfo.clock
    assert attest.firmware_version == oracle.firmwareVersion


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(USUAL) - 1), st.integers(0, 255)), max_size=4))
def test_usual_and_general_way_agree(changes):
    """The quick way for usual quotes reads what the general way reads, and refuses what it refuses."""
    data = bytearray(USUAL)
    for position, value in changes:
        data[position] = value

    def outcome():
        try:
            return decode_attest(bytes(data))
        except MalformedEvidence as error:
            return error.args

    quick = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trustauthority.codec.tpm_attest._read_usual_quote", lambda _: None)
        assert outcome() == quick


def test_corpus_public_has_the_recorded_name():
    """The AK of a real machine has the name that was recorded with it (pitfall 20)."""
    raw = (corpus_folder("quotes") / "goattest_windows_gcp" / "ak.tpmt_public").read_bytes()
    name = "000b4ce9b151f75089d74c15dabe9d520cffafbcafd5d43be0aad2e2d88d54717e2e"
    assert object_name(decode_public(raw)).hex() == name
