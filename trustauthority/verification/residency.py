"""Do the three keys of a host live in the TPM of its EK, where they have to?

Stage: verification. Trusts on entry: that the EK belongs to an accepted TPM (``endorsement``).
Guarantees on exit: each key has the attributes of design section 6.1, the AK's own signatures say
that it hangs below this EK and that the other two are in the owner hierarchy of the same TPM, and
all was made for this authority, cluster, host label and challenge. Does not show that the AK itself
is in the TPM of the EK: TPM2_MakeCredential over ``ResidentKeys.ak_name`` does, because an AK that is
software can certify whatever it likes.
Source: TCG TPM 2.0 Library, Part 3, section 18.2 (TPM2_Certify); Part 1, section 16 (names);
pitfalls 14, 15, 18-20; N16, N78, N82.
"""

import hashlib
import hmac
from dataclasses import dataclass

from trustauthority.codec.tpm import (
    decode_attest,
    decode_signature,
    encode_public,
    object_name,
    primary_qualified_name,
    qualified_name,
)
from trustauthority.errors import ResidencyUnproven, TrustAuthorityError
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.tpm import (
    HANDLE_ENDORSEMENT,
    HANDLE_OWNER,
    CertifyAttest,
    ClockInfo,
    ObjectAttributes,
    TpmAlgorithm,
    TpmPublic,
)
from trustauthority.verification.ektemplate import check_endorsement_key
from trustauthority.verification.keystrength import strong_public_key
from trustauthority.verification.signature import check_signature

_LABEL = b"trustauthority/enrol/v1\0"
_NAME_ALGORITHMS = frozenset({HashAlgorithm.SHA256, HashAlgorithm.SHA384, HashAlgorithm.SHA512})
_SIGNING_SCHEMES = frozenset({TpmAlgorithm.RSASSA, TpmAlgorithm.RSAPSS, TpmAlgorithm.ECDSA})
_TLS_SCHEMES = frozenset({TpmAlgorithm.RSAPSS, TpmAlgorithm.ECDSA})
"""TLS 1.3 has no RSASSA for handshakes; a key may also leave its scheme open."""

_A = ObjectAttributes
_IN_THIS_TPM = _A.FIXED_TPM | _A.FIXED_PARENT | _A.SENSITIVE_DATA_ORIGIN | _A.NO_DA
"""noDA, because three power cuts otherwise lock the TPM out of its own keys."""
_DECIDED = _A.RESTRICTED | _A.SIGN | _A.DECRYPT
"""Attributes that must be as the role says, set or clear."""
_SPELLING = {
    _A.FIXED_TPM: "fixedTPM",
    _A.FIXED_PARENT: "fixedParent",
    _A.SENSITIVE_DATA_ORIGIN: "sensitiveDataOrigin",
    _A.NO_DA: "noDA",
    _A.RESTRICTED: "restricted",
    _A.SIGN: "sign",
    _A.DECRYPT: "decrypt",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentBinding:
    """What an enrolment is for; a relayed one is for something else (N78)."""

    authority_ca_sha256: bytes
    """SHA-256 of the authority's CA certificate (DER) that the agent has pinned."""
    cluster: str
    host_label: str
    """The name that the host asks for."""
    challenge: bytes
    """The token of purpose enrol, already checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyCertification:
    """A TPM2_Certify by the AK, as received."""

    attest: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedKeys:
    """The publics that a host shows; nothing about them is known yet."""

    ek: TpmPublic
    ak: TpmPublic
    tls: TpmPublic
    storage: TpmPublic
    tls_certification: KeyCertification
    storage_certification: KeyCertification


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentKeys:
    """Names of keys shown to be in one TPM, provided the AK is. Constructed in this module only."""

    ek_name: bytes
    ak_name: bytes
    """What TPM2_MakeCredential must be made for."""
    ak_qualified_name: bytes
    """What every later quote must name as its signer."""
    tls_name: bytes
    storage_name: bytes
    clock_info: ClockInfo
    """Of the later of the two certifications: later structures must be newer."""


def verify_residency(keys: ClaimedKeys, binding: EnrolmentBinding) -> ResidentKeys:
    """Check the keys of a host step by step; the first doubt refuses the enrolment.

    Raises:
        ResidencyUnproven: naming the key and the attribute, name or field.
        MalformedEvidence: a certification that does not decode.
    """
    # (1) The EK is of a template that only a TPM fills: restricted, decrypt, policy of the TCG.
    check_endorsement_key(keys.ek)
    # (2) Each key is what its role asks for.
    _check_attestation_key(keys.ak)
    _check_tls_key(keys.tls)
    _check_storage_key(keys.storage)
    # (3) Names are computed here, never taken from the host (pitfall 20), and all differ.
    ek_name, ak_name = object_name(keys.ek), object_name(keys.ak)
    tls_name, storage_name = object_name(keys.tls), object_name(keys.storage)
    if len({ek_name, ak_name, tls_name, storage_name}) != 4:
        raise ResidencyUnproven("two of the keys are the same key: names must differ")
    # (4) The AK is a child of the EK, the storage parent an owner primary, the TLS identity either
    #     an owner primary too or a child of the storage parent.
    ak_qualified_name = qualified_name(primary_qualified_name(HANDLE_ENDORSEMENT, ek_name), ak_name)
    storage_qualified_name = primary_qualified_name(HANDLE_OWNER, storage_name)
    tls_qualified_names = (
        primary_qualified_name(HANDLE_OWNER, tls_name),
        qualified_name(storage_qualified_name, tls_name),
    )
    # (5) The AK says so, for this authority, cluster, label and challenge.
    signer = _Signer(keys.ak, ak_qualified_name)
    tls_clock = _check_certification(
        keys.tls_certification,
        signer=signer,
        role="tls",
        extra_data=certification_data(binding, keys.ek, ak_name, "tls"),
        name=tls_name,
        qualified_names=tls_qualified_names,
    )
    storage_clock = _check_certification(
        keys.storage_certification,
        signer=signer,
        role="storage",
        extra_data=certification_data(binding, keys.ek, ak_name, "storage"),
        name=storage_name,
        qualified_names=(storage_qualified_name,),
    )
    return ResidentKeys(
        ek_name=ek_name,
        ak_name=ak_name,
        ak_qualified_name=ak_qualified_name,
        tls_name=tls_name,
        storage_name=storage_name,
        clock_info=max(tls_clock, storage_clock, key=lambda clock: clock.position),
    )


def certification_data(
    binding: EnrolmentBinding, ek: TpmPublic, ak_name: bytes, role: str
) -> bytes:
    """The extraData of a certification: 32 bytes, role ``tls`` or ``storage``.

    SHA-256 over ``trustauthority/enrol/v1`` NUL, the SHA-256 of the authority CA certificate, and
    then the SHA-256 of each of: cluster, host label, challenge token, EK's TPMT_PUBLIC, AK name,
    role. Every part has a fixed length, so no two enrolments share an encoding.

    Raises ValueError when the CA hash has not 32 bytes.
    """
    if len(binding.authority_ca_sha256) != 32:
        raise ValueError("the hash of the authority CA has 32 bytes")
    parts = (
        binding.cluster.encode("utf-8"),
        binding.host_label.encode("utf-8"),
        binding.challenge,
        ek.raw or encode_public(ek),
        ak_name,
        role.encode("ascii"),
    )
    joined = b"".join(hashlib.sha256(part).digest() for part in parts)
    return hashlib.sha256(_LABEL + binding.authority_ca_sha256 + joined).digest()


@dataclass(frozen=True, slots=True)
class _Signer:
    """The AK that certified, and the qualified name it must have."""

    public: TpmPublic
    qualified_name: bytes


def _check_certification(
    certification: KeyCertification,
    *,
    signer: _Signer,
    role: str,
    extra_data: bytes,
    name: bytes,
    qualified_names: tuple[bytes, ...],
) -> ClockInfo:
    attest = decode_attest(certification.attest)
    if not isinstance(attest, CertifyAttest):
        raise ResidencyUnproven(f"{role}: the proof has the magic or type of no certification")
    signature = decode_signature(certification.signature)
    try:
        check_signature(signer.public, certification.attest, signature)
    except TrustAuthorityError as error:
        raise ResidencyUnproven(f"{role}: signature of the AK: {error.message}") from error
    if attest.qualified_signer != signer.qualified_name:
        raise ResidencyUnproven(f"{role}: qualifiedSigner: the AK is not a child of the EK")
    if not hmac.compare_digest(attest.extra_data, extra_data):
        raise ResidencyUnproven(
            f"{role}: extraData: certified for another authority, cluster, name, challenge or key"
        )
    if attest.name != name:
        raise ResidencyUnproven(f"{role}: name: the AK certified another key")
    if attest.qualified_name not in qualified_names:
        raise ResidencyUnproven(f"{role}: qualifiedName: the key is not where it must be")
    return attest.clock_info


# --- one key at a time -------------------------------------------------------------------------


def _check_attestation_key(public: TpmPublic) -> None:
    """The AK: restricted and sign, so that it signs only what its TPM made."""
    _check_attributes("ak", public, _A.RESTRICTED | _A.SIGN)
    scheme = public.scheme
    if scheme is None or scheme.algorithm not in _SIGNING_SCHEMES:
        raise ResidencyUnproven("ak: scheme: must be RSASSA, RSAPSS or ECDSA")
    if scheme.hash not in _NAME_ALGORITHMS:
        raise ResidencyUnproven(f"ak: scheme: hash {scheme.hash} is not accepted")
    _check_strength("ak", public)


def _check_tls_key(public: TpmPublic) -> None:
    """The TLS identity: sign, and not restricted, or it could not sign a handshake."""
    _check_attributes("tls", public, _A.SIGN)
    scheme = public.scheme
    if scheme is not None and (
        scheme.algorithm not in _TLS_SCHEMES or scheme.hash not in _NAME_ALGORITHMS
    ):
        raise ResidencyUnproven("tls: scheme: must be open, RSAPSS or ECDSA with SHA-2")
    _check_strength("tls", public)


def _check_storage_key(public: TpmPublic) -> None:
    """The storage parent: restricted and decrypt, wrapping its children with AES-CFB."""
    _check_attributes("storage", public, _A.RESTRICTED | _A.DECRYPT)
    symmetric = public.symmetric
    if (
        symmetric is None
        or (symmetric.algorithm, symmetric.mode) != (TpmAlgorithm.AES, TpmAlgorithm.CFB)
        or symmetric.key_bits not in {128, 256}
    ):
        raise ResidencyUnproven("storage: symmetric: must be AES-128 or AES-256 in CFB mode")
    if public.scheme is not None:
        raise ResidencyUnproven("storage: scheme: must be open")
    _check_strength("storage", public)


def _check_attributes(role: str, public: TpmPublic, decided: ObjectAttributes) -> None:
    if public.name_alg not in _NAME_ALGORITHMS:
        raise ResidencyUnproven(f"{role}: nameAlg {public.name_alg} is weaker than SHA-256")
    required = _IN_THIS_TPM | decided
    for attribute, spelling in _SPELLING.items():
        if attribute in required and attribute not in public.attributes:
            raise ResidencyUnproven(f"{role}: {spelling} is not set", attribute=spelling)
        if attribute in _DECIDED & ~decided and attribute in public.attributes:
            raise ResidencyUnproven(f"{role}: {spelling} is set", attribute=spelling)


def _check_strength(role: str, public: TpmPublic) -> None:
    try:
        strong_public_key(public)
    except TrustAuthorityError as error:
        raise ResidencyUnproven(f"{role}: {error.message}") from error
