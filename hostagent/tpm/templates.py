"""State the public templates of every key the agent uses.

Stage: constants. Trusts nothing, reads nothing. Guarantees that the same TPM derives the same
primary keys from them at each start. Does not talk to a TPM.
Source: TCG EK Credential Profile 2.6, annexes B.3 (templates L) and B.4 (templates H), B.6 (policies);
TPM 2.0 Library part 2, 12.2 (public areas).
"""

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tpm2_pytss import constants, types

_ATTRIBUTE = constants.TPMA_OBJECT
_ALG = constants.TPM2_ALG

_RESIDENT = _ATTRIBUTE.FIXEDTPM | _ATTRIBUTE.FIXEDPARENT | _ATTRIBUTE.SENSITIVEDATAORIGIN
_CC_POLICY_SECRET = 0x00000151
_CC_POLICY_OR = 0x00000171
_RH_ENDORSEMENT = 0x4000000B


class EndorsementAlgorithm(StrEnum):
    """An EK template, by the algorithm that users type. ``-high`` marks the second RSA/P-256 range."""

    RSA2048 = "rsa2048"
    P256 = "p256"
    RSA2048_HIGH = "rsa2048-high"
    P256_HIGH = "p256-high"
    P384 = "p384"
    RSA3072 = "rsa3072"


class StorageAlgorithm(StrEnum):
    """The algorithm of the storage parent."""

    P256 = "p256"
    P384 = "p384"
    RSA2048 = "rsa2048"
    RSA3072 = "rsa3072"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndorsementTemplate:
    """Where an EK's certificate lies and how its key is derived."""

    certificate_index: int
    """NV index of the certificate."""
    template_index: int
    """NV index of a TPMT_PUBLIC that replaces the default template when it exists."""
    nonce_index: int | None
    """NV index of the bytes that start ``unique`` when it exists (low range only)."""
    public: bytes
    """The default template, a marshalled TPMT_PUBLIC."""


def _policy_a(hash_name: str) -> bytes:
    """PolicySecret(TPM_RH_ENDORSEMENT) with an empty policyRef (EK profile B.6.2)."""
    size = hashlib.new(hash_name).digest_size
    head = _CC_POLICY_SECRET.to_bytes(4, "big") + _RH_ENDORSEMENT.to_bytes(4, "big")
    first = hashlib.new(hash_name, bytes(size) + head).digest()
    return hashlib.new(hash_name, first).digest()


_POLICY_C = {
    "sha256": bytes.fromhex("3767e2edd43ff45a3a7e1eaefcef78643dca964632e7aad82c673a30d8633fde"),
    "sha384": bytes.fromhex(
        "d6032ce61f2fb3c240eb3cf6a33237ef2b6a16f4293c22b455e261cffd217ad5"
        "b4947c2d73e63005eed2dc2b3593d165"
    ),
}
"""PolicyAuthorizeNV on the profile's NV index (EK profile B.6.4); never satisfied by us."""


def _policy_b(hash_name: str) -> bytes:
    """PolicyOR(A, C) (EK profile B.6.5)."""
    branches = _policy_a(hash_name) + _POLICY_C[hash_name]
    size = hashlib.new(hash_name).digest_size
    return hashlib.new(
        hash_name, bytes(size) + _CC_POLICY_OR.to_bytes(4, "big") + branches
    ).digest()


def policy_branches(public: bytes) -> tuple[bytes, ...] | None:
    """What an EK's policy asks for after PolicySecret(endorsement), judged by its authPolicy.

    Returns:
        Nothing for policy A, the digests for PolicyOR for policy B, None for any other policy.
    """
    area, _ = types.TPMT_PUBLIC.unmarshal(public)
    hash_name = {int(_ALG.SHA256): "sha256", int(_ALG.SHA384): "sha384"}.get(int(area.nameAlg))
    if hash_name is None:
        return None
    policy = bytes(area.authPolicy)
    if policy == _policy_a(hash_name):
        return ()
    if policy == _policy_b(hash_name):
        return (_policy_a(hash_name), _POLICY_C[hash_name])
    return None


def _aes_cfb(bits: int) -> Any:
    return types.TPMT_SYM_DEF_OBJECT(
        algorithm=_ALG.AES,
        keyBits=types.TPMU_SYM_KEY_BITS(aes=bits),
        mode=types.TPMU_SYM_MODE(aes=_ALG.CFB),
    )


def _rsa(bits: int, symmetric: Any, unique: bytes) -> tuple[Any, Any, Any]:
    detail = types.TPMS_RSA_PARMS(
        symmetric=symmetric, scheme=types.TPMT_RSA_SCHEME(scheme=_ALG.NULL), keyBits=bits
    )
    parameters = types.TPMU_PUBLIC_PARMS(rsaDetail=detail)
    return _ALG.RSA, parameters, types.TPMU_PUBLIC_ID(rsa=unique)


def _ecc(curve: int, symmetric: Any, scheme: Any, unique: bytes) -> tuple[Any, Any, Any]:
    detail = types.TPMS_ECC_PARMS(
        symmetric=symmetric,
        scheme=scheme,
        curveID=curve,
        kdf=types.TPMT_KDF_SCHEME(scheme=_ALG.NULL),
    )
    parameters = types.TPMU_PUBLIC_PARMS(eccDetail=detail)
    return (
        _ALG.ECC,
        parameters,
        types.TPMU_PUBLIC_ID(ecc=types.TPMS_ECC_POINT(x=unique, y=unique)),
    )


def _public(
    body: tuple[Any, Any, Any], attributes: int, *, hash_name: str = "sha256", policy: bytes = b""
) -> bytes:
    kind, parameters, unique = body
    area = types.TPMT_PUBLIC(
        type=kind,
        nameAlg={"sha256": _ALG.SHA256, "sha384": _ALG.SHA384}[hash_name],
        objectAttributes=attributes,
        authPolicy=policy,
        parameters=parameters,
        unique=unique,
    )
    return bytes(area.marshal())


def _no_scheme() -> Any:
    return types.TPMT_ECC_SCHEME(scheme=_ALG.NULL)


_EK_LOW = _RESIDENT | _ATTRIBUTE.ADMINWITHPOLICY | _ATTRIBUTE.RESTRICTED | _ATTRIBUTE.DECRYPT
_EK_HIGH = _EK_LOW | _ATTRIBUTE.USERWITHAUTH


def _low(index: int, body: tuple[Any, Any, Any]) -> EndorsementTemplate:
    return EndorsementTemplate(
        certificate_index=index,
        nonce_index=index + 1,
        template_index=index + 2,
        public=_public(body, _EK_LOW, policy=_policy_a("sha256")),
    )


def _high(index: int, body: tuple[Any, Any, Any], hash_name: str) -> EndorsementTemplate:
    return EndorsementTemplate(
        certificate_index=index,
        nonce_index=None,
        template_index=index + 1,
        public=_public(body, _EK_HIGH, hash_name=hash_name, policy=_policy_b(hash_name)),
    )


ENDORSEMENTS: dict[EndorsementAlgorithm, EndorsementTemplate] = {
    EndorsementAlgorithm.RSA2048: _low(0x01C00002, _rsa(2048, _aes_cfb(128), bytes(256))),
    EndorsementAlgorithm.P256: _low(
        0x01C0000A,
        _ecc(constants.TPM2_ECC.NIST_P256, _aes_cfb(128), _no_scheme(), bytes(32)),
    ),
    EndorsementAlgorithm.RSA2048_HIGH: _high(0x01C00012, _rsa(2048, _aes_cfb(128), b""), "sha256"),
    EndorsementAlgorithm.P256_HIGH: _high(
        0x01C00014,
        _ecc(constants.TPM2_ECC.NIST_P256, _aes_cfb(128), _no_scheme(), b""),
        "sha256",
    ),
    EndorsementAlgorithm.P384: _high(
        0x01C00016,
        _ecc(constants.TPM2_ECC.NIST_P384, _aes_cfb(256), _no_scheme(), b""),
        "sha384",
    ),
    EndorsementAlgorithm.RSA3072: _high(0x01C0001C, _rsa(3072, _aes_cfb(256), b""), "sha384"),
}
"""Every EK template we can ask a TPM for. P-521, SM2 and RSA-4096 are left out on purpose."""


def endorsement_public(
    template: EndorsementTemplate, override: bytes | None, nonce: bytes | None
) -> Any:
    """The TPM2B_PUBLIC to create an EK from, with the TPM's own template and nonce when it has them.

    Args:
        template: the default.
        override: contents of ``template_index``, if that index exists.
        nonce: contents of ``nonce_index``, if that index exists; it is put at the start of
            ``unique`` and the rest stays zero (EK profile B.3.1).
    """
    area, _ = types.TPMT_PUBLIC.unmarshal(override or template.public)
    if nonce:
        if int(area.type) == int(_ALG.RSA):
            area.unique.rsa.buffer = nonce + bytes(256 - len(nonce))
        else:
            area.unique.ecc.x.buffer = nonce + bytes(32 - len(nonce))
    return types.TPM2B_PUBLIC(publicArea=area)


def _ecdsa_sha256() -> Any:
    return types.TPMT_ECC_SCHEME(
        scheme=_ALG.ECDSA,
        details=types.TPMU_ASYM_SCHEME(anySig=types.TPMS_SCHEME_HASH(hashAlg=_ALG.SHA256)),
    )


_NO_LOCKOUT = _RESIDENT | _ATTRIBUTE.USERWITHAUTH | _ATTRIBUTE.NODA
_NULL = types.TPMT_SYM_DEF_OBJECT(algorithm=_ALG.NULL)
_P256 = constants.TPM2_ECC.NIST_P256
_P384 = constants.TPM2_ECC.NIST_P384
_IDENTITY_UNIQUE = hashlib.sha256(b"trustauthority host TLS identity").digest()
"""Derives a key of our own, not the one that any program gets from the same bare template."""


def _two_b(public: bytes) -> Any:
    area, _ = types.TPMT_PUBLIC.unmarshal(public)
    return types.TPM2B_PUBLIC(publicArea=area)


def attestation_key() -> Any:
    """The AK: ECDSA P-256 with SHA-256, restricted, signs only what the TPM itself made."""
    body = _ecc(_P256, _NULL, _ecdsa_sha256(), b"")
    return _two_b(
        _public(body, _NO_LOCKOUT | _ATTRIBUTE.RESTRICTED | _ATTRIBUTE.SIGN_ENCRYPT),
    )


def identity_key() -> Any:
    """The TLS identity: ECDSA P-256 with SHA-256, not restricted (it signs TLS handshakes)."""
    body = _ecc(_P256, _NULL, _ecdsa_sha256(), _IDENTITY_UNIQUE)
    return _two_b(_public(body, _NO_LOCKOUT | _ATTRIBUTE.SIGN_ENCRYPT))


def storage_parent(algorithm: StorageAlgorithm) -> Any:
    """The storage parent: restricted decrypt with AES-CFB, to be created as an owner primary.

    P-256 and RSA-2048 are the storage root keys of TCG's TPM 2.0 Provisioning Guidance 1.0, section
    7.5.1 (SHA-256, AES-128); P-384 and RSA-3072 are of one strength throughout (SHA-384, AES-256).
    """
    strong = algorithm in {StorageAlgorithm.P384, StorageAlgorithm.RSA3072}
    symmetric = _aes_cfb(256 if strong else 128)
    bodies = {
        StorageAlgorithm.P256: lambda: _ecc(_P256, symmetric, _no_scheme(), bytes(32)),
        StorageAlgorithm.P384: lambda: _ecc(_P384, symmetric, _no_scheme(), bytes(48)),
        StorageAlgorithm.RSA2048: lambda: _rsa(2048, symmetric, bytes(256)),
        StorageAlgorithm.RSA3072: lambda: _rsa(3072, symmetric, bytes(384)),
    }
    attributes = _NO_LOCKOUT | _ATTRIBUTE.RESTRICTED | _ATTRIBUTE.DECRYPT
    hash_name = "sha384" if strong else "sha256"
    return _two_b(_public(bodies[algorithm](), attributes, hash_name=hash_name))
