"""hostagent.grant: which KeyGrants the agent opens, and why it refuses all others."""

import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from support.storage_key import SoftwareStorage
from vectors.keygrant import build_vectors

from hostagent.grant import GrantRefused, GrantRequest, open_key_grant, read_key_grant, wipe
from hostagent.tpm import TpmError

VECTORS = json.loads(build_vectors.VECTORS.read_text())
GOOD = VECTORS["grants"][0]
RELEASE_KEYS = (build_vectors.release_key().public_key(),)


def software(kind="p256"):
    return SoftwareStorage(build_vectors.storage_keys()[kind], **build_vectors.SHAPES[kind])


def request_for(vector, **changes):
    asked = GrantRequest(
        vm_id=vector["vm_id"],
        host_id=vector["host_id"],
        storage_name=bytes.fromhex(vector["storage_name"]),
        request_id=vector["request_id"],
        purpose=vector["purpose"],
        lowest_grant_epoch=vector["grant_epoch"],
        lowest_key_epoch=vector["key_epoch"],
    )
    return replace(asked, **changes)


def open_vector(wire, *, asked=None, tpm=None, storage=None, release_keys=RELEASE_KEYS):
    tpm = tpm or software()
    return open_key_grant(
        wire,
        asked=asked or request_for(GOOD),
        release_keys=release_keys,
        tpm=tpm,
        storage=storage or tpm.key,
    )


class TestGoodGrants:
    @pytest.mark.parametrize("vector", VECTORS["grants"], ids=lambda vector: vector["storage"])
    def test_the_vectors_open(self, vector):
        """The agent, written from the document, opens what the authority wrapped."""
        tpm = software(vector["storage"])
        opened = open_vector(bytes.fromhex(vector["wire"]), asked=request_for(vector), tpm=tpm)
        assert opened == bytes.fromhex(vector["vm_key"])
        assert isinstance(opened, bytearray)

    def test_the_second_pinned_release_key_is_accepted(self):
        """While a release key is replaced, two are pinned."""
        keys = (build_vectors.release_key(5).public_key(), *RELEASE_KEYS)
        assert open_vector(bytes.fromhex(GOOD["wire"]), release_keys=keys)

    def test_a_higher_epoch_than_known_is_news(self):
        """Only lower epochs are refused: the grant is what brings the new one."""
        asked = request_for(GOOD, lowest_grant_epoch=1, lowest_key_epoch=0)
        assert open_vector(bytes.fromhex(GOOD["wire"]), asked=asked)

    def test_the_tpm_gets_what_the_policy_asks_for(self):
        """Counters, bound and selection reach the TPM as they were signed."""
        tpm = software()
        open_vector(bytes.fromhex(GOOD["wire"]), tpm=tpm)
        sealed = tpm.opened[0]
        assert sealed.counters.hex() == GOOD["counters"]
        assert int.from_bytes(sealed.clock_bound, "big") == GOOD["clock_bound"]


class TestRefusedGrants:
    @pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["defect"])
    def test_each_defect_is_refused_with_its_reason(self, vector):
        """N57: tampered, foreign, stale or malformed grants are refused, and it is said why."""
        with pytest.raises(GrantRefused) as refused:
            open_vector(bytes.fromhex(vector["wire"]))
        assert refused.value.reason == vector["reason"]

    def test_any_changed_byte_is_refused_before_the_tpm_is_asked(self):
        """N57: each single byte of the wire form is covered by length, key id or signature."""
        wire, tpm = bytes.fromhex(GOOD["wire"]), software()
        for position in range(len(wire)):
            tampered = bytearray(wire)
            tampered[position] ^= 0x01
            with pytest.raises(GrantRefused):
                open_vector(bytes(tampered), tpm=tpm)
        assert tpm.opened == []

    def test_any_prefix_is_refused(self):
        """A cut reply is never a shorter grant."""
        wire, tpm = bytes.fromhex(GOOD["wire"]), software()
        for size in range(len(wire)):
            with pytest.raises(GrantRefused):
                open_vector(wire[:size], tpm=tpm)
        assert tpm.opened == []

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"vm_id": "web-2"}, "other-vm"),
            ({"vm_id": ""}, "other-vm"),
            ({"host_id": "h-ffffffffffffffffffffffffffffffff"}, "other-host"),
            ({"storage_name": b""}, "other-storage"),
            ({"request_id": "another-request-id"}, "other-request"),
            ({"purpose": "prepare"}, "other-purpose"),
            ({"lowest_grant_epoch": 8}, "old-grant-epoch"),
            ({"lowest_grant_epoch": 1 << 63}, "old-grant-epoch"),
            ({"lowest_key_epoch": 3}, "old-key-epoch"),
        ],
    )
    def test_a_grant_for_something_else_is_not_opened(self, changes, reason):
        """N57: a genuine grant that answers another question never reaches the TPM."""
        tpm = software()
        with pytest.raises(GrantRefused) as refused:
            open_vector(bytes.fromhex(GOOD["wire"]), asked=request_for(GOOD, **changes), tpm=tpm)
        assert refused.value.reason == reason
        assert tpm.opened == []

    def test_a_pinned_key_on_another_curve_signs_nothing(self):
        """One signature algorithm: a P-384 key, pinned by mistake, is refused and not tried."""
        pinned = ec.derive_private_key(5, ec.SECP384R1()).public_key()
        body = bytearray(bytes.fromhex(GOOD["wire"])[4:-64])
        body[12:44] = build_vectors.key_id(pinned)
        with pytest.raises(GrantRefused, match="P-256") as refused:
            open_vector(build_vectors.sign(bytes(body)), release_keys=(pinned,))
        assert refused.value.reason == "signature"

    def test_no_pinned_key_no_grant(self):
        """Without a pinned release key nothing opens: no trust on first use."""
        with pytest.raises(GrantRefused) as refused:
            open_vector(bytes.fromhex(GOOD["wire"]), release_keys=())
        assert refused.value.reason == "signer-unknown"

    def test_a_storage_parent_that_changed_is_noticed_before_import(self):
        """After TPM2_Clear the parent has another name (N80)."""
        other = SoftwareStorage(ec.derive_private_key(9, ec.SECP256R1()))
        with pytest.raises(GrantRefused) as refused:
            open_vector(bytes.fromhex(GOOD["wire"]), storage=other.key)
        assert refused.value.reason == "storage-changed"

    def test_a_refusing_tpm_is_a_refusal(self):
        """N53: the TPM's no is the answer, with its own words."""

        class Refuses:
            def import_and_unseal(self, storage, sealed):
                raise TpmError("policy check failed", 0x99D)

        with pytest.raises(GrantRefused, match="policy check failed") as refused:
            open_vector(bytes.fromhex(GOOD["wire"]), tpm=Refuses(), storage=software().key)
        assert refused.value.reason == "tpm-refused"

    @pytest.mark.parametrize("size", [0, 16, 31, 33])
    def test_a_sealed_secret_of_another_size_is_no_key(self, size):
        """AES-256 only: a shorter key from the TPM is not stretched or accepted."""

        class Gives:
            def import_and_unseal(self, storage, sealed):
                return bytearray(size)

        with pytest.raises(GrantRefused) as refused:
            open_vector(bytes.fromhex(GOOD["wire"]), tpm=Gives(), storage=software().key)
        assert refused.value.reason == "malformed"


class TestSecretsInMemory:
    @pytest.mark.parametrize("correct", [True, False])
    def test_the_one_time_key_is_wiped_whether_it_fits_or_not(self, correct):
        """The key from the TPM lives for one decryption."""
        given = []

        class Remembers(SoftwareStorage):
            def import_and_unseal(self, storage, sealed):
                secret = super().import_and_unseal(storage, sealed)
                if not correct:
                    secret[0] ^= 1
                given.append(secret)
                return secret

        tpm = Remembers(build_vectors.storage_keys()["p256"])
        if correct:
            assert open_vector(bytes.fromhex(GOOD["wire"]), tpm=tpm)
        else:
            with pytest.raises(GrantRefused):
                open_vector(bytes.fromhex(GOOD["wire"]), tpm=tpm)
        assert given == [bytearray(32)]

    def test_wipe_overwrites_in_place(self):
        """The buffer the caller holds is the one that is cleared."""
        secret = bytearray(b"secret")
        wipe(secret)
        assert secret == bytearray(6)

    def test_repr_of_a_grant_shows_no_ciphertext(self):
        """What is logged of a grant by mistake says nothing about the key."""
        grant = read_key_grant(bytes.fromhex(GOOD["wire"]), RELEASE_KEYS)
        assert "ciphertext" not in repr(grant)
        assert grant.ciphertext.hex() not in repr(grant)
