"""Wrapping of VM keys under a KEK."""

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from trustauthority.adapters.kms.envelope import (
    MAX_WRAPPED_KEY,
    PASSPHRASE_LENGTH,
    passphrase,
    seal,
    seal_in_two_layers,
    unseal,
    unseal_in_two_layers,
    wipe,
)
from trustauthority.errors import KmsUnavailable
from trustauthority.model.grant import MAX_VM_KEY

KEK = bytes(range(32))
NONCE = bytes(range(12))
AAD = b'{"vm":"vm-1"}'
WRAPPED = seal(KEK, b"secret", AAD, NONCE)


class TestWrap:
    def test_the_format_is_the_documented_one(self):
        """Known answer: nonce, AES-256-GCM with the AAD as it is (docs/reference/kms.md)."""
        assert NONCE + AESGCM(KEK).encrypt(NONCE, b"secret", AAD) == WRAPPED

    @settings(max_examples=50, deadline=None)
    @given(vm_key=st.binary(min_size=1, max_size=MAX_VM_KEY), aad=st.binary(max_size=200))
    def test_what_was_wrapped_is_unwrapped(self, vm_key, aad):
        """Every VM key comes back under its KEK and AAD."""
        assert unseal(KEK, seal(KEK, vm_key, aad, NONCE), aad) == vm_key

    @pytest.mark.parametrize("size", [0, MAX_VM_KEY + 1])
    def test_a_key_of_a_wrong_size_is_a_bug(self, size):
        """A VM key is a passphrase of at most 4 KiB (design 8)."""
        with pytest.raises(ValueError, match="4096"):
            seal(KEK, bytes(size), AAD, NONCE)

    @pytest.mark.parametrize("size", [0, 11, 13])
    def test_a_nonce_of_a_wrong_size_is_a_bug(self, size):
        """GCM with another nonce length has other bounds."""
        with pytest.raises(ValueError, match="nonce"):
            seal(KEK, b"secret", AAD, bytes(size))

    @pytest.mark.parametrize("size", [0, 16, 24, 31, 33])
    def test_a_short_kek_never_encrypts(self, size):
        """AES-128 would be accepted by the library; we do not downgrade."""
        with pytest.raises(KmsUnavailable, match="AES-256"):
            seal(bytes(size), b"secret", AAD, NONCE)


class TestUnwrap:
    def test_another_kek_opens_nothing(self):
        """N56: fail closed, with the cause named."""
        with pytest.raises(KmsUnavailable, match="wrong key") as caught:
            unseal(bytes(32), WRAPPED, AAD)
        assert caught.value.__suppress_context__

    @pytest.mark.parametrize("aad", [b"", b'{"vm":"vm-2"}', AAD + b" "])
    def test_another_aad_opens_nothing(self, aad):
        """N56: the blob of one VM, epoch or provider can't be passed off as another's."""
        with pytest.raises(KmsUnavailable, match="does not open"):
            unseal(KEK, WRAPPED, aad)

    @pytest.mark.parametrize("bit", range(0, 8 * len(WRAPPED), 3))
    def test_no_changed_bit_opens(self, bit):
        """Nonce, ciphertext and tag are all bound."""
        changed = bytearray(WRAPPED)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(KmsUnavailable, match="wrong key"):
            unseal(KEK, bytes(changed), AAD)

    @pytest.mark.parametrize("size", [0, 1, 13, 27, 28, MAX_VM_KEY + 29])
    def test_a_blob_of_a_wrong_size_is_refused(self, size):
        """Truncated rows of a database are no keys."""
        with pytest.raises(KmsUnavailable, match="length"):
            unseal(KEK, b"\x01" * size, AAD)

    @pytest.mark.parametrize("size", [16, 24])
    def test_a_short_kek_never_decrypts(self, size):
        """A KMS that hands out AES-128 is not believed."""
        with pytest.raises(KmsUnavailable, match="AES-256"):
            unseal(bytes(size), WRAPPED, AAD)


class TestPassphrase:
    def test_it_is_43_characters_that_can_be_typed(self):
        """A VM key is a LUKS passphrase: no newline, no NUL, 256 bits."""
        made = passphrase(bytes(range(220, 252)))
        assert isinstance(made, bytearray)
        assert len(made) == PASSPHRASE_LENGTH
        assert made.replace(b"-", b"").replace(b"_", b"").isalnum()

    def test_no_bit_is_lost(self):
        """All 32 random bytes are in it."""
        assert len({bytes(passphrase(bytes([n]) * 32)) for n in range(256)}) == 256

    @pytest.mark.parametrize("size", [0, 31, 33])
    def test_less_entropy_is_a_bug(self, size):
        """Randomness is never stretched."""
        with pytest.raises(ValueError, match="32 random bytes"):
            passphrase(bytes(size))

    def test_wiping_overwrites_in_place(self):
        """The same memory, not a new object, is zeroed."""
        secret = bytearray(b"secret")
        view = memoryview(secret)
        wipe(secret)
        assert bytes(view) == bytes(6)


class TestTwoLayers:
    """The one-time key is wrapped by a KMS; here by a KMS that does as it is told."""

    def test_the_format_is_the_documented_one(self):
        """Known answer from docs/reference/kms.md, so that another program can open it."""
        body = seal_in_two_layers(bytearray(b"secret"), AAD, wrap=bytes)
        head, nonce, sealed = body[:34], body[34:46], body[46:]
        assert head[:2] == b"\x00\x20"
        assert AESGCM(head[2:]).decrypt(nonce, sealed, AAD + head) == b"secret"

    @settings(max_examples=30, deadline=None)
    @given(vm_key=st.binary(min_size=1, max_size=MAX_VM_KEY), aad=st.binary(max_size=200))
    def test_what_was_wrapped_is_unwrapped(self, vm_key, aad):
        """Every VM key comes back, whatever a KMS makes of the one-time key."""
        body = seal_in_two_layers(bytearray(vm_key), aad, lambda key: b"wrapped:" + bytes(key))
        assert unseal_in_two_layers(body, aad, lambda w: bytearray(w[8:])) == vm_key

    def test_the_one_time_key_is_fresh_and_wiped(self):
        """32 random bytes for each wrapping, gone afterwards, also when the KMS fails."""
        seen = []

        def wrap(key):
            seen.append((key, bytes(key)))
            if len(seen) == 3:
                raise KmsUnavailable("down")
            return bytes(key)

        for _ in range(2):
            seal_in_two_layers(bytearray(b"secret"), AAD, wrap)
        with pytest.raises(KmsUnavailable):
            seal_in_two_layers(bytearray(b"secret"), AAD, wrap)
        assert all(key == bytes(32) for key, _ in seen)
        assert len({made for _, made in seen}) == 3

    def test_an_answer_that_ignores_everything_opens_nothing(self):
        """N56: a KMS that unwraps to another key, or to the right one for a changed blob."""
        body = seal_in_two_layers(bytearray(b"secret"), AAD, wrap=bytes)
        with pytest.raises(KmsUnavailable, match="wrong key"):
            unseal_in_two_layers(body, AAD, lambda _: bytearray(32))
        key = body[2:34]
        changed = body[:10] + bytes([body[10] ^ 1]) + body[11:]
        with pytest.raises(KmsUnavailable, match="wrong key"):
            unseal_in_two_layers(changed, AAD, lambda _: bytearray(key))
        with pytest.raises(KmsUnavailable, match="wrong key"):
            unseal_in_two_layers(body, AAD + b" ", lambda _: bytearray(key))

    @pytest.mark.parametrize("size", [0, 16, 24, 31, 33])
    def test_a_one_time_key_of_a_wrong_size_is_refused(self, size):
        """No downgrade to a shorter key."""
        body = seal_in_two_layers(bytearray(b"secret"), AAD, wrap=bytes)
        with pytest.raises(KmsUnavailable, match="AES-256"):
            unseal_in_two_layers(body, AAD, lambda _: bytearray(size))

    @pytest.mark.parametrize("answer", [b"", bytes(MAX_WRAPPED_KEY + 1)])
    def test_a_wrapped_key_of_a_wrong_size_is_refused(self, answer):
        """A KMS does not make us keep what it likes."""
        with pytest.raises(KmsUnavailable, match="length"):
            seal_in_two_layers(bytearray(b"secret"), AAD, lambda _: answer)

    @pytest.mark.parametrize(
        "body",
        [
            *(b"", b"\x00", b"\x00\x00", b"\x00\x00" + bytes(60)),
            *(b"\x00\x20" + bytes(32), b"\x00\x20" + bytes(40), b"\xff\xff" + bytes(3000)),
        ],
    )
    def test_a_body_that_is_none_is_refused(self, body):
        """Lengths come from the database and are checked against what is there."""
        with pytest.raises(KmsUnavailable, match=r"length|wrong key"):
            unseal_in_two_layers(body, AAD, lambda _: bytearray(32))

    @pytest.mark.parametrize("size", [0, MAX_VM_KEY + 1])
    def test_a_key_of_a_wrong_size_never_reaches_the_kms(self, size):
        """A VM key has 1 to 4096 bytes (design 8)."""
        with pytest.raises(ValueError, match="4096"):
            seal_in_two_layers(bytearray(size), AAD, pytest.fail)
