"""Edges of logs and lists that no good input has: each is read in one way, or refused (rules 45, 65)."""

import base64
import json
import struct
from dataclasses import replace

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from support import ek_certificates as make
from support.logbuilder import (
    GLOBAL,
    NO_ACTION,
    SHA256_LIST,
    LogBuilder,
    good_log,
    guid,
    legacy_record,
    ng_data,
    sized,
    spec_id,
)
from support.pe_images import Built

from trustauthority.codec.efi import (
    count_signatures,
    decode_partition_table,
    decode_signature_lists,
)
from trustauthority.codec.eventlog import decode_boot_log
from trustauthority.codec.ima import ImaStream, decode_ima_binary, encode_digest_and_path
from trustauthority.codec.ima_ascii import decode_ima_ascii
from trustauthority.codec.ima_log import decode_ima_log, is_ascii
from trustauthority.codec.pe import decode_pe
from trustauthority.codec.policy import decode_policy
from trustauthority.codec.runtimerules import decode_runtime_rules
from trustauthority.codec.x509_crl import decode_revocation_list
from trustauthority.codec.x509_extensions import decode_key_usage
from trustauthority.codec.x509_keys import check_certificate_signature
from trustauthority.errors import MalformedEvidence, PolicyInvalid
from trustauthority.model.bootlog import NO_REGISTER
from trustauthority.model.certificate import KeyUsage, SignatureAlgorithm

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
    for banks in (("sha1", "sha256"), ("sha256",), ("sha256", "sha1")):
        raw = good_log().event(register, kind, b"data", banks=banks).bytes
        if good:
            assert decode_boot_log(raw).events[-1].pcr == register
            continue
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
        (found,) = decode_signature_lists(raw)
        assert len(found.entries) == count_signatures(raw) == (size - 28) // 48
        return
    for read in (count_signatures, decode_signature_lists):
        with pytest.raises(MalformedEvidence):
            read(raw)


@pytest.mark.parametrize("header", [0, 1, 47, 48])
def test_a_vendor_header_may_fill_a_list(header):
    """A list whose vendor header leaves no room holds no entries, and one that leaves it is refused."""
    raw = guid(SHA256_LIST) + struct.pack("<III", 28 + header, header, 48) + bytes(header)
    assert count_signatures(raw) == 0
    assert [each.entries for each in decode_signature_lists(raw)] == [()]
    longer = raw[:20] + struct.pack("<I", header + 1) + raw[24:]
    with pytest.raises(MalformedEvidence, match=f"a vendor header of {header + 1} bytes"):
        decode_signature_lists(longer)
    with pytest.raises(MalformedEvidence):
        count_signatures(longer)


def test_a_partition_entry_may_be_longer_than_its_name():
    """UEFI 5.3.3: the name takes 72 bytes; what follows in a longer entry is not part of it."""
    name = ("p" * 36).encode("utf-16-le")
    entry = guid(GLOBAL) * 2 + struct.pack("<QQQ", 1, 2, 0) + name + b"more".ljust(128, b"x")
    header = b"EFI PART" + bytes(76) + struct.pack("<II", len(entry), 0)
    (found,) = decode_partition_table(header + struct.pack("<Q", 1) + entry).partitions
    assert (found.name, found.first_block, found.last_block) == ("p" * 36, 1, 2)


@pytest.mark.parametrize("name", [b".text", b".textX", b"12345678", b""])
def test_section_names_are_eight_bytes_at_most(name):
    """PE: shorter names are filled up with zeros, which are no part of them."""
    built = replace(Built(), sections=((name, b"code"),))
    (section,) = decode_pe(built.bytes).sections
    assert section.name == name.decode()


# --- runtime rules -------------------------------------------------------------------------------


def test_a_path_that_is_no_text_hides_no_other():
    """A path that no file can have approves nothing, and those after it still count."""
    digest = "ab" * 32
    files = {"/\ud800": [f"sha256:{digest}"], "/bin/x": [f"sha256:{digest}"]}
    rules = decode_runtime_rules(json.dumps({"version": 1, "files": files}).encode())
    assert list(rules.approved) == [encode_digest_and_path(b"/bin/x", "sha256", b"\xab" * 32)]


@pytest.mark.parametrize(
    ("document", "fields"),
    [(b"[]", "document"), (b"{", "document"), (b"\xff", "document"), (b"{}", "version")],
)
def test_a_refused_document_names_the_field(document, fields):
    """What a tool reads of the refusal: where it is wrong (issue 3: with the place)."""
    with pytest.raises(PolicyInvalid) as caught:
        decode_runtime_rules(document)
    assert caught.value.metadata["fields"] == fields


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


@pytest.mark.parametrize("size", [20, 32, 48, 64])
def test_the_size_of_template_digests_is_found_once(size):
    """New kernels log longer template digests: all entries of a log have those of the first (rule 51)."""
    one = struct.pack("<I", 10) + bytes(size) + sized(b"ima-ng") + sized(ng_data(b"/a"))
    stream = ImaStream()
    assert stream.digest_size is None
    assert [len(entry.template_digest) for entry in stream.feed(one * 2)] == [size, size]
    assert stream.digest_size == size


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


# --- certificates --------------------------------------------------------------------------------


def test_the_first_usage_without_a_name_grants_nothing():
    """Rule 27: KeyUsage names nine bits; a tenth is no usage, and no crash."""
    nine = b"\x03\x03\x07\xff\x80"
    assert decode_key_usage(nine) == frozenset(KeyUsage)
    assert decode_key_usage(b"\x03\x03\x06\xff\xc0") == frozenset(KeyUsage)
    assert decode_key_usage(b"\x03\x03\x06\x00\x40") == frozenset()


@pytest.mark.parametrize(("salt", "genuine"), [(20, True), (19, False), (21, False)])
def test_a_salt_that_is_not_said_has_twenty_bytes(salt, genuine):
    """RFC 4055 section 3.1: the default counts, though the hash is another than its default (rule 13)."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=salt)
    signature = key.sign(b"to be signed", pss, hashes.SHA256())
    sha256 = make.sequence(make.oid("2.16.840.1.101.3.4.2.1"))
    mask = make.sequence(make.oid("1.2.840.113549.1.1.8"), sha256)
    algorithm = SignatureAlgorithm(
        raw=b"",
        object_identifier="1.2.840.113549.1.1.10",
        parameters=make.sequence(make.tlv(0xA0, sha256), make.tlv(0xA1, mask)),
    )
    asked = (key.public_key(), b"to be signed", signature, algorithm)
    if genuine:
        check_certificate_signature(*asked)
    else:
        with pytest.raises(InvalidSignature):
            check_certificate_signature(*asked)


# --- policies ------------------------------------------------------------------------------------


def test_all_quoted_registers_may_be_asked_for():
    """N61: a set that is the whole of another contradicts nothing."""
    pcrs = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14]
    text = f'name = "p"\n[evidence]\npcrs = {pcrs}\nreplayed_pcrs = {pcrs}\n'
    assert list(decode_policy(text).evidence.replayed_pcrs) == pcrs


@pytest.mark.parametrize("pcr", [0, 1, 2, 3])
def test_each_register_of_the_firmware_shows_a_class(pcr):
    """N61: any one of PCR 0 to 3 tells the firmware, and no other does."""
    text = f'name = "p"\n[boot]\nhost_class = "required"\nbaseline_pcrs = [{pcr}, 7]\n'
    assert decode_policy(text).boot.baseline_pcrs == (pcr, 7)


@pytest.mark.parametrize("more", [make.integer(1), make.tlv(0x05), make.sequence()])
def test_an_entry_of_a_revocation_list_ends_with_its_extensions(more):
    """Rule 29: what follows in an entry could be another serial to somebody else, so it is refused."""
    reason = make.sequence(make.oid("2.5.29.21"), make.tlv(0x04, make.tlv(0x0A, b"\x01")))
    known = (make.integer(5), make.tlv(0x17, b"240601000000Z"), make.sequence(reason))

    def crl(*entry: bytes) -> bytes:
        algorithm = make.algorithm(make.SHA256_RSA)
        signed = make.sequence(
            make.integer(1),
            algorithm,
            make.sequence(),
            make.tlv(0x17, b"250101000000Z"),
            make.sequence(make.sequence(*entry)),
        )
        return make.sequence(signed, algorithm, make.bits(b"signature"))

    assert list(decode_revocation_list(crl(*known)).revoked) == [5]
    with pytest.raises(MalformedEvidence, match="follow"):
        decode_revocation_list(crl(*known, more))
