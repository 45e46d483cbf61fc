"""Escrow: every VM key is sealed to the offline key, drills prove it, and another key can replace it."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from support.escrow import OTHER_PRIVATE, PRIVATE, binding, public
from support.simulated_authority import BY, VM, SimulatedAuthority

from trustauthority.errors import (
    EscrowRejected,
    FailedPrecondition,
    KmsUnavailable,
    NotFound,
)
from trustauthority.keyrelease.escrow import drill_answer, open_escrowed
from trustauthority.services.escrow import DRILL_ENDS_MS, EscrowService

ORIGIN = "authority.test/audit"


@pytest.fixture
async def authority(tmp_path) -> AsyncIterator[SimulatedAuthority]:
    """An authority whose offline key was chosen at its beginning."""
    started = await SimulatedAuthority.start(tmp_path, public())
    yield started
    await started.close()


async def exported(authority: SimulatedAuthority) -> dict[str, bytes]:
    page = await authority.escrow.export(after="", limit=100, by=BY)
    return {key.vm_id: key.escrowed for key in page.keys}


def with_key(authority: SimulatedAuthority, private: bytes | None) -> EscrowService:
    """The authority's service after its escrow key was replaced."""
    key = None if private is None else public(private)
    authority.room.escrow_key = key
    return EscrowService(
        authority.store,
        authority.room,
        origin=ORIGIN,
        key_id="" if key is None else key.key_id.hex(),
    )


class TestSealing:
    async def test_every_key_is_escrowed_as_itself(self, authority):
        """Survival: what the offline key opens is the very key that hosts are given."""
        for vm in (VM, "billing"):
            await authority.add_vm(vm)
        blobs = await exported(authority)
        for vm in (VM, "billing"):
            opened = open_escrowed(blobs[vm], PRIVATE, expected=binding(vm, origin=ORIGIN))
            assert opened == authority.vm_key(vm)
        with pytest.raises(EscrowRejected):
            open_escrowed(blobs[VM], PRIVATE, expected=binding("billing", origin=ORIGIN))
        with pytest.raises(EscrowRejected):
            open_escrowed(blobs[VM], OTHER_PRIVATE, expected=binding(VM, origin=ORIGIN))

    async def test_each_page_of_an_export_is_recorded(self, authority):
        """I-D: who took escrowed keys is in the audit log, wherever they began."""
        for number in range(3):
            await authority.add_vm(f"vm-{number}")
        pages, after = 0, ""
        while True:
            page = await authority.escrow.export(after=after, limit=2, by=BY)
            pages, after = pages + 1, page.after
            if not after:
                break
        assert pages == 2
        entries = await authority.log("key.export-escrow")
        assert [entry["details"]["keys"] for entry in entries] == [2, 1]
        assert [entry["details"]["after"] for entry in entries] == ["", "vm-1"]


class TestResealing:
    async def test_another_key_replaces_it(self, authority):
        """Replacing the escrow key: until keys are sealed anew the old private key opens them."""
        await authority.add_vm()
        service = with_key(authority, OTHER_PRIVATE)
        assert await service.count_missing() == 1
        before = (await exported(authority))[VM]
        assert open_escrowed(before, PRIVATE, expected=binding(VM, origin=ORIGIN))
        done = await service.reseal(after="", limit=10, by=BY)
        assert (done.resealed, done.current, done.failed, done.after) == (1, 0, [], "")
        after = (await exported(authority))[VM]
        expected = binding(VM, origin=ORIGIN)
        assert open_escrowed(after, OTHER_PRIVATE, expected=expected) == authority.vm_key()
        with pytest.raises(EscrowRejected):
            open_escrowed(after, PRIVATE, expected=expected)
        again = await service.reseal(after="", limit=10, by=BY)
        assert (again.resealed, again.current) == (0, 1)
        assert await service.count_missing() == 0
        assert len(await authority.log("key.reseal-escrow")) == 1

    async def test_a_dead_kms_loses_nothing(self, authority):
        """N59: what could not be sealed stays sealed to the old key, is named, and can be repeated."""
        await authority.add_vm()
        service = with_key(authority, OTHER_PRIVATE)
        authority.room.fail("no answer")
        done = await service.reseal(after="", limit=10, by=BY)
        assert (done.resealed, len(done.failed)) == (0, 1)
        assert VM in done.failed[0]
        kept = (await exported(authority))[VM]
        assert open_escrowed(kept, PRIVATE, expected=binding(VM, origin=ORIGIN))
        authority.room.recover()
        assert (await service.reseal(after="", limit=10, by=BY)).resealed == 1

    async def test_a_key_that_is_destroyed_meanwhile_stays_destroyed(self, authority):
        """N64: sealing anew never brings the escrow of a destroyed key back."""
        await authority.add_vm()
        service = with_key(authority, OTHER_PRIVATE)
        gate = authority.room.hold()
        sealing = asyncio.create_task(service.reseal(after="", limit=10, by=BY))
        await gate.reached.wait()
        erase = "UPDATE vm_key SET wrapped = :nothing, escrowed = :nothing, state = 'destroyed'"
        await authority.write_sql(erase, nothing=b"")
        gate.open()
        done = await sealing
        assert (done.resealed, len(done.failed)) == (0, 1)
        assert await exported(authority) == {}
        again = await service.reseal(after="", limit=10, by=BY)
        assert (again.resealed, again.failed) == (0, [])

    async def test_a_rewrap_meanwhile_does_not_bring_the_old_seal_back(self, authority):
        """N59: after a reseal nothing is sealed to the old key only, whatever else was under way."""
        await authority.add_vm()
        service = with_key(authority, OTHER_PRIVATE)
        await authority.rewrap.start("default", target="", new_kek=True, by=BY)
        gate = authority.room.hold()
        wrapping = asyncio.create_task(authority.rewrap.work())
        await gate.reached.wait()
        assert (await service.reseal(after="", limit=10, by=BY)).resealed == 1
        gate.open()
        await wrapping
        assert await service.count_missing() == 0
        opened = open_escrowed(
            (await exported(authority))[VM], OTHER_PRIVATE, expected=binding(VM, origin=ORIGIN)
        )
        assert opened == authority.vm_key()

    async def test_without_an_escrow_key(self, authority):
        """Nothing can be sealed to nothing, and VMs that are not escrowed are named."""
        service = with_key(authority, None)
        await authority.add_vm("bare")
        with pytest.raises(FailedPrecondition, match="no escrow key"):
            await service.reseal(after="", limit=10, by=BY)
        page = await service.export(after="", limit=10, by=BY)
        assert page.missing == ["bare"]
        assert await service.count_missing() == 1

    async def test_a_change_of_the_key_is_recorded(self, authority):
        """Whoever changes the escrow key can read what is made since: it is in the audit log once."""
        for private in (PRIVATE, PRIVATE, OTHER_PRIVATE, None):
            await with_key(authority, private).note_key()
        entries = await authority.log("authority.use-escrow-key")
        ids = [(e["details"]["before"], e["details"]["key_id"]) for e in entries]
        first, second = public().key_id.hex(), public(OTHER_PRIVATE).key_id.hex()
        assert ids == [("none", first), (first, second), (second, "none")]


class TestDrill:
    async def answered(self, authority, private=PRIVATE):
        drill = await authority.escrow.begin_drill(VM, by=BY)
        key = open_escrowed(drill.blob, private, expected=drill.binding)
        return drill, drill_answer(key, drill.binding, drill.challenge)

    async def record(self, authority, drill, answer, **changes):
        values = {"key_epoch": drill.binding.key_epoch, "challenge": drill.challenge}
        vm = changes.pop("vm", VM)
        return await authority.escrow.record_drill(
            vm, answer=answer, by=BY, **{**values, **changes}
        )

    async def test_passes_without_showing_the_key(self, authority):
        """A drill proves that the offline key opens the key in use; the answer is not the key."""
        await authority.add_vm()
        drill, answer = await self.answered(authority)
        assert authority.vm_key() not in answer
        assert await self.record(authority, drill, answer)
        entry = await authority.last("key.record-drill")
        assert (entry["decision"], entry["subject"], entry["actor"]) == ("passed", VM, BY)
        assert entry["details"]["escrow_key"] == public().key_id.hex()
        assert authority.vm_key().hex() not in str(await authority.log())

    async def test_a_wrong_answer_fails_and_is_recorded(self, authority):
        """Nobody can record a drill as passed without having opened the key."""
        await authority.add_vm()
        drill, answer = await self.answered(authority)
        for wrong in (bytes(16), answer[:-1] + bytes([answer[-1] ^ 1]), b""):
            assert not await self.record(authority, drill, wrong)
            assert (await authority.last("key.record-drill"))["decision"] == "failed"

    async def test_an_answer_to_another_question(self, authority):
        """Yesterday's answer is not today's; a challenge of one's own was never asked."""
        await authority.add_vm()
        await authority.add_vm("billing")
        first, old = await self.answered(authority)
        second, _ = await self.answered(authority)
        assert not await self.record(authority, second, old)
        with pytest.raises(FailedPrecondition, match="no drill"):
            await self.record(authority, first, old, challenge=bytes(32))
        with pytest.raises(FailedPrecondition, match="no drill"):
            await self.record(authority, first, old, vm="billing")
        with pytest.raises(FailedPrecondition, match="key epoch"):
            await self.record(authority, first, old, key_epoch=2)
        authority.pass_ms(DRILL_ENDS_MS)
        with pytest.raises(FailedPrecondition, match="30 days"):
            await self.record(authority, first, old)

    async def test_an_escrow_of_another_key_fails(self, authority):
        """What a drill is for: the escrowed key is genuine, but not the one in use any more."""
        await authority.add_vm()
        drill, answer = await self.answered(authority)
        async with authority.store.snapshot() as tx:
            stored = await tx.keys.current(VM)
        new = await authority.room.create_key(stored.provider, stored.kek_id, _aad(stored))
        await authority.write_sql("UPDATE vm_key SET wrapped = :w", w=new.wrapped)
        assert not await self.record(authority, drill, answer)

    async def test_what_can_not_be_drilled(self, authority):
        """No VM, no key, no escrow, no KMS: said so, and nothing is recorded."""
        with pytest.raises(NotFound):
            await authority.escrow.begin_drill("unknown", by=BY)
        service = with_key(authority, None)
        await authority.add_vm("bare")
        with pytest.raises(FailedPrecondition, match="not escrowed"):
            await service.begin_drill("bare", by=BY)
        with_key(authority, PRIVATE)
        await authority.add_vm()
        drill, answer = await self.answered(authority)
        authority.room.fail()
        with pytest.raises(KmsUnavailable):
            await self.record(authority, drill, answer)
        assert await authority.log("key.record-drill") == []


def _aad(stored):
    from trustauthority.services.orders import wrapping_aad

    return wrapping_aad(stored.vm_id, stored.key_epoch, stored.provider)
