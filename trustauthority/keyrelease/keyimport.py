"""An existing passphrase on its way into the key room: sealed by the client, opened in the child only.

What it is: the format. What it trusts: nothing. What it guarantees: a sealed key opens for the VM that
it was sealed for only, and only with the import key's private part, which is in a file that the key
room's child reads. What it does not do: draw randomness; ``seal_import`` uses the library's.
Source: RFC 9180, base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM.

    sealed = 0x01 ‖ enc bytes[32] ‖ ciphertext;  info = "ta-key-import-v1" 0x0A VM
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from trustauthority.errors import InvalidRequest
from trustauthority.model.grant import MAX_VM_KEY

VERSION = b"\x01"
PUBLIC_BYTES = 32
_OVERHEAD = len(VERSION) + PUBLIC_BYTES + 16
MAX_SEALED = MAX_VM_KEY + _OVERHEAD
"""Bytes of the longest sealed key."""
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def seal_import(vm_key: bytes, public: bytes, vm: str) -> bytes:
    """Seal a passphrase to the authority's import key.

    Args:
        vm_key: 1 to 4096 bytes.
        public: X25519 public key, 32 bytes.
        vm: the VM that it will be the key of.

    Raises:
        InvalidRequest: too long or empty, or no such public key.
    """
    if not 0 < len(vm_key) <= MAX_VM_KEY:
        raise InvalidRequest(f"a VM key has 1 to {MAX_VM_KEY} bytes", field="key")
    try:
        key = X25519PublicKey.from_public_bytes(public)
    except ValueError as error:
        raise InvalidRequest("the authority showed no import key", field="public_key") from error
    return VERSION + _SUITE.encrypt(vm_key, key, info=_info(vm))


def check_sealed(sealed: bytes) -> None:
    """Refuse what can't be a sealed key, before anybody is asked about it. Raises InvalidRequest."""
    if not sealed.startswith(VERSION) or not _OVERHEAD < len(sealed) <= MAX_SEALED:
        raise InvalidRequest(
            "sealed_key: of a format or length that is not known", field="sealed_key"
        )


def open_import(sealed: bytes, private: X25519PrivateKey, vm: str) -> bytearray:
    """Open a sealed passphrase; the caller wipes it. Only the key room's child does this.

    Raises:
        InvalidRequest: it was sealed for another VM or authority, or was changed on its way.
    """
    check_sealed(sealed)
    try:
        return bytearray(_SUITE.decrypt(sealed[1:], private, info=_info(vm)))
    except (InvalidTag, ValueError) as error:
        raise InvalidRequest(
            "sealed_key: sealed for another VM or authority, or changed on its way",
            field="sealed_key",
        ) from error


def _info(vm: str) -> bytes:
    return b"ta-key-import-v1\n" + vm.encode()
