"""VM keys under a KEK: version ‖ nonce ‖ AES-256-GCM(KEK, key, AAD).

Stage: adapter, run in the key room's child only. Trusts nothing about the KEK or the blob: GCM's tag
says whether both and the AAD belong together. Guarantees that a wrong KEK, AAD or a changed byte
opens nothing, and that its own copies of a key are bytearrays which the caller wipes. Does not talk
to a KMS. Source: docs/reference/kms.md; NIST SP 800-38D.
"""

from base64 import b64encode

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from trustauthority.errors import KmsUnavailable
from trustauthority.model.grant import MAX_VM_KEY

VERSION = 1
KEK_BYTES = 32
NONCE_BYTES = 12
_TAG_BYTES = 16
_OVERHEAD = 1 + NONCE_BYTES + _TAG_BYTES
MAX_WRAPPED = MAX_VM_KEY + _OVERHEAD
"""Bytes of the longest wrapped VM key."""

PASSPHRASE_ENTROPY = 32
PASSPHRASE_LENGTH = 43
"""Characters of a new VM key: 32 random bytes in base64url without padding."""


def wrap_vm_key(
    kek: bytes | bytearray, vm_key: bytes | bytearray, aad: bytes, nonce: bytes
) -> bytes:
    """Encrypt a VM key under a KEK.

    Args:
        kek: 32 bytes.
        vm_key: 1 to 4096 bytes.
        aad: what the wrapping is bound to; the same bytes are needed to open it.
        nonce: 12 fresh random bytes; a KEK is good for 2^32 of them.
    """
    _check_kek(kek)
    if not 0 < len(vm_key) <= MAX_VM_KEY:
        raise ValueError(f"a VM key has 1 to {MAX_VM_KEY} bytes")
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"a nonce has {NONCE_BYTES} bytes")
    return bytes((VERSION,)) + nonce + AESGCM(kek).encrypt(nonce, vm_key, aad)


def unwrap_vm_key(kek: bytes | bytearray, wrapped: bytes, aad: bytes) -> bytearray:
    """Decrypt a VM key; the caller wipes it.

    Raises:
        KmsUnavailable: the KEK, the AAD or the blob is not the one of the wrapping (N56).
    """
    _check_kek(kek)
    if not _OVERHEAD < len(wrapped) <= MAX_WRAPPED:
        raise KmsUnavailable("the wrapped VM key has a wrong length")
    if wrapped[0] != VERSION:
        raise KmsUnavailable("the VM key is wrapped in a format that this version does not know")
    nonce, ciphertext = wrapped[1 : 1 + NONCE_BYTES], wrapped[1 + NONCE_BYTES :]
    vm_key = bytearray(len(ciphertext) - _TAG_BYTES)
    try:
        AESGCM(kek).decrypt_into(nonce, ciphertext, aad, vm_key)
    except InvalidTag:
        wipe(vm_key)
        raise KmsUnavailable(
            "the KMS gave a key that does not open this VM key: wrong key"
        ) from None
    return vm_key


def passphrase(entropy: bytes | bytearray) -> bytearray:
    """A new VM key, to be typed into LUKS: base64url of 32 random bytes; the caller wipes it."""
    if len(entropy) != PASSPHRASE_ENTROPY:
        raise ValueError(f"a VM key is made of {PASSPHRASE_ENTROPY} random bytes")
    return bytearray(b64encode(entropy, altchars=b"-_")).rstrip(b"=")


def wipe(secret: bytearray) -> None:
    """Overwrite a secret in place."""
    secret[:] = bytes(len(secret))


def _check_kek(kek: bytes | bytearray) -> None:
    if len(kek) != KEK_BYTES:
        raise KmsUnavailable("the KMS gave a key that is not an AES-256 key")
