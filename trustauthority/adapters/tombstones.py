"""Tombstones of destroyed keys in a file beside the database, one signed line each.

Guarantees: a line is on disk when ``append`` returns; a line that the audit key did not sign stops
whoever reads it, since it could destroy a key; a line that a crash cut off counts for nothing. Does
not protect the file from being deleted: what was destroyed since the last backup is then known from
the audit log only.

A line: base64 of an Ed25519 signature over the rest, a space, canonical JSON.
"""

import fcntl
import json
import os
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from trustauthority.errors import ConfigurationInvalid, StoreUnavailable
from trustauthority.model.identifiers import VmId
from trustauthority.model.vm import Tombstone

TOMBSTONES = "tombstones"
_LABEL = b"ta-tombstone-v1\n"


class FileTombstones:
    """The Tombstones port."""

    def __init__(self, path: Path, key: Ed25519PrivateKey) -> None:
        self._path = path
        self._key = key

    def append(self, tombstone: Tombstone) -> None:
        """Remember one, durably."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(self._path, flags, 0o600)
            with os.fdopen(descriptor, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.truncate(file.read().rfind(b"\n") + 1)  # what a crash cut off
                file.write(_line(tombstone, self._key))
                file.flush()
                os.fsync(file.fileno())
        except OSError as failure:
            raise StoreUnavailable(
                f"can't write {self._path}: {failure.strerror}. Check disk space and permissions."
            ) from failure

    def entries(self) -> Sequence[Tombstone]:
        """Every one, oldest first."""
        return tuple(read_tombstones(self._path, self._key.public_key()))


def read_tombstones(path: Path, public_key: Ed25519PublicKey) -> Iterator[Tombstone]:
    """Read a file of tombstones; nothing when there is none.

    Raises:
        ConfigurationInvalid: a whole line is not one that this authority signed.
    """
    try:
        lines = path.read_bytes().split(b"\n") if path.exists() else []
    except OSError as failure:
        raise ConfigurationInvalid(
            f"can't read {path}: {failure.strerror}", path=str(path)
        ) from failure
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is torn
        if line:
            yield _tombstone(line, number, path, public_key)


def _line(tombstone: Tombstone, key: Ed25519PrivateKey) -> bytes:
    content = json.dumps(
        {
            "compromised": tombstone.compromised,
            "createdAtMs": tombstone.created_at_ms,
            "destroyedAtMs": tombstone.destroyed_at_ms,
            "keyEpoch": tombstone.key_epoch,
            "vm": tombstone.vm_id,
        },
        sort_keys=True,
        separators=(",", ":"),
    ).encode()
    return b64encode(key.sign(_LABEL + content)) + b" " + content + b"\n"


def _tombstone(line: bytes, number: int, path: Path, public_key: Ed25519PublicKey) -> Tombstone:
    signature, _, content = line.partition(b" ")
    try:
        public_key.verify(b64decode(signature, validate=True), _LABEL + content)
        found = json.loads(content)
        return Tombstone(
            vm_id=VmId(found["vm"]),
            key_epoch=found["keyEpoch"],
            created_at_ms=found["createdAtMs"],
            destroyed_at_ms=found["destroyedAtMs"],
            compromised=found["compromised"],
        )
    except (InvalidSignature, Base64Error, ValueError, KeyError, TypeError) as failure:
        raise ConfigurationInvalid(
            f"{path}, line {number}, is no tombstone of this authority; it destroys nothing",
            path=str(path),
        ) from failure
