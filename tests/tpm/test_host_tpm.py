"""hostagent.tpm and hostagent.keys on a real (software) TPM: keys, proofs, and what is left behind."""

import hashlib
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.x509 import load_der_x509_certificate
from support.swtpm import SoftwareTpm, TpmMaker
from tpm2_pytss import types
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_SE, TPM2_SU, TPMA_NV
from tpm2_pytss.utils import make_credential as oracle_make_credential

from hostagent.files import InsecureFile
from hostagent.keys import KeyStateInvalid, TpmChanged, forget_keys, load_state, open_keys
from hostagent.tpm import (
    BankSelection,
    EndorsementAlgorithm,
    HostTpm,
    StorageAlgorithm,
    TpmError,
)
from trustauthority.codec.tpm_attest import decode_attest
from trustauthority.codec.tpm_key import public_key
from trustauthority.codec.tpm_public import (
    decode_public,
    object_name,
    primary_qualified_name,
    qualified_name,
)
from trustauthority.codec.tpm_signature import decode_signature
from trustauthority.model.tpm import (
    HANDLE_ENDORSEMENT,
    HANDLE_OWNER,
    CertifyAttest,
    ObjectAttributes,
    QuoteAttest,
)
from trustauthority.verification.credential import CREDENTIAL_ENTROPY, make_credential
from trustauthority.verification.protect import SHARING_ENTROPY

pytestmark = [pytest.mark.swtpm, pytest.mark.xdist_group("swtpm-host")]

BOTH_EKS = [EndorsementAlgorithm.RSA2048, EndorsementAlgorithm.P384]
RESIDENT = (
    ObjectAttributes.FIXED_TPM
    | ObjectAttributes.FIXED_PARENT
    | ObjectAttributes.SENSITIVE_DATA_ORIGIN
    | ObjectAttributes.USER_WITH_AUTH
    | ObjectAttributes.NO_DA
)
SHA256_ALL = BankSelection(bank="sha256", indices=tuple(range(24)))


@pytest.fixture(scope="module")
def maker(tmp_path_factory):
    return TpmMaker(tmp_path_factory.mktemp("host") / "maker")


@pytest.fixture(scope="module")
def factory_new(maker, tmp_path_factory):
    return SoftwareTpm.manufacture(tmp_path_factory.mktemp("host") / "tpm", maker=maker)


@pytest.fixture
def chip(factory_new, tmp_path):
    with factory_new.copy_state(tmp_path / "tpm") as running:
        yield running


@pytest.fixture
def tpm(chip):
    with HostTpm(chip.tcti) as connected:
        yield connected


@pytest.fixture
def other_tpm(maker, tmp_path):
    with (
        SoftwareTpm.manufacture(tmp_path / "other", maker=maker, serial="other") as running,
        HostTpm(running.tcti) as connected,
    ):
        yield connected


def left_behind(tpm):
    """Handles of transient objects and sessions in the TPM."""
    ranges = [(0x80000000, 0x80FFFFFF), (0x02000000, 0x02FFFFFF), (0x03000000, 0x03FFFFFF)]
    return [handle for first, last in ranges for handle in tpm._device.nv_indices(first, last)]


def credential_for(endorsement, name, secret=b"s" * 32):
    ek = decode_public(endorsement.key.public)
    return make_credential(ek, name, secret, os.urandom(CREDENTIAL_ENTROPY))


class TestEndorsement:
    def test_the_certificates_say_which_eks_there_are(self, tpm):
        """The agent finds the EKs by their NV indices (rule 23)."""
        assert tpm.endorsements() == tuple(BOTH_EKS)

    @pytest.mark.parametrize("algorithm", BOTH_EKS)
    def test_the_derived_ek_is_the_certified_one(self, tpm, algorithm):
        """Template, policy and unique of both ranges are right: the key is that of the certificate."""
        endorsement = tpm.endorsement(algorithm)
        certificate = load_der_x509_certificate(endorsement.certificate)
        assert public_key(decode_public(endorsement.key.public)) == certificate.public_key()
        assert endorsement.key.name == object_name(decode_public(endorsement.key.public))
        assert endorsement.intermediates == ()
        assert left_behind(tpm) == []

    def test_an_ek_without_a_certificate_is_derived_all_the_same(self, tpm):
        """A TPM that was inventoried by EK hash needs no certificate."""
        endorsement = tpm.endorsement(EndorsementAlgorithm.P256)
        assert endorsement.certificate == b""
        assert decode_public(endorsement.key.public).attributes & ObjectAttributes.RESTRICTED

    def test_a_nonce_in_nv_changes_the_ek(self, chip, tpm):
        """An NV nonce starts ``unique`` of the low range (rule 23)."""
        before = tpm.endorsement(EndorsementAlgorithm.P256).key.name
        _define_nv(chip, 0x01C0000B, b"\x42" * 20)
        assert tpm.endorsement(EndorsementAlgorithm.P256).key.name != before

    def test_a_template_in_nv_goes_before_the_default(self, chip, tpm):
        """An NV template replaces the default one, whole (rule 23)."""
        wanted = tpm.endorsement(EndorsementAlgorithm.P256_HIGH).key
        template, _ = types.TPMT_PUBLIC.unmarshal(wanted.public)
        template.unique.ecc.x.buffer = b""
        template.unique.ecc.y.buffer = b""
        _define_nv(chip, 0x01C0000C, template.marshal())
        found = tpm.endorsement(EndorsementAlgorithm.P256)
        assert found.key.name == wanted.name
        assert tpm.create_attestation_key(found).private  # under policy B, which came with it

    def test_a_template_with_a_policy_of_its_own_is_refused(self, chip, tpm):
        """An EK whose policy we can't satisfy is named, not tried."""
        template, _ = types.TPMT_PUBLIC.unmarshal(
            tpm.endorsement(EndorsementAlgorithm.P256).key.public
        )
        template.authPolicy.buffer = b"\x11" * 32
        _define_nv(chip, 0x01C0000C, template.marshal())
        found = tpm.endorsement(EndorsementAlgorithm.P256)
        with pytest.raises(TpmError, match="neither A nor B"):
            tpm.create_attestation_key(found)
        assert left_behind(tpm) == []


class TestKeys:
    @pytest.mark.parametrize("algorithm", BOTH_EKS)
    def test_attributes_are_those_of_the_enrolment(self, tpm, tmp_path, algorithm):
        """All resident and noDA; each key can do one thing only; three distinct names (design 6.1)."""
        keys = open_keys(tpm, tmp_path / "state", endorsement=algorithm)
        ak, identity, storage = (
            decode_public(key.public) for key in (keys.ak, keys.identity, keys.storage)
        )
        restricted, sign = ObjectAttributes.RESTRICTED, ObjectAttributes.SIGN
        assert ak.attributes == RESIDENT | restricted | sign
        assert identity.attributes == RESIDENT | sign
        assert storage.attributes == RESIDENT | restricted | ObjectAttributes.DECRYPT
        assert len({object_name(public) for public in (ak, identity, storage)}) == 3
        assert left_behind(tpm) == []

    @pytest.mark.parametrize("algorithm", BOTH_EKS)
    def test_the_same_keys_come_back_after_a_reboot(self, chip, tmp_path, algorithm):
        """Primaries are derived again, the AK comes from its blobs."""
        with HostTpm(chip.tcti) as tpm:
            before = open_keys(tpm, tmp_path / "state", endorsement=algorithm)
        chip.reset()
        with HostTpm(chip.tcti) as tpm:
            after = open_keys(tpm, tmp_path / "state", endorsement=algorithm)
            assert tpm.certify(after.ak, after.storage, b"q").attest
        for name in ("ak", "identity", "storage"):
            assert getattr(after, name).name == getattr(before, name).name

    def test_what_is_kept_goes_before_the_configuration(self, tpm, tmp_path):
        """A changed default never enrols a second identity by accident."""
        first = open_keys(tpm, tmp_path / "state", endorsement=EndorsementAlgorithm.P384)
        again = open_keys(
            tpm,
            tmp_path / "state",
            endorsement=EndorsementAlgorithm.RSA2048,
            storage=StorageAlgorithm.RSA2048,
        )
        assert again.endorsement.algorithm is EndorsementAlgorithm.P384
        assert again.storage.name == first.storage.name

    def test_a_cleared_tpm_is_noticed(self, chip, tmp_path):
        """N80: TPM2_Clear changes the owner's keys; the agent says so instead of going on."""
        with HostTpm(chip.tcti) as tpm:
            open_keys(tpm, tmp_path / "state", endorsement=EndorsementAlgorithm.P384)
        chip.clear()
        with (
            HostTpm(chip.tcti) as tpm,
            pytest.raises(TpmChanged, match="cleared"),
        ):
            open_keys(tpm, tmp_path / "state", endorsement=EndorsementAlgorithm.P384)

    def test_another_tpm_is_noticed(self, tpm, other_tpm, tmp_path):
        """A copied state directory brings no identity along."""
        open_keys(tpm, tmp_path / "state", endorsement=EndorsementAlgorithm.P384)
        with pytest.raises(TpmChanged, match="EK"):
            open_keys(other_tpm, tmp_path / "state", endorsement=EndorsementAlgorithm.P384)

    def test_ak_blobs_load_under_their_own_ek_only(self, tpm, other_tpm):
        """The AK's private blob is noise to any other TPM."""
        ours = tpm.endorsement(EndorsementAlgorithm.P384)
        blobs = tpm.create_attestation_key(ours)
        foreign = other_tpm.endorsement(EndorsementAlgorithm.P384)
        with pytest.raises(TpmError, match="load the AK"):
            other_tpm.load_attestation_key(foreign, blobs)
        assert left_behind(other_tpm) == []

    def test_forgotten_keys_are_made_anew(self, tpm, tmp_path):
        """After ``forget_keys`` the host has another AK and must enrol again."""
        first = open_keys(tpm, tmp_path / "state", endorsement=EndorsementAlgorithm.P384)
        forget_keys(tmp_path / "state")
        second = open_keys(tpm, tmp_path / "state", endorsement=EndorsementAlgorithm.P384)
        assert first.ak.name != second.ak.name

    def test_keys_survive_a_hibernation_of_the_process(self, chip, tpm, tmp_path):
        """A TPM reset under a living process kills saved contexts; keys are derived again."""
        keys = open_keys(tpm, tmp_path / "state", endorsement=EndorsementAlgorithm.P384)
        before = tpm.read_clock().reset_count
        control = chip.tcti.removeprefix("swtpm:path=") + ".ctrl"
        subprocess.run(["swtpm_ioctl", "--unix", control, "-i"], check=True, timeout=10)
        tpm._device.esapi.startup(TPM2_SU.CLEAR)
        assert tpm.read_clock().reset_count == before + 1
        made = tpm.certify(keys.ak, keys.storage, b"after")
        _check_signature(keys.ak.public, made.attest, made.signature)
        assert left_behind(tpm) == []


class TestStateFile:
    @pytest.fixture
    def state(self, tpm, tmp_path):
        open_keys(tpm, tmp_path / "state", endorsement=EndorsementAlgorithm.P384)
        return tmp_path / "state"

    def test_it_is_closed_to_others(self, state):
        """Mode 0600 in 0700 (N60)."""
        assert (state / "keys.json").stat().st_mode & 0o777 == 0o600
        assert state.stat().st_mode & 0o777 == 0o700

    def test_a_file_others_can_read_is_refused(self, state):
        """N60: somebody may have replaced or copied it."""
        (state / "keys.json").chmod(0o644)
        with pytest.raises(InsecureFile):
            load_state(state)

    @pytest.mark.parametrize(
        "change",
        [
            {"format": 2},
            {"format": None},
            {"endorsement": "rsa1024"},
            {"storage": "p521"},
            {"ak_public": "zz"},
            {"ak_private": 5},
            {"unknown": "field"},
        ],
    )
    def test_damage_is_named_and_nothing_is_made_anew(self, state, change):
        """A damaged file never silently leads to a new AK."""
        document = json.loads((state / "keys.json").read_text())
        (state / "keys.json").write_text(json.dumps(document | change))
        with pytest.raises(KeyStateInvalid):
            load_state(state)

    @pytest.mark.parametrize("content", ["", "[]", "{}", "{", "null"])
    def test_a_torn_file_is_damage(self, state, content):
        """Nothing but a whole document is read."""
        (state / "keys.json").write_text(content)
        with pytest.raises(KeyStateInvalid):
            load_state(state)


class TestProofs:
    @pytest.mark.parametrize("algorithm", BOTH_EKS)
    def test_certified_names_and_places_are_computable(self, tpm, tmp_path, algorithm):
        """The AK is below the EK, the others are owner primaries: all by qualified name (design 6.1)."""
        keys = open_keys(tpm, tmp_path / "state", endorsement=algorithm)
        ek_place = primary_qualified_name(HANDLE_ENDORSEMENT, keys.endorsement.key.name)
        for key in (keys.identity, keys.storage):
            made = tpm.certify(keys.ak, key, b"bound to an enrolment")
            attest = decode_attest(made.attest)
            assert isinstance(attest, CertifyAttest)
            assert attest.name == object_name(decode_public(key.public))
            assert attest.qualified_name == primary_qualified_name(HANDLE_OWNER, attest.name)
            assert attest.qualified_signer == qualified_name(ek_place, keys.ak.name)
            assert attest.extra_data == b"bound to an enrolment"
            _check_signature(keys.ak.public, made.attest, made.signature)
        assert left_behind(tpm) == []

    @pytest.mark.parametrize("algorithm", BOTH_EKS)
    def test_our_credentials_open(self, tpm, tmp_path, algorithm):
        """RSA-2048/SHA-256/AES-128 and P-384/SHA-384/AES-256 both activate (rule 22)."""
        keys = open_keys(tpm, tmp_path / "state", endorsement=algorithm)
        made = credential_for(keys.endorsement, keys.ak.name)
        opened = tpm.activate_credential(
            keys.endorsement, keys.ak, made.blob, made.encrypted_secret
        )
        assert opened == b"s" * 32
        assert left_behind(tpm) == []

    @pytest.mark.parametrize("algorithm", BOTH_EKS)
    def test_the_oracles_credentials_open_too(self, tpm, tmp_path, algorithm):
        """tpm2-pytss' MakeCredential and ours are the same to the TPM, byte sizes included."""
        keys = open_keys(tpm, tmp_path / "state", endorsement=algorithm)
        area, _ = types.TPMT_PUBLIC.unmarshal(keys.endorsement.key.public)
        blob, secret = oracle_make_credential(area, b"o" * 32, keys.ak.name)
        theirs = (blob.marshal(), secret.marshal())
        opened = tpm.activate_credential(keys.endorsement, keys.ak, *theirs)
        assert opened == b"o" * 32
        ours = credential_for(keys.endorsement, keys.ak.name)
        assert [len(part) for part in theirs] == [len(ours.blob), len(ours.encrypted_secret)]

    @pytest.mark.parametrize("where", ["point", "secret"])
    def test_coordinates_with_leading_zeros(self, tpm, tmp_path, where):
        """One EC credential in 256 has such a coordinate; it must open like the others."""
        keys = open_keys(tpm, tmp_path / "state", endorsement=EndorsementAlgorithm.P384)
        ek = decode_public(keys.endorsement.key.public)
        entropy = _entropy_with_leading_zero(public_key(ek), where)
        made = make_credential(ek, keys.ak.name, b"s" * 32, entropy)
        opened = tpm.activate_credential(
            keys.endorsement, keys.ak, made.blob, made.encrypted_secret
        )
        assert opened == b"s" * 32

    @pytest.mark.parametrize("algorithm", BOTH_EKS)
    def test_a_credential_for_another_key_does_not_open(self, tpm, tmp_path, algorithm):
        """The name inside is the AK's: an AK swapped after the challenge gets nothing (rule 20)."""
        keys = open_keys(tpm, tmp_path / "state", endorsement=algorithm)
        made = credential_for(keys.endorsement, keys.identity.name)
        with pytest.raises(TpmError, match="activate"):
            tpm.activate_credential(keys.endorsement, keys.ak, made.blob, made.encrypted_secret)
        assert left_behind(tpm) == []

    def test_a_credential_for_another_tpm_does_not_open(self, tpm, other_tpm, tmp_path):
        """Only the TPM with that EK opens it (rule 22, N20)."""
        keys = open_keys(tpm, tmp_path / "state", endorsement=EndorsementAlgorithm.P384)
        foreign = other_tpm.endorsement(EndorsementAlgorithm.P384)
        made = credential_for(foreign, keys.ak.name)
        with pytest.raises(TpmError):
            tpm.activate_credential(keys.endorsement, keys.ak, made.blob, made.encrypted_secret)

    @pytest.mark.parametrize("part", ["blob", "encrypted_secret"])
    @pytest.mark.parametrize("position", [0, 2, 10, -1])
    def test_changed_credentials_do_not_open(self, tpm, tmp_path, part, position):
        """Each part is authenticated; a broken length is an error of ours, not a crash."""
        keys = open_keys(tpm, tmp_path / "state", endorsement=EndorsementAlgorithm.P384)
        made = credential_for(keys.endorsement, keys.ak.name)
        parts = {"blob": made.blob, "encrypted_secret": made.encrypted_secret}
        changed = bytearray(parts[part])
        changed[position] ^= 0x01
        parts[part] = bytes(changed)
        with pytest.raises(TpmError):
            tpm.activate_credential(
                keys.endorsement, keys.ak, parts["blob"], parts["encrypted_secret"]
            )
        assert left_behind(tpm) == []

    def test_the_identity_signs_and_the_ak_does_not(self, tpm, tmp_path):
        """A TLS signature verifies under the identity key; a restricted AK refuses outside data."""
        keys = open_keys(tpm, tmp_path / "state", endorsement=EndorsementAlgorithm.P384)
        digest = hashlib.sha256(b"handshake").digest()
        key = public_key(decode_public(keys.identity.public))
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(
            tpm.sign_digest(keys.identity, digest), digest, ec.ECDSA(Prehashed(hashes.SHA256()))
        )
        with pytest.raises(TpmError, match="sign for TLS"):
            tpm.sign_digest(keys.ak, digest)

    def test_handshakes_in_many_threads(self, tpm, tmp_path):
        """gRPC signs on its own threads while the agent quotes: operations are serialised."""
        keys = open_keys(tpm, tmp_path / "state", endorsement=EndorsementAlgorithm.P384)
        digest = bytes(32)
        with ThreadPoolExecutor(4) as pool:
            signing = [pool.submit(tpm.sign_digest, keys.identity, digest) for _ in range(12)]
            quoting = [pool.submit(tpm.quote, keys.ak, (SHA256_ALL,), b"q") for _ in range(4)]
            signed = [future.result() for future in signing]
            quoted = [future.result() for future in quoting]
        key = public_key(decode_public(keys.identity.public))
        for signature in signed:
            key.verify(signature, digest, ec.ECDSA(Prehashed(hashes.SHA256())))
        assert len({quote.pcr_values for quote in quoted}) == 1
        assert left_behind(tpm) == []


class TestQuotes:
    @pytest.fixture
    def ak(self, tpm, tmp_path):
        return open_keys(tpm, tmp_path / "state", endorsement=EndorsementAlgorithm.P384).ak

    @pytest.mark.parametrize(
        "selection",
        [
            (SHA256_ALL,),
            (BankSelection(bank="sha256", indices=(0, 7)),),
            (BankSelection(bank="sha1", indices=(0, 1, 10)), SHA256_ALL),
            (SHA256_ALL, BankSelection(bank="sha1", indices=(23,))),
        ],
    )
    def test_values_fit_the_quote_over_banks(self, tpm, ak, selection):
        """One string of values in the order of the selection hashes to pcrDigest (rule 7)."""
        quoted = tpm.quote(ak, selection, b"n" * 32)
        attest = decode_attest(quoted.attest)
        assert isinstance(attest, QuoteAttest)
        assert attest.pcr_digest == hashlib.sha256(quoted.pcr_values).digest()
        shown = [(str(entry.bank), entry.indices) for entry in attest.selection]
        assert shown == [(entry.bank, entry.indices) for entry in selection]
        assert attest.extra_data == b"n" * 32
        _check_signature(ak.public, quoted.attest, quoted.signature)
        assert left_behind(tpm) == []

    @pytest.mark.parametrize(
        "selection",
        [
            BankSelection(bank="sha384", indices=(0,)),
            BankSelection(bank="md5", indices=(0,)),
            BankSelection(bank="sha256", indices=(24,)),
            BankSelection(bank="sha256", indices=(-1,)),
        ],
    )
    def test_pcrs_the_tpm_does_not_hold_are_refused(self, tpm, ak, selection):
        """A TPM drops them silently; a quote over less than asked never leaves the host (rule 4)."""
        with pytest.raises(TpmError):
            tpm.quote(ak, (selection,), b"")
        assert left_behind(tpm) == []

    def test_pcrs_that_move_between_read_and_quote_are_read_again(self, tpm, ak, monkeypatch):
        """IMA extends PCR 10 at any time; values and quote still fit."""
        moves = _move_pcr_after_reading(tpm, monkeypatch, times=2)
        quoted = tpm.quote(ak, (SHA256_ALL,), b"")
        attest = decode_attest(quoted.attest)
        assert attest.pcr_digest == hashlib.sha256(quoted.pcr_values).digest()
        assert moves == [1, 2]

    def test_pcrs_that_never_rest_are_an_error(self, tpm, ak, monkeypatch):
        """The retries are bounded; values that do not fit are never sent."""
        moves = _move_pcr_after_reading(tpm, monkeypatch, times=1000)
        with pytest.raises(TpmError, match="changed during each"):
            tpm.quote(ak, (SHA256_ALL,), b"")
        assert len(moves) == 8
        assert left_behind(tpm) == []


class TestPredecessor:
    def test_what_a_killed_agent_left_takes_no_room(self, chip):
        """N87: an agent killed within a command leaves objects and sessions; the next one starts all the same."""
        with chip.connect() as dead:
            for _ in range(3):
                dead.create_primary(types.TPM2B_SENSITIVE_CREATE(), "ecc")
            for _ in range(3):
                dead.start_auth_session(
                    tpm_key=ESYS_TR.NONE,
                    bind=ESYS_TR.NONE,
                    session_type=TPM2_SE.POLICY,
                    symmetric=types.TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL),
                    auth_hash=TPM2_ALG.SHA256,
                )
        with HostTpm(chip.tcti) as tpm:
            assert left_behind(tpm) == []
            assert tpm.endorsements()

    def test_behind_a_resource_manager_nothing_is_touched(self, chip, monkeypatch):
        """There each connection has objects of its own, and handles may be somebody else's."""
        with chip.connect() as other:
            other.create_primary(types.TPM2B_SENSITIVE_CREATE(), "ecc")
        monkeypatch.setattr("hostagent.tpm.device._RESOURCE_MANAGERS", ("swtpm",))
        with HostTpm(chip.tcti) as tpm:
            assert len(left_behind(tpm)) == 1


class TestState:
    def test_banks_and_values(self, tpm):
        """Both banks of the TPM are listed with all their PCRs."""
        banks = tpm.active_banks()
        assert [bank.bank for bank in banks] == ["sha1", "sha256"]
        assert banks[1] == SHA256_ALL
        assert len(tpm.read_pcrs(SHA256_ALL)) == 24 * 32

    def test_the_clock_counts_resets_and_restarts(self, chip):
        """resetCount and restartCount as the TPM keeps them (N79)."""
        with HostTpm(chip.tcti) as tpm:
            first = tpm.read_clock()
        chip.reset()
        with HostTpm(chip.tcti) as tpm:
            second = tpm.read_clock()
        chip.shutdown_state()
        with HostTpm(chip.tcti) as tpm:
            third = tpm.read_clock()
        assert second.reset_count == first.reset_count + 1
        assert (third.reset_count, third.restart_count) == (second.reset_count, 1)

    @pytest.mark.parametrize("tcti", ["swtpm:path=/nonexistent", "nosuchtcti:", "device:/dev/null"])
    def test_no_tpm_is_an_error_of_ours(self, tcti):
        """A missing TPM is named, not a crash of the stack below."""
        with pytest.raises(TpmError), HostTpm(tcti) as tpm:
            tpm.read_clock()


def _check_signature(public, attest, signature):
    decoded = decode_signature(signature)
    r, s = (int.from_bytes(value, "big") for value in decoded.values)
    key = public_key(decode_public(public))
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(encode_dss_signature(r, s), attest, ec.ECDSA(hashes.SHA256()))
    with pytest.raises(InvalidSignature):
        key.verify(encode_dss_signature(r, s), attest + b"\0", ec.ECDSA(hashes.SHA256()))


def _move_pcr_after_reading(tpm, monkeypatch, *, times):
    device = tpm._device
    read, moves = device.pcr_values, []

    def read_then_move(bank, indices):
        values = read(bank, indices)
        if len(moves) < times:
            moves.append(len(moves) + 1)
            digest = types.TPMT_HA(
                hashAlg=TPM2_ALG.SHA256, digest=types.TPMU_HA(sha256=b"\x01" * 32)
            )
            device.esapi.pcr_extend(ESYS_TR.PCR10, types.TPML_DIGEST_VALUES([digest]))
        return values

    monkeypatch.setattr(device, "pcr_values", read_then_move)
    return moves


def _entropy_with_leading_zero(key, where):
    for attempt in range(20_000):
        entropy = hashlib.shake_256(f"{where} {attempt}".encode()).digest(SHARING_ENTROPY)
        order = int(
            "ffffffffffffffffffffffffffffffffffffffffffffffff"
            "c7634d81f4372ddf581a0db248b0a77aecec196accc52973",
            16,
        )
        scalar = int.from_bytes(entropy[:56], "big") % (order - 1) + 1
        ephemeral = ec.derive_private_key(scalar, ec.SECP384R1())
        if where == "point":
            found = ephemeral.public_key().public_numbers().x >> 376 == 0
        else:
            found = ephemeral.exchange(ec.ECDH(), key)[0] == 0
        if found:
            return entropy
    raise AssertionError("no such entropy in 20 000 attempts")


def _define_nv(chip, index, content):
    public = types.TPM2B_NV_PUBLIC(
        nvPublic=types.TPMS_NV_PUBLIC(
            nvIndex=index,
            nameAlg=TPM2_ALG.SHA256,
            attributes=TPMA_NV.AUTHREAD | TPMA_NV.AUTHWRITE | TPMA_NV.NO_DA,
            dataSize=len(content),
        )
    )
    with chip.connect() as esapi:
        handle = esapi.nv_define_space(types.TPM2B_AUTH(), public)
        esapi.nv_write(handle, types.TPM2B_MAX_NV_BUFFER(content))
