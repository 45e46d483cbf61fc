"""Changes of protected VMs: another profile, and the end of their protection.

Each is one conditional statement with its audit entry. Neither gives anybody a right: a new profile
counts at the next start, and a retired VM is refused from the acknowledgement on.
"""

from trustauthority.errors import Conflict, FailedPrecondition, InvalidRequest
from trustauthority.model.audit import AuditEvent
from trustauthority.model.placement import VmState
from trustauthority.model.vm import VmEntry
from trustauthority.ports import Store
from trustauthority.services.placement import find_vm

DIGEST_BYTES = 32


class VmChanges:
    """What may be changed of a VM."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def reprofile(
        self, vm: str, profile_sha256: bytes, *, replaces: bytes, by: str, dry_run: bool
    ) -> VmEntry:
        """Replace the digest of a VM's profile, if it is the one that was looked at (6.3).

        Raises:
            Conflict: the digest is another one by now.
            FailedPrecondition: the VM is retired.
        """
        if len(profile_sha256) != DIGEST_BYTES or len(replaces) not in (0, DIGEST_BYTES):
            raise InvalidRequest("profile_digest has 32 bytes", field="profile_digest")
        async with self._store.transaction() as tx:
            entry = await find_vm(tx, vm)
            _require_protected(entry)
            if dry_run and entry.profile_sha256 == replaces:
                return entry
            if dry_run or not await tx.vms.reprofile(
                entry.vm_id, profile_sha256, replaces=replaces
            ):
                raise Conflict(
                    "the VM's profile was changed since it was looked at; show it and repeat",
                    kind="vm",
                    name=vm,
                )
            details = {"old": entry.profile_sha256.hex(), "new": profile_sha256.hex()}
            await tx.audit.append(
                AuditEvent(
                    actor=by,
                    operation="vm.reprofile",
                    subject=vm,
                    decision="done",
                    details=details,
                )
            )
            return await find_vm(tx, vm)

    async def retire(
        self, vm: str, *, even_if_held: bool, why: str, by: str, dry_run: bool
    ) -> VmEntry:
        """Take a VM out of placement for good; its owner, if any, can't renew from now on.

        Raises:
            FailedPrecondition: a host holds it, or held it until its fence has passed.
        """
        async with self._store.transaction() as tx:
            entry = await find_vm(tx, vm)
            _require_protected(entry)
            free = entry.owner is None or entry.fence_until_ms <= tx.now_ms
            if dry_run and (even_if_held or free):
                return entry
            if dry_run or not await tx.vms.retire(entry.vm_id, even_if_held=even_if_held):
                raise FailedPrecondition(
                    f"a host holds VM {vm!r}: stop it first, or retire it even if held",
                    kind="vm",
                    name=vm,
                )
            await tx.audit.append(
                AuditEvent(
                    actor=by,
                    operation="vm.retire",
                    subject=vm,
                    decision="done",
                    details={"why": why, "owner": entry.owner or ""},
                )
            )
            return await find_vm(tx, vm)


def _require_protected(entry: VmEntry) -> None:
    if entry.state is VmState.RETIRED:
        raise FailedPrecondition(f"VM {entry.vm_id!r} is retired", kind="vm", name=entry.vm_id)
