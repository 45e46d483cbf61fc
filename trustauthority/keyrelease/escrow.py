"""The format of escrowed VM keys: from bytes to a VM key, with the offline private key.

Stage: outside of the release. Trusts nothing in a blob: its header only says which key and VM to
try, and HPKE decides. Guarantees that a VM key comes out only with the private key of its recipient, and only
as the key of the VM, epoch and authority that it was sealed for. What it does not do: seal (that takes
randomness, ``adapters.kms.escrow``), or read files.
Source: docs/reference/escrow.md; RFC 9180 (base mode); draft-ietf-hpke-pq for KEM 0x647a.
"""

import binascii
import hashlib
import hmac
from base64 import b64decode, b64encode
from textwrap import wrap

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from trustauthority.codec.tpm_reader import encode_sized
from trustauthority.errors import EscrowRejected, MalformedEscrow
from trustauthority.model.escrow import EscrowBinding, EscrowedKey, EscrowKey
from trustauthority.model.grant import MAX_VM_KEY
from trustauthority.model.identifiers import VmId

MAGIC = b"TAES"
VERSION = 1
KEM_MLKEM768_X25519 = 0x647A
KDF_HKDF_SHA256 = 0x0001
AEAD_AES_256_GCM = 0x0002
"""Identifiers of the HPKE registry."""
ALGORITHMS = b"".join(
    number.to_bytes(2, "big")
    for number in (VERSION, KEM_MLKEM768_X25519, KDF_HKDF_SHA256, AEAD_AES_256_GCM)
)
SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)

PUBLIC_SIZE = 1184 + 32
SEED_SIZE = 64
PRIVATE_SIZE = SEED_SIZE + 32
"""ML-KEM-768 seed (d ‖ z) and X25519 private key."""
KEY_ID_SIZE = 32
CHALLENGE_SIZE = 32
"""Bytes of a drill's challenge."""
ANSWER_SIZE = 16
"""Bytes of a drill's answer."""
MAX_ESCROWED = 8192
"""Bytes of the longest blob: header, encapsulated key and a VM key of 4 KiB."""

_ENCAPSULATED = 1088 + 32
_TAG = 16
_KEY_LABEL = b"trustauthority escrow key v1\0"
_DRILL_LABEL = b"trustauthority recovery drill v1\0"
_ARMOUR = "TRUSTAUTHORITY ESCROW PUBLIC KEY"


# --- the public key -----------------------------------------------------------------------------


def escrow_key(raw: bytes) -> EscrowKey:
    """Take in a public key.

    Raises:
        MalformedEscrow: wrong length, or not a key of both algorithms.
    """
    if len(raw) != PUBLIC_SIZE:
        raise MalformedEscrow(f"an escrow public key has {PUBLIC_SIZE} bytes, this has {len(raw)}")
    hpke_public(raw)
    key_id = hashlib.sha256(_KEY_LABEL + ALGORITHMS + raw).digest()
    return EscrowKey(raw=raw, key_id=key_id)


def hpke_public(raw: bytes) -> MLKEM768X25519PublicKey:
    """The key as the library takes it."""
    try:
        return MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(raw[:-32]),
            X25519PublicKey.from_public_bytes(raw[-32:]),
        )
    except ValueError as error:
        raise MalformedEscrow("these bytes are no public key of ML-KEM-768 and X25519") from error


def public_of(private: bytes | bytearray) -> EscrowKey:
    """The public half of a private key of 96 bytes."""
    mlkem, x25519 = _private_parts(private)
    return escrow_key(
        mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
    )


def encode_escrow_key(key: EscrowKey) -> str:
    """The text form of a public key, for a file."""
    return armour(_ARMOUR, ALGORITHMS + key.raw)


def decode_escrow_key(text: str) -> EscrowKey:
    """Read the text form of a public key.

    Raises:
        MalformedEscrow: anything else.
    """
    content = unarmour(_ARMOUR, text)
    if not content.startswith(ALGORITHMS):
        raise MalformedEscrow("the escrow public key is of another version or algorithm")
    return escrow_key(content[len(ALGORITHMS) :])


def armour(name: str, content: bytes) -> str:
    """Bytes between BEGIN and END lines, in base64."""
    lines = wrap(b64encode(content).decode(), 64)
    return "\n".join((f"-----BEGIN {name}-----", *lines, f"-----END {name}-----", ""))


def unarmour(name: str, text: str) -> bytes:
    """What ``armour`` made. Raises MalformedEscrow for anything else."""
    begin, end = f"-----BEGIN {name}-----", f"-----END {name}-----"
    lines = [line.strip() for line in text.strip().splitlines()]
    if len(lines) < 3 or lines[0] != begin or lines[-1] != end:
        raise MalformedEscrow(f"not a file with {begin}")
    try:
        return b64decode("".join(lines[1:-1]), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedEscrow(
            "the key file is not base64 between its first and last line"
        ) from error


# --- blobs --------------------------------------------------------------------------------------


def escrow_header(binding: EscrowBinding, recipient: bytes) -> bytes:
    """The bytes before the ciphertext, which are also the ``info`` of the encryption."""
    return (
        MAGIC
        + ALGORITHMS
        + recipient
        + encode_sized(binding.origin.encode())
        + encode_sized(binding.vm_id.encode())
        + binding.key_epoch.to_bytes(8, "big")
    )


def decode_escrowed(blob: bytes) -> EscrowedKey:
    """Take a blob apart; nothing in it is believed before it opens.

    Raises:
        MalformedEscrow: not an escrowed key of this version and these algorithms, or cut.
    """
    start = MAGIC + ALGORITHMS
    if not blob.startswith(start) or len(blob) > MAX_ESCROWED:
        raise MalformedEscrow("not an escrowed VM key of a version and algorithms known here")
    recipient, offset = _take(blob, len(start), KEY_ID_SIZE)
    origin, offset = _take_text(blob, offset)
    vm_id, offset = _take_text(blob, offset)
    epoch, offset = _take(blob, offset, 8)
    ciphertext = blob[offset:]
    if not _TAG < len(ciphertext) - _ENCAPSULATED <= MAX_VM_KEY + _TAG:
        raise MalformedEscrow("the escrowed VM key was cut, or bytes were added")
    try:
        binding = EscrowBinding(
            origin=origin, vm_id=VmId(vm_id), key_epoch=int.from_bytes(epoch, "big")
        )
    except ValueError as error:
        raise MalformedEscrow(str(error)) from error
    return EscrowedKey(
        binding=binding, recipient=recipient, header=blob[:offset], ciphertext=ciphertext
    )


def open_escrowed(blob: bytes, private: bytes | bytearray, *, expected: EscrowBinding) -> bytearray:
    """Open a blob as the key of one VM; the caller wipes it.

    Args:
        blob: an escrowed key.
        private: 96 bytes, see ``PRIVATE_SIZE``.
        expected: what the key shall be of; a genuine blob of something else is refused.

    Raises:
        MalformedEscrow: the blob is none.
        EscrowRejected: sealed to another key, of another VM, epoch or authority, or changed.
    """
    sealed = decode_escrowed(blob)
    if sealed.binding != expected:
        found = sealed.binding
        raise EscrowRejected(
            f"the blob holds key epoch {found.key_epoch} of VM {found.vm_id!r} of {found.origin},"
            f" not epoch {expected.key_epoch} of {expected.vm_id!r} of {expected.origin}",
            vm=expected.vm_id,
        )
    mine = public_of(private).key_id
    if sealed.recipient != mine:
        raise EscrowRejected(
            f"VM {expected.vm_id!r} is sealed to escrow key {sealed.recipient.hex()[:16]},"
            f" and this private key is {mine.hex()[:16]}",
            vm=expected.vm_id,
        )
    mlkem, x25519 = _private_parts(private)
    try:
        opened = SUITE.decrypt(
            sealed.ciphertext, MLKEM768X25519PrivateKey(mlkem, x25519), info=sealed.header
        )
    except InvalidTag:
        raise EscrowRejected(
            f"the blob of VM {expected.vm_id!r} does not open: it was changed", vm=expected.vm_id
        ) from None
    return bytearray(opened)


# --- what the key is used for -------------------------------------------------------------------


def drill_answer(vm_key: bytes | bytearray, binding: EscrowBinding, challenge: bytes) -> bytes:
    """What only somebody with the VM key can answer to a challenge, without showing the key.

    Slow on purpose (scrypt, 32 MiB): an imported passphrase may be weak, and answers are not secret.
    """
    if len(challenge) != CHALLENGE_SIZE:
        raise MalformedEscrow(f"a drill's challenge has {CHALLENGE_SIZE} bytes")
    salt = hashlib.sha256(_DRILL_LABEL + challenge + escrow_header(binding, b"")).digest()
    return Scrypt(salt=salt, length=ANSWER_SIZE, n=2**15, r=8, p=1).derive(bytes(vm_key))


def disk_passphrase(vm_key: bytes | bytearray, vm_id: str) -> bytes:
    """The LUKS passphrase of a VM's disks. Source: docs/reference/hostagent.md, libvirt."""
    return _derived(vm_key, b"trustauthority disk passphrase v1\0", vm_id)


def vtpm_passphrase(vm_key: bytes | bytearray, vm_id: str) -> bytes:
    """The passphrase of a VM's vTPM state. Source: docs/reference/hostagent.md, libvirt."""
    return _derived(vm_key, b"trustauthority vtpm passphrase v1\0", vm_id)


def _derived(vm_key: bytes | bytearray, label: bytes, vm_id: str) -> bytes:
    return hmac.new(vm_key, label + vm_id.encode(), "sha256").hexdigest().encode()


def _private_parts(private: bytes | bytearray) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
    if len(private) != PRIVATE_SIZE:
        raise MalformedEscrow(f"an escrow private key has {PRIVATE_SIZE} bytes")
    seed, scalar = bytes(private[:SEED_SIZE]), bytes(private[SEED_SIZE:])
    return MLKEM768PrivateKey.from_seed_bytes(seed), X25519PrivateKey.from_private_bytes(scalar)


def _take(blob: bytes, offset: int, size: int) -> tuple[bytes, int]:
    end = offset + size
    if end > len(blob):
        raise MalformedEscrow("the escrowed VM key is cut within its header")
    return blob[offset:end], end


def _take_text(blob: bytes, offset: int) -> tuple[str, int]:
    size, offset = _take(blob, offset, 2)
    text, offset = _take(blob, offset, int.from_bytes(size, "big"))
    try:
        return text.decode("utf-8"), offset
    except UnicodeDecodeError as error:
        raise MalformedEscrow("a name in the escrowed VM key is not UTF-8") from error
