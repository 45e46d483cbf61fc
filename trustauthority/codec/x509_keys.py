"""Public keys and signatures of certificates.

Stage: codec. Trusts nothing on entry. On exit a key is one that the crypto library accepts: a point
lies on its named curve, an RSA modulus is positive and of bounded size. A signature is checked over
the bytes that it is given and nothing else. Does not judge strength: ``verification.keystrength``
does. Builds keys from their numbers, so that RSAES-OAEP keys (1.2.840.113549.1.1.7), which OpenSSL
and others refuse to load, are plain RSA keys here (pitfall A.1). Source: RFC 3279, RFC 4055, RFC 5480.
"""

from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from trustauthority.codec.der import (
    INTEGER,
    OBJECT_IDENTIFIER,
    SEQUENCE,
    DerReader,
    context,
    integer,
    object_identifier,
)
from trustauthority.codec.tpm_key import PublicKey
from trustauthority.errors import AlgorithmUnsupported, MalformedEvidence
from trustauthority.model.certificate import SignatureAlgorithm, SubjectPublicKeyInfo

MAX_RSA_BITS: Final = 8192
"""Longer moduli only serve to keep a verifier busy (pitfall 65)."""

_RSA_ENCRYPTION: Final = "1.2.840.113549.1.1.1"
_RSAES_OAEP: Final = "1.2.840.113549.1.1.7"
_EC_PUBLIC_KEY: Final = "1.2.840.10045.2.1"
_CURVES: Final[dict[str, ec.EllipticCurve]] = {
    "1.2.840.10045.3.1.7": ec.SECP256R1(),
    "1.3.132.0.34": ec.SECP384R1(),
    "1.3.132.0.35": ec.SECP521R1(),
}
_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "1.3.14.3.2.26": hashes.SHA1(),  # noqa: S303  # only where the caller allows it
    "2.16.840.1.101.3.4.2.1": hashes.SHA256(),
    "2.16.840.1.101.3.4.2.2": hashes.SHA384(),
    "2.16.840.1.101.3.4.2.3": hashes.SHA512(),
}
_PKCS1: Final[dict[str, hashes.HashAlgorithm]] = {
    "1.2.840.113549.1.1.5": hashes.SHA1(),  # noqa: S303  # only where the caller allows it
    "1.2.840.113549.1.1.11": hashes.SHA256(),
    "1.2.840.113549.1.1.12": hashes.SHA384(),
    "1.2.840.113549.1.1.13": hashes.SHA512(),
}
_ECDSA: Final[dict[str, hashes.HashAlgorithm]] = {
    "1.2.840.10045.4.1": hashes.SHA1(),  # noqa: S303  # only where the caller allows it
    "1.2.840.10045.4.3.2": hashes.SHA256(),
    "1.2.840.10045.4.3.3": hashes.SHA384(),
    "1.2.840.10045.4.3.4": hashes.SHA512(),
}
_RSASSA_PSS: Final = "1.2.840.113549.1.1.10"
_MGF1: Final = "1.2.840.113549.1.1.8"
_SHA1: Final = "1.3.14.3.2.26"


@lru_cache(maxsize=2048)
def certificate_key(info: SubjectPublicKeyInfo) -> PublicKey:
    """The key of a certificate; remembered, because building it costs more than a verification.

    Raises:
        AlgorithmUnsupported: neither RSA nor a named curve P-256, P-384 or P-521.
        MalformedEvidence: numbers that make no key.
    """
    if info.algorithm in {_RSA_ENCRYPTION, _RSAES_OAEP}:
        return _rsa_key(info.key)
    if info.algorithm == _EC_PUBLIC_KEY:
        return _ec_key(info)
    raise AlgorithmUnsupported(
        f"keys of type {info.algorithm} are not accepted", algorithm=info.algorithm
    )


def _rsa_key(key: bytes) -> rsa.RSAPublicKey:
    part = "RSAPublicKey"
    outer = DerReader(key, part=part)
    reader = outer.read(part, SEQUENCE).reader()
    outer.finish()
    modulus = integer(reader.read("modulus", INTEGER))
    exponent = integer(reader.read("publicExponent", INTEGER))
    reader.finish()
    if modulus.bit_length() > MAX_RSA_BITS or exponent.bit_length() > 64:
        raise AlgorithmUnsupported(
            f"RSA of {modulus.bit_length()} bits is not accepted", algorithm="RSA"
        )
    if modulus <= 0 or exponent <= 0:
        raise MalformedEvidence("these numbers make no RSA key", part=part, offset=0)
    try:
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError as error:
        raise MalformedEvidence("these numbers make no RSA key", part=part, offset=0) from error


def _ec_key(info: SubjectPublicKeyInfo) -> ec.EllipticCurvePublicKey:
    part = "ECParameters"
    reader = DerReader(info.parameters or b"", part=part)
    if not reader.next_is(OBJECT_IDENTIFIER):
        raise AlgorithmUnsupported("the curve is not a named one", algorithm="ECC")
    name = object_identifier(reader.read(part, OBJECT_IDENTIFIER))
    curve = _CURVES.get(name)
    if curve is None:
        raise AlgorithmUnsupported(f"curve {name} is not accepted", algorithm=name)
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(curve, info.key)
    except ValueError as error:
        raise MalformedEvidence("not a point on its curve", part="ECPoint", offset=0) from error


def uses_sha1(algorithm: SignatureAlgorithm) -> bool:
    """Whether the signature rests on SHA-1."""
    return isinstance(_signature_hash(algorithm)[0], hashes.SHA1)


def check_certificate_signature(
    key: PublicKey, message: bytes, signature: bytes, algorithm: SignatureAlgorithm
) -> None:
    """Return only if ``signature`` is one of ``key`` over ``message``.

    Raises:
        InvalidSignature: it is not (the caller knows how to name the two certificates).
        AlgorithmUnsupported: an algorithm outside the list, or one that does not fit the key.
    """
    algorithm_hash, salt = _signature_hash(algorithm)
    identifier = algorithm.object_identifier
    try:
        if isinstance(key, ec.EllipticCurvePublicKey) and identifier in _ECDSA:
            key.verify(signature, message, ec.ECDSA(algorithm_hash))
        elif isinstance(key, rsa.RSAPublicKey) and identifier in _PKCS1:
            key.verify(signature, message, padding.PKCS1v15(), algorithm_hash)
        elif isinstance(key, rsa.RSAPublicKey) and salt is not None:
            pss = padding.PSS(mgf=padding.MGF1(algorithm_hash), salt_length=salt)
            key.verify(signature, message, pss, algorithm_hash)
        else:
            raise AlgorithmUnsupported(
                f"signature {identifier} does not fit the issuer's key", algorithm=identifier
            )
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidSignature from error


def _signature_hash(algorithm: SignatureAlgorithm) -> tuple[hashes.HashAlgorithm, int | None]:
    """The hash, and for RSASSA-PSS the salt length."""
    identifier = algorithm.object_identifier
    if identifier == _RSASSA_PSS:
        return _pss_parameters(algorithm)
    found = _PKCS1.get(identifier) or _ECDSA.get(identifier)
    if found is None:
        raise AlgorithmUnsupported(
            f"signatures of type {identifier} are not accepted", algorithm=identifier
        )
    return found, None


def _pss_parameters(algorithm: SignatureAlgorithm) -> tuple[hashes.HashAlgorithm, int]:
    """``RSASSA-PSS-params``: one hash for message and mask, its salt length (RFC 4055 section 3.1)."""
    part = "RSASSA-PSS-params"
    reader = DerReader(algorithm.parameters or b"\x30\x00", part=part).read(part, SEQUENCE).reader()
    message_hash, mask_hash, salt = _SHA1, _SHA1, 20
    if reader.next_is(context(0)):
        message_hash, _ = _algorithm(reader.read("hashAlgorithm").reader())
    if reader.next_is(context(1)):
        mask, rest = _algorithm(reader.read("maskGenAlgorithm").reader())
        if mask != _MGF1:
            raise AlgorithmUnsupported(f"mask {mask} is not MGF1", algorithm=mask)
        mask_hash, _ = _algorithm(rest)
    if reader.next_is(context(2)):
        salt = integer(reader.read("saltLength").reader().read("saltLength", INTEGER))
    if reader.next_is(context(3)):
        reader.read("trailerField")
    reader.finish()
    if message_hash != mask_hash or message_hash not in _HASHES or not 0 <= salt <= 64:
        raise AlgorithmUnsupported("PSS parameters are not accepted", algorithm=_RSASSA_PSS)
    return _HASHES[message_hash], salt


def _algorithm(reader: DerReader) -> tuple[str, DerReader]:
    """The OID of an AlgorithmIdentifier, and a reader that stands at its parameters."""
    inside = reader.read("AlgorithmIdentifier", SEQUENCE).reader()
    return object_identifier(inside.read("algorithm", OBJECT_IDENTIFIER)), inside
