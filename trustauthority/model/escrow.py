"""Escrow: a VM key sealed to a public key whose private half is kept offline.

Nothing here is secret: sealed keys open with the offline private key only.
Source: docs/reference/escrow.md.
"""

from dataclasses import dataclass, field

from trustauthority.model.identifiers import VmId


@dataclass(frozen=True, slots=True, kw_only=True)
class EscrowKey:
    """The public half of an offline escrow key."""

    raw: bytes
    """ML-KEM-768 encapsulation key (1184 bytes) ‖ X25519 public key (32 bytes)."""
    key_id: bytes
    """32 bytes, a hash of algorithms and ``raw``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EscrowBinding:
    """What a sealed key is bound to: it opens as the key of no other VM, epoch or authority."""

    origin: str
    """Name of the authority."""
    vm_id: VmId
    key_epoch: int

    def __post_init__(self) -> None:
        if not 0 < self.key_epoch < 1 << 64:
            raise ValueError("a key epoch is an unsigned 64-bit value, not 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class EscrowedKey:
    """A sealed key taken apart; whether it opens is not known yet."""

    binding: EscrowBinding
    recipient: bytes
    """``EscrowKey.key_id`` of the key that it was sealed to."""
    header: bytes = field(repr=False)
    """The bytes that the encryption is bound to."""
    ciphertext: bytes = field(repr=False)
    """HPKE: encapsulated key ‖ AES-256-GCM ciphertext."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """Where the key room finds a VM key. Nothing in it is secret."""

    provider: str
    kek_id: str
    wrapped: bytes
    """The VM key under the KEK."""
    aad: bytes
    """What the wrapping is bound to: VM, key epoch, provider."""
