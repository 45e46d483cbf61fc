"""A new key for a VM, beside the one it has: the authority's part of changing a key slot.

What it guarantees: one new key at a time; hosts get exactly one key, the current one; the switch is one
conditional write in which both keys are still what was judged; the old key stays usable, to go back,
until somebody deactivates it. What it does not do: touch a disk. The new key opens nothing before its
key slot was added, and no new key helps against whoever has the old one and a copy of the disk.
"""

from dataclasses import replace

from trustauthority.errors import Conflict, FailedPrecondition, NotFound
from trustauthority.keyrelease.states import KeyStep, after
from trustauthority.model.audit import AuditEvent
from trustauthority.model.identifiers import VmId
from trustauthority.model.placement import KeyState
from trustauthority.model.vm import VmKeyEntry
from trustauthority.ports import KeyRoom, Store, Transaction
from trustauthority.services.keyproviders import KeyProviderService
from trustauthority.services.orders import wrapping_aad


class KeyRollService:
    """New keys of VMs, and which one is released."""

    def __init__(self, store: Store, room: KeyRoom, providers: KeyProviderService) -> None:
        self._store = store
        self._room = room
        self._providers = providers

    async def roll(self, vm: str, *, by: str, dry_run: bool = False) -> VmKeyEntry:
        """Make the next key of a VM. It is pre-active: nothing changes for hosts.

        Raises:
            NotFound: the VM has no key. FailedPrecondition: its key is not active, or a new one waits.
            KmsUnavailable: no key was made.
        """
        async with self._store.snapshot() as tx:
            current, newest = await _rollable(tx, vm)
        epoch = newest + 1
        if dry_run:
            return replace(current, key_epoch=epoch, state=KeyState.PRE_ACTIVE, destroy_at_ms=0)
        provider = current.provider
        kek_id = (await self._providers.kek(provider, by=by)).kek_id
        aad = wrapping_aad(current.vm_id, epoch, provider)
        new = await self._room.create_key(provider, kek_id, aad)
        async with self._store.transaction() as tx:
            await _rollable(tx, vm)
            kek = await tx.key_providers.current(provider)
            key = VmKeyEntry(
                vm_id=current.vm_id,
                key_epoch=epoch,
                state=KeyState.PRE_ACTIVE,
                provider=provider,
                kek_id=kek_id,
                wrapped=new.wrapped,
                escrowed=new.escrowed,
                created_at_ms=tx.now_ms,
                created_by=by,
                changed_at_ms=tx.now_ms,
            )
            if kek is None or kek.kek_id != kek_id or not await tx.keys.put(key):
                raise Conflict("the VM's keys or its provider changed meanwhile; repeat")
            await _audit(tx, "key.roll", key, by=by, old=current.key_epoch)
        return key

    async def switch(
        self, vm: str, key_epoch: int, *, by: str, dry_run: bool = False
    ) -> VmKeyEntry:
        """Let another key of a VM be the one that hosts get: the new one, or the old one again.

        Raises:
            NotFound: no such key. FailedPrecondition: it is the current one, or ended.
            Conflict: somebody else changed one of the two first.
        """
        async with self._store.transaction() as tx:
            current = await tx.keys.current(VmId(vm))
            wanted = next(
                (k for k in await tx.keys.epochs(VmId(vm)) if k.key_epoch == key_epoch), None
            )
            if current is None or wanted is None:
                raise NotFound(f"VM {vm!r} has no key of epoch {key_epoch}", kind="key", name=vm)
            if current.key_epoch == key_epoch:
                raise FailedPrecondition(f"key {key_epoch} is the current one already")
            now = wanted
            if wanted.state is not KeyState.ACTIVE:
                state = after(KeyStep.ACTIVATE, wanted.state)
                now = replace(wanted, state=state, changed_at_ms=tx.now_ms, destroy_at_ms=0)
            if dry_run:
                return now
            if not await tx.keys.replace(wanted, now) or not await tx.keys.make_current(
                current, now
            ):
                raise Conflict("the VM's keys changed meanwhile; look at them again")
            await _audit(tx, "key.switch", now, by=by, old=current.key_epoch)
        return now


async def _rollable(tx: Transaction, vm: str) -> tuple[VmKeyEntry, int]:
    """The current key and the newest epoch, where a new key may be made."""
    current = await tx.keys.current(VmId(vm))
    if current is None:
        raise NotFound(f"VM {vm!r} has no key", kind="key", name=vm)
    if current.state is not KeyState.ACTIVE:
        raise FailedPrecondition(
            f"the VM's key is {current.state}: nobody could open the disk to add a key slot",
            state=current.state,
        )
    epochs = await tx.keys.epochs(VmId(vm))
    waiting = [k for k in epochs if k.state is KeyState.PRE_ACTIVE and not k.destroy_at_ms]
    if waiting:
        raise FailedPrecondition(
            f"key {waiting[0].key_epoch} of the VM waits already: ta key roll {vm} --to "
            f"{waiting[0].key_epoch}, or ta key destroy {vm} --epoch {waiting[0].key_epoch}"
        )
    return current, epochs[0].key_epoch


async def _audit(tx: Transaction, operation: str, key: VmKeyEntry, *, by: str, old: int) -> None:
    event = AuditEvent(
        actor=by,
        operation=operation,
        subject=key.vm_id,
        decision="done",
        details={"key_epoch": key.key_epoch, "old_key_epoch": old, "kek": key.kek_id},
    )
    await tx.audit.append(event)
