"""What the key room and its child say to each other: length-prefixed JSON over two pipes.

Stage: adapter, pure. Trusts the other end to be our own code, yet checks sizes and shapes. Guarantees
that no message has a field for a plaintext key. Does not read or write.

A frame is a 4-byte big-endian length and that many bytes of JSON, an object; bytes are in hex.
Parent: first ``configure``, then one order at a time. Child: one reply each, ``{"ok": …}`` or
``{"error": message}``.
"""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from trustauthority.adapters.keyroom.settings import KeyRoomSettings
from trustauthority.adapters.kms.settings import provider_to_json
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.escrow import StoredKey
from trustauthority.model.grant import GrantBinding, ReleaseOrder
from trustauthority.model.identifiers import HostId, RequestId, VmId
from trustauthority.model.kms import HealthState, KmsHealth, ProviderKind
from trustauthority.model.placement import Purpose
from trustauthority.model.vm import NewKey

HEADER = 4
MAX_FRAME = 1 << 17
"""Bytes: an order has at most 24 PCRs of three banks and a wrapped key of 4 KiB, all in hex."""


def encode_frame(message: Mapping[str, Any]) -> bytes:
    """A frame around a message. Raises ValueError when it is too long."""
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > MAX_FRAME:
        raise ValueError("a message to or from the key room's child is too long")
    return len(body).to_bytes(HEADER, "big") + body


def frame_length(header: bytes) -> int:
    """The length that a header announces. Raises ValueError when it is too long."""
    length = int.from_bytes(header, "big")
    if len(header) != HEADER or not 0 < length <= MAX_FRAME:
        raise ValueError("a frame of the key room has a wrong length")
    return length


def decode_body(body: bytes) -> dict[str, Any]:
    """The message in a frame. Raises ValueError when it is not a JSON object."""
    message = json.loads(body)
    if not isinstance(message, dict):
        raise ValueError("a message of the key room is an object")  # noqa: TRY004  a value is wrong
    return message


def settings_to_json(settings: KeyRoomSettings, *, warm: str = "") -> dict[str, Any]:
    """What the child is told first: no secret, only where secrets are.

    Args:
        settings: Every provider, for an order may move a key from one to another.
        warm: The provider whose library the child loads at its start; the others wait for an order.
    """
    escrow = settings.escrow
    return {
        "escrow": None
        if escrow is None
        else {
            "public_key": str(escrow.public_key),
            "key_id": escrow.key_id,
            "origin": escrow.origin,
        },
        "release_key": str(settings.release_key),
        "import_key": "" if settings.import_key is None else str(settings.import_key),
        "kill_after_s": settings.lifetime_s + settings.timeout_s,
        "providers": {name: provider_to_json(kms) for name, kms in settings.providers.items()},
        "warm": [warm] if warm else [],
    }


def health_to_json(health: KmsHealth) -> dict[str, Any]:
    """How a KMS is doing."""
    return {field.name: getattr(health, field.name) for field in fields(health)}


def health_from_json(values: Mapping[str, Any]) -> KmsHealth:
    """What ``health_to_json`` wrote; raises ValueError, KeyError or TypeError when it is none."""
    made = KmsHealth(**values)
    kind = None if made.kind is None else ProviderKind(made.kind)
    return replace(made, state=HealthState(made.state), kind=kind)


def new_key_to_json(new: NewKey) -> dict[str, str]:
    """A VM key as a child answers it: sealed in both ways."""
    return {"wrapped": new.wrapped.hex(), "escrowed": new.escrowed.hex()}


def new_key_from_json(values: Mapping[str, str]) -> NewKey:
    """What ``new_key_to_json`` wrote; raises ValueError, KeyError or TypeError when it is none."""
    return NewKey(
        wrapped=bytes.fromhex(values["wrapped"]), escrowed=bytes.fromhex(values["escrowed"])
    )


def stored_key_to_json(key: StoredKey) -> dict[str, str]:
    """Where a VM key is, besides its provider."""
    return {"kek_id": key.kek_id, "wrapped": key.wrapped.hex(), "aad": key.aad.hex()}


def order_to_json(order: ReleaseOrder) -> dict[str, Any]:
    """A release order."""
    binding = order.binding
    return {
        "binding": {
            "vm_id": binding.vm_id,
            "host_id": binding.host_id,
            "storage_name": binding.storage_name.hex(),
            "grant_epoch": binding.grant_epoch,
            "key_epoch": binding.key_epoch,
            "request_id": binding.request_id,
            "purpose": str(binding.purpose),
            "clock_bound": binding.clock_bound,
        },
        "provider": order.provider,
        "kek_id": order.kek_id,
        "wrapped": order.wrapped.hex(),
        "aad": order.aad.hex(),
        "storage_public": order.storage_public.hex(),
        # pairs, for the order of banks and PCRs is part of the policy
        "sealed_pcrs": [
            [str(bank), [[index, value.hex()] for index, value in values.items()]]
            for bank, values in order.sealed_pcrs.items()
        ],
        "counters": order.counters.hex(),
    }


def order_from_json(order: Mapping[str, Any]) -> ReleaseOrder:
    """A release order; raises ValueError, KeyError or TypeError when it is none."""
    binding = order["binding"]
    return ReleaseOrder(
        binding=GrantBinding(
            vm_id=VmId(binding["vm_id"]),
            host_id=HostId(binding["host_id"]),
            storage_name=bytes.fromhex(binding["storage_name"]),
            grant_epoch=binding["grant_epoch"],
            key_epoch=binding["key_epoch"],
            request_id=RequestId(binding["request_id"]),
            purpose=Purpose(binding["purpose"]),
            clock_bound=binding["clock_bound"],
        ),
        provider=order["provider"],
        kek_id=order["kek_id"],
        wrapped=bytes.fromhex(order["wrapped"]),
        aad=bytes.fromhex(order["aad"]),
        storage_public=bytes.fromhex(order["storage_public"]),
        sealed_pcrs={
            HashAlgorithm(bank): {index: bytes.fromhex(value) for index, value in values}
            for bank, values in order["sealed_pcrs"]
        },
        counters=bytes.fromhex(order["counters"]),
    )
