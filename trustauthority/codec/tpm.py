"""The codec of TPM structures, one name per operation.

Stage: codec. Everything here is total: any bytes give a model or ``MalformedEvidence``; a key or
name that can't be computed is ``AlgorithmUnsupported``. See the modules that are re-exported.
Source: TCG TPM 2.0 Library, Parts 1 and 2.
"""

from trustauthority.codec.tpm_attest import TYPE_CERTIFY, TYPE_QUOTE, decode_attest
from trustauthority.codec.tpm_key import PublicKey, public_from_key, public_key
from trustauthority.codec.tpm_public import (
    decode_public,
    decode_public_sized,
    encode_public,
    object_name,
    primary_qualified_name,
    qualified_name,
)
from trustauthority.codec.tpm_reader import decode_sized, encode_sized
from trustauthority.codec.tpm_signature import decode_signature

__all__ = [
    "TYPE_CERTIFY",
    "TYPE_QUOTE",
    "PublicKey",
    "decode_attest",
    "decode_public",
    "decode_public_sized",
    "decode_signature",
    "decode_sized",
    "encode_public",
    "encode_sized",
    "object_name",
    "primary_qualified_name",
    "public_from_key",
    "public_key",
    "qualified_name",
]
