"""Databases for the contract of the store ports: every test takes a factory of stores.

A factory opens any number of stores on one database, as the nodes of one authority do. SQLite is
the one engine today; PostgreSQL can be added to ``ENGINES`` and meets the same tests.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from fakes.clock import FakeClock
from sqlalchemy import Table, select

from trustauthority.adapters.sql.store import SqlStore, open_store
from trustauthority.model.catalogue import ClusterEntry
from trustauthority.model.host import Admission, Enrolment, HostRecord, PendingEnrolment
from trustauthority.model.identifiers import ClusterId, HostId, RequestId, VmId
from trustauthority.model.lease import OnLeaseLoss
from trustauthority.model.placement import KeyState, LeaseClass
from trustauthority.model.vm import IntentEntry, VmEntry, VmKeyEntry
from trustauthority.ports import Clock, Transaction

CLUSTER = ClusterId("prod")
VM = VmId("db-1")
A, B = HostId("h-a"), HostId("h-b")
LEASE_MS, SKEW_MS = 3_000, 1_000
FENCE_MS = LEASE_MS + SKEW_MS
HOUR_MS = 3_600_000


class Stores(Protocol):
    """One database and the stores on it."""

    clock: FakeClock

    async def open(self, clock: Clock | None = None, *, busy_timeout_ms: int = 10_000) -> SqlStore:
        """Another node's store on the same database."""

    async def close(self) -> None:
        """Close every store."""


class SqliteStores:
    """Stores on one file. The tables are made once and copied: migrations have their own test."""

    _empty: ClassVar[bytes] = b""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "authority.db"
        self.clock = FakeClock()
        self._opened: list[SqlStore] = []

    async def open(self, clock: Clock | None = None, *, busy_timeout_ms: int = 10_000) -> SqlStore:
        """Another node's store on the same file."""
        if not self.path.exists():
            await self._create()
        store = await open_store(self.path, clock or self.clock, busy_timeout_ms=busy_timeout_ms)
        self._opened.append(store)
        return store

    async def close(self) -> None:
        """Close every store."""
        for store in self._opened:
            await store.close()

    async def _create(self) -> None:
        if not SqliteStores._empty:
            await (await open_store(self.path, self.clock)).close()
            SqliteStores._empty = self.path.read_bytes()
        self.path.touch(mode=0o600)
        self.path.write_bytes(SqliteStores._empty)


ENGINES: Mapping[str, Callable[[Path], Stores]] = {"sqlite": SqliteStores}


async def rows_of(store: SqlStore, table: Table) -> list[dict[str, Any]]:
    """Every row of a table, by primary key."""
    async with store._engine.connect() as plain:
        connection = await plain.execution_options(reading=True)
        found = await connection.execute(select(table).order_by(*table.primary_key))
        return [dict(row) for row in found.mappings()]


def cluster(name: str = CLUSTER, **changes: Any) -> ClusterEntry:
    """A cluster with an empty policy."""
    values: dict[str, Any] = {
        "cluster_id": ClusterId(name),
        "policy_document": "{}",
        "policy_sha256": "0" * 64,
        "policy_epoch": 1,
        "applied_at_ms": 0,
        "applied_by": "identity:root",
        "created_at_ms": 0,
        "live_grants_cap": 100,
        "new_grants_cap": 100,
        "warned_hosts_take": True,
    }
    return ClusterEntry(**(values | changes))


def enrolment(host: str, **changes: Any) -> Enrolment:
    """The identity of a host; every key is made of its id."""

    def key(kind: str) -> bytes:
        return hashlib.sha256(f"{kind} of {host}".encode()).digest()

    values: dict[str, Any] = {
        "host_id": HostId(host),
        "cluster": CLUSTER,
        "name": f"name-of-{host}",
        "ek_public": key("ek"),
        "ek_sha256": key("ek").hex(),
        "ek_certificate": key("certificate"),
        "ak_public": key("ak"),
        "tls_public": key("tls"),
        "storage_public": key("storage"),
        "storage_qualified_name": key("qualified"),
        "tls_spki_sha256": key("spki").hex(),
        "approval_sha256": key("approval").hex(),
        "anchor": "CN=TPM CA",
        "tpm": "SWTPM 2.0",
        "tpm_manufacturer": "IBM",
        "ek_chain": key("chain"),
    }
    return Enrolment(**(values | changes))


def pending(host: str, *, expires_at_ms: int = 0, peer: str = "peer", **changes: Any) -> Any:
    """An enrolment that waits for its activation."""
    return PendingEnrolment(
        enrolment=enrolment(host, **changes),
        inventory_name=None,
        peer=peer,
        expires_at_ms=expires_at_ms,
    )


def position(reset: int = 1, restart: int = 0, clock: int = 1_000) -> bytes:
    """resetCount, restartCount and clock as they are stored."""
    return reset.to_bytes(4, "big") + restart.to_bytes(4, "big") + clock.to_bytes(8, "big")


def verdict(now_ms: int, **changes: Any) -> Mapping[str, object]:
    """The columns of a PASSED verdict under the first epochs."""
    return {
        "verdict_id": "v",
        "passed": True,
        "warned": False,
        "decided_at_ms": now_ms,
        "standing_since_ms": now_ms,
        "challenged_at_ms": now_ms,
        "attested_until_ms": now_ms + 100 * HOUR_MS,
        "verdict_trust_epoch": 1,
        "verdict_policy_epoch": 1,
        "verdict_global_epoch": 1,
        "baseline": "golden",
        "reason": "",
    } | changes


async def add_host(tx: Transaction, host: str, at: bytes | None = None) -> None:
    """An admitted host whose newest verdict is PASSED."""
    assert await tx.hosts.enrol(pending(host), Admission.ADMITTED)
    moved = at or position()
    assert await tx.hosts.record_verdict(HostId(host), position=moved, values=verdict(tx.now_ms))


def vm_entry(vm: str = VM, **changes: Any) -> VmEntry:
    """A VM that nobody owns and every host of its cluster may start."""
    values: dict[str, Any] = {
        "vm_id": VmId(vm),
        "cluster_id": CLUSTER,
        "key_state": None,
        "key_epoch": 0,
        "profile_sha256": b"",
        "lease_class": LeaseClass.STRICT,
        "lease_ms": LEASE_MS,
        "continue_for_ms": 0,
        "skew_ms": SKEW_MS,
        "on_lease_loss": OnLeaseLoss.PAUSE_THEN_DESTROY,
        "any_host_of_cluster": True,
        "owner": None,
        "last_owner": None,
        "grant_epoch": 0,
        "lease_until_ms": 0,
        "fence_until_ms": 0,
        "move_id": None,
    }
    return VmEntry(**(values | changes))


def vm_key(vm: str = VM, epoch: int = 1) -> VmKeyEntry:
    """A wrapped key."""
    return VmKeyEntry(
        vm_id=VmId(vm),
        key_epoch=epoch,
        state=KeyState.ACTIVE,
        provider="main",
        kek_id="kek-1",
        wrapped=b"wrapped",
        created_at_ms=0,
        created_by="identity:root",
        changed_at_ms=0,
    )


def intent_entry(expires_ms: int, vm: str = VM, host: HostId = A, name: str = "i1") -> IntentEntry:
    """A scheduler's reason for a host to ask."""
    return IntentEntry(
        intent_id=RequestId(name.ljust(16, "-")),
        vm_id=VmId(vm),
        destination=host,
        created_by="identity:nova",
        created_at_ms=0,
        expires_ms=expires_ms,
        used_by=None,
    )


async def add_vm(tx: Transaction, vm: str = VM, **changes: Any) -> None:
    """A VM with an active key."""
    assert await tx.vms.protect(vm_entry(vm, **changes), by="identity:root")
    assert await tx.keys.put(vm_key(vm))


async def populate(store: SqlStore, hosts: tuple[str, ...] = (A, B), **vm_changes: Any) -> None:
    """One cluster, hosts in good standing, one VM that any of them may start."""
    async with store.transaction() as tx:
        assert await tx.catalogue.create_cluster(cluster())
        for host in hosts:
            await add_host(tx, host)
        await add_vm(tx, **vm_changes)


async def host_row(store: SqlStore, host: str) -> HostRecord:
    """A host that is there."""
    async with store.snapshot() as tx:
        found = await tx.hosts.get(host)
    assert found is not None
    return found
