"""Key managers as the rest of the authority sees them: kinds, and how one is doing.

Nothing here is secret, and nothing talks to a KMS: ``adapters.kms`` does.
"""

from dataclasses import dataclass
from enum import StrEnum


class ProviderKind(StrEnum):
    """How a key provider speaks to its KMS."""

    KMIP = "kmip"
    PKCS11 = "pkcs11"
    TRANSIT = "transit"
    AWS = "aws"


class HealthState(StrEnum):
    """Whether somebody must do something."""

    OK = "ok"
    WARNING = "warning"
    """Orders are carried out; the detail says what ends that, and when."""
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class KmsHealth:
    """What one key provider said when it was asked."""

    state: HealthState
    detail: str
    """What is the case and what to do; free of anything secret."""
    kind: ProviderKind | None = None
    """None when no such provider is configured."""
    trusts_server: bool | None = None
    """Whether we accept who answers as the KMS; None when nobody answered."""
    trusted_by_server: bool | None = None
    """Whether the KMS accepts us; None when that was not found out."""
    credential_expires_ms: int | None = None
    """Unix time at which our certificate or token ends; None when it has no end that we can see."""

    @property
    def usable(self) -> bool:
        """Whether orders are carried out."""
        return self.state is not HealthState.ERROR
