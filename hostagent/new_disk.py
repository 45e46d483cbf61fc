"""A new, empty disk that a VM is to get: what was asked for, and its element of the definition. Pure.

Stage: pure; words in, values out. Trusts nothing in a request. Guarantees that a size has a unit and is
one that QEMU takes, that a place is an absolute path without detours or a volume of a pool, and that a
target is one that a guest of libvirt has. Does not look at the file system: ``disk_making`` does.
"""

import os
import re
import string
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from xml.etree import ElementTree as ET

MIN_BYTES = 1 << 20
MAX_BYTES = 1 << 46
"""64 TiB; nobody wants more of one file."""
_SECTOR = 512
_UNITS = {"M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"([1-9][0-9]{0,11})([MGT])(?:iB)?")
_TARGET = re.compile(r"(?:vd|sd)[a-z]")
_BUSES = {"vd": "virtio", "sd": "sata"}
_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
_VOLUME = re.compile(rf"({_NAME})/({_NAME})")


class NewDiskInvalid(ValueError):
    """What was asked for can't be made; the message says what to ask for instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDisk:
    """One disk that does not exist yet."""

    path: str
    """Its file: absolute."""
    size_bytes: int
    """As the guest sees it; the file is smaller until the guest writes."""
    target: str = ""
    """As the guest knows it (vdb); empty: the first vdX that is free."""
    thin: bool = False
    """It may be larger than what its file system has free now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A place in a storage pool of libvirt."""

    pool: str
    name: str


def place_of(said: str) -> str | Volume:
    """An absolute path, or a pool and a volume in it. Raises NewDiskInvalid."""
    volume = _VOLUME.fullmatch(said)
    if volume is not None:
        return Volume(pool=volume[1], name=volume[2])
    plain = said.startswith("/") and said.isprintable() and os.path.normpath(said) == said
    if not plain or said.startswith("//") or said == "/":
        raise NewDiskInvalid(
            f"new disk {said!r}: give an absolute path without «..», or POOL/VOLUME"
        )
    return said


def size_of(said: str) -> int:
    """Bytes of a size such as 20GiB. Raises NewDiskInvalid."""
    found = _SIZE.fullmatch(said)
    if found is None:
        raise NewDiskInvalid(f"size {said!r}: give a whole number with MiB, GiB or TiB, as 20GiB")
    size = int(found[1]) * _UNITS[found[2]]
    if not MIN_BYTES <= size <= MAX_BYTES:
        raise NewDiskInvalid(f"size {said!r}: at least 1MiB, at most 64TiB")
    return size


def target_of(said: str, taken: Collection[str]) -> str:
    """The target asked for, or the first vdX that is free. Raises NewDiskInvalid."""
    if not said:
        free = [f"vd{letter}" for letter in string.ascii_lowercase if f"vd{letter}" not in taken]
        if not free:
            raise NewDiskInvalid("the domain has no free target among vda … vdz")
        return free[0]
    if not _TARGET.fullmatch(said):
        raise NewDiskInvalid(f"target {said!r}: give vda … vdz (virtio) or sda … sdz (SATA)")
    if said in taken:
        raise NewDiskInvalid(f"the domain has a {said} already: give a free target")
    return said


def asked_for(request: Mapping[str, object]) -> Mapping[str, object] | None:
    """The part of a request that is about a new disk, if it has one. Raises NewDiskInvalid."""
    found = request.get("new_disk")
    if found is None:
        return None
    if not isinstance(found, dict) or not {"place", "size"} <= found.keys():
        raise NewDiskInvalid("a new disk has a place and a size")
    return found


def disk_element(disk: NewDisk, target: str) -> ET.Element:
    """What stands in the definition, still without encryption."""
    made = ET.Element("disk", {"type": "file", "device": "disk"})
    # without the host's cache: libvirt calls it safe to migrate
    ET.SubElement(made, "driver", {"name": "qemu", "type": "qcow2", "cache": "none"})
    ET.SubElement(made, "source", {"file": disk.path})
    ET.SubElement(made, "target", {"dev": target, "bus": _BUSES[target[:2]]})
    return made
