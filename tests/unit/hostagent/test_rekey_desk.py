"""A new key for a VM's disks, on real qcow2 disks with LUKS: some key opens each of them at every moment."""

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from hostagent import luks, rekey_desk
from hostagent.failure import CallFailed
from hostagent.lease_model import Phase
from hostagent.libvirt_vms import disk_passphrase
from hostagent.luks import LuksFailed, active_slots, opens
from hostagent.rekey_desk import COPIES, HeldPassphrases, RekeyDesk, rekey_shown

VM = "web"
KEYS = {n: hashlib.sha256(b"key %d" % n).digest() for n in (1, 2)}
PASSPHRASES = {n: disk_passphrase(key, VM) for n, key in KEYS.items()}
FOREIGN = b"an administrator's own"
DISK = """<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
<source file='{path}'><encryption format='luks'>
<secret type='passphrase' uuid='7a000000-0000-4000-8000-000000000001'/></encryption></source>
<target dev='{target}' bus='virtio'/></disk>"""
VTPM = """<tpm><backend type='emulator'>
<encryption secret='7a000000-0000-4000-8000-000000000002'/></backend></tpm>"""
DOMAIN = """<domain type='kvm'><name>web</name><uuid>7b000000-0000-4000-8000-000000000001</uuid>
<metadata><ta:vm xmlns:ta='urn:trustauthority:vm:1' id='web'/></metadata>
<os><type arch='x86_64' machine='pc'>hvm</type></os><devices>{devices}</devices></domain>"""


def made(path: Path, passphrase: bytes = PASSPHRASES[1]) -> Path:
    """A small encrypted disk."""
    how = "encrypt.format=luks,encrypt.key-secret=new,encrypt.iter-time=20"
    words = ("-q", "-f", "qcow2", "-o", how, str(path), "1M")
    luks.run_qemu("qemu-img", "create", *words, new=passphrase)
    return path


class FakeVirsh:
    """A libvirt with one domain that is off."""

    def __init__(self, *disks: Path) -> None:
        targets = ("vda", "vdb", "vdc")
        self.devices = "".join(
            DISK.format(path=p, target=t) for p, t in zip(disks, targets, strict=False)
        )
        self.answers = {
            "state": "shut off",
            "dominfo": "Managed save:   no\n",
            "snapshot-list": "",
        }
        self.definition = DOMAIN

    async def state(self, _uuid: str) -> str:
        return self.answers["state"]

    async def run(self, *words: str) -> tuple[int, str, str]:
        if words[0] == "dumpxml":
            return 0, self.definition.format(devices=self.devices), ""
        return 0, self.answers[words[0]], ""


class FakeDesk:
    """An authority that hands out one key at a time, and an agent that opens none older than the last."""

    def __init__(self) -> None:
        self.current = self.lowest = 1
        self.asked = self.given_back = 0
        self.phase = Phase.IDLE
        self.timeout_s = 1.0
        self.keeper = SimpleNamespace(view=lambda _vm: SimpleNamespace(phase=self.phase))

    @asynccontextmanager
    async def borrowing(self, _vm: str) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self.given_back += 1

    async def lend_key(self, _vm, *, move_id, profile_sha256, hand_out, expect):
        self.asked += 1
        if self.current < self.lowest:
            raise CallFailed(rekey_desk._refused("GRANT_OLD_KEY_EPOCH", "passed", 1).failure)
        expect(self.current)
        await asyncio.to_thread(hand_out, bytearray(KEYS[self.current]))
        self.lowest = self.current
        return {"ok": True}


class World:
    """A host; ``crash`` is its agent killed and started again."""

    def __init__(self, *disks: Path) -> None:
        self.disks, self.virsh, self.desk = disks, FakeVirsh(*disks), FakeDesk()
        self.crash()

    def crash(self) -> None:
        self.held = HeldPassphrases()

    async def rekey(self, **more: object) -> dict:
        desk = RekeyDesk(desk=self.desk, virsh=self.virsh, held=self.held)
        return await desk.handle({"do": "vm-rekey", "domain": VM, "to": 2, **more})

    def opened_by(self, disk: int = 0) -> set[int]:
        image = self.disks[disk]
        return {n for n, passphrase in PASSPHRASES.items() if opens(image, passphrase)}


@pytest.fixture(autouse=True)
def _fast(monkeypatch) -> None:
    """Slots that are tried in a fifth of the time."""
    monkeypatch.setattr(luks, "ITERATIONS", "iter-time=20")


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """Making one takes a second and more on a busy machine."""
    return made(tmp_path_factory.mktemp("disk") / "template.qcow2")


@pytest.fixture
def world(tmp_path, template) -> World:
    return World(*(Path(shutil.copy(template, tmp_path / f"{each}.qcow2")) for each in "ab"))


async def test_there_and_then_only_there(world) -> None:
    """Old, switch, both, new only; given back each time; the old passphrase is gone; repeating changes nothing."""
    assert (await world.rekey())["step"] == "hold"
    assert [world.opened_by(n) for n in (0, 1)] == [{1}, {1}]
    value = world.held.held[VM].value
    assert value == PASSPHRASES[1]
    assert PASSPHRASES[1].decode() not in repr(world.held)
    world.desk.current = 2
    added = await world.rekey()
    assert (added["step"], added["added"], added["erased_slots"]) == ("add", ["vda", "vdb"], 0)
    assert [world.opened_by(n) for n in (0, 1)] == [{1, 2}, {1, 2}]
    assert (world.held.held, bytes(value)) == ({}, bytes(len(value)))
    assert (await world.rekey(leave_only=True))["erased_slots"] == 4, "two of each disk"
    assert [world.opened_by(n) for n in (0, 1)] == [{2}, {2}]
    again = await world.rekey(leave_only=True)
    assert (again["step"], again["added"], again["erased_slots"]) == ("done", [], 0)
    assert (world.desk.asked, world.desk.given_back) == (4, 4)
    assert COPIES in rekey_shown(again, 2)


@pytest.mark.parametrize("disks_before", [0, 1])
async def test_killed_while_slots_are_added(world, monkeypatch, disks_before: int) -> None:
    """Killed before the first or the second disk: back to the old key, again, and it is finished."""
    await world.rekey()
    world.desk.current = 2
    real, done = rekey_desk.add_passphrase, []

    def add(*args: object) -> None:
        if len(done) == disks_before:
            raise KeyboardInterrupt  # stands for the end of the process
        done.append(args)
        real(*args)

    monkeypatch.setattr(rekey_desk, "add_passphrase", add)
    with pytest.raises(KeyboardInterrupt):
        await world.rekey(leave_only=True)
    monkeypatch.undo()
    world.crash()
    assert all(1 in world.opened_by(n) for n in (0, 1))
    with pytest.raises(CallFailed, match="--to OLD"):
        await world.rekey(leave_only=True)
    assert world.desk.lowest == 1, "the old key may still be opened: some disk needs it"
    world.desk.current = 1
    assert (await world.rekey())["step"] == "hold"
    world.desk.current = 2
    assert (await world.rekey(leave_only=True))["added"] == ["vda", "vdb"][disks_before:]
    assert [world.opened_by(n) for n in (0, 1)] == [{2}, {2}]


async def test_killed_between_adding_and_remembering(world) -> None:
    """The new key opens everything: the old one is not needed to finish, nor opened any more."""
    await world.rekey()
    world.desk.current = 2
    await world.rekey()
    world.desk.lowest = 1
    world.crash()
    assert (await world.rekey())["step"] == "done"
    world.desk.current = 1
    with pytest.raises(CallFailed) as refused:
        await world.rekey()
    assert refused.value.failure.reason == "GRANT_OLD_KEY_EPOCH"


@pytest.mark.parametrize("until", [1, 2, 3])
async def test_killed_while_slots_are_erased(world, monkeypatch, until: int) -> None:
    """Before each change of a slot: the new key opens the disk, and running it again leaves only that."""
    await world.rekey()
    world.desk.current = 2
    await world.rekey()
    real, amended = luks.run_qemu, []

    def run(program: str, first: str, *words: str, **secrets: bytes) -> str:
        if first == "amend":
            amended.append(words)
            if len(amended) == until:
                raise KeyboardInterrupt
        return real(program, first, *words, **secrets)

    monkeypatch.setattr(luks, "run_qemu", run)
    with pytest.raises(KeyboardInterrupt):
        await world.rekey(leave_only=True)
    monkeypatch.undo()
    world.crash()
    assert all(2 in world.opened_by(n) for n in (0, 1))
    await world.rekey(leave_only=True)
    assert [world.opened_by(n) for n in (0, 1)] == [{2}, {2}]
    assert [len(active_slots(disk)) for disk in world.disks] == [1, 1]


def wait_for_lock(disk: Path) -> None:
    """Until the kernel is done with a qemu-img that was killed."""
    deadline = time.monotonic() + 20
    while not luks_info_works(disk):
        assert time.monotonic() < deadline, "the disk stays locked"
        time.sleep(0.1)


def luks_info_works(disk: Path) -> bool:
    try:
        active_slots(disk)
    except LuksFailed as failure:
        if "lock" not in str(failure):
            raise
        return False
    return True


@pytest.mark.parametrize("change", ["add", "erase"])
def test_qemu_img_killed_at_any_moment(tmp_path, template, change: str) -> None:
    """A key that opened the disk before an amend that is killed, and should after it, opens it."""
    for turn in range(4):
        disk = Path(shutil.copy(template, tmp_path / f"{change}{turn}.qcow2"))
        if change == "erase":
            luks.add_passphrase(disk, PASSPHRASES[1], PASSPHRASES[2])
        call = {
            "add": f"add_passphrase(image, {PASSPHRASES[1]!r}, {PASSPHRASES[2]!r})",
            "erase": f"leave_only(image, {PASSPHRASES[2]!r})",
        }[change]
        code = (
            f"from pathlib import Path; from hostagent.luks import *; image = Path({str(disk)!r});"
            f"print(flush=True); {call}"
        )
        process = subprocess.Popen(
            (sys.executable, "-c", code), stdout=subprocess.PIPE, start_new_session=True
        )
        process.stdout.readline()
        time.sleep(0.25 * turn)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        wait_for_lock(disk)
        stays = {"add": 1, "erase": 2}[change]
        assert opens(disk, PASSPHRASES[stays])
        luks.add_passphrase(disk, PASSPHRASES[stays], PASSPHRASES[2])
        luks.leave_only(disk, PASSPHRASES[2])
        assert len(active_slots(disk)) == 1


async def test_a_key_that_does_not_open_the_disks(world, tmp_path) -> None:
    """A wrong old key is not held; a wrong new one erases nothing; the disks are as they were."""
    other = World(world.disks[0], made(tmp_path / "c.qcow2", FOREIGN))
    before = [disk.read_bytes() for disk in other.disks]
    with pytest.raises(CallFailed, match="vdb does not open with key 1"):
        await other.rekey()
    assert other.held.held == {}
    other.desk.current = 2
    with pytest.raises(CallFailed, match="vda, vdb does not open with key 2 yet"):
        await other.rekey(leave_only=True)
    assert [disk.read_bytes() for disk in other.disks] == before
    assert (other.desk.lowest, other.desk.given_back) == (1, 2)


async def test_an_old_passphrase_that_is_none_any_more(world, monkeypatch) -> None:
    """Held, but the disk was changed since: an error of qemu-img, nothing is erased, nothing remembered."""
    await world.rekey()
    world.disks[0].unlink()
    made(world.disks[0], FOREIGN)
    world.desk.current = 2
    with pytest.raises(CallFailed) as failed:
        await world.rekey(leave_only=True)
    assert failed.value.failure.reason == "DISK_NOT_REKEYED"
    assert world.desk.lowest == 1
    assert VM in world.held.held, "it may be needed again"
    assert opens(world.disks[0], FOREIGN)


async def test_hosts_get_a_newer_key(world) -> None:
    """Epoch 3 is neither the old nor the new one of a change to 2."""
    world.desk.current = 3
    with pytest.raises(CallFailed, match="hosts get key 3 already"):
        await world.rekey()
    assert world.opened_by() == {1}
    assert world.desk.lowest == 1


async def test_a_passphrase_is_held_for_a_limited_time(world, monkeypatch) -> None:
    """Then it is overwritten, and the change begins anew."""
    monkeypatch.setattr(rekey_desk, "HOLD_S", 0.0)
    await world.rekey()
    await asyncio.sleep(0.01)
    assert world.held.held == {}
    world.desk.current = 2
    with pytest.raises(CallFailed, match="no older key is at hand"):
        await world.rekey()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"state": "running (booted)"}, "shut it down"),
        ({"state": "paused (user)"}, "shut it down"),
        ({"state": ""}, "shut it down"),
        ({"dominfo": "Managed save:   yes\n"}, "managed save"),
        ({"snapshot-list": "before\n"}, "snapshots"),
    ],
)
async def test_a_vm_that_is_not_at_rest(world, change: dict, says: str) -> None:
    """Refused before a key is asked for."""
    world.virsh.answers |= change
    with pytest.raises(CallFailed, match=says):
        await world.rekey()
    world.virsh.answers["state"] = "shut off"
    assert world.desk.asked == 0


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.PAUSED, Phase.REQUESTING])
async def test_a_vm_that_this_host_is_busy_with(world, phase: Phase) -> None:
    """Its lease is somebody else's, and stays so."""
    world.desk.phase = phase
    with pytest.raises(CallFailed, match=phase.value):
        await world.rekey()
    assert (world.desk.asked, world.desk.given_back) == (0, 0)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("type='qcow2'", "type='raw'", "has to be qcow2"),
        ("type='file'", "type='block'", "only disks in files"),
        ("<target", "<shareable/><target", "shared"),
        ("<encryption format='luks'>", "<!--", "no encrypted disk"),
        (
            "<disk",
            f"{VTPM}<disk",
            "swtpm can't change",
        ),
    ],
)
async def test_definitions_that_can_not(world, old: str, new: str, says: str) -> None:
    """Raw LUKS, block devices, shared disks, no LUKS, an encrypted vTPM: said, no key is asked for."""
    changed = world.virsh.devices.replace(old, new, 1 if VTPM in new else -1)
    if new == "<!--":
        changed = "<disk type='file'><source file='/x'/><target dev='vda'/></disk>"
    world.virsh.devices = changed
    with pytest.raises(CallFailed, match=says):
        await world.rekey()
    assert world.desk.asked == 0


async def test_an_unmarked_domain(world) -> None:
    """It is nobody's VM."""
    world.virsh.definition = DOMAIN.replace("id='web'", "id=''")
    with pytest.raises(CallFailed, match="no protected VM"):
        await world.rekey()


async def test_a_file_that_is_not_what_the_definition_says(tmp_path, template) -> None:
    """Plain qcow2, raw, raw LUKS, one that reads from another file, none: no key is asked for."""
    plain, raw, whole = (tmp_path / each for each in ("plain", "raw", "whole"))
    luks.run_qemu("qemu-img", "create", "-q", "-f", "qcow2", str(plain), "1M")
    raw.write_bytes(bytes(1 << 20))
    whole.write_bytes(b"LUKS\xba\xbe\x00\x01" + bytes(1 << 20))
    backed = Path(shutil.copy(template, tmp_path / "backed"))
    words = ("-u", "-b", str(raw), "-F", "raw", "--image-opts", luks.luks_options(backed))
    luks.run_qemu("qemu-img", "rebase", *words, new=PASSPHRASES[1])
    for disk in (plain, raw, whole, backed, tmp_path / "none"):
        other = World(disk)
        with pytest.raises(CallFailed) as failed:
            await other.rekey()
        assert failed.value.failure.reason == "DISK_NOT_REKEYED", disk
        assert other.desk.asked == 0


@pytest.mark.parametrize("to", [0, -1, "x", None])
async def test_requests_that_are_none(world, to: object) -> None:
    """Refused as such."""
    with pytest.raises((ValueError, TypeError)):
        await world.rekey(to=to)


def test_other_passphrases_go_too_or_stay(tmp_path) -> None:
    """Only the new one is left; with every slot in use nothing is lost; one that does not open erases nothing."""
    disk = made(tmp_path / "a.qcow2", FOREIGN)
    luks.add_passphrase(disk, FOREIGN, PASSPHRASES[2])
    with pytest.raises(LuksFailed, match="should stay"):
        luks.leave_only(disk, PASSPHRASES[1])
    assert opens(disk, FOREIGN)
    while len(active_slots(disk)) < 8:
        luks.add_passphrase(disk, FOREIGN, FOREIGN)
    with pytest.raises(LuksFailed):
        luks.leave_only(disk, PASSPHRASES[2])
    assert opens(disk, FOREIGN)
    assert opens(disk, PASSPHRASES[2])


async def test_no_key_in_arguments_answers_or_logs(world, monkeypatch, caplog, capsys) -> None:
    """N69: a passphrase goes through pipes only."""
    real, said = subprocess.run, []

    def run(words: tuple[str, ...], **more: object) -> object:
        said.append(" ".join(words))
        return real(words, **more)

    monkeypatch.setattr(subprocess, "run", run)
    answers = [await world.rekey()]
    world.desk.current = 2
    answers.append(await world.rekey(leave_only=True))
    everything = "\n".join([*said, json.dumps(answers), caplog.text, *capsys.readouterr()])
    assert "amend" in everything
    for n in (1, 2):
        assert PASSPHRASES[n].decode() not in everything
        assert KEYS[n].hex() not in everything
