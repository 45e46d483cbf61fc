"""keyrelease.wrap: policy digests and what a KeyGrant contains."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from support.storage_key import SoftwareStorage, storage_public
from tpm2_pytss import types
from tpm2_pytss.constants import TPM2_EO
from tpm2_pytss.utils import wrap as oracle_wrap
from vectors.keygrant import build_vectors

from hostagent.tpm import SealedSecret
from trustauthority.codec.tpm_public import decode_public, encode_public, object_name
from trustauthority.errors import AlgorithmUnsupported, InvalidRequest
from trustauthority.keyrelease.wrap import (
    GRANT_ENTROPY,
    build_key_grant,
    encode_selection,
    policy_digest,
    seal,
)
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.grant import MAX_VM_KEY, GrantBinding
from trustauthority.model.placement import Purpose
from trustauthority.model.tpm import ObjectAttributes, TpmAlgorithm
from trustauthority.verification.protect import SHARING_ENTROPY

STORAGE = ec.derive_private_key(77, ec.SECP256R1())
RELEASE = ec.derive_private_key(78, ec.SECP256R1())
PCRS: Mapping[HashAlgorithm, Mapping[int, bytes]] = {
    HashAlgorithm.SHA256: {0: b"\x01" * 32, 7: b"\x07" * 32}
}
COUNTERS = bytes.fromhex("0000000100000002")
MAXIMUM = (1 << 64) - 1


def binding(**changes):
    fields = {
        "vm_id": "vm",
        "host_id": "h-1",
        "storage_name": object_name(storage_public(STORAGE)),
        "grant_epoch": 1,
        "key_epoch": 1,
        "request_id": "r" * 16,
        "purpose": Purpose.RUN,
        "clock_bound": 1000,
    }
    return GrantBinding(**(fields | changes))


def grant(**changes):
    arguments = {
        "binding": binding(),
        "vm_key": b"secret",
        "storage": storage_public(STORAGE),
        "pcrs": PCRS,
        "counters": COUNTERS,
        "entropy": bytes(range(GRANT_ENTROPY)),
        "release_key": RELEASE,
    }
    return build_key_grant(**(arguments | changes))


class TestPolicyDigest:
    def test_it_is_what_a_tpm_computes(self):
        """Known answer, computed step by step with the formulas of part 3, 23.7 and 23.10."""
        assert policy_digest(PCRS, COUNTERS, 1000) == _reference_policy(PCRS, COUNTERS, 1000)

    @settings(max_examples=30, deadline=None)
    @given(
        counters=st.binary(min_size=8, max_size=8),
        bound=st.one_of(
            st.integers(min_value=0, max_value=MAXIMUM),
            st.sampled_from([0, 1, (1 << 63) - 1, 1 << 63, MAXIMUM]),
        ),
    )
    def test_every_clock_and_counter_up_to_the_last_has_its_own_digest(self, counters, bound):
        """N84: values near 2^64 are encoded as eight unsigned big-endian bytes."""
        digest = policy_digest(PCRS, counters, bound)
        assert digest == _reference_policy(PCRS, counters, bound)
        assert digest != policy_digest(PCRS, counters, bound ^ 1)

    def test_each_input_changes_it(self):
        """PCR value, PCR number, bank, counters and bound are all part of the policy (N53)."""
        sha384 = {HashAlgorithm.SHA384: {0: bytes(48)}}
        digests = {
            policy_digest(PCRS, COUNTERS, 1000),
            policy_digest({HashAlgorithm.SHA256: {0: b"\x01" * 32, 7: bytes(32)}}, COUNTERS, 1000),
            policy_digest(
                {HashAlgorithm.SHA256: {0: b"\x01" * 32, 8: b"\x07" * 32}}, COUNTERS, 1000
            ),
            policy_digest({HashAlgorithm.SHA256: {0: b"\x01" * 32}}, COUNTERS, 1000),
            policy_digest({**PCRS, **sha384}, COUNTERS, 1000),
            policy_digest(PCRS, bytes.fromhex("0000000100000003"), 1000),
            policy_digest(PCRS, bytes.fromhex("0000000200000002"), 1000),
            policy_digest(PCRS, COUNTERS, 1001),
        }
        assert len(digests) == 8

    def test_the_order_of_insertion_of_pcrs_does_not_matter(self):
        """Values are hashed in ascending PCR order, as the TPM does."""
        backwards = {HashAlgorithm.SHA256: dict(reversed(PCRS[HashAlgorithm.SHA256].items()))}
        assert policy_digest(backwards, COUNTERS, 5) == policy_digest(PCRS, COUNTERS, 5)

    @pytest.mark.parametrize("pcrs", [{}, {HashAlgorithm.SHA256: {}}])
    def test_a_policy_without_pcrs_is_refused(self, pcrs):
        """An empty selection would open under any boot (rule 4)."""
        with pytest.raises(InvalidRequest, match="at least one"):
            policy_digest(pcrs, COUNTERS, 1)

    def test_sha1_banks_are_refused(self):
        """No claim rests on SHA-1 (rule 6)."""
        with pytest.raises(AlgorithmUnsupported, match="SHA-1"):
            encode_selection({HashAlgorithm.SHA1: {0: bytes(20)}})

    @pytest.mark.parametrize("index", [-1, 24, 1000])
    def test_pcrs_that_do_not_exist_are_refused(self, index):
        """A PCR number outside the map would be dropped silently by a TPM."""
        with pytest.raises(InvalidRequest, match="0 to 23"):
            encode_selection({HashAlgorithm.SHA256: {index: bytes(32)}})

    @pytest.mark.parametrize("size", [0, 4, 7, 9, 16])
    def test_counters_have_eight_bytes(self, size):
        """resetCount alone survives an orderly suspend (N79): both or nothing."""
        with pytest.raises(ValueError, match="8 bytes"):
            policy_digest(PCRS, bytes(size), 1)


class TestSeal:
    def test_the_sealed_object_has_exactly_the_two_attributes(self):
        """noDA (N83: power cuts never lock it out), no userWithAuth: only the policy opens it."""
        sealed = seal(
            storage_public(STORAGE), bytes(32), bytes(32), bytes(32), bytes(SHARING_ENTROPY)
        )
        public = decode_public(sealed.public)
        wanted = ObjectAttributes.NO_DA | ObjectAttributes.ADMIN_WITH_POLICY
        assert public.attributes == wanted
        assert public.type is TpmAlgorithm.KEYEDHASH
        assert public.scheme is None

    @pytest.mark.parametrize("kind", build_vectors.SHAPES)
    def test_tpm2_pytss_unwraps_it(self, kind):
        """The oracle finds the secret, the obfuscation value and an empty authorisation value."""
        shape = build_vectors.SHAPES[kind]
        software = SoftwareStorage(build_vectors.storage_keys()[kind], **shape)
        secret, obfuscation = bytes(range(32)), bytes(range(32, 64))
        sealed = seal(
            software.public, secret, b"\x55" * 32, obfuscation, bytes(range(SHARING_ENTROPY))
        )
        area = software.unwrap(_as_received(sealed)).sensitiveArea
        assert bytes(area.sensitive.bits) == secret
        assert bytes(area.seedValue) == obfuscation
        assert bytes(area.authValue) == b""

    def test_its_shape_is_that_of_the_oracle(self):
        """A blob that tpm2-pytss wraps itself has the same structure and sizes as ours."""
        software = SoftwareStorage(STORAGE)
        ours = seal(software.public, bytes(32), bytes(32), bytes(32), bytes(SHARING_ENTROPY))
        parent, _ = types.TPMT_PUBLIC.unmarshal(encode_public(software.public))
        area, _ = types.TPMT_PUBLIC.unmarshal(ours.public)
        sensitive = software.unwrap(_as_received(ours))
        _, theirs, secret = oracle_wrap(parent, types.TPM2B_PUBLIC(publicArea=area), sensitive)
        assert len(ours.duplicate) == len(bytes(theirs))
        assert len(ours.encrypted_seed) == len(bytes(secret))

    def test_a_signing_key_is_no_storage_parent(self):
        """Nothing is ever wrapped to a key that is not a storage parent (N82)."""
        public = storage_public(STORAGE, attributes=ObjectAttributes.SIGN)
        with pytest.raises(AlgorithmUnsupported):
            seal(public, bytes(32), bytes(32), bytes(32), bytes(SHARING_ENTROPY))


class TestBuildKeyGrant:
    def test_the_key_is_not_in_the_bytes(self):
        """The VM key and its one-time key travel encrypted only (S: keys never in the clear)."""
        entropy = bytes(range(GRANT_ENTROPY))
        made = grant(vm_key=b"plainly visible vm key", entropy=entropy)
        assert b"plainly visible" not in made.wire
        assert entropy[:32] not in made.wire
        assert entropy[32:64] not in made.wire

    def test_the_same_inputs_give_the_same_bytes(self):
        """Pure, so a replay of a request id can answer the same grant (design 6.4)."""
        assert grant().wire == grant().wire

    def test_other_entropy_changes_every_secret_part(self):
        """No part of a grant is reused for the next one."""
        first, second = grant(), grant(entropy=bytes(GRANT_ENTROPY))
        assert first.wire != second.wire
        assert first.binding == second.binding

    @pytest.mark.parametrize("size", [0, MAX_VM_KEY + 1])
    def test_vm_keys_have_1_to_4096_bytes(self, size):
        """A VM key is a passphrase of at most 4 KiB (design 8)."""
        with pytest.raises(InvalidRequest, match="4096"):
            grant(vm_key=bytes(size))

    @pytest.mark.parametrize("size", [1, MAX_VM_KEY])
    def test_the_extremes_fit(self, size):
        """The longest key still makes a grant that the agent accepts."""
        assert size < len(grant(vm_key=bytes(size)).wire) < 16384

    def test_a_binding_to_another_parent_is_a_bug(self):
        """The name in the AAD is the name of the key that the blob is wrapped to (N57)."""
        with pytest.raises(ValueError, match="another storage parent"):
            grant(binding=binding(storage_name=b"\x00\x0b" + bytes(32)))

    @pytest.mark.parametrize("size", [0, GRANT_ENTROPY - 1, GRANT_ENTROPY + 1])
    def test_a_wrong_amount_of_entropy_is_a_bug(self, size):
        """Randomness is never stretched."""
        with pytest.raises(ValueError, match="entropy"):
            grant(entropy=bytes(size))

    def test_release_keys_are_on_p256(self):
        """One signature algorithm, no negotiation."""
        with pytest.raises(AlgorithmUnsupported, match="P-256"):
            grant(release_key=ec.derive_private_key(5, ec.SECP384R1()))

    @pytest.mark.parametrize("field", ["grant_epoch", "key_epoch", "clock_bound"])
    @pytest.mark.parametrize("value", [-1, 1 << 64])
    def test_numbers_that_do_not_fit_are_refused(self, field, value):
        """N84: never cut to 64 bits, never signed."""
        with pytest.raises(ValueError, match="64-bit"):
            replace(binding(), **{field: value})

    def test_the_largest_numbers_fit(self):
        """N84: 2^64 - 1 in each number."""
        largest = binding(grant_epoch=MAXIMUM, key_epoch=MAXIMUM, clock_bound=MAXIMUM)
        assert grant(binding=largest).wire.count(b"\xff" * 8) >= 3


class TestVectors:
    def test_they_are_what_the_builder_makes(self):
        """docs/reference/keygrant.md describes what the code does: the vectors rebuild byte by byte."""
        kept = json.loads(build_vectors.VECTORS.read_text())
        assert build_vectors.build() == kept


def _as_received(sealed):
    return SealedSecret(
        public=sealed.public,
        duplicate=sealed.duplicate,
        encrypted_seed=sealed.encrypted_seed,
        pcr_selection=b"",
        counters=b"",
        clock_bound=b"",
    )


def _reference_policy(pcrs, counters, bound):
    """The three steps spelled out, with the structures of tpm2-pytss."""
    banks = [
        types.TPMS_PCR_SELECTION(
            hash=bank.tpm_id,
            sizeofSelect=3,
            pcrSelect=sum(1 << i for i in values).to_bytes(3, "little"),
        )
        for bank, values in pcrs.items()
    ]
    digest = bytes(32)
    joined = b"".join(values[i] for values in pcrs.values() for i in sorted(values))
    selection = types.TPML_PCR_SELECTION(banks).marshal()
    steps = [bytes.fromhex("0000017f") + selection + hashlib.sha256(joined).digest()]
    for operand, offset, operation in (
        (counters, 16, TPM2_EO.EQ),
        (bound.to_bytes(8, "big"), 8, TPM2_EO.UNSIGNED_LT),
    ):
        arguments = operand + offset.to_bytes(2, "big") + int(operation).to_bytes(2, "big")
        steps.append(bytes.fromhex("0000016d") + hashlib.sha256(arguments).digest())
    for step in steps:
        digest = hashlib.sha256(digest + step).digest()
    return digest
