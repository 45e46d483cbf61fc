"""Wrap a VM key so that one TPM opens it, in one boot, until a clock value, under given PCRs.

Stage: last step of a release, between its two transactions. Trusts that the decision was committed
and audited, that ``storage`` is the enrolled storage parent and that PCRs, counters and clock come
from one verified quote. Guarantees the bytes of KeyGrant v1 and nothing else: the VM key appears in
them only as AES-256-GCM ciphertext, its key only inside a TPM2_Import blob. Does not decide, does
not read a clock, makes no randomness. Run it in the key role's child process.
Source: docs/reference/keygrant.md; TPM 2.0 Library part 1, 19.7 (policy digests) and 23.3
(duplication); part 3, 13.3 (Import), 23.7 (PolicyPCR), 23.10 (PolicyCounterTimer).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from trustauthority.codec.tpm_public import encode_public, object_name
from trustauthority.codec.tpm_reader import encode_sized
from trustauthority.errors import AlgorithmUnsupported, InvalidRequest
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.grant import MAX_VM_KEY, GrantBinding, KeyGrant
from trustauthority.model.placement import Purpose
from trustauthority.model.tpm import (
    KeyedHashParameters,
    ObjectAttributes,
    TpmAlgorithm,
    TpmPublic,
)
from trustauthority.verification.protect import SHARING_ENTROPY, share_secret, wrap_outer

MAGIC = b"TAKG"
VERSION = 1
CIPHER_AES_256_GCM = 1
SIGNATURE_ECDSA_P256_SHA256 = 1
PURPOSE_CODES: Mapping[Purpose, int] = {
    Purpose.RUN: 1,
    Purpose.PREPARE: 2,
    Purpose.SHARE: 3,
}

_CIPHER_KEY = 32
_OBFUSCATION = 32
_NONCE = 12
GRANT_ENTROPY = _CIPHER_KEY + _OBFUSCATION + _NONCE + SHARING_ENTROPY
"""Bytes of fresh randomness that one grant takes: K, obfuscation value, nonce, seed."""

_CC_POLICY_PCR = 0x0000017F
_CC_POLICY_COUNTER_TIMER = 0x0000016D
_EO_EQ = 0x0000
_EO_UNSIGNED_LT = 0x0005
_CLOCK_OFFSET = 8
_COUNTERS_OFFSET = 16
_PCR_COUNT = 24

PcrValues = Mapping[HashAlgorithm, Mapping[int, bytes]]
"""Values by bank and number, banks in the order of the policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedObject:
    """A sealed secret for TPM2_Import under one storage parent."""

    public: bytes
    """TPMT_PUBLIC."""
    duplicate: bytes
    """Contents of TPM2B_PRIVATE."""
    encrypted_seed: bytes
    """Contents of TPM2B_ENCRYPTED_SECRET."""


def encode_selection(pcrs: PcrValues) -> bytes:
    """TPML_PCR_SELECTION with three bytes per bank.

    Raises:
        InvalidRequest: nothing is selected, or a PCR outside 0-23.
        AlgorithmUnsupported: a SHA-1 bank, on which no claim rests.
    """
    if not pcrs or not all(pcrs.values()):
        raise InvalidRequest("a key is sealed to at least one PCR of each bank", field="pcrs")
    selection = len(pcrs).to_bytes(4, "big")
    for bank, values in pcrs.items():
        if bank is HashAlgorithm.SHA1:
            raise AlgorithmUnsupported("keys are not sealed to SHA-1 PCRs", algorithm=bank)
        if not all(0 <= index < _PCR_COUNT for index in values):
            raise InvalidRequest("PCRs are numbered 0 to 23", field="pcrs")
        bitmap = sum(1 << index for index in values)
        selection += bank.tpm_id.to_bytes(2, "big") + b"\x03" + bitmap.to_bytes(3, "little")
    return selection


def policy_digest(pcrs: PcrValues, counters: bytes, bound: int) -> bytes:
    """PolicyPCR ∧ PolicyCounterTimer(counters EQ) ∧ PolicyCounterTimer(clock < bound), SHA-256.

    Args:
        pcrs: the stable PCRs, as quoted.
        counters: resetCount ‖ restartCount, 8 bytes big-endian.
        bound: TPM clock in milliseconds.
    """
    if len(counters) != 8:
        raise ValueError("resetCount and restartCount have 8 bytes together")
    values = b"".join(values[i] for values in pcrs.values() for i in sorted(values))
    digest = _extend(
        bytes(32),
        _CC_POLICY_PCR,
        encode_selection(pcrs) + hashlib.sha256(values).digest(),
    )
    digest = _extend(
        digest, _CC_POLICY_COUNTER_TIMER, _comparison(counters, _COUNTERS_OFFSET, _EO_EQ)
    )
    return _extend(
        digest,
        _CC_POLICY_COUNTER_TIMER,
        _comparison(bound.to_bytes(8, "big"), _CLOCK_OFFSET, _EO_UNSIGNED_LT),
    )


def _extend(digest: bytes, command: int, arguments: bytes) -> bytes:
    return hashlib.sha256(digest + command.to_bytes(4, "big") + arguments).digest()


def _comparison(operand: bytes, offset: int, operation: int) -> bytes:
    arguments = operand + offset.to_bytes(2, "big") + operation.to_bytes(2, "big")
    return hashlib.sha256(arguments).digest()


def seal(
    storage: TpmPublic, secret: bytes, policy: bytes, obfuscation: bytes, entropy: bytes
) -> SealedObject:
    """Make a sealed object for TPM2_Import: only the policy opens it, and no lockout closes it.

    Args:
        storage: the new parent.
        secret: at most 128 bytes.
        policy: the authPolicy, SHA-256.
        obfuscation: 32 fresh random bytes (seedValue), so that ``unique`` does not give the secret.
        entropy: ``SHARING_ENTROPY`` fresh random bytes.

    Raises:
        AlgorithmUnsupported: ``storage`` is not a storage key we share secrets with.
    """
    public = TpmPublic(
        type=TpmAlgorithm.KEYEDHASH,
        name_alg=HashAlgorithm.SHA256,
        # neither fixedTPM nor fixedParent, or it could not be imported; no userWithAuth, so that
        # the empty authorisation value opens nothing
        attributes=ObjectAttributes.NO_DA | ObjectAttributes.ADMIN_WITH_POLICY,
        auth_policy=policy,
        parameters=KeyedHashParameters(scheme=None),
        unique=hashlib.sha256(obfuscation + secret).digest(),
    )
    sensitive = (
        TpmAlgorithm.KEYEDHASH.to_bytes(2, "big")
        + encode_sized(b"")
        + encode_sized(obfuscation)
        + encode_sized(secret)
    )
    shared = share_secret(storage, b"DUPLICATE", entropy)
    return SealedObject(
        public=encode_public(public),
        duplicate=wrap_outer(storage, shared.seed, object_name(public), encode_sized(sensitive)),
        encrypted_seed=shared.encrypted,
    )


def build_key_grant(
    *,
    binding: GrantBinding,
    vm_key: bytes | bytearray,
    storage: TpmPublic,
    pcrs: PcrValues,
    counters: bytes,
    entropy: bytes,
    release_key: ec.EllipticCurvePrivateKey,
) -> KeyGrant:
    """Wrap a VM key as KeyGrant v1.

    Args:
        binding: what the key is bound to; its ``storage_name`` must be the name of ``storage``.
        vm_key: 1 to ``MAX_VM_KEY`` bytes.
        storage: the storage parent that the host enrolled.
        pcrs: the stable PCRs of the policy with their quoted values.
        counters: resetCount ‖ restartCount of the quote.
        entropy: ``GRANT_ENTROPY`` fresh random bytes, used for nothing else.
        release_key: P-256; its public part is pinned by the host since enrolment.

    Raises:
        InvalidRequest: the VM key is empty or too long, or no PCR is selected.
        AlgorithmUnsupported: the storage parent or a PCR bank is not one we use.
    """
    if not 0 < len(vm_key) <= MAX_VM_KEY:
        raise InvalidRequest(f"a VM key has 1 to {MAX_VM_KEY} bytes", field="vm_key")
    if len(entropy) != GRANT_ENTROPY:
        raise ValueError(f"a grant takes {GRANT_ENTROPY} bytes of entropy")
    if binding.storage_name != object_name(storage):
        raise ValueError("the binding names another storage parent")
    cipher_key, obfuscation, nonce, sharing = _split(entropy)
    # (1) the one-time key, for this TPM, boot, time and PCRs only
    policy = policy_digest(pcrs, counters, binding.clock_bound)
    sealed = seal(storage, cipher_key, policy, obfuscation, sharing)
    # (2) the VM key under it, bound to everything the host must check
    head = encode_head(binding, release_key.public_key())
    ciphertext = AESGCM(cipher_key).encrypt(nonce, vm_key, head)
    # (3) one canonical body, signed as a whole
    body = head + b"".join(
        (
            counters,
            encode_sized(encode_selection(pcrs)),
            encode_sized(sealed.public),
            encode_sized(sealed.duplicate),
            encode_sized(sealed.encrypted_seed),
            nonce,
            encode_sized(ciphertext),
        )
    )
    wire = len(body).to_bytes(4, "big") + body + _sign(release_key, body)
    return KeyGrant(binding=binding, counters=counters, wire=wire)


def _split(entropy: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    first = _CIPHER_KEY
    second = first + _OBFUSCATION
    third = second + _NONCE
    return entropy[:first], entropy[first:second], entropy[second:third], entropy[third:]


def encode_head(binding: GrantBinding, release_public: ec.EllipticCurvePublicKey) -> bytes:
    """Algorithms, release key and binding: the start of the body and the AEAD's associated data."""
    spki = release_public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    algorithms = (
        VERSION,
        HashAlgorithm.SHA256.tpm_id,
        CIPHER_AES_256_GCM,
        SIGNATURE_ECDSA_P256_SHA256,
    )
    return b"".join(
        (
            MAGIC,
            *(number.to_bytes(2, "big") for number in algorithms),
            hashlib.sha256(spki).digest(),
            encode_sized(binding.vm_id.encode()),
            encode_sized(binding.host_id.encode()),
            encode_sized(binding.storage_name),
            binding.grant_epoch.to_bytes(8, "big"),
            binding.key_epoch.to_bytes(8, "big"),
            encode_sized(binding.request_id.encode()),
            PURPOSE_CODES[binding.purpose].to_bytes(1, "big"),
            binding.clock_bound.to_bytes(8, "big"),
        )
    )


def _sign(release_key: ec.EllipticCurvePrivateKey, body: bytes) -> bytes:
    if not isinstance(release_key.curve, ec.SECP256R1):
        raise AlgorithmUnsupported("release keys are on P-256", algorithm=release_key.curve.name)
    # RFC 6979: the same body gives the same signature, and no bad random number leaks the key
    algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    r, s = decode_dss_signature(release_key.sign(body, algorithm))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")
