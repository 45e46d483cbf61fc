"""Escrow keys and sealed VM keys for tests, from fixed seeds."""

from trustauthority.adapters.kms.escrow import seal_to_escrow
from trustauthority.keyrelease.escrow import PRIVATE_SIZE, public_of
from trustauthority.model.escrow import EscrowBinding, EscrowKey
from trustauthority.model.identifiers import VmId

PRIVATE = bytes(range(PRIVATE_SIZE))
OTHER_PRIVATE = bytes(reversed(PRIVATE))
ORIGIN = "authority.test"
VM_KEY = b"A-VM-key-of-43-characters-in-base64url-text"


def public(private: bytes = PRIVATE) -> EscrowKey:
    """The public half."""
    return public_of(private)


def binding(vm: str = "payroll", key_epoch: int = 1, origin: str = ORIGIN) -> EscrowBinding:
    """Which key."""
    return EscrowBinding(origin=origin, vm_id=VmId(vm), key_epoch=key_epoch)


def sealed(
    vm_key: bytes = VM_KEY, *, to: bytes = PRIVATE, bound: EscrowBinding | None = None
) -> bytes:
    """A VM key sealed as the key room's child does it."""
    return seal_to_escrow(vm_key, bound or binding(), public(to))
