"""Reads the files of ``ta evidence quote``; every surprise is a ``TrustAuthorityError``.

Trusts nothing: sizes are capped before anything is read, JSON with a doubled key is refused, and hex
has one spelling.
"""

import json
import re
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from trustauthority.cli.input_files import read_input
from trustauthority.codec.tpm import decode_public, decode_public_sized, public_from_key
from trustauthority.errors import AlgorithmUnsupported, MalformedEvidence
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.tpm import ObjectAttributes, Scheme, Signature, TpmPublic
from trustauthority.verification.quote import PcrValues

MAX_FILE_SIZE = 64 * 1024 * 1024
"""Bytes: the largest log that is read; structures have smaller limits of their own."""

_HEX = re.compile(r"(?:[0-9a-fA-F]{2})*")
_PEM_MARK = b"-----BEGIN "
_INDEX = re.compile(r"0|[1-9][0-9]?")
_ASSUMED_ATTRIBUTES = (
    ObjectAttributes.FIXED_TPM
    | ObjectAttributes.FIXED_PARENT
    | ObjectAttributes.SENSITIVE_DATA_ORIGIN
    | ObjectAttributes.RESTRICTED
    | ObjectAttributes.SIGN
)
"""What a bare key can't say of itself; the caller is told that nobody showed it."""


def read_file(path: Path, part: str) -> bytes:
    """The content of a file, at most ``MAX_FILE_SIZE`` bytes of it.

    Raises:
        InvalidRequest: it can't be read, is no regular file, or is longer.
    """
    return read_input(path, MAX_FILE_SIZE, name=f"--{part}", field=part)


def read_nonce(text: str) -> bytes:
    """The bytes of a nonce in hex."""
    return _hex_bytes(text, part="nonce")


def read_attestation_key(data: bytes, signature: Signature) -> tuple[TpmPublic, bool]:
    """The AK of a file, and whether it is a bare key that does not say how it signs.

    For a bare key the scheme that the signature names is assumed, and that it is an AK.

    Raises:
        MalformedEvidence: neither TPM2B_PUBLIC, TPMT_PUBLIC nor PEM.
        AlgorithmUnsupported: a key that is neither RSA nor on an accepted curve.
    """
    if data.lstrip().startswith(_PEM_MARK):
        return _read_pem(data, signature), True
    if len(data) >= 2 and int.from_bytes(data[:2], "big") == len(data) - 2:
        return decode_public_sized(data), False
    return decode_public(data), False


def read_pcrs(data: bytes) -> PcrValues:
    """PCR values out of JSON: bank to index to hex, each bank and index once.

    Raises:
        MalformedEvidence: anything else.
    """
    try:
        document = json.loads(data, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"not JSON: {error}", "pcrs") from None
    if not isinstance(document, dict):
        raise _malformed("not an object of banks", "pcrs")
    return {_bank(name): _bank_values(_bank(name), values) for name, values in document.items()}


def _bank(name: str) -> HashAlgorithm:
    try:
        return HashAlgorithm(name)
    except ValueError:
        raise _malformed(f"{name!r} is not a PCR bank", "pcrs") from None


def _bank_values(bank: HashAlgorithm, values: Any) -> dict[int, bytes]:
    if not isinstance(values, dict):
        raise _malformed(f"bank {bank} is not an object of PCRs", "pcrs")
    return {_index(index): _value(bank, index, value) for index, value in values.items()}


def _index(text: str) -> int:
    if not _INDEX.fullmatch(text):
        raise _malformed(f"{text!r} is not the number of a PCR", "pcrs")
    return int(text)


def _value(bank: HashAlgorithm, index: str, value: Any) -> bytes:
    decoded = _hex_bytes(value, part="pcrs") if isinstance(value, str) else b""
    if len(decoded) != bank.size:
        raise _malformed(f"PCR {index} of {bank} is not hex of {bank.size} bytes", "pcrs")
    return decoded


def _hex_bytes(text: str, *, part: str) -> bytes:
    if not _HEX.fullmatch(text):
        raise _malformed("not hex", part)
    return bytes.fromhex(text)


def _read_pem(data: bytes, signature: Signature) -> TpmPublic:
    if data.count(_PEM_MARK) != 1:
        raise _malformed("more than one PEM block", "ak")
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise _malformed("not a PEM public key that can be read", "ak") from None
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise AlgorithmUnsupported("the key is neither RSA nor EC", algorithm=type(key).__name__)
    return public_from_key(
        key,
        attributes=_ASSUMED_ATTRIBUTES,
        scheme=Scheme(algorithm=signature.scheme, hash=signature.hash),
    )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("an object has the same key twice")
    return document


def _malformed(message: str, part: str) -> MalformedEvidence:
    return MalformedEvidence(message, part=part, offset=0)
