"""The truth about names, certifications and quotes: made by a TPM 2.0 (swtpm), judged by us."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from support.swtpm import EK_P384_HANDLE, EK_RSA_HANDLE, SoftwareTpm, TpmMaker
from tpm2_pytss import ESAPI, ESYS_TR
from tpm2_pytss.constants import TPM2_ALG, TPM2_SE, TPMA_OBJECT
from tpm2_pytss.types import (
    TPM2B_DATA,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE,
    TPM2B_SENSITIVE_CREATE,
    TPML_PCR_SELECTION,
    TPMT_SIG_SCHEME,
    TPMT_SYM_DEF,
)

from trustauthority.codec.tpm import decode_public, object_name
from trustauthority.errors import ResidencyUnproven, TpmClockRolledBack
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.tpm import PcrSelection
from trustauthority.verification.challenge import Purpose, qualifying_data
from trustauthority.verification.ektemplate import check_endorsement_key
from trustauthority.verification.quote import QuoteExpectation, verify_quote
from trustauthority.verification.residency import (
    ClaimedKeys,
    EnrolmentBinding,
    KeyCertification,
    certification_data,
    verify_residency,
)

pytestmark = [pytest.mark.swtpm, pytest.mark.xdist_group("swtpm")]

RESIDENT = (
    TPMA_OBJECT.FIXEDTPM
    | TPMA_OBJECT.FIXEDPARENT
    | TPMA_OBJECT.SENSITIVEDATAORIGIN
    | TPMA_OBJECT.USERWITHAUTH
    | TPMA_OBJECT.NODA
)
SIGNER = RESIDENT | TPMA_OBJECT.SIGN_ENCRYPT
STORAGE = RESIDENT | TPMA_OBJECT.RESTRICTED | TPMA_OBJECT.DECRYPT
OPEN_SCHEME = TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL)
BINDING = EnrolmentBinding(
    authority_ca_sha256=hashlib.sha256(b"ca").digest(),
    cluster="east",
    host_label="node-1",
    challenge=b"token",
)
SELECTION = (
    PcrSelection(bank=HashAlgorithm.SHA1, indices=(0, 7)),
    PcrSelection(bank=HashAlgorithm.SHA256, indices=(0, 7, 16)),
)


class Host:
    """The keys of a host on a powered TPM, as an agent makes them."""

    def __init__(self, tpm: ESAPI, ek_handle: int, ak_template: str) -> None:
        self.tpm = tpm
        self.ek = tpm.tr_from_tpmpublic(ek_handle)
        self.ek_area = tpm.read_public(self.ek)[0].publicArea
        self.ak, self.ak_area = self._child_of_ek(ak_template)
        self.tls, self.tls_area = self._primary("ecc256:ecdsa-sha256:null", SIGNER)
        self.storage, self.storage_area = self._primary("ecc256:null:aes128cfb", STORAGE)

    def claimed(self) -> ClaimedKeys:
        """Everything that an enrolment sends."""
        return ClaimedKeys(
            ek=decode_public(self.ek_area.marshal()),
            ak=decode_public(self.ak_area.marshal()),
            tls=decode_public(self.tls_area.marshal()),
            storage=decode_public(self.storage_area.marshal()),
            tls_certification=self.certify(self.tls, "tls"),
            storage_certification=self.certify(self.storage, "storage"),
        )

    def quote(self, extra_data: bytes) -> tuple[bytes, bytes, bytes]:
        """TPMS_ATTEST, TPMT_SIGNATURE and the concatenated PCR values."""
        selected = TPML_PCR_SELECTION.parse("sha1:0,7+sha256:0,7,16")
        attest, signature = self.tpm.quote(self.ak, selected, TPM2B_DATA(extra_data))
        values = b"".join(
            bytes(self.tpm.pcr_read(f"{entry.bank}:{index}")[2][0])
            for entry in SELECTION
            for index in entry.indices
        )
        return bytes(attest), signature.marshal(), values

    def _primary(self, template: str, attributes: TPMA_OBJECT):
        public = TPM2B_PUBLIC.parse(template, attributes)
        handle, made, *_ = self.tpm.create_primary(TPM2B_SENSITIVE_CREATE(), public, ESYS_TR.OWNER)
        return handle, made.publicArea

    def _child_of_ek(self, template: str):
        public = TPM2B_PUBLIC.parse(template, SIGNER | TPMA_OBJECT.RESTRICTED)
        with self._ek_session() as session:
            private, made, *_ = self.tpm.create(
                self.ek, TPM2B_SENSITIVE_CREATE(), public, session1=session
            )
        with self._ek_session() as session:
            handle = self.tpm.load(self.ek, private, made, session1=session)
        return handle, made.publicArea

    @contextmanager
    def _ek_session(self) -> Iterator[ESYS_TR]:
        """What an EK of this range asks for: policy A, or its empty password."""
        if self.ek_area.objectAttributes & TPMA_OBJECT.USERWITHAUTH:
            yield ESYS_TR.PASSWORD
            return
        session = self.tpm.start_auth_session(
            ESYS_TR.NONE,
            ESYS_TR.NONE,
            TPM2_SE.POLICY,
            TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL),
            TPM2_ALG.SHA256,
        )
        self.tpm.policy_secret(ESYS_TR.ENDORSEMENT, session, b"", b"", b"", 0)
        yield session
        self.tpm.flush_context(session)

    def certify(self, key: ESYS_TR, role: str) -> KeyCertification:
        """TPM2_Certify of a loaded key by the AK."""
        ek = decode_public(self.ek_area.marshal())
        ak_name = object_name(decode_public(self.ak_area.marshal()))
        attest, signature = self.tpm.certify(
            key, self.ak, TPM2B_DATA(certification_data(BINDING, ek, ak_name, role)), OPEN_SCHEME
        )
        return KeyCertification(attest=bytes(attest), signature=signature.marshal())


@pytest.fixture(scope="module")
def tpm(tmp_path_factory):
    """A manufactured TPM, powered."""
    folder = tmp_path_factory.mktemp("residency")
    maker = TpmMaker(folder / "maker")
    with SoftwareTpm.manufacture(folder / "tpm", maker=maker, serial="host-a") as made:
        yield made


@pytest.mark.parametrize(
    ("handle", "template", "expected"),
    [
        (EK_RSA_HANDLE, "ecc256:ecdsa-sha256:null", "L-1"),
        (EK_RSA_HANDLE, "rsa2048:rsapss-sha256:null", "L-1"),
        (EK_P384_HANDLE, "ecc256:ecdsa-sha256:null", "H-3"),
    ],
)
def test_keys_of_a_tpm_are_resident_and_quote(tpm, handle, template, expected):
    """Names and qualified names are the TPM's own; its quotes verify and can't be replayed (N17)."""
    with tpm.connect() as esapi:
        host = Host(esapi, handle, template)
        claimed = host.claimed()
        keys = verify_residency(claimed, BINDING)
        data = qualifying_data(b"challenge", keys.tls_name, Purpose.ATTEST)
        _let_the_clock_move(esapi, keys.clock_info.clock)
        attest, signature, values = host.quote(data)

        assert check_endorsement_key(claimed.ek).name == expected
        assert keys.ak_name == bytes(esapi.tr_get_name(host.ak))
        assert keys.ak_qualified_name == bytes(esapi.read_public(host.ak)[2])
        assert keys.storage_name == bytes(esapi.tr_get_name(host.storage))
        for loaded in (host.ak, host.tls, host.storage):
            esapi.flush_context(loaded)

    expectation = QuoteExpectation(
        attestation_key=claimed.ak,
        qualified_name=keys.ak_qualified_name,
        qualifying_data=data,
        selection=SELECTION,
        last_clock=keys.clock_info,
    )
    verified = verify_quote(
        attest=attest, signature=signature, pcr_values=values, expectation=expectation
    )
    assert verified.pcrs[HashAlgorithm.SHA256][16] == bytes(32)
    with pytest.raises(TpmClockRolledBack):
        verify_quote(
            attest=attest,
            signature=signature,
            pcr_values=values,
            expectation=QuoteExpectation(
                attestation_key=claimed.ak,
                qualified_name=keys.ak_qualified_name,
                qualifying_data=data,
                selection=SELECTION,
                last_clock=verified.clock_info,
            ),
        )


def _let_the_clock_move(esapi, after: int) -> None:
    """A TPM counts milliseconds, and this machine may sign twice in one."""
    deadline = time.monotonic() + 5
    while int(esapi.read_clock().clockInfo.clock) <= after:
        assert time.monotonic() < deadline, "the clock of the TPM stands still"


def test_software_key_is_certified_by_the_tpm_and_refused_by_us(tpm):
    """An AK happily certifies a software key; attributes and name give it away (N82)."""
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    honest = TPM2B_PUBLIC.from_pem(
        pem, objectAttributes=TPMA_OBJECT.SIGN_ENCRYPT | TPMA_OBJECT.USERWITHAUTH
    )
    honest.publicArea.parameters.eccDetail.scheme.scheme = TPM2_ALG.NULL
    lying = TPM2B_PUBLIC.from_pem(pem, objectAttributes=SIGNER)
    with tpm.connect() as esapi:
        host = Host(esapi, EK_P384_HANDLE, "ecc256:ecdsa-sha256:null")
        claimed = host.claimed()
        esapi.flush_context(host.storage)
        loaded = esapi.load_external(honest, TPM2B_SENSITIVE.from_pem(pem), hierarchy=ESYS_TR.NULL)
        certification = host.certify(loaded, "tls")
        for handle in (host.ak, host.tls, loaded):
            esapi.flush_context(handle)

    shown = replace(
        claimed,
        tls=decode_public(honest.publicArea.marshal()),
        tls_certification=certification,
    )
    with pytest.raises(ResidencyUnproven, match="tls: fixedTPM is not set"):
        verify_residency(shown, BINDING)
    with pytest.raises(ResidencyUnproven, match="tls: name: the AK certified another key"):
        verify_residency(replace(shown, tls=decode_public(lying.publicArea.marshal())), BINDING)
