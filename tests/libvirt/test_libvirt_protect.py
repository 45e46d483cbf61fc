"""ta vm protect --domain: a plain or LUKS domain of a real libvirt becomes a protected one."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.libvirt_hosts import guest_image
from support.two_hosts import TwoHosts, wait_until

from hostagent.libvirt_vms import disk_passphrase
from hostagent.luks import active_slots, luks_options, run_qemu

pytestmark = pytest.mark.libvirt
DOMAIN = """\
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>64</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='{kind}'/>
      <source file='{disk}'>{encryption}</source>
      <target dev='vda' bus='virtio'/>
    </disk>
    <serial type='file'><source path='{serial}'/><target port='0'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
"""
LUKS = (
    "<encryption format='luks'>"
    "<secret type='passphrase' uuid='7a000000-0000-4000-8000-0000000000aa'/></encryption>"
)


@pytest.fixture(autouse=True)
def _programs(monkeypatch) -> None:
    """ta finds hostagent as on a host where both are installed."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")


def without_disk(two: TwoHosts, name: str) -> None:
    """A domain that has a medium to be installed from, and no disk yet."""
    medium = two.folder / "medium.iso"
    medium.write_bytes(bytes(1 << 20))
    serial, path = two.folder / f"{name}.log", two.folder / f"{name}.xml"
    text = DOMAIN.format(name=name, disk="", kind="raw", encryption="", serial=serial)
    before, _, after = text.partition("    <disk ")
    cdrom = (
        f"<disk type='file' device='cdrom'><source file='{medium}'/><target dev='hda'/></disk>\n"
    )
    path.write_text(before + cdrom + after.partition("</disk>\n")[2])
    two.libvirt["host-a"].do("define", path)


def defined(
    two: TwoHosts, name: str, disk: Path, *, kind: str = "raw", encryption: str = ""
) -> None:
    path = two.folder / f"{name}.xml"
    serial = two.folder / f"{name}.log"
    path.write_text(
        DOMAIN.format(name=name, disk=disk, kind=kind, encryption=encryption, serial=serial)
    )
    two.libvirt["host-a"].do("define", path)


def protect(two: TwoHosts, vm: str, *words: str):
    """On host-a, as a person there does it."""
    config = two.stage.hosts["host-a"].config
    return two.stage.ta(
        *("vm", "protect", vm, "--cluster", "lab", "--domain", vm, "--host-config", config, *words)
    )


def lines(two: TwoHosts, vm: str) -> list[str]:
    path = two.folder / f"{vm}.log"
    return path.read_text().splitlines() if path.exists() else []


def starts(two: TwoHosts, vm: str) -> None:
    """The VM starts on host-a and its guest reads its disk."""
    said = two.libvirt["host-a"].virsh("start", vm)
    assert said.code == 0, said.err
    wait_until(lambda: len(lines(two, vm)) > 2, 20, "the guest reads its disk")
    assert set(lines(two, vm)[:-1]) == {f"tick of {vm}"}


def opens(disk: Path, passphrase: str, folder: Path) -> bool:
    secret = folder / "tried"
    secret.write_text(passphrase)
    return (
        subprocess.run(
            [
                *("qemu-io", "-r", "-c", "read -q 0 512"),
                *("--object", f"secret,id=s,file={secret}", "--image-opts"),
                f"driver=qcow2,file.filename={disk},encrypt.key-secret=s",
            ],
            capture_output=True,
            check=False,
        ).returncode
        == 0
    )


@pytest.mark.long
def test_a_plain_domain(two: TwoHosts) -> None:
    """One command: record, key, encrypted copy, mark; the plain disk stays until a person removes it."""
    disk = two.folder / "plainvm.img"
    disk.write_bytes(guest_image("tick of plainvm"))
    before = disk.read_bytes()
    defined(two, "plainvm", disk)
    done = protect(two, "plainvm")
    assert done.code == 0, done.said
    encrypted = two.folder / "plainvm.ta.qcow2"
    assert b"tick of" not in encrypted.read_bytes()
    assert disk.read_bytes() == before
    assert "is in the clear" in done.said
    starts(two, "plainvm")
    again = protect(two, "plainvm")
    assert again.code == 1
    assert "shut it down first" in again.said
    two.libvirt["host-a"].do("destroy", "plainvm")
    assert protect(two, "plainvm").code == 0, "repeated, it has nothing left to do"
    starts(two, "plainvm")


@pytest.mark.parametrize("erase", [False, True])
def test_a_luks_domain(two: TwoHosts, erase: bool) -> None:
    """Its passphrase is joined by the VM's, or replaced; a wrong one changes nothing."""
    vm = f"luksvm{int(erase)}"
    plain, disk, old = (two.folder / f"{vm}.{each}" for each in ("img", "qcow2", "pass"))
    plain.write_bytes(guest_image(f"tick of {vm}"))
    old.write_text("correct horse\n")
    old.chmod(0o600)
    luks = ("-O", "qcow2", "-o", "encrypt.format=luks,encrypt.key-secret=d,encrypt.iter-time=100")
    run_qemu("qemu-img", "convert", *luks, str(plain), str(disk), d=b"correct horse")
    defined(two, vm, disk, kind="qcow2", encryption=LUKS)
    without = protect(two, vm)
    assert without.code == 1
    assert "--passphrase-file" in without.said
    wrong = two.folder / f"{vm}.wrong"
    wrong.write_text("incorrect\n")
    wrong.chmod(0o600)
    assert protect(two, vm, "--passphrase-file", str(wrong)).code == 1
    assert opens(disk, "correct horse", two.folder)
    words = ("--passphrase-file", str(old), *("--erase-old-passphrase",) * erase)
    done = protect(two, vm, *words)
    assert done.code == 0, done.said
    assert opens(disk, "correct horse", two.folder) is not erase
    starts(two, vm)


def test_what_is_running_is_left_alone(two: TwoHosts) -> None:
    """A domain that runs is not touched; nothing was written."""
    disk = two.folder / "busy.img"
    disk.write_bytes(guest_image("tick of busy"))
    defined(two, "busy", disk)
    two.libvirt["host-a"].do("start", "busy")
    done = protect(two, "busy")
    assert done.code == 1, done.said
    assert "shut it down first" in done.said
    assert not (two.folder / "busy.ta.qcow2").exists()


def fill(two: TwoHosts, vm: str, disk: Path) -> None:
    """Write a guest to a new disk, as an installer that runs in the VM would; the disk stays encrypted."""
    key, plain = two.folder / f"{vm}.key", two.folder / f"{vm}.img"
    plain.write_bytes(guest_image(f"tick of {vm}"))
    got = two.stage.agent("host-a", "key", "request", vm, "--out", key)
    assert got.code == 0, got.said
    words = ("-n", "--target-image-opts", "-f", "raw", str(plain), luks_options(disk))
    new = disk_passphrase(bytearray(key.read_bytes()), vm)
    run_qemu("qemu-img", "convert", *words, new=new)
    assert two.stage.agent("host-a", "key", "give-back", vm).code == 0


@pytest.mark.long
def test_a_new_disk(two: TwoHosts) -> None:
    """A domain without a disk gets one that only the VM's key opens, after each bad place was refused."""
    vm, disk = "newvm", two.folder / "newvm.qcow2"
    without_disk(two, vm)
    taken = two.folder / "taken.qcow2"
    taken.write_bytes(b"the only copy")
    for place, size, says in (
        (taken, "8MiB", "exists"),
        (disk, "8", "as 20GiB"),
        (disk, "60TiB", "--new-thin"),
        (Path("/var/lib/elsewhere.qcow2"), "8MiB", "disk_folders"),
        (two.folder / "absent" / "a.qcow2", "8MiB", "make the folder"),
        ("nopool/a.qcow2", "8MiB", "virsh pool-list"),
    ):
        refused = protect(two, vm, "--new-disk", str(place), "--new-size", size)
        assert refused.code in {1, 2}, refused.said
        assert says in refused.said
    assert taken.read_bytes() == b"the only copy"
    assert two.stage.ta("vm", "show", vm).code == 3, "a refused plan records nothing"
    words = ("--new-disk", str(disk), "--new-size", "8MiB")
    done = protect(two, vm, *words)
    assert done.code == 0, done.said
    assert "new and empty" in done.said
    assert len(active_slots(disk)) == 1
    assert protect(two, vm, *words).code == 0, "repeated, it has nothing left to do"
    fill(two, vm, disk)
    assert b"tick of" not in disk.read_bytes()
    starts(two, vm)
    busy = protect(two, vm, *words)
    assert busy.code == 1
    assert "shut it down first" in busy.said
    two.libvirt["host-a"].do("destroy", vm)
    assert protect(two, vm, *words).code == 0, "with data on it, the disk stays as it is"
    host = two.libvirt["host-a"]
    host.do("change-media", vm, "hda", "--eject", "--config")
    changed = host.virsh("start", vm)
    assert "PROFILE_DIFFERS" in changed.err, changed.err
    (two.folder / f"{vm}.full.xml").write_text(host.do("dumpxml", "--inactive", vm))
    two.ta("vm", "reprofile", vm, "--definition", two.folder / f"{vm}.full.xml", "--yes")
    starts(two, vm)


def test_a_new_disk_in_a_pool_beside_a_plain_one(two: TwoHosts) -> None:
    """One command for both; the pool knows its new volume, and the guest boots from its old disk."""
    vm, folder = "poolvm", two.folder / "pool"
    folder.mkdir(exist_ok=True)
    host = two.libvirt["host-a"]
    host.virsh("pool-destroy", "images")
    host.do("pool-create-as", "images", "dir", "--target", folder)
    plain = two.folder / f"{vm}.img"
    plain.write_bytes(guest_image(f"tick of {vm}"))
    defined(two, vm, plain)
    done = protect(two, vm, "--new-disk", "images/data.qcow2", "--new-size", "16MiB")
    assert done.code == 0, done.said
    assert "data.qcow2" in host.do("vol-list", "images")
    assert ["vdb", str(folder / "data.qcow2")] in map(
        str.split, host.do("domblklist", vm).splitlines()
    )
    starts(two, vm)
    host.do("destroy", vm)
    host.do("pool-destroy", "images")


def test_an_agent_killed_while_it_makes_a_disk(two: TwoHosts) -> None:
    """The domain is as before, nothing half made has the disk's name, and a repetition makes it."""
    vm, disk = "cutvm", two.folder / "cutvm.qcow2"
    without_disk(two, vm)
    before = two.libvirt["host-a"].do("dumpxml", "--inactive", vm)
    words = ("--new-disk", str(disk), "--new-size", "8MiB")
    running = threading.Thread(target=protect, args=(two, vm, *words))
    running.start()
    wait_until(lambda: list(two.folder.glob(f".{disk.name}.*")), 60, "the disk is being made")
    two.kill_agent("host-a")
    running.join(60)
    assert not running.is_alive()
    assert two.libvirt["host-a"].do("dumpxml", "--inactive", vm) == before
    two.start_agent("host-a")

    wait_until(lambda: protect(two, vm, *words).code == 0, 60, "a repetition makes it")
    assert len(active_slots(disk)) == 1
    assert list(two.folder.glob(f".{disk.name}.*")) == []


def rekey(two: TwoHosts, vm: str, *words: str):
    return two.stage.agent("host-a", "vm", "rekey", vm, "--to", "2", *words)


@pytest.mark.long
def test_a_new_key(two: TwoHosts) -> None:
    """Old key, switch, new key, old slots erased, also by an agent that was killed; then it starts; never back."""
    vm = "rolledvm"
    disk = two.folder / f"{vm}.img"
    disk.write_bytes(guest_image(f"tick of {vm}"))
    defined(two, vm, disk)
    done = protect(two, vm)
    assert done.code == 0, done.said
    two.ta("key", "roll", vm)
    held = rekey(two, vm)
    assert held.code == 0, held.said
    assert f"ta key roll {vm} --to 2" in held.said
    two.ta("key", "roll", vm, "--to", "2", "--yes")
    two.kill_agent("host-a")
    two.start_agent("host-a")
    lost = rekey(two, vm, "--erase-others")
    assert lost.code == 1, lost.said
    assert "no older key is at hand" in lost.said
    two.ta("key", "roll", vm, "--to", "1", "--yes")
    assert rekey(two, vm).code == 0
    two.ta("key", "roll", vm, "--to", "2", "--yes")
    added = rekey(two, vm)
    assert added.code == 0, added.said
    assert "copies of the disks made before" in added.said
    erased = rekey(two, vm, "--erase-others")
    assert erased.code == 0, erased.said
    assert len(active_slots(two.folder / f"{vm}.ta.qcow2")) == 1
    starts(two, vm)
    busy = rekey(two, vm)
    assert busy.code == 1
    assert "shut it down first" in busy.said
    two.libvirt["host-a"].do("destroy", vm)
    two.ta("key", "roll", vm, "--to", "1", "--yes")
    older = rekey(two, vm)
    assert older.code == 1, older.said
    assert "GRANT_OLD_KEY_EPOCH" in older.said
