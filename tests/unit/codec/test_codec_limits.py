"""Limits and tables of the codec, each at its edge (rules 45, 53): what mutation testing found untested."""

import hashlib
import json
import struct

import pytest
from support import ek_certificates as make
from support.logbuilder import (
    DATABASE,
    guid,
    ima_record,
    ng_data,
    signature_list,
    sized,
    variable,
)
from support.pe_images import Built

from trustauthority.codec import tlog
from trustauthority.codec.bundle import FORMAT, decode_bundle, encode_bundle
from trustauthority.codec.der import DerReader
from trustauthority.codec.devicepath import decode_device_path
from trustauthority.codec.efi import (
    MAX_NAME_UNITS,
    count_signatures,
    decode_image_load,
    decode_partition_table,
    decode_variable,
)
from trustauthority.codec.eventlog import decode_boot_log
from trustauthority.codec.ima import MAX_TEMPLATE_NAME, decode_ima_binary
from trustauthority.codec.ima_ascii import decode_ima_ascii
from trustauthority.codec.pe import decode_pe
from trustauthority.codec.x509 import decode_certificate
from trustauthority.codec.x509_crl import decode_revocation_list
from trustauthority.codec.x509_keys import certificate_key
from trustauthority.codec.x509_names import decode_name
from trustauthority.errors import AlgorithmUnsupported, CheckpointInvalid, MalformedEvidence
from trustauthority.model.bootlog import LogFormat
from trustauthority.model.certificate import SubjectPublicKeyInfo

# --- device paths --------------------------------------------------------------------------------

GUID = guid(DATABASE)
NODES = {
    (1, 1): (b"\x00\x1f", "Pci(0x1f,0x0)"),
    (1, 3): (struct.pack("<IQQ", 1, 2, 3), "MemoryMapped(0x1,0x2,0x3)"),
    (1, 4): (GUID, f"VenHw({DATABASE})"),
    (1, 5): (struct.pack("<I", 7), "Ctrl(0x7)"),
    (2, 1): (struct.pack("<II", 0x0A0341D0, 0), "PciRoot(0x0)"),
    (3, 1): (struct.pack("<BBH", 1, 0, 2), "Ata(0x1,0x0,0x2)"),
    (3, 2): (struct.pack("<HH", 1, 2), "Scsi(0x1,0x2)"),
    (3, 5): (b"\x01\x02", "USB(0x1,0x2)"),
    (3, 10): (GUID, f"VenMsg({DATABASE})"),
    (3, 17): (b"\x05", "Unit(0x5)"),
    (3, 18): (struct.pack("<HHH", 1, 2, 3), "Sata(0x1,0x2,0x3)"),
    (3, 24): (b"http://x", "Uri(http://x)"),
    (3, 26): (b"\x01", "SD(0x1)"),
    (3, 29): (b"\x01", "eMMC(0x1)"),
    (4, 2): (struct.pack("<IQQ", 1, 2, 3), "CDROM(0x1,0x2,0x3)"),
    (4, 3): (GUID, f"VenMedia({DATABASE})"),
    (4, 4): ("\\EFI\\x".encode("utf-16-le"), "\\EFI\\x"),
    (4, 6): (GUID, f"FvFile({DATABASE})"),
    (4, 7): (GUID, f"Fv({DATABASE})"),
    (4, 8): (struct.pack("<IQQ", 0, 16, 32), "Offset(0x10)"),
    (4, 9): (struct.pack("<QQ", 1, 2), "RamDisk(0x1,0x2)"),
    (5, 1): (struct.pack("<HH", 2, 0) + b"disk", "BBS(2,disk)"),
}
LEAST = {
    (1, 1): 2,
    (1, 3): 20,
    (1, 4): 16,
    (1, 5): 4,
    (2, 1): 8,
    (2, 2): 12,
    (3, 1): 4,
    (3, 2): 4,
    (3, 5): 2,
    (3, 10): 16,
    (3, 11): 33,
    (3, 12): 8,
    (3, 13): 16,
    (3, 17): 1,
    (3, 18): 6,
    (3, 23): 12,
    (3, 26): 1,
    (3, 29): 1,
    (4, 1): 38,
    (4, 2): 20,
    (4, 3): 16,
    (4, 6): 16,
    (4, 7): 16,
    (4, 8): 20,
    (4, 9): 16,
    (5, 1): 4,
}


def node(kind: tuple[int, int], body: bytes) -> bytes:
    """One node of a device path, and the end node."""
    return bytes(kind) + struct.pack("<H", 4 + len(body)) + body + b"\x7f\xff\x04\x00"


@pytest.mark.parametrize("kind", NODES, ids=str)
def test_device_path_nodes_are_shown_by_kind_and_numbers(kind):
    """UEFI 2.10 section 10.3: each kind by its name, with the numbers that an operator compares."""
    body, text = NODES[kind]
    assert decode_device_path(node(kind, body)) == text


@pytest.mark.parametrize("kind", LEAST, ids=str)
def test_device_path_nodes_have_their_length(kind):
    """A node one byte shorter than its kind is not read as that kind (rule 45)."""
    least = LEAST[kind]
    whole = decode_device_path(node(kind, b"\x01" * least))
    short = decode_device_path(node(kind, b"\x01" * (least - 1)))
    unknown = decode_device_path(node((kind[0], 200), b"\x01" * (least - 1)))
    assert short == unknown.replace("200", str(kind[1]))
    assert whole != short


# --- EFI -----------------------------------------------------------------------------------------


def test_signature_lists_within_their_data():
    """A second list that says more than is left is refused, by count and by content alike."""
    one = signature_list([bytes(32)])
    assert count_signatures(one * 2) == 2
    longer = bytearray(one)
    struct.pack_into("<I", longer, 16, len(one) + 48)
    with pytest.raises(MalformedEvidence):
        count_signatures(one + bytes(longer))


@pytest.mark.parametrize("extra", [1, 32, 64])
def test_a_path_beyond_the_event(extra):
    """An image load's path fits what is behind its header, not the event as a whole."""
    path = b"\x7f\xff\x04\x00"
    whole = struct.pack("<QQQQ", 1, 2, 3, len(path)) + path
    assert decode_image_load(whole).address == 1
    with pytest.raises(MalformedEvidence, match=f"a path of {len(path) + extra} bytes"):
        decode_image_load(struct.pack("<QQQQ", 1, 2, 3, len(path) + extra) + path)


@pytest.mark.parametrize(("size", "fine"), [(127, False), (128, True), (4096, True), (4097, False)])
def test_partition_entries_have_a_size(size, fine):
    """UEFI section 5.3.2: at least 128 bytes; ours at most a page."""
    header = bytearray(b"EFI PART".ljust(92, b"\0"))
    struct.pack_into("<I", header, 84, size)
    data = bytes(header) + struct.pack("<Q", 1) + bytes(size)
    if fine:
        assert len(decode_partition_table(data).partitions) == 1
        return
    with pytest.raises(MalformedEvidence, match=f"entries of {size} bytes"):
        decode_partition_table(data)


def test_a_log_of_padding_is_empty():
    """Nothing but padding is a log without events, of its size (rule 45)."""
    for data in (b"\0" * 64, b"\xff" * 64):
        log = decode_boot_log(data)
        assert (log.format, log.size, log.padding, log.events) == (LogFormat.EMPTY, 64, 64, ())


# --- IMA -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, MAX_TEMPLATE_NAME + 1, 1 << 31])
def test_a_template_has_a_name(size):
    """A template name has 1 to 256 bytes (rule 53)."""
    good = ima_record(ng_data(b"/a"))
    record = struct.pack("<I20sI", 10, bytes(20), size) + b"i" * min(size, 300)
    with pytest.raises(MalformedEvidence, match=f"a template name of {size} bytes"):
        decode_ima_binary(good + record + bytes(64))


def test_a_log_of_a_big_endian_kernel_is_named():
    """Its numbers are read the wrong way round; the message says what to do (rule 53)."""
    data = ng_data(b"boot_aggregate")
    record = ima_record(data)
    swapped = b"".join(
        (
            record[3::-1],
            record[4:24],
            record[27:23:-1],
            record[28:34],
            len(data).to_bytes(4, "big"),
            data,
        )
    )
    with pytest.raises(MalformedEvidence, match="ima_canonical_fmt"):
        decode_ima_binary(swapped * 9)
    with pytest.raises(MalformedEvidence) as caught:
        decode_ima_binary(bytes(1000))
    assert "canonical" not in str(caught.value)


def test_a_template_of_one_letter_and_of_the_most():
    """The bounds themselves are names."""
    for name in (b"x", b"x" * MAX_TEMPLATE_NAME):
        (entry,) = decode_ima_binary(ima_record(b"data", name))
        assert entry.template == name.decode()


def line(register="10", digest="", template="ima-ng", rest="") -> bytes:
    """One line of ascii_runtime_measurements."""
    content = ng_data(b"/a")
    value = digest or hashlib.sha1(content, usedforsecurity=False).hexdigest()
    shown = rest or f"sha256:{hashlib.sha256(b'content').hexdigest()} /a"
    return f"{register} {value} {template} {shown}\n".encode()


def test_a_line_is_read():
    """What the refusals below change."""
    (entry,) = decode_ima_ascii(line())
    assert (entry.pcr, entry.data) == (10, ng_data(b"/a"))


@pytest.mark.parametrize("register", ["24", "99", "010", "1a", "-1", "+1", "²", "1_0"])
def test_a_register_that_is_none(register):
    """0 to 23, in at most two digits (rule 51)."""
    with pytest.raises(MalformedEvidence, match="the register is no PCR"):
        decode_ima_ascii(line(register))


@pytest.mark.parametrize("register", ["0", "9", "23", "07"])
def test_a_register_that_is_one(register):
    """The bounds themselves."""
    assert decode_ima_ascii(line(register))[0].pcr == int(register)


@pytest.mark.parametrize(
    ("size", "fine"), [(1, True), (MAX_TEMPLATE_NAME, True), (MAX_TEMPLATE_NAME + 1, False)]
)
def test_the_name_of_a_template_in_text(size, fine):
    """As in the binary form; a template that we do not know keeps its text (rule 53)."""
    data = line(template="t" * size)
    if fine:
        assert decode_ima_ascii(data)[0].template == "t" * size
        return
    with pytest.raises(MalformedEvidence, match="no usable name"):
        decode_ima_ascii(data)


def test_the_hash_that_proves_a_line_may_be_any_of_its_length():
    """32 bytes are SHA-256 or SM3: one of them proves which blanks belong to the name."""
    content = ng_data(b"/a b ")
    shown = f"sha256:{hashlib.sha256(b'content').hexdigest()} /a b "
    proof = hashlib.sha256(content).hexdigest()
    (entry,) = decode_ima_ascii(line(digest=proof, rest=shown))
    assert entry.data == content


# --- PE ------------------------------------------------------------------------------------------


def test_a_section_without_bytes_is_not_hashed_where_it_says_to_be():
    """A section of no bytes counts for nothing, wherever it points (Authenticode, step 9)."""
    built = Built(sections=((b".text", b"code" * 40), (b".bss", b"")))
    image = decode_pe(built.bytes)
    assert [part for part in image.hashed_parts() if not len(part)] in ([], [b""])
    empty = next(each for each in image.sections if each.name == ".bss")
    assert empty.file_size == 0
    assert image.section(".bss") == b""


def test_a_name_of_eight_letters_is_whole():
    """Names are padded with zeros, not ended by one."""
    image = decode_pe(Built(sections=((b".osrel", b"x"), (b".cmdline", b"quiet"))).bytes)
    assert image.section(".cmdline") == b"quiet"
    assert image.section(".osrel") == b"x"


# --- DER and X.509 -------------------------------------------------------------------------------


def test_lengths_of_one_to_four_octets():
    """Four octets of length are DER when they are needed; five are not read (rule 45)."""
    element = b"\x04\x84\x01\x00\x00\x00" + bytes(1 << 24)
    assert len(DerReader(element, part="x").read("x").content) == 1 << 24
    with pytest.raises(MalformedEvidence, match="indefinite or absurd"):
        DerReader(b"\x04\x85\x01\x00\x00\x00\x00", part="x").read("x")


def test_trailing_elements_are_refused_at_every_level():
    """Nothing follows a signature value, an RSA key or the date of a revoked certificate (A1)."""
    root = make.root()
    body = DerReader(root, part="x").read("x")
    longer = make.sequence(body.content, b"\x05\x00")
    with pytest.raises(MalformedEvidence):
        decode_certificate(longer)
    info = decode_certificate(root).public_key_info
    more = SubjectPublicKeyInfo(
        raw=info.raw, algorithm=info.algorithm, parameters=info.parameters, key=info.key + b"\x05\0"
    )
    with pytest.raises(MalformedEvidence):
        certificate_key(more)


def test_revoked_entries_hold_serial_date_and_extensions():
    """A revoked certificate with anything else in its entry makes the list malformed (rule 29)."""
    good = make.build_crl(make.ca_key(), make.CA_NAME, [4711])
    entry = make.sequence(make.integer(4711), make.tlv(0x17, b"240601000000Z"))
    longer = make.sequence(make.integer(4711), make.tlv(0x17, b"240601000000Z"), b"\x05\x00")
    assert decode_revocation_list(good)
    whole = DerReader(good, part="x").read("x").content
    signed = DerReader(whole, part="x").read("x").content
    changed = make.sequence(signed.replace(make.sequence(entry), make.sequence(longer)))
    rest = whole[len(make.sequence(signed)) :]
    with pytest.raises(MalformedEvidence):
        decode_revocation_list(make.sequence(changed, rest))


def test_an_ec_key_without_a_curve():
    """No parameters are no named curve, and not a crash."""
    info = decode_certificate(make.root()).public_key_info
    bare = SubjectPublicKeyInfo(
        raw=info.raw, algorithm="1.2.840.10045.2.1", parameters=None, key=b""
    )
    with pytest.raises(AlgorithmUnsupported, match="not a named one"):
        certificate_key(bare)


@pytest.mark.parametrize(
    ("identifier", "shown"),
    [
        ("2.5.4.3", "CN"),
        ("2.5.4.5", "serialNumber"),
        ("2.5.4.6", "C"),
        ("2.5.4.7", "L"),
        ("2.5.4.8", "ST"),
        ("2.5.4.9", "street"),
        ("2.5.4.10", "O"),
        ("2.5.4.11", "OU"),
        ("0.9.2342.19200300.100.1.25", "DC"),
        ("2.23.133.2.1", "tpmManufacturer"),
        ("2.23.133.2.2", "tpmModel"),
        ("2.23.133.2.3", "tpmVersion"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_attribute_names_as_operators_know_them(identifier, shown):
    """RFC 4514 and the TCG's EK profile name the attributes of a vendor's name."""
    element = DerReader(make.name((identifier, "x")), part="x").read("x")
    assert decode_name(element).text == f"{shown}=x"


@pytest.mark.parametrize(
    ("tag", "raw"),
    [
        (0x0C, "é".encode()),
        (0x14, "é".encode("latin-1")),
        (0x1C, "é".encode("utf-32-be")),
        (0x1E, "é".encode("utf-16-be")),
    ],
)
def test_encodings_of_names(tag, raw):
    """UTF8String, TeletexString, UniversalString and BMPString show the same letter."""
    attribute = make.sequence(make.oid("2.5.4.3"), make.tlv(tag, raw))
    element = DerReader(make.sequence(make.tlv(0x31, attribute)), part="x").read("x")
    assert decode_name(element).text == "CN=é"


@pytest.mark.parametrize("tag", [0x12, 0x13, 0x16, 0x1A])
def test_ascii_strings_are_ascii(tag):
    """Numeric, Printable, IA5 and Visible strings hold ASCII; other bytes are shown, never guessed."""
    good = make.sequence(make.oid("2.5.4.3"), make.tlv(tag, b"42"))
    element = DerReader(make.sequence(make.tlv(0x31, good)), part="x").read("x")
    assert decode_name(element).text == "CN=42"
    bad = make.sequence(make.oid("2.5.4.3"), make.tlv(tag, b"\xe9"))
    element = DerReader(make.sequence(make.tlv(0x31, bad)), part="x").read("x")
    assert "é" not in decode_name(element).text


# --- bundles and the audit log -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "fine"),
    [(0, True), (1 << 40, True), ((1 << 40) + 1, False), (-1, False), (True, False), (1.0, False)],
)
def test_numbers_of_a_manifest(value, fine):
    """Counts are whole, not negative and at most a terabyte."""
    bundle = decode_bundle(encode_bundle({"n": value}, {"a": b"x"}, made_at_s=1))
    if fine:
        assert bundle.number("n") == value
        return
    with pytest.raises(MalformedEvidence, match="n is not a number"):
        bundle.number("n")


def test_a_bundle_is_a_tar_of_whole_blocks():
    """Parts without content are left out; two empty blocks end it, as POSIX asks."""
    data = encode_bundle({}, {"a": b"x", "b": b""}, made_at_s=1)
    bundle = decode_bundle(data)
    assert dict(bundle.parts) == {"a": b"x"}
    assert list(bundle.manifest["files"]) == ["a"]
    assert len(data) == 512 * (2 + 2 + 2)
    assert not any(data[-1024:])
    assert json.loads(data[512:1024].rstrip(b"\0"))["format"] == FORMAT


def test_the_era_of_a_checkpoint():
    """The first ``era`` line counts; none, or none that is a number, is era 0 (N64)."""

    def era(*extensions: str) -> int:
        return tlog.Checkpoint(origin="o", size=1, root=bytes(32), extensions=extensions).era

    assert era() == 0
    assert era("witness x") == 0
    assert era("era x") == 0
    assert era("era 3") == 3
    assert era("era 3", "era 4") == 3
    assert era("witness", "era 2") == 2


def note_with(signatures: int, signature: bytes = bytes(64)) -> str:
    """A note of one text and some signatures."""
    text = tlog.encode_checkpoint(tlog.Checkpoint(origin="o/a", size=0, root=tlog.EMPTY_ROOT))
    note = tlog.encode_note(text=text, name="o/a", public_key=bytes(32), signature=signature)
    last = note.splitlines(keepends=True)[-1]
    return note + last * (signatures - 1)


def test_signatures_of_a_note_are_bounded():
    """A hundred are read, one more is not; a signature holds its key's id and a byte at least."""
    assert tlog.unverified_checkpoint(note_with(tlog.MAX_NOTE_SIGNATURES)).size == 0
    with pytest.raises(CheckpointInvalid, match="too many"):
        tlog.unverified_checkpoint(note_with(tlog.MAX_NOTE_SIGNATURES + 1))
    assert tlog.unverified_checkpoint(note_with(1, b"x")).size == 0
    with pytest.raises(CheckpointInvalid, match="too short"):
        tlog.unverified_checkpoint(note_with(1, b""))


def test_a_refused_proof_names_the_sizes():
    """What an operator needs to find the two checkpoints (N65)."""
    with pytest.raises(CheckpointInvalid) as caught:
        tlog.check_consistency(
            old_size=2, old_root=bytes(32), size=3, root=bytes(32), proof=[bytes(32)]
        )
    assert (caught.value.metadata["oldSize"], caught.value.metadata["size"]) == ("2", "3")


def test_entries_of_the_old_template():
    """``ima`` has no length: digest and a name of up to 255 bytes (rule 53)."""
    for length in (1, 255):
        raw = struct.pack("<I20s", 10, bytes(20)) + sized(b"ima")
        raw += bytes(20) + sized(b"n" * length)
        (entry,) = decode_ima_binary(raw)
        assert entry.data == bytes(20) + b"n" * length + b"\0" * (256 - length)


def with_kind(kind: bytes) -> bytes:
    """A bundle whose first entry has another type flag, with the right checksum."""
    data = bytearray(encode_bundle({}, {"a": b"x"}, made_at_s=1))
    data[156:157] = kind
    data[148:156] = b" " * 8
    data[148:156] = f"{sum(data[:512]):06o}\0 ".encode()
    return bytes(data)


@pytest.mark.parametrize(
    ("kind", "fine"), [(b"0", True), (b"\0", True), (b"2", False), (b"5", False)]
)
def test_entries_of_a_bundle_are_plain_files(kind, fine):
    """POSIX knows two flags of plain files; links and folders are no parts (rule 45)."""
    if fine:
        assert decode_bundle(with_kind(kind)).parts == {"a": b"x"}
        return
    with pytest.raises(MalformedEvidence, match="no header of a plain file"):
        decode_bundle(with_kind(kind))


@pytest.mark.parametrize("size", ["00000000008", "0000000000 8", "0000000000\x00"])
def test_sizes_in_a_bundle_are_octal(size):
    """The digits 0 to 7, or it is no size."""
    data = bytearray(encode_bundle({}, {"a": b"x"}, made_at_s=1))
    data[124:136] = size.encode().ljust(12, b"\0")[:12]
    data[148:156] = b" " * 8
    data[148:156] = f"{sum(data[:512]):06o}\0 ".encode()
    with pytest.raises(MalformedEvidence):
        decode_bundle(bytes(data))


def test_the_longest_name_of_a_variable():
    """A name of the limit is read, one letter more is not (rule 45)."""
    name = "n" * MAX_NAME_UNITS
    assert decode_variable(variable(name, b"")).name == name
    with pytest.raises(MalformedEvidence):
        decode_variable(variable(name + "n", b""))
