"""Agents and people go over to a new era of the audit log by themselves, and never back."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hostagent.checkpoint import CheckpointMemory, Observation
from trustauthority.client.checkpoints import CheckpointKeeper
from trustauthority.client.contexts import AuditKey
from trustauthority.codec.tlog import Checkpoint, encode_checkpoint, encode_note, open_checkpoint

ORIGIN = "ta.example"
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
PUBLIC = KEY.public_key().public_bytes_raw()


def note(*, era: int, size: int, root: bytes = b"r" * 32) -> bytes:
    """A checkpoint that the log's key signed."""
    lines = (f"era {era}",) if era else ()
    text = encode_checkpoint(Checkpoint(origin=ORIGIN, size=size, root=root, extensions=lines))
    signature = KEY.sign(text.encode())
    return encode_note(text=text, name=ORIGIN, public_key=PUBLIC, signature=signature).encode()


@pytest.fixture
def memory(tmp_path: Path) -> CheckpointMemory:
    """An agent that saw 90 entries of era 0."""
    made = CheckpointMemory(tmp_path, origin=ORIGIN, public_key=PUBLIC)
    assert made.observe(note(era=0, size=90)) is Observation.HIGHER
    return made


def test_an_agent_follows_an_accepted_loss(memory: CheckpointMemory) -> None:
    """N91: after an accepted loss the log is shorter; the signed new era says that it may be."""
    assert memory.observe(note(era=7, size=3)) is Observation.HIGHER
    assert memory.note == note(era=7, size=3)


def test_an_agent_does_not_go_back_to_an_earlier_era(memory: CheckpointMemory) -> None:
    """N91: a database from before the accepted loss is older, however many entries it has."""
    memory.observe(note(era=7, size=3))
    assert memory.observe(note(era=0, size=500)) is Observation.KNOWN
    assert memory.note == note(era=7, size=3)


def test_sizes_of_two_eras_are_no_split_view(memory: CheckpointMemory) -> None:
    """N65: only two trees of one size within one era contradict each other."""
    assert memory.observe(note(era=7, size=90, root=b"s" * 32)) is Observation.HIGHER
    assert memory.observe(note(era=7, size=90, root=b"t" * 32)) is Observation.SPLIT_VIEW


def test_people_follow_an_accepted_loss_and_hear_of_the_way_back(tmp_path: Path) -> None:
    """N91: ta keeps the newer era, and says so when an authority shows an older one."""
    keeper = CheckpointKeeper(
        path=tmp_path / "kept", audit_key=AuditKey(origin=ORIGIN, public_key=PUBLIC)
    )
    assert keeper.observe(note(era=0, size=90)) == ""
    assert keeper.observe(note(era=7, size=3)) == ""
    assert "went back" in keeper.observe(note(era=0, size=500))
    assert keeper.kept() == note(era=7, size=3).decode()


def test_the_era_is_signed() -> None:
    """N91: nobody but the log's key can begin an era."""
    signed = note(era=0, size=90).decode()
    assert open_checkpoint(signed, origin=ORIGIN, public_key=PUBLIC).era == 0
    assert open_checkpoint(note(era=7, size=3).decode(), origin=ORIGIN, public_key=PUBLIC).era == 7
    forged = note(era=7, size=3).replace(b"era 7", b"era 8")
    memory = CheckpointMemory(Path("/nonexistent"), origin=ORIGIN, public_key=PUBLIC)
    assert memory.observe(forged) is Observation.INVALID
