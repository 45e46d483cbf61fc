"""Read, check and open a KeyGrant v1: from received bytes to a VM key.

Stage: between the authority's reply and the hypervisor. Trusts the release keys pinned at enrolment
and what this agent itself asked for; nothing in the bytes before their signature is checked.
Guarantees that a key comes out only of the grant that was asked for (VM, host, storage parent,
request, purpose, epochs not lower than known), unmodified, and only while the TPM agrees. Written
from docs/reference/keygrant.md alone: it shares no code with the authority that makes grants.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hostagent.sealed import SealedSecret, TpmError

_MAGIC = b"TAKG"
_ALGORITHMS = (1, 0x000B, 1, 1)
"""Version, sealing hash (TPM_ALG_SHA256), cipher (AES-256-GCM), signature (ECDSA P-256, SHA-256)."""
_PURPOSES = {1: "run", 2: "prepare", 3: "share"}
_SIGNATURE = 64
_NONCE = 12
_TAG = 16
_KEY = 32
_MAX_VM_KEY = 4096
_MAX_WIRE = 16384
"""Bytes of the longest grant: a 4 KiB key, RSA-4096 and every PCR bank fit twice."""


class GrantRefused(Exception):
    """A grant that is not the one asked for, was changed, or does not open. ``reason`` is stable."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantRequest:
    """What this agent asked for, and the least it accepts."""

    vm_id: str
    host_id: str
    storage_name: bytes
    """TPM name of the storage parent."""
    request_id: str
    purpose: str
    """``run``, ``prepare`` or ``share``."""
    lowest_grant_epoch: int = 0
    """The highest grant epoch seen for this VM."""
    lowest_key_epoch: int = 0
    """The highest key epoch seen for this VM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedGrant:
    """A grant whose signature is good. It still has to be the right one."""

    vm_id: str
    host_id: str
    storage_name: bytes
    grant_epoch: int
    key_epoch: int
    request_id: str
    purpose: str
    clock_bound: int
    """TPM clock in milliseconds from which on it does not open."""
    sealed: SealedSecret
    nonce: bytes
    ciphertext: bytes = field(repr=False)
    associated_data: bytes = field(repr=False)


class StorageParent(Protocol):
    """The storage parent as the TPM's owner holds it."""

    name: bytes
    """TPM name."""


ParentT = TypeVar("ParentT", bound=StorageParent)
ParentT_contra = TypeVar("ParentT_contra", bound=StorageParent, contravariant=True)


class Unsealer(Protocol[ParentT_contra]):
    """The part of ``HostTpm`` that opening needs."""

    def import_and_unseal(self, storage: ParentT_contra, sealed: SealedSecret) -> bytearray:
        """The sealed secret, which the caller wipes; TpmError when the TPM refuses."""


def open_key_grant(
    wire: bytes,
    *,
    asked: GrantRequest,
    release_keys: Iterable[ec.EllipticCurvePublicKey],
    tpm: Unsealer[ParentT],
    storage: ParentT,
) -> bytearray:
    """Open a grant; the caller wipes the VM key when the hypervisor has it.

    Args:
        wire: the bytes as received.
        asked: the request of this agent that the grant must answer.
        release_keys: the keys pinned at enrolment (two while one is being replaced).
        tpm: the host's TPM.
        storage: the storage parent under its enrolled name.

    Raises:
        GrantRefused: with the reason; nothing secret came into being unless the TPM agreed.
    """
    # (1) signature over the received bytes, then structure
    grant = read_key_grant(wire, release_keys)
    # (2) it answers what was asked, and nothing older
    _check_binding(grant, asked)
    if storage.name != asked.storage_name:
        raise GrantRefused("storage-changed", "the TPM's storage parent is not the enrolled one")
    # (3) the TPM checks itself, the boot, the clock and the PCRs
    try:
        key = tpm.import_and_unseal(storage, grant.sealed)
    except TpmError as failure:
        raise GrantRefused("tpm-refused", f"the TPM does not open the grant: {failure}") from None
    # (4) the VM key, bound to the same fields
    try:
        return _decrypt(grant, key)
    finally:
        wipe(key)


def read_key_grant(wire: bytes, release_keys: Iterable[ec.EllipticCurvePublicKey]) -> ReceivedGrant:
    """Check the signature over the received body, then take it apart.

    Raises:
        GrantRefused: unknown release key, bad signature, or bytes that are not KeyGrant v1.
    """
    body = _verified_body(wire, release_keys)
    reader = _Reader(body)
    reader.take(len(_MAGIC) + 2 * len(_ALGORITHMS) + 32)  # checked with the signature
    vm_id, host_id, storage_name = reader.text(), reader.text(), reader.sized()
    grant_epoch, key_epoch = reader.number(8), reader.number(8)
    request_id, purpose = reader.text(), reader.number(1)
    clock_bound = reader.take(8)
    head = body[: reader.offset]
    if purpose not in _PURPOSES:
        raise GrantRefused("malformed", f"purpose {purpose} is not known")
    counters, selection = reader.take(8), reader.sized()
    public, duplicate, encrypted_seed = reader.sized(), reader.sized(), reader.sized()
    nonce, ciphertext = reader.take(_NONCE), reader.sized()
    reader.finish()
    if not _TAG < len(ciphertext) <= _MAX_VM_KEY + _TAG:
        raise GrantRefused("malformed", f"a VM key has 1 to {_MAX_VM_KEY} bytes")
    return ReceivedGrant(
        vm_id=vm_id,
        host_id=host_id,
        storage_name=storage_name,
        grant_epoch=grant_epoch,
        key_epoch=key_epoch,
        request_id=request_id,
        purpose=_PURPOSES[purpose],
        clock_bound=int.from_bytes(clock_bound, "big"),
        sealed=SealedSecret(
            public=public,
            duplicate=duplicate,
            encrypted_seed=encrypted_seed,
            pcr_selection=selection,
            counters=counters,
            clock_bound=clock_bound,
        ),
        nonce=nonce,
        ciphertext=ciphertext,
        associated_data=head,
    )


def wipe(secret: bytearray) -> None:
    """Overwrite a secret in place."""
    secret[:] = bytes(len(secret))


def _verified_body(wire: bytes, release_keys: Iterable[ec.EllipticCurvePublicKey]) -> bytes:
    size = int.from_bytes(wire[:4], "big")
    if len(wire) > _MAX_WIRE or len(wire) != 4 + size + _SIGNATURE:
        raise GrantRefused("malformed", f"{len(wire)} bytes are not a KeyGrant")
    body, signature = wire[4 : 4 + size], wire[4 + size :]
    algorithms = b"".join(number.to_bytes(2, "big") for number in _ALGORITHMS)
    head = _MAGIC + algorithms
    if not body.startswith(head):
        raise GrantRefused("malformed", "not KeyGrant v1 with the algorithms of this agent")
    wanted = body[len(head) : len(head) + 32]
    for key in release_keys:
        if _key_id(key) == wanted:
            _check_signature(key, signature, body)
            return body
    raise GrantRefused("signer-unknown", "the grant is signed by a key that is not pinned")


def _check_signature(key: ec.EllipticCurvePublicKey, signature: bytes, body: bytes) -> None:
    if not isinstance(key.curve, ec.SECP256R1):
        raise GrantRefused("signature", "the pinned release key is not on P-256")
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        key.verify(encode_dss_signature(r, s), body, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise GrantRefused("signature", "the grant's signature is wrong") from None


def _key_id(key: ec.EllipticCurvePublicKey) -> bytes:
    spki = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(spki).digest()


def _check_binding(grant: ReceivedGrant, asked: GrantRequest) -> None:
    expected = {
        "vm": (grant.vm_id, asked.vm_id),
        "host": (grant.host_id, asked.host_id),
        "storage": (grant.storage_name, asked.storage_name),
        "request": (grant.request_id, asked.request_id),
        "purpose": (grant.purpose, asked.purpose),
    }
    for name, (received, wanted) in expected.items():
        if received != wanted:
            raise GrantRefused(f"other-{name}", f"the grant is for another {name}")
    if grant.grant_epoch < asked.lowest_grant_epoch:
        raise GrantRefused("old-grant-epoch", f"grant epoch {grant.grant_epoch} was passed already")
    if grant.key_epoch < asked.lowest_key_epoch:
        raise GrantRefused("old-key-epoch", f"key epoch {grant.key_epoch} was passed already")


def _decrypt(grant: ReceivedGrant, key: bytearray) -> bytearray:
    if len(key) != _KEY:
        raise GrantRefused("malformed", "the sealed secret is not an AES-256 key")
    opened = bytearray(len(grant.ciphertext) - _TAG)
    try:
        AESGCM(key).decrypt_into(grant.nonce, grant.ciphertext, grant.associated_data, opened)
    except InvalidTag:
        wipe(opened)
        raise GrantRefused(
            "changed", "the encrypted key or what it is bound to was changed"
        ) from None
    return opened


class _Reader:
    """Fields of a body whose signature was checked; bounds are checked all the same."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.offset = 0

    def take(self, size: int) -> bytes:
        end = self.offset + size
        if end > len(self._data):
            raise GrantRefused(
                "malformed", f"the grant ends at byte {len(self._data)}, within a field"
            )
        taken = self._data[self.offset : end]
        self.offset = end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def sized(self) -> bytes:
        return self.take(self.number(2))

    def text(self) -> str:
        try:
            return self.sized().decode("ascii")
        except UnicodeDecodeError:
            raise GrantRefused("malformed", "an identifier is not ASCII") from None

    def finish(self) -> None:
        if self.offset != len(self._data):
            raise GrantRefused("malformed", "the grant has bytes left over")
