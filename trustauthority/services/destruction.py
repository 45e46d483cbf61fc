"""Destroyed keys stay destroyed: erased when their time has come, and again after an older database.

What it guarantees: a key is erased by one conditional write, with its audit entry, only where its
destruction was asked for and not taken back; each destroyed key has a tombstone outside of the
database; a key with a tombstone is erased again whenever a database that still holds it is put in
place. What it does not do: reach copies of the database elsewhere. Those open only with the KEK, so
whoever wants them dead moves the other keys to a new KEK and destroys the old one in the KMS.
"""

from dataclasses import replace

from trustauthority.errors import Conflict
from trustauthority.keyrelease.states import DESTROYED, KeyStep, after
from trustauthority.model.audit import AuditEvent
from trustauthority.model.placement import KeyState
from trustauthority.model.vm import Tombstone, VmKeyEntry
from trustauthority.ports import Store, Tombstones, Transaction

BATCH = 100


class Destruction:
    """Erases keys, and remembers that it did."""

    def __init__(self, store: Store, tombstones: Tombstones) -> None:
        self._store = store
        self._tombstones = tombstones

    async def run(self) -> int:
        """Erase what is due, and bring tombstones and database together; how many keys were erased."""
        erased = await self._erase_due()
        await self._remember()
        return erased

    async def replay(self) -> int:
        """Erase every key that has a tombstone, whatever the database says; how many there were."""
        buried = {_identity(each): each for each in self._tombstones.entries()}
        if not buried:
            return 0
        erased = 0
        async with self._store.transaction() as tx:
            for key in await tx.keys.in_states(frozenset(KeyState) - DESTROYED):
                stone = buried.get(_identity(key))
                if stone is not None:
                    state = (
                        KeyState.DESTROYED_COMPROMISED if stone.compromised else KeyState.DESTROYED
                    )
                    await _erase(tx, key, state, why="destroyed before the database was put back")
                    erased += 1
        return erased

    async def _erase_due(self) -> int:
        async with self._store.snapshot() as tx:
            if not await tx.keys.due(limit=1):
                return 0
        async with self._store.transaction() as tx:
            due = await tx.keys.due(limit=BATCH)
            for key in due:
                await _erase(tx, key, after(KeyStep.DESTROY, key.state), why="the delay is over")
        return len(due)

    async def _remember(self) -> None:
        """Write what is missing: the erasure comes first, so that no tombstone lies about a living key."""
        async with self._store.snapshot() as tx:
            destroyed = await tx.keys.in_states(DESTROYED)
        known = {_identity(each) for each in self._tombstones.entries()} if destroyed else set()
        for key in destroyed:
            if _identity(key) not in known:
                self._tombstones.append(
                    Tombstone(
                        vm_id=key.vm_id,
                        key_epoch=key.key_epoch,
                        created_at_ms=key.created_at_ms,
                        destroyed_at_ms=key.changed_at_ms,
                        compromised=key.state is KeyState.DESTROYED_COMPROMISED,
                    )
                )


def _identity(key: VmKeyEntry | Tombstone) -> tuple[str, int, int]:
    return key.vm_id, key.key_epoch, key.created_at_ms


async def _erase(tx: Transaction, key: VmKeyEntry, state: KeyState, *, why: str) -> None:
    gone = replace(
        key, state=state, wrapped=b"", escrowed=b"", changed_at_ms=tx.now_ms, destroy_at_ms=0
    )
    if not await tx.keys.replace(key, gone):
        raise Conflict("the key changed meanwhile", kind="key", name=key.vm_id)
    await tx.audit.append(
        AuditEvent(
            actor="authority",
            operation="key.destroy",
            subject=key.vm_id,
            decision="done",
            details={"key_epoch": key.key_epoch, "from": str(key.state), "why": why},
        )
    )
