"""verification.protect and verification.credential: encrypting to a TPM key, judged by tpm2-pytss."""

import hashlib
from dataclasses import replace

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from support.storage_key import STORAGE_ATTRIBUTES, storage_public
from tpm2_pytss import types
from tpm2_pytss.constants import TPM2_ALG
from tpm2_pytss.internal import crypto as oracle

from trustauthority.codec.tpm_public import encode_public
from trustauthority.errors import AlgorithmUnsupported, InvalidRequest
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.tpm import ObjectAttributes, TpmAlgorithm
from trustauthority.verification.credential import CREDENTIAL_ENTROPY, make_credential
from trustauthority.verification.protect import (
    SHARING_ENTROPY,
    SharedSecret,
    kdfa,
    kdfe,
    share_secret,
    wrap_outer,
)

ENTROPY = hashlib.shake_256(b"entropy of the tests").digest(SHARING_ENTROPY)
NAME = b"\x00\x0b" + bytes(range(32))
P256 = ec.derive_private_key(0x1234567890ABCDEF, ec.SECP256R1())
P384 = ec.derive_private_key(0x1234567890ABCDEF, ec.SECP384R1())
RSA = rsa.generate_private_key(65537, 2048)

ORACLE_HASHES = {
    HashAlgorithm.SHA256: TPM2_ALG.SHA256,
    HashAlgorithm.SHA384: TPM2_ALG.SHA384,
    HashAlgorithm.SHA512: TPM2_ALG.SHA512,
}


class TestKeyDerivation:
    @pytest.mark.parametrize("algorithm", ORACLE_HASHES)
    @settings(max_examples=20, deadline=None)
    @given(
        key=st.binary(min_size=1, max_size=64),
        context=st.binary(max_size=64),
        size=st.integers(min_value=1, max_value=100),
    )
    def test_kdfa_is_what_the_oracle_derives(self, algorithm, key, context, size):
        """KDFa agrees with an independent implementation over hashes, contexts and lengths."""
        expected = oracle._kdfa(ORACLE_HASHES[algorithm], key, b"STORAGE", context, b"v", size * 8)
        assert kdfa(algorithm, key, b"STORAGE", context, b"v", size * 8) == expected

    @pytest.mark.parametrize("algorithm", ORACLE_HASHES)
    @settings(max_examples=20, deadline=None)
    @given(z=st.binary(min_size=32, max_size=48), size=st.integers(min_value=1, max_value=100))
    def test_kdfe_is_what_the_oracle_derives(self, algorithm, z, size):
        """KDFe agrees with an independent implementation over hashes and lengths."""
        expected = oracle.kdfe(ORACLE_HASHES[algorithm], z, b"IDENTITY\0", b"u", b"v", size * 8)
        assert kdfe(algorithm, z, b"IDENTITY", b"u", b"v", size * 8) == expected

    @pytest.mark.parametrize("bits", [0, -8, 7, 129])
    @pytest.mark.parametrize("derive", [kdfa, kdfe])
    def test_no_part_of_a_byte_is_derived(self, derive, bits):
        """A length that is not whole bytes is a programming error, not a shorter key."""
        with pytest.raises(ValueError, match="whole bytes"):
            derive(HashAlgorithm.SHA256, b"k", b"L", b"", b"", bits)


class TestSharing:
    @pytest.mark.parametrize(
        ("name_alg", "digest"),
        [(HashAlgorithm.SHA256, hashes.SHA256()), (HashAlgorithm.SHA384, hashes.SHA384())],
    )
    @pytest.mark.parametrize("label", [b"IDENTITY", b"DUPLICATE"])
    def test_our_oaep_opens_with_somebody_elses(self, name_alg, digest, label):
        """OAEP with an explicit seed is OAEP: nameAlg as hash, the label with its NUL (rule 22)."""
        shared = share_secret(storage_public(RSA, name_alg=name_alg), label, ENTROPY)
        scheme = padding.OAEP(padding.MGF1(digest), digest, label + b"\0")
        assert RSA.decrypt(shared.encrypted, scheme) == shared.seed
        assert len(shared.seed) == name_alg.size

    @pytest.mark.parametrize("private", [P256, P384])
    def test_the_ecdh_seed_is_found_from_the_private_side(self, private):
        """The holder of the private key derives the same seed from the ephemeral point."""
        public = storage_public(private, name_alg=HashAlgorithm.SHA384, aes_bits=256)
        shared = share_secret(public, b"DUPLICATE", ENTROPY)
        sensitive = _sensitive(private)
        area, _ = types.TPMT_PUBLIC.unmarshal(encode_public(public))
        found = oracle._secret_to_seed(sensitive, area, b"DUPLICATE\0", shared.encrypted)
        assert found == shared.seed

    @pytest.mark.parametrize("private", [P256, RSA])
    def test_entropy_decides_everything(self, private):
        """Same arguments, same bytes; one other bit of entropy, another seed (purity of the core)."""
        public = storage_public(private)
        first = share_secret(public, b"IDENTITY", ENTROPY)
        assert share_secret(public, b"IDENTITY", ENTROPY) == first
        other = bytes([ENTROPY[0] ^ 1]) + ENTROPY[1:]
        changed = share_secret(public, b"IDENTITY", other)
        assert changed.seed != first.seed
        assert changed.encrypted != first.encrypted

    @pytest.mark.parametrize("size", [0, SHARING_ENTROPY - 1, SHARING_ENTROPY + 1])
    def test_too_little_entropy_is_never_stretched(self, size):
        """A wrong amount of randomness is a programming error."""
        with pytest.raises(ValueError, match="entropy"):
            share_secret(storage_public(P256), b"IDENTITY", bytes(size))

    def test_the_seed_does_not_show_in_a_log(self):
        """repr of a shared secret shows nothing (secrets never in logs, S-rules of key hygiene)."""
        shared = share_secret(storage_public(P256), b"IDENTITY", ENTROPY)
        assert repr(shared) == "SharedSecret(…)"
        assert isinstance(shared, SharedSecret)


class TestRefusedKeys:
    @pytest.mark.parametrize(
        "attributes",
        [
            STORAGE_ATTRIBUTES & ~ObjectAttributes.RESTRICTED,
            STORAGE_ATTRIBUTES & ~ObjectAttributes.DECRYPT,
            STORAGE_ATTRIBUTES | ObjectAttributes.SIGN,
            STORAGE_ATTRIBUTES & ~ObjectAttributes.DECRYPT | ObjectAttributes.SIGN,
        ],
    )
    def test_only_storage_keys_get_secrets(self, attributes):
        """A signing key, or one its owner may use to decrypt at will, gets no secret (rule 19)."""
        public = storage_public(P256, attributes=attributes)
        with pytest.raises(AlgorithmUnsupported, match="storage key"):
            share_secret(public, b"IDENTITY", ENTROPY)

    @pytest.mark.parametrize("aes_bits", [0, 56, 192, 512])
    def test_other_cipher_sizes_are_refused(self, aes_bits):
        """Only AES-128 and AES-256: no downgrade through a template."""
        with pytest.raises(AlgorithmUnsupported, match="AES-CFB"):
            share_secret(storage_public(P256, aes_bits=aes_bits), b"IDENTITY", ENTROPY)

    @pytest.mark.parametrize("mode", [TpmAlgorithm.CTR, TpmAlgorithm.ECB, TpmAlgorithm.NULL])
    def test_other_modes_are_refused(self, mode):
        """Only CFB."""
        with pytest.raises(AlgorithmUnsupported, match="AES-CFB"):
            share_secret(storage_public(P256, mode=mode), b"IDENTITY", ENTROPY)

    def test_a_key_without_a_cipher_is_refused(self):
        """No symmetric definition, nothing to protect children with."""
        public = storage_public(P256)
        bare = replace(public, parameters=replace(public.parameters, symmetric=None))
        with pytest.raises(AlgorithmUnsupported, match="AES-CFB"):
            share_secret(bare, b"IDENTITY", ENTROPY)

    @pytest.mark.parametrize("name_alg", [HashAlgorithm.SHA1, HashAlgorithm.SM3_256, None])
    def test_weak_or_missing_name_hashes_are_refused(self, name_alg):
        """nameAlg is SHA-256 or better (rule 19)."""
        shown = name_alg or "null"
        with pytest.raises(AlgorithmUnsupported, match=f"nameAlg {shown} is not") as caught:
            share_secret(storage_public(P256, name_alg=name_alg), b"IDENTITY", ENTROPY)
        assert caught.value.metadata["algorithm"] == shown

    def test_short_rsa_keys_are_refused(self):
        """RSA below 2048 bits gets no secret (rule 14)."""
        weak = rsa.generate_private_key(65537, 1024)  # noqa: S505 - weak on purpose
        with pytest.raises(AlgorithmUnsupported, match="1024"):
            share_secret(storage_public(weak), b"IDENTITY", ENTROPY)

    def test_curves_without_an_order_are_refused(self):
        """P-521 is not used for storage keys here."""
        private = ec.derive_private_key(5, ec.SECP521R1())
        with pytest.raises(AlgorithmUnsupported, match="secp521r1"):
            share_secret(storage_public(private), b"IDENTITY", ENTROPY)


class TestOuterWrapping:
    @pytest.mark.parametrize(
        ("name_alg", "aes_bits"), [(HashAlgorithm.SHA256, 128), (HashAlgorithm.SHA384, 256)]
    )
    def test_the_oracle_finds_the_same_mac_and_plaintext(self, name_alg, aes_bits):
        """MAC over ciphertext and name, AES-CFB from a zero IV, keys by KDFa (rule 22)."""
        public = storage_public(P256, name_alg=name_alg, aes_bits=aes_bits)
        seed, content = bytes(name_alg.size), b"some content of no block size"
        wrapped = wrap_outer(public, seed, NAME, content)
        mac, encrypted = wrapped[2 : 2 + name_alg.size], wrapped[2 + name_alg.size :]
        algorithm = ORACLE_HASHES[name_alg]
        mac_key = oracle._kdfa(algorithm, seed, b"INTEGRITY", b"", b"", name_alg.size * 8)
        oracle._check_hmac(oracle._get_digest(algorithm), mac_key, encrypted, NAME, mac)
        key = oracle._kdfa(algorithm, seed, b"STORAGE", NAME, b"", aes_bits)
        cipher, mode, _ = oracle._symdef_to_crypt(_aes_cfb())
        assert oracle._decrypt(cipher, mode, key, encrypted) == content

    def test_another_name_gives_another_mac_and_cipher(self):
        """Wrapped for one object, it is noise for another."""
        public = storage_public(P256)
        other = wrap_outer(public, bytes(32), NAME[:-1] + b"\xff", b"content")
        mac_key = oracle._kdfa(TPM2_ALG.SHA256, bytes(32), b"INTEGRITY", b"", b"", 256)
        with pytest.raises(InvalidSignature):
            oracle._check_hmac(hashes.SHA256, mac_key, other[34:], NAME, other[2:34])
        assert other != wrap_outer(public, bytes(32), NAME, b"content")


class TestMakeCredential:
    @pytest.mark.parametrize("secret", [b"", bytes(33)])
    def test_secrets_that_the_tpm_could_not_return_are_refused(self, secret):
        """At most a digest of the EK's nameAlg, and never nothing (rule 21)."""
        with pytest.raises(InvalidRequest, match="1 to 32"):
            make_credential(storage_public(RSA), NAME, secret, bytes(CREDENTIAL_ENTROPY))

    def test_an_ek_of_sha384_returns_48_bytes(self):
        """The limit follows the EK's nameAlg, not a constant."""
        public = storage_public(P384, name_alg=HashAlgorithm.SHA384, aes_bits=256)
        made = make_credential(public, NAME, bytes(48), ENTROPY)
        assert len(made.blob) == 2 + 2 + 48 + 2 + 48

    def test_a_signing_ek_gets_no_credential(self):
        """An "EK" that is not a storage key is refused before anything is encrypted (rule 19)."""
        public = storage_public(P256, attributes=ObjectAttributes.SIGN)
        with pytest.raises(AlgorithmUnsupported):
            make_credential(public, NAME, bytes(32), ENTROPY)

    def test_the_name_is_part_of_the_credential(self):
        """A credential for one AK name is other bytes for another (rule 20)."""
        public = storage_public(P256)
        first = make_credential(public, NAME, bytes(32), ENTROPY)
        second = make_credential(public, NAME[:-1] + b"\xff", bytes(32), ENTROPY)
        assert first.blob != second.blob
        assert first.encrypted_secret == second.encrypted_secret


def _sensitive(private):
    scalar = private.private_numbers().private_value
    size = (private.curve.key_size + 7) // 8
    sensitive = types.TPMU_SENSITIVE_COMPOSITE(
        ecc=types.TPM2B_ECC_PARAMETER(buffer=scalar.to_bytes(size, "big"))
    )
    return types.TPMT_SENSITIVE(sensitiveType=TPM2_ALG.ECC, sensitive=sensitive)


def _aes_cfb():
    return types.TPMT_SYM_DEF_OBJECT.parse("aes128cfb")
