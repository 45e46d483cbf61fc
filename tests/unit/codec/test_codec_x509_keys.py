"""Signatures of certificates: only listed algorithms, and parameters that mean what they say."""

from unittest.mock import create_autospec

import pytest
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from support import ek_certificates as make

from trustauthority.codec.x509 import decode_certificate, decode_certificates
from trustauthority.codec.x509_crl import decode_revocation_list
from trustauthority.codec.x509_keys import (
    certificate_key,
    check_certificate_signature,
    uses_sha1,
)
from trustauthority.errors import AlgorithmUnsupported, MalformedEvidence

KEY = make.ca_key().public_key()
SHA256, SHA1, MGF1 = "2.16.840.1.101.3.4.2.1", "1.3.14.3.2.26", "1.2.840.113549.1.1.8"


def _check(der: bytes) -> None:
    certificate = decode_certificate(der)
    check_certificate_signature(
        KEY, certificate.to_be_signed, certificate.signature, certificate.signature_algorithm
    )


def _pss(parameters: bytes | None) -> bytes:
    return make.endorsement(algorithm_id=make.PSS, algorithm_parameters=parameters)


def _parameters(message: str, mask: str, mask_hash: str, salt: int) -> bytes:
    return make.sequence(
        make.tlv(0xA0, make.algorithm(message)),
        make.tlv(0xA1, make.sequence(make.oid(mask), make.algorithm(mask_hash))),
        make.tlv(0xA2, make.integer(salt)),
        make.tlv(0xA3, make.integer(1)),
    )


def test_a_pss_signature_verifies_with_its_own_salt_length() -> None:
    """Rule 11: RSAPSS, salt of digest length; the trailer field may be there."""
    _check(_pss(make.pss_parameters()))
    _check(_pss(_parameters(SHA256, MGF1, SHA256, 32)))


def test_another_salt_length_is_another_signature() -> None:
    """Rule 11: the parameters are signed with the rest and hold."""
    with pytest.raises(InvalidSignature):
        _check(_pss(make.pss_parameters(salt=20)))


@pytest.mark.parametrize(
    "parameters",
    [
        _parameters(SHA256, MGF1, SHA1, 32),
        _parameters(SHA256, "1.2.3.4", SHA256, 32),
        _parameters("1.2.3.4", MGF1, "1.2.3.4", 32),
        _parameters(SHA256, MGF1, SHA256, 65),
        _parameters(SHA256, MGF1, SHA256, -1),
    ],
)
def test_pss_parameters_outside_the_list_are_refused(parameters: bytes) -> None:
    """Rule 11: one hash for message and mask, MGF1, a salt no longer than a digest."""
    with pytest.raises(AlgorithmUnsupported):
        _check(_pss(parameters))


@pytest.mark.parametrize("parameters", [None, make.sequence()])
def test_absent_pss_parameters_mean_sha1(parameters: bytes | None) -> None:
    """Rule 12: the default of RFC 4055 is SHA-1, and counts as such."""
    assert uses_sha1(decode_certificate(_pss(parameters)).signature_algorithm)


def test_an_algorithm_of_another_kind_of_key_is_no_crash() -> None:
    """Rule 14: ECDSA under an RSA key, and an unknown OID."""
    certificate = decode_certificate(make.endorsement())
    for der in (
        make.endorsement(
            signer=make.ec_private_key(1),
            algorithm_id=make.SHA256_ECDSA,
            algorithm_parameters=None,
        ),
        make.endorsement(algorithm_id=make.PSS, algorithm_parameters=make.pss_parameters()),
    ):
        other = decode_certificate(der)
        key = KEY if "10045" in other.signature_algorithm.object_identifier else None
        with pytest.raises(AlgorithmUnsupported, match="does not fit"):
            check_certificate_signature(
                key or make.ec_private_key(1).public_key(),
                certificate.to_be_signed,
                certificate.signature,
                other.signature_algorithm,
            )


def test_ecdsa_signatures_verify_on_every_curve() -> None:
    """Rule 13: P-256, P-384, P-521 with their digests."""
    for size, identifier in (
        (256, make.SHA256_ECDSA),
        (384, make.SHA384_ECDSA),
        (521, make.SHA512_ECDSA),
    ):
        key = make.ec_private_key(5, size)
        certificate = decode_certificate(
            make.endorsement(signer=key, algorithm_id=identifier, algorithm_parameters=None)
        )
        check_certificate_signature(
            key.public_key(),
            certificate.to_be_signed,
            certificate.signature,
            certificate.signature_algorithm,
        )
        with pytest.raises(InvalidSignature):
            check_certificate_signature(
                key.public_key(),
                certificate.to_be_signed + b"\x00",
                certificate.signature,
                certificate.signature_algorithm,
            )


def test_a_key_is_built_once() -> None:
    """Speed: building a key costs more than a verification with it."""
    info = decode_certificate(make.endorsement()).public_key_info
    assert certificate_key(info) is certificate_key(info)


@pytest.mark.parametrize(
    "extensions",
    [
        [],
        [make.extension("2.5.29.19", make.sequence(make.integer(-1)))],
        [make.extension("2.5.29.37", make.sequence())],
        [make.extension("2.5.29.35", make.sequence(b"\x05\x00"))],
        [make.extension("2.5.29.14", b"\x05\x00")],
        [make.extension("2.5.29.17", make.sequence(make.tlv(0xA4, make.sequence(b"\x31\x00"))))],
    ],
)
def test_extensions_that_do_not_decode_are_malformed(extensions: list[bytes]) -> None:
    """Rule 45: the ones we read are read strictly."""
    with pytest.raises(MalformedEvidence):
        decode_certificate(make.endorsement(extensions=extensions))


def test_parts_that_nobody_needs_may_be_there() -> None:
    """Rule 25: unique identifiers, issuer names in the AKI, odd string types, other general names."""
    authority = make.sequence(
        make.tlv(0x80, make.CA_ID), make.tlv(0xA1, make.sequence()), make.tlv(0x82, b"\x05")
    )
    names = make.sequence(make.tlv(0x82, b"host"), make.tlv(0xA4, make.common_name("x")))
    certificate = decode_certificate(
        make.endorsement(
            issuer=make.common_name("x", tag=0x02),
            public_key_info=make.public_key_info(make.ek_key()) + make.tlv(0x81, b"\x00\x01"),
            extensions=[
                make.extension("2.5.29.35", authority),
                make.extension("2.5.29.17", names),
            ],
        )
    )
    assert certificate.issuer.text == "CN=#020178"
    assert certificate.authority_key_identifier is not None
    assert certificate.authority_key_identifier.serial_number == 5
    assert certificate.subject_alternative_name is not None
    assert certificate.subject_alternative_name.directory_names == 1
    assert certificate.label.startswith("serial 1267 of")


@pytest.mark.parametrize("changes", [{"version": None}, {"version": 1}])
def test_extensions_belong_to_version_3(changes: dict[str, int | None]) -> None:
    """RFC 5280 4.1.2.1."""
    with pytest.raises(MalformedEvidence, match="extensions in a certificate of version"):
        decode_certificate(make.endorsement(**changes))


def test_bundles_and_lists_have_a_size_limit() -> None:
    """Rule 65: caps before decoding."""
    for decode, size in ((decode_certificates, 64 << 20), (decode_revocation_list, 16 << 20)):
        with pytest.raises(MalformedEvidence, match="too long"):
            decode(bytes(size + 1))


def test_a_crl_entry_with_critical_meaning_is_refused() -> None:
    """RFC 5280 5.3: an entry whose critical extension we ignored could be somebody else's."""
    entry = make.sequence(
        make.integer(5),
        make.tlv(0x17, b"240601000000Z"),
        make.sequence(make.extension("2.5.29.29", b"\x30\x00", critical=True)),
    )
    algorithm = make.algorithm(make.SHA256_RSA)
    signed = make.sequence(
        algorithm, make.CA_NAME, make.tlv(0x17, b"240601000000Z"), make.sequence(entry)
    )
    with pytest.raises(MalformedEvidence, match="critical extension"):
        decode_revocation_list(make.sequence(signed, algorithm, make.bits(bytes(256))))
    plain = make.sequence(algorithm, make.CA_NAME, make.tlv(0x17, b"240601000000Z"))
    other = make.algorithm(make.SHA384_RSA)
    with pytest.raises(MalformedEvidence, match="differs"):
        decode_revocation_list(make.sequence(plain, other, make.bits(bytes(256))))


@pytest.mark.parametrize("surprise", [ValueError("odd"), UnsupportedAlgorithm("none")])
def test_what_a_library_can_not_compute_is_no_signature(surprise: Exception) -> None:
    """Rule 14: a surprise inside of the library is a refusal, never a pass."""
    key = create_autospec(rsa.RSAPublicKey, instance=True)
    key.verify.side_effect = surprise
    algorithm = decode_certificate(make.endorsement()).signature_algorithm
    with pytest.raises(InvalidSignature) as caught:
        check_certificate_signature(key, b"message", b"\x01" * 256, algorithm)
    assert caught.value.__cause__ is surprise
