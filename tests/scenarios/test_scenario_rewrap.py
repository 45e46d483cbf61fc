"""All keys to another KEK while the authority works: N59, and what may happen on the way."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.simulated_authority import BY, VM, SimulatedAuthority

from trustauthority.errors import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    KmsUnavailable,
    NotFound,
)
from trustauthority.keyrelease.states import KeyStep
from trustauthority.model.keyjob import JobState, RewrapJob, RewrapOrder
from trustauthority.model.placement import KeyState
from trustauthority.services.keyadmin import KeyName
from trustauthority.services.orders import wrapping_aad
from trustauthority.services.rewrap import WAIT_MS, WORKER_MS, RewrapService, work_quietly

VMS = ("vm-a", "vm-b", "vm-c", "vm-d")


class Killed(BaseException):
    """The process is gone: nothing catches this."""


class Mortal:
    """The store and the key room of a worker that dies at its n-th step."""

    def __init__(self, authority: SimulatedAuthority, steps: int) -> None:
        self.authority, self.steps = authority, steps
        self.service = RewrapService(self, self, authority.key_providers, authority.journal)  # type: ignore[arg-type]

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise Killed

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        self.step()
        async with self.authority.store.transaction() as tx:
            yield tx
            self.step()  # nothing of it was committed
        self.step()  # all of it was

    def snapshot(self) -> Any:
        self.step()
        return self.authority.store.snapshot()

    async def rewrap(self, order: RewrapOrder) -> bytes:
        self.step()
        wrapped = await self.authority.room.rewrap(order)
        self.step()
        return wrapped


class Picky:
    """A key room that can't wrap the keys of some VMs."""

    def __init__(self, authority: SimulatedAuthority, *refused: str) -> None:
        self.room, self.refused = authority.room, set(refused)
        self.tried: list[str] = []
        self.service = RewrapService(
            authority.store,
            self,
            authority.key_providers,
            authority.journal,  # type: ignore[arg-type]
        )

    async def rewrap(self, order: RewrapOrder) -> bytes:
        vm = json.loads(order.aad)["vm"]
        self.tried.append(vm)
        if vm in self.refused:
            raise KmsUnavailable("the KEK is not active")
        return await self.room.rewrap(order)


async def start(
    authority: SimulatedAuthority, *, target: str = "", new_kek: bool = True, **how: bool
) -> RewrapJob:
    return await authority.rewrap.start("default", target=target, new_kek=new_kek, by=BY, **how)


async def keys_of(authority: SimulatedAuthority, *vms: str) -> dict[str, tuple[bytes, str, str]]:
    """Each VM's key as its one row opens it, with provider and KEK: every VM has one usable wrap."""
    found = {}
    for vm in vms or VMS:
        (key,) = await authority.key_admin.epochs(vm)
        aad = wrapping_aad(key.vm_id, key.key_epoch, key.provider)
        opened = authority.room._unwrapped(key.kek_id, key.wrapped, aad)
        found[vm] = (opened, key.provider, key.kek_id)
    return found


async def four(authority: SimulatedAuthority, count: int = 4) -> dict[str, bytes]:
    """Four VMs with keys, or fewer."""
    for vm in VMS[:count]:
        await authority.add_vm(vm, any_host=True)
    return {vm: key for vm, (key, _, _) in (await keys_of(authority, *VMS[:count])).items()}


class TestJob:
    async def test_every_key_under_the_new_kek(self, authority):
        """N59: the same keys, all under the next version of the KEK, each with its audit entry."""
        before = await four(authority)
        job = await start(authority)
        assert (job.total, job.state) == (4, JobState.RUNNING)
        await authority.rewrap.work()
        done = await authority.rewrap.get(job.job_id)
        assert (done.state, done.done, done.failed) == (JobState.DONE, 4, 0)
        after = await keys_of(authority)
        assert {vm: key for vm, (key, _, _) in after.items()} == before
        assert {kek for _, _, kek in after.values()} == {job.target_kek_id}
        assert [entry["subject"] for entry in await authority.log("key.rewrap")] == list(VMS)
        view = await authority.key_providers.view("default")
        assert [each.version for each in view.versions] == [2, 1]
        assert view.keys_by_kek == {job.target_kek_id: 4}

    async def test_to_another_provider(self, authority):
        """KMIP to OpenBao and the like: other KMS, other KEK, other AAD, the same keys."""
        before = await four(authority)
        authority.room.providers = ("default", "bao")
        job = await start(authority, target="bao", new_kek=False)
        await authority.rewrap.work()
        after = await keys_of(authority)
        assert {vm: key for vm, (key, _, _) in after.items()} == before
        assert {(p, kek) for _, p, kek in after.values()} == {("bao", job.target_kek_id)}
        (host,) = await authority.trusted("esx-1")
        released = await authority.request(host, "vm-a")
        assert authority.open(host, released, "vm-a") == before["vm-a"]

    async def test_releases_go_on(self, authority):
        """A release before, between and after is of the same key, under whichever KEK."""
        before = await four(authority)
        (host,) = await authority.trusted("esx-1")
        await start(authority)
        gate = authority.room.hold()
        working = asyncio.create_task(authority.rewrap.work())
        await gate.reached.wait()
        between = await authority.request(host, "vm-a")
        gate.open()
        await working
        after = await authority.request(host, "vm-a")
        for released in (between, after):
            assert authority.open(host, released, "vm-a") == before["vm-a"]
        assert authority.room.orders[0].kek_id != authority.room.orders[1].kek_id

    async def test_a_dry_run_only_counts(self, authority):
        """Nothing is made in the KMS, nothing recorded."""
        await four(authority)
        keks, entries = len(authority.room.keks), len(await authority.log())
        assert (await start(authority, dry_run=True)).total == 4
        assert (await start(authority, new_kek=False, dry_run=True)).total == 0
        assert (len(authority.room.keks), len(await authority.log())) == (keks, entries)
        assert await authority.rewrap.jobs(limit=9) == []

    async def test_what_can_not_be_started(self, authority):
        """No provider, no target, or a job that runs for one of the two: told, and nothing is made."""
        with pytest.raises(NotFound, match="wraps no key"):
            await start(authority)
        await four(authority)
        with pytest.raises(NotFound, match="no KMS is configured"):
            await start(authority, target="elsewhere", new_kek=False)
        await start(authority)
        keks = len(authority.room.keks)
        for target in ("", "bao"):
            with pytest.raises(FailedPrecondition, match="runs"):
                await start(authority, target=target)
        assert len(authority.room.keks) == keks

    async def test_a_dead_kms_starts_nothing(self, authority):
        """N56: without a new KEK there is no job."""
        await four(authority)
        authority.room.fail()
        with pytest.raises(KmsUnavailable):
            await start(authority)
        assert await authority.rewrap.jobs(limit=9) == []


class TestKilled:
    async def test_killed_at_every_step(self, authority):
        """N59: wherever the worker dies, each VM has one usable wrap, and the next worker finishes."""
        before = await four(authority, 2)
        steps = 0
        while True:
            job = await start(authority)
            mortal = Mortal(authority, steps)
            try:
                await mortal.service.work()
            except Killed:
                pass
            else:
                break
            opened = await keys_of(authority, *before)
            assert {vm: key for vm, (key, _, _) in opened.items()} == before, steps
            authority.clock.pass_ms(WORKER_MS)
            await authority.rewrap.work()
            opened = await keys_of(authority, *before)
            assert {vm: key for vm, (key, _, _) in opened.items()} == before, steps
            assert {kek for _, _, kek in opened.values()} == {job.target_kek_id}, steps
            done = await authority.rewrap.get(job.job_id)
            assert (done.state, done.done) == (JobState.DONE, 2), steps
            steps += 1
        assert steps > 2 * 5
        assert len(await authority.log("key.rewrap")) == 2 * (steps + 1)

    async def test_a_living_worker_is_left_alone(self, authority):
        """Two processes, one job: the second one does nothing while the first is at work."""
        await four(authority)
        other = await authority.another_node()
        await start(authority)
        gate = authority.room.hold()
        working = asyncio.create_task(authority.rewrap.work())
        await gate.reached.wait()
        await other.rewrap.work()
        assert authority.room.rewrapped == 0
        gate.open()
        await working
        assert authority.room.rewrapped == 4

    async def test_a_worker_that_was_replaced_writes_nothing(self, authority):
        """A process that slept too long wakes up: its wrapping is dropped, the job is another's."""
        await four(authority)
        other = await authority.another_node()
        job = await start(authority)
        gate = authority.room.hold()
        asleep = asyncio.create_task(authority.rewrap.work())
        await gate.reached.wait()
        authority.clock.pass_ms(WORKER_MS)
        await other.rewrap.work()
        rows = await keys_of(authority)
        gate.open()
        await asleep
        assert await keys_of(authority) == rows
        assert (await authority.rewrap.get(job.job_id)).done == 4
        assert ("rewrap_replaced", {"job": job.job_id}) in authority.journal.events


class TestTrouble:
    async def test_keys_that_fail_are_tried_again(self, authority):
        """One key that can't be wrapped keeps no other one waiting, and is tried in the next pass."""
        before = await four(authority)
        job = await start(authority)
        picky = Picky(authority, "vm-b")
        await picky.service.work()
        waiting = await authority.rewrap.get(job.job_id)
        assert (waiting.state, waiting.done) == (JobState.RUNNING, 3)
        assert waiting.detail == "VM vm-b: the KEK is not active"
        picky.refused.clear()
        await picky.service.work()
        assert picky.tried == list(VMS), "the KMS is left alone for a while"
        authority.clock.pass_ms(WAIT_MS)
        await picky.service.work()
        assert picky.tried == [*VMS, "vm-b"]
        done = await authority.rewrap.get(job.job_id)
        assert (done.state, done.done, done.detail) == (JobState.DONE, 4, "")
        assert {vm: key for vm, (key, _, _) in (await keys_of(authority)).items()} == before

    async def test_a_kms_that_is_away_is_not_asked_for_every_key(self, authority):
        """After a few failures in a row the pass ends; nothing was lost."""
        before = await four(authority)
        await start(authority)
        picky = Picky(authority, *VMS)
        await picky.service.work()
        assert picky.tried == list(VMS[:3])
        assert {vm: key for vm, (key, _, _) in (await keys_of(authority)).items()} == before
        authority.clock.pass_ms(WAIT_MS)
        picky.refused.clear()
        await picky.service.work()
        assert len({kek for _, _, kek in (await keys_of(authority)).values()}) == 1

    async def test_a_key_that_changed_meanwhile(self, authority):
        """N58, N59: a step of its life between reading and writing is kept, and the key is wrapped later."""
        before = await four(authority)
        job = await start(authority)
        gate = authority.room.hold()
        working = asyncio.create_task(authority.rewrap.work())
        await gate.reached.wait()
        await authority.key_admin.change(KeyName(vm="vm-a"), KeyStep.SUSPEND, why="", by=BY)
        gate.open()
        await working
        authority.clock.pass_ms(WAIT_MS)
        await authority.rewrap.work()
        key, _ = await authority.key_admin.get("vm-a")
        assert (key.state, key.kek_id) == (KeyState.SUSPENDED, job.target_kek_id)
        assert {vm: key for vm, (key, _, _) in (await keys_of(authority)).items()} == before

    async def test_cancelled_while_the_kms_answers(self, authority):
        """A job that was ended writes no further key; those that were wrapped again stay so."""
        await four(authority)
        job = await start(authority)
        gate = authority.room.hold()
        working = asyncio.create_task(authority.rewrap.work())
        await gate.reached.wait()
        rows = await keys_of(authority)
        assert (await authority.rewrap.cancel(job.job_id, by=BY)).state is JobState.CANCELLED
        gate.open()
        await working
        assert await keys_of(authority) == rows
        with pytest.raises(FailedPrecondition, match="cancelled already"):
            await authority.rewrap.cancel(job.job_id, by=BY)
        with pytest.raises(NotFound):
            await authority.rewrap.cancel("nothing", by=BY)

    async def test_a_destroyed_key_is_not_wrapped(self, authority):
        """There is nothing to wrap: the job ends without it."""
        await four(authority)
        await authority.write_sql(
            "UPDATE vm_key SET wrapped = x'', state = 'destroyed' WHERE vm_id = 'vm-a'"
        )
        job = await start(authority)
        await authority.rewrap.work()
        assert (await authority.rewrap.get(job.job_id)).done == 3

    async def test_a_key_made_meanwhile_is_not_left_under_the_old_kek(self, authority):
        """N59: a key whose KEK was replaced while the KMS made it is refused, not stored."""
        await four(authority)
        gate = authority.room.hold()
        late = asyncio.create_task(authority.add_vm(VM))
        await gate.reached.wait()
        await start(authority)
        gate.open()
        with pytest.raises(Conflict):
            await late
        await authority.key_admin.create(VM, provider="", by=BY)
        await authority.rewrap.work()
        assert len({kek for _, _, kek in (await keys_of(authority, *VMS, VM)).values()}) == 1

    async def test_a_store_that_stands_still_ends_a_round(self, authority):
        """The worker's loop outlives what the store refuses."""
        await authority.store.close()
        await work_quietly(authority.rewrap, authority.journal)
        assert authority.journal.events[-1][0] == "rewrap_failed"


class TestProviders:
    async def test_a_cluster_has_a_default(self, authority):
        """New keys of a cluster are wrapped by its provider, others by the default one."""
        authority.room.providers = ("default", "bao")
        await authority.add_cluster("lab")
        await authority.key_providers.set_default("lab", "bao", by=BY)
        await authority.add_vm("in-lab", cluster="lab")
        await authority.add_vm("in-prod")
        assert (await authority.key_admin.get("in-lab"))[0].provider == "bao"
        assert (await authority.key_admin.get("in-prod"))[0].provider == "default"
        views = {view.name: view for view in await authority.key_providers.views()}
        assert views["bao"].clusters == ["lab"]
        assert (await authority.last("provider.set-default"))["details"] == {"cluster": "lab"}
        with pytest.raises(NotFound):
            await authority.key_providers.set_default("lab", "nothing", by=BY)
        with pytest.raises(NotFound):
            await authority.key_providers.set_default("nowhere", "bao", by=BY)

    async def test_a_provider_is_made_once(self, authority):
        """Its first KEK is recorded; a second call and an unknown name are refused."""
        assert (await authority.key_providers.create("default", by=BY)).version == 1
        with pytest.raises(AlreadyExists):
            await authority.key_providers.create("default", by=BY)
        with pytest.raises(NotFound):
            await authority.key_providers.create("nothing", by=BY)
        with pytest.raises(NotFound):
            await authority.key_providers.view("nothing")

    async def test_rivals_agree_on_one_kek(self, authority):
        """Eight first uses at once: one KEK is recorded, and every caller gets that one."""
        found = await asyncio.gather(
            *(authority.key_providers.kek("default", by=BY) for _ in range(8))
        )
        assert len({each.kek_id for each in found}) == 1
        assert len(await authority.log("provider.create")) == 1
