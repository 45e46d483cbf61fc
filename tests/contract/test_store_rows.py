"""The contract of the store ports: catalogue, identities, VMs, keys, snapshots."""

from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
from fakes.clock import FakeClock
from sqlalchemy.exc import DBAPIError
from support.stores import (
    CLUSTER,
    HOUR_MS,
    VM,
    A,
    Stores,
    add_host,
    add_vm,
    cluster,
    intent_entry,
    populate,
    position,
    rows_of,
    verdict,
    vm_entry,
    vm_key,
)

from trustauthority.adapters.sql import tables
from trustauthority.adapters.sql.store import SqlStore
from trustauthority.errors import StoreUnavailable
from trustauthority.model.baseline import BaselineState, Component, MatchedVariant
from trustauthority.model.catalogue import (
    AnchorEntry,
    AnchorKind,
    BaselineEntry,
    EkType,
    IdentityEntry,
    InventoryEntry,
    Role,
)
from trustauthority.model.identifiers import HostId, VmId
from trustauthority.model.keyjob import JobState, KekEntry, RewrapJob
from trustauthority.model.placement import UNLIMITED_MS, KeyState, LeaseClass
from trustauthority.ports import Transaction

DIGEST = bytes(range(32))
U32, U64 = 2**32 - 1, 2**64 - 1


def rewrap_job() -> RewrapJob:
    """All keys of main to its KEK ``new``."""
    return RewrapJob(
        job_id="j",
        provider="main",
        target="main",
        target_kek_id="new",
        total=2,
        created_at_ms=1,
        created_by="x",
        updated_at_ms=1,
    )


class TestCatalogue:
    async def test_cluster(self, stores: Stores) -> None:
        """A cluster's name is taken once; each policy makes a new epoch (S6)."""
        store = await stores.open()
        async with store.transaction() as tx:
            assert await tx.catalogue.create_cluster(cluster())
            assert not await tx.catalogue.create_cluster(cluster(policy_document="other"))
            changed = cluster(policy_document='{"a":1}', policy_epoch=99, live_grants_cap=3)
            assert await tx.catalogue.apply_policy(changed) == 2
            assert await tx.catalogue.apply_policy(cluster("nowhere")) is None
            assert await tx.catalogue.create_cluster(cluster("staging"))
            entry, _ = await tx.catalogue.clusters()
            assert await tx.catalogue.clusters(entry.cluster_id) == [entry]
            assert await tx.catalogue.clusters("nowhere") == []
        assert (entry.policy_document, entry.policy_epoch) == ('{"a":1}', 2)
        assert entry.live_grants_cap == 3

    async def test_anchors_and_inventory(self, stores: Stores) -> None:
        """Anchors and machines are listed per cluster, once each, and can be struck off."""
        store = await stores.open()
        anchor = AnchorEntry(
            cluster_id=CLUSTER,
            anchor_id="a" * 64,
            kind=AnchorKind.CA,
            ek_type=EkType.RSA,
            subject="CN=CA",
            certificate=b"der",
            expires_at_ms=2**52,
            added_at_ms=1,
            added_by="identity:root",
        )
        machine = InventoryEntry(
            cluster_id=CLUSTER,
            ek_sha256="e" * 64,
            name="",
            host_class="r650",
            added_at_ms=1,
            added_by="x",
        )
        async with store.transaction() as tx:
            await tx.catalogue.create_cluster(cluster())
            assert await tx.catalogue.put_anchor(anchor)
            assert not await tx.catalogue.put_anchor(anchor)
            assert await tx.catalogue.anchors(CLUSTER) == [anchor]
            assert await tx.catalogue.anchors("") == [anchor]
            assert await tx.catalogue.anchors("other") == []
            assert await tx.inventory.put(machine)
            assert not await tx.inventory.put(machine)
            assert await tx.inventory.find(CLUSTER, "e" * 64) == machine
            assert await tx.inventory.find(CLUSTER, "f" * 64) is None
            assert await tx.inventory.entries("") == [machine]
            assert await tx.catalogue.remove_anchor(CLUSTER, "a" * 64)
            assert not await tx.catalogue.remove_anchor(CLUSTER, "a" * 64)
            assert await tx.inventory.remove(CLUSTER, "e" * 64)
            assert not await tx.inventory.remove(CLUSTER, "e" * 64)

    async def test_baseline_is_approved_as_it_was_seen(self, stores: Stores) -> None:
        """Approval names the content; other content under the name is not approved (S10)."""
        store = await stores.open()
        entry = BaselineEntry(
            cluster_id=CLUSTER,
            component=Component.KERNEL,
            name="golden",
            host_class="r650",
            state=BaselineState.PROPOSED,
            document="{}",
            sha256="1" * 64,
            captured_from="h-a",
            captured_at_ms=1,
            approved_by="",
            last_matched_at_ms=None,
        )
        other = replace(entry, component=Component.FIRMWARE)
        kernel = MatchedVariant(component=Component.KERNEL, name="golden")
        async with store.transaction() as tx:
            await tx.catalogue.create_cluster(cluster())
            assert await tx.baselines.propose(entry)
            assert not await tx.baselines.propose(entry)
            assert await tx.baselines.propose(other)

            async def approve(seen: BaselineEntry) -> bool:
                return await tx.baselines.set_state(
                    [seen], BaselineState.APPROVED, by="identity:bob"
                )

            assert not await approve(replace(entry, sha256="2" * 64))
            assert not await approve(replace(entry, component=Component.COMMAND_LINE))
            assert await approve(entry)
            assert not await approve(entry)
            assert await tx.baselines.raise_policy_epoch(CLUSTER) == 2
            await tx.baselines.matched(CLUSTER, [kernel])
            firmware, found = sorted(
                await tx.baselines.entries(CLUSTER), key=lambda each: each.component
            )
        assert firmware == other
        assert (found.state, found.approved_by) == (BaselineState.APPROVED, "identity:bob")
        assert (found.component, found.host_class) == (Component.KERNEL, "r650")
        assert found.last_matched_at_ms == stores.clock.wall_ms


class TestIdentities:
    async def test_a_name_is_one_key(self, stores: Stores) -> None:
        """A name or a key is registered once; a revoked one never comes back (N02)."""
        store = await stores.open()
        alice = IdentityEntry(
            key_sha256="a" * 64,
            name="alice",
            roles=frozenset({Role.HOSTS, Role.KEYS}),
            revoked=False,
            certificate_expires_ms=1,
            issued_by="identity:root",
        )
        thief = IdentityEntry(
            key_sha256="b" * 64,
            name="alice",
            roles=frozenset(Role),
            revoked=False,
            certificate_expires_ms=1,
            issued_by="identity:eve",
        )
        async with store.transaction() as tx:
            assert await tx.identities.put(alice)
            assert await tx.identities.put(alice)
            assert not await tx.identities.put(thief)
            assert await tx.identities.by_key("a" * 64) == alice
            assert await tx.identities.by_key("b" * 64) is None
            assert await tx.identities.revoke("alice")
            assert not await tx.identities.revoke("alice")
            assert not await tx.identities.put(alice)
            (found,) = await tx.identities.entries()
        assert found.revoked


class TestVmsAndKeys:
    async def test_vm(self, stores: Stores) -> None:
        """A VM id is taken once, and reads back; a VM without a key has no key state."""
        store = await stores.open()
        async with store.transaction() as tx:
            await tx.catalogue.create_cluster(cluster())
            assert await tx.vms.protect(vm_entry(), by="identity:root")
            assert not await tx.vms.protect(vm_entry(lease_ms=9), by="identity:eve")
            assert await tx.vms.get(VM) == vm_entry()
            assert await tx.vms.get("nothing") is None
            assert await tx.vms.page(after="", limit=9) == [vm_entry()]
            assert await tx.vms.page(after=VM, limit=9) == []

    async def test_longest_fence(self, stores: Stores) -> None:
        """The hold after a step is as long as the longest limited lease, not for ever (N86, L3)."""
        store = await stores.open()
        async with store.transaction() as tx:
            await tx.catalogue.create_cluster(cluster())
            await tx.vms.protect(vm_entry("vm-1", lease_ms=HOUR_MS), by="x")
            await tx.vms.protect(vm_entry("vm-2", lease_ms=10), by="x")
            await tx.vms.protect(vm_entry("vm-1", lease_ms=9 * HOUR_MS), by="x")
            unlimited = vm_entry("vm-3", lease_ms=UNLIMITED_MS, lease_class=LeaseClass.UNLIMITED)
            await tx.vms.protect(unlimited, by="x")
        (row,) = await rows_of(store, tables.authority)
        assert row["longest_fence_ms"] == HOUR_MS + 1_000

    async def test_key_epochs_have_no_gap(self, stores: Stores) -> None:
        """Only the next key epoch is taken; the first one is current, a later one when it is made so (S6)."""
        store = await stores.open()
        async with store.transaction() as tx:
            await tx.catalogue.create_cluster(cluster())
            await add_vm(tx)
            assert not await tx.keys.put(vm_key(epoch=1))
            assert not await tx.keys.put(vm_key(epoch=3))
            assert not await tx.keys.put(vm_key("nothing"))
            second = replace(vm_key(epoch=2), state=KeyState.PRE_ACTIVE)
            assert await tx.keys.put(second)
            assert await tx.keys.current(VM) == vm_key()
            assert await tx.keys.epochs(VM) == [second, vm_key()]
            assert not await tx.keys.make_current(second, second)
            assert await tx.keys.make_current(vm_key(), second)
            assert not await tx.keys.make_current(vm_key(), second)
            assert await tx.keys.current(VM) == second
            assert await tx.keys.current(VmId("nothing")) is None
            assert await tx.keys.page(after="", limit=9) == [second]
            entry = await tx.vms.get(VM)
            assert await tx.keys.put(vm_key(epoch=3))
        assert entry is not None
        assert (entry.key_epoch, entry.key_state) == (2, KeyState.PRE_ACTIVE)

    async def test_a_key_changes_only_where_it_is_what_was_judged(self, stores: Stores) -> None:
        """N58: whoever read an older state, KEK, wrapping or plan of destruction changes nothing."""
        store = await stores.open()
        async with store.transaction() as tx:
            await tx.catalogue.create_cluster(cluster())
            await add_vm(tx)
            was = vm_key()
            for stale in (
                replace(was, state=KeyState.SUSPENDED),
                replace(was, wrapped=b"other"),
                replace(was, kek_id="kek-2"),
                replace(was, provider="other"),
                replace(was, created_at_ms=1),
                replace(was, destroy_at_ms=1),
                replace(was, key_epoch=2),
            ):
                assert not await tx.keys.replace(stale, replace(was, state=KeyState.COMPROMISED))
            assert await tx.keys.current(VM) == was
            now = replace(was, state=KeyState.SUSPENDED, changed_at_ms=7)
            assert await tx.keys.replace(was, now)
            assert await tx.keys.epochs(VM) == [now]
            entry = await tx.vms.get(VM)
            assert entry is not None
            assert entry.key_state is KeyState.SUSPENDED
            assert await tx.keys.in_states(frozenset({KeyState.SUSPENDED})) == [now]
            assert await tx.keys.in_states(frozenset({KeyState.ACTIVE})) == []

    async def test_keys_are_due_at_their_time(self, stores: Stores) -> None:
        """A destruction that nobody asked for, or whose time has not come, is not due."""
        store = await stores.open()
        async with store.transaction() as tx:
            await tx.catalogue.create_cluster(cluster())
            await add_vm(tx)
            assert await tx.keys.due(limit=9) == []
            later = replace(vm_key(), destroy_at_ms=tx.now_ms + 1)
            assert await tx.keys.replace(vm_key(), later)
            assert await tx.keys.due(limit=9) == []
            now = replace(vm_key(), destroy_at_ms=tx.now_ms)
            assert await tx.keys.replace(later, now)
            assert await tx.keys.due(limit=9) == [now]

    async def test_keks(self, stores: Stores) -> None:
        """Each version of a provider's KEK is recorded once; the highest is the current one."""
        store = await stores.open()
        first = KekEntry(provider="main", version=1, kek_id="a", created_at_ms=1, created_by="x")
        second = replace(first, version=2, kek_id="b")
        async with store.transaction() as tx:
            assert await tx.key_providers.current("main") is None
            assert await tx.key_providers.add_kek(first)
            assert not await tx.key_providers.add_kek(replace(first, kek_id="other"))
            assert await tx.key_providers.current("main") == first
            assert await tx.key_providers.add_kek(second)
            assert await tx.key_providers.current("main") == second
            assert await tx.key_providers.versions("main") == [second, first]
            assert await tx.key_providers.names() == ["main"]

    async def test_defaults_of_clusters(self, stores: Stores) -> None:
        """A cluster has one default provider, or none of its own."""
        store = await stores.open()
        async with store.transaction() as tx:
            await tx.catalogue.create_cluster(cluster())
            assert await tx.key_providers.defaults() == {}
            await tx.key_providers.set_default(CLUSTER, "one")
            await tx.key_providers.set_default(CLUSTER, "two")
            assert await tx.key_providers.defaults() == {CLUSTER: "two"}

    async def test_one_worker_per_job(self, stores: Stores) -> None:
        """N59: a job is one worker's until its time is over; the one before can't write any more."""
        store = await stores.open()
        job = rewrap_job()
        async with store.transaction() as tx:
            await tx.rewrap_jobs.add(job)
            until_ms = tx.now_ms + 1_000
            mine = await tx.rewrap_jobs.claim("j", worker="one", until_ms=until_ms)
            assert mine is not None
            assert await tx.rewrap_jobs.claim("j", worker="two", until_ms=until_ms) is None
            assert await tx.rewrap_jobs.claim("j", worker="one", until_ms=until_ms) == mine
            assert not await tx.rewrap_jobs.save(replace(mine, done=9), worker="two")
            assert await tx.rewrap_jobs.save(replace(mine, done=1), worker="one")
        stores.clock.pass_ms(1_000)
        async with store.transaction() as tx:
            taken = await tx.rewrap_jobs.claim("j", worker="two", until_ms=tx.now_ms + 1)
            assert taken is not None
            assert taken.done == 1
            assert not await tx.rewrap_jobs.save(replace(mine, done=2), worker="one")
            assert await tx.rewrap_jobs.cancel("j")
            assert not await tx.rewrap_jobs.cancel("j")
            assert not await tx.rewrap_jobs.save(taken, worker="two")
            assert await tx.rewrap_jobs.claim("j", worker="two", until_ms=tx.now_ms) is None
            assert await tx.rewrap_jobs.unfinished() == []
            (entry,) = await tx.rewrap_jobs.page(limit=9)
        assert entry.state is JobState.CANCELLED

    async def test_remaining_keys_of_a_job(self, stores: Stores) -> None:
        """N59: keys under another KEK of the provider, in order, after the job's place; erased ones not."""
        store = await stores.open()
        async with store.transaction() as tx:
            await tx.catalogue.create_cluster(cluster())
            for name in ("vm-a", "vm-b", "vm-c", "vm-d", "vm-e"):
                await add_vm(tx, name)

            async def change(vm: str, **changes: Any) -> None:
                assert await tx.keys.replace(vm_key(vm), replace(vm_key(vm), **changes))

            await change("vm-b", kek_id="new")
            await change("vm-c", wrapped=b"", state=KeyState.DESTROYED)
            await change("vm-d", provider="other")
            job = rewrap_job()
            keys, left = await tx.rewrap_jobs.remaining(job, limit=9)
            assert ([key.vm_id for key in keys], left) == (["vm-a", "vm-e"], 2)
            later = replace(job, after_vm="vm-a", after_epoch=1)
            keys, left = await tx.rewrap_jobs.remaining(later, limit=9)
            assert ([key.vm_id for key in keys], left) == (["vm-e"], 2)
            elsewhere = replace(job, target="other")
            keys, left = await tx.rewrap_jobs.remaining(elsewhere, limit=2)
            assert ([key.vm_id for key in keys], left) == (["vm-a", "vm-b"], 3)

    async def test_intents(self, stores: Stores) -> None:
        """Intents are listed, of one VM or of all."""
        store = await stores.open()
        await populate(store)
        async with store.transaction() as tx:
            await tx.vms.put_intent(intent_entry(5))
            assert await tx.vms.intents(VM) == await tx.vms.intents("") == [intent_entry(5)]
            assert await tx.vms.intents("other") == []


class TestArchive:
    async def test_blobs_are_content_addressed(self, stores: Stores) -> None:
        """The same bytes are kept once, and read back by their hash."""
        store = await stores.open()
        async with store.transaction() as tx:
            name = await tx.archive.put_blob(b"log")
            assert await tx.archive.put_blob(b"log") == name
            assert await tx.archive.get_blob(name) == b"log"
            assert await tx.archive.get_blob(bytes(32)) is None
        assert len(await rows_of(store, tables.blob)) == 1

    async def test_verdicts(self, stores: Stores) -> None:
        """A verdict reads back as it was kept; its id is taken once."""
        store = await stores.open()
        values = {
            "host_id": A,
            "passed": True,
            "decided_at_ms": 1,
            "document": "{}",
            "seal": "s",
            "report": "r",
            "evidence_sha256": "ee",
            "boot_log_sha256": b"b",
            "ima_log_sha256": b"i",
            "userspace_log_sha256": b"u",
        }
        async with store.transaction() as tx:
            await tx.archive.put_verdict("v1", values)
            found = await tx.archive.get_verdict("v1")
            assert await tx.archive.get_verdict("v2") is None
        assert found is not None
        assert {name: found[name] for name in values} == values
        with pytest.raises(DBAPIError):
            async with store.transaction() as tx:
                await tx.archive.put_verdict("v1", values)


def kept(number: int, *, host: str = A, passed: bool = True, boot: bytes = b"boot") -> dict:
    """Columns of a verdict with parts of its own, but for the boot log."""
    return {
        "host_id": host,
        "passed": passed,
        "decided_at_ms": number,
        "document": "d" * 10,
        "seal": "s" * 10,
        "report": "r" * 10,
        "evidence_sha256": sha256(b"evidence%d" % number).hexdigest(),
        "boot_log_sha256": sha256(boot).digest(),
        "ima_log_sha256": sha256(b"ima%d" % number).digest(),
        "userspace_log_sha256": sha256(b"").digest(),
    }


async def keep(tx: Transaction, number: int, **fields: Any) -> None:
    """A verdict and everything it rests on."""
    boot = fields.get("boot", b"boot")
    for content in (boot, b"evidence%d" % number, b"ima%d" % number, b""):
        await tx.archive.put_blob(content)
    await tx.archive.put_verdict(f"v{number}", kept(number, **fields))


class TestRetention:
    async def removable(self, store: SqlStore, **times: int) -> list[str]:
        async with store.snapshot() as tx:
            found = await tx.archive.removable(
                **({"passed_before_ms": 100, "failed_before_ms": 100, "limit": 10} | times)
            )
        return [each.verdict_id for each in found]

    async def test_what_may_go_first(self, stores: Stores) -> None:
        """Those that passed before those that failed, oldest first, each by its own limit (rule 67)."""
        store = await stores.open()
        await populate(store)
        async with store.transaction() as tx:
            for number in (5, 3, 1):
                await keep(tx, number)
            for number in (4, 2):
                await keep(tx, number, passed=False)
        assert await self.removable(store) == ["v1", "v3", "v5", "v2", "v4"]
        assert await self.removable(store, limit=4) == ["v1", "v3", "v5", "v2"]
        assert await self.removable(store, passed_before_ms=3) == ["v1", "v2", "v4"]
        assert await self.removable(store, failed_before_ms=0) == ["v1", "v3", "v5"]
        assert await self.removable(store, passed_before_ms=0, failed_before_ms=2) == []

    async def test_the_newest_verdict_of_a_host_never_goes(self, stores: Stores) -> None:
        """Whatever the limits say, and whoever asks: also when it became the newest meanwhile."""
        store = await stores.open()
        await populate(store)
        async with store.transaction() as tx:
            await keep(tx, 1)
            await keep(tx, 2)
            stale = await tx.archive.removable(passed_before_ms=9, failed_before_ms=9, limit=9)
            assert [each.verdict_id for each in stale] == ["v1", "v2"]
            newest = verdict(2, verdict_id="v2")
            assert await tx.hosts.record_verdict(A, position=position(clock=2_000), values=newest)
            await tx.archive.remove(stale)
            assert await tx.archive.get_verdict("v1") is None
            assert await tx.archive.get_verdict("v2") is not None
            assert await tx.archive.get_blob(sha256(b"ima2").digest()) == b"ima2"
        assert await self.removable(store) == []

    async def test_what_another_verdict_rests_on_stays(self, stores: Stores) -> None:
        """A boot log is kept once for many verdicts, and goes with the last of them."""
        store = await stores.open()
        async with store.transaction() as tx:
            await keep(tx, 1)
            await keep(tx, 2)
            before = await tx.archive.stored_bytes()
            both = await tx.archive.removable(passed_before_ms=9, failed_before_ms=9, limit=9)
            freed = await tx.archive.remove(both[:1])
            assert freed == 30 + len(b"evidence1") + len(b"ima1")
            assert await tx.archive.stored_bytes() == before - freed
            assert await tx.archive.get_blob(sha256(b"boot").digest()) == b"boot"
            assert await tx.archive.remove(both) == before - freed  # the first is gone already
            assert await tx.archive.stored_bytes() == 0
        assert await rows_of(store, tables.blob) == await rows_of(store, tables.verdict) == []

    async def test_one_content_in_two_places(self, stores: Stores) -> None:
        """Content addressing knows no kinds: a boot log may be somebody's runtime log."""
        store = await stores.open()
        async with store.transaction() as tx:
            await keep(tx, 1)
            await keep(tx, 2, boot=b"ima1")
            (first, _) = await tx.archive.removable(passed_before_ms=9, failed_before_ms=9, limit=9)
            await tx.archive.remove([first])
            assert await tx.archive.get_blob(sha256(b"ima1").digest()) == b"ima1"


class TestSnapshot:
    async def test_a_snapshot_writes_nothing(self, stores: Stores) -> None:
        """Advice can't become a decision: a write in a snapshot fails (design 3)."""
        store = await stores.open()
        with pytest.raises(StoreUnavailable):
            async with store.snapshot() as tx:
                await tx.hosts.revoke_all(no_report_before_ms=0)
        async with store.transaction() as tx:
            assert (await tx.placement.authority()).global_epoch == 1

    async def test_a_snapshot_sees_one_state(self, stores: Stores) -> None:
        """What another node writes meanwhile is not seen half."""
        store = await stores.open()
        await populate(store)
        async with store.snapshot() as tx:
            assert await tx.hosts.get(A) is not None
        async with store.transaction() as tx:
            await add_host(tx, HostId("h-c"))
        async with store.snapshot() as tx:
            assert len(await tx.hosts.page(cluster="", after="", limit=9)) == 3

    async def test_reads_go_on_while_the_clock_is_behind(self, stores: Stores) -> None:
        """A clock that stepped back stops decisions, not lists; told time never goes back (N33)."""
        store = await stores.open()
        await populate(store)
        decided_ms = stores.clock.wall_ms
        stores.clock.step_ms(-HOUR_MS)
        async with store.snapshot() as tx:
            assert tx.now_ms == decided_ms
            assert await tx.hosts.get(A) is not None

    async def test_clock_of_another_node(self, stores: Stores) -> None:
        """A node whose clock is a second behind tells the time that was decided at."""
        await populate(await stores.open())
        behind = FakeClock(wall_ms=stores.clock.wall_ms - 1_000)
        other = await stores.open(behind)
        async with other.transaction() as tx:
            assert tx.now_ms == stores.clock.wall_ms
