"""Signatures of files in IMA entries: the ``security.ima`` attribute, version 2.

Trusts on entry: an entry's fields that a quoted PCR proves, and keys that a policy names. Guarantees
on exit: ``check_file_signature`` returns only when one of the keys signed exactly this digest,
with the hash that the entry names (rule 57). Everything else is refused by name: version 3 (fs-verity)
and appended module signatures are not verified here, so such entries count by their digests only.

Source: Linux security/integrity/integrity.h (signature_v2_hdr), digsig_asymmetric.c;
include/uapi/linux/hash_info.h.
"""

from collections.abc import Mapping
from struct import Struct

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from trustauthority.errors import LogRejected
from trustauthority.model.ima import ImaFields

_HEAD = Struct(">BBB4sH")
_KEY_ID = slice(3, 7)
_DIGSIG = 0x03
_VERSION = 2
_HASHES: Mapping[int, tuple[str, hashes.HashAlgorithm]] = {
    4: ("sha256", hashes.SHA256()),
    5: ("sha384", hashes.SHA384()),
    6: ("sha512", hashes.SHA512()),
}
"""Numbers of ``enum hash_algo``. A SHA-1 signature vouches for nothing."""


def check_file_signature(fields: ImaFields, keys: Mapping[bytes, PublicKeyTypes]) -> None:
    """Return only if one of ``keys``, by key id, signed the entry's digest.

    Raises:
        LogRejected: there is no signature, or it is not one of these keys' over this digest.
    """
    signature = fields.signature
    if not signature:
        raise LogRejected("the file carries no signature")
    if len(signature) < _HEAD.size or signature[0] != _DIGSIG:
        raise LogRejected(f"the signature is of type {signature[0]:#x}, not a file signature")
    _, version, number, _, size = _HEAD.unpack_from(signature)
    identifier = signature[_KEY_ID]
    if version != _VERSION:
        raise LogRejected(f"signatures of version {version} are not verified")
    if len(signature) != _HEAD.size + size:
        raise LogRejected("the signature's size is not what its header says")
    name, algorithm = _HASHES.get(number, ("", None))
    if algorithm is None:
        raise LogRejected(f"signatures with hash number {number} do not count")
    if name != fields.algorithm:
        raise LogRejected(f"the signature is over {name}, the entry's digest is {fields.algorithm}")
    key = keys.get(identifier)
    if key is None:
        raise LogRejected(f"no keyring holds the key {identifier.hex()}")
    _check(key, signature[_HEAD.size :], fields.digest, algorithm)


def _check(
    key: PublicKeyTypes, signature: bytes, digest: bytes, algorithm: hashes.HashAlgorithm
) -> None:
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, digest, padding.PKCS1v15(), Prehashed(algorithm))
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, digest, ec.ECDSA(Prehashed(algorithm)))
        else:
            raise LogRejected("the key is of a kind that signs no files")
    except InvalidSignature as error:
        raise LogRejected("the signature is not that key's over this digest") from error
