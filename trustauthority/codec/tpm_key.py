"""Between TPM publics and keys of the crypto library.

Stage: codec. ``public_key`` gives the key for a TPM public of an algorithm and curve we accept,
point on the curve and modulus of the stated size included; ``public_from_key`` describes a bare key
(a PEM file of the offline tool) as a TPM public. Neither says that the key is in a TPM.
Source: TCG TPM 2.0 Library, Part 2, sections 11.2.4-11.2.5; Part 1, annexes B and C.
"""

from functools import lru_cache

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from trustauthority.errors import AlgorithmUnsupported, MalformedEvidence
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.tpm import (
    EccCurve,
    EccParameters,
    EccPoint,
    ObjectAttributes,
    RsaParameters,
    Scheme,
    TpmAlgorithm,
    TpmPublic,
)

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

_CURVES: dict[EccCurve, ec.EllipticCurve] = {
    EccCurve.NIST_P256: ec.SECP256R1(),
    EccCurve.NIST_P384: ec.SECP384R1(),
    EccCurve.NIST_P521: ec.SECP521R1(),
}
_BY_CURVE_NAME = {curve.name: number for number, curve in _CURVES.items()}


@lru_cache(maxsize=4096)
def public_key(public: TpmPublic) -> PublicKey:
    """The RSA or EC key of a TPM public.

    Remembered per public, because building a key costs more than many a verification with it.

    Raises:
        AlgorithmUnsupported: another type, a curve outside P-256, P-384 and P-521.
        MalformedEvidence: a modulus of another size than keyBits, a point that is off the curve.
    """
    parameters, unique = public.parameters, public.unique
    if isinstance(parameters, RsaParameters) and isinstance(unique, bytes):
        return _rsa_key(parameters, unique)
    if isinstance(parameters, EccParameters) and isinstance(unique, EccPoint):
        return _ecc_key(parameters, unique)
    raise AlgorithmUnsupported(
        f"{public.type.name} is not a public-key algorithm", algorithm=public.type.name
    )


def public_from_key(
    key: PublicKey, *, attributes: ObjectAttributes, scheme: Scheme | None
) -> TpmPublic:
    """Describe a bare key as a TPM public with the attributes and scheme that the caller assumes.

    Its name means nothing, since a bare key does not say what template it was made from.

    Raises:
        AlgorithmUnsupported: a curve outside P-256, P-384 and P-521, an exponent beyond 32 bits.
    """
    if isinstance(key, rsa.RSAPublicKey):
        numbers = key.public_numbers()
        if numbers.e >= 1 << 32:
            raise AlgorithmUnsupported("a TPM exponent has at most 32 bits", algorithm="RSA")
        rsa_parameters = RsaParameters(
            symmetric=None, scheme=scheme, key_bits=key.key_size, exponent=numbers.e
        )
        modulus = numbers.n.to_bytes((key.key_size + 7) // 8, "big")
        return _bare(TpmAlgorithm.RSA, attributes, rsa_parameters, modulus)
    curve = _BY_CURVE_NAME.get(key.curve.name)
    if curve is None:
        raise AlgorithmUnsupported(
            f"curve {key.curve.name} is not accepted", algorithm=key.curve.name
        )
    point = key.public_numbers()
    size = curve.coordinate_size
    return _bare(
        TpmAlgorithm.ECC,
        attributes,
        EccParameters(symmetric=None, scheme=scheme, curve=curve, kdf=None),
        EccPoint(x=point.x.to_bytes(size, "big"), y=point.y.to_bytes(size, "big")),
    )


def _bare(
    kind: TpmAlgorithm,
    attributes: ObjectAttributes,
    parameters: RsaParameters | EccParameters,
    unique: bytes | EccPoint,
) -> TpmPublic:
    return TpmPublic(
        type=kind,
        name_alg=HashAlgorithm.SHA256,
        attributes=attributes,
        auth_policy=b"",
        parameters=parameters,
        unique=unique,
    )


def _rsa_key(parameters: RsaParameters, modulus: bytes) -> rsa.RSAPublicKey:
    number = int.from_bytes(modulus, "big")
    if number.bit_length() != parameters.key_bits:
        raise MalformedEvidence(
            f"the modulus has {number.bit_length()} bits, keyBits says {parameters.key_bits}",
            part="TPMT_PUBLIC",
            offset=0,
        )
    try:
        return rsa.RSAPublicNumbers(e=parameters.public_exponent, n=number).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise AlgorithmUnsupported(f"RSA key refused: {error}", algorithm="RSA") from None


def _ecc_key(parameters: EccParameters, point: EccPoint) -> ec.EllipticCurvePublicKey:
    curve = _CURVES.get(parameters.curve)
    if curve is None:
        raise AlgorithmUnsupported(
            f"curve {parameters.curve.name} is not accepted", algorithm=parameters.curve.name
        )
    numbers = ec.EllipticCurvePublicNumbers(
        x=int.from_bytes(point.x, "big"), y=int.from_bytes(point.y, "big"), curve=curve
    )
    try:
        return numbers.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise MalformedEvidence(
            f"the point is not on {parameters.curve.name}", part="TPMT_PUBLIC", offset=0
        ) from None
