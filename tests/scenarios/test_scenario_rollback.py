"""Rollback end to end: yesterday's database, an edited log, a clock that stands still."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from support.simulated_authority import BY, VM, SimulatedAuthority

from trustauthority.codec.tlog import Checkpoint, encode_checkpoint, encode_note, open_checkpoint
from trustauthority.errors import InvalidRequest, RollbackDetected, StoreUnavailable


async def put_back(authority: SimulatedAuthority, copy: Path) -> SimulatedAuthority:
    """Stop the authority, put an older file in place, start again; the KMS lives elsewhere."""
    path = authority.stores.path
    await authority.close()
    for leftover in path.parent.glob(f"{path.name}-*"):
        leftover.unlink()
    shutil.copyfile(copy, path)
    return await authority.another_node()


async def copy_of(authority: SimulatedAuthority, folder: Path) -> Path:
    """A backup that somebody took."""
    copy = folder / "yesterday.db"
    with closing(sqlite3.connect(authority.stores.path)) as reader:
        reader.execute("VACUUM INTO ?", (str(copy),))
    return copy


class TestYesterday:
    async def test_the_first_echoed_checkpoint_stops_releases(self, authority, tmp_path):
        """N91, N64: a caller saw more than this database holds; nothing is released any more."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        copy = await copy_of(authority, tmp_path)
        await authority.request(host)
        await authority.hosts.revoke(host.host_id, why="", by=BY, dry_run=False)
        seen = await authority.audit.checkpoint()
        restored = await put_back(authority, copy)
        assert not (await restored.record(host)).revoked  # the revocation is forgotten
        with pytest.raises(RollbackDetected):
            await restored.audit.check_echo(seen)
        answers = len(restored.room.answers)
        with pytest.raises(RollbackDetected):
            await restored.request(host)
        assert len(restored.room.answers) == answers
        assert restored.journal.events[0][0] == "rollback_detected"

    async def test_the_halt_is_durable(self, authority, tmp_path):
        """N91: another process, and another start, release nothing either."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        copy = await copy_of(authority, tmp_path)
        await authority.request(host)
        seen = await authority.audit.checkpoint()
        restored = await put_back(authority, copy)
        with pytest.raises(RollbackDetected):
            await restored.audit.check_echo(seen)
        again = await restored.another_node()
        with pytest.raises(RollbackDetected):
            await again.request(host)

    async def test_trust_can_be_taken_while_it_is_halted(self, authority, tmp_path):
        """N30: a halted authority still revokes."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        copy = await copy_of(authority, tmp_path)
        await authority.request(host)
        seen = await authority.audit.checkpoint()
        restored = await put_back(authority, copy)
        with pytest.raises(RollbackDetected):
            await restored.audit.check_echo(seen)
        await restored.hosts.revoke(host.host_id, why="", by=BY, dry_run=False)
        assert (await restored.record(host)).revoked

    async def test_a_fork_of_the_same_size_is_found(self, authority, tmp_path):
        """S11: other entries under the same size are another tree."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        copy = await copy_of(authority, tmp_path)
        await authority.hosts.revoke(host.host_id, why="one", by=BY, dry_run=False)
        seen = await authority.audit.checkpoint()
        restored = await put_back(authority, copy)
        await restored.hosts.revoke(host.host_id, why="other", by=BY, dry_run=False)
        with pytest.raises(RollbackDetected, match="another tree"):
            await restored.audit.check_echo(seen)

    async def test_checkpoints_of_the_past_are_fine(self, authority):
        """S11: each older checkpoint stays a prefix; callers that echo one are served."""
        seen = []
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        for _ in range(5):
            seen.append(await authority.audit.checkpoint())
            await authority.attest(host)
        for note in seen:
            await authority.audit.check_echo(note)
        await authority.request(host)

    async def test_nobody_else_stops_the_authority(self, authority):
        """N91: a checkpoint that we did not sign is a bad request, not a rollback."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        good = await authority.audit.checkpoint()
        text = encode_checkpoint(
            Checkpoint(origin=authority.audit.origin, size=10_000, root=bytes(32))
        )
        forged = encode_note(
            text=text,
            name=authority.audit.origin,
            public_key=authority.audit.public_key,
            signature=bytes(64),
        )
        for note in (forged, "", "nonsense", good.replace("authority", "autority")):
            with pytest.raises(InvalidRequest):
                await authority.audit.check_echo(note)
        await authority.request(host)


class TestLog:
    async def test_an_edited_entry_shows(self, authority):
        """N63, S11: the log's own entries no longer give the root that was signed."""
        await authority.trusted("esx-1")
        note = await authority.audit.checkpoint()
        checkpoint = open_checkpoint(
            note, origin=authority.audit.origin, public_key=authority.audit.public_key
        )
        entries, _ = await authority.audit.entries(start=0, limit=1_000)
        assert checkpoint.size == len(entries)
        proof = await authority.audit.prove(sequence=2, size=0, old_size=1)
        assert proof.inclusion
        assert proof.consistency


class TestClock:
    async def test_a_clock_that_went_back_decides_nothing(self, authority):
        """N33: ten minutes back, and nothing is granted until it caught up."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        authority.clock.step_ms(-600_000)
        with pytest.raises(StoreUnavailable):
            await authority.request(host)
        authority.clock.step_ms(600_000)
        assert (await authority.request(host)).grant_epoch == 1
        assert (await authority.placement.get(VM)).owner == host.host_id
