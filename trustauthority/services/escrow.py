"""Escrow of VM keys: exported, sealed anew to another offline key, and drilled.

What it guarantees: what leaves is sealed to the offline key; a drill is recorded as passed only when
the answer is that of the very key that hosts are given. What it does not do: open what is sealed,
which nobody here can. No plaintext comes here: ``ports.EscrowRoom``.
"""

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hmac import compare_digest

from trustauthority.errors import FailedPrecondition, KmsUnavailable, NotFound
from trustauthority.keyrelease.escrow import CHALLENGE_SIZE, decode_escrowed
from trustauthority.keyrelease.escrow_export import Drill
from trustauthority.model.audit import AuditEvent
from trustauthority.model.escrow import EscrowBinding, StoredKey
from trustauthority.model.identifiers import VmId
from trustauthority.model.vm import VmKeyEntry
from trustauthority.ports import EscrowRoom, Store, Transaction
from trustauthority.services.orders import wrapping_aad

DRILL_ENDS_MS = 30 * 24 * 3_600_000
"""How long an offline machine may take to answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EscrowPage:
    """Escrowed keys of some VMs."""

    keys: Sequence[VmKeyEntry]
    missing: Sequence[str]
    """VMs whose current key is not escrowed."""
    after: str
    """Where the next page begins; empty on the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resealed:
    """What became of the keys of some VMs."""

    resealed: int
    current: int
    failed: Sequence[str]
    after: str


class EscrowService:
    """Escrow, from the authority's side."""

    def __init__(self, store: Store, room: EscrowRoom, *, origin: str, key_id: str) -> None:
        self._store = store
        self._room = room
        self._origin = origin
        self._key_id = key_id
        """Of the escrow key of today, in hex; empty when none was chosen."""

    async def note_key(self) -> None:
        """Record a change of the escrow key: whoever changes it can read what is made since."""
        async with self._store.transaction() as tx:
            entries = await tx.audit.about(
                operation="authority.use-escrow-key", subject=self._origin, limit=1
            )
            before = json.loads(entries[0].content)["details"]["key_id"] if entries else "none"
            now = self._key_id or "none"
            if now != before:
                await tx.audit.append(
                    AuditEvent(
                        actor="authority",
                        operation="authority.use-escrow-key",
                        subject=self._origin,
                        decision="done",
                        details={"key_id": now, "before": before},
                    )
                )

    async def count_missing(self) -> int:
        """How many VMs have a key that today's escrow key does not open."""
        missing = 0
        async with self._store.snapshot() as tx:
            after = ""
            while page := await tx.keys.page(after=after, limit=500):
                missing += sum(not self._is_current(key) for key in page if key.wrapped)
                after = page[-1].vm_id
        return missing

    async def export(self, *, after: str, limit: int, by: str) -> EscrowPage:
        """Escrowed keys of all epochs of some VMs; each page is recorded: one may begin anywhere."""
        async with self._store.transaction() as tx:
            page = await tx.keys.page(after=after, limit=limit)
            keys = [key for current in page for key in await tx.keys.epochs(current.vm_id)]
            await tx.audit.append(
                AuditEvent(
                    actor=by,
                    operation="key.export-escrow",
                    subject="*",
                    decision="done",
                    details={"after": after, "keys": sum(bool(key.escrowed) for key in keys)},
                )
            )
        return EscrowPage(
            keys=[key for key in keys if key.escrowed],
            missing=[key.vm_id for key in page if key.wrapped and not key.escrowed],
            after=page[-1].vm_id if len(page) == limit else "",
        )

    async def reseal(self, *, after: str, limit: int, by: str) -> Resealed:
        """Seal the keys of some VMs to the escrow key of today. Repeating it does nothing twice.

        Raises:
            FailedPrecondition: no escrow key was chosen.
        """
        if not self._key_id:
            raise FailedPrecondition("no escrow key was chosen: trustauthority escrow-key FILE")
        async with self._store.snapshot() as tx:
            page = await tx.keys.page(after=after, limit=limit)
            keys = [key for current in page for key in await tx.keys.epochs(current.vm_id)]
        kept = [key for key in keys if key.wrapped]
        wanted = [key for key in kept if not self._is_current(key)]
        failed = [why for key in wanted if (why := await self._reseal(key, by=by))]
        return Resealed(
            resealed=len(wanted) - len(failed),
            current=len(kept) - len(wanted),
            failed=failed,
            after=page[-1].vm_id if len(page) == limit else "",
        )

    # --- drills --------------------------------------------------------------------------------

    async def begin_drill(self, vm: str, *, by: str) -> Drill:
        """Ask a question about a VM's current key that only a holder of it can answer."""
        challenge = secrets.token_bytes(CHALLENGE_SIZE)
        async with self._store.transaction() as tx:
            key = await _current(tx, vm)
            if not key.escrowed:
                raise FailedPrecondition(
                    f"the key of VM {vm!r} is not escrowed: ta key escrow reseal", vm=vm
                )
            await tx.audit.append(
                AuditEvent(
                    actor=by,
                    operation="key.begin-drill",
                    subject=vm,
                    decision="done",
                    details={"key_epoch": key.key_epoch, "challenge_sha256": _hash(challenge)},
                )
            )
        binding = EscrowBinding(origin=self._origin, vm_id=key.vm_id, key_epoch=key.key_epoch)
        return Drill(binding=binding, challenge=challenge, blob=key.escrowed)

    async def record_drill(
        self, vm: str, *, key_epoch: int, challenge: bytes, answer: bytes, by: str
    ) -> bool:
        """Judge an answer, and record what it was.

        Raises:
            FailedPrecondition: nobody asked that within the last 30 days, or the VM has another key now.
            KmsUnavailable: it can't be judged now; repeat.
        """
        async with self._store.snapshot() as tx:
            key = await _current(tx, vm)
            await _require_asked(tx, vm, challenge)
        if key.key_epoch != key_epoch:
            raise FailedPrecondition(
                f"VM {vm!r} has key epoch {key.key_epoch} by now: begin another drill", vm=vm
            )
        right = await self._room.answer_drill(stored_key(key), challenge)
        passed = compare_digest(right, answer)
        async with self._store.transaction() as tx:
            await tx.audit.append(
                AuditEvent(
                    actor=by,
                    operation="key.record-drill",
                    subject=vm,
                    decision="passed" if passed else "failed",
                    details={
                        "key_epoch": key_epoch,
                        "challenge_sha256": _hash(challenge),
                        "escrow_key": decode_escrowed(key.escrowed).recipient.hex()
                        if key.escrowed
                        else "",
                    },
                )
            )
        return passed

    # --- parts ---------------------------------------------------------------------------------

    def _is_current(self, key: VmKeyEntry) -> bool:
        if not key.escrowed or not self._key_id:
            return False
        return decode_escrowed(key.escrowed).recipient.hex() == self._key_id

    async def _reseal(self, key: VmKeyEntry, *, by: str) -> str:
        """Why not, or nothing."""
        name = f"{key.vm_id}, key epoch {key.key_epoch}"
        try:
            escrowed = await self._room.escrow(stored_key(key))
        except KmsUnavailable as error:
            return f"{name}: {error.message}"
        async with self._store.transaction() as tx:
            if not await tx.keys.replace(key, replace(key, escrowed=escrowed)):
                return f"{name}: it changed meanwhile"
            await tx.audit.append(
                AuditEvent(
                    actor=by,
                    operation="key.reseal-escrow",
                    subject=key.vm_id,
                    decision="done",
                    details={"key_epoch": key.key_epoch, "escrow_key": self._key_id},
                )
            )
        return ""


def stored_key(key: VmKeyEntry) -> StoredKey:
    """Where the key room finds a key."""
    return StoredKey(
        provider=key.provider,
        kek_id=key.kek_id,
        wrapped=key.wrapped,
        aad=wrapping_aad(key.vm_id, key.key_epoch, key.provider),
    )


async def _current(tx: Transaction, vm: str) -> VmKeyEntry:
    key = await tx.keys.current(VmId(vm))
    if key is None or not key.wrapped:
        raise NotFound(f"VM {vm!r} has no key", kind="key", name=vm)
    return key


async def _require_asked(tx: Transaction, vm: str, challenge: bytes) -> None:
    begun = await tx.audit.about(operation="key.begin-drill", subject=vm, limit=50)
    for entry in begun:
        content = json.loads(entry.content)
        if content["details"].get("challenge_sha256") == _hash(challenge):
            if content["time_ms"] > tx.now_ms - DRILL_ENDS_MS:
                return
            raise FailedPrecondition("the drill is older than 30 days: begin another", vm=vm)
    raise FailedPrecondition("no drill with this challenge was begun for this VM", vm=vm)


def _hash(challenge: bytes) -> str:
    return hashlib.sha256(challenge).hexdigest()
