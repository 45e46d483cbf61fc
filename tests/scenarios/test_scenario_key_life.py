"""The life of a key after it was made: suspended, ended, destroyed for good."""

import asyncio
from pathlib import Path

import pytest
from support.simulated_authority import AUDIT_KEY, BY, VM, SimulatedAuthority

from trustauthority.adapters.tombstones import FileTombstones
from trustauthority.errors import (
    ConfigurationInvalid,
    FailedPrecondition,
    KeyNotPermitted,
    NotFound,
    StoreUnavailable,
)
from trustauthority.keyrelease.states import KeyStep
from trustauthority.model.identifiers import VmId
from trustauthority.model.placement import KeyState
from trustauthority.model.vm import Tombstone, VmKeyEntry
from trustauthority.services.destruction import Destruction
from trustauthority.services.keyadmin import DESTROY_DELAY_MS, KeyName

KEY = KeyName(vm=VM)
STONE = Tombstone(
    vm_id=VmId(VM), key_epoch=1, created_at_ms=0, destroyed_at_ms=1, compromised=False
)


async def step(authority: SimulatedAuthority, name: KeyStep, **how: bool) -> VmKeyEntry:
    return await authority.key_admin.change(KEY, name, why="test", by=BY, **how)


async def doomed(authority: SimulatedAuthority) -> None:
    """A deactivated key whose destruction somebody asked for."""
    await step(authority, KeyStep.DEACTIVATE)
    await authority.key_admin.destroy(KEY, why="test", by=BY)


async def destroyed(authority: SimulatedAuthority) -> VmKeyEntry:
    """The same, after the delay."""
    await doomed(authority)
    authority.clock.pass_ms(DESTROY_DELAY_MS)
    assert await authority.destruction.run() == 1
    return (await authority.key_admin.get(VM))[0]


class TestSteps:
    async def test_suspend_and_resume(self, authority):
        """N58: a suspended key neither leaves nor lets a lease go on; resumed, it does both again."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        epoch = (await authority.request(host)).grant_epoch
        assert (await step(authority, KeyStep.SUSPEND)).state is KeyState.SUSPENDED
        with pytest.raises(KeyNotPermitted):
            await authority.request(host)
        renewal = {"vm": VM, "grant_epoch": epoch, "request_id": "r" * 16}
        with pytest.raises(KeyNotPermitted):
            await authority.keys.renew(await authority.record(host), **renewal)
        assert (await step(authority, KeyStep.RESUME)).state is KeyState.ACTIVE
        await authority.keys.renew(await authority.record(host), **renewal)
        released = await authority.request(host)
        assert authority.open(host, released) == authority.vm_key()

    @pytest.mark.parametrize("last", [KeyStep.DEACTIVATE, KeyStep.COMPROMISE])
    async def test_the_end_is_final(self, authority, last):
        """N58: no step makes a deactivated or compromised key leave again."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        await step(authority, last)
        for each in (KeyStep.SUSPEND, KeyStep.RESUME, KeyStep.ACTIVATE):
            with pytest.raises(FailedPrecondition):
                await step(authority, each)
        with pytest.raises(KeyNotPermitted):
            await authority.request(host)
        assert authority.room.orders == []

    async def test_each_step_is_on_record(self, authority):
        """I-D: who did what to which key, from which state, and why."""
        await authority.add_vm()
        await step(authority, KeyStep.SUSPEND)
        entry = await authority.last("key.suspend")
        assert (entry["actor"], entry["subject"], entry["decision"]) == (BY, VM, "done")
        assert entry["details"] == {"key_epoch": 1, "from": "active", "why": "test"}

    async def test_a_refused_or_rehearsed_step_changes_nothing(self, authority):
        """A dry run answers as the step would; neither it nor a refusal leaves a trace."""
        await authority.add_vm()
        before = len(await authority.log())
        assert (await step(authority, KeyStep.SUSPEND, dry_run=True)).state is KeyState.SUSPENDED
        with pytest.raises(FailedPrecondition, match="can't resume a key that is active"):
            await step(authority, KeyStep.RESUME)
        with pytest.raises(NotFound, match="epoch 2"):
            await authority.key_admin.change(
                KeyName(vm=VM, key_epoch=2), KeyStep.SUSPEND, why="", by=BY
            )
        with pytest.raises(NotFound):
            await authority.key_admin.change(KeyName(vm="ghost"), KeyStep.SUSPEND, why="", by=BY)
        assert (await authority.key_admin.get(VM))[0].state is KeyState.ACTIVE
        assert len(await authority.log()) == before

    async def test_one_of_two_rivals_wins(self, authority):
        """Decide with a write: eight suspensions at once are one step and seven refusals."""
        await authority.add_vm()
        outcomes = await asyncio.gather(
            *(step(authority, KeyStep.SUSPEND) for _ in range(8)), return_exceptions=True
        )
        assert sum(isinstance(each, FailedPrecondition) for each in outcomes) == 7
        assert len(await authority.log("key.suspend")) == 1

    async def test_suspended_while_the_kms_answers(self, authority):
        """N58, N90: a key that is suspended between the two transactions does not leave."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        gate = authority.room.hold()
        waiting = asyncio.create_task(authority.request(host))
        await gate.reached.wait()
        await step(authority, KeyStep.SUSPEND)
        gate.open()
        with pytest.raises(KeyNotPermitted):
            await waiting
        assert (await authority.last("key.release"))["decision"] == "refused"


class TestDestroy:
    @pytest.mark.parametrize("state", [KeyStep.DEACTIVATE, KeyStep.COMPROMISE])
    async def test_after_the_delay_nothing_is_left(self, authority, state):
        """Section 9: wrapped and escrowed bytes are gone, a tombstone stays."""
        await authority.add_vm()
        await step(authority, state)
        await authority.key_admin.destroy(KEY, why="test", by=BY)
        authority.clock.pass_ms(DESTROY_DELAY_MS - 1)
        assert await authority.destruction.run() == 0
        assert (await authority.key_admin.get(VM))[0].wrapped
        authority.clock.pass_ms(1)
        assert await authority.destruction.run() == 1
        key, _ = await authority.key_admin.get(VM)
        compromised = state is KeyStep.COMPROMISE
        gone = KeyState.DESTROYED_COMPROMISED if compromised else KeyState.DESTROYED
        assert (key.state, key.wrapped, key.escrowed, key.destroy_at_ms) == (gone, b"", b"", 0)
        (stone,) = authority.tombstones.entries()
        assert (stone.vm_id, stone.key_epoch, stone.compromised) == (VM, 1, compromised)
        assert (await authority.last("key.destroy"))["actor"] == "authority"
        assert await authority.destruction.run() == 0
        assert len(authority.tombstones.entries()) == 1

    async def test_it_can_be_taken_back(self, authority):
        """A mistake of the evening is undone the next morning; the key stays deactivated."""
        await authority.add_vm()
        await doomed(authority)
        assert (await authority.key_admin.cancel_destroy(KEY, why="", by=BY)).destroy_at_ms == 0
        authority.clock.pass_ms(2 * DESTROY_DELAY_MS)
        assert await authority.destruction.run() == 0
        key, _ = await authority.key_admin.get(VM)
        assert (key.state, bool(key.wrapped)) == (KeyState.DEACTIVATED, True)
        assert authority.tombstones.entries() == ()
        with pytest.raises(FailedPrecondition, match="nobody asked"):
            await authority.key_admin.cancel_destroy(KEY, why="", by=BY)

    async def test_a_key_in_use_is_not_destroyed(self, authority):
        """N58: an active or suspended key is ended first; asking twice does not move the time."""
        await authority.add_vm()
        for _ in range(2):
            with pytest.raises(FailedPrecondition, match="deactivated"):
                await authority.key_admin.destroy(KEY, why="", by=BY)
            await authority.key_admin.change(KEY, KeyStep.SUSPEND, why="", by=BY, dry_run=True)
        await doomed(authority)
        with pytest.raises(FailedPrecondition, match="already"):
            await authority.key_admin.destroy(KEY, why="", by=BY)

    async def test_a_destroyed_key_has_no_further_life(self, authority):
        """N58: decrypt, release, destroy or take back: all refused."""
        await authority.add_vm(any_host=True)
        await destroyed(authority)
        (host,) = await authority.trusted("esx-1")
        with pytest.raises(FailedPrecondition):
            await authority.key_admin.destroy(KEY, why="", by=BY)
        with pytest.raises(FailedPrecondition):
            await authority.key_admin.cancel_destroy(KEY, why="", by=BY)
        await authority.write_sql("UPDATE vm SET key_state = 'active'")
        with pytest.raises(KeyNotPermitted):
            await authority.request(host)
        assert authority.room.orders == []

    async def test_nothing_of_it_is_in_the_file(self, authority):
        """The erased bytes are overwritten in the database, not only unlinked from their row."""
        await authority.add_vm()
        wrapped = (await authority.key_admin.get(VM))[0].wrapped
        assert wrapped in authority.stores.path.read_bytes()
        await destroyed(authority)
        assert wrapped not in authority.stores.path.read_bytes()


class TestResurrection:
    async def test_an_older_database_does_not_bring_it_back(self, authority, tmp_path):
        """N64: yesterday's file is put back, and the tombstone destroys the key once more."""
        await authority.add_vm()
        yesterday = authority.stores.path.read_bytes()
        await destroyed(authority)
        await authority.store.close()
        authority.stores.path.write_bytes(yesterday)
        old = await authority.another_node()
        assert (await old.key_admin.get(VM))[0].state is KeyState.ACTIVE
        assert await old.destruction.replay() == 1
        key, _ = await old.key_admin.get(VM)
        assert (key.state, key.wrapped) == (KeyState.DESTROYED, b"")
        assert (await old.last("key.destroy"))["details"]["from"] == "active"
        assert await old.destruction.replay() == 0

    async def test_a_new_key_of_the_same_epoch_lives(self, authority):
        """A tombstone is one key's: what a restored authority made later is not touched."""
        authority.tombstones.append(STONE)
        await authority.add_vm()
        assert await authority.destruction.replay() == 0
        assert (await authority.key_admin.get(VM))[0].state is KeyState.ACTIVE

    async def test_a_crash_before_the_tombstone(self, authority):
        """The erasure is first: what a crash cut off is written down in the next round."""
        await authority.add_vm()
        await doomed(authority)
        authority.clock.pass_ms(DESTROY_DELAY_MS)
        with pytest.raises(StoreUnavailable):
            await Destruction(authority.store, _Full()).run()
        assert (await authority.key_admin.get(VM))[0].state is KeyState.DESTROYED
        assert await authority.destruction.run() == 0
        assert len(authority.tombstones.entries()) == 1


class _Full:
    """Tombstones on a full disk."""

    def append(self, tombstone: Tombstone) -> None:
        raise StoreUnavailable("no space left on device")

    def entries(self) -> tuple[Tombstone, ...]:
        return ()


class TestFile:
    def test_torn_lines_count_for_nothing(self, tmp_path: Path) -> None:
        """Any cut of the last line is dropped, and the next line stands alone."""
        path = tmp_path / "tombstones"
        stones = FileTombstones(path, AUDIT_KEY)
        assert stones.entries() == ()
        stones.append(STONE)
        whole = path.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o600
        for cut in range(len(whole)):
            path.write_bytes(whole + whole[:cut])
            assert stones.entries() == (STONE,)
            stones.append(STONE)
            assert path.read_bytes() == whole + whole

    def test_a_forged_line_stops_everything(self, tmp_path: Path) -> None:
        """Nobody destroys keys by writing a file: one changed byte, and it is refused by its line."""
        path = tmp_path / "tombstones"
        stones = FileTombstones(path, AUDIT_KEY)
        stones.append(STONE)
        whole = path.read_bytes()
        for at in range(0, len(whole) - 1, 3):
            path.write_bytes(whole + whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(ConfigurationInvalid, match="line 2"):
                stones.entries()
        path.write_bytes(b"{}\n")
        with pytest.raises(ConfigurationInvalid, match="line 1"):
            stones.entries()
