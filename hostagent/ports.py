"""What the agent needs of its TPM and of time, so that both can be replaced in tests.

``hostagent.tpm.HostTpm`` is the TPM; its methods are serialised over threads, because gRPC asks for
TLS signatures from threads of its own.
"""

import time
from typing import Protocol

from hostagent.tpm import (
    Attested,
    BankSelection,
    Endorsement,
    Quoted,
    SavedObject,
    SealedSecret,
    TpmClock,
)


class TpmPort(Protocol):
    """The operations of ``HostTpm`` that the agent uses once its keys are up."""

    def certify(self, ak: SavedObject, key: SavedObject, qualifying_data: bytes) -> Attested:
        """TPM2_Certify."""

    def activate_credential(
        self, endorsement: Endorsement, ak: SavedObject, blob: bytes, secret: bytes
    ) -> bytes:
        """TPM2_ActivateCredential."""

    def quote(
        self, ak: SavedObject, selection: tuple[BankSelection, ...], qualifying_data: bytes
    ) -> Quoted:
        """TPM2_Quote with the values it is about."""

    def sign_digest(self, key: SavedObject, digest: bytes) -> bytes:
        """A DER ECDSA signature of a SHA-256 digest."""

    def active_banks(self) -> tuple[BankSelection, ...]:
        """All allocated PCRs per bank."""

    def read_clock(self) -> TpmClock:
        """Clock and counters, unsigned."""

    def import_and_unseal(self, storage: SavedObject, sealed: SealedSecret) -> bytearray:
        """Open the one-time secret of a grant."""


def boottime_ms() -> int:
    """CLOCK_BOOTTIME in milliseconds: counts while the host sleeps, never steps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
