"""Does this signature come from this key, made the way this key signs?

Stage: verification. Trusts only that the caller chose the right public. Guarantees on return that
the scheme and hash are the key's own, that the key is strong enough, that the numbers are in range
and that the mathematics hold over the very bytes that were received. Every other outcome, a crash
of a library included, is ``QuoteSignatureInvalid``. Does not look into the message.
Source: TCG TPM 2.0 Library, Part 1, annexes B and C; pitfalls 9-15; FIPS 186-5.
"""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from trustauthority.errors import QuoteSignatureInvalid, TrustAuthorityError
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.tpm import (
    EccCurve,
    EccParameters,
    ObjectAttributes,
    Signature,
    TpmAlgorithm,
    TpmPublic,
)
from trustauthority.verification.keystrength import strong_public_key

_HASHES: dict[HashAlgorithm, hashes.HashAlgorithm] = {
    HashAlgorithm.SHA1: hashes.SHA1(),  # noqa: S303  # only with allow_sha1, see _check_scheme
    HashAlgorithm.SHA256: hashes.SHA256(),
    HashAlgorithm.SHA384: hashes.SHA384(),
    HashAlgorithm.SHA512: hashes.SHA512(),
}
_ECDSA = {name: ec.ECDSA(algorithm) for name, algorithm in _HASHES.items()}
_PKCS1 = padding.PKCS1v15()
_PSS = {
    # Chips differ: the salt is as long as the digest, or as long as fits.
    name: padding.PSS(mgf=padding.MGF1(algorithm), salt_length=padding.PSS.AUTO)
    for name, algorithm in _HASHES.items()
}
_ORDERS = {
    EccCurve.NIST_P256: 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    EccCurve.NIST_P384: 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973,
    EccCurve.NIST_P521: 0x1FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFA51868783BF2F966B7FCC0148F709A5D03BB5C9B8899C47AEBB6FB71E91386409,
}
"""Orders n of the groups (SEC 2, sections 2.4.2, 2.5.1, 2.6.1)."""

_ATTESTATION_SET = int(
    ObjectAttributes.FIXED_TPM
    | ObjectAttributes.FIXED_PARENT
    | ObjectAttributes.SENSITIVE_DATA_ORIGIN
    | ObjectAttributes.RESTRICTED
    | ObjectAttributes.SIGN
)
_ATTESTATION_MASK = _ATTESTATION_SET | int(ObjectAttributes.DECRYPT)
"""Plain integers: flags are compared for each quote, and IntFlag is slow at it."""


def check_signature(
    public: TpmPublic, message: bytes, signature: Signature, *, allow_sha1: bool = False
) -> None:
    """Return only if ``signature`` is one of ``public`` over ``message``.

    Raises:
        QuoteSignatureInvalid: in every other case, with what was wrong.
    """
    try:
        # (1) The scheme and hash are the key's own: no choice for whoever wrote the signature.
        _check_scheme(public, signature, allow_sha1=allow_sha1)
        # (2) The key is of a kind and size that we rely on.
        key = strong_public_key(public)
        # (3) The mathematics.
        if isinstance(key, rsa.RSAPublicKey):
            _check_rsa(key, message, signature)
        else:
            _check_ecdsa(key, public, message, signature)
    except QuoteSignatureInvalid:
        raise
    except InvalidSignature:
        raise QuoteSignatureInvalid("the signature does not verify under this key") from None
    except TrustAuthorityError as error:
        raise QuoteSignatureInvalid(f"the key can't be used: {error.message}") from error
    except Exception as error:  # a library's surprise is a refusal, never a pass (pitfall 14)
        raise QuoteSignatureInvalid(
            f"the signature could not be checked: {type(error).__name__}"
        ) from error


def check_attestation_key(public: TpmPublic) -> None:
    """Refuse to rely on structures that this key may have signed without the TPM having made them.

    Raises:
        QuoteSignatureInvalid: the key is not restricted to signing what its TPM made.
    """
    if int(public.attributes) & _ATTESTATION_MASK != _ATTESTATION_SET:
        raise QuoteSignatureInvalid(
            "the key is no attestation key: it must be fixedTPM, fixedParent, sensitiveDataOrigin,"
            " restricted and sign, and must not decrypt"
        )


def _check_scheme(public: TpmPublic, signature: Signature, *, allow_sha1: bool) -> None:
    scheme = public.scheme
    if scheme is None:
        raise QuoteSignatureInvalid("the key leaves its scheme open")
    if (scheme.algorithm, scheme.hash) != (signature.scheme, signature.hash):
        raise QuoteSignatureInvalid(
            f"the key signs with {scheme.algorithm.name} and {scheme.hash},"
            f" the signature says {signature.scheme.name} and {signature.hash}"
        )
    if signature.hash not in _HASHES:
        raise QuoteSignatureInvalid(f"signatures with {signature.hash} are not accepted")
    if signature.hash == HashAlgorithm.SHA1 and not allow_sha1:
        raise QuoteSignatureInvalid("SHA-1 signatures are not allowed by policy")


def _check_rsa(key: rsa.RSAPublicKey, message: bytes, signature: Signature) -> None:
    if signature.scheme == TpmAlgorithm.RSASSA:
        scheme: padding.AsymmetricPadding = _PKCS1
    elif signature.scheme == TpmAlgorithm.RSAPSS:
        scheme = _PSS[signature.hash]
    else:
        raise QuoteSignatureInvalid(f"{signature.scheme.name} is not a scheme of an RSA key")
    (block,) = signature.values
    if len(block) * 8 != key.key_size:
        raise QuoteSignatureInvalid("the signature is not as long as the modulus")
    key.verify(block, message, scheme, _HASHES[signature.hash])


def _check_ecdsa(
    key: ec.EllipticCurvePublicKey, public: TpmPublic, message: bytes, signature: Signature
) -> None:
    parameters = public.parameters
    if signature.scheme != TpmAlgorithm.ECDSA or not isinstance(parameters, EccParameters):
        raise QuoteSignatureInvalid(f"{signature.scheme.name} is not a scheme of an ECDSA key")
    size, order = parameters.curve.coordinate_size, _ORDERS[parameters.curve]
    r_bytes, s_bytes = signature.values
    if len(r_bytes) != size or len(s_bytes) != size:
        raise QuoteSignatureInvalid(f"r and s must have {size} bytes each")
    r, s = int.from_bytes(r_bytes, "big"), int.from_bytes(s_bytes, "big")
    if not (0 < r < order and 0 < s < order):
        raise QuoteSignatureInvalid("r or s is not between 1 and the order of the group")
    key.verify(encode_dss_signature(r, s), message, _ECDSA[signature.hash])
