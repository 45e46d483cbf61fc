"""Make a new, empty disk that only a VM's key opens: whether it may be there, then the file.

Stage: edge of the agent. Trusts qemu-img of this host and the folders that its configuration names.
Guarantees that nothing that exists is written over, whoever made it in between; that a file appears under
its name complete, or not at all; and that a file which an earlier try left is taken only when it is
encrypted, of that size, without any data, and opened by the VM's key. Passphrases go as in ``luks``.
"""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree as ET

from hostagent.disk_image import DiskNotAlone, publish, require_alone, unfinished
from hostagent.luks import ITERATIONS, LuksFailed, escaped, luks_options, opens, run_qemu, sync
from hostagent.new_disk import NewDisk, Volume
from hostagent.virsh import Virsh

_POOLS = frozenset({"dir", "fs", "netfs"})
"""Pools whose volumes are files in one folder."""


class DiskNotMade(Exception):
    """There is no new disk; the message says why, and what to do."""


async def path_in_pool(virsh: Virsh, volume: Volume) -> str:
    """The file that a volume of a pool would be. Raises DiskNotMade."""
    code, said, problem = await virsh.run("pool-dumpxml", volume.pool)
    if code != 0:
        raise DiskNotMade(f"pool {volume.pool}: {problem}: virsh pool-list --all shows the pools")
    try:
        pool = ET.fromstring(said)  # noqa: S314 - libvirt's own words
    except ET.ParseError as failure:
        raise DiskNotMade(f"pool {volume.pool}: {failure}") from failure
    folder = pool.findtext("target/path", "").strip()
    if pool.get("type") not in _POOLS or not folder:
        raise DiskNotMade(
            f"pool {volume.pool} keeps no files in a folder: give a pool of type dir, fs or netfs"
        )
    return str(Path(folder) / volume.name)


def require_place(disk: NewDisk, folders: Iterable[Path]) -> None:
    """The disk may be made where it should be, or an earlier try made it. Raises DiskNotMade."""
    path, allowed = Path(disk.path), [folder.resolve() for folder in folders]
    try:
        folder = path.parent.resolve(strict=True)
    except OSError as failure:
        raise DiskNotMade(f"{path.parent}: {failure.strerror}: make the folder first") from failure
    if not any(folder.is_relative_to(each) for each in allowed):
        below = ", ".join(map(str, allowed)) or "nowhere"
        raise DiskNotMade(
            f"{path} is not below {below}: choose such a place, or add its folder to"
            " libvirt.disk_folders of hostagent.toml and restart the agent"
        )
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise DiskNotMade(f"{folder}: the agent can't write there: let its user")
    if os.path.lexists(path):
        _require_left_over(path, disk.size_bytes)
        return
    free = shutil.disk_usage(folder).free
    if free < disk.size_bytes and not disk.thin:
        raise DiskNotMade(
            f"{folder} has {free >> 20} MiB free, the disk may grow to {disk.size_bytes >> 20} MiB:"
            " make room, ask for a smaller disk, or take the risk with --new-thin"
        )


def make(disk: NewDisk, passphrase: bytes) -> None:
    """An encrypted file with nothing in it. Runs in the thread of the opened key.

    Raises DiskNotMade.
    """
    target = Path(disk.path)
    try:
        if os.path.lexists(target):
            _take_left_over(disk, passphrase)
            return
        options = f"encrypt.format=luks,encrypt.key-secret=new,encrypt.{ITERATIONS}"
        with unfinished(target) as written:
            words = ("-f", "qcow2", "-o", options, str(written), str(disk.size_bytes))
            run_qemu("qemu-img", "create", "-q", *words, new=passphrase)
            if not opens(written, passphrase):
                raise DiskNotMade(f"{target}: what was made does not open with the VM's key")
            sync(written)
            publish(written, target)
    except FileExistsError as failure:
        raise DiskNotMade(f"{target} was made by somebody else meanwhile: try again") from failure
    except (LuksFailed, OSError) as failure:
        raise DiskNotMade(
            f"{target}: {failure}: nothing was made; mend that, try again"
        ) from failure


_OTHERS = ": choose another name, or remove it if nobody needs it"


def _take_left_over(disk: NewDisk, passphrase: bytes) -> None:
    """What an earlier try left is what would be made now. Raises DiskNotMade, LuksFailed."""
    path = Path(disk.path)
    _require_left_over(path, disk.size_bytes)
    if not opens(path, passphrase):
        raise DiskNotMade(f"{path} exists and does not open with the VM's key{_OTHERS}")
    words = ("--output", "json", "--image-opts", luks_options(path))
    found = json.loads(run_qemu("qemu-img", "check", *words, new=passphrase))
    if found.get("allocated-clusters", 0) != 0:
        raise DiskNotMade(f"{path} exists and has data{_OTHERS}")


def _require_left_over(path: Path, size_bytes: int) -> None:
    """It looks like what an earlier try left; only the key tells. Raises DiskNotMade."""
    if path.is_symlink() or not path.is_file():
        raise DiskNotMade(f"{path} exists and is no file{_OTHERS}")
    image = f"driver=qcow2,file.filename={escaped(str(path))}"
    try:
        require_alone(path, "qcow2")
        said = run_qemu("qemu-img", "info", "--output", "json", "--image-opts", image)
    except (DiskNotAlone, LuksFailed) as failure:
        raise DiskNotMade(f"{path} exists{_OTHERS}") from failure
    info = json.loads(said)
    encrypted = info.get("format-specific", {}).get("data", {}).get("encrypt", {})
    if encrypted.get("format") != "luks":
        raise DiskNotMade(f"{path} exists and is not encrypted{_OTHERS}")
    if info.get("virtual-size") != size_bytes:
        raise DiskNotMade(f"{path} exists with {info.get('virtual-size')} bytes{_OTHERS}")
