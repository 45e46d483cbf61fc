"""A second, independent reading of boot logs: the least that is needed to replay a capture.

Standard library only, so that the capture script can use it with any Python, and written apart
from trustauthority.codec, so that tests may hold one against the other. It trusts its input (the
captures of this project); it is no verifier and refuses nothing but what it cannot read.

Formats: TCG PC Client Platform Firmware Profile 1.06, section 10 (event log); Linux
Documentation/security/IMA-templates.rst and security/integrity/ima/ima_fs.c (IMA binary log).
"""

import hashlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

EV_NO_ACTION = 0x00000003
IMA_PCR = 10
IMA_VIOLATION = bytes(20)

_BANKS = {0x0004: "sha1", 0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
_DYNAMIC_LAUNCH_PCRS = range(17, 23)  # reset to all ones at start-up, part 1 of the PTP, table 4


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareEvent:
    """One TCG_PCR_EVENT2 with its digest in every bank of the log."""

    pcr: int
    kind: int
    digests: Mapping[str, bytes]
    data: bytes

    @property
    def is_measured(self) -> bool:
        """Whether the firmware extended this event; EV_NO_ACTION only informs."""
        return self.kind != EV_NO_ACTION


@dataclass(frozen=True, slots=True, kw_only=True)
class ImaMeasurement:
    """One entry of the kernel's binary_runtime_measurements."""

    template_hash: bytes
    template: str
    data: bytes

    def digest(self, bank: str) -> bytes:
        """What the kernel extended into PCR 10 of `bank`; a violation extends all ones."""
        if self.template_hash == IMA_VIOLATION:
            return b"\xff" * hashlib.new(bank).digest_size
        return hashlib.new(bank, self.data).digest()

    def encode(self) -> bytes:
        """The entry as it stands in the log."""
        name = self.template.encode()
        head = struct.pack("<I20sI", IMA_PCR, self.template_hash, len(name))
        return head + name + struct.pack("<I", len(self.data)) + self.data


def read_event_log(raw: bytes) -> tuple[FirmwareEvent, ...]:
    """The events after the Spec ID header; nothing for an empty log."""
    if not raw:
        return ()
    header_size = struct.unpack_from("<I", raw, 28)[0]
    header = raw[32 : 32 + header_size]
    if not header.startswith(b"Spec ID Event03\0"):
        raise ValueError("not a crypto-agile event log")
    count = struct.unpack_from("<I", header, 24)[0]
    sizes = dict(struct.unpack_from("<HH", header, 28 + 4 * i) for i in range(count))
    events = []
    at = 32 + header_size
    while at < len(raw):
        event, at = _read_event(raw, at, sizes)
        events.append(event)
    return tuple(events)


def read_ima_log(raw: bytes) -> tuple[ImaMeasurement, ...]:
    """The entries of a binary IMA log with the ima-ng or ima-sig template, in order."""
    entries = []
    at = 0
    while at < len(raw):
        pcr, template_hash, name_size = struct.unpack_from("<I20sI", raw, at)
        if pcr != IMA_PCR:
            raise ValueError(f"the IMA entry at byte {at} went to PCR {pcr}")
        at += 28
        name = raw[at : at + name_size].decode()
        at += name_size
        data_size = struct.unpack_from("<I", raw, at)[0]
        at += 4
        entries.append(
            ImaMeasurement(
                template_hash=template_hash, template=name, data=raw[at : at + data_size]
            )
        )
        at += data_size
    return tuple(entries)


def startup_locality(events: Iterable[FirmwareEvent]) -> int:
    """The locality of TPM2_Startup, with which PCR 0 begins (PFP 1.06, section 10.4.5.3)."""
    for event in events:
        if event.kind == EV_NO_ACTION and event.data.startswith(b"StartupLocality\0"):
            return event.data[16]
    return 0


def initial_pcr(index: int, bank: str, locality: int = 0) -> bytes:
    """The value a PCR has after TPM2_Startup(CLEAR), before the first extend."""
    size = hashlib.new(bank).digest_size
    if index in _DYNAMIC_LAUNCH_PCRS:
        return b"\xff" * size
    return bytes(size - 1) + bytes([locality if index == 0 else 0])


def replay(
    events: Iterable[FirmwareEvent], measurements: Iterable[ImaMeasurement], bank: str
) -> dict[int, bytes]:
    """The 24 PCRs of a bank after these events and IMA entries."""
    events = tuple(events)
    locality = startup_locality(events)
    pcrs = {index: initial_pcr(index, bank, locality) for index in range(24)}
    for event in events:
        if event.is_measured:
            pcrs[event.pcr] = _extend(pcrs[event.pcr], event.digests[bank], bank)
    for entry in measurements:
        pcrs[IMA_PCR] = _extend(pcrs[IMA_PCR], entry.digest(bank), bank)
    return pcrs


def _extend(value: bytes, digest: bytes, bank: str) -> bytes:
    return hashlib.new(bank, value + digest).digest()


def _read_event(raw: bytes, at: int, sizes: Mapping[int, int]) -> tuple[FirmwareEvent, int]:
    pcr, kind, count = struct.unpack_from("<III", raw, at)
    at += 12
    digests = {}
    for _ in range(count):
        algorithm = struct.unpack_from("<H", raw, at)[0]
        at += 2
        digests[_BANKS[algorithm]] = raw[at : at + sizes[algorithm]]
        at += sizes[algorithm]
    size = struct.unpack_from("<I", raw, at)[0]
    at += 4
    event = FirmwareEvent(pcr=pcr, kind=kind, digests=digests, data=raw[at : at + size])
    return event, at + size
