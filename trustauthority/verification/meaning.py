"""What a boot event says, in words, and whether its digest proves it (pitfalls 37, 38).

Trusts on entry: the digest, when it comes from a ``VerifiedBootLog``; never the data or the type.
Guarantees on exit: ``proven`` is True only when the words follow from bytes whose hash is that digest. It
decides nothing.

Source: TCG PC Client Platform Firmware Profile 1.06, table 27 (what each event hashes); GRUB
grub-core/commands/efi/tpm.c; systemd src/boot/efi/measure.c.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from trustauthority.codec.efi import (
    count_signatures,
    decode_image_load,
    decode_partition_table,
    decode_variable,
    variable_value_range,
)
from trustauthority.codec.efi_text import byte_text, format_guid, looks_like_utf16, utf16_text
from trustauthority.errors import MalformedEvidence
from trustauthority.model.bootlog import BootEvent, EventType
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.quirk import Quirk
from trustauthority.verification.banks import hash_constructor
from trustauthority.verification.quirks import shim_measured
from trustauthority.verification.replay import STARTUP_LOCALITY

MAX_TEXT = 4096
"""Characters of words per event; a command line has at most 4,096 bytes on x86."""
_LABELS = (
    (b"grub_cmd: ", "GRUB command"),
    (b"kernel_cmdline: ", "kernel command line"),
    (b"module_cmdline: ", "module command line"),
    (b"grub_kernel_cmdline ", "kernel command line"),
)
_LABEL_BYTES = tuple(label for label, _ in _LABELS)
_NO_ACTION = int(EventType.NO_ACTION)
_IPL = int(EventType.IPL)
_EVENT_TAG = int(EventType.EVENT_TAG)
_AUTHORITY = int(EventType.EFI_VARIABLE_AUTHORITY)
_BOOT_VARIABLES = frozenset({int(EventType.EFI_VARIABLE_BOOT), int(EventType.EFI_VARIABLE_BOOT2)})
_DATABASES = frozenset({"PK", "KEK", "db", "dbx", "dbt", "dbr"})
_SEPARATORS = {
    b"\0\0\0\0": "separator",
    b"\xff\xff\xff\xff": "separator",
    b"\x01\0\0\0": "separator after an error: the boot failed",
}


class Proof(StrEnum):
    """How far the digest covers the event data."""

    DATA = "data"
    """The digest is that of the whole data."""
    VALUE = "value"
    """The digest is that of the value or text inside; the name or label around it is a hint."""
    NONE = "none"
    """The digest is of something that is not in the log; the data is a hint only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """One event in words."""

    text: str
    proof: Proof

    @property
    def proven(self) -> bool:
        """Whether the digest proves the words (for VALUE: the part after the label)."""
        return self.proof is not Proof.NONE


def describe(
    event: BootEvent,
    digest: bytes,
    bank: HashAlgorithm,
    *,
    quirks: frozenset[Quirk] = frozenset(),
) -> Meaning:
    """Say what an event means.

    Args:
        event: the event.
        digest: its digest in ``bank``; proven when it comes from a ``VerifiedBootLog``.
        bank: the bank that claims rest on.
        quirks: deviations that policy allows.
    """
    words = _WORDS.get(event.type, _unknown)
    try:
        text = words(event.data)
    except MalformedEvidence as error:
        return Meaning(text=f"{event.type_name}: malformed ({error.message})", proof=Proof.NONE)
    return Meaning(text=text[:MAX_TEXT], proof=prove(event, digest, bank, quirks=quirks))


def prove(
    event: BootEvent,
    digest: bytes,
    bank: HashAlgorithm,
    *,
    quirks: frozenset[Quirk] = frozenset(),
) -> Proof:
    """Say how far the digest of an event covers its data."""
    event_type = event.type
    if event_type == _NO_ACTION:
        return Proof.NONE
    digest_of = hash_constructor(bank)
    if digest_of(event.data).digest() == digest:
        return Proof.DATA
    value = _hashed_value(event_type, event.data)
    if value is not None and digest_of(value).digest() == digest:
        return Proof.VALUE
    if event_type == _AUTHORITY and Quirk.SHIM_TRAILING_BYTES in quirks:
        return Proof.DATA if shim_measured(event.data, digest, bank) else Proof.NONE
    return Proof.NONE


def _hashed_value(event_type: int, data: bytes) -> bytes | None:
    """The part of the data that an event of this type hashes, where that is not the whole."""
    if event_type == _IPL:
        return boot_string(data)
    if event_type == _EVENT_TAG:
        # systemd-stub hashes the text of a tagged event, not the tag and length before it
        return data[8:] if int.from_bytes(data[4:8], "little") == len(data) - 8 >= 0 else None
    if event_type in _BOOT_VARIABLES:
        found = variable_value_range(data)
        return data[found[0] : found[1]] if found else None
    return None


def boot_string(data: bytes) -> bytes | None:
    """The text that GRUB or systemd hashed: without label and final NUL, or a section name in UTF-8.

    None when the data has no such form.
    """
    label = _label(data)
    if label is not None:
        return data[len(label[0]) :].rstrip(b"\0")
    if looks_like_utf16(data):
        # systemd-stub logs a section name in UTF-16 and hashes it as a NUL-terminated byte string.
        name = data.decode("utf-16-le", "replace").split("\0", 1)[0]
        return name.encode("utf-8") + b"\0" if name.startswith(".") else None
    return None


def _label(data: bytes) -> tuple[bytes, str] | None:
    if not data.startswith(_LABEL_BYTES):
        return None
    return next(label for label in _LABELS if data.startswith(label[0]))


# --- words -----------------------------------------------------------------------------------


def _unknown(data: bytes) -> str:
    return f"{len(data)} bytes of an event type we do not know"


def _no_action(data: bytes) -> str:
    if data.startswith(b"Spec ID Event"):
        return "header of the log"
    if data.startswith(STARTUP_LOCALITY) and len(data) == len(STARTUP_LOCALITY) + 1:
        return f"TPM2_Startup from locality {data[-1]}"
    if data.startswith((b"SP800-155 Event\0", b"SP800-155 Event2", b"SP800-155 Event3")):
        return "where the manufacturer publishes reference measurements (SP800-155)"
    return f"information only: {byte_text(data[:64])}"


def _separator(data: bytes) -> str:
    return _SEPARATORS.get(data, f"separator with unexpected data {data[:16].hex()}")


def _variable(data: bytes) -> str:
    variable = decode_variable(data, allow_trailing=True)
    return f"EFI variable {variable.name} = {_variable_value(variable.name, variable.value)}"


def _variable_value(name: str, value: bytes) -> str:
    if not value:
        return "(empty)"
    if name in _DATABASES:
        try:
            return f"{count_signatures(value)} entries, {len(value)} bytes"
        except MalformedEvidence:
            return f"{len(value)} bytes that are no signature lists"
    if name.startswith("SbatLevel"):
        return byte_text(value).replace("\\n", " ")
    if name.startswith("Boot") and len(name) == 8 and len(value) > 6:
        return f"boot option “{utf16_text(value[6:])}”"
    return value.hex() if len(value) <= 16 else f"{len(value)} bytes"


def _image(data: bytes) -> str:
    image = decode_image_load(data)
    return f"image from {image.device_path or 'memory'} ({image.size} bytes loaded)"


def _partitions(data: bytes) -> str:
    table = decode_partition_table(data)
    return f"partition table of disk {table.disk_guid}, {len(table.partitions)} partitions"


def _boot_loader(data: bytes) -> str:
    label = _label(data)
    if label is not None:
        return f"{label[1]}: {byte_text(data[len(label[0]) :])}"
    return f"boot loader: {utf16_text(data) if looks_like_utf16(data) else byte_text(data)}"


def _text(name: str) -> Callable[[bytes], str]:
    def words(data: bytes) -> str:
        text = utf16_text(data) if looks_like_utf16(data) else byte_text(data)
        return f"{name}: {text}" if text else name

    return words


def _tagged(data: bytes) -> str:
    text = (
        data[8:]
        if len(data) >= 8 and len(data) - 8 == int.from_bytes(data[4:8], "little")
        else data
    )
    shown = byte_text(text)
    return f"tagged event: {shown}" if shown.isascii() and len(shown) > 3 else "tagged event"


def _handoff(data: bytes) -> str:
    if len(data) >= 32 and int.from_bytes(data[:8], "little") == 1:
        return f"firmware table {format_guid(data[8:24])}"
    return "firmware tables"


def _described(name: str) -> Callable[[bytes], str]:
    """Words for data that begin with the length of a description and the description."""

    def words(data: bytes) -> str:
        size = data[0] if data else 0
        return f"{name} {byte_text(data[1 : 1 + size])}".rstrip()

    return words


_WORDS: Mapping[int, Callable[[bytes], str]] = {
    EventType.POST_CODE: _text("firmware code"),
    EventType.POST_CODE2: _text("firmware code"),
    EventType.NO_ACTION: _no_action,
    EventType.SEPARATOR: _separator,
    EventType.ACTION: _text("action"),
    EventType.EVENT_TAG: _tagged,
    EventType.S_CRTM_CONTENTS: _text("contents of the root of trust"),
    EventType.S_CRTM_VERSION: _text("version of the root of trust"),
    EventType.CPU_MICROCODE: _text("CPU microcode"),
    EventType.PLATFORM_CONFIG_FLAGS: _text("platform configuration"),
    EventType.TABLE_OF_DEVICES: _text("table of devices"),
    EventType.COMPACT_HASH: _text("compact hash"),
    EventType.IPL: _boot_loader,
    EventType.IPL_PARTITION_DATA: _text("partition data"),
    EventType.NONHOST_CODE: _text("code of another processor"),
    EventType.NONHOST_CONFIG: _text("configuration of another processor"),
    EventType.NONHOST_INFO: _text("information about another processor"),
    EventType.OMIT_BOOT_DEVICE_EVENTS: _text("boot device events are omitted"),
    EventType.EFI_VARIABLE_DRIVER_CONFIG: _variable,
    EventType.EFI_VARIABLE_BOOT: _variable,
    EventType.EFI_VARIABLE_BOOT2: _variable,
    EventType.EFI_VARIABLE_AUTHORITY: _variable,
    EventType.EFI_BOOT_SERVICES_APPLICATION: _image,
    EventType.EFI_BOOT_SERVICES_DRIVER: _image,
    EventType.EFI_RUNTIME_SERVICES_DRIVER: _image,
    EventType.EFI_GPT_EVENT: _partitions,
    EventType.EFI_ACTION: _text("firmware action"),
    EventType.EFI_PLATFORM_FIRMWARE_BLOB: lambda data: (
        f"firmware volume ({len(data)} bytes of place)"
    ),
    EventType.EFI_PLATFORM_FIRMWARE_BLOB2: _described("firmware volume"),
    EventType.EFI_HANDOFF_TABLES: _handoff,
    EventType.EFI_HANDOFF_TABLES2: _described("firmware tables"),
    EventType.EFI_HCRTM_EVENT: _text("hardware root of trust"),
    EventType.EFI_SPDM_FIRMWARE_BLOB: _text("firmware of a device (SPDM)"),
    EventType.EFI_SPDM_FIRMWARE_CONFIG: _text("configuration of a device (SPDM)"),
    EventType.EFI_SPDM_DEVICE_POLICY: _variable,
    EventType.EFI_SPDM_DEVICE_AUTHORITY: _variable,
    EventType.USERSPACE: _text("measured by userspace"),
}
