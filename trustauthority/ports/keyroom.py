"""What services need of the key room, the one place where VM keys are in the clear."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from trustauthority.model.escrow import StoredKey
from trustauthority.model.grant import ReleaseOrder
from trustauthority.model.keyjob import RewrapOrder
from trustauthority.model.kms import KmsHealth
from trustauthority.model.vm import NewKey


class KeyRoom(Protocol):
    """The only place where VM keys exist in the clear: a child process that handles a batch and exits."""

    @property
    def providers(self) -> Sequence[str]:
        """Names of the configured key providers."""

    async def create_kek(self, provider: str) -> str:
        """Make and activate a KEK in the KMS; returns its id. Raises KmsUnavailable."""

    async def rotate_kek(self, provider: str, kek_id: str) -> str:
        """Let new key material follow a KEK; returns the id to wrap under. Raises KmsUnavailable."""

    async def create_key(self, provider: str, kek_id: str, aad: bytes) -> NewKey:
        """Make a VM key and return it wrapped. Raises KmsUnavailable."""

    async def import_key(
        self, provider: str, kek_id: str, aad: bytes, *, sealed: bytes, vm: str
    ) -> NewKey:
        """Take in a passphrase that was sealed to the import key. Raises KmsUnavailable."""

    async def rewrap(self, order: RewrapOrder) -> bytes:
        """Unwrap a VM key and wrap it by another KEK. Raises KmsUnavailable."""

    async def release(self, order: ReleaseOrder) -> bytes:
        """Unwrap a VM key and return a signed KeyGrant v1. Raises KmsUnavailable."""

    async def health(self, provider: str) -> KmsHealth:
        """How a provider's KMS is doing, with a detail that says what to do. Does not raise."""

    async def close(self) -> None:
        """End the children."""


@runtime_checkable
class EscrowRoom(Protocol):
    """What the key room does for escrow."""

    async def escrow(self, key: StoredKey) -> bytes:
        """Seal a stored VM key to the escrow key of today. Raises KmsUnavailable."""

    async def answer_drill(self, key: StoredKey, challenge: bytes) -> bytes:
        """What a holder of a stored VM key answers to a drill's challenge. Raises KmsUnavailable."""
