"""A software TPM's identity and its life of resets: what host tests rely on, shown once."""

import os
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from support.boots import BOOTS, read_pcrs, replay_boot
from support.swtpm import (
    EK_P384_CERTIFICATE,
    EK_P384_HANDLE,
    EK_RSA_CERTIFICATE,
    EK_RSA_HANDLE,
    SoftwareTpm,
    SoftwareTpmFailed,
    TpmMaker,
)
from tpm2_pytss import ESYS_TR, TSS2_Exception
from tpm2_pytss.types import TPM2B_SENSITIVE_CREATE
from tpm2_pytss.utils import NVReadEK, create_ek_template

pytestmark = [pytest.mark.swtpm, pytest.mark.xdist_group("swtpm-power")]


@pytest.fixture(scope="module")
def maker(tmp_path_factory):
    """One TPM manufacturer."""
    return TpmMaker(tmp_path_factory.mktemp("power") / "maker")


@pytest.fixture(scope="module")
def factory_new(maker, tmp_path_factory):
    """One manufactured TPM; tests work on clones of it, which is faster than making each."""
    return SoftwareTpm.manufacture(tmp_path_factory.mktemp("power") / "tpm", maker=maker)


@pytest.fixture
def tpm(factory_new, tmp_path):
    """A running TPM of its own for each test."""
    with factory_new.copy_state(tmp_path / "tpm") as running:
        yield running


def certificate(path) -> x509.Certificate:
    """The first certificate of a PEM file."""
    return x509.load_pem_x509_certificate(path.read_bytes())


def persistent_key(tpm: SoftwareTpm, handle: int) -> bytes:
    """The public key (PEM) of a persistent object."""
    with tpm.connect() as esapi:
        return esapi.read_public(esapi.tr_from_tpmpublic(handle))[0].to_pem()


@pytest.mark.parametrize(
    ("index", "handle"),
    [(EK_RSA_CERTIFICATE, EK_RSA_HANDLE), (EK_P384_CERTIFICATE, EK_P384_HANDLE)],
)
def test_ek_certificates_are_in_nv_and_chain_to_the_maker(tpm, maker, index, handle):
    """NV holds the certificate of the very EK in the TPM, issued under the maker's root (N20)."""
    ek = x509.load_der_x509_certificate(tpm.read_nv(index))
    issuer, root = certificate(maker.issuer_certificate), certificate(maker.root_certificate)
    ek.verify_directly_issued_by(issuer)
    issuer.verify_directly_issued_by(root)
    root.verify_directly_issued_by(root)
    assert ek.public_key() == load_pem_public_key(persistent_key(tpm, handle))
    assert ek.not_valid_before_utc <= datetime.now(UTC)


def test_both_kinds_of_ek_are_there(tpm):
    """RSA-2048 and P-384, the two EKs of design.md 6.1."""
    keys = [
        x509.load_der_x509_certificate(tpm.read_nv(index)).public_key()
        for index in (EK_RSA_CERTIFICATE, EK_P384_CERTIFICATE)
    ]
    assert isinstance(keys[0], rsa.RSAPublicKey)
    assert keys[0].key_size == 2048
    assert isinstance(keys[1], ec.EllipticCurvePublicKey)
    assert isinstance(keys[1].curve, ec.SECP384R1)


def test_another_maker_with_the_same_names_does_not_vouch(tpm, tmp_path):
    """Names are no proof: the imitator's chain has equal subjects and fails on keys (N20)."""
    other = TpmMaker(tmp_path / "imitator")
    SoftwareTpm.manufacture(tmp_path / "imitated", maker=other)
    ek = x509.load_der_x509_certificate(tpm.read_nv(EK_RSA_CERTIFICATE))
    imitator = certificate(other.issuer_certificate)
    assert imitator.subject == ek.issuer
    with pytest.raises(InvalidSignature):
        ek.verify_directly_issued_by(imitator)


def test_a_power_cut_is_a_tpm_reset(tpm):
    """resetCount grows, so grants of the boot before end (pitfalls rule 16)."""
    before = tpm.identity()
    tpm.reset()
    after = tpm.identity()
    assert (after.reset_count, after.restart_count) == (before.reset_count + 1, 0)


def test_an_orderly_reboot_is_a_tpm_reset_too(tpm):
    """Shutdown(CLEAR) then Startup(CLEAR): resetCount grows (rule 16)."""
    before = tpm.identity()
    tpm.shutdown_clear()
    assert tpm.identity().reset_count == before.reset_count + 1


def test_a_restart_after_shutdown_state_counts_restarts(tpm):
    """Shutdown(STATE) then Startup(CLEAR): restartCount grows and the PCRs are gone (rule 16)."""
    replay_boot(tpm.tcti, BOOTS / "good")
    before = tpm.identity()
    tpm.shutdown_state()
    after = tpm.identity()
    assert after.reset_count == before.reset_count
    assert after.restart_count == before.restart_count + 1
    assert read_pcrs(tpm.tcti, ("sha256",))["sha256"][4] == bytes(32)


def test_a_resume_keeps_the_pcrs(tpm):
    """Suspend and wake: the measured boot is still there, only restartCount grew (rule 16)."""
    boot = replay_boot(tpm.tcti, BOOTS / "good")
    before = tpm.identity()
    tpm.shutdown_state(resume=True)
    after = tpm.identity()
    assert after.reset_count == before.reset_count
    assert after.restart_count == before.restart_count + 1
    assert boot.differing_pcrs(tpm.tcti) == {}


def test_clear_forgets_the_storage_seed_and_keeps_the_ek(tpm):
    """No sealed key opens any more, yet the EK made from its template is the same (rule 31, N53)."""
    primary = storage_primary(tpm)
    assert storage_primary(tpm) == primary
    tpm.clear()
    assert storage_primary(tpm) != primary
    ek = x509.load_der_x509_certificate(tpm.read_nv(EK_RSA_CERTIFICATE))
    assert ek.public_key() == load_pem_public_key(ek_from_template(tpm))


def test_clear_evicts_the_persistent_ek(tpm):
    """An agent may not count on 0x81010001: after TPM2_Clear the handle is empty (rule 31)."""
    tpm.clear()
    with pytest.raises(TSS2_Exception, match="handle"):
        persistent_key(tpm, EK_RSA_HANDLE)


def ek_from_template(tpm: SoftwareTpm) -> bytes:
    """The RSA EK (PEM) as created from the default template L-1 of the EK Credential Profile."""
    with tpm.connect() as esapi:
        _, template = create_ek_template("EK-RSA2048", NVReadEK(esapi))
        handle, public, *_ = esapi.create_primary(
            TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.ENDORSEMENT
        )
        esapi.flush_context(handle)
        return public.to_pem()


def storage_primary(tpm: SoftwareTpm) -> bytes:
    """The public part of the owner's ECC storage primary, which the storage seed determines."""
    with tpm.connect() as esapi:
        handle, public, *_ = esapi.create_primary(TPM2B_SENSITIVE_CREATE(), "ecc", ESYS_TR.OWNER)
        esapi.flush_context(handle)
        return public.marshal()


def test_a_clone_has_the_same_ek_and_an_older_clock(tpm, tmp_path):
    """A copied state folder is the same TPM to a verifier but for its counters (rule 33, N17)."""
    clone = tpm.copy_state(tmp_path / "clone")
    tpm.reset()
    tpm.reset()
    with clone as running:
        assert running.read_nv(EK_RSA_CERTIFICATE) == tpm.read_nv(EK_RSA_CERTIFICATE)
        assert running.identity().reset_count < tpm.identity().reset_count


def test_the_address_survives_a_reset(tpm):
    """A host's TCTI does not change when it reboots, as /dev/tpmrm0 does not."""
    tcti, pid = tpm.tcti, tpm.pid
    tpm.reset()
    assert tpm.tcti == tcti
    assert tpm.pid != pid


def test_no_process_and_no_socket_stay_behind(factory_new, tmp_path):
    """Tests never leave a TPM running."""
    with factory_new.copy_state(tmp_path / "brief") as running:
        pid, socket = running.pid, running.tcti.removeprefix("swtpm:path=")
        os.kill(pid, 0)
        assert os.path.exists(socket)  # noqa: PTH110 — a path out of a TCTI string
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not os.path.exists(os.path.dirname(socket))  # noqa: PTH110, PTH120 — as above


def test_a_tpm_without_state_folder_fails_with_its_log(tmp_path):
    """A wrong folder is an error that shows what swtpm said, not a hang."""
    with pytest.raises(SoftwareTpmFailed, match="did not start"):
        SoftwareTpm(tmp_path / "nowhere").start()


def test_starting_twice_is_a_mistake(tpm):
    """Two processes on one state folder would corrupt it."""
    with pytest.raises(SoftwareTpmFailed, match="powered already"):
        tpm.start()


def test_other_banks_can_be_manufactured(maker, tmp_path):
    """A host with SHA-256 alone: nothing may depend on a SHA-1 bank being there."""
    made = SoftwareTpm.manufacture(tmp_path / "tpm", maker=maker, banks=("sha256",))
    with made as tpm, pytest.raises(ValueError, match="zip"):
        read_pcrs(tpm.tcti, ("sha1",))
