"""The audit log's checkpoints: signed, told to every caller, and compared with what callers saw.

What it guarantees: a caller that shows a signed checkpoint which our database does not contain stops
all releases, durably, until somebody accepts the loss (N91). Spec: C2SP tlog-checkpoint.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives import serialization

from trustauthority.codec.tlog import (
    ERA,
    Checkpoint,
    consistency_proof,
    encode_checkpoint,
    encode_note,
    inclusion_proof,
    open_checkpoint,
)
from trustauthority.errors import CheckpointInvalid, InvalidRequest, RoleRequired, RollbackDetected
from trustauthority.model.audit import AuditEntry, AuditEvent
from trustauthority.ports import Journal, Store, Transaction
from trustauthority.services.secrets import AuthoritySecrets

MAX_PAGE = 1000
REFUSAL_EVERY_S = 60.0
MAX_REFUSALS = 1_000
"""Different refusals of one minute; further ones are in the log of calls only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditProof:
    """RFC 6962 proofs for one entry."""

    inclusion: tuple[bytes, ...]
    consistency: tuple[bytes, ...]
    checkpoint: str


class AuditService:
    """Checkpoints and entries."""

    def __init__(self, store: Store, keys: AuthoritySecrets, journal: Journal) -> None:
        self._store = store
        self._keys = keys
        self._journal = journal
        self._newest: tuple[int, str] = (-1, "")
        self._refusals: dict[tuple[str, str], float] = {}

    @property
    def public_key(self) -> bytes:
        """Ed25519 public key, 32 bytes."""
        return self._keys.audit_key.public_key().public_bytes(
            serialization.Encoding.Raw, serialization.PublicFormat.Raw
        )

    @property
    def origin(self) -> str:
        """Origin line of the checkpoints."""
        return self._keys.origin

    async def checkpoint(self, *, cheaply: bool = False) -> str:
        """The newest checkpoint, signed; cheaply, the newest that this process has made."""
        if cheaply and self._newest[1]:
            return self._newest[1]
        async with self._store.snapshot() as tx:
            return await self._checkpoint(tx)

    async def check_echo(self, note: str) -> None:
        """Compare a checkpoint that a caller saw with our log.

        A checkpoint that we did not sign proves nothing and is refused as a bad request; one that we
        signed and do not contain means that the database was rolled back or forked.

        Raises:
            InvalidRequest: not signed by this log's key.
            RollbackDetected: releases are stopped from now on.
        """
        try:
            seen = open_checkpoint(note, origin=self.origin, public_key=self.public_key)
        except CheckpointInvalid as error:
            raise InvalidRequest(
                f"the echoed checkpoint is not ours: {error.message}", field="ta-checkpoint-bin"
            ) from error
        async with self._store.snapshot() as tx:
            size, era = await tx.audit.size(), await tx.audit.era()
            contained = seen.size <= size and await tx.audit.root(seen.size) == seen.root
        if seen.era < era or (seen.era == era and contained):
            return  # of a time before an accepted loss, or in our tree
        if seen.era > era:
            because = (
                "a caller showed a signed checkpoint from after a loss that was accepted later"
            )
        elif seen.size > size:
            because = (
                f"a caller showed a signed checkpoint of {seen.size} entries; "
                f"this database holds {size}"
            )
        else:
            because = f"a caller showed another tree of {seen.size} entries"
        async with self._store.transaction() as tx:
            await tx.audit.halt(await tx.audit.halted_because() or because)
        self._journal.record("rollback_detected", because=because)
        raise RollbackDetected(f"releases are stopped: {because}", detail=because)

    async def entries(self, *, start: int, limit: int) -> tuple[Sequence[AuditEntry], str]:
        """A range of entries and the newest checkpoint; a negative start counts from the end."""
        async with self._store.snapshot() as tx:
            if start < 0:
                start = max(0, await tx.audit.size() + start)
            found = await tx.audit.entries(start=start, limit=min(limit or 100, MAX_PAGE))
            return found, await self._checkpoint(tx)

    async def record_refusal(self, actor: str, method: str) -> bool:
        """Record that a caller made a call which its roles do not allow (N62).

        Once a minute per caller and call, or a caller could fill the log. Returns whether it was.
        """
        now = time.monotonic()
        for key, told_at in tuple(self._refusals.items()):
            if now - told_at > REFUSAL_EVERY_S:
                del self._refusals[key]
        if (actor, method) in self._refusals or len(self._refusals) >= MAX_REFUSALS:
            return False
        self._refusals[actor, method] = now
        async with self._store.transaction() as tx:
            await tx.audit.append(
                AuditEvent(
                    actor=actor,
                    operation="access.refused",
                    subject=actor,
                    decision="refused",
                    reason=RoleRequired.reason,
                    details={"call": method},
                )
            )
        return True

    async def prove(self, *, sequence: int, size: int, old_size: int) -> AuditProof:
        """Prove that an entry is in a tree, and that an older tree is its prefix.

        Raises:
            InvalidRequest: no such entry or tree.
        """
        async with self._store.snapshot() as tx:
            newest = await tx.audit.size()
            size = size or newest
            if not 0 <= sequence < size <= newest or not 0 <= old_size <= size:
                raise InvalidRequest("no such entry or tree", field="sequence")
            leaves = [entry.leaf for entry in await tx.audit.entries(start=0, limit=size)]
            return AuditProof(
                inclusion=tuple(inclusion_proof(leaves, sequence)),
                consistency=tuple(consistency_proof(leaves, old_size)) if old_size else (),
                checkpoint=await self._checkpoint(tx) if size == newest else "",
            )

    async def _checkpoint(self, tx: Transaction) -> str:
        size = await tx.audit.size()
        known, note = self._newest
        if known == size:
            return note
        text = encode_checkpoint(
            Checkpoint(
                origin=self.origin,
                size=size,
                root=await tx.audit.root(size),
                extensions=(f"{ERA}{await tx.audit.era()}",),
            )
        )
        note = encode_note(
            text=text,
            name=self.origin,
            public_key=self.public_key,
            signature=self._keys.audit_key.sign(text.encode()),
        )
        self._newest = (size, note)
        return note
