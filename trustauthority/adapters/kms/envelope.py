"""VM keys under a key that is here: nonce ‖ AES-256-GCM(key, VM key, AAD).

Stage: adapter, run in the key room's child only, for providers whose KMS can't bind an AAD itself.
Trusts nothing about the key or the bytes: GCM's tag says whether both and the AAD belong together.
Guarantees that a wrong key, AAD or a changed byte opens nothing, and that its own copies of a key are
bytearrays which the caller wipes. Does not talk to a KMS. Source: docs/reference/kms.md; NIST SP 800-38D.
"""

from base64 import b64encode

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from trustauthority.errors import KmsUnavailable
from trustauthority.model.grant import MAX_VM_KEY

KEK_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
_OVERHEAD = NONCE_BYTES + TAG_BYTES

WRONG_KEY = "the KMS gave a key that does not open this VM key: wrong key"
"""Also when another VM's blob was put in its place: the tag does not tell which."""

PASSPHRASE_ENTROPY = 32
PASSPHRASE_LENGTH = 43
"""Characters of a new VM key: 32 random bytes in base64url without padding."""


def seal(key: bytes | bytearray, vm_key: bytes | bytearray, aad: bytes, nonce: bytes) -> bytes:
    """Encrypt a VM key.

    Args:
        key: 32 bytes: the KEK, or a one-time key that the KEK wraps.
        vm_key: 1 to 4096 bytes.
        aad: what the wrapping is bound to; the same bytes are needed to open it.
        nonce: 12 fresh random bytes; a key is good for 2^32 of them.

    Returns: nonce, ciphertext and tag.
    """
    _check_key(key)
    check_vm_key(vm_key)
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"a nonce has {NONCE_BYTES} bytes")
    return nonce + AESGCM(key).encrypt(nonce, vm_key, aad)


def unseal(key: bytes | bytearray, sealed: bytes, aad: bytes) -> bytearray:
    """Decrypt a VM key; the caller wipes it.

    Raises:
        KmsUnavailable: the key, the AAD or the bytes are not those of the wrapping (N56).
    """
    _check_key(key)
    if not _OVERHEAD < len(sealed) <= MAX_VM_KEY + _OVERHEAD:
        raise KmsUnavailable("the wrapped VM key has a wrong length")
    nonce, ciphertext = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
    vm_key = bytearray(len(ciphertext) - TAG_BYTES)
    try:
        AESGCM(key).decrypt_into(nonce, ciphertext, aad, vm_key)
    except InvalidTag:
        wipe(vm_key)
        raise KmsUnavailable(WRONG_KEY) from None
    return vm_key


def check_vm_key(vm_key: bytes | bytearray) -> None:
    """Raise ValueError for what is no VM key: empty, or longer than 4 KiB."""
    if not 0 < len(vm_key) <= MAX_VM_KEY:
        raise ValueError(f"a VM key has 1 to {MAX_VM_KEY} bytes")


def passphrase(entropy: bytes | bytearray) -> bytearray:
    """A new VM key, to be typed into LUKS: base64url of 32 random bytes; the caller wipes it."""
    if len(entropy) != PASSPHRASE_ENTROPY:
        raise ValueError(f"a VM key is made of {PASSPHRASE_ENTROPY} random bytes")
    return bytearray(b64encode(entropy, altchars=b"-_")).rstrip(b"=")


def wipe(secret: bytearray) -> None:
    """Overwrite a secret in place."""
    secret[:] = bytes(len(secret))


def _check_key(key: bytes | bytearray) -> None:
    if len(key) != KEK_BYTES:
        raise KmsUnavailable("the KMS gave a key that is not an AES-256 key")
