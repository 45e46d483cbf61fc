"""Genuine certificates of real vendors: every one that has its issuer in the pool chains by signature."""

from datetime import UTC, datetime

import pytest
from cryptography.exceptions import InvalidSignature
from support.corpus import corpus_folder

from trustauthority.codec.x509 import decode_certificate, decode_certificates
from trustauthority.codec.x509_keys import certificate_key, check_certificate_signature
from trustauthority.errors import AlgorithmUnsupported
from trustauthority.model.certificate import Certificate
from trustauthority.model.endorsement import CaAnchor, CertificateRole, EndorsementPolicy
from trustauthority.verification.endorsement import verify_certificate, verify_endorsement
from trustauthority.verification.endorsement_chain import AnchorSet, CertificatePool

NOW = datetime(2026, 11, 1, tzinfo=UTC)


def _pool() -> list[Certificate]:
    files = [*corpus_folder("ca-pool").iterdir(), *corpus_folder("certs").glob("*.der")]
    found = [one for file in sorted(files) for one in decode_certificates(file.read_bytes())]
    return list({one.fingerprint: one for one in found if one.is_authority}.values())


def _signed_by(certificate: Certificate, issuer: Certificate) -> bool:
    try:
        check_certificate_signature(
            certificate_key(issuer.public_key_info),
            certificate.to_be_signed,
            certificate.signature,
            certificate.signature_algorithm,
        )
    except (InvalidSignature, AlgorithmUnsupported):
        return False
    return True


def test_every_ca_whose_issuer_is_there_chains_by_signature() -> None:
    """A.1, rule 25: over the original bytes, Nuvoton's unsorted names and Intel's roots included."""
    authorities = _pool()
    pool = CertificatePool(authorities)
    issued = [one for one in authorities if pool.issuers_of(one)]
    broken = [
        one.label
        for one in issued
        if not any(_signed_by(one, issuer) for issuer in pool.issuers_of(one))
    ]
    assert broken == []
    assert len(issued) > 480


def test_every_self_signed_ca_of_the_pool_is_its_own_chain() -> None:
    """Rule 25: none of the vendors' roots breaks a rule of ours, but for being old."""
    policy = EndorsementPolicy(ignore_ca_not_after=True)
    roots = [one for one in _pool() if one.is_self_issued]
    anchors = AnchorSet(CaAnchor(certificate=one) for one in roots)
    for root in roots:
        chain = verify_certificate(
            root, intermediates=CertificatePool(), anchors=anchors, now=NOW, policy=policy
        )
        assert chain.certificates == (root,)


@pytest.mark.parametrize(
    ("name", "manufacturer"),
    [
        ("keylime_test_cert_utils_py_73ffb9ae.der", "STM"),
        ("keylime_test_cert_utils_py_85f38843.der", "STM"),
        ("keylime_tpm2_objects_test_py_234480e4.der", "IFX"),
    ],
)
def test_eks_of_chips_chain_to_their_vendor(name: str, manufacturer: str) -> None:
    """Rule 25: RSA and ECC EKs of STMicroelectronics and Infineon."""
    authorities = _pool()
    endorsement = verify_endorsement(
        (corpus_folder("certs") / name).read_bytes(),
        intermediates=CertificatePool(authorities),
        anchors=AnchorSet(CaAnchor(certificate=one) for one in authorities if one.is_self_issued),
        now=NOW,
    )
    assert endorsement.tpm is not None
    assert endorsement.tpm.manufacturer_name == manufacturer
    assert len(endorsement.chain) >= 3


@pytest.mark.parametrize(
    "name",
    [
        "go_tpm_tools_uca_tpm_ecc_sign_cert_pem_9c49baf0.der",
        "py_webauthn_test_verify_registration_response_tpm_py_550d195b.der",
    ],
)
def test_aks_of_a_cloud_and_of_windows_chain_as_aks(name: str) -> None:
    """Rule 27: one has the purpose of EKs, the other of AIKs; neither is an EK."""
    authorities = _pool()
    chain = verify_certificate(
        decode_certificate((corpus_folder("certs") / name).read_bytes()),
        intermediates=CertificatePool(authorities),
        anchors=AnchorSet(CaAnchor(certificate=one) for one in authorities if one.is_self_issued),
        now=NOW,
    )
    assert chain.role is CertificateRole.ATTESTATION_KEY
