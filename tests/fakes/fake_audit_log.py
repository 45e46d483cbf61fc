"""An audit log with a real Merkle tree and a real signature, and every lie a method."""

import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from trustauthority.client.contexts import AuditKey
from trustauthority.codec import tlog
from trustauthority.v1 import admin_pb2 as admin

ORIGIN = "authority.example/audit"


class FakeAuditLog:
    """Entries, their tree, and the key that signs it."""

    def __init__(self) -> None:
        self.entries: list[bytes] = []
        self.shown: dict[int, bytes] = {}
        self.signed_size: int | None = None
        self.key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
        self.public = self.key.public_key().public_bytes_raw()
        self.audit_key = AuditKey(origin=ORIGIN, public_key=self.public)

    def add(self, **fields: Any) -> None:
        """Append a decision."""
        entry = {
            "sequence": len(self.entries),
            "time_ms": 1_795_183_200_000 + 60_000 * len(self.entries),
            "actor": "h-esx-a01",
            "operation": "key.release",
            "subject": "payroll",
            "decision": "released",
            "reason": "",
            "details": {"grantEpoch": 1},
        } | fields
        self.entries.append(json.dumps(entry, sort_keys=True, separators=(",", ":")).encode())

    def lie_about_entry(self, sequence: int, content: bytes) -> None:
        """Show another content than the one in the tree."""
        self.shown[sequence] = content

    def rewrite(self, sequence: int, content: bytes) -> None:
        """Change an entry and the whole tree after it, as its operator could."""
        self.entries[sequence] = content

    @property
    def size(self) -> int:
        return len(self.entries) if self.signed_size is None else self.signed_size

    def note(self, size: int | None = None) -> str:
        """The signed checkpoint of the first ``size`` entries."""
        leaves = self._leaves(self.size if size is None else size)
        checkpoint = tlog.Checkpoint(origin=ORIGIN, size=len(leaves), root=tlog.tree_root(leaves))
        text = tlog.encode_checkpoint(checkpoint)
        return tlog.encode_note(
            text=text, name=ORIGIN, public_key=self.public, signature=self.key.sign(text.encode())
        )

    def serve(self, authority: Any) -> None:
        """Answer the calls of AuditService."""
        authority.answer("ListAudit", self._list)
        authority.answer("ProveAudit", self._prove)
        authority.answer("TailAudit", self._tail)
        authority.answer(
            "GetCheckpoint",
            lambda _: admin.GetCheckpointResponse(checkpoint=self.note(), public_key=self.public),
        )

    def _leaves(self, size: int) -> list[bytes]:
        return [tlog.leaf_hash(entry) for entry in self.entries[:size]]

    def _entry(self, sequence: int) -> admin.AuditEntry:
        content = self.shown.get(sequence, self.entries[sequence])
        return admin.AuditEntry(sequence=sequence, content=content)

    def _list(self, request: admin.ListAuditRequest) -> admin.ListAuditResponse:
        start = request.from_sequence
        first = max(0, len(self.entries) + start) if start < 0 else start
        last = min(len(self.entries), first + (request.limit or 100))
        return admin.ListAuditResponse(
            entries=[self._entry(number) for number in range(first, last)], checkpoint=self.note()
        )

    def _tail(self, request: admin.TailAuditRequest) -> list[admin.TailAuditResponse]:
        numbers = range(request.from_sequence, len(self.entries))
        return [admin.TailAuditResponse(entry=self._entry(number)) for number in numbers]

    def _prove(self, request: admin.ProveAuditRequest) -> admin.ProveAuditResponse:
        leaves = self._leaves(request.tree_size or self.size)
        old = request.old_tree_size
        return admin.ProveAuditResponse(
            inclusion=tlog.inclusion_proof(leaves, request.sequence),
            consistency=tlog.consistency_proof(leaves, old) if old else [],
        )
