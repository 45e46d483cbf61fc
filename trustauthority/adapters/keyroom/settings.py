"""Settings of the key room."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trustauthority.adapters.kms.settings import ProviderSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class EscrowSettings:
    """The offline key that every VM key is sealed to besides."""

    public_key: Path
    """Its public half."""
    key_id: str
    """Hex; a file with another key is refused."""
    origin: str
    """Name of the authority, in each sealed key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRoomSettings:
    """Which KMS stands behind each provider name, and the limits of a child."""

    providers: Mapping[str, ProviderSettings]
    release_key: Path
    """Private key (P-256, PEM, mode 0600) that signs grants; only the child reads it."""
    escrow: EscrowSettings | None = None
    """None: keys are lost with the KMS."""
    import_key: Path | None = None
    """Private key (X25519, PEM, mode 0600) that opens imported passphrases; only the child reads it."""
    batch: int = 64
    """Keys that one child handles before it ends."""
    lifetime_s: float = 30.0
    """Seconds after its first key at which a child ends, however few keys it had."""
    timeout_s: float = 10.0
    """Longest wait for an answer, waiting for a free child included; then the child is killed."""
    parallel: int = 4
    """Children at work for one provider at the same time; one more is kept warm for it."""
    trip_after: int = 3
    """Orders in a row that a KMS does not answer, after which it is left alone for a while."""
    rest_s: float = 5.0
    """How long; then one order tries again, and if it is answered all is as before."""

    def __post_init__(self) -> None:
        if self.batch < 1 or self.parallel < 1:
            raise ValueError("a key room has at least one child, for at least one key")
        if self.trip_after < 1:
            raise ValueError("a KMS is left alone after at least one failure")
        if self.timeout_s <= 0 or self.lifetime_s <= 0 or self.rest_s <= 0:
            raise ValueError("times of the key room are positive")
