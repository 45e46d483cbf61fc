"""Break-glass: opened, listed and closed by people, and used by a host whose verdict is in the way.

What it guarantees: each step is in the audit log with the words of whoever opened it; whether a host
gets anything is decided by ``placement.break_glass`` alone, in the transaction of the release. What
it does not do: skip a quote, a revocation, an admission or a fence.
"""

import secrets
from collections.abc import Sequence

from trustauthority.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    TrustAuthorityError,
)
from trustauthority.model.audit import AuditEvent
from trustauthority.model.host import Admission, HostRecord
from trustauthority.model.identifiers import RequestId, VmId
from trustauthority.model.placement import PlacementState, Sharing
from trustauthority.model.requests import (
    BreakGlassRenewRequest,
    BreakGlassRequest,
    GrantRequest,
    RenewRequest,
)
from trustauthority.model.vm import BreakGlassEntry
from trustauthority.ports import Store, Transaction
from trustauthority.services.decisions import audit_decision
from trustauthority.services.hosts import find_host

MIN_REASON = 10
SHORTEST_MS, LONGEST_MS = 60_000, 8 * 3_600_000
MAX_LISTED = 500


class BreakGlassService:
    """What people do with break-glasses."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def open(
        self, vm: str, host_name: str, *, reason: str, ttl_ms: int, by: str
    ) -> BreakGlassEntry:
        """Let one host have one VM once, whatever its verdict says.

        Raises:
            InvalidRequest: without a reason, or for too long. NotFound: no such VM or host.
            FailedPrecondition: it could never be used: the host is not ours or revoked, or the VM is
                none of its cluster. AlreadyExists: one is open for both.
        """
        if len(reason.strip()) < MIN_REASON:
            raise InvalidRequest(
                f"say why, in {MIN_REASON} characters or more: auditors will ask", field="why"
            )
        if not SHORTEST_MS <= ttl_ms <= LONGEST_MS:
            raise InvalidRequest("a break-glass is open for 1 minute to 8 hours", field="ttl_ms")
        async with self._store.transaction() as tx:
            host = await find_host(tx, host_name)
            await _require_usable(tx, vm, host)
            entry = BreakGlassEntry(
                glass_id=RequestId(secrets.token_hex(8)),
                vm_id=VmId(vm),
                host_id=host.host_id,
                reason=reason.strip(),
                opened_by=by,
                opened_at_ms=tx.now_ms,
                expires_ms=tx.now_ms + ttl_ms,
            )
            await tx.break_glass.put(entry)
            await _audit(tx, entry, "key.open-break-glass", by, host.name)
        return entry

    async def listed(self, *, every: bool) -> tuple[Sequence[BreakGlassEntry], int]:
        """Those that are open, or all, newest first; and the time of the answer."""
        async with self._store.snapshot() as tx:
            return await tx.break_glass.page(open_only=not every, limit=MAX_LISTED), tx.now_ms

    async def close(self, glass_id: str, *, by: str) -> BreakGlassEntry:
        """End one before its time."""
        async with self._store.transaction() as tx:
            entry = await tx.break_glass.close(RequestId(glass_id), by=by)
            if entry is None:
                raise NotFound(
                    f"no break-glass {glass_id!r} is open; see ta key break-glass list",
                    kind="break-glass",
                    name=glass_id,
                )
            await _audit(tx, entry, "key.close-break-glass", by, "")
        return entry


async def ask_by_glass(
    tx: Transaction,
    host: HostRecord,
    request: GrantRequest,
    glass: BreakGlassEntry,
    *,
    instead_of: TrustAuthorityError,
) -> PlacementState | None:
    """Decide a request by a break-glass, within transaction 1; None when that refuses it, too."""
    asked = BreakGlassRequest(
        request_id=request.request_id, vm_id=request.vm_id, host_id=request.host_id
    )
    state, failed = await tx.placement.decide(asked)
    details = _details(glass) | {"request": request.request_id, "instead_of": instead_of.reason}
    await tx.audit.append(
        audit_decision(host, request.vm_id, "key.use-break-glass", failed, details)
    )
    return None if failed else state


async def renew_by_glass(
    tx: Transaction, host: HostRecord, request: RenewRequest
) -> PlacementState | None:
    """Renew a lease that a break-glass gave, in the transaction that refused it otherwise."""
    glass = await tx.break_glass.open_for(request.vm_id, host.host_id)
    if glass is None or glass.used_by is None:
        return None
    asked = BreakGlassRenewRequest(
        request_id=request.request_id,
        vm_id=request.vm_id,
        host_id=request.host_id,
        grant_epoch=request.grant_epoch,
    )
    state, failed = await tx.placement.decide(asked)
    details = _details(glass) | {"epoch": request.grant_epoch}
    await tx.audit.append(
        audit_decision(host, request.vm_id, "lease.renew-by-break-glass", failed, details)
    )
    return None if failed else state


async def _require_usable(tx: Transaction, vm: str, host: HostRecord) -> None:
    found = await tx.vms.get(vm)
    if found is None:
        raise NotFound(f"there is no VM {vm!r}; see ta vm list", kind="vm", name=vm)
    if found.sharing is not Sharing.EXCLUSIVE:
        raise FailedPrecondition(
            "a shared secret is not run: there is no break-glass for it", vm=vm
        )
    if found.cluster_id != host.cluster_id:
        raise FailedPrecondition(
            f"host {host.name} is of cluster {host.cluster_id}, the VM of {found.cluster_id}", vm=vm
        )
    if host.admission is not Admission.ADMITTED or host.revoked:
        raise FailedPrecondition(
            f"host {host.name} is {'revoked' if host.revoked else 'not admitted'}: no break-glass"
            " helps it",
            host=host.name,
        )
    if await tx.break_glass.open_for(VmId(vm), host.host_id) is not None:
        raise AlreadyExists(
            "a break-glass for this VM and host is open; see ta key break-glass list",
            kind="break-glass",
            name=vm,
        )


def _details(entry: BreakGlassEntry) -> dict[str, str | int]:
    return {
        "glass": entry.glass_id,
        "reason": entry.reason,
        "opened_by": entry.opened_by,
        "expires_ms": entry.expires_ms,
    }


async def _audit(
    tx: Transaction, entry: BreakGlassEntry, operation: str, by: str, host_name: str
) -> None:
    details = _details(entry) | {"host_id": entry.host_id}
    if host_name:
        details["host"] = host_name
    event = AuditEvent(
        actor=by, operation=operation, subject=entry.vm_id, decision="done", details=details
    )
    await tx.audit.append(event)
