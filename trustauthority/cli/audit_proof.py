"""Proofs behind ``ta audit``: each entry shown is under a checkpoint that the pinned key signed.

Trusts the pinned audit key and the checkpoint that this machine kept. Guarantees that ``prove``
returns True only for an entry whose inclusion proof holds, and raises when a proof is wrong.
"""

import contextlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from trustauthority.cli.text import printable
from trustauthority.errors import CheckpointInvalid

if TYPE_CHECKING:
    from trustauthority.client.channel import Authority
    from trustauthority.codec import tlog


class Auditor:
    """Walks the log forward: every checkpoint it uses extends the one before."""

    def __init__(self, authority: "Authority") -> None:
        self._authority = authority
        # What this machine saw in earlier runs; make an Auditor before the first call, since the
        # next reply brings a newer one along.
        self._kept_before = authority.keeper.kept()
        self._current = authority.keeper.kept_checkpoint()
        self.before = self._current

    @contextlib.contextmanager
    def holding_on(self) -> Iterator[None]:
        """Put back the checkpoint kept before when the log turns out not to extend it."""
        try:
            yield
        except CheckpointInvalid:
            if self._kept_before:
                self._authority.keeper.keep(self._kept_before)
            raise

    @property
    def size(self) -> int:
        """Entries under the newest checkpoint that was checked."""
        return 0 if self._current is None else self._current.size

    def open(self, note: str) -> "tlog.Checkpoint":
        """The checkpoint in a note, verified when the audit key is pinned. Raises CheckpointInvalid."""
        from trustauthority.codec import tlog

        key = self._authority.context.audit_key
        if key is None:
            return tlog.unverified_checkpoint(note)
        return tlog.open_checkpoint(note, origin=key.origin, public_key=key.public_key)

    def begin(self, note: str) -> int:
        """Take a checkpoint, check that it extends what was seen before, return its size."""
        from trustauthority.codec import tlog

        fresh = self.open(note)
        before, self._current = self._current, fresh
        if before is None or (before.size, before.root) == (fresh.size, fresh.root):
            return fresh.size
        if before.era < fresh.era:  # operators accepted a loss, under the log's own key
            return fresh.size
        if before.era > fresh.era or before.size > fresh.size:
            raise CheckpointInvalid(
                f"the log went back from {before.size} to {fresh.size} entries", size=fresh.size
            )
        if before.size:
            tlog.check_consistency(
                old_size=before.size,
                old_root=before.root,
                size=fresh.size,
                root=fresh.root,
                proof=tuple(self._proofs(0, fresh.size, before.size).consistency),
            )
        return fresh.size

    def advance(self) -> None:
        """Fetch the newest checkpoint and go on from there."""
        from trustauthority.v1 import admin_pb2 as admin
        from trustauthority.v1.admin_pb2_grpc import AuditServiceStub

        service = self._authority.on(AuditServiceStub)
        reply = service.read(lambda s: s.GetCheckpoint, admin.GetCheckpointRequest())
        self.begin(reply.checkpoint)

    def prove(self, sequence: int, content: bytes) -> bool:
        """Whether the entry is under the checkpoint yet. Raises CheckpointInvalid when it is not it."""
        from trustauthority.codec import tlog

        if self._current is None or sequence >= self._current.size:
            return False
        tlog.check_inclusion(
            leaf=tlog.leaf_hash(content),
            index=sequence,
            size=self._current.size,
            proof=tuple(self._proofs(sequence, self._current.size, 0).inclusion),
            root=self._current.root,
        )
        stated = decode_entry(content).get("sequence")
        if stated != sequence:
            raise CheckpointInvalid(
                f"entry {sequence} says of itself that it is {stated}", sequence=sequence
            )
        return True

    def _proofs(self, sequence: int, size: int, old_size: int) -> Any:
        from trustauthority.v1 import admin_pb2 as admin
        from trustauthority.v1.admin_pb2_grpc import AuditServiceStub

        request = admin.ProveAuditRequest(sequence=sequence, tree_size=size, old_tree_size=old_size)
        return self._authority.on(AuditServiceStub).read(lambda s: s.ProveAudit, request)


def decode_entry(content: bytes) -> dict[str, Any]:
    """The fields of an entry. Raises CheckpointInvalid when it is no JSON object."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointInvalid("an entry of the audit log is not JSON") from error
    if not isinstance(value, dict):
        raise CheckpointInvalid("an entry of the audit log is no JSON object")
    return value


def entry_value(content: bytes, name: str) -> str:
    """One field of an entry as text; empty when it is absent."""
    value = decode_entry(content).get(name, "")
    return value if isinstance(value, str) else json.dumps(value)


def entry_time(content: bytes) -> datetime | None:
    """When the entry was decided."""
    value = decode_entry(content).get("time_ms")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 47:
        return None
    return datetime.fromtimestamp(value / 1000, UTC)


def entry_detail(content: bytes, name: str) -> str:
    """One detail of an entry, or empty."""
    details = decode_entry(content).get("details", {})
    value = details.get(name, "") if isinstance(details, dict) else ""
    return printable(str(value))


def entry_details(content: bytes) -> str:
    """The details of an entry as ``key=value`` words."""
    details = decode_entry(content).get("details", {})
    if not isinstance(details, dict):
        return json.dumps(details)
    return " ".join(f"{key}={json.dumps(value)}" for key, value in details.items())
