"""Keep the highest audit checkpoint that the authority signed, and echo it.

Stage: between channel and disk. Trusts the audit key that was pinned at activation and nothing in a
note before its signature. Guarantees that the kept checkpoint only grows, and that two signed
checkpoints of one size with different roots are kept as proof and stop the agent. Does not check
consistency proofs: the authority must contain what is echoed to it, or refuse.
Source: C2SP tlog-checkpoint and signed-note.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from hostagent.files import read_private, write_private

MAX_NOTE = 16_384
"""Bytes; a checkpoint has about 200."""
_ED25519 = b"\x01"
_FILE, _PROOF = "checkpoint", "checkpoint.conflict"


class NoteInvalid(Exception):
    """Not a checkpoint of this log signed by the pinned audit key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One commitment to the audit log."""

    era: int
    """Grows when the authority's operators accept a loss; trees of two eras are not compared."""
    size: int
    root: bytes


class Observation(StrEnum):
    """What a received checkpoint turned out to be."""

    HIGHER = "higher"
    KNOWN = "known"
    """The kept one, or a lower one: replies overtake each other."""
    INVALID = "invalid"
    SPLIT_VIEW = "split-view"


def open_checkpoint(note: bytes, *, origin: str, public_key: bytes) -> Checkpoint:
    """Check the signature of a note, then read it.

    Raises NoteInvalid.
    """
    text, separator, stamps = note.rpartition(b"\n\n")
    text += b"\n"
    if not separator or len(note) > MAX_NOTE:
        raise NoteInvalid("not a signed note")
    identifier = hashlib.sha256(origin.encode() + b"\n" + _ED25519 + public_key).digest()[:4]
    for line in stamps.splitlines():
        signer, _, stamp = line.removeprefix("— ".encode()).rpartition(b" ")
        if not line.startswith("— ".encode()) or signer != origin.encode():
            continue  # a witness
        raw = _base64(stamp)
        if raw[:4] == identifier:
            _check(public_key, raw[4:], text)
            return _decode(text, origin)
    raise NoteInvalid("not signed by the pinned audit key")


class CheckpointMemory:
    """The kept checkpoint, in memory and in the state folder."""

    def __init__(self, state_dir: Path, *, origin: str, public_key: bytes) -> None:
        """Read what is kept; one that the pinned key did not sign is not used."""
        self._path, self._proof = state_dir / _FILE, state_dir / _PROOF
        self._origin, self._public_key = origin, public_key
        self.note = b""
        """As signed, to be echoed; empty before the first one."""
        self._kept: Checkpoint | None = None
        try:
            kept = read_private(self._path)
            self._kept = open_checkpoint(kept, origin=origin, public_key=public_key)
            self.note = kept
        except (FileNotFoundError, NoteInvalid):
            return

    @property
    def size(self) -> int:
        """Entries that the log had at the kept checkpoint."""
        return self._kept.size if self._kept is not None else 0

    @property
    def split_view(self) -> bool:
        """Whether proof of a split view is kept; an operator removes it after looking at it."""
        return self._proof.exists()

    def observe(self, note: bytes) -> Observation:
        """Look at a received note, and keep it when it is ahead.

        Raises OSError when it can't be written; it is then still kept in memory.
        """
        if note == self.note:
            return Observation.KNOWN
        try:
            seen = open_checkpoint(note, origin=self._origin, public_key=self._public_key)
        except NoteInvalid:
            return Observation.INVALID
        kept = self._kept
        if kept is None or (seen.era, seen.size) > (kept.era, kept.size):
            self._kept, self.note = seen, note
            write_private(self._path, note)
            return Observation.HIGHER
        same = (seen.era, seen.size) == (kept.era, kept.size)
        if same and seen.root != kept.root:
            write_private(self._proof, self.note + b"\n" + note)
            return Observation.SPLIT_VIEW
        return Observation.KNOWN


def _check(public_key: bytes, signature: bytes, text: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, text)
    except (InvalidSignature, ValueError) as failure:
        raise NoteInvalid("the signature is wrong") from failure


def _decode(text: bytes, origin: str) -> Checkpoint:
    lines = text.split(b"\n")
    if len(lines) < 4 or lines[0] != origin.encode() or lines[-1]:
        raise NoteInvalid("not a checkpoint of this log")
    size, root = lines[1], _base64(lines[2])
    if not size.isdigit() or len(size) > 19 or (size != b"0" and size.startswith(b"0")):
        raise NoteInvalid("the size is not a number")
    if len(root) != 32:
        raise NoteInvalid("the root has not 32 bytes")
    return Checkpoint(era=_era(lines[3:-1]), size=int(size), root=root)


def _era(extensions: list[bytes]) -> int:
    """The number of the line ``era N``; 0 without one."""
    for line in extensions:
        word, _, number = line.partition(b" ")
        if word == b"era" and number.isdigit() and len(number) <= 19:
            return int(number)
    return 0


def _base64(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as failure:
        raise NoteInvalid("not base64") from failure
