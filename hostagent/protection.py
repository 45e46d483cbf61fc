"""From a definition to the protected one: mark, encrypted disks, encrypted vTPM. Pure.

Stage: pure; bytes in, bytes out. Trusts nothing in a definition beyond what ``domain`` reads. Guarantees
that the result is the same whenever it is made (secrets are named by the VM), that it says which
disks are still to be encrypted, and that what it can't protect is refused instead of left as it is.
"""

import uuid
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath
from xml.etree import ElementTree as ET

from hostagent.domain import MARK, DefinitionInvalid, parse_definition, read_domain
from hostagent.new_disk import NewDisk, NewDiskInvalid, disk_element, target_of

_NAMESPACE = uuid.UUID("5a8c1f0e-6f0b-5b52-9d5b-2c1f0d1e7a11")
_FORMATS = frozenset({"raw", "qcow2"})
_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
SUFFIX = ".ta.qcow2"
"""What the name of an encrypted disk ends with."""


class DiskState(StrEnum):
    """What has to happen to a disk."""

    PLAIN = "plain"
    """It is written again, encrypted, beside itself."""
    LUKS = "luks"
    """It is encrypted with somebody's passphrase: the VM's is added."""
    NEW = "new"
    """It does not exist yet: it is made, empty and encrypted."""
    DONE = "done"
    """It opens with the VM's key already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPlan:
    """One disk of a domain."""

    target: str
    """As the guest knows it: vda."""
    source: str
    """Its file now, or where a new one is made."""
    state: DiskState
    format: str
    """As the definition says, never as the file looks: what a guest wrote to a raw disk may look like
    another format, with a file of the host behind it."""
    encrypted: str
    """Its file afterwards; the same unless it is plain now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Protection:
    """What a domain becomes."""

    domain: str
    uuid: str
    definition: bytes
    """To be defined when all disks are encrypted."""
    profile_sha256: bytes
    disks: tuple[DiskPlan, ...]
    vtpm_new: bool
    """Its vTPM gets an encryption that it did not have: it must not have a state yet."""

    def has(self, state: DiskState) -> bool:
        """Whether a disk is in this state."""
        return any(disk.state is state for disk in self.disks)


def protect_definition(
    definition: bytes, vm_id: str, new_disk: NewDisk | None = None
) -> Protection:
    """Plan the protection of a domain as one VM, with one more disk if that is asked for.

    Raises DefinitionInvalid.
    """
    before = read_domain(definition)
    if before.vm_id not in {"", vm_id}:
        raise DefinitionInvalid(f"the domain is marked as VM {before.vm_id}")
    ET.register_namespace("ta", MARK)
    ET.register_namespace("qemu", _QEMU)
    root = parse_definition(definition)
    if not before.vm_id:
        _mark(root, vm_id)
    added = _attached(root, new_disk) if new_disk is not None else ""
    disks = tuple(
        _disk(disk, vm_id, added) for disk in root.iterfind("devices/disk") if _is_ours(disk)
    )
    if not disks:
        raise DefinitionInvalid("the domain has no disk that could be encrypted: give a new one")
    vtpm_new = _vtpm(root, vm_id)
    after = ET.tostring(root)
    return Protection(
        domain=before.name,
        uuid=before.uuid,
        definition=after,
        profile_sha256=read_domain(after).profile_sha256,
        disks=disks,
        vtpm_new=vtpm_new,
    )


def secret_uuid(vm_id: str, what: str) -> str:
    """The libvirt secret of a VM's disks or vTPM: the same on each host."""
    return str(uuid.uuid5(_NAMESPACE, f"{vm_id}/{what}"))


def _mark(root: ET.Element, vm_id: str) -> None:
    metadata = root.find("metadata")
    if metadata is None:
        metadata = ET.SubElement(root, "metadata")
    ET.SubElement(metadata, f"{{{MARK}}}vm", {"id": vm_id})


def _is_ours(disk: ET.Element) -> bool:
    return disk.get("device", "disk") == "disk"


def _attached(root: ET.Element, new: NewDisk) -> str:
    """Add a new disk to the definition; its target, or nothing if an earlier try added it."""
    devices = root.find("devices")
    if devices is None:
        raise DefinitionInvalid("the definition has no devices")
    there: dict[str, str] = {}
    for disk in devices.iterfind("disk"):
        place, source = disk.find("target"), disk.find("source")
        target = place.get("dev", "") if place is not None else ""
        there[target] = source.get("file", "") if source is not None else ""
        if there[target] == new.path:
            if new.target not in {"", target}:
                raise DefinitionInvalid(f"{new.path} is the domain's {target}, not a new disk")
            if source is None or source.find("encryption") is None:
                raise DefinitionInvalid(f"{new.path} is the domain's {target} in the clear")
            return ""
    try:
        chosen = target_of(new.target, there)
    except NewDiskInvalid as failure:
        raise DefinitionInvalid(str(failure)) from failure
    devices.append(disk_element(new, chosen))
    return chosen


def _disk(disk: ET.Element, vm_id: str, added: str = "") -> DiskPlan:
    place = disk.find("target")
    target = place.get("dev", "") if place is not None else ""
    source = disk.find("source")
    path = source.get("file", "") if source is not None else ""
    if source is None or disk.get("type") != "file" or not PurePath(path).is_absolute():
        raise DefinitionInvalid(f"disk {target}: only disks in files can be encrypted here")
    if disk.find("shareable") is not None:
        raise DefinitionInvalid(f"disk {target}: a disk that others share can't be encrypted here")
    if disk.find("encryption") is not None:
        raise DefinitionInvalid(f"disk {target}: its <encryption> belongs below <source>")
    found = source.find("encryption")
    driver = disk.find("driver")
    kind = "raw" if driver is None else driver.get("type", "raw")
    if kind not in _FORMATS:
        raise DefinitionInvalid(f"disk {target}: only raw and qcow2 disks can be encrypted here")
    if added and target == added:
        _encrypted(disk, source, path, vm_id)
        return DiskPlan(
            target=target, source=path, state=DiskState.NEW, format=kind, encrypted=path
        )
    if found is None:
        encrypted = str(PurePath(path).with_suffix("")) + SUFFIX
        _encrypted(disk, source, encrypted, vm_id)
        return DiskPlan(
            target=target, source=path, state=DiskState.PLAIN, format=kind, encrypted=encrypted
        )
    secret = found.find("secret")
    if found.get("format") != "luks" or secret is None:
        raise DefinitionInvalid(f"disk {target}: its encryption is not LUKS")
    if kind != "qcow2":
        raise DefinitionInvalid(f"disk {target}: an encrypted disk has to be qcow2")
    ours = secret_uuid(vm_id, "disk")
    done = secret.get("uuid", "").lower() == ours
    secret.attrib.pop("usage", None)
    secret.set("uuid", ours)
    state = DiskState.DONE if done else DiskState.LUKS
    return DiskPlan(target=target, source=path, state=state, format=kind, encrypted=path)


def _encrypted(disk: ET.Element, source: ET.Element, path: str, vm_id: str) -> None:
    driver = disk.find("driver")
    if driver is None:
        driver = ET.Element("driver", {"name": "qemu"})
        disk.insert(0, driver)
    driver.set("type", "qcow2")
    source.set("file", path)
    encryption = ET.SubElement(source, "encryption", {"format": "luks"})
    ET.SubElement(encryption, "secret", {"type": "passphrase", "uuid": secret_uuid(vm_id, "disk")})
    for chain in disk.findall("backingStore"):  # the encrypted disk stands alone
        disk.remove(chain)


def _vtpm(root: ET.Element, vm_id: str) -> bool:
    added = False
    for backend in root.iterfind("devices/tpm/backend"):
        if backend.get("type") != "emulator":
            raise DefinitionInvalid("a vTPM has to be emulated: one passed through is the host's")
        found = backend.find("encryption")
        if found is None:
            ET.SubElement(backend, "encryption", {"secret": secret_uuid(vm_id, "vtpm")})
            added = True
        elif found.get("secret", "").lower() != secret_uuid(vm_id, "vtpm"):
            raise DefinitionInvalid("its vTPM is encrypted with another secret already")
    return added
