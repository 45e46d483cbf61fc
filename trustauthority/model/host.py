"""Enrolled TPMs: what the store knows of a host when evidence or a request arrives."""

from dataclasses import dataclass
from enum import StrEnum

from trustauthority.model.identifiers import ClusterId, HostId


class Admission(StrEnum):
    """Whether a genuine TPM is one of our hosts."""

    ADMITTED = "admitted"
    WAITING = "waiting"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmPosition:
    """Where a TPM's clock stands: compared lexicographically, per AK (rule 16, design.md 6.2)."""

    reset_count: int
    restart_count: int
    clock_ms: int

    def as_tuple(self) -> tuple[int, int, int]:
        """(resetCount, restartCount, clock)."""
        return (self.reset_count, self.restart_count, self.clock_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """The immutable identity of a host: one TPM, three keys, one cluster."""

    host_id: HostId
    cluster: ClusterId
    name: str
    ek_public: bytes
    """TPMT_PUBLIC."""
    ek_certificate: bytes
    ak_public: bytes
    tls_public: bytes
    storage_public: bytes
    storage_qualified_name: bytes
    tls_spki_sha256: str
    """Hex SHA-256 of the TLS key's SubjectPublicKeyInfo: how a connection names its host."""
    approval_sha256: str
    """Hex hash over name, EK, AK, TLS and storage keys: what an admission approves."""
    anchor: str
    tpm: str
    """Manufacturer, model and version as the EK certificate says."""
