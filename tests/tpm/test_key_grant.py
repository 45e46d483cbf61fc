"""KeyGrant v1 end to end on a real (software) TPM: when it opens, and everything that closes it.

The TPM's own clock is moved with TPM2_ClockSet, so nothing here waits.
"""

import hashlib
import os
from dataclasses import dataclass, replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from support.swtpm import SoftwareTpm, TpmMaker
from tpm2_pytss import TCTILdr, types
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_SE, TPMA_OBJECT
from tpm2_pytss.TCTI import PyTCTI
from tpm2_pytss.utils import wrap as oracle_wrap

from hostagent.grant import GrantRefused, GrantRequest, open_key_grant, read_key_grant
from hostagent.tpm import (
    BankSelection,
    EndorsementAlgorithm,
    HostTpm,
    SavedObject,
    StorageAlgorithm,
    TpmError,
    templates,
    unseal,
)
from hostagent.tpm.device import reported
from trustauthority.codec.tpm_key import public_key
from trustauthority.codec.tpm_public import decode_public, object_name
from trustauthority.keyrelease.wrap import GRANT_ENTROPY, build_key_grant
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.grant import MAX_VM_KEY, GrantBinding
from trustauthority.model.placement import Purpose
from trustauthority.verification.credential import CREDENTIAL_ENTROPY, make_credential

pytestmark = [pytest.mark.swtpm, pytest.mark.xdist_group("swtpm-grant")]

VM_KEY = b"luks passphrase of a virtual machine"
RELEASE = ec.derive_private_key(4711, ec.SECP256R1())
SEALED = (0, 2, 4, 7, 8, 9, 14)
MINUTE = 60_000
CLOCK_SET_LIMIT = 0xFFFF_0000_0000_0000
"""TPM2_ClockSet takes values below this only (part 3, 29.2)."""


@pytest.fixture(scope="module")
def maker(tmp_path_factory):
    return TpmMaker(tmp_path_factory.mktemp("grant") / "maker")


@pytest.fixture(scope="module")
def factory_new(maker, tmp_path_factory):
    return SoftwareTpm.manufacture(
        tmp_path_factory.mktemp("grant") / "tpm", maker=maker, banks=("sha256", "sha384")
    )


@pytest.fixture
def chip(factory_new, tmp_path):
    with factory_new.copy_state(tmp_path / "tpm") as running:
        yield running


@dataclass(frozen=True, kw_only=True)
class Released:
    """A grant on its way to a host."""

    wire: bytes
    asked: GrantRequest
    bound: int


def release(tpm: HostTpm, storage: SavedObject, **changes) -> Released:
    """What the authority does for a host whose quote it just verified."""
    clock = tpm.read_clock()
    public = decode_public(storage.public)
    banks = changes.pop("banks", ("sha256",))
    pcrs = {}
    for bank in banks:
        values = tpm.read_pcrs(BankSelection(bank=bank, indices=SEALED))
        size = len(values) // len(SEALED)
        pcrs[HashAlgorithm(bank)] = {
            index: values[at * size : (at + 1) * size] for at, index in enumerate(SEALED)
        }
    bound = changes.pop("bound", clock.clock + 2 * MINUTE)
    binding = GrantBinding(
        vm_id="web-1",
        host_id="h-1",
        storage_name=object_name(public),
        grant_epoch=3,
        key_epoch=1,
        request_id="0123456789abcdef",
        purpose=Purpose.RUN,
        clock_bound=bound,
    )
    counters = clock.reset_count.to_bytes(4, "big") + clock.restart_count.to_bytes(4, "big")
    made = build_key_grant(
        binding=binding,
        vm_key=changes.pop("vm_key", VM_KEY),
        storage=public,
        pcrs=pcrs,
        counters=changes.pop("counters", counters),
        entropy=changes.pop("entropy", None) or os.urandom(GRANT_ENTROPY),
        release_key=RELEASE,
    )
    assert not changes
    asked = GrantRequest(
        vm_id="web-1",
        host_id="h-1",
        storage_name=object_name(public),
        request_id="0123456789abcdef",
        purpose="run",
    )
    return Released(wire=made.wire, asked=asked, bound=bound)


def open_grant(released: Released, tpm: HostTpm, storage: SavedObject) -> bytearray:
    return open_key_grant(
        released.wire,
        asked=released.asked,
        release_keys=[RELEASE.public_key()],
        tpm=tpm,
        storage=storage,
    )


def refused(released: Released, tpm: HostTpm, storage: SavedObject) -> GrantRefused:
    with pytest.raises(GrantRefused) as refusal:
        open_grant(released, tpm, storage)
    assert left_behind(tpm) == []
    return refusal.value


def left_behind(tpm: HostTpm) -> list[int]:
    """Handles of transient objects and sessions in the TPM."""
    ranges = [(0x80000000, 0x80FFFFFF), (0x02000000, 0x02FFFFFF), (0x03000000, 0x03FFFFFF)]
    return [handle for first, last in ranges for handle in tpm._device.nv_indices(first, last)]


def extend(tpm: HostTpm, pcr: int) -> None:
    digest = types.TPMT_HA(hashAlg=TPM2_ALG.SHA256, digest=types.TPMU_HA(sha256=b"\x01" * 32))
    tpm._device.esapi.pcr_extend(ESYS_TR.PCR0 + pcr, types.TPML_DIGEST_VALUES([digest]))


class TestOpens:
    @pytest.mark.parametrize("algorithm", StorageAlgorithm)
    @pytest.mark.parametrize("banks", [("sha256",), ("sha384",), ("sha256", "sha384")])
    def test_while_fresh(self, chip, algorithm, banks):
        """The right TPM in the right boot opens it, again and again until T; nothing stays loaded."""
        with HostTpm(chip.tcti) as tpm:
            storage = tpm.storage_parent(algorithm)
            released = release(tpm, storage, banks=banks)
            assert [open_grant(released, tpm, storage) for _ in range(4)] == [VM_KEY] * 4
            assert left_behind(tpm) == []

    @pytest.mark.parametrize("size", [1, MAX_VM_KEY])
    def test_keys_of_the_extreme_sizes(self, chip, size):
        """1 byte and 4 KiB: the sealed part has one size only."""
        with HostTpm(chip.tcti) as tpm:
            storage = tpm.storage_parent()
            vm_key = os.urandom(size)
            assert open_grant(release(tpm, storage, vm_key=vm_key), tpm, storage) == vm_key

    def test_after_three_power_cuts(self, chip):
        """N83: noDA on parent and sealed object, so that power cuts never lock the TPM out of Import."""
        for _ in range(4):
            with HostTpm(chip.tcti) as tpm:
                storage = tpm.storage_parent()
                assert open_grant(release(tpm, storage), tpm, storage) == VM_KEY
            chip.reset()
        with HostTpm(chip.tcti) as tpm:
            storage = tpm.storage_parent()
            assert open_grant(release(tpm, storage), tpm, storage) == VM_KEY

    def test_without_no_da_power_cuts_would_lock_it(self, chip):
        """N83, the control: the same parent without noDA ends in a lockout, which is why it is there."""
        codes = []
        for _ in range(6):
            with HostTpm(chip.tcti) as tpm:
                storage = _parent_with_lockout(tpm)
                try:
                    open_grant(release(tpm, storage), tpm, storage)
                except GrantRefused as refusal:
                    codes.append(str(refusal))
            chip.reset()
        assert any("lockout" in code.lower() or "0x921" in code.lower() for code in codes)

    @pytest.mark.parametrize("where", ["point", "secret"])
    def test_coordinates_with_leading_zeros(self, chip, where):
        """One ECDH in 256 has such a coordinate; the grant opens all the same."""
        with HostTpm(chip.tcti) as tpm:
            storage = tpm.storage_parent()
            entropy = _entropy_with_leading_zero(storage, where)
            assert open_grant(release(tpm, storage, entropy=entropy), tpm, storage) == VM_KEY

    def test_growing_pcrs_do_not_matter(self, chip):
        """IMA extends PCR 10 between release and opening; it is not among the sealed ones."""
        with HostTpm(chip.tcti) as tpm:
            storage = tpm.storage_parent()
            released = release(tpm, storage)
            extend(tpm, 10)
            assert open_grant(released, tpm, storage) == VM_KEY

    def test_though_ima_extends_just_before_the_answer(self, chip, monkeypatch):
        """A PCR that is not sealed moved after PolicyPCR: the policy is satisfied anew."""
        with HostTpm(chip.tcti) as tpm:
            storage = tpm.storage_parent()
            released = release(tpm, storage)
            calls = _extend_before_unseal(tpm, monkeypatch, pcr=10, times=3)
            assert open_grant(released, tpm, storage) == VM_KEY
            assert len(calls) == 4
            assert left_behind(tpm) == []

    def test_with_a_clock_above_the_signed_range(self, chip):
        """N84: the TPM compares clock and T as unsigned values, near the end of its clock too."""
        with HostTpm(chip.tcti) as tpm:
            storage = tpm.storage_parent()
            tpm._device.esapi.clock_set(CLOCK_SET_LIMIT - 10 * MINUTE)
            assert open_grant(release(tpm, storage), tpm, storage) == VM_KEY
            past = release(tpm, storage, bound=CLOCK_SET_LIMIT - 20 * MINUTE)
            assert refused(past, tpm, storage).reason == "tpm-refused"
            small = release(tpm, storage, bound=2 * MINUTE)
            assert refused(small, tpm, storage).reason == "tpm-refused"

    def test_the_policy_is_what_a_trial_session_computes(self, chip):
        """The digest computed in Python is the TPM's own, for both banks together."""
        with HostTpm(chip.tcti) as tpm:
            storage = tpm.storage_parent()
            released = release(tpm, storage, banks=("sha256", "sha384"))
            sealed = read_key_grant(released.wire, [RELEASE.public_key()]).sealed
            assert decode_public(sealed.public).auth_policy == _trial_policy(tpm, sealed)


class TestDoesNotOpen:
    def test_on_another_tpm(self, chip, maker, tmp_path):
        """N53: a blob copied to another host is refused, by name and by the TPM itself."""
        with (
            SoftwareTpm.manufacture(tmp_path / "thief", maker=maker, banks=("sha256",)) as stolen,
            HostTpm(chip.tcti) as ours,
            HostTpm(stolen.tcti) as theirs,
        ):
            released = release(ours, ours.storage_parent())
            parent = theirs.storage_parent()
            assert refused(released, theirs, parent).reason == "storage-changed"
            _assert_tpm_refuses(released, theirs, parent)

    def test_after_a_power_cut(self, chip):
        """N53: resetCount grew; same TPM, same PCRs."""
        _assert_closed_by(chip, chip.reset)

    def test_after_an_orderly_reboot(self, chip):
        """N53: Shutdown(CLEAR) and Startup(CLEAR)."""
        _assert_closed_by(chip, chip.shutdown_clear)

    def test_after_a_reboot_by_shutdown_state(self, chip):
        """N79: resetCount did not grow, restartCount did; the policy holds both."""
        _assert_closed_by(chip, chip.shutdown_state)

    def test_after_suspend_and_resume(self, chip):
        """N79: a suspended host asks again, though its PCRs survived."""
        _assert_closed_by(chip, lambda: chip.shutdown_state(resume=True))

    def test_after_clear_and_as_many_resets(self, chip):
        """N80: TPM2_Clear sets resetCount to zero; resets bring it back, the storage seed is gone."""
        with HostTpm(chip.tcti) as tpm:
            storage = tpm.storage_parent()
            released, before = release(tpm, storage), tpm.read_clock()
        chip.clear()
        _reset_until(chip, before.reset_count)
        with HostTpm(chip.tcti) as tpm:
            clock = tpm.read_clock()
            assert (clock.reset_count, clock.restart_count) == (before.reset_count, 0)
            assert clock.clock < released.bound
            parent = tpm.storage_parent()
            assert parent.name != storage.name
            assert refused(released, tpm, parent).reason == "storage-changed"
            _assert_tpm_refuses(released, tpm, parent)

    def test_a_parent_of_the_endorsement_hierarchy_would_open_then(self, chip):
        """N80, the control: its seed survives TPM2_Clear, and old blobs with it (docs/adr/0006)."""

        def parent(tpm):
            template = templates.storage_parent(StorageAlgorithm.P256)
            return tpm._device.primary(template, ESYS_TR.ENDORSEMENT)

        with HostTpm(chip.tcti) as tpm:
            released, before = release(tpm, parent(tpm)), tpm.read_clock()
        chip.clear()
        _reset_until(chip, before.reset_count)
        with HostTpm(chip.tcti) as tpm:
            assert open_grant(released, tpm, parent(tpm)) == VM_KEY

    def test_from_t_on(self, chip):
        """N53, N81: the TPM's clock passed T; before it, the same bytes opened."""
        with HostTpm(chip.tcti) as tpm:
            storage = tpm.storage_parent()
            released = release(tpm, storage)
            assert open_grant(released, tpm, storage) == VM_KEY
            tpm._device.esapi.clock_set(released.bound)
            assert refused(released, tpm, storage).reason == "tpm-refused"

    def test_with_a_bound_that_passed_already(self, chip):
        """N81: T in the past never opens."""
        with HostTpm(chip.tcti) as tpm:
            storage = tpm.storage_parent()
            tpm._device.esapi.clock_set(tpm.read_clock().clock + MINUTE)
            released = release(tpm, storage, bound=tpm.read_clock().clock - 1)
            assert refused(released, tpm, storage).reason == "tpm-refused"

    @pytest.mark.parametrize("pcr", SEALED)
    def test_with_a_sealed_pcr_changed(self, chip, pcr):
        """N53: one extend of a stable PCR closes it for this boot."""
        with HostTpm(chip.tcti) as tpm:
            storage = tpm.storage_parent()
            released = release(tpm, storage)
            extend(tpm, pcr)
            assert refused(released, tpm, storage).reason == "tpm-refused"

    def test_with_a_sealed_pcr_changed_after_the_policy_was_satisfied(self, chip, monkeypatch):
        """promises 6.5: the TPM looks at the PCRs once more at Unseal; trying again does not help."""
        with HostTpm(chip.tcti) as tpm:
            storage = tpm.storage_parent()
            released = release(tpm, storage)
            calls = _extend_before_unseal(tpm, monkeypatch, pcr=7, times=1)
            assert refused(released, tpm, storage).reason == "tpm-refused"
            assert len(calls) == 2

    def test_while_pcrs_never_rest(self, chip, monkeypatch):
        """The tries are bounded, and the TPM's reason (PCR changed, 0x128) is shown."""
        with HostTpm(chip.tcti) as tpm:
            storage = tpm.storage_parent()
            released = release(tpm, storage)
            calls = _extend_before_unseal(tpm, monkeypatch, pcr=10, times=1000)
            assert "0x128" in str(refused(released, tpm, storage))
            assert len(calls) == 8

    def test_by_its_empty_authorisation_value(self, chip):
        """No userWithAuth: a program that skips the policy gets nothing."""
        with HostTpm(chip.tcti) as tpm:
            released = release(tpm, tpm.storage_parent())
            with pytest.raises(TpmError):
                _unseal_with_password(tpm, released)

    @pytest.mark.parametrize("field", ["counters", "clock_bound", "pcr_selection"])
    def test_with_other_policy_fields_than_sealed(self, chip, field):
        """The TPM compares the digest of what it was shown: rewriting the fields opens nothing."""
        with HostTpm(chip.tcti) as tpm:
            storage = tpm.storage_parent()
            sealed = read_key_grant(release(tpm, storage).wire, [RELEASE.public_key()]).sealed
            clock = tpm.read_clock()
            others = {
                # true statements about this TPM, but not the sealed ones
                "counters": (clock.reset_count + 1).to_bytes(4, "big") + bytes(4),
                "clock_bound": (clock.clock + 100 * MINUTE).to_bytes(8, "big"),
                "pcr_selection": bytes.fromhex("00000001000b03010000"),
            }
            with pytest.raises(TpmError):
                tpm.import_and_unseal(storage, replace(sealed, **{field: others[field]}))
            assert left_behind(tpm) == []

    @pytest.mark.parametrize("field", ["public", "duplicate", "encrypted_seed"])
    @pytest.mark.parametrize("position", [0, 5, -1])
    def test_with_a_changed_blob(self, chip, field, position):
        """The outer wrapping covers the secret and the public area by its name."""
        with HostTpm(chip.tcti) as tpm:
            storage = tpm.storage_parent()
            sealed = read_key_grant(release(tpm, storage).wire, [RELEASE.public_key()]).sealed
            changed = bytearray(getattr(sealed, field))
            changed[position] ^= 0x01
            with pytest.raises(TpmError):
                tpm.import_and_unseal(storage, replace(sealed, **{field: bytes(changed)}))
            assert left_behind(tpm) == []

    @pytest.mark.parametrize("size", [0, 1, 100])
    @pytest.mark.parametrize("field", ["public", "duplicate", "encrypted_seed", "pcr_selection"])
    def test_with_a_cut_blob(self, chip, field, size):
        """Short fields are an error of ours or of the TPM, never a crash or a leak."""
        with HostTpm(chip.tcti) as tpm:
            storage = tpm.storage_parent()
            sealed = read_key_grant(release(tpm, storage).wire, [RELEASE.public_key()]).sealed
            cut = getattr(sealed, field)[:size]
            if cut == getattr(sealed, field):
                cut = b""
            with pytest.raises(TpmError):
                tpm.import_and_unseal(storage, replace(sealed, **{field: cut}))
            assert left_behind(tpm) == []

    def test_a_sealed_object_with_a_password_is_never_taken(self, chip):
        """A blob with userWithAuth (so without policy) is not a KeyGrant's, whoever made it."""
        with HostTpm(chip.tcti) as tpm:
            storage = tpm.storage_parent()
            sealed = read_key_grant(release(tpm, storage).wire, [RELEASE.public_key()]).sealed
            area, _ = types.TPMT_PUBLIC.unmarshal(sealed.public)
            area.objectAttributes |= TPMA_OBJECT.USERWITHAUTH
            with pytest.raises(TpmError, match="never has"):
                tpm.import_and_unseal(storage, replace(sealed, public=area.marshal()))


@pytest.mark.parametrize("algorithm", StorageAlgorithm)
class TestEveryParent:
    """What closes a grant closes it under each kind of storage parent."""

    def test_on_another_tpm(self, chip, maker, tmp_path, algorithm):
        """N53: copied to another host, under the same kind of parent."""
        with (
            SoftwareTpm.manufacture(
                tmp_path / "thief", maker=maker, banks=("sha256", "sha384")
            ) as stolen,
            HostTpm(chip.tcti) as ours,
            HostTpm(stolen.tcti) as theirs,
        ):
            released = release(ours, ours.storage_parent(algorithm))
            parent = theirs.storage_parent(algorithm)
            assert refused(released, theirs, parent).reason == "storage-changed"
            _assert_tpm_refuses(released, theirs, parent)

    def test_after_a_reboot(self, chip, algorithm):
        """N53, N79: of either kind, with the very same parent."""
        for event in (chip.reset, chip.shutdown_state):
            _assert_closed_by(chip, event, algorithm)

    def test_from_t_on(self, chip, algorithm):
        """N81: opened until T, not from then on."""
        with HostTpm(chip.tcti) as tpm:
            storage = tpm.storage_parent(algorithm)
            released = release(tpm, storage)
            assert open_grant(released, tpm, storage) == VM_KEY
            tpm._device.esapi.clock_set(released.bound)
            assert refused(released, tpm, storage).reason == "tpm-refused"

    def test_with_a_sealed_pcr_changed(self, chip, algorithm):
        """N53: under other PCR values than were quoted."""
        with HostTpm(chip.tcti) as tpm:
            storage = tpm.storage_parent(algorithm)
            released = release(tpm, storage)
            extend(tpm, SEALED[0])
            assert refused(released, tpm, storage).reason == "tpm-refused"

    def test_tampered_or_for_something_else(self, chip, algorithm):
        """N57: a changed byte of any part, or a grant for another VM or epoch, opens nothing."""
        with HostTpm(chip.tcti) as tpm:
            storage = tpm.storage_parent(algorithm)
            released = release(tpm, storage)
            for at in range(4, len(released.wire), 13):
                changed = bytearray(released.wire)
                changed[at] ^= 1
                refused(replace(released, wire=bytes(changed)), tpm, storage)
            for field, value in (("vm_id", "web-2"), ("lowest_key_epoch", 2)):
                asked = replace(released.asked, **{field: value})
                refused(replace(released, asked=asked), tpm, storage)
            sealed = read_key_grant(released.wire, [RELEASE.public_key()]).sealed
            for field in ("public", "duplicate", "encrypted_seed"):
                changed = bytearray(getattr(sealed, field))
                changed[-1] ^= 1
                with pytest.raises(TpmError):
                    tpm.import_and_unseal(storage, replace(sealed, **{field: bytes(changed)}))
            assert left_behind(tpm) == []


class Listener(PyTCTI):
    """A probe on the bus between processor and TPM: it hears every command and answer."""

    def __init__(self, tcti: str) -> None:
        super().__init__(max_size=4096)
        self._inner = TCTILdr.parse(tcti)
        self.heard = b""

    def do_transmit(self, command: bytes) -> None:
        self.heard += command
        self._inner.transmit(command)

    def do_receive(self, timeout: int) -> bytes:
        answer = self._inner.receive(timeout=timeout)
        self.heard += answer
        return answer

    def do_finalize(self) -> None:
        self._inner.close()


class TestOnTheBus:
    def test_the_one_time_key_is_not_heard(self, chip):
        """Unseal answers over a salted, encrypted session: a probe on the bus learns nothing."""
        entropy = os.urandom(GRANT_ENTROPY)
        listener = Listener(chip.tcti)
        with HostTpm(listener) as tpm:
            storage = tpm.storage_parent()
            assert open_grant(release(tpm, storage, entropy=entropy), tpm, storage) == VM_KEY
        assert storage.public in listener.heard
        assert entropy[:32] not in listener.heard
        assert VM_KEY not in listener.heard

    def test_without_encryption_it_would_be(self, chip, monkeypatch):
        """The control: the probe hears the key when the session does not encrypt."""
        entropy = os.urandom(GRANT_ENTROPY)
        listener = Listener(chip.tcti)
        with HostTpm(listener) as tpm:
            storage = tpm.storage_parent()
            monkeypatch.setattr(
                tpm._device.esapi, "trsess_set_attributes", lambda session, attributes: None
            )
            assert open_grant(release(tpm, storage, entropy=entropy), tpm, storage) == VM_KEY
        assert entropy[:32] in listener.heard

    @pytest.mark.parametrize("algorithm", ["rsa2048", "p384"])
    def test_the_activation_secret_is_not_heard(self, chip, algorithm):
        """The enrolment secret crosses the bus encrypted, too."""
        secret = os.urandom(32)
        listener = Listener(chip.tcti)
        with HostTpm(listener) as tpm:
            ek = tpm.endorsement(EndorsementAlgorithm(algorithm))
            ak = tpm.load_attestation_key(ek, tpm.create_attestation_key(ek))
            made = make_credential(
                decode_public(ek.key.public), ak.name, secret, os.urandom(CREDENTIAL_ENTROPY)
            )
            assert tpm.activate_credential(ek, ak, made.blob, made.encrypted_secret) == secret
        assert made.blob in listener.heard
        assert secret not in listener.heard


class TestOracle:
    def test_what_tpm2_pytss_wraps_opens_the_same_way(self, chip):
        """The agent's opener is not fitted to our wrapping: the oracle's blob opens too."""
        with HostTpm(chip.tcti) as tpm:
            storage = tpm.storage_parent()
            sealed = read_key_grant(release(tpm, storage).wire, [RELEASE.public_key()]).sealed
            area, _ = types.TPMT_PUBLIC.unmarshal(sealed.public)
            secret, obfuscation = b"k" * 32, b"o" * 32
            area.unique.keyedHash.buffer = hashlib.sha256(obfuscation + secret).digest()
            sensitive = types.TPM2B_SENSITIVE(
                types.TPMT_SENSITIVE(
                    sensitiveType=TPM2_ALG.KEYEDHASH,
                    seedValue=obfuscation,
                    sensitive=types.TPMU_SENSITIVE_COMPOSITE(
                        bits=types.TPM2B_SENSITIVE_DATA(secret)
                    ),
                )
            )
            parent, _ = types.TPMT_PUBLIC.unmarshal(storage.public)
            _, duplicate, seed = oracle_wrap(parent, types.TPM2B_PUBLIC(publicArea=area), sensitive)
            theirs = replace(
                sealed,
                public=area.marshal(),
                duplicate=bytes(duplicate),
                encrypted_seed=bytes(seed),
            )
            assert tpm.import_and_unseal(storage, theirs) == secret


def _reset_until(chip, reset_count):
    for _ in range(reset_count + 2):
        if chip.identity().reset_count == reset_count:
            return
        chip.reset()


def _assert_closed_by(chip, event, algorithm=StorageAlgorithm.P256):
    """A grant that opens before ``event`` does not open after it, on the same TPM and parent."""
    with HostTpm(chip.tcti) as tpm:
        storage = tpm.storage_parent(algorithm)
        released = release(tpm, storage, bound=tpm.read_clock().clock + 60 * MINUTE)
        assert open_grant(released, tpm, storage) == VM_KEY
        before = tpm.read_pcrs(BankSelection(bank="sha256", indices=SEALED))
    event()
    with HostTpm(chip.tcti) as tpm:
        again = tpm.storage_parent(algorithm)
        assert again.name == storage.name
        assert tpm.read_pcrs(BankSelection(bank="sha256", indices=SEALED)) == before
        assert tpm.read_clock().clock < released.bound
        assert refused(released, tpm, again).reason == "tpm-refused"


def _assert_tpm_refuses(released, tpm, parent):
    """Even an agent that checks no name gets nothing out of this TPM."""
    sealed = read_key_grant(released.wire, [RELEASE.public_key()]).sealed
    with pytest.raises(TpmError, match="import the granted secret"):
        tpm.import_and_unseal(parent, sealed)
    assert left_behind(tpm) == []


def _extend_before_unseal(tpm, monkeypatch, *, pcr, times):
    original, calls = tpm._device.esapi.unseal, []

    def extend_first(*arguments, **named):
        calls.append(pcr)
        if len(calls) <= times:
            extend(tpm, pcr)
        return original(*arguments, **named)

    monkeypatch.setattr(tpm._device.esapi, "unseal", extend_first)
    return calls


def _trial_policy(tpm, sealed):
    device = tpm._device
    session = device.esapi.start_auth_session(
        ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.TRIAL, None, TPM2_ALG.SHA256
    )
    with device.flushed(session):
        unseal._satisfy(device, session, sealed)
        return bytes(device.esapi.policy_get_digest(session))


def _unseal_with_password(tpm, released):
    sealed = read_key_grant(released.wire, [RELEASE.public_key()]).sealed
    area, _ = types.TPMT_PUBLIC.unmarshal(sealed.public)
    public = types.TPM2B_PUBLIC(publicArea=area)
    device = tpm._device
    with device.loaded(tpm.storage_parent()) as parent:
        private = device.esapi.import_(
            parent,
            types.TPM2B_DATA(),
            public,
            types.TPM2B_PRIVATE(sealed.duplicate),
            types.TPM2B_ENCRYPTED_SECRET(sealed.encrypted_seed),
            types.TPMT_SYM_DEF_OBJECT(algorithm=TPM2_ALG.NULL),
        )
        loaded = device.esapi.load(parent, private, public)
        with device.flushed(loaded), reported("unseal with the empty password"):
            device.esapi.unseal(loaded)


def _parent_with_lockout(tpm):
    template = templates.storage_parent(StorageAlgorithm.P256)
    template.publicArea.objectAttributes &= ~TPMA_OBJECT.NODA
    return tpm._device.primary(template, ESYS_TR.OWNER)


def _entropy_with_leading_zero(storage, where):
    key = public_key(decode_public(storage.public))
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    for _ in range(20_000):
        entropy = os.urandom(GRANT_ENTROPY)
        scalar = int.from_bytes(entropy[76:116], "big") % (order - 1) + 1
        ephemeral = ec.derive_private_key(scalar, ec.SECP256R1())
        if where == "point":
            found = ephemeral.public_key().public_numbers().x >> 248 == 0
        else:
            found = ephemeral.exchange(ec.ECDH(), key)[0] == 0
        if found:
            return entropy
    raise AssertionError("no such entropy in 20 000 attempts")
