"""Read a libvirt domain definition: our mark, the secrets it uses, and its profile digest.

Stage: pure; bytes in, facts out. Trusts nothing in a definition: at most 1 MiB, no document type (so
no entities), and one error for whatever is wrong. Guarantees that the profile covers everything that
decides which code runs with the VM's key: firmware, kernel, command line, boot order, disks, vTPM,
passed-through devices and raw QEMU arguments (N75). It does not cover memory, CPUs or networks.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

MARK = "urn:trustauthority:vm:1"
"""``<ta:vm xmlns:ta="urn:trustauthority:vm:1" id="VM"/>`` in ``<metadata>``: protected."""
MOVE = "urn:trustauthority:move:1"
"""``<ta:move id="OFFER"/>``: written by whoever migrates, read by the destination's hook."""
STATE = "urn:trustauthority:state:1"
"""``<ta:state why="…"/>``: why the agent paused or ended the VM."""
MAX_DEFINITION = 1 << 20

_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NAME = re.compile(r"[^/\0\n]{1,255}")
_PASSED_THROUGH = ("hostdev", "filesystem", "redirdev", "shmem")
_VOLATILE = frozenset(
    {"alias", "address", "backingStore", "privateData", "reservations", "metadata"}
)
"""Elements that libvirt adds to a running domain."""


class DefinitionInvalid(ValueError):
    """The definition can't be used; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """What the agent needs to know of a definition."""

    name: str
    uuid: str
    vm_id: str
    """The VM's id at the authority; empty when the domain is not marked."""
    move_id: str
    """The offer that the domain moves under, or empty."""
    disk_secrets: tuple[str, ...]
    vtpm_secret: str
    profile_sha256: bytes
    active: bool = False
    """Whether it is the definition of a domain that runs, or is paused."""
    exposures: tuple[str, ...] = ()
    """Where a running VM's decrypted disk goes now, one sentence each; libvirt calls no hook for it."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """All libvirt secrets that the definition uses."""
        return (*self.disk_secrets, *((self.vtpm_secret,) if self.vtpm_secret else ()))


def read_domain(definition: bytes) -> Domain:
    """Read a definition as libvirt hands it to its hooks. Raises DefinitionInvalid."""
    root = parse_definition(definition)
    name, uuid = root.findtext("name", "").strip(), root.findtext("uuid", "").strip().lower()
    if not _NAME.fullmatch(name) or not _UUID.fullmatch(uuid):
        raise DefinitionInvalid("the definition has no usable name and uuid")
    return Domain(
        name=name,
        uuid=uuid,
        vm_id=_attribute(root, f"{{{MARK}}}vm"),
        move_id=_attribute(root, f"{{{MOVE}}}move"),
        disk_secrets=_disk_secrets(root),
        vtpm_secret=_vtpm_secret(root),
        profile_sha256=_profile(root),
        active=root.get("id") is not None,
        exposures=tuple(_exposures(root)),
    )


def parse_definition(definition: bytes) -> ET.Element:
    """The tree of a definition, within the limits above. Raises DefinitionInvalid."""
    if len(definition) > MAX_DEFINITION:
        raise DefinitionInvalid("the definition is larger than 1 MiB")
    if b"<!" in definition.replace(b"<!--", b"").replace(b"<![CDATA[", b""):
        raise DefinitionInvalid("the definition has a document type")
    try:
        root = ET.fromstring(definition)  # noqa: S314 - bounded, and without entities
    except ET.ParseError as failure:
        raise DefinitionInvalid(f"the definition can't be read: {failure}") from failure
    if root.tag != "domain":
        raise DefinitionInvalid("the definition is not that of a domain")
    return root


def _attribute(root: ET.Element, tag: str) -> str:
    found = root.findall(f"metadata/{tag}")
    if len(found) > 1:
        raise DefinitionInvalid(f"{tag.rpartition('}')[2]} stands there twice")
    return found[0].get("id", "") if found else ""


def _disk_secrets(root: ET.Element) -> tuple[str, ...]:
    # <encryption> stands below <source>, and in older definitions below <disk>
    found = [s.get("uuid", "").lower() for s in root.iterfind("devices/disk//encryption/secret")]
    return tuple(dict.fromkeys(_checked(found)))


def _vtpm_secret(root: ET.Element) -> str:
    found = [e.get("secret", "").lower() for e in root.iterfind("devices/tpm/backend/encryption")]
    if len(found) > 1:
        raise DefinitionInvalid("more than one vTPM")
    return _checked(found)[0] if found else ""


def _checked(uuids: list[str]) -> list[str]:
    if not all(_UUID.fullmatch(uuid) for uuid in uuids):
        raise DefinitionInvalid("a secret is not named by its uuid")
    return uuids


def _exposures(root: ET.Element) -> Iterator[str]:
    """Block copies and overlays of encrypted disks that are not encrypted themselves."""
    for disk in root.iterfind("devices/disk"):
        name = _get(disk, "target", "dev")
        below = disk.find("backingStore//encryption") is not None
        if below and disk.find("source/encryption") is None and disk.find("encryption") is None:
            yield f"disk {name} is written in the clear to {_place(disk.find('source'))}"
        mirror = disk.find("mirror")
        if mirror is not None and mirror.find("source/encryption") is None and _is_encrypted(disk):
            yield f"disk {name} is copied in the clear to {_place(mirror.find('source'))}"


def _is_encrypted(disk: ET.Element) -> bool:
    return any(disk.find(path) is not None for path in ("source/encryption", "encryption"))


def _place(source: ET.Element | None) -> str:
    known = ("file", "dev", "name", "volume")
    found = [source.get(each) for each in known if source is not None and source.get(each)]
    return str(found[0]) if found else "somewhere"


# --- profile ---------------------------------------------------------------------------------


def _profile(root: ET.Element) -> bytes:
    """SHA-256 of the canonical profile: JSON, sorted keys, no blanks."""
    devices = root.find("devices")
    if devices is None:
        raise DefinitionInvalid("the definition has no devices")
    machine = [part for part in map(_canonical, root.iterfind("os/*")) if part["tag"] != "nvram"]
    profile = {
        "format": 1,
        "os": {"firmware": _get(root, "os", "firmware"), "parts": machine},
        "emulator": devices.findtext("emulator", "").strip(),
        "disks": sorted((_disk(disk) for disk in devices.iterfind("disk")), key=_target),
        "tpm": [_canonical(tpm) for tpm in devices.iterfind("tpm")],
        "passed": [_canonical(each) for tag in _PASSED_THROUGH for each in devices.iterfind(tag)],
        "network boot": sorted(e.get("order", "") for e in devices.iterfind("interface/boot")),
        "qemu": [_canonical(each) for each in root.iterfind(f"{{{_QEMU}}}commandline")],
    }
    canonical = json.dumps(profile, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).digest()


def _disk(disk: ET.Element) -> dict[str, Any]:
    return {
        "device": disk.get("device", "disk"),
        "format": _get(disk, "driver", "type"),
        "source": [_canonical(source) for source in disk.iterfind("source")],
        "encryption": [_canonical(each) for each in disk.iterfind("encryption")],
        "boot": _get(disk, "boot", "order"),
        "target": _get(disk, "target", "dev"),
        "bus": _get(disk, "target", "bus"),
    }


def _target(disk: dict[str, Any]) -> str:
    return str(disk["target"])


def _get(parent: ET.Element, tag: str, attribute: str) -> str:
    found = parent.find(tag)
    return found.get(attribute, "") if found is not None else ""


def _canonical(element: ET.Element) -> dict[str, Any]:
    attributes = {k: v for k, v in element.attrib.items() if k not in {"index", "persistent_state"}}
    if attributes.get("engine") == "qemu":  # what newer libvirt writes where older ones say nothing
        del attributes["engine"]
    return {
        "tag": element.tag,
        "attributes": attributes,
        "text": (element.text or "").strip(),
        "parts": [_canonical(part) for part in element if part.tag not in _VOLATILE],
    }
