"""EFI structures: device paths, signature lists, partition tables, image loads (rules 38, 45)."""

import struct

import pytest
from support.logbuilder import GLOBAL, guid, signature_list, variable

from trustauthority.codec.devicepath import MAX_NODES, decode_device_path
from trustauthority.codec.efi import (
    count_signatures,
    decode_image_load,
    decode_partition_table,
    decode_signature_lists,
    decode_variable,
    variable_value_range,
)
from trustauthority.codec.efi_text import byte_text, format_guid, printable, utf16_text
from trustauthority.errors import MalformedEvidence

END = b"\x7f\xff\x04\x00"


def node(kind: int, subtype: int, body: bytes = b"") -> bytes:
    """One device path node."""
    return struct.pack("<BBH", kind, subtype, 4 + len(body)) + body


DISK = struct.pack("<IQQ", 1, 0x800, 0x1000)
NODES = [
    (node(1, 1, b"\x03\x1d"), "Pci(0x1d,0x3)"),
    (node(1, 3, struct.pack("<IQQ", 11, 1, 2)), "MemoryMapped(0xb,0x1,0x2)"),
    (node(1, 4, guid(GLOBAL) + b"\x80"), f"VenHw({GLOBAL},80)"),
    (node(2, 1, struct.pack("<II", 0x0A0341D0, 0)), "PciRoot(0x0)"),
    (node(2, 1, struct.pack("<II", 0x0A0841D0, 1)), "PcieRoot(0x1)"),
    (node(2, 1, struct.pack("<II", 0x060441D0, 2)), "Acpi(PNP0604,0x2)"),
    (node(2, 1, struct.pack("<II", 0x06041234, 2)), "Acpi(0x06041234,0x2)"),
    (node(3, 11, bytes.fromhex("525400123456") + bytes(26) + b"\x01"), "MAC(525400123456,0x1)"),
    (node(3, 11, b"\x01" * 32 + b"\x20"), f"MAC({'01' * 32},0x20)"),
    (node(3, 12, bytes(4) + bytes((192, 0, 2, 1)) + bytes(11)), "IPv4(192.0.2.1)"),
    (node(3, 13, bytes(16) + b"\x20" * 16), f"IPv6({'20' * 16})"),
    (node(3, 23, struct.pack("<I", 1) + bytes(range(8))), "NVMe(0x1,07-06-05-04-03-02-01-00)"),
    (node(3, 24, b"https://boot.example"), "Uri(https://boot.example)"),
    (
        node(4, 1, DISK + guid(GLOBAL) + b"\x02\x02"),
        f"HD(1,GPT,{GLOBAL},0x800,0x1000)",
    ),
    (
        node(4, 1, DISK + b"\x78\x56\x34\x12" + bytes(12) + b"\x01\x01"),
        "HD(1,MBR,0x12345678,0x800,0x1000)",
    ),
    (node(4, 1, DISK + bytes(16) + b"\x00\x00"), f"HD(1,0,{'00' * 16},0x800,0x1000)"),
    (node(4, 4, "\\EFI\\x".encode("utf-16-le") + b"\0\0"), "\\EFI\\x"),
    (node(4, 8, bytes(4) + struct.pack("<QQ", 0xF050, 1)), "Offset(0xf050)"),
    (node(5, 1, struct.pack("<HH", 2, 0) + b"disk\0"), "BBS(2,disk)"),
    (node(9, 9, b"\x01\x02"), "Path(9,9,0102)"),
    (node(1, 1, b"\x01"), "Path(1,1,01)"),
    (node(0x7F, 1), ","),
]


@pytest.mark.parametrize(("raw", "text"), NODES, ids=[text[:20] for _, text in NODES])
def test_node_in_words(raw, text):
    """Each node we know has the text form of the UEFI specification; others show their bytes."""
    assert decode_device_path(raw + END) == text
    assert decode_device_path(raw) == text


@pytest.mark.parametrize(
    ("raw", "offset"),
    [
        (b"\x01\x01\x03\x00", 100),
        (b"\x01\x01\x00\x00", 100),
        (b"\x01\x01\x09\x00\x00", 100),
        (node(1, 1, b"\0\0") + b"\x01\x01", 106),
        (node(1, 1, b"\0\0") * (MAX_NODES + 1), 100 + 6 * MAX_NODES),
    ],
)
def test_device_path_that_leaves_its_bytes_is_malformed(raw, offset):
    """No node is shorter than its header or longer than its path, and nodes are bounded (rule 45)."""
    with pytest.raises(MalformedEvidence) as caught:
        decode_device_path(raw, base=100)
    assert caught.value.offset == offset


def test_signature_lists():
    """Lists follow each other; every entry has an owner."""
    raw = signature_list([b"\x01" * 32, b"\x02" * 32]) + signature_list([b"\x03" * 700])
    lists = decode_signature_lists(raw)
    assert [len(found.entries) for found in lists] == [2, 1]
    assert lists[0].entries[1] == (GLOBAL, b"\x02" * 32)
    assert count_signatures(raw) == 3
    assert decode_signature_lists(b"") == ()


HEAD = guid(GLOBAL)


@pytest.mark.parametrize(
    "raw",
    [
        HEAD + struct.pack("<III", 27, 0, 48),  # shorter than its header
        HEAD + struct.pack("<III", 0, 0, 48),
        HEAD + struct.pack("<III", 76, 0, 48),  # longer than the bytes
        HEAD + struct.pack("<III", 76, 60, 48) + bytes(48),  # vendor header beyond the list
        HEAD + struct.pack("<III", 76, 8, 48) + bytes(48),  # a remainder
        HEAD + struct.pack("<III", 44, 0, 16) + bytes(16),  # entries that are only an owner
        HEAD + struct.pack("<III", 44, 0, 0) + bytes(16),
        HEAD[:10],
    ],
)
def test_signature_list_sizes_that_do_not_fit(raw):
    """Underflow, oversize and vendor headers are refused by both readings (rule 45)."""
    for decode in (decode_signature_lists, count_signatures):
        with pytest.raises(MalformedEvidence):
            decode(raw)


def test_signature_lists_are_bounded():
    """More entries than any database has are refused (rule 45)."""
    body = bytes(17 * 70_000)
    raw = HEAD + struct.pack("<III", 28 + len(body), 0, 17) + body
    with pytest.raises(MalformedEvidence, match="more than"):
        decode_signature_lists(raw)


def test_vendor_header_is_skipped():
    """A list may hold a header of its type before the entries."""
    body = b"vendor__" + guid(GLOBAL) + b"\x07" * 32
    raw = HEAD + struct.pack("<III", 28 + len(body), 8, 48) + body
    assert decode_signature_lists(raw)[0].entries == ((GLOBAL, b"\x07" * 32),)
    assert count_signatures(raw) == 1


def test_variable_fills_its_data():
    """Trailing bytes are refused unless the caller allows the quirk by name (rules 9, 43)."""
    raw = variable("SecureBoot", b"\x01")
    found = decode_variable(raw)
    assert (found.name, found.guid, found.value) == ("SecureBoot", GLOBAL, b"\x01")
    with pytest.raises(MalformedEvidence):
        decode_variable(raw + b"\0")
    assert decode_variable(raw + b"\0", allow_trailing=True) == found
    with pytest.raises(MalformedEvidence, match="characters"):
        decode_variable(guid(GLOBAL) + struct.pack("<QQ", 1 << 40, 0) + bytes(40))


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (variable("Boot0001", b"value"), (48, 53)),
        (b"short", None),
        (guid(GLOBAL) + struct.pack("<QQ", 1 << 60, 1), None),
        (guid(GLOBAL) + struct.pack("<QQ", 1, 100) + b"ab", None),
    ],
)
def test_where_the_value_of_a_variable_lies(raw, found):
    """Only lengths that fit name a value (rule 38)."""
    assert variable_value_range(raw) == found


def gpt(count: int, entries: bytes, *, size: int = 128, magic: bytes = b"EFI PART") -> bytes:
    """UEFI_GPT_DATA."""
    header = bytearray(92)
    header[:8] = magic
    header[56:72] = guid(GLOBAL)
    struct.pack_into("<I", header, 84, size)
    return bytes(header) + struct.pack("<Q", count) + entries


def test_partition_table():
    """Disk and partitions by their GUIDs."""
    entry = (
        guid(GLOBAL) * 2 + struct.pack("<QQQ", 1, 2, 0) + "esp".encode("utf-16-le").ljust(72, b"\0")
    )
    table = decode_partition_table(gpt(1, entry))
    assert table.disk_guid == GLOBAL
    assert [(part.name, part.first_block, part.last_block) for part in table.partitions] == [
        ("esp", 1, 2)
    ]


@pytest.mark.parametrize(
    "raw",
    [
        gpt(0, b"", magic=b"EFI WORK"),
        gpt(1, b""),
        gpt(1 << 60, b""),
        gpt(0, b"x"),
        gpt(0, b"", size=16),
        gpt(0, b"", size=1 << 20),
        b"EFI PART",
    ],
)
def test_partition_table_that_does_not_fit(raw):
    """Counts and sizes are compared before use (rule 45)."""
    with pytest.raises(MalformedEvidence):
        decode_partition_table(raw)


def test_image_load_event():
    """Where an image came from is a hint, and an empty path is none."""
    path = node(1, 1, b"\0\x01") + END
    raw = struct.pack("<QQQQ", 4096, 100, 0, len(path)) + path
    assert decode_image_load(raw).device_path == "Pci(0x1,0x0)"
    assert decode_image_load(struct.pack("<QQQQ", 1, 2, 3, 0)).device_path == ""
    with pytest.raises(MalformedEvidence):
        decode_image_load(struct.pack("<QQQQ", 1, 2, 3, 1 << 62))


def test_text_is_safe_to_show():
    """No control character, bidirectional mark or lone surrogate leaves the codec (N44)."""
    assert printable("a\x1b[2J\u202eb") == "a\\x1b[2J\\u202eb"
    assert byte_text(b"a\x00b") == "a"
    assert byte_text(b"\xff\n") == "\\xff\\n"
    assert utf16_text("x\0y".encode("utf-16-le")) == "x"
    assert utf16_text(b"\x00\xd8a") == "\\ud800\\x61"
    assert format_guid(guid(GLOBAL)) == GLOBAL
