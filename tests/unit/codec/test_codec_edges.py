"""Edges of logs and lists that no good input has: each is read in one way, or refused (rules 45, 65)."""

import base64
import struct

import pytest
from support import ek_certificates as make
from support.logbuilder import (
    GLOBAL,
    NO_ACTION,
    SHA256_LIST,
    LogBuilder,
    good_log,
    guid,
    legacy_record,
    sized,
    spec_id,
)

from trustauthority.codec.efi import count_signatures
from trustauthority.codec.eventlog import decode_boot_log
from trustauthority.codec.ima import decode_ima_binary
from trustauthority.codec.ima_ascii import decode_ima_ascii
from trustauthority.codec.ima_log import decode_ima_log, is_ascii
from trustauthority.codec.x509_crl import decode_revocation_list
from trustauthority.errors import MalformedEvidence
from trustauthority.model.bootlog import NO_REGISTER

# --- boot logs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [0, 1, 16, 4096])
def test_padding_is_counted(padding):
    """Firmware hands over a buffer of its own size: what follows the last record is told (rule 45)."""
    log = decode_boot_log(good_log().bytes + bytes(padding))
    assert (log.padding, log.size) == (padding, len(good_log().bytes) + padding)
    assert len(log.events) == len(decode_boot_log(good_log().bytes).events)


@pytest.mark.parametrize(
    ("register", "kind", "good"),
    [
        (NO_REGISTER, NO_ACTION, True),
        (NO_REGISTER, 0x5, False),
        (23, 0x5, True),
        (24, 0x5, False),
        (24, NO_ACTION, False),
        (NO_REGISTER - 1, NO_ACTION, False),
    ],
)
def test_registers_of_a_record(register, kind, good):
    """PCR 0 to 23, and for what is only information the register that is none (trust points of a WBCL)."""
    raw = good_log().event(register, kind, b"data").bytes
    if good:
        assert decode_boot_log(raw).events[-1].pcr == register
        return
    with pytest.raises(MalformedEvidence, match=f"names register {register}"):
        decode_boot_log(raw)


@pytest.mark.parametrize(("size", "good"), [(0, False), (1, True), (128, True), (129, False)])
def test_digests_of_an_unknown_algorithm_have_a_size(size, good):
    """Rule 39: a bank that nobody knows is skipped by its size, which is between one byte and 128."""
    header = legacy_record(0, NO_ACTION, bytes(20), spec_id([(0x0077, size), (0x000B, 32)]))
    record = struct.pack("<IIIH", 0, 8, 2, 0x0077) + bytes(size)
    record += struct.pack("<H", 0x000B) + bytes(32) + struct.pack("<I", 1) + b"v"
    if good:
        log = decode_boot_log(header + record)
        assert [bank.size for bank in log.banks] == [size, 32]
        assert log.events[-1].data == b"v"
        return
    with pytest.raises(MalformedEvidence, match=f"digests of {size} bytes"):
        decode_boot_log(header + record)


def test_a_log_that_was_only_begun():
    """A header without records is a log without events that count (rule 34)."""
    log = decode_boot_log(LogBuilder().bytes)
    assert [event.type for event in log.events] == [NO_ACTION]


# --- signature lists -----------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "good"), [(27, False), (28, True), (29, False), (76, True)])
def test_a_list_is_as_long_as_its_header_at_least(size, good):
    """UEFI 32.4.1: a list without entries is a header; bytes that fill no entry are refused."""
    raw = guid(SHA256_LIST) + struct.pack("<III", size, 0, 48)
    raw += (guid(GLOBAL) + bytes(32))[: max(0, size - 28)]
    if good:
        assert count_signatures(raw) == (size - 28) // 48
        return
    with pytest.raises(MalformedEvidence):
        count_signatures(raw)


# --- runtime logs --------------------------------------------------------------------------------


def shown(template: str, *values: str) -> bytes:
    """A line of a log in text."""
    return f"10 {'00' * 20} {template} {' '.join(values)}\n".encode()


@pytest.mark.parametrize(
    ("field", "value", "good"),
    [
        ("iuid", "0", True),
        ("iuid", "4294967295", True),
        ("iuid", "0000000001", True),
        ("iuid", "4294967296", False),
        ("iuid", "9999999999", False),
        ("iuid", "00000000001", False),
        ("imode", "65535", True),
        ("imode", "65536", False),
        ("igid", "-1", False),
        ("igid", "1e3", False),
    ],
)
def test_numbers_fit_their_fields(field, value, good):
    """A number that its field can't hold is malformed, not a crash of ours (rules 53, 65)."""
    digest = "sha256:" + "ab" * 32
    raw = shown(f"d-ng|n-ng|{field}", digest, "/a", value)
    if not good:
        with pytest.raises(MalformedEvidence):
            decode_ima_ascii(raw)
        return
    (entry,) = decode_ima_ascii(raw)
    size = 2 if field == "imode" else 4
    assert entry.data.endswith(struct.pack("<I", size) + int(value).to_bytes(size, "little"))


def old_record(name: bytes) -> bytes:
    """An entry of the template before ``ima-ng``: it has no length of its data."""
    return struct.pack("<I", 10) + bytes(20) + sized(b"ima") + bytes(range(20)) + sized(name)


@pytest.mark.parametrize("name", [b"", b"/", b"/bin/tool", b"x" * 255])
def test_entries_of_the_old_template_end_with_their_name(name):
    """The last one may end at the last byte, with a name of no bytes at all (rule 53)."""
    entries = decode_ima_binary(old_record(b"/first") + old_record(name))
    assert len(entries) == 2
    assert entries[1].data.startswith(bytes(range(20)))
    assert entries[1].data.rstrip(b"\0").endswith(name)
    for cut in range(1, 24 + len(name)):
        with pytest.raises(MalformedEvidence):
            decode_ima_binary((old_record(b"/first") + old_record(name))[:-cut])


@pytest.mark.parametrize(
    ("data", "text"), [(b"", False), (b"1", False), (b"10", True), (b" 9", True), (b"1\0", False)]
)
def test_the_form_of_a_log_is_seen_from_two_bytes(data, text):
    """One byte is no log of either form, and no crash (rule 65)."""
    assert is_ascii(data) is text
    if len(data) == 1:
        with pytest.raises(MalformedEvidence):
            decode_ima_log(data)


# --- CRLs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "good"),
    [
        (("X509 CRL",), True),
        (("CERTIFICATE",), False),
        (("X509 CRL", "X509 CRL"), False),
        (("CERTIFICATE", "X509 CRL"), True),
    ],
)
def test_a_list_in_pem_is_called_one(labels, good):
    """One block that says it is a CRL; what is called otherwise is not read as one (rule 29)."""
    crl = make.build_crl(make.ca_key(), make.CA_NAME, [7])
    body = base64.encodebytes(crl).decode()
    pem = "".join(f"-----BEGIN {label}-----\n{body}-----END {label}-----\n" for label in labels)
    if good:
        assert decode_revocation_list(pem.encode()) == decode_revocation_list(crl)
        return
    with pytest.raises(MalformedEvidence, match="not one CRL"):
        decode_revocation_list(pem.encode())
