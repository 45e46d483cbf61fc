"""Certificates: what strict parsers refuse is read, what is broken is refused with part and offset."""

import base64
import json
from hashlib import sha256

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ek_certificates as make
from support.corpus import corpus_folder

from trustauthority.codec.x509 import decode_certificate, decode_certificates
from trustauthority.codec.x509_framing import MAX_CERTIFICATE, der_sequence
from trustauthority.codec.x509_keys import certificate_key
from trustauthority.errors import AlgorithmUnsupported, MalformedEvidence
from trustauthority.model.certificate import Certificate, KeyUsage, TpmIdentity

GOOD = make.endorsement()


def _pem(der: bytes, label: str = "CERTIFICATE") -> bytes:
    body = base64.encodebytes(der).decode()
    return f"-----BEGIN {label}-----\n{body}-----END {label}-----\n".encode()


def test_every_field_of_a_good_certificate_is_read() -> None:
    """Rule 25: the model holds what the bytes say, and the bytes that were signed."""
    certificate = decode_certificate(GOOD)
    oracle = x509.load_der_x509_certificate(GOOD)
    assert certificate.raw == GOOD
    assert certificate.fingerprint == sha256(GOOD).digest()
    assert certificate.to_be_signed == oracle.tbs_certificate_bytes
    assert certificate.signature == oracle.signature
    assert certificate.serial_number == oracle.serial_number == 4711
    assert certificate.not_before == oracle.not_valid_before_utc
    assert certificate.not_after == oracle.not_valid_after_utc
    assert certificate.issuer.text == "CN=Vector TPM EK CA 001"
    assert certificate.subject.is_empty
    assert certificate.key_usage == {KeyUsage.KEY_ENCIPHERMENT}
    assert certificate.extended_key_usage == {make.EK_PURPOSE}
    assert certificate.authority_key_identifier is not None
    assert certificate.authority_key_identifier.key_identifier == make.CA_ID
    assert certificate.subject_alternative_name is not None
    assert certificate.subject_alternative_name.tpm == TpmIdentity(
        manufacturer="id:49465800", model="SLB 9670", version="id:00070055"
    )
    assert not certificate.is_authority


def test_the_key_of_an_oaep_certificate_is_a_plain_rsa_key() -> None:
    """Rule 25, A.1: the RSAES-OAEP type, which other libraries refuse, is unwrapped."""
    der = make.endorsement(public_key_info=make.oaep_key_info(make.ek_key()))
    key = certificate_key(decode_certificate(der).public_key_info)
    assert isinstance(key, rsa.RSAPublicKey)
    assert key == make.ek_key().public_key()


def test_a_key_of_absurd_size_is_refused_before_any_mathematics() -> None:
    """Rule 65: RSA-16384 costs an attacker nothing."""
    spki = make.sequence(
        make.algorithm("1.2.840.113549.1.1.1"),
        make.bits(make.sequence(make.integer((1 << 16383) + 1), make.integer(65537))),
    )
    certificate = decode_certificate(make.endorsement(public_key_info=spki))
    with pytest.raises(AlgorithmUnsupported):
        certificate_key(certificate.public_key_info)


@pytest.mark.parametrize("numbers", [(0, 65537), (-5, 65537), ((1 << 2047) + 1, 2), (15, 0)])
def test_numbers_that_make_no_rsa_key_are_malformed(numbers: tuple[int, int]) -> None:
    """Rule 14: never a crash of a library."""
    inner = make.sequence(*map(make.integer, numbers))
    spki = make.sequence(make.algorithm("1.2.840.113549.1.1.1"), make.bits(inner))
    certificate = decode_certificate(make.endorsement(public_key_info=spki))
    with pytest.raises(MalformedEvidence):
        certificate_key(certificate.public_key_info)


def test_a_curve_given_by_its_parameters_is_refused() -> None:
    """CVE-2020-0601: explicit parameters choose their own generator."""
    spki = make.sequence(
        make.algorithm("1.2.840.10045.2.1", make.sequence(make.integer(1))),
        make.bits(b"\x04" + bytes(64)),
    )
    certificate = decode_certificate(make.endorsement(public_key_info=spki))
    with pytest.raises(AlgorithmUnsupported, match="named"):
        certificate_key(certificate.public_key_info)


def test_a_certificate_of_more_than_64_kib_is_refused() -> None:
    """N20: 1 MiB of certificate costs nothing."""
    padding = make.extension("1.2.3.4", bytes(MAX_CERTIFICATE))
    for data in (make.endorsement(extensions=make.ek_extensions(extra=padding)), bytes(1 << 20)):
        with pytest.raises(MalformedEvidence):
            decode_certificate(data)


def test_names_with_control_characters_are_escaped() -> None:
    """N44: what is shown can't move the cursor or add lines."""
    name = make.common_name("a\nb\x1b[0m,=")
    assert decode_certificate(make.endorsement(issuer=name)).issuer.text == (
        "CN=a\\u000ab\\u001b[0m\\,\\="
    )


def test_string_types_do_not_make_another_name() -> None:
    """RFC 5280 7.1: AMD and ST spell one name as UTF8String here and PrintableString there."""
    one = decode_certificate(make.endorsement(issuer=make.common_name("Some  CA", tag=0x13)))
    two = decode_certificate(make.endorsement(issuer=make.common_name("some CA ", tag=0x0C)))
    assert one.issuer.canonical == two.issuer.canonical
    assert one.issuer.raw != two.issuer.raw


def test_key_usage_bits_without_a_name_grant_nothing() -> None:
    """Rule 25: two ST CAs set bit 14; the certificate is still read."""
    usage = make.extension("2.5.29.15", bytes.fromhex("0303010402"), critical=True)
    certificate = decode_certificate(make.endorsement(extensions=make.ek_extensions(usage=usage)))
    assert certificate.key_usage == {KeyUsage.KEY_CERT_SIGN}


def test_a_bundle_gives_each_certificate_in_order() -> None:
    """Text between the blocks and CRLF are part of what vendors ship."""
    data = b"# CA\r\n" + _pem(make.root()) + b"noise\n" + _pem(GOOD).replace(b"\n", b"\r\n")
    assert [one.raw for one in decode_certificates(data)] == [make.root(), GOOD]


@pytest.mark.parametrize(
    "data",
    [
        b"-----BEGIN CERTIFICATE-----\nMIIB\n",
        _pem(GOOD, "PRIVATE KEY"),
        _pem(GOOD + b"\x01"),
        _pem(b""),
        b"hello",
    ],
)
def test_a_bundle_without_whole_certificates_is_refused(data: bytes) -> None:
    """Rule 24: nothing is skipped in a file that must hold certificates."""
    with pytest.raises(MalformedEvidence):
        decode_certificates(data)


@pytest.mark.parametrize("padding", [b"", bytes(9), b"\xff" * 700])
def test_certificates_one_after_the_other_are_a_bundle(padding: bytes) -> None:
    """Rule 25: so the CAs of an EK stand in NV; Intel keeps its chain there and nowhere else."""
    data = make.root() + GOOD + make.root() + padding
    assert [one.raw for one in decode_certificates(data)] == [make.root(), GOOD, make.root()]
    assert [one.raw for one in decode_certificates(GOOD + padding)] == [GOOD]


@pytest.mark.parametrize("label", [None, "PKCS7", "CMS", "CERTIFICATE"])
def test_certificates_in_pkcs7_are_a_bundle(label: str | None) -> None:
    """Rule 25: the CAs of Azure's vTPMs come so, even under the label of a certificate."""
    data = make.pkcs7(make.root(), GOOD)
    assert [
        one.raw for one in decode_certificates(data if label is None else _pem(data, label))
    ] == [make.root(), GOOD]
    library = pkcs7.serialize_certificates(
        [x509.load_der_x509_certificate(one) for one in (make.root(), GOOD)], Encoding.DER
    )
    assert {one.raw for one in decode_certificates(library)} == {make.root(), GOOD}


SIGNED_DATA, INTEGER, SET = "1.2.840.113549.1.7.2", make.tlv(0x02, b"\x01"), make.tlv(0x31, b"")
INSIDE = make.sequence(make.oid("1.2.840.113549.1.7.1"))


def _signed(*fields: bytes, behind: bytes = b"") -> bytes:
    """PKCS #7 with these fields of SignedData."""
    return make.sequence(make.oid(SIGNED_DATA), make.tlv(0xA0, make.sequence(*fields)), behind)


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (make.sequence(b"\x06\x00"), "contentType"),
        (make.pkcs7(GOOD, kind="1.2.840.113549.1.7.1"), "contentType"),
        (make.sequence(make.oid(SIGNED_DATA)), "content"),
        (make.sequence(make.oid(SIGNED_DATA), INTEGER), "content"),
        (make.sequence(make.oid(SIGNED_DATA), make.tlv(0xA0, INTEGER)), "SignedData"),
        (_signed(SET), "version"),
        (_signed(INTEGER, INTEGER), "digestAlgorithms"),
        (_signed(INTEGER, SET, SET), "content"),
        (_signed(INTEGER, SET, INSIDE, SET), "certificates"),
        (_signed(INTEGER, SET, INSIDE, make.tlv(0xA0, b"\xa1\x00")), "certificate"),
        (_signed(INTEGER, SET, INSIDE, make.tlv(0xA0, GOOD[:-1])), "certificate"),
        (_signed(INTEGER, SET, INSIDE, make.tlv(0xA0, GOOD), b"\x31\x01"), "signerInfos"),
        (_signed(INTEGER, SET, INSIDE, make.tlv(0xA0, GOOD), behind=INTEGER), "certificate"),
        (make.pkcs7(GOOD, behind=b"\x05\x00"), "content"),
        (make.pkcs7(), "certificate bundle"),
        (_pem(make.pkcs7(), "PKCS7"), "certificate bundle"),
        (make.pkcs7(GOOD)[:-1], "certificate"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pkcs7_without_whole_certificates_is_refused(data: bytes, part: str) -> None:
    """Rule 24: nothing is skipped in a file that must hold certificates, and the place is named."""
    with pytest.raises(MalformedEvidence) as caught:
        decode_certificates(data)
    assert caught.value.part == part


def test_other_pem_blocks_beside_a_certificate_are_passed_over() -> None:
    """OpenSSL writes parameters and keys into the same file; one certificate among them is one."""
    other = _pem(b"\x30\x00", "EC PARAMETERS")
    assert decode_certificate(other + _pem(GOOD) + other).raw == GOOD


def test_a_long_row_of_certificates_is_read() -> None:
    """The limit of 64 KiB is that of one certificate, not of a bundle."""
    assert len(decode_certificates(GOOD * 100)) == 100
    assert len(GOOD) * 100 > MAX_CERTIFICATE


def test_a_row_begins_with_a_certificate() -> None:
    """Padding alone is none."""
    with pytest.raises(MalformedEvidence):
        list(der_sequence(bytes(4), part="certificate"))


def test_an_nv_header_for_something_else_than_a_certificate() -> None:
    """Rule 24: a partial certificate is refused by its tag, whatever size it announces."""
    head = b"\x10\x01\x00" + (len(GOOD) + 2).to_bytes(2, "big")
    assert decode_certificate(head + b"\x10\x02" + GOOD).raw == GOOD
    with pytest.raises(MalformedEvidence) as caught:
        decode_certificate(head + b"\x10\x03" + GOOD)
    assert caught.value.offset == 5


def test_an_ek_certificate_is_no_bundle() -> None:
    """A file that must be one certificate is not searched for one."""
    with pytest.raises(MalformedEvidence):
        decode_certificate(make.pkcs7(GOOD))


@pytest.mark.parametrize(
    "rest",
    [b"\x01", b"\x00\xff", make.root()[:-1], b"\x30", b"\x30\x00", bytes(4) + make.root()],
)
def test_what_is_no_certificate_between_them_is_refused(rest: bytes) -> None:
    """Rule 24: nothing but padding of one octet, and nothing behind it."""
    with pytest.raises(MalformedEvidence):
        decode_certificates(GOOD + rest)


@pytest.mark.parametrize(
    "data",
    [
        GOOD + b"\x00\xff",
        GOOD + b"\x20" * 8,
        GOOD + GOOD,
        b"\x10\x01\x00" + (len(GOOD) + 100).to_bytes(2, "big") + b"\x10\x02" + GOOD,
        b"\x10\x01\x01" + (len(GOOD) + 2).to_bytes(2, "big") + b"\x10\x02" + GOOD,
    ],
)
def test_only_constant_padding_may_follow(data: bytes) -> None:
    """Rule 24: what follows the certificate in NV is 00 or FF, all of it."""
    with pytest.raises(MalformedEvidence):
        decode_certificate(data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_a_certificate_or_malformed(data: bytes) -> None:
    """Issue 3: total over bytes; never another error."""
    for prefix in (b"", b"\x30", b"-----BEGIN CERTIFICATE-----\n", b"\x10\x01\x00"):
        offset = 0
        try:
            certificate = decode_certificate(prefix + data)
        except MalformedEvidence as error:
            offset = error.offset
        else:
            assert isinstance(certificate, Certificate)
        assert 0 <= offset <= len(prefix + data)


@settings(max_examples=300, deadline=None)
@given(
    position=st.integers(0, len(GOOD) - 1),
    replacement=st.binary(max_size=6),
    removed=st.integers(0, 6),
)
def test_a_damaged_certificate_is_a_certificate_or_malformed(
    position: int, replacement: bytes, removed: int
) -> None:
    """Issue 3: damage near real structure reaches every branch; keys included."""
    damaged = GOOD[:position] + replacement + GOOD[position + removed :]
    try:
        certificate = decode_certificate(damaged)
    except MalformedEvidence:
        return
    try:
        certificate_key(certificate.public_key_info)
    except (MalformedEvidence, AlgorithmUnsupported):
        return
    assert certificate.raw == damaged[: len(certificate.raw)]


def test_every_certificate_of_the_vendor_pool_parses() -> None:
    """Rule 25, A.1: all 510 CA certificates of TPM vendors, and both bundles."""
    folder = corpus_folder("ca-pool")
    counts = [len(decode_certificates(file.read_bytes())) for file in sorted(folder.iterdir())]
    assert len(counts) >= 510
    assert sum(counts) > len(counts)


def test_the_corpus_index_holds() -> None:
    """Rule 25: subject, issuer, key, end and critical extensions are what the index says."""
    folder = corpus_folder("certs")
    for expected in json.loads((folder / "index.json").read_text()):
        certificate = decode_certificate((folder / expected["fn"]).read_bytes())
        key = certificate_key(certificate.public_key_info)
        kind = "RSA" if isinstance(key, rsa.RSAPublicKey) else "EC"
        critical = {one.object_identifier for one in certificate.extensions if one.critical}
        assert certificate.issuer.text == expected["issuer"]
        assert certificate.subject.text == expected["subject"]
        assert f"{kind}{key.key_size}" == expected["key"]
        assert certificate.not_after.date().isoformat() == expected["na"]
        assert critical == {one.split(":")[0] for one in expected["crit"]}
