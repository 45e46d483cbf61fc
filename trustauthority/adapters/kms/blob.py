"""The blob of a wrapped VM key: who wrapped it and how, then the provider's own bytes.

Stage: adapter, pure. Guarantees that a blob says its format, kind of provider and algorithm in its
first three bytes, that these are part of what the wrapping authenticates, and that nothing is
negotiated: an id that is not the expected one is refused by name. Source: docs/reference/kms.md.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum

from trustauthority.errors import KmsUnavailable
from trustauthority.model.grant import MAX_VM_KEY
from trustauthority.model.kms import ProviderKind

VERSION = 1
HEADER_BYTES = 3
MAX_WRAPPED = MAX_VM_KEY + 4096
"""Bytes of the longest blob: a VM key, a one-time key in the KMS's own form, and what is around."""


class WrapAlgorithm(IntEnum):
    """How the body of a blob was made. Numbers are never reused."""

    KEK_GCM = 1
    """nonce[12] ‖ AES-256-GCM under the KEK, which the KMS handed out for this."""
    TOKEN_GCM = 2
    """Two layers; the one-time key as nonce[12] ‖ AES-GCM under the KEK in the token."""
    TOKEN_KEY_WRAP = 3
    """Two layers; the one-time key wrapped in the token as of RFC 3394, 40 bytes."""
    TRANSIT = 4
    """Two layers; the one-time key as the text that the transit engine answered."""
    AWS = 5
    """Two layers; the one-time key as the CiphertextBlob of AWS KMS."""


_KINDS = {
    ProviderKind.KMIP: 1,
    ProviderKind.PKCS11: 2,
    ProviderKind.TRANSIT: 3,
    ProviderKind.AWS: 4,
}
_NAMES = {number: kind for kind, number in _KINDS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A wrapped VM key, taken apart."""

    kind: ProviderKind
    algorithm: WrapAlgorithm
    body: bytes

    def encode(self) -> bytes:
        """The bytes that the database keeps."""
        return header(self.kind, self.algorithm) + self.body


def header(kind: ProviderKind, algorithm: WrapAlgorithm) -> bytes:
    """The three bytes in front of a blob."""
    return bytes((VERSION, _KINDS[kind], algorithm))


def bound(kind: ProviderKind, algorithm: WrapAlgorithm, aad: bytes) -> bytes:
    """What a wrapping authenticates: the header, then the caller's AAD."""
    return header(kind, algorithm) + aad


def read_blob(wrapped: bytes, kind: ProviderKind, algorithms: Collection[WrapAlgorithm]) -> Blob:
    """Take a blob apart that a provider of this kind is asked to open.

    Raises:
        KmsUnavailable: not a blob, of another version, kind (named) or algorithm.
    """
    if not HEADER_BYTES < len(wrapped) <= MAX_WRAPPED:
        raise KmsUnavailable("the wrapped VM key has a wrong length")
    version, wrapped_by, number = wrapped[:HEADER_BYTES]
    if version != VERSION or wrapped_by not in _NAMES:
        raise KmsUnavailable("the VM key is wrapped in a format that this version does not know")
    if _NAMES[wrapped_by] is not kind:
        raise KmsUnavailable(
            f"the VM key was wrapped by a provider of kind {_NAMES[wrapped_by]}, not {kind}"
        )
    algorithm = next((each for each in algorithms if each == number), None)
    if algorithm is None:
        raise KmsUnavailable(
            f"the VM key is wrapped with algorithm {number}, which a {kind} provider does not open"
        )
    return Blob(kind=kind, algorithm=algorithm, body=wrapped[HEADER_BYTES:])
