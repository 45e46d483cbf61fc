"""A measured-boot log as its bytes say it, before anything about it is believed.

Every field here is a claim of the host. Which register values follow from it is decided by
``verification.replay``; which of its statements are proven by a digest by ``verification.meaning``.

Source: TCG PC Client Platform Firmware Profile 1.06, section 10; Intel TDX Virtual Firmware Design
Guide (CCEL) for the registers of a confidential VM.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from typing import NamedTuple

from trustauthority.model.digest import HashAlgorithm

NO_REGISTER = 0xFFFF_FFFF
"""The index of EV_NO_ACTION records that belong to no register (WBCL trust points)."""
HIGHEST_PCR = 23


class LogFormat(StrEnum):
    """How the records of a log are laid out, and what their indices mean."""

    EMPTY = "empty"
    LEGACY = "legacy-sha1"
    AGILE = "crypto-agile"
    CCEL = "ccel"


class RegisterKind(StrEnum):
    """What ``BootEvent.pcr`` counts. RTMRs are never compared with PCRs (pitfalls 46)."""

    PCR = "pcr"
    RTMR = "rtmr"


class EventType(IntEnum):
    """Event types of the TCG profile; a log may hold other numbers, which mean nothing to us."""

    PREBOOT_CERT = 0x0
    POST_CODE = 0x1
    UNUSED = 0x2
    NO_ACTION = 0x3
    SEPARATOR = 0x4
    ACTION = 0x5
    EVENT_TAG = 0x6
    S_CRTM_CONTENTS = 0x7
    S_CRTM_VERSION = 0x8
    CPU_MICROCODE = 0x9
    PLATFORM_CONFIG_FLAGS = 0xA
    TABLE_OF_DEVICES = 0xB
    COMPACT_HASH = 0xC
    IPL = 0xD
    IPL_PARTITION_DATA = 0xE
    NONHOST_CODE = 0xF
    NONHOST_CONFIG = 0x10
    NONHOST_INFO = 0x11
    OMIT_BOOT_DEVICE_EVENTS = 0x12
    POST_CODE2 = 0x13
    EFI_VARIABLE_DRIVER_CONFIG = 0x8000_0001
    EFI_VARIABLE_BOOT = 0x8000_0002
    EFI_BOOT_SERVICES_APPLICATION = 0x8000_0003
    EFI_BOOT_SERVICES_DRIVER = 0x8000_0004
    EFI_RUNTIME_SERVICES_DRIVER = 0x8000_0005
    EFI_GPT_EVENT = 0x8000_0006
    EFI_ACTION = 0x8000_0007
    EFI_PLATFORM_FIRMWARE_BLOB = 0x8000_0008
    EFI_HANDOFF_TABLES = 0x8000_0009
    EFI_PLATFORM_FIRMWARE_BLOB2 = 0x8000_000A
    EFI_HANDOFF_TABLES2 = 0x8000_000B
    EFI_VARIABLE_BOOT2 = 0x8000_000C
    EFI_GPT_EVENT2 = 0x8000_000D
    EFI_HCRTM_EVENT = 0x8000_0010
    EFI_VARIABLE_AUTHORITY = 0x8000_00E0
    EFI_SPDM_FIRMWARE_BLOB = 0x8000_00E1
    EFI_SPDM_FIRMWARE_CONFIG = 0x8000_00E2
    EFI_SPDM_DEVICE_POLICY = 0x8000_00E3
    EFI_SPDM_DEVICE_AUTHORITY = 0x8000_00E4
    USERSPACE = 0xFFFF_0001
    """Ours, in no TCG table: a record of the log that userspace keeps (``codec.cel``)."""


_TYPE_NAMES = {int(member): f"EV_{member.name}" for member in EventType}


def event_type_name(event_type: int) -> str:
    """The TCG name of an event type, or its number in hex."""
    return _TYPE_NAMES.get(event_type) or f"0x{event_type:08x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogBank:
    """One digest algorithm that the header of a log announces."""

    tpm_id: int
    size: int
    """Digest length in bytes, as the header says (and as the registry says, if we know it)."""

    @property
    def algorithm(self) -> HashAlgorithm | None:
        """The algorithm, or None for one that we can skip but not compute."""
        return HashAlgorithm.from_tpm_id(self.tpm_id)

    @property
    def name(self) -> str:
        """What users see: ``sha256``, or ``0x0027`` for an algorithm we do not know."""
        return str(self.algorithm) if self.algorithm else f"0x{self.tpm_id:04x}"


class BootEvent(NamedTuple):
    """One record of the log.

    A named tuple and not a dataclass: a fleet's logs hold millions, and it is built five times faster.
    """

    number: int
    """Number of the record in the log, from 0; the Spec ID header is a record."""
    offset: int
    """Where the record starts, in bytes."""
    pcr: int
    """Register as the log counts them (see ``BootLog.registers``), or ``NO_REGISTER``."""
    type: int
    """The type it claims, which no digest covers (pitfalls 37)."""
    digests: tuple[bytes | None, ...]
    """One per bank of the log, in the order of ``BootLog.banks``; None where the record has none."""
    data: bytes
    """The event data, which proves nothing by itself (pitfalls 38)."""

    @property
    def type_name(self) -> str:
        """The TCG name of the type."""
        return event_type_name(self.type)

    @property
    def extends(self) -> bool:
        """Whether a genuine record of this type was extended into a register (pitfalls 36)."""
        return self.type != EventType.NO_ACTION


@dataclass(frozen=True, slots=True, kw_only=True)
class UserspaceRecord:
    """One measurement that userspace made and logged (systemd-pcrextend and the like)."""

    number: int
    """Number of the record in its file, from 0."""
    offset: int
    pcr: int
    digests: Mapping[str, bytes]
    """Bank name → digest."""
    content: bytes
    """The text that was measured, where the record holds it; proven only by its digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BootLog:
    """A decoded log. An empty one is a model too, so that appraisal can say "no event log"."""

    format: LogFormat
    banks: tuple[LogBank, ...]
    events: tuple[BootEvent, ...]
    starts: tuple[int, ...] = ()
    """Numbers of the records with which a log begins: several after a resume (pitfalls 47)."""
    boot: int = 1
    """Which boot of its file this is, from 1: see ``boots``."""
    of_boots: int = 1
    """How many boots its file holds, when this is one of them taken out by ``boots``."""
    size: int = 0
    """Bytes of the file, padding included."""
    padding: int = 0
    """Bytes of constant padding at the end."""
    specification: str = ""
    """Version in the Spec ID header, such as ``2.0.0``; empty where there is none."""

    @property
    def registers(self) -> RegisterKind:
        """What the indices of the events count."""
        return RegisterKind.RTMR if self.format is LogFormat.CCEL else RegisterKind.PCR

    @property
    def algorithms(self) -> tuple[HashAlgorithm, ...]:
        """The banks whose algorithm we know, in the order of the header."""
        return tuple(bank.algorithm for bank in self.banks if bank.algorithm)

    def position(self, bank: HashAlgorithm) -> int | None:
        """The index of a bank in ``BootEvent.digests``, or None when the log has no such bank."""
        for position, candidate in enumerate(self.banks):
            if candidate.tpm_id == bank.tpm_id:
                return position
        return None

    def digest(self, event: BootEvent, bank: HashAlgorithm) -> bytes | None:
        """The digest of one event in one bank, or None when it has none."""
        position = self.position(bank)
        return None if position is None else event.digests[position]

    def with_userspace(self, records: "tuple[UserspaceRecord, ...]") -> "BootLog":
        """This log with the records that userspace extended after it, as events at its end."""
        banks = [bank.name for bank in self.banks]
        events = list(self.events)
        first = events[-1].number + 1 if events else 0
        for record in records:
            digests = tuple(record.digests.get(bank) for bank in banks)
            number = first + record.number
            events.append(
                BootEvent(
                    number, record.offset, record.pcr, EventType.USERSPACE, digests, record.content
                )
            )
        return replace(self, events=tuple(events))

    def boots(self) -> tuple["BootLog", ...]:
        """The boots in this file, oldest first; the numbers of the events stay.

        PCRs are reset when a host boots or resumes from disk, and firmware then measures its version into
        PCR 0 again, in a log of its own: there a boot begins. A log that does not touch PCR 0 goes on with
        the boot before it, such as that of a dynamic launch. RTMRs are never reset: always one boot.
        """
        if len(self.starts) < 2 or self.registers is RegisterKind.RTMR or self.of_boots > 1:
            return (self,)
        ends = (*self.starts[1:], len(self.events))
        boots: list[list[int]] = []
        for start, end in zip(self.starts, ends, strict=True):
            if not boots or any(each.pcr == 0 and each.extends for each in self.events[start:end]):
                boots.append([])
            boots[-1].append(start)
        ends = (*(starts[0] for starts in boots[1:]), len(self.events))
        return tuple(
            replace(
                self,
                events=self.events[starts[0] : end],
                starts=tuple(starts),
                boot=number,
                of_boots=len(boots),
            )
            for number, (starts, end) in enumerate(zip(boots, ends, strict=True), start=1)
        )

    def in_register(self, pcr: int) -> Iterator[BootEvent]:
        """The events that claim to have been extended into one register."""
        return (event for event in self.events if event.pcr == pcr and event.extends)
