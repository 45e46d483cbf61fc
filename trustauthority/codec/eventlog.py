"""Bytes of a TCG event log to ``BootLog``: legacy SHA-1, crypto-agile, WBCL and CCEL.

Trusts nothing on entry. On exit: the file was read once, from the first byte to the last; every
record lies inside it; every digest has the size that header and registry agree on; no register above
23 is named but by EV_NO_ACTION records of ``NO_REGISTER``. It does not replay, and believes no digest.

Source: TCG PC Client Platform Firmware Profile 1.06, sections 10.2 (records), 10.4.5.1 (Spec ID).
"""

from struct import Struct

from trustauthority.codec.reader import Reader
from trustauthority.errors import MalformedEvidence
from trustauthority.model.bootlog import (
    HIGHEST_PCR,
    NO_REGISTER,
    BootEvent,
    BootLog,
    EventType,
    LogBank,
    LogFormat,
)
from trustauthority.model.digest import HashAlgorithm

MAX_LOG_BYTES = 4 << 20
"""A real log has 10-250 KiB; firmware reserves at most a few MiB (pitfalls 45, 48)."""
MAX_EVENTS = 65_536
MAX_LOGS = 1024
"""Logs in one file. Each may be a boot of its own, which costs a replay to be told from the others."""
MAX_BANKS = 16
"""A TPM has at most a handful of banks; a count of 0xffffffff was seen as an attack."""
MAX_DIGEST_BYTES = 128
"""Twice the longest digest of the registry: room for algorithms we do not know yet."""

PART = "event log"
SPEC_ID_AGILE = b"Spec ID Event03\0"
SPEC_ID_LEGACY = (b"Spec ID Event00\0", b"Spec ID Event02\0")
_HIGHEST_RTMR_INDEX = 4
_SHA1_RECORD = Struct("<II20sI")
_SHA1_BANK = LogBank(tpm_id=HashAlgorithm.SHA1.tpm_id, size=HashAlgorithm.SHA1.size)
_NO_ACTION = int(EventType.NO_ACTION)


def decode_boot_log(data: bytes) -> BootLog:
    """Decode a whole log, padding included.

    Raises:
        MalformedEvidence: with the offset of the first byte that makes no sense.
    """
    if len(data) > MAX_LOG_BYTES:
        raise _malformed(f"{len(data)} bytes, at most {MAX_LOG_BYTES} are read", MAX_LOG_BYTES)
    if not data:
        return BootLog(format=LogFormat.EMPTY, banks=(), events=())
    content_end = _content_end(data)
    if content_end == 0:
        return BootLog(
            format=LogFormat.EMPTY, banks=(), events=(), size=len(data), padding=len(data)
        )
    if data[32:48] == SPEC_ID_AGILE and data[4:8] == b"\x03\0\0\0":
        return _decode_agile(data, content_end)
    return _decode_legacy(data, content_end)


def _malformed(message: str, offset: int) -> MalformedEvidence:
    return MalformedEvidence(message, part=PART, offset=offset)


def _content_end(data: bytes) -> int:
    """Where constant padding that reaches to the end may begin at the earliest.

    Computed once, so that a hostile log can't make each record pay for a scan (pitfalls 45).
    """
    return min(len(data.rstrip(b"\0")), len(data.rstrip(b"\xff")))


# --- legacy ----------------------------------------------------------------------------------


def _decode_legacy(data: bytes, content_end: int) -> BootLog:
    events: list[BootEvent] = []
    offset, size = 0, len(data)
    while offset < size and offset < content_end:
        event, offset = _legacy_record(data, offset, len(events))
        events.append(event)
        if len(events) > MAX_EVENTS:
            raise _malformed(f"more than {MAX_EVENTS} events", offset)
    further = [
        event.number
        for event in events[1:]
        if event.type == _NO_ACTION and event.data.startswith(SPEC_ID_LEGACY)
    ]
    if len(further) >= MAX_LOGS:
        raise _malformed(f"more than {MAX_LOGS} logs", events[further[MAX_LOGS - 1]].offset)
    return BootLog(
        format=LogFormat.LEGACY,
        banks=(_SHA1_BANK,),
        events=tuple(events),
        starts=(0, *further),
        size=size,
        padding=size - offset,
    )


def _legacy_record(data: bytes, offset: int, index: int) -> tuple[BootEvent, int]:
    """One TCG_PCR_EVENT and the offset after it."""
    if len(data) - offset < _SHA1_RECORD.size:
        raise _malformed(f"event {index} is cut off in its header", offset)
    pcr, event_type, digest, length = _SHA1_RECORD.unpack_from(data, offset)
    if pcr > HIGHEST_PCR and (pcr != NO_REGISTER or event_type != _NO_ACTION):
        raise _malformed(f"event {index} names register {pcr}", offset)
    start = offset + _SHA1_RECORD.size
    end = start + length
    if end > len(data):
        left = len(data) - start
        raise _malformed(f"event {index} says {length} bytes of data, {left} are left", start - 4)
    return BootEvent(index, offset, pcr, event_type, (digest,), data[start:end]), end


# --- crypto-agile ----------------------------------------------------------------------------


def _decode_agile(data: bytes, content_end: int) -> BootLog:
    header, offset = _legacy_record(data, 0, 0)
    banks, specification = _decode_spec_id(header)
    events = [_header_event(header, banks)]
    starts = [0]
    ids = tuple(bank.tpm_id for bank in banks)
    layout = Struct("<III" + "".join(f"H{bank.size}s" for bank in banks) + "I")
    unpack, fixed, count = layout.unpack_from, layout.size, len(banks)
    size = len(data)
    last_fast = size - fixed
    new, append = tuple.__new__, events.append
    while offset < content_end:
        index = len(events)
        if index >= MAX_EVENTS:
            raise _malformed(f"more than {MAX_EVENTS} events", offset)
        if offset <= last_fast:
            fields = unpack(data, offset)
            # The shape nearly every record has: all digests, in the order of the header.
            if fields[2] == count and fields[3:-1:2] == ids:
                start = offset + fixed
                end = start + fields[-1]
                if end > size:
                    raise _malformed(
                        f"event {index} says {fields[-1]} bytes of data, {size - start} are left",
                        start - 4,
                    )
                pcr, event_type = fields[0], fields[1]
                if pcr > HIGHEST_PCR and (pcr != NO_REGISTER or event_type != _NO_ACTION):
                    raise _malformed(f"event {index} names register {pcr}", offset)
                append(
                    new(
                        BootEvent,
                        (index, offset, pcr, event_type, fields[4:-1:2], data[start:end]),
                    )
                )
                offset = end
                continue
        if _is_spec_id(data, offset):
            starts.append(index)
            if len(starts) > MAX_LOGS:
                raise _malformed(f"more than {MAX_LOGS} logs", offset)
            event, offset = _repeated_header(data, offset, index, banks)
        else:
            event, offset = _agile_record(data, offset, index, banks)
        append(event)
    events_read = tuple(events)
    return BootLog(
        format=_format_of(events_read, banks),
        banks=banks,
        events=events_read,
        starts=tuple(starts),
        size=size,
        padding=max(0, size - offset),
        specification=specification,
    )


def _header_event(header: BootEvent, banks: tuple[LogBank, ...]) -> BootEvent:
    """The header as a record of this log: one (zero) digest for SHA-1, none for the other banks."""
    sha1 = HashAlgorithm.SHA1.tpm_id
    digests = tuple(header.digests[0] if bank.tpm_id == sha1 else None for bank in banks)
    return header._replace(digests=digests)


def _is_spec_id(data: bytes, offset: int) -> bool:
    """Say whether another log begins here, as after a resume (pitfalls 47)."""
    return (
        data[offset + 32 : offset + 48] == SPEC_ID_AGILE
        and data[offset + 4 : offset + 8] == b"\x03\0\0\0"
    )


def _repeated_header(
    data: bytes, offset: int, index: int, banks: tuple[LogBank, ...]
) -> tuple[BootEvent, int]:
    header, end = _legacy_record(data, offset, index)
    if _decode_spec_id(header)[0] != banks:
        raise _malformed("a further log in this file has other banks", offset)
    return _header_event(header, banks), end


def _agile_record(
    data: bytes, offset: int, index: int, banks: tuple[LogBank, ...]
) -> tuple[BootEvent, int]:
    """One TCG_PCR_EVENT2 whose digests are fewer or in another order than the header says."""
    reader = Reader(data, part=PART, offset=offset)
    pcr = reader.u32(f"register of event {index}")
    event_type = reader.u32(f"type of event {index}")
    if pcr > HIGHEST_PCR and (pcr != NO_REGISTER or event_type != _NO_ACTION):
        raise _malformed(f"event {index} names register {pcr}", offset)
    count = reader.u32(f"digest count of event {index}")
    if count > len(banks):
        raise reader.malformed(
            f"event {index} has {count} digests, the header has {len(banks)} algorithms",
            at=reader.offset - 4,
        )
    positions = {bank.tpm_id: position for position, bank in enumerate(banks)}
    digests: list[bytes | None] = [None] * len(banks)
    for _ in range(count):
        at = reader.offset
        tpm_id = reader.u16(f"digest algorithm of event {index}")
        position = positions.get(tpm_id)
        if position is None:
            raise reader.malformed(
                f"event {index}: algorithm 0x{tpm_id:04x} is not in the header", at=at
            )
        if digests[position] is not None:
            raise reader.malformed(f"event {index}: algorithm 0x{tpm_id:04x} twice", at=at)
        digests[position] = reader.take(banks[position].size, f"digest of event {index}")
    length = reader.u32(f"data size of event {index}")
    content = reader.take(length, f"data of event {index}")
    return BootEvent(index, offset, pcr, event_type, tuple(digests), content), reader.offset


def _decode_spec_id(header: BootEvent) -> tuple[tuple[LogBank, ...], str]:
    """TCG_EfiSpecIdEvent: the banks of the log and the version of its specification."""
    reader = Reader(
        header.data, part="Spec ID header", base=header.offset + _SHA1_RECORD.size, offset=20
    )
    minor, major, errata = reader.u8("minor"), reader.u8("major"), reader.u8("errata")
    reader.u8("size of UINTN")
    count = reader.u32("number of algorithms")
    if not 1 <= count <= MAX_BANKS:
        raise reader.malformed(
            f"{count} algorithms, 1-{MAX_BANKS} make sense", at=reader.offset - 4
        )
    banks = tuple(_decode_bank(reader) for _ in range(count))
    if len({bank.tpm_id for bank in banks}) != count:
        raise reader.malformed("an algorithm is announced twice")
    reader.take(reader.u8("vendor info size"), "vendor info")
    reader.expect_end()
    return banks, f"{major}.{minor}.{errata}"


def _decode_bank(reader: Reader) -> LogBank:
    at = reader.offset
    bank = LogBank(tpm_id=reader.u16("algorithm"), size=reader.u16("digest size"))
    known = bank.algorithm
    if known is not None and known.size != bank.size:
        raise reader.malformed(f"{known} digests have {known.size} bytes, not {bank.size}", at=at)
    if not 1 <= bank.size <= MAX_DIGEST_BYTES:
        raise reader.malformed(f"digests of {bank.size} bytes", at=at)
    return bank


def _format_of(events: tuple[BootEvent, ...], banks: tuple[LogBank, ...]) -> LogFormat:
    """Tell a CCEL from a PCR log: one SHA-384 bank, only RTMR indices, nothing in register 0.

    Firmware that measures into PCRs begins with PCR 0; register 0 of a CCEL is MRTD, which no event
    extends. A PCR log stripped to look like a CCEL gains nothing: RTMRs never verify against a quote.
    """
    if [bank.tpm_id for bank in banks] != [HashAlgorithm.SHA384.tpm_id]:
        return LogFormat.AGILE
    extended = {event.pcr for event in events if event.type != _NO_ACTION}
    if extended and 0 not in extended and max(extended) <= _HIGHEST_RTMR_INDEX:
        return LogFormat.CCEL
    return LogFormat.CCEL if events[0].pcr == 1 else LogFormat.AGILE
