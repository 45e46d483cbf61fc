"""Administration of VM keys: made, listed, and taken through the states of their life.

What it guarantees: a step that the table of ``keyrelease.states`` does not have is refused; a state
changes only where it still is the one that was judged, with its audit entry in the same transaction;
the newest answer of the audit log is what a key's releases are told from. What it does not do: release
(``services.keys``), or erase (``services.destruction``). No plaintext comes here: ``ports.KeyRoom``.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from trustauthority.errors import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    NotFound,
)
from trustauthority.keyrelease.keyimport import check_sealed
from trustauthority.keyrelease.states import KeyStep, after
from trustauthority.model.audit import AuditEvent
from trustauthority.model.identifiers import VmId
from trustauthority.model.placement import KeyState
from trustauthority.model.vm import NewKey, VmKeyEntry
from trustauthority.ports import KeyRoom, Store, Transaction
from trustauthority.services.keyproviders import DEFAULT_PROVIDER, KeyProviderService
from trustauthority.services.orders import wrapping_aad

DESTROY_DELAY_MS = 7 * 24 * 3_600_000
"""How long a destruction can be taken back, unless configured otherwise."""
STEPS_OF_PEOPLE = frozenset(
    {KeyStep.SUSPEND, KeyStep.RESUME, KeyStep.DEACTIVATE, KeyStep.COMPROMISE}
)
"""Steps that are taken at once; destruction has a delay, and activation belongs to a roll."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyName:
    """One key: a VM, and which of its keys."""

    vm: str
    key_epoch: int = 0
    """0 for the current one."""


class KeyAdministration:
    """Creation, lists and states of VM keys."""

    def __init__(
        self,
        store: Store,
        room: KeyRoom,
        providers: KeyProviderService,
        *,
        destroy_delay_ms: int = DESTROY_DELAY_MS,
    ) -> None:
        self._store = store
        self._room = room
        self._providers = providers
        self._destroy_delay_ms = destroy_delay_ms

    async def create(self, vm: str, *, provider: str, by: str) -> VmKeyEntry:
        """Make the first key of a protected VM, wrapped by the provider's KEK."""

        async def make(provider: str, kek_id: str, aad: bytes) -> NewKey:
            return await self._room.create_key(provider, kek_id, aad)

        return await self._first(vm, make, provider=provider, operation="key.create", by=by)

    async def take_in(self, vm: str, sealed: bytes, *, provider: str, by: str) -> VmKeyEntry:
        """Make an existing passphrase the first key of a protected VM.

        Args:
            vm: the VM, for which the passphrase was sealed.
            sealed: as of ``keyrelease.keyimport``; it is opened in the key room's child only.
            provider: empty for the cluster's.
            by: who asks.
        """
        check_sealed(sealed)

        async def make(provider: str, kek_id: str, aad: bytes) -> NewKey:
            return await self._room.import_key(provider, kek_id, aad, sealed=sealed, vm=vm)

        return await self._first(vm, make, provider=provider, operation="key.import", by=by)

    async def _first(
        self,
        vm: str,
        make: Callable[[str, str, bytes], Awaitable[NewKey]],
        *,
        provider: str,
        operation: str,
        by: str,
    ) -> VmKeyEntry:
        async with self._store.snapshot() as tx:
            entry = await tx.vms.get(vm)
            if entry is None:
                raise NotFound(f"there is no VM {vm!r}; see ta vm protect", kind="vm", name=vm)
            if entry.key_epoch > 0:
                raise AlreadyExists(f"VM {vm!r} has a key", kind="key", name=vm)
            defaults = await tx.key_providers.defaults()
        provider = provider or defaults.get(entry.cluster_id, DEFAULT_PROVIDER)
        kek_id = (await self._providers.kek(provider, by=by)).kek_id
        new = await make(provider, kek_id, wrapping_aad(entry.vm_id, 1, provider))
        async with self._store.transaction() as tx:
            key = VmKeyEntry(
                vm_id=entry.vm_id,
                key_epoch=1,
                state=KeyState.ACTIVE,
                provider=provider,
                kek_id=kek_id,
                wrapped=new.wrapped,
                escrowed=new.escrowed,
                created_at_ms=tx.now_ms,
                created_by=by,
                changed_at_ms=tx.now_ms,
            )
            await _require_current(tx, provider, kek_id)
            if not await tx.keys.put(key):
                raise AlreadyExists(f"VM {vm!r} has a key", kind="key", name=vm)
            details: dict[str, str | int] = {"provider": provider, "kek": kek_id, "key_epoch": 1}
            await _audit(tx, operation, key, by=by, details=details)
        return key

    async def page(self, *, after: str, limit: int) -> Sequence[VmKeyEntry]:
        """List VM keys."""
        async with self._store.snapshot() as tx:
            return await tx.keys.page(after=after, limit=limit)

    async def get(self, vm: str) -> tuple[VmKeyEntry, Sequence[Mapping[str, object]]]:
        """One key and its releases, newest first, from the audit log."""
        async with self._store.snapshot() as tx:
            key = await _key(tx, KeyName(vm=vm))
            entries = await tx.audit.about(operation="key.release", subject=vm, limit=100)
        return key, [json.loads(entry.content) for entry in entries]

    async def epochs(self, vm: str) -> Sequence[VmKeyEntry]:
        """Every key that a VM ever had, newest first."""
        async with self._store.snapshot() as tx:
            return await tx.keys.epochs(VmId(vm))

    # --- states --------------------------------------------------------------------------------

    async def change(
        self, name: KeyName, step: KeyStep, *, why: str, by: str, dry_run: bool = False
    ) -> VmKeyEntry:
        """Take a key one step further.

        Raises:
            NotFound: no such key. FailedPrecondition: its state does not allow the step.
            Conflict: somebody else changed it first.
        """
        if step not in STEPS_OF_PEOPLE:
            raise FailedPrecondition(f"{step} is not a step of its own", step=step)
        async with self._store.transaction() as tx:
            was = await _key(tx, name)
            state = after(step, was.state)
            now = replace(was, state=state, changed_at_ms=tx.now_ms)
            if dry_run:
                return now
            await _swap(tx, was, now)
            await _audit(tx, f"key.{step}", now, by=by, details=_step_details(was, why))
        return now

    async def destroy(
        self, name: KeyName, *, why: str, by: str, dry_run: bool = False
    ) -> VmKeyEntry:
        """Have a key destroyed once the delay is over; until then it can be taken back.

        Raises:
            NotFound, Conflict: as for ``change``. FailedPrecondition: its state does not allow that,
                or it will be destroyed anyway.
        """
        async with self._store.transaction() as tx:
            was = await _key(tx, name)
            after(KeyStep.DESTROY, was.state)
            if was.destroy_at_ms:
                raise FailedPrecondition(
                    "the key will be destroyed already; see ta key show", state=was.state
                )
            # at least a millisecond: 0 stands for never
            now = replace(was, destroy_at_ms=tx.now_ms + max(1, self._destroy_delay_ms))
            if dry_run:
                return now
            await _swap(tx, was, now)
            details = _step_details(was, why) | {"destroy_at_ms": now.destroy_at_ms}
            await _audit(tx, "key.schedule-destroy", now, by=by, details=details)
        return now

    async def cancel_destroy(
        self, name: KeyName, *, why: str, by: str, dry_run: bool = False
    ) -> VmKeyEntry:
        """Take a destruction back; the key stays in its state, and is not released because of it.

        Raises:
            NotFound, Conflict: as for ``change``. FailedPrecondition: nothing to take back.
        """
        async with self._store.transaction() as tx:
            was = await _key(tx, name)
            if not was.destroy_at_ms:
                raise FailedPrecondition(
                    f"the key is {was.state}, and nobody asked to destroy it", state=was.state
                )
            now = replace(was, destroy_at_ms=0)
            if dry_run:
                return now
            await _swap(tx, was, now)
            await _audit(tx, "key.cancel-destroy", now, by=by, details=_step_details(was, why))
        return now


async def _require_current(tx: Transaction, provider: str, kek_id: str) -> None:
    """A key must not come to rest under a KEK that was replaced while the KMS made it."""
    current = await tx.key_providers.current(provider)
    if current is None or current.kek_id != kek_id:
        raise Conflict(f"provider {provider!r} got another KEK meanwhile; repeat")


async def _key(tx: Transaction, name: KeyName) -> VmKeyEntry:
    if name.key_epoch == 0:
        current = await tx.keys.current(VmId(name.vm))
        if current is None:
            raise NotFound(f"VM {name.vm!r} has no key", kind="key", name=name.vm)
        return current
    for entry in await tx.keys.epochs(VmId(name.vm)):
        if entry.key_epoch == name.key_epoch:
            return entry
    raise NotFound(f"VM {name.vm!r} has no key of epoch {name.key_epoch}", kind="key", name=name.vm)


async def _swap(tx: Transaction, was: VmKeyEntry, now: VmKeyEntry) -> None:
    if not await tx.keys.replace(was, now):
        raise Conflict("the key changed meanwhile; look at it again", kind="key", name=was.vm_id)


def _step_details(was: VmKeyEntry, why: str) -> dict[str, str | int]:
    return {"key_epoch": was.key_epoch, "from": str(was.state), "why": why}


async def _audit(
    tx: Transaction, operation: str, key: VmKeyEntry, *, by: str, details: Mapping[str, str | int]
) -> None:
    event = AuditEvent(
        actor=by, operation=operation, subject=key.vm_id, decision="done", details=details
    )
    await tx.audit.append(event)
