"""Release policies of VMs: set by whoever administers keys, signed by the VM's owner where there is one.

What it guarantees: versions only grow, by one conditional write with its audit entry; once a version
names an owner's key, no further version counts without a signature by that key. What it does not do:
decide about releases: the policy's row is a precondition of the grant (``placement.release_policy``).
"""

import hashlib
from dataclasses import dataclass

from trustauthority.errors import (
    Conflict,
    InvalidRequest,
    KeyNotPermitted,
    NotFound,
    OwnerSignatureInvalid,
    PolicyInvalid,
)
from trustauthority.keyrelease.releasepolicy import (
    check_owner_signature,
    decision_record,
    decode_release_policy,
    encode_release_policy,
    explain,
)
from trustauthority.model.audit import AuditEvent
from trustauthority.model.identifiers import VmId, is_name
from trustauthority.model.releasepolicy import ReleasePolicy, ReleasePolicyEntry
from trustauthority.ports import Store, Transaction
from trustauthority.services.hosts import find_host


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasePolicyView:
    """A VM's release policy as people see it."""

    entry: ReleasePolicyEntry | None
    """None when the VM has no policy."""
    lines: tuple[str, ...]
    """What it asks for."""


class ReleasePolicyService:
    """Administration of release policies."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, vm: str) -> ReleasePolicyView:
        """A VM's release policy. Raises NotFound."""
        async with self._store.snapshot() as tx:
            await _require_vm(tx, vm)
            entry = await tx.release_policies.get(VmId(vm))
        if entry is None:
            return ReleasePolicyView(entry=None, lines=explain(ReleasePolicy(vm=vm, version=1)))
        return ReleasePolicyView(entry=entry, lines=explain(decode_release_policy(entry.document)))

    async def put(
        self, vm: str, document: bytes, signature: bytes, *, by: str, dry_run: bool = False
    ) -> ReleasePolicyView:
        """Put a version in force.

        Raises:
            NotFound: no such VM. PolicyInvalid: the document is not one, or another VM's, or its
                version is not newer. OwnerSignatureInvalid: the owner did not sign it.
        """
        policy = decode_release_policy(document)
        canonical = encode_release_policy(policy)
        async with self._store.transaction() as tx:
            await _require_vm(tx, vm)
            if policy.vm != vm:
                raise PolicyInvalid(f"the release policy is VM {policy.vm!r}'s", fields="vm")
            current = await tx.release_policies.get(VmId(vm))
            version = 0 if current is None else current.record.version
            if policy.version <= version:
                raise PolicyInvalid(
                    f"version {policy.version} is not newer than {version}", fields="version"
                )
            owner = "" if current is None else decode_release_policy(current.document).owner_key
            if owner:
                check_owner_signature(owner, canonical, signature)
            elif signature:
                raise OwnerSignatureInvalid("the VM has no owner's key yet: nothing to check it by")
            entry = ReleasePolicyEntry(
                record=decision_record(policy),
                document=canonical,
                signature=signature,
                set_at_ms=tx.now_ms,
                set_by=by,
            )
            view = ReleasePolicyView(entry=entry, lines=explain(policy))
            if dry_run:
                return view
            if not await tx.release_policies.put(entry, after_version=version):
                raise Conflict("the release policy changed meanwhile", kind="vm", name=vm)
            details: dict[str, str | int] = {
                "version": policy.version,
                "sha256": hashlib.sha256(canonical).hexdigest(),
                "signed": int(bool(owner)),
            }
            await _audit(tx, "vm.release-policy", vm, by=by, details=details)
        return view

    async def set_region(self, name: str, region: str, *, by: str) -> None:
        """Say in which region a host is. Raises NotFound, InvalidRequest."""
        if region and not is_name(region):
            raise InvalidRequest("region: 1-63 characters of a-z 0-9 . _ -", field="region")
        async with self._store.transaction() as tx:
            host = await find_host(tx, name)
            await tx.release_policies.set_region(host.host_id, region)
            details: dict[str, str | int] = {"host": host.name, "region": region}
            await _audit(tx, "host.region", host.host_id, by=by, details=details)


async def require_intact(tx: Transaction, vm: VmId) -> None:
    """Refuse a release under a policy whose columns do not say what its document says."""
    entry = await tx.release_policies.get(vm)
    if entry is None:
        return
    try:
        intact = decision_record(decode_release_policy(entry.document)) == entry.record
    except PolicyInvalid:
        intact = False
    if not intact:
        raise KeyNotPermitted("the VM's release policy is not the one that was set")


async def _require_vm(tx: Transaction, vm: str) -> None:
    if await tx.vms.get(vm) is None:
        raise NotFound(f"there is no VM {vm!r}; see ta vm list", kind="vm", name=vm)


async def _audit(
    tx: Transaction, operation: str, subject: str, *, by: str, details: dict[str, str | int]
) -> None:
    event = AuditEvent(
        actor=by, operation=operation, subject=subject, decision="done", details=details
    )
    await tx.audit.append(event)
