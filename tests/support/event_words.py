"""Each type of event with data of several forms: what is said of it, and how far its digest covers the data."""

import struct
from collections.abc import Iterator

from support.logbuilder import GLOBAL, digest, guid, signature_list, variable
from trustauthority.appraisal.bootfacts import EXPECTED_TYPES
from trustauthority.appraisal.components import Position, component_of
from trustauthority.model.bootlog import BootEvent, EventType
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.quirk import Quirk
from trustauthority.verification.meaning import describe

_WIDE = "wide".encode("utf-16-le") + b"\0\0"
_TEXT = struct.pack("<II", 7, 4) + b"text"
ANY = {
    "nothing": b"",
    "a byte": b"\1",
    "text": b"some text\0",
    "wide text": _WIDE,
    "not ASCII": b"\xff\n\x1b",
}
"""Data for every type."""
VARIABLES = {
    "SecureBoot": variable("SecureBoot", b"\1"),
    "sixteen bytes": variable("Any", bytes(16)),
    "seventeen bytes": variable("Any", bytes(17)),
    "empty": variable("dbx", b""),
    "a database": variable("dbr", signature_list([bytes(32), bytes(32)])),
    "PK": variable("PK", b"x"),
    "SBAT": variable("SbatLevelRT", b"sbat,1\nshim,4\n"),
    "six bytes of a boot option": variable("Boot0000", bytes(6)),
    "a boot option": variable("Boot0001", bytes(6) + _WIDE),
    "no boot option": variable("BootOrder", bytes(8)),
    "cut": variable("SecureBoot", b"\1")[:-2],
    "a byte too many": variable("SecureBoot", b"\1") + b"x",
}
OTHERS = {
    EventType.NO_ACTION: {
        "header": b"Spec ID Event03\0",
        "locality": b"StartupLocality\0\3",
        "locality and more": b"StartupLocality\0\3\3",
        "no locality": b"StartupLocality\0",
        "reference": b"SP800-155 Event\0...",
        "reference 2": b"SP800-155 Event2...",
        "reference 3": b"SP800-155 Event3...",
        "long": b"y" * 65,
    },
    EventType.SEPARATOR: {
        "zeros": bytes(4),
        "ones": b"\xff" * 4,
        "error": b"\1\0\0\0",
        "five": bytes(5),
        "long": b"\2" * 17,
    },
    EventType.IPL: {
        "command": b"grub_cmd: set x=1\0",
        "command line": b"kernel_cmdline: ro\0",
        "module": b"module_cmdline: quiet\0",
        "old command line": b"grub_kernel_cmdline ro\0",
        "section": ".linux".encode("utf-16-le") + b"\0\0",
    },
    EventType.EVENT_TAG: {
        "tagged": _TEXT,
        "three letters": struct.pack("<II", 7, 3) + b"abc",
        "too short": _TEXT[:-1],
        "too long": _TEXT + b"x",
        "no text": struct.pack("<II", 7, 0),
        "seven bytes": bytes(7),
    },
    EventType.EFI_BOOT_SERVICES_APPLICATION: {"in memory": struct.pack("<QQQQ", 1, 2, 3, 0)},
    EventType.EFI_GPT_EVENT: {
        "empty table": b"EFI PART" + bytes(76) + struct.pack("<II", 128, 0) + bytes(8),
    },
    EventType.EFI_PLATFORM_FIRMWARE_BLOB2: {
        "named": b"\3Fv1" + bytes(16),
        "cut name": b"\4Fv1",
        "empty name": b"\0" + bytes(16),
    },
    EventType.EFI_HANDOFF_TABLES2: {"named": b"\4ACPI" + bytes(16)},
    EventType.EFI_HANDOFF_TABLES: {
        "one": struct.pack("<Q", 1) + guid(GLOBAL) + bytes(8),
        "two": struct.pack("<Q", 2) + (guid(GLOBAL) + bytes(8)) * 2,
        "cut": struct.pack("<Q", 1) + guid(GLOBAL)[:-1],
    },
}
_QUIRKS = frozenset(Quirk)


def table() -> list[str]:
    """A line per type and data: proofs by the whole data, without its last byte, and from byte 8 on."""
    return [*_lines()]


def _lines() -> Iterator[str]:
    for kind in (*EventType, 0x8401):
        samples = ANY | OTHERS.get(kind, {})
        if "EFI_VARIABLE" in getattr(kind, "name", "") or "SPDM_DEVICE" in getattr(
            kind, "name", ""
        ):
            samples = samples | VARIABLES
        for name, data in samples.items():
            event = BootEvent(0, 0, 0, int(kind), (b"",), data)
            proofs = []
            for hashed in (data, data[:-1], data[8:], b"other"):
                value = digest("sha256", hashed)
                proofs.append(describe(event, value, HashAlgorithm.SHA256, quirks=_QUIRKS).proof)
            said = describe(event, b"", HashAlgorithm.SHA256).text
            yield f"{event.type_name} {name} {'/'.join(proofs)} | {said}"


def types_by_register() -> list[str]:
    """The types that belong into each of the firmware's registers, and what measured them before its separator."""
    said = []
    position = Position(separated=False, starts_kernel=False, grub=False, kernel_files=frozenset())
    for pcr, known in EXPECTED_TYPES.items():
        for kind in sorted(known):
            event = BootEvent(0, 0, pcr, int(kind), (b"",), b"")
            said.append(f"PCR {pcr} {event.type_name} {component_of(event, position)}")
    return said
