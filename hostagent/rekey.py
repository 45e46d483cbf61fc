"""Giving a VM a new key on its host: which disks, and what comes next. Pure.

Stage: pure; a definition and observations in, a decision out. Trusts nothing in a definition beyond what
``domain`` reads. Guarantees that a VM whose state would stay under its old key is refused before a key
is asked for, and that nothing is decided from a key of another epoch than was said. It changes who
opens the disks from now on: copies made before open with the old key as they did.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePath
from xml.etree import ElementTree as ET

from hostagent.domain import DefinitionInvalid, parse_definition, read_domain


class RekeyStep(StrEnum):
    """What a key that hosts get now is for."""

    HOLD = "hold"
    """It is the old one: its passphrase is kept in memory until hosts get the new one."""
    ADD = "add"
    """It is the new one: the disks that it does not open get a slot for it."""
    DONE = "done"
    """It is the new one and opens every disk."""


class RekeyRefused(Exception):
    """The key that hosts get now leads nowhere; the message says what does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rekeying:
    """A domain whose disks can get another key."""

    domain: str
    uuid: str
    vm_id: str
    profile_sha256: bytes
    disks: tuple[tuple[str, Path], ...]
    """Of each encrypted disk: as the guest knows it, and its file."""


def read_rekeying(definition: bytes) -> Rekeying:
    """The encrypted disks of a protected domain. Raises DefinitionInvalid."""
    found = read_domain(definition)
    if not found.vm_id:
        raise DefinitionInvalid("it is no protected VM")
    if found.vtpm_secret:
        raise DefinitionInvalid(
            "its vTPM is encrypted under the VM's key, and swtpm can't change the passphrase of a"
            " state: this VM has to keep its key, or give up the vTPM and its state first"
        )
    devices = parse_definition(definition).iterfind("devices/disk")
    disks = tuple(_disk(each) for each in devices if each.find(".//encryption") is not None)
    if not disks:
        raise DefinitionInvalid("it has no encrypted disk")
    return Rekeying(
        domain=found.name,
        uuid=found.uuid,
        vm_id=found.vm_id,
        profile_sha256=found.profile_sha256,
        disks=disks,
    )


def require_epoch(key_epoch: int, wanted: int) -> None:
    """A key that hosts get now can be the old or the new one. Raises RekeyRefused."""
    if key_epoch > wanted:
        raise RekeyRefused(f"hosts get key {key_epoch} already, not {wanted}")


def next_step(
    key_epoch: int, wanted: int, *, closed: tuple[str, ...], holds_older: bool, vm_id: str
) -> RekeyStep:
    """What to do with the key that hosts get now. Raises RekeyRefused.

    Args:
        key_epoch: Its epoch.
        wanted: The epoch that the disks should open with.
        closed: Disks that it does not open.
        holds_older: Whether the passphrase of an older epoch is at hand.
        vm_id: For the message.
    """
    require_epoch(key_epoch, wanted)
    shown = ", ".join(closed)
    if key_epoch < wanted:
        if closed:
            raise RekeyRefused(f"{shown} does not open with key {key_epoch}")
        return RekeyStep.HOLD
    if not closed:
        return RekeyStep.DONE
    if not holds_older:
        raise RekeyRefused(
            f"{shown} does not open with key {wanted} yet, and no older key is at hand:"
            f" «ta key roll {vm_id} --to OLD», then this command again"
        )
    return RekeyStep.ADD


def _disk(disk: ET.Element) -> tuple[str, Path]:
    place, source, driver = disk.find("target"), disk.find("source"), disk.find("driver")
    target = place.get("dev", "") if place is not None else ""
    path = source.get("file", "") if source is not None else ""
    if disk.get("type") != "file" or not PurePath(path).is_absolute():
        raise DefinitionInvalid(f"disk {target}: only disks in files can get another key here")
    if disk.find("shareable") is not None or disk.find("readonly") is not None:
        raise DefinitionInvalid(f"disk {target}: it is shared or read-only")
    if driver is None or driver.get("type") != "qcow2":
        raise DefinitionInvalid(f"disk {target}: an encrypted disk has to be qcow2")
    return target, Path(path)
