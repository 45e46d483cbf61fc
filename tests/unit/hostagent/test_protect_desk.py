"""Protecting a domain: what stands in the way is found before anything is touched; the definition last."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from hostagent import protect_desk
from hostagent.disk_image import require_alone
from hostagent.failure import CallFailed
from hostagent.lease_model import Phase
from hostagent.protect_desk import ProtectDesk
from hostagent.protection import protect_definition

UUID = "7b000000-0000-4000-8000-000000000001"
PLAIN = f"""\
<domain type='kvm'><name>web</name><uuid>{UUID}</uuid>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='raw'/>
      <source file='/nonexistent/web.img'/><target dev='vda' bus='virtio'/></disk>
  </devices></domain>
"""


class FakeVirsh:
    """A libvirt with one domain; remembers definitions, and may change what it is given."""

    def __init__(self) -> None:
        self.definition = PLAIN
        self.answers = {
            "state": "shut off",
            "dominfo": "Managed save:   no\n",
            "snapshot-list": "",
        }
        self.changes = lambda text: text
        self.define_fails = ""
        self.defined: list[str] = []

    async def state(self, _uuid: str) -> str:
        return self.answers["state"]

    async def run(self, *words: str) -> tuple[int, str, str]:
        match words[0]:
            case "dumpxml":
                return (0, self.definition, "") if self.definition else (1, "", "no such domain")
            case "define":
                if self.define_fails:
                    return 1, "", self.define_fails
                with open(words[1], encoding="utf-8") as file:  # noqa: ASYNC230, PTH123
                    self.definition = self.changes(file.read())
                self.defined.append(self.definition)
                return 0, "", ""
            case other:
                return 0, self.answers[other], ""


class FakeDesk:
    """A desk whose key opens, or that refuses."""

    def __init__(self) -> None:
        self.refusal: dict | None = None
        self.lent: list[bytes] = []
        self.given_back = 0
        self.phase = Phase.IDLE
        self.timeout_s = 1.0
        self.keeper = SimpleNamespace(view=lambda _vm: SimpleNamespace(phase=self.phase))

    @asynccontextmanager
    async def borrowing(self, _vm: str) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self.given_back += 1

    async def lend_key(self, _vm, *, move_id, profile_sha256, hand_out):
        self.lent.append(profile_sha256)
        if self.refusal is not None:
            return self.refusal
        await asyncio.to_thread(hand_out, bytearray(32))
        return {"ok": True}


@pytest.fixture
def world(monkeypatch, tmp_path):
    virsh, desk, encrypted = FakeVirsh(), FakeDesk(), []
    monkeypatch.setattr(protect_desk, "_VTPMS", tmp_path)
    monkeypatch.setattr(protect_desk, "_write_again", lambda disk, _new: encrypted.append(disk))
    monkeypatch.setattr(protect_desk, "require_alone", lambda _path, kind: kind)
    made = ProtectDesk(desk=desk, virsh=virsh, host_name="esx-a01")
    return SimpleNamespace(virsh=virsh, desk=desk, encrypted=encrypted, made=made, vtpms=tmp_path)


REQUEST = {"do": "vm-protect", "vm": "web", "domain": "web"}


async def test_encrypts_then_defines(world) -> None:
    """The key is asked for under the new profile, given back, and the domain is defined last."""
    answer = await world.made.handle(REQUEST)
    plan = protect_definition(PLAIN.encode(), "web")
    assert answer["ok"]
    assert answer["profile_sha256"] == plan.profile_sha256.hex()
    assert world.desk.lent == [plan.profile_sha256]
    assert [disk.target for disk in world.encrypted] == ["vda"]
    assert (len(world.virsh.defined), world.desk.given_back) == (1, 1)


async def test_a_plan_touches_nothing(world) -> None:
    """It is only told."""
    world.virsh.answers["state"] = "running (booted)"
    answer = await world.made.handle({**REQUEST, "plan": True})
    assert (answer["ok"], answer["host"]) == (True, "esx-a01")
    assert (world.encrypted, world.virsh.defined, world.desk.lent) == ([], [], [])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"state": "running (booted)"}, "shut it down"),
        ({"state": "paused (user)"}, "shut it down"),
        ({"state": ""}, "shut it down"),
        ({"dominfo": "Managed save:   yes\n"}, "managed save"),
        ({"dominfo": ""}, "managed save"),
        ({"snapshot-list": "before\n"}, "snapshots"),
    ],
)
async def test_what_stands_in_the_way(world, change: dict, says: str) -> None:
    """A running domain, memory or snapshots in the clear, or no answer: nothing is touched."""
    world.virsh.answers |= change
    with pytest.raises(CallFailed, match=says):
        await world.made.handle(REQUEST)
    assert (world.encrypted, world.virsh.defined, world.desk.lent) == ([], [], [])


async def test_a_disk_that_names_a_file_of_the_host(world, monkeypatch, tmp_path) -> None:
    """T10: root would write that file into a disk which the guest reads; no key is asked for."""
    monkeypatch.setattr(protect_desk, "require_alone", require_alone)
    (tmp_path / "shadow").write_bytes(b"secret" * 1000)
    made = tmp_path / "web.img"
    backed = ("-f", "qcow2", "-b", tmp_path / "shadow", "-F", "raw", made, "1M")
    await asyncio.to_thread(subprocess.run, ("qemu-img", "create", "-q", *backed), check=True)
    text = PLAIN.replace("/nonexistent/web.img", str(made))
    world.virsh.definition = text.replace("type='raw'", "type='qcow2'")
    with pytest.raises(CallFailed, match="besides"):
        await world.made.handle(REQUEST)
    assert (world.encrypted, world.virsh.defined, world.desk.lent) == ([], [], [])


async def test_a_vtpm_with_a_state_in_the_clear(world) -> None:
    """It would stay readable beside the encrypted disk."""
    tpm = "<tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm></devices>"
    world.virsh.definition = PLAIN.replace("</devices>", tpm)
    (world.vtpms / UUID).mkdir()
    with pytest.raises(CallFailed, match="state in the clear"):
        await world.made.handle(REQUEST)
    assert world.encrypted == []


async def test_a_vm_that_this_host_is_busy_with(world) -> None:
    """A key under a lease is not asked for twice."""
    world.desk.phase = Phase.RUNNING
    with pytest.raises(CallFailed, match="running"):
        await world.made.handle(REQUEST)
    assert world.encrypted == []


async def test_a_refused_key_changes_nothing(world) -> None:
    """The authority's reason is told; the definition stays; what was fetched is given back."""
    world.desk.refusal = {
        "ok": False,
        "reason": "KEY_NOT_PERMITTED",
        "detail": "no",
        "exit_code": 1,
    }
    with pytest.raises(CallFailed) as refused:
        await world.made.handle(REQUEST)
    assert refused.value.failure.reason == "KEY_NOT_PERMITTED"
    assert (world.virsh.defined, world.desk.given_back) == ([], 1)


async def test_a_disk_that_fails_leaves_the_definition(world, monkeypatch) -> None:
    """Half encrypted is not protected: the domain starts as before."""

    def fail(*_args: object) -> None:
        raise protect_desk._failed("qemu-img convert: no space")

    monkeypatch.setattr(protect_desk, "_write_again", fail)
    with pytest.raises(CallFailed, match="no space"):
        await world.made.handle(REQUEST)
    assert (world.virsh.defined, world.desk.given_back) == ([], 1)


async def test_a_libvirt_that_makes_another_definition(world) -> None:
    """The profile that the authority has is the profile of what will start, or the old one is put back."""
    first = True

    def change(text: str) -> str:
        nonlocal first
        changed = text.replace("qemu-system-x86_64", "qemu-other") if first else text
        first = False
        return changed

    world.virsh.changes = change
    with pytest.raises(CallFailed, match="defined as before"):
        await world.made.handle(REQUEST)
    assert len(world.virsh.defined) == 2
    assert "urn:trustauthority:vm:1" not in world.virsh.defined[-1]


async def test_a_define_that_fails(world) -> None:
    """libvirt's words are told."""
    world.virsh.define_fails = "no permission"
    with pytest.raises(CallFailed, match="no permission"):
        await world.made.handle(REQUEST)


@pytest.mark.parametrize("vm", ["", "A", "a b", "../x", "x" * 64])
async def test_vm_ids_that_are_none(world, vm: str) -> None:
    """N44: nothing else comes near a command."""
    with pytest.raises(CallFailed, match="1-63"):
        await world.made.handle({**REQUEST, "vm": vm})


async def test_a_luks_disk_needs_its_passphrase(world, tmp_path) -> None:
    """From a private file only, and not a very long one."""
    luks = (
        "<source file='/nonexistent/web.img'><encryption format='luks'><secret type='passphrase' "
        "uuid='7a000000-0000-4000-8000-000000000009'/></encryption></source>"
    )
    text = PLAIN.replace("<source file='/nonexistent/web.img'/>", luks)
    world.virsh.definition = text.replace("type='raw'", "type='qcow2'")
    with pytest.raises(CallFailed, match="--passphrase-file"):
        await world.made.handle(REQUEST)
    path = tmp_path / "passphrase"
    for content, mode in ((b"secret\n", 0o644), (b"\n", 0o600), (b"x" * 2_000, 0o600)):
        path.write_bytes(content)
        path.chmod(mode)
        with pytest.raises(CallFailed, match="file of the passphrase"):
            await world.made.handle({**REQUEST, "passphrase": str(path)})
    assert world.desk.lent == []


def test_a_raw_disk_that_looks_like_another_is_read_as_raw(monkeypatch, tmp_path) -> None:
    """Both, writing and comparing, are told the format; nothing is guessed from what a guest wrote."""
    said: list[tuple[str, ...]] = []

    def record(command: str, *words: str, **_secrets: bytes) -> str:
        said.append((command, *words))
        if command == "convert":
            Path(words[-1]).touch()
        return ""

    monkeypatch.setattr(protect_desk, "_qemu_img", record)
    text = PLAIN.replace("/nonexistent", str(tmp_path))
    (disk,) = protect_definition(text.encode(), "web").disks
    protect_desk._write_again(disk, b"secret")
    convert, compare = said
    assert convert[:3] == ("convert", "-f", "raw")
    assert compare[2].startswith("driver=raw,")
    assert (tmp_path / "web.ta.qcow2").exists()
