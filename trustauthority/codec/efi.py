"""UEFI structures in event data: variables, signature lists, image loads, partition tables.

Trusts nothing on entry. On exit: each structure fills its bytes exactly, each length was compared with
what is there before use, and counts are bounded (pitfalls 45). It proves nothing: whether the bytes are
what firmware measured is for ``verification.meaning``.

Source: UEFI Specification 2.10, sections 5.3 (GPT), 32.4.1 (signature lists); TCG PC Client Platform
Firmware Profile 1.06, section 10.2.6.
"""

from struct import Struct

from trustauthority.codec.devicepath import decode_device_path
from trustauthority.codec.efi_text import format_guid, utf16_text
from trustauthority.codec.reader import Reader
from trustauthority.errors import MalformedEvidence
from trustauthority.model.efi import (
    EfiSignatureList,
    EfiVariable,
    GptPartition,
    ImageLoad,
    PartitionTable,
)

MAX_NAME_UNITS = 1024
MAX_SIGNATURES = 65_536
MAX_PARTITIONS = 256
_VARIABLE = Struct("<16sQQ")
_IMAGE = Struct("<QQQQ")
_LIST = Struct("<16sIII")
_OWNER = 16
_GPT_ENTRY_BYTES = 128
_GPT_MIN_HEADER = 92


def decode_variable(data: bytes, *, base: int = 0, allow_trailing: bool = False) -> EfiVariable:
    """UEFI_VARIABLE_DATA: GUID, lengths, UTF-16 name without NUL, value.

    Args:
        data: the event data.
        base: offset of ``data`` in the file, for errors.
        allow_trailing: some builds of shim log bytes after the structure (``verification.quirks``).

    Raises:
        MalformedEvidence: lengths that do not fill ``data`` exactly.
    """
    if len(data) < _VARIABLE.size:
        raise _bad_variable("the header is cut off", base)
    guid, units, size = _VARIABLE.unpack_from(data)
    if units > MAX_NAME_UNITS:
        raise _bad_variable(f"a name of {units} characters", base + 16)
    start = _VARIABLE.size + 2 * units
    end = start + size
    if end > len(data):
        raise _bad_variable(
            f"a value of {size} bytes, {max(0, len(data) - start)} are left", base + 24
        )
    if end < len(data) and not allow_trailing:
        raise _bad_variable(f"{len(data) - end} bytes after the end", base + end)
    name = utf16_text(data[_VARIABLE.size : start])
    return EfiVariable(name=name, guid=format_guid(guid), value=data[start:end])


def _bad_variable(message: str, offset: int) -> MalformedEvidence:
    return MalformedEvidence(message, part="EFI variable", offset=offset)


def variable_value_range(data: bytes) -> tuple[int, int] | None:
    """Where the value of a UEFI_VARIABLE_DATA lies, or None when the lengths do not fit."""
    if len(data) < _VARIABLE.size:
        return None
    _, units, size = _VARIABLE.unpack_from(data)
    start = _VARIABLE.size + 2 * units
    return (start, start + size) if units <= MAX_NAME_UNITS and start + size <= len(data) else None


def decode_signature_lists(data: bytes, *, base: int = 0) -> tuple[EfiSignatureList, ...]:
    """The value of PK, KEK, db or dbx: signature lists one after the other.

    Raises:
        MalformedEvidence: sizes that underflow, overlap or leave a remainder.
    """
    reader = Reader(data, part="EFI signature list", base=base)
    lists: list[EfiSignatureList] = []
    total = 0
    while reader.remaining:
        found = _decode_signature_list(reader)
        total += len(found.entries)
        if total > MAX_SIGNATURES:
            raise reader.malformed(f"more than {MAX_SIGNATURES} signatures")
        lists.append(found)
    return tuple(lists)


def _decode_signature_list(reader: Reader) -> EfiSignatureList:
    at = reader.offset
    guid, size, header_size, entry_size = _LIST.unpack(reader.take(_LIST.size, "the list header"))
    if size < _LIST.size:
        raise reader.malformed(f"a list of {size} bytes is shorter than its header", at=at)
    body = size - _LIST.size
    if header_size > body:
        raise reader.malformed(f"a vendor header of {header_size} bytes in {body}", at=at)
    reader.take(header_size, "the vendor header")
    if entry_size <= _OWNER:
        raise reader.malformed(f"entries of {entry_size} bytes", at=at)
    count, rest = divmod(body - header_size, entry_size)
    if rest:
        raise reader.malformed(f"{rest} bytes are left after {count} entries", at=at)
    content = reader.take(count * entry_size, "the entries")
    entries = tuple(
        (format_guid(content[start : start + 16]), content[start + 16 : start + entry_size])
        for start in range(0, len(content), entry_size)
    )
    return EfiSignatureList(type_guid=format_guid(guid), entries=entries)


def count_signatures(data: bytes) -> int:
    """How many entries the lists hold, without reading them.

    Raises:
        MalformedEvidence: as ``decode_signature_lists``.
    """
    total, offset, size = 0, 0, len(data)
    while offset < size:
        if size - offset < _LIST.size:
            raise _bad_list("a list is cut off", offset)
        _, length, header_size, entry_size = _LIST.unpack_from(data, offset)
        body = length - _LIST.size - header_size
        if body < 0 or length > size - offset or entry_size <= _OWNER or body % entry_size:
            raise _bad_list("sizes of a list that do not fit", offset)
        total += body // entry_size
        offset += length
    return total


def _bad_list(message: str, offset: int) -> MalformedEvidence:
    return MalformedEvidence(message, part="EFI signature list", offset=offset)


def decode_image_load(data: bytes, *, base: int = 0) -> ImageLoad:
    """UEFI_IMAGE_LOAD_EVENT with its device path in words.

    Raises:
        MalformedEvidence: a path that does not fill its length.
    """
    part = "image load event"
    if len(data) < _IMAGE.size:
        raise MalformedEvidence("the event is cut off", part=part, offset=base)
    address, size, link, length = _IMAGE.unpack_from(data)
    if length > len(data) - _IMAGE.size:
        raise MalformedEvidence(f"a path of {length} bytes", part=part, offset=base + 24)
    # Some firmware reserves more than the path needs; nothing is read from there.
    path = data[_IMAGE.size : _IMAGE.size + length]
    return ImageLoad(
        address=address,
        size=size,
        link_time_address=link,
        device_path=decode_device_path(path, base=base + _IMAGE.size),
    )


def decode_partition_table(data: bytes, *, base: int = 0) -> PartitionTable:
    """UEFI_GPT_DATA: the header of the table and the used entries.

    Raises:
        MalformedEvidence: not a GPT header, or entries that do not fill the data.
    """
    reader = Reader(data, part="partition table", base=base)
    header = reader.take(_GPT_MIN_HEADER, "the table header")
    if not header.startswith(b"EFI PART"):
        raise reader.malformed("no GPT signature", at=0)
    disk_guid = format_guid(header[56:72])
    entry_size = int.from_bytes(header[84:88], "little")
    count = reader.u64("number of partitions")
    if entry_size < _GPT_ENTRY_BYTES or entry_size > 4096:
        raise reader.malformed(f"entries of {entry_size} bytes", at=84)
    if count > MAX_PARTITIONS:
        raise reader.malformed(f"{count} partitions", at=_GPT_MIN_HEADER)
    partitions = tuple(
        _decode_partition(reader.take(entry_size, "a partition")) for _ in range(count)
    )
    reader.expect_end()
    return PartitionTable(disk_guid=disk_guid, partitions=partitions)


def _decode_partition(entry: bytes) -> GptPartition:
    first, last = Struct("<QQ").unpack_from(entry, 32)
    return GptPartition(
        type_guid=format_guid(entry[:16]),
        unique_guid=format_guid(entry[16:32]),
        first_block=first,
        last_block=last,
        name=utf16_text(entry[56:128]),
    )
