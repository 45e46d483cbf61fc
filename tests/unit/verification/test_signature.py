"""Signatures: the key's own scheme, numbers in range, and no library surprise that passes."""

import struct
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tpm_structures as build
from support.deterministic_keys import roca_private_key, rsa_private_key

from trustauthority.codec.tpm import decode_public, decode_signature
from trustauthority.errors import AlgorithmUnsupported, QuoteSignatureInvalid
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.tpm import Scheme, Signature, TpmAlgorithm
from trustauthority.verification.keystrength import check_rsa_strength, has_roca_fingerprint
from trustauthority.verification.signature import check_attestation_key, check_signature

MESSAGE = b"what the TPM signed"
EC = build.SoftwareKey.ecdsa()
RSA = build.SoftwareKey.rsa()
KEYS = [
    EC,
    build.SoftwareKey.ecdsa("P-256", "sha512"),
    build.SoftwareKey.ecdsa("P-384", "sha384"),
    build.SoftwareKey.ecdsa("P-521", "sha512"),
    RSA,
    build.SoftwareKey.rsa("rsassa", "sha512"),
    build.SoftwareKey.rsa("rsapss"),
    build.SoftwareKey.rsa("rsapss", "sha384"),
    build.SoftwareKey.rsa("rsassa", bits=3072),
]
IDS = [f"{key.scheme}-{key.hash}-{index}" for index, key in enumerate(KEYS)]


def check(key, raw=None, message=MESSAGE, **options):
    """Check a signature, by default the genuine one."""
    signature = decode_signature(raw or key.sign(MESSAGE))
    return check_signature(decode_public(key.public), message, signature, **options)


class TestGenuine:
    @pytest.mark.parametrize("key", KEYS, ids=IDS)
    def test_every_scheme(self, key):
        """RSASSA, RSAPSS and ECDSA on three curves verify with the key's own hash (pitfall 11)."""
        assert check(key) is None

    @pytest.mark.parametrize("key", KEYS, ids=IDS)
    def test_other_message(self, key):
        """Another message does not verify (pitfall 10)."""
        with pytest.raises(QuoteSignatureInvalid, match="does not verify"):
            check(key, message=MESSAGE + b"\0")

    @pytest.mark.parametrize("salt", [0, 20, 222], ids=["none", "20", "as long as fits"])
    def test_pss_salts_of_other_chips(self, salt):
        """Chips choose the salt length; what they choose verifies (pitfall 11)."""
        key = build.SoftwareKey.rsa("rsapss")
        sha256 = build.HASHES["sha256"]
        pss = build.padding.PSS(build.padding.MGF1(sha256), salt)
        block = key.private.sign(MESSAGE, pss, sha256)
        check(key, struct.pack(">HH", 0x0016, 0x000B) + build.sized(block))

    def test_sha1_where_a_policy_names_it(self):
        """SHA-1 is accepted only when it is allowed by name (pitfall 12)."""
        key = replace(RSA, hash="sha1")
        check(key, allow_sha1=True)
        with pytest.raises(QuoteSignatureInvalid, match="SHA-1"):
            check(key)


class TestRefused:
    @pytest.mark.parametrize("key", KEYS[:4], ids=IDS[:4])
    @pytest.mark.parametrize("size", [-1, 1])
    def test_r_or_s_of_another_length(self, key, size):
        """R and s have the length of the curve: no stripped zeros, no padding (N15)."""
        genuine = decode_signature(key.sign(MESSAGE))
        for position in (0, 1):
            values = list(genuine.values)
            value = values[position]
            values[position] = b"\0" + value if size > 0 else value[1:]
            with pytest.raises(QuoteSignatureInvalid, match="bytes each"):
                check_signature(
                    decode_public(key.public), MESSAGE, replace(genuine, values=tuple(values))
                )

    @pytest.mark.parametrize("position", [0, 1])
    @pytest.mark.parametrize("number", ["zero", "order", "above"])
    @pytest.mark.parametrize("key", KEYS[:4], ids=IDS[:4])
    def test_r_or_s_out_of_range(self, key, number, position):
        """R and s are in [1, n - 1] (pitfall 13)."""
        orders = {
            "P-256": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
            "P-384": int("F" * 48 + "C7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973", 16),
            "P-521": (1 << 521)
            - 0x5AE79787C40D069948033FEB708F65A2FC44A36477663B851449048E16EC79BF7,
        }
        order, size = orders[key.curve], build.CURVES[key.curve][2]
        bad = {"zero": 0, "order": order, "above": (1 << 8 * size) - 1}[number]
        values = list(decode_signature(key.sign(MESSAGE)).values)
        values[position] = bad.to_bytes(size, "big")
        signature = Signature(
            scheme=TpmAlgorithm.ECDSA, hash=HashAlgorithm(key.hash), values=tuple(values)
        )
        with pytest.raises(QuoteSignatureInvalid, match="order of the group"):
            check_signature(decode_public(key.public), MESSAGE, signature)

    @pytest.mark.parametrize("scheme", list(TpmAlgorithm))
    @pytest.mark.parametrize("key", [EC, RSA], ids=["ec", "rsa"])
    def test_scheme_that_is_not_one_of_the_key(self, key, scheme):
        """Even where key and signature agree on a scheme, it must be one of the key's kind (rules 11, 14)."""
        own = {EC: TpmAlgorithm.ECDSA, RSA: TpmAlgorithm.RSASSA}[key]
        public = decode_public(key.public)
        claimed = Scheme(algorithm=scheme, hash=HashAlgorithm.SHA256)
        public = replace(public, parameters=replace(public.parameters, scheme=claimed))
        signature = replace(decode_signature(key.sign(MESSAGE)), scheme=scheme)
        if scheme == own:
            check_signature(public, MESSAGE, signature)
            return
        with pytest.raises(QuoteSignatureInvalid, match=r"is not a scheme of|does not verify"):
            check_signature(public, MESSAGE, signature)

    def test_hash_that_no_signature_here_uses(self):
        """SM3 signatures are refused by name, whatever the key says."""
        public = decode_public(EC.public)
        scheme = Scheme(algorithm=TpmAlgorithm.ECDSA, hash=HashAlgorithm.SM3_256)
        public = replace(public, parameters=replace(public.parameters, scheme=scheme))
        signature = replace(decode_signature(EC.sign(MESSAGE)), hash=HashAlgorithm.SM3_256)
        with pytest.raises(QuoteSignatureInvalid, match="sm3_256 are not accepted"):
            check_signature(public, MESSAGE, signature)

    @pytest.mark.parametrize("length", [0, 1, 255, 257, 512])
    def test_block_of_another_length(self, length):
        """An RSA signature is as long as the modulus (pitfall 9)."""
        raw = struct.pack(">HH", 0x0014, 0x000B) + build.sized(bytes(length))
        with pytest.raises(QuoteSignatureInvalid, match="as long as the modulus"):
            check(RSA, raw)

    def test_library_that_crashes(self, monkeypatch):
        """A surprise inside of a library is a refusal, with the surprise as its cause (N04)."""

        def surprise(*_):
            raise ZeroDivisionError

        monkeypatch.setattr("trustauthority.verification.signature.strong_public_key", surprise)
        with pytest.raises(QuoteSignatureInvalid, match="ZeroDivisionError") as caught:
            check(EC)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)

    @pytest.mark.parametrize("values", [(), (b"x",), (b"x", b"y", b"z")])
    @pytest.mark.parametrize("key", [EC, RSA], ids=["ec", "rsa"])
    def test_wrong_number_of_values(self, key, values):
        """A signature put together by hand can't crash the check (N04)."""
        genuine = decode_signature(key.sign(MESSAGE))
        with pytest.raises(QuoteSignatureInvalid):
            check_signature(decode_public(key.public), MESSAGE, replace(genuine, values=values))

    @settings(max_examples=150, deadline=None)
    @given(r=st.binary(min_size=32, max_size=32), s=st.binary(min_size=32, max_size=32))
    def test_random_values(self, r, s):
        """No guessed signature verifies."""
        signature = replace(decode_signature(EC.sign(MESSAGE)), values=(r, s))
        with pytest.raises(QuoteSignatureInvalid):
            check_signature(decode_public(EC.public), MESSAGE, signature)


class TestAttestationKey:
    @pytest.mark.parametrize(
        "bit",
        [
            build.FIXED_TPM,
            build.FIXED_PARENT,
            build.SENSITIVE_DATA_ORIGIN,
            build.RESTRICTED,
            build.SIGN,
        ],
    )
    def test_missing_attribute(self, bit):
        """A key that can sign anything, or leave its TPM, is no attestation key (pitfall 19)."""
        key = replace(EC, attributes=build.AK_ATTRIBUTES & ~bit)
        with pytest.raises(QuoteSignatureInvalid):
            check_attestation_key(decode_public(key.public))

    def test_decrypt(self):
        """A key that also decrypts is no attestation key (pitfall 19)."""
        key = replace(EC, attributes=build.AK_ATTRIBUTES | build.DECRYPT)
        with pytest.raises(QuoteSignatureInvalid):
            check_attestation_key(decode_public(key.public))

    def test_attributes_beside_the_point(self):
        """noDA and the authorisation of use do not matter to who may sign."""
        minimal = build.AK_ATTRIBUTES & ~(build.NO_DA | build.USER_WITH_AUTH)
        assert check_attestation_key(decode_public(replace(EC, attributes=minimal).public)) is None


class TestStrength:
    @pytest.mark.parametrize("bits", [1024, 2041, 2047])
    def test_too_short(self, bits):
        """RSA keys below 2048 bits are refused (pitfall 14)."""
        modulus = (1 << bits) - 1
        with pytest.raises(AlgorithmUnsupported, match=f"{bits} bits"):
            check_rsa_strength(modulus=modulus, exponent=65537)

    def test_too_long(self):
        """A key that costs us much to use is refused (pitfall 65)."""
        with pytest.raises(AlgorithmUnsupported, match="4097 bits"):
            check_rsa_strength(modulus=(1 << 4097) - 1, exponent=65537)

    def test_even_modulus(self):
        """No RSA modulus is even."""
        with pytest.raises(AlgorithmUnsupported):
            check_rsa_strength(modulus=1 << 2047, exponent=65537)

    @pytest.mark.parametrize("exponent", [1, 2, 3, 17, 65535, 65539])
    def test_exponents(self, exponent):
        """Only 65537 (pitfall 14)."""
        modulus = RSA.private.public_key().public_numbers().n
        with pytest.raises(AlgorithmUnsupported, match=f"exponent {exponent}"):
            check_rsa_strength(modulus=modulus, exponent=exponent)

    def test_roca_fingerprint(self):
        """A modulus of two primes k·M + 65537^a mod M is found, others are not (pitfall 15)."""
        assert has_roca_fingerprint(roca_private_key("x").public_key().public_numbers().n)
        for seed in ("a", "b", "c"):
            assert not has_roca_fingerprint(
                rsa_private_key(seed, 1024).public_key().public_numbers().n
            )

    def test_one_odd_prime_clears_the_fingerprint(self):
        """Each of the 17 primes counts: a modulus that fails one of them is not ROCA's."""
        modulus = roca_private_key("x").public_key().public_numbers().n
        for prime in (11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157):
            outside = next(
                residue
                for residue in range(1, prime)
                if residue not in {pow(65537, power, prime) for power in range(prime)}
            )
            # Change the residue modulo this prime alone (Chinese remainder theorem).
            others = 1
            for other in (11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157):
                others *= other if other != prime else 1
            step = (outside - modulus) * pow(others, -1, prime) % prime
            changed = modulus + others * step
            assert changed % prime == outside
            assert not has_roca_fingerprint(changed)

    def test_strong_keys_are_remembered_by_value(self):
        """Two decodings of one public share the key that was built from it."""
        from trustauthority.verification.keystrength import strong_public_key

        first = strong_public_key(decode_public(RSA.public))
        assert first is strong_public_key(decode_public(bytes(bytearray(RSA.public))))
        assert isinstance(first, rsa.RSAPublicKey)
