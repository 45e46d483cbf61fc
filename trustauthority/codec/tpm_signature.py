"""TPMT_SIGNATURE from bytes.

Stage: codec. Trusts nothing on entry; any bytes give a ``Signature`` or ``MalformedEvidence``, with
the whole buffer consumed. Does not check that anything verifies: ``verification.signature`` does.
Source: TCG TPM 2.0 Library, Part 2, section 11.3.
"""

from trustauthority.codec.tpm_reader import TpmReader
from trustauthority.model.tpm import Signature, TpmAlgorithm

_PART = "TPMT_SIGNATURE"
_A = TpmAlgorithm
_RSA = frozenset({_A.RSASSA, _A.RSAPSS})
_ECC = frozenset({_A.ECDSA, _A.ECDAA, _A.SM2, _A.ECSCHNORR})
_SCHEMES = _RSA | _ECC | {_A.HMAC}
_MAX_RSA = 2048
_MAX_COORDINATE = 128


def decode_signature(data: bytes) -> Signature:
    """Decode a TPMT_SIGNATURE that fills ``data``."""
    reader = TpmReader(data, _PART)
    scheme = reader.algorithm("sigAlg", _SCHEMES)
    hash_algorithm = reader.hash_algorithm("hash")
    if scheme in _RSA:
        values: tuple[bytes, ...] = (reader.sized("sig", _MAX_RSA),)
    elif scheme in _ECC:
        values = (
            reader.sized("signatureR", _MAX_COORDINATE),
            reader.sized("signatureS", _MAX_COORDINATE),
        )
    else:
        values = (reader.take(hash_algorithm.size, "HMAC digest"),)
    reader.finish()
    return Signature(scheme=scheme, hash=hash_algorithm, values=values)
