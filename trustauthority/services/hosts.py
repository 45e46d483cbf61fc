"""Hosts and their life: list, explain, admit, re-bind, remove, revoke, reinstate.

Whatever takes trust away needs one person and no further check; whatever gives it names the exact
thing that was looked at by its hash, and a host that changed since is refused (I-E).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trustauthority.errors import AlreadyExists, Conflict, FailedPrecondition, NotFound
from trustauthority.model.audit import AuditEvent
from trustauthority.model.host import Admission, HostRecord
from trustauthority.model.verdict import Standing, standing_of
from trustauthority.model.vm import VmEntry
from trustauthority.ports import Store, Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """A host with its standing now."""

    host: HostRecord
    standing: Standing
    vms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """What a revocation did, and what it could not recall."""

    trust_epoch: int
    running: tuple[VmEntry, ...]
    """VMs that the host may still run until their leases end."""


class HostService:
    """Administration of hosts."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def page(self, *, cluster: str, after: str, limit: int) -> Sequence[HostView]:
        """List hosts with their standing."""
        async with self._store.snapshot() as tx:
            hosts = await tx.hosts.page(cluster=cluster, after=after, limit=limit)
            return [await view_of(tx, host) for host in hosts]

    async def get(self, name: str) -> tuple[HostView, Mapping[str, Any] | None]:
        """One host and its newest verdict (document, seal, report)."""
        async with self._store.snapshot() as tx:
            host = await find_host(tx, name)
            verdict = None
            if host.verdict_id is not None:
                verdict = await tx.archive.get_verdict(host.verdict_id)
            return await view_of(tx, host), verdict

    async def admit(
        self, name: str, *, approval_sha256: str, host_class: str = "", by: str, dry_run: bool
    ) -> HostView:
        """Make a waiting host one of ours, exactly as it was looked at, or give one another class.

        A class that is given voids the host's verdicts: it must attest anew under it.
        """
        async with self._store.transaction() as tx:
            host = await find_host(tx, name)
            _require_approved(host, approval_sha256)
            reclassed = host.admission is Admission.ADMITTED and host_class not in {
                "",
                host.host_class,
            }
            if host.admission is not Admission.WAITING and not reclassed:
                raise FailedPrecondition(f"{name} is {host.admission}, not waiting for admission")
            if dry_run:
                return await view_of(tx, host)
            if not await tx.hosts.set_admission(
                host.host_id, Admission.ADMITTED, name=host.name, host_class=host_class or None
            ):
                raise AlreadyExists(
                    f"another host is called {host.name}; use ta host rebind to replace it",
                    kind="host",
                    name=host.name,
                )
            await _audit(
                tx,
                by,
                "host.admit",
                host,
                approval=approval_sha256,
                host_class=host_class or host.host_class,
            )
            return await view_of(tx, await find_host(tx, host.host_id))

    async def rebind(
        self, name: str, new_host: str, *, approval_sha256: str, by: str, dry_run: bool
    ) -> HostView:
        """Give an admitted host's name to a new TPM; the old one is removed."""
        async with self._store.transaction() as tx:
            old, new = await find_host(tx, name), await find_host(tx, new_host)
            _require_approved(new, approval_sha256)
            if old.host_id == new.host_id or old.reserved_name is None:
                raise FailedPrecondition(f"{name} holds no name that {new_host} could take over")
            if new.admission is not Admission.WAITING or new.cluster_id != old.cluster_id:
                raise FailedPrecondition(f"{new_host} does not wait for admission in that cluster")
            if dry_run:
                return await view_of(tx, new)
            await tx.hosts.set_admission(old.host_id, Admission.REMOVED, name=None)
            host_class = new.host_class or old.host_class  # another board in the same machine
            await tx.hosts.set_admission(
                new.host_id,
                Admission.ADMITTED,
                name=old.reserved_name,
                host_class=host_class or None,
            )
            await _audit(
                tx,
                by,
                "host.rebind",
                new,
                replaced=old.host_id,
                name=old.reserved_name,
                host_class=host_class,
            )
            return await view_of(tx, await find_host(tx, new.host_id))

    async def remove(self, name: str, *, by: str, dry_run: bool) -> None:
        """Forget a host's name and trust; its row stays, so that its history does."""
        async with self._store.transaction() as tx:
            host = await find_host(tx, name)
            if dry_run:
                return
            await tx.hosts.set_admission(host.host_id, Admission.REMOVED, name=None)
            await _audit(tx, by, "host.remove", host)

    async def revoke(self, name: str, *, why: str, by: str, dry_run: bool) -> Revocation:
        """Take trust away: once this returns, nothing is released to the host (S7, N25)."""
        async with self._store.transaction() as tx:
            host = await find_host(tx, name)
            running = tuple(await tx.vms.owned_by(host.host_id))
            if dry_run:
                return Revocation(trust_epoch=host.trust_epoch, running=running)
            epoch = await tx.hosts.set_revoked(host.host_id, revoked=True)
            await _audit(tx, by, "host.revoke", host, why=why, trust_epoch=epoch)
            return Revocation(trust_epoch=epoch, running=running)

    async def reinstate(self, name: str, *, why: str, by: str, dry_run: bool) -> HostView:
        """Undo a revocation; the host must attest anew before it gets anything."""
        async with self._store.transaction() as tx:
            host = await find_host(tx, name)
            if not host.revoked:
                raise FailedPrecondition(f"{name} is not revoked")
            if not dry_run:
                epoch = await tx.hosts.set_revoked(host.host_id, revoked=False)
                await _audit(tx, by, "host.reinstate", host, why=why, trust_epoch=epoch)
            return await view_of(tx, await find_host(tx, host.host_id))

    async def set_draining(
        self, name: str, *, draining: bool, why: str, by: str, dry_run: bool
    ) -> HostView:
        """Let a host take no VM any more, before maintenance, or take VMs again."""
        async with self._store.transaction() as tx:
            host = await find_host(tx, name)
            if host.draining is not draining and not dry_run:
                await tx.placement.set_draining(host.host_id, draining=draining)
                if draining:
                    await _audit(tx, by, "host.drain", host, why=why)
                else:
                    await _audit(tx, by, "host.undrain", host)
            return await view_of(tx, await find_host(tx, host.host_id))

    async def revoke_all(self, *, why: str, by: str, dry_run: bool) -> int:
        """Stop everything: every verdict so far is void."""
        async with self._store.transaction() as tx:
            if dry_run:
                return (await tx.placement.authority()).global_epoch
            epoch = await tx.hosts.revoke_all(no_report_before_ms=tx.now_ms)
            await tx.audit.append(
                AuditEvent(
                    actor=by,
                    operation="host.revoke-all",
                    subject="*",
                    decision="done",
                    details={"why": why, "global_epoch": epoch},
                )
            )
            return epoch


async def find_host(tx: Transaction, name: str) -> HostRecord:
    """Find a host by id or reserved name.

    Raises:
        NotFound: there is none.
    """
    host = await tx.hosts.get(name)
    if host is None:
        raise NotFound(f"there is no host {name!r}; see ta host list", kind="host", name=name)
    return host


async def view_of(tx: Transaction, host: HostRecord) -> HostView:
    """A host with its standing now: derived, never stored."""
    clusters = {entry.cluster_id: entry for entry in await tx.catalogue.clusters()}
    authority = await tx.placement.authority()
    superseded = (
        host.revoked
        or host.verdict_trust_epoch != host.trust_epoch
        or host.verdict_global_epoch != authority.global_epoch
        or host.verdict_policy_epoch != clusters[host.cluster_id].policy_epoch
    )
    standing = standing_of(
        passed=host.passed,
        attested_until_ms=host.attested_until_ms,
        superseded=superseded,
        now_ms=tx.now_ms,
    )
    return HostView(host=host, standing=standing, vms=len(await tx.vms.owned_by(host.host_id)))


def _require_approved(host: HostRecord, approval_sha256: str) -> None:
    if host.approval_sha256 != approval_sha256:
        raise Conflict(
            "the host is not the one that was looked at; show it again and compare its approval hash",
            kind="host",
            name=host.name,
        )


async def _audit(
    tx: Transaction, by: str, operation: str, host: HostRecord, **details: str | int
) -> None:
    await tx.audit.append(
        AuditEvent(
            actor=by,
            operation=operation,
            subject=host.host_id,
            decision="done",
            details={"name": host.name, **details},
        )
    )
