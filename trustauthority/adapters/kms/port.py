"""What the key room asks of a KMS, whatever its make.

Stage: adapter, inside the key room's child only. The wrapping of a VM key is asked for, never a KEK:
whether the KMS unwraps by itself (PKCS#11, transit, AWS) or hands the KEK out for one use (KMIP) is
the adapter's business. What each promises is one contract suite: ``tests/contract/test_kms_*``.
"""

from typing import Protocol

from trustauthority.errors import KmsUnavailable
from trustauthority.model.kms import KmsHealth


class Kms(Protocol):
    """One key provider. Every failure is KmsUnavailable, in words of our own; nothing is cached.

    Calls block, and one thread makes them. Keys in the clear are bytearrays that the caller wipes.
    """

    def create_kek(self, name: str) -> str:
        """Let the KMS make a KEK and return its id. A name taken twice gives two KEKs."""

    def rotate(self, kek_id: str, name: str) -> str:
        """Let new key material follow a KEK; returns the id to wrap under from now on.

        The id is another one, and what the old id wrapped still unwraps under the old id.
        """

    def wrap(self, kek_id: str, vm_key: bytearray, aad: bytes) -> bytes:
        """Encrypt a VM key (1 to 4096 bytes), bound to ``aad``: a blob as of ``kms.blob``."""

    def unwrap(self, kek_id: str, wrapped: bytes, aad: bytes) -> bytearray:
        """Decrypt a VM key.

        Raises:
            KmsUnavailable: also for another KEK, another ``aad``, a changed or truncated blob, and
                one that another kind of provider wrapped (named).
        """

    def health(self) -> KmsHealth:
        """Ask the KMS whether it would serve us. Does not raise."""

    def close(self) -> None:
        """End connections that were kept; the next call makes new ones."""


def outage(message: str) -> KmsUnavailable:
    """The KMS can't be reached or does not answer: what the circuit breaker counts.

    A refusal is not one: asking again at once would be answered the same.
    """
    return KmsUnavailable(message, outage="yes")


def is_outage(failure: KmsUnavailable) -> bool:
    """Say whether ``outage`` made it."""
    return "outage" in failure.metadata
