"""Is this EK public one that a TPM makes from a template of the TCG?

Stage: verification. Trusts nothing about the public. Guarantees on return that attributes, policy,
nameAlg, cipher and key kind are those of one template: such a key decrypts credentials only, and
only inside the TPM. Does not link the key to a certificate: ``verification.endorsement`` does.
Source: TCG EK Credential Profile 2.6, annexes B.3 (L-n) and B.4 (H-n); pitfalls 22, 23.
"""

from dataclasses import dataclass

from trustauthority.errors import ResidencyUnproven, TrustAuthorityError
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.tpm import (
    EccCurve,
    EccParameters,
    ObjectAttributes,
    RsaParameters,
    SymmetricDefinition,
    TpmAlgorithm,
    TpmPublic,
)
from trustauthority.verification.keystrength import strong_public_key

_LOW_RANGE = (
    ObjectAttributes.FIXED_TPM
    | ObjectAttributes.FIXED_PARENT
    | ObjectAttributes.SENSITIVE_DATA_ORIGIN
    | ObjectAttributes.ADMIN_WITH_POLICY
    | ObjectAttributes.RESTRICTED
    | ObjectAttributes.DECRYPT
)
_HIGH_RANGE = _LOW_RANGE | ObjectAttributes.USER_WITH_AUTH
_POLICY_A_SHA256 = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
"""PolicySecret(TPM_RH_ENDORSEMENT)."""
_POLICY_B = {
    HashAlgorithm.SHA256: bytes.fromhex(
        "ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0"
    ),
    HashAlgorithm.SHA384: bytes.fromhex(
        "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419ca"
        "cb47ba09699646150f9fc000f3f80e12"
    ),
    HashAlgorithm.SHA512: bytes.fromhex(
        "b8221ca69e8550a4914de3faa6a18c072cc01208073a928d5d66d59ef79e49a4"
        "29c41a6b269571d57edb25fbdb1838425608b413cd616a5f6db5b6071af99bea"
    ),
}
"""PolicyOR(policy A, PolicyAuthorizeNV) in the hash of the template."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EkTemplate:
    """What a template fixes of a public, under the name that the TCG gives it."""

    name: str
    name_alg: HashAlgorithm
    attributes: ObjectAttributes
    auth_policy: bytes
    aes_bits: int
    kind: tuple[TpmAlgorithm, int]
    """RSA and modulus bits, or ECC and curve."""


def _low(name: str, kind: tuple[TpmAlgorithm, int]) -> EkTemplate:
    return EkTemplate(
        name=name,
        name_alg=HashAlgorithm.SHA256,
        attributes=_LOW_RANGE,
        auth_policy=_POLICY_A_SHA256,
        aes_bits=128,
        kind=kind,
    )


def _high(name: str, kind: tuple[TpmAlgorithm, int], name_alg: HashAlgorithm) -> EkTemplate:
    return EkTemplate(
        name=name,
        name_alg=name_alg,
        attributes=_HIGH_RANGE,
        auth_policy=_POLICY_B[name_alg],
        aes_bits=128 if name_alg == HashAlgorithm.SHA256 else 256,
        kind=kind,
    )


EK_TEMPLATES = (
    _low("L-1", (TpmAlgorithm.RSA, 2048)),
    _low("L-2", (TpmAlgorithm.ECC, EccCurve.NIST_P256)),
    _high("H-1", (TpmAlgorithm.RSA, 2048), HashAlgorithm.SHA256),
    _high("H-2", (TpmAlgorithm.ECC, EccCurve.NIST_P256), HashAlgorithm.SHA256),
    _high("H-3", (TpmAlgorithm.ECC, EccCurve.NIST_P384), HashAlgorithm.SHA384),
    _high("H-4", (TpmAlgorithm.ECC, EccCurve.NIST_P521), HashAlgorithm.SHA512),
    _high("H-6", (TpmAlgorithm.RSA, 3072), HashAlgorithm.SHA384),
    _high("H-7", (TpmAlgorithm.RSA, 4096), HashAlgorithm.SHA384),
)
"""Accepted templates. H-5 (SM2) is not: the curve is outside of what we can verify."""


def check_endorsement_key(public: TpmPublic) -> EkTemplate:
    """The template that an EK public follows.

    Raises:
        ResidencyUnproven: none, with the first thing that differs from the nearest one; or a weak key.
    """
    kind = _kind(public)
    candidates = [template for template in EK_TEMPLATES if template.kind == kind]
    if not candidates:
        raise ResidencyUnproven("ek: no accepted template has this kind and size of key")
    problems = [_difference(public, template) for template in candidates]
    if None not in problems:
        raise ResidencyUnproven(f"ek: {problems[0]}")
    try:
        strong_public_key(public)
    except TrustAuthorityError as error:
        raise ResidencyUnproven(f"ek: {error.message}") from error
    return candidates[problems.index(None)]


def _kind(public: TpmPublic) -> tuple[TpmAlgorithm, int]:
    parameters = public.parameters
    if isinstance(parameters, RsaParameters):
        return (public.type, parameters.key_bits)
    return (public.type, parameters.curve if isinstance(parameters, EccParameters) else 0)


def _difference(public: TpmPublic, template: EkTemplate) -> str | None:
    """The first field in which ``public`` is not what ``template`` says; None when there is none."""
    parameters = public.parameters
    cipher = SymmetricDefinition(
        algorithm=TpmAlgorithm.AES, key_bits=template.aes_bits, mode=TpmAlgorithm.CFB
    )
    kdf = parameters.kdf if isinstance(parameters, EccParameters) else None
    fields = (
        ("objectAttributes", public.attributes, template.attributes),
        ("nameAlg", public.name_alg, template.name_alg),
        ("authPolicy", public.auth_policy, template.auth_policy),
        ("symmetric", public.symmetric, cipher),
        ("scheme", public.scheme, None),
        ("kdf", kdf, None),
    )
    for name, found, expected in fields:
        if found != expected:
            return f"{name} is not that of template {template.name}"
    return None
