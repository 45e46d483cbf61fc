"""Seal a VM key to the offline escrow key; run in the key room's child only.

Stage: adapter. Trusts that the public key is the one that the configuration names
(``load_escrow_key`` checks it). Guarantees that what comes out opens with the offline private key
only, as the key of this VM and epoch. Does not open. Source: docs/reference/escrow.md.
"""

import json
from pathlib import Path

from trustauthority.errors import ConfigurationInvalid, MalformedEscrow
from trustauthority.keyrelease.escrow import (
    SUITE,
    decode_escrow_key,
    escrow_header,
    hpke_public,
)
from trustauthority.model.escrow import EscrowBinding, EscrowKey
from trustauthority.model.identifiers import VmId


def seal_to_escrow(
    vm_key: bytes | bytearray, binding: EscrowBinding, recipient: EscrowKey
) -> bytes:
    """Seal one key. The library draws the randomness of the encapsulation."""
    header = escrow_header(binding, recipient.key_id)
    return header + SUITE.encrypt(vm_key, hpke_public(recipient.raw), info=header)


def binding_of(aad: bytes, origin: str) -> EscrowBinding:
    """What a key is escrowed as: the VM and key epoch that its wrapping is bound to.

    Raises:
        MalformedEscrow: the associated data does not say them.
    """
    try:
        values = json.loads(aad)
        return EscrowBinding(origin=origin, vm_id=VmId(values["vm"]), key_epoch=values["keyEpoch"])
    except (ValueError, KeyError, TypeError) as error:
        raise MalformedEscrow("the key's associated data names no VM and key epoch") from error


def load_escrow_key(path: Path, key_id: str) -> EscrowKey:
    """The public key in a file, if it is the one that the configuration names.

    Args:
        path: the file.
        key_id: ``EscrowKey.key_id`` in hex.

    Raises:
        ConfigurationInvalid: it can't be read, or is another key: whoever swaps it could read keys.
    """
    try:
        key = decode_escrow_key(path.read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError, MalformedEscrow) as error:
        because = error.message if isinstance(error, MalformedEscrow) else type(error).__name__
        raise ConfigurationInvalid(
            f"can't use the escrow key {path}: {because}", path=str(path)
        ) from error
    if key.key_id.hex() != key_id:
        raise ConfigurationInvalid(
            f"{path} holds escrow key {key.key_id.hex()[:16]}, the configuration names"
            f" {key_id[:16]}: no VM key is made",
            path=str(path),
        )
    return key
