"""A new disk of a VM: what is no place or size, what is never written over, and what a killed try left."""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from hostagent import disk_making, protect_desk
from hostagent.disk_image import unfinished
from hostagent.disk_making import DiskNotMade, make, path_in_pool, require_place
from hostagent.domain import DefinitionInvalid, read_domain
from hostagent.failure import CallFailed
from hostagent.luks import LuksFailed, luks_options, opens, run_qemu
from hostagent.new_disk import NewDisk, NewDiskInvalid, Volume, asked_for, place_of, size_of
from hostagent.protect_desk import ProtectDesk
from hostagent.protection import DiskState, protect_definition, secret_uuid

from .test_protect_desk import PLAIN, REQUEST, FakeDesk, FakeVirsh

KEY = b"k" * 64
MIB = 1 << 20
EMPTY = PLAIN[: PLAIN.index("<disk")] + "</devices></domain>"


# --- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        "",
        ".",
        "x",
        "a/b/c",
        "../x",
        "/",
        "//x",
        "/a/../b",
        "/a//b",
        "/a/",
        "/a\n",
        "/a\0b",
        "-p/x",
        ".p/x",
        "p/",
    ],
)
def test_no_place(said: str) -> None:
    """N44: only an absolute path without detours or POOL/VOLUME comes near a command."""
    with pytest.raises(NewDiskInvalid, match="POOL/VOLUME"):
        place_of(said)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "20",
        "20GB",
        "20g",
        "-1GiB",
        "+1GiB",
        "1.5GiB",
        "0GiB",
        "1e3G",
        "20 GiB",
        "20GiB ",
        "1KiB",
        "65TiB",
        "9999999999999G",
        "٣GiB",
    ],
)
def test_no_size(said: str) -> None:
    """A unit that could mean two things, a part of a byte, nothing, or more than any disk: refused."""
    with pytest.raises(NewDiskInvalid, match="size"):
        size_of(said)


def test_places_and_sizes() -> None:
    """What an administrator writes."""
    assert place_of("/srv/vm, one/a.qcow2") == "/srv/vm, one/a.qcow2"
    assert place_of("default/web.qcow2") == Volume(pool="default", name="web.qcow2")
    assert [size_of(each) for each in ("1M", "20GiB", "64TiB")] == [MIB, 20 << 30, 64 << 40]


@pytest.mark.parametrize("said", [[], "x", {}, {"place": "/x"}, {"size": "1M"}])
def test_half_a_request(said: object) -> None:
    """Nothing is guessed."""
    with pytest.raises(NewDiskInvalid, match="a place and a size"):
        asked_for({"new_disk": said})


# --- definition ------------------------------------------------------------------------------------


def new(path: str | Path = "/vm/new.qcow2", **differs: object) -> NewDisk:
    return NewDisk(**{"path": str(path), "size_bytes": 8 * MIB} | differs)


def test_a_domain_without_a_disk_gets_one() -> None:
    """It is in the profile, encrypted by the VM's secret, qcow2, without the host's cache."""
    plan = protect_definition(EMPTY.encode(), "web", new())
    (disk,) = plan.disks
    assert (disk.target, disk.state, disk.encrypted) == ("vda", DiskState.NEW, "/vm/new.qcow2")
    after = read_domain(plan.definition)
    assert after.disk_secrets == (secret_uuid("web", "disk"),)
    assert after.profile_sha256 == plan.profile_sha256
    assert b'type="qcow2" cache="none"' in plan.definition
    with pytest.raises(DefinitionInvalid, match="no disk"):
        protect_definition(EMPTY.encode(), "web")


def test_beside_an_existing_disk() -> None:
    """The first free target, or the one asked for on its bus; the other disk is encrypted as always."""
    plan = protect_definition(PLAIN.encode(), "web", new())
    assert [(d.target, d.state) for d in plan.disks] == [
        ("vda", DiskState.PLAIN),
        ("vdb", DiskState.NEW),
    ]
    sata = protect_definition(PLAIN.encode(), "web", new(target="sdc"))
    assert b'dev="sdc" bus="sata"' in sata.definition
    assert sata.profile_sha256 != plan.profile_sha256


def test_planned_again_after_all_of_it() -> None:
    """What an earlier try defined is not added twice."""
    first = protect_definition(EMPTY.encode(), "web", new())
    for again in (new(), new(target="vda")):
        second = protect_definition(first.definition, "web", again)
        assert [disk.state for disk in second.disks] == [DiskState.DONE]
        assert second.profile_sha256 == first.profile_sha256


@pytest.mark.parametrize(
    ("disk", "says"),
    [
        (new(target="vda"), "has a vda already"),
        (new(target="hda"), "vda … vdz"),
        (new(target="vd"), "vda … vdz"),
        (new(target="vdb' x='"), "vda … vdz"),
        (new("/nonexistent/web.img"), "in the clear"),
    ],
)
def test_no_target(disk: NewDisk, says: str) -> None:
    """Neither over another disk nor beside itself."""
    with pytest.raises(DefinitionInvalid, match=says):
        protect_definition(PLAIN.encode(), "web", disk)


def test_a_disk_of_the_domain_under_another_target() -> None:
    """An encrypted disk that is there is not the new one that was asked for."""
    first = protect_definition(EMPTY.encode(), "web", new())
    with pytest.raises(DefinitionInvalid, match="is the domain's vda"):
        protect_definition(first.definition, "web", new(target="vdb"))


def test_all_targets_are_taken() -> None:
    """A 27th disk is refused in words."""
    disks = "".join(
        f"<disk type='file'><source file='/vm/{n}'/><target dev='vd{chr(97 + n)}'/></disk>"
        for n in range(26)
    )
    full = EMPTY.replace("</devices>", f"{disks}</devices>")
    with pytest.raises(DefinitionInvalid, match="no free target"):
        protect_definition(full.encode(), "web", new())


# --- place -----------------------------------------------------------------------------------------


def test_outside_of_what_is_allowed(tmp_path: Path) -> None:
    """Also by a link that leads out; the refusal names the setting."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    require_place(new(tmp_path / "in" / "a"), [tmp_path / "in"])
    for path in (tmp_path / "out" / "a", tmp_path / "in" / "link" / "a", tmp_path / "a"):
        with pytest.raises(DiskNotMade, match="disk_folders"):
            require_place(new(path), [tmp_path / "in"])
    with pytest.raises(DiskNotMade, match="nowhere"):
        require_place(new(tmp_path / "in" / "a"), [])


def test_no_folder_or_none_that_is_ours(tmp_path: Path, monkeypatch) -> None:
    """Folders are not made by the way."""
    with pytest.raises(DiskNotMade, match="make the folder"):
        require_place(new(tmp_path / "absent" / "a"), [tmp_path])
    (tmp_path / "file").touch()
    with pytest.raises(DiskNotMade, match=r"can't write|make the folder"):
        require_place(new(tmp_path / "file" / "a"), [tmp_path])
    monkeypatch.setattr(disk_making.os, "access", lambda *_: False)
    with pytest.raises(DiskNotMade, match="can't write"):
        require_place(new(tmp_path / "a"), [tmp_path])


def test_more_than_is_free(tmp_path: Path) -> None:
    """A disk that would fill the host is a decision, not an accident."""
    large = new(tmp_path / "a", size_bytes=1 << 46)
    with pytest.raises(DiskNotMade, match="--new-thin"):
        require_place(large, [tmp_path])
    require_place(new(tmp_path / "a", size_bytes=1 << 46, thin=True), [tmp_path])


# --- making ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk that ``make`` made; tests take copies, since deriving keys is slow on a busy machine."""
    folder = tmp_path_factory.mktemp("earlier")
    make(new(folder / "a.qcow2"), KEY)
    assert [each.name for each in folder.iterdir()] == ["a.qcow2"]
    return folder / "a.qcow2"


def test_made_empty_and_encrypted(earlier: Path) -> None:
    """Only the VM's key opens it."""
    assert opens(earlier, KEY)
    assert not opens(earlier, b"x" * 64)


def test_what_an_earlier_try_left(tmp_path: Path, earlier: Path) -> None:
    """Made and not attached: taken as it is, by the key that opens it only."""
    disk = new(tmp_path / "a.qcow2")
    shutil.copy(earlier, disk.path)
    before = (tmp_path / "a.qcow2").stat()
    require_place(disk, [tmp_path])
    make(disk, KEY)
    assert (tmp_path / "a.qcow2").stat().st_ino == before.st_ino
    with pytest.raises(DiskNotMade, match="does not open"):
        make(disk, b"x" * 64)


@pytest.mark.parametrize("kind", ["text", "plain", "size", "data", "folder", "link", "backed"])
def test_nothing_is_written_over(tmp_path: Path, earlier: Path, kind: str) -> None:
    """Whatever stands there stays, and is never attached as an empty disk."""
    path, disk = tmp_path / "a.qcow2", new(tmp_path / "a.qcow2")
    match kind:
        case "text":
            path.write_text("the only copy")
        case "plain":
            run_qemu("qemu-img", "create", "-q", "-f", "qcow2", str(path), "8M")
        case "size":
            shutil.copy(earlier, path)
            disk = new(path, size_bytes=4 * MIB)
        case "data":
            shutil.copy(earlier, path)
            write = ("-c", "write -q 0 512", "--image-opts", luks_options(path))
            run_qemu("qemu-io", "-n", *write, new=KEY)
        case "folder":
            path.mkdir()
        case "link":
            shutil.copy(earlier, tmp_path / "b.qcow2")
            path.symlink_to(tmp_path / "b.qcow2")
        case _:
            (tmp_path / "base").write_bytes(bytes(8 * MIB))
            backed = ("-b", str(tmp_path / "base"), "-F", "raw", str(path))
            run_qemu("qemu-img", "create", "-q", "-f", "qcow2", *backed)
    before = None if path.is_dir() else path.read_bytes()
    with pytest.raises(DiskNotMade, match=r"exists.*choose another name"):
        make(disk, KEY)
    if kind != "data":  # what only the key can tell comes after the key
        with pytest.raises(DiskNotMade, match="exists"):
            require_place(disk, [tmp_path])
    assert path.is_dir() or path.read_bytes() == before


def test_somebody_was_faster(tmp_path: Path, monkeypatch) -> None:
    """A file that appears while ours is made is not replaced."""
    path = tmp_path / "a.qcow2"

    def sync(_written: Path) -> None:
        path.write_text("theirs")

    monkeypatch.setattr(disk_making, "sync", sync)
    with pytest.raises(DiskNotMade, match="meanwhile"):
        make(new(path), KEY)
    assert path.read_text() == "theirs"
    assert [each.name for each in tmp_path.iterdir()] == ["a.qcow2"]


def test_qemu_img_fails(tmp_path: Path, monkeypatch) -> None:
    """Its words are told; nothing is left."""

    def fail(*_words: str, **_secrets: bytes) -> str:
        raise LuksFailed("qemu-img create: No space left on device")

    monkeypatch.setattr(disk_making, "run_qemu", fail)
    with pytest.raises(DiskNotMade, match="No space left"):
        make(new(tmp_path / "a.qcow2"), KEY)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_try_left_goes(tmp_path: Path) -> None:
    """Folders without a living process are removed; what is being written, or is not ours, stays."""
    target = tmp_path / "a.qcow2"
    dead, other = tmp_path / ".a.qcow2.abcd1234", tmp_path / ".b.qcow2.abcd1234"
    for folder in (dead, other, tmp_path / ".a.qcow2.d"):
        folder.mkdir()
        (folder / ".lock").touch()
    with unfinished(target) as first:
        first.write_bytes(b"being written")
        assert not dead.exists()
        with unfinished(target):
            assert first.exists()
    left = {each.name for each in tmp_path.iterdir()}
    assert left == {other.name, ".a.qcow2.d"}


def test_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    """SIGKILL in the middle: the next try finds the place, and makes the disk."""
    program = (
        "import os, sys, signal; from pathlib import Path; from hostagent.disk_image import unfinished\n"
        f"with unfinished(Path({str(tmp_path / 'a.qcow2')!r})) as written:\n"
        "    written.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(("python3", "-c", program), cwd=Path(__file__).parents[3], check=False)
    assert done.returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    make(new(tmp_path / "a.qcow2"), KEY)
    assert [each.name for each in tmp_path.iterdir()] == ["a.qcow2"]


# --- pools -----------------------------------------------------------------------------------------


def pool(kind: str, path: str = "<path>/srv/vm</path>") -> SimpleNamespace:
    async def run(*_words: str) -> tuple[int, str, str]:
        return 0, f"<pool type='{kind}'><name>p</name><target>{path}</target></pool>", ""

    return SimpleNamespace(run=run)


async def test_a_volume_is_a_file_of_its_pool() -> None:
    """In the folder that libvirt tells."""
    found = await path_in_pool(pool("dir"), Volume(pool="p", name="web.qcow2"))
    assert found == "/srv/vm/web.qcow2"


@pytest.mark.parametrize("kind", ["logical", "rbd", "iscsi"])
async def test_pools_without_files(kind: str) -> None:
    """Their volumes are no files that could be encrypted here."""
    with pytest.raises(DiskNotMade, match="type dir"):
        await path_in_pool(pool(kind), Volume(pool="p", name="x"))


async def test_pools_that_are_none() -> None:
    """Unknown, without a folder, or an answer that is no XML."""

    async def unknown(*_words: str) -> tuple[int, str, str]:
        return 1, "", "Storage pool not found"

    async def nonsense(*_words: str) -> tuple[int, str, str]:
        return 0, "<pool", ""

    for virsh in (SimpleNamespace(run=unknown), SimpleNamespace(run=nonsense), pool("dir", "")):
        with pytest.raises(DiskNotMade, match="pool p"):
            await path_in_pool(virsh, Volume(pool="p", name="x"))


# --- the desk --------------------------------------------------------------------------------------


@pytest.fixture
def world(monkeypatch, tmp_path):
    virsh, desk = FakeVirsh(), FakeDesk()
    virsh.definition = EMPTY
    monkeypatch.setattr(protect_desk, "_VTPMS", tmp_path / "vtpms")
    (tmp_path / "vm").mkdir()
    made = ProtectDesk(desk=desk, virsh=virsh, host_name="esx-a01", disk_folders=(tmp_path / "vm",))
    return SimpleNamespace(virsh=virsh, desk=desk, made=made, folder=tmp_path / "vm")


def asked(world, **differs: object) -> dict:
    place = {"place": str(world.folder / "web.qcow2"), "size": "8MiB", "target": "", "thin": False}
    return {**REQUEST, "new_disk": place | differs}


async def test_made_then_defined(world) -> None:
    """An empty disk, opened by the VM's passphrase only, and the definition with it last."""
    answer = await world.made.handle(asked(world))
    assert [disk["was"] for disk in answer["disks"]] == ["new"]
    assert (world.folder / "web.qcow2").exists()
    assert "web.qcow2" in world.virsh.definition
    assert (len(world.virsh.defined), world.desk.given_back) == (1, 1)
    again = await world.made.handle(asked(world))
    assert [disk["was"] for disk in again["disks"]] == ["done"]
    assert len(world.desk.lent) == 1


@pytest.mark.parametrize(
    ("differs", "reason"),
    [
        ({"place": "web.qcow2"}, "INVALID_REQUEST"),
        ({"size": "8"}, "INVALID_REQUEST"),
        ({"target": "sr0"}, "DEFINITION_INVALID"),
        ({"place": "/etc/web.qcow2"}, "NOT_NOW"),
        ({"size": "64TiB"}, "NOT_NOW"),
    ],
)
@pytest.mark.parametrize("plan", [True, False])
async def test_bad_input(world, differs: dict, reason: str, plan: bool) -> None:
    """Told already when it is only planned: no key is asked for, nothing is made or defined."""
    with pytest.raises(CallFailed) as refused:
        await world.made.handle({**asked(world, **differs), "plan": plan})
    assert refused.value.failure.reason == reason
    assert (world.desk.lent, world.virsh.defined, list(world.folder.iterdir())) == ([], [], [])


async def test_a_running_domain(world) -> None:
    """Nothing is made for it."""
    world.virsh.answers["state"] = "running (booted)"
    with pytest.raises(CallFailed, match="shut it down"):
        await world.made.handle(asked(world))
    assert list(world.folder.iterdir()) == []


async def test_a_refused_key(world) -> None:
    """No disk that nobody could open."""
    world.desk.refusal = {"ok": False, "reason": "NO", "detail": "no", "exit_code": 1}
    with pytest.raises(CallFailed):
        await world.made.handle(asked(world))
    assert (list(world.folder.iterdir()), world.virsh.defined) == ([], [])


async def test_cut_off_between_disk_and_definition(world) -> None:
    """The domain is as before, the disk waits, and a repetition attaches that very disk."""
    world.virsh.define_fails = "libvirtd went away"
    with pytest.raises(CallFailed, match="went away"):
        await world.made.handle(asked(world))
    assert world.virsh.definition == EMPTY
    before = (world.folder / "web.qcow2").stat().st_ino
    world.virsh.define_fails = ""
    assert (await world.made.handle(asked(world)))["ok"]
    assert (world.folder / "web.qcow2").stat().st_ino == before


async def test_in_a_pool(world, monkeypatch) -> None:
    """The pool knows its new volume; one outside of the allowed folders is refused as any path."""
    said: list[tuple[str, ...]] = []
    answered = world.virsh.run
    folder = world.folder

    async def run(*words: str) -> tuple[int, str, str]:
        said.append(words)
        if words[0].startswith("pool-"):
            return 0, f"<pool type='dir'><target><path>{folder}</path></target></pool>", ""
        return await answered(*words)

    monkeypatch.setattr(world.virsh, "run", run)
    assert (await world.made.handle(asked(world, place="p/web.qcow2")))["ok"]
    assert (world.folder / "web.qcow2").exists()
    assert ("pool-refresh", "p") in said
    folder = world.folder.parent
    with pytest.raises(CallFailed, match="disk_folders"):
        await world.made.handle(asked(world, place="p/other.qcow2", target="vdb"))


def test_locks_are_of_this_process(tmp_path: Path) -> None:
    """The lock that protects what is being written is a real one."""
    with unfinished(tmp_path / "a") as written:
        fd = os.open(written.parent / ".lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(fd)
