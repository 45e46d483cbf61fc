"""VM keys under a key that is here: nonce ‖ AES-256-GCM(key, VM key, AAD).

Stage: adapter, run in the key room's child only. The key is a KEK (KMIP), or a one-time key that the
KMS wraps: two layers, so that what the KMS unwraps is checked by a tag that the KMS can't make.
Trusts nothing about the key or the bytes: GCM's tag says whether both and the AAD belong together.
Guarantees that a wrong key, AAD or a changed byte opens nothing, and that its own copies of a key are
bytearrays which the caller wipes. Does not talk to a KMS. Source: docs/reference/kms.md; NIST SP 800-38D.
"""

import os
from base64 import b64encode
from collections.abc import Callable

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

MAX_WRAPPED_KEY = 2048
"""Bytes of a wrapped one-time key; KMSes answer with some 40 to 300."""

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


def seal_in_two_layers(vm_key: bytearray, aad: bytes, wrap: Callable[[bytearray], bytes]) -> bytes:
    """Encrypt a VM key under a one-time key and let the KMS wrap that.

    The wrapped key is authenticated by the inner layer too: not every KMS does that.

    Args:
        vm_key: 1 to 4096 bytes.
        aad: what the inner layer is bound to.
        wrap: the KMS; it gets 32 bytes that are wiped afterwards, and binds the AAD if it can.

    Returns: u16 length ‖ what ``wrap`` answered ‖ nonce, ciphertext and tag.
    """
    check_vm_key(vm_key)
    one_time = bytearray(os.urandom(KEK_BYTES))
    try:
        wrapped_key = wrap(one_time)
        if not 0 < len(wrapped_key) <= MAX_WRAPPED_KEY:
            raise KmsUnavailable("the KMS answered with a wrapped key of a wrong length")
        head = len(wrapped_key).to_bytes(2, "big") + wrapped_key
        return head + seal(one_time, vm_key, aad + head, os.urandom(NONCE_BYTES))
    finally:
        wipe(one_time)


def unseal_in_two_layers(
    body: bytes, aad: bytes, unwrap: Callable[[bytes], bytearray]
) -> bytearray:
    """Decrypt a VM key; the caller wipes it.

    A KMS that answers with another key, for another AAD or for a changed blob is found out here.

    Raises:
        KmsUnavailable: as ``unwrap``, or the key that it answered opens nothing (N56).
    """
    end = 2 + int.from_bytes(body[:2], "big")
    head, sealed = body[:end], body[end:]
    if not 2 < end <= 2 + MAX_WRAPPED_KEY or not sealed:
        raise KmsUnavailable("the wrapped VM key has a wrong length")
    one_time = unwrap(head[2:])
    try:
        return unseal(one_time, sealed, aad + head)
    finally:
        wipe(one_time)


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
