"""Escrowed keys in one file: what recovery needs, and nothing of the authority.

Stage: outside of the release, pure. Trusts nothing in a file. Guarantees that what it reads back is
what it wrote, or an error. What it does not do: open keys (``keyrelease.escrow``), or touch files.
Source: docs/reference/escrow.md.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trustauthority.errors import MalformedEscrow, NotFound
from trustauthority.keyrelease.escrow import decode_escrowed
from trustauthority.model.escrow import EscrowBinding
from trustauthority.model.identifiers import VmId

FORMAT = "trustauthority-escrow-v1"
DRILL_FORMAT = "trustauthority-drill-v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedKey:
    """One escrowed key of a VM."""

    vm_id: VmId
    key_epoch: int
    state: str
    """State of the key when it was exported."""
    blob: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EscrowExport:
    """All escrowed keys of an authority."""

    origin: str
    keys: tuple[ExportedKey, ...]

    def find(self, vm: str, key_epoch: int = 0) -> ExportedKey:
        """The key of a VM: of one epoch, or the newest.

        Raises:
            NotFound: the file has none.
        """
        found = [key for key in self.keys if key.vm_id == vm and key_epoch in {0, key.key_epoch}]
        if not found:
            which = f"key epoch {key_epoch} of VM" if key_epoch else "VM"
            raise NotFound(f"{which} {vm!r} is not in this file", kind="key", name=vm)
        return max(found, key=lambda key: key.key_epoch)

    def binding(self, key: ExportedKey) -> EscrowBinding:
        """What the blob of a key must be bound to."""
        return EscrowBinding(origin=self.origin, vm_id=key.vm_id, key_epoch=key.key_epoch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drill:
    """A question that only a holder of the VM key can answer."""

    binding: EscrowBinding
    challenge: bytes
    blob: bytes


def encode_export(origin: str, keys: Sequence[ExportedKey]) -> bytes:
    """The file, as JSON."""
    return _json(
        {
            "format": FORMAT,
            "origin": origin,
            "keys": [
                {
                    "vm": key.vm_id,
                    "keyEpoch": key.key_epoch,
                    "state": key.state,
                    "blob": b64encode(key.blob).decode(),
                }
                for key in keys
            ],
        }
    )


def decode_export(content: bytes) -> EscrowExport:
    """Read the file.

    Raises:
        MalformedEscrow: it is none.
    """
    document = _document(content, FORMAT)
    try:
        keys = tuple(
            ExportedKey(
                vm_id=VmId(str(each["vm"])),
                key_epoch=_epoch(each["keyEpoch"]),
                state=str(each["state"]),
                blob=b64decode(each["blob"], validate=True),
            )
            for each in document["keys"]
        )
        export = EscrowExport(origin=str(document["origin"]), keys=keys)
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedEscrow("the export of escrowed keys is damaged") from error
    for key in export.keys:
        decode_escrowed(key.blob)
    return export


def encode_drill(drill: Drill) -> bytes:
    """The file of a drill, as JSON."""
    return _json(
        {
            "format": DRILL_FORMAT,
            "origin": drill.binding.origin,
            "vm": drill.binding.vm_id,
            "keyEpoch": drill.binding.key_epoch,
            "challenge": drill.challenge.hex(),
            "blob": b64encode(drill.blob).decode(),
        }
    )


def decode_drill(content: bytes) -> Drill:
    """Read the file of a drill.

    Raises:
        MalformedEscrow: it is none.
    """
    document = _document(content, DRILL_FORMAT)
    try:
        return Drill(
            binding=EscrowBinding(
                origin=str(document["origin"]),
                vm_id=VmId(str(document["vm"])),
                key_epoch=_epoch(document["keyEpoch"]),
            ),
            challenge=bytes.fromhex(document["challenge"]),
            blob=b64decode(document["blob"], validate=True),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedEscrow("the file of the drill is damaged") from error


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=1).encode() + b"\n"


def _document(content: bytes, form: str) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise MalformedEscrow("the file is not JSON") from error
    if not isinstance(document, dict) or document.get("format") != form:
        raise MalformedEscrow(f"the file is not of the format {form}")
    return document


def _epoch(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("a key epoch is a number")
    return value
