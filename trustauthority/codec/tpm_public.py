"""TPMT_PUBLIC to and from bytes, names and qualified names.

Stage: codec. Trusts nothing on entry; any bytes give a ``TpmPublic`` or ``MalformedEvidence``.
Guarantees that the whole buffer was consumed and that encoding the result gives the same bytes, so
a name computed from the model is the name the TPM computes. Does not judge attributes, sizes or
schemes: ``verification`` does.
Source: TCG TPM 2.0 Library, Part 2, sections 12.2 (public area) and 11.1-11.2 (schemes); Part 1,
section 16 (names).
"""

import hashlib
import struct
from functools import lru_cache

from trustauthority.codec.tpm_reader import TpmReader, decode_sized, encode_sized
from trustauthority.errors import AlgorithmUnsupported
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.tpm import (
    EccCurve,
    EccParameters,
    EccPoint,
    KeyedHashParameters,
    ObjectAttributes,
    PublicParameters,
    RsaParameters,
    Scheme,
    SymmetricCipherParameters,
    SymmetricDefinition,
    TpmAlgorithm,
    TpmPublic,
)

_PART = "TPMT_PUBLIC"
_KNOWN_ATTRIBUTES = sum(ObjectAttributes)
_A = TpmAlgorithm
_TYPES = frozenset({_A.RSA, _A.ECC, _A.KEYEDHASH, _A.SYMCIPHER})
_CIPHERS = frozenset({_A.TDES, _A.AES, _A.SM4, _A.CAMELLIA, _A.NULL})
_MODES = frozenset({_A.CTR, _A.OFB, _A.CBC, _A.CFB, _A.ECB, _A.NULL})
_RSA_SCHEMES = frozenset({_A.RSASSA, _A.RSAES, _A.RSAPSS, _A.OAEP, _A.NULL})
_ECC_SCHEMES = frozenset({_A.ECDSA, _A.ECDH, _A.ECDAA, _A.SM2, _A.ECSCHNORR, _A.NULL})
_KEYED_HASH_SCHEMES = frozenset({_A.HMAC, _A.XOR, _A.NULL})
_KDFS = frozenset({_A.MGF1, _A.KDF1_SP800_56A, _A.KDF2, _A.KDF1_SP800_108, _A.NULL})
_MAX_DIGEST = 64
_MAX_RSA = 2048
"""Bytes of a modulus: RSA-16384. ``verification`` accepts far less."""
_MAX_COORDINATE = 128


@lru_cache(maxsize=4096)
def decode_public(data: bytes) -> TpmPublic:
    """Decode a TPMT_PUBLIC that fills ``data``; the keys of hosts in use are remembered."""
    reader = TpmReader(data, _PART)
    kind = reader.algorithm("type", _TYPES)
    name_alg = _read_name_alg(reader)
    attributes = _read_attributes(reader)
    auth_policy = reader.sized("authPolicy", _MAX_DIGEST)
    parameters = _read_parameters(reader, kind)
    unique = _read_unique(reader, kind)
    reader.finish()
    return TpmPublic(
        type=kind,
        name_alg=name_alg,
        attributes=attributes,
        auth_policy=auth_policy,
        parameters=parameters,
        unique=unique,
        raw=data,
    )


def decode_public_sized(data: bytes) -> TpmPublic:
    """Decode a TPM2B_PUBLIC that fills ``data``."""
    return decode_public(decode_sized(data, "TPM2B_PUBLIC"))


def encode_public(public: TpmPublic) -> bytes:
    """The TPMT_PUBLIC of a model, built here or received."""
    name_alg = _A.NULL if public.name_alg is None else public.name_alg.tpm_id
    return (
        struct.pack(">HHI", public.type, name_alg, public.attributes)
        + encode_sized(public.auth_policy)
        + _encode_parameters(public.parameters)
        + _encode_unique(public.unique)
    )


def object_name(public: TpmPublic) -> bytes:
    """The name of an object: nameAlg ‖ H(TPMT_PUBLIC), over the received bytes where there are any.

    Raises AlgorithmUnsupported for nameAlg NULL: such an object has no name to trust.
    """
    return _named_digest(_name_alg(public), public.raw or encode_public(public))


def qualified_name(parent_qualified_name: bytes, name: bytes) -> bytes:
    """The qualified name of an object below ``parent_qualified_name`` (Part 1, section 16.5).

    Raises AlgorithmUnsupported when ``name`` does not start with the id of a known hash.
    """
    algorithm = HashAlgorithm.from_tpm_id(int.from_bytes(name[:2], "big"))
    if algorithm is None or len(name) != 2 + algorithm.size:
        raise AlgorithmUnsupported(
            f"{name[:2].hex() or 'an empty name'} is not a name of a known hash",
            algorithm=name[:2].hex(),
        )
    return _named_digest(algorithm, parent_qualified_name + name)


def primary_qualified_name(hierarchy: int, name: bytes) -> bytes:
    """The qualified name of a primary object: its parent is the handle of the hierarchy."""
    return qualified_name(hierarchy.to_bytes(4, "big"), name)


def _name_alg(public: TpmPublic) -> HashAlgorithm:
    if public.name_alg is None:
        raise AlgorithmUnsupported("an object with nameAlg NULL has no name", algorithm="null")
    return public.name_alg


def _named_digest(algorithm: HashAlgorithm, data: bytes) -> bytes:
    try:
        digest = hashlib.new(_HASHLIB_NAMES.get(algorithm, algorithm), data).digest()
    except ValueError:
        raise AlgorithmUnsupported(
            f"{algorithm} is not available here", algorithm=algorithm
        ) from None
    return algorithm.tpm_id.to_bytes(2, "big") + digest


_HASHLIB_NAMES = {HashAlgorithm.SM3_256: "sm3"}


# --- reading -----------------------------------------------------------------------------------


def _read_name_alg(reader: TpmReader) -> HashAlgorithm | None:
    start = reader.offset
    number = reader.integer(2, "nameAlg")
    if number == _A.NULL:
        return None
    algorithm = HashAlgorithm.from_tpm_id(number)
    if algorithm is None:
        reader.fail(f"nameAlg 0x{number:04x} is not a known hash", at=start)
    return algorithm


def _read_attributes(reader: TpmReader) -> ObjectAttributes:
    start = reader.offset
    bits = reader.integer(4, "objectAttributes")
    if bits & ~_KNOWN_ATTRIBUTES:
        reader.fail(f"objectAttributes 0x{bits:08x} has reserved bits set", at=start)
    return ObjectAttributes(bits)


def _read_parameters(reader: TpmReader, kind: TpmAlgorithm) -> PublicParameters:
    if kind == _A.RSA:
        return RsaParameters(
            symmetric=_read_symmetric(reader),
            scheme=_read_scheme(reader, _RSA_SCHEMES),
            key_bits=reader.integer(2, "keyBits"),
            exponent=reader.integer(4, "exponent"),
        )
    if kind == _A.ECC:
        return EccParameters(
            symmetric=_read_symmetric(reader),
            scheme=_read_scheme(reader, _ECC_SCHEMES),
            curve=_read_curve(reader),
            kdf=_read_scheme(reader, _KDFS),
        )
    if kind == _A.KEYEDHASH:
        return KeyedHashParameters(scheme=_read_scheme(reader, _KEYED_HASH_SCHEMES))
    return SymmetricCipherParameters(symmetric=_read_symmetric(reader))


def _read_symmetric(reader: TpmReader) -> SymmetricDefinition | None:
    algorithm = reader.algorithm("symmetric", _CIPHERS)
    if algorithm == _A.NULL:
        return None
    return SymmetricDefinition(
        algorithm=algorithm,
        key_bits=reader.integer(2, "symmetric keyBits"),
        mode=reader.algorithm("symmetric mode", _MODES),
    )


def _read_scheme(reader: TpmReader, allowed: frozenset[TpmAlgorithm]) -> Scheme | None:
    algorithm = reader.algorithm("scheme", allowed)
    if algorithm == _A.NULL:
        return None
    if algorithm == _A.RSAES:
        return Scheme(algorithm=algorithm)
    scheme_hash = reader.hash_algorithm("scheme hash")
    return Scheme(
        algorithm=algorithm,
        hash=scheme_hash,
        kdf=reader.algorithm("scheme kdf", _KDFS) if algorithm == _A.XOR else None,
        count=reader.integer(2, "scheme count") if algorithm == _A.ECDAA else None,
    )


def _read_curve(reader: TpmReader) -> EccCurve:
    start = reader.offset
    number = reader.integer(2, "curveID")
    try:
        return EccCurve(number)
    except ValueError:
        reader.fail(f"curveID 0x{number:04x} is not a known curve", at=start)


def _read_unique(reader: TpmReader, kind: TpmAlgorithm) -> bytes | EccPoint:
    if kind == _A.RSA:
        return reader.sized("modulus", _MAX_RSA)
    if kind == _A.ECC:
        return EccPoint(
            x=reader.sized("point x", _MAX_COORDINATE), y=reader.sized("point y", _MAX_COORDINATE)
        )
    return reader.sized("unique", _MAX_DIGEST)


# --- writing -----------------------------------------------------------------------------------


def _encode_parameters(parameters: PublicParameters) -> bytes:
    match parameters:
        case RsaParameters():
            return (
                _encode_symmetric(parameters.symmetric)
                + _encode_scheme(parameters.scheme)
                + struct.pack(">HI", parameters.key_bits, parameters.exponent)
            )
        case EccParameters():
            return (
                _encode_symmetric(parameters.symmetric)
                + _encode_scheme(parameters.scheme)
                + struct.pack(">H", parameters.curve)
                + _encode_scheme(parameters.kdf)
            )
        case KeyedHashParameters():
            return _encode_scheme(parameters.scheme)
        case _:
            return _encode_symmetric(parameters.symmetric)


def _encode_symmetric(symmetric: SymmetricDefinition | None) -> bytes:
    if symmetric is None:
        return struct.pack(">H", _A.NULL)
    return struct.pack(">HHH", symmetric.algorithm, symmetric.key_bits, symmetric.mode)


def _encode_scheme(scheme: Scheme | None) -> bytes:
    if scheme is None:
        return struct.pack(">H", _A.NULL)
    encoded = struct.pack(">H", scheme.algorithm)
    for number in (scheme.hash and scheme.hash.tpm_id, scheme.kdf, scheme.count):
        encoded += b"" if number is None else struct.pack(">H", number)
    return encoded


def _encode_unique(unique: bytes | EccPoint) -> bytes:
    if isinstance(unique, EccPoint):
        return encode_sized(unique.x) + encode_sized(unique.y)
    return encode_sized(unique)
