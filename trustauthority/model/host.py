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
    ek_sha256: str
    """Hex SHA-256 of it: what an inventory lists."""
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
    tpm_manufacturer: str
    """Who made the TPM, as the verified EK certificate says; empty without one."""
    ek_chain: bytes
    """The EK certificate and its CAs up to the anchor, DER, one after the other; empty without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingEnrolment:
    """An enrolment that waits for its activation: immutable, short-lived, counted per peer."""

    enrolment: Enrolment
    inventory_name: str | None
    """The name that the inventory allows (empty: any), or None when the EK is not in it."""
    peer: str
    expires_at_ms: int
    inventory_class: str = ""
    """The class that the inventory gives this EK; empty for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRecord:
    """A host as the store knows it: its enrolment, its newest verdict, its TPM's position."""

    host_id: HostId
    cluster_id: ClusterId
    name: str
    reserved_name: str | None
    """The name once admitted; unique. Until then ``name`` is only a wish (N77)."""
    ek_sha256: str
    ek_public: bytes
    ek_certificate: bytes
    ak_public: bytes
    tls_public: bytes
    storage_public: bytes
    storage_qualified_name: bytes
    tls_spki_sha256: str
    approval_sha256: str
    anchor: str
    tpm: str
    tpm_manufacturer: str
    ek_chain: bytes
    enrolled_at_ms: int
    admission: Admission
    host_class: str
    """What hardware it is, as inventory or admission say; empty for not said."""
    revoked: bool
    trust_epoch: int
    draining: bool
    """An operator empties it before maintenance: it takes no VM."""
    verdict_id: str | None
    passed: bool | None
    warned: bool
    """The newest verdict passed with warnings."""
    decided_at_ms: int | None
    standing_since_ms: int | None
    attested_until_ms: int
    verdict_trust_epoch: int
    verdict_policy_epoch: int
    verdict_global_epoch: int
    baseline: str
    reason: str
    tpm_position: bytes
    """resetCount, restartCount, clock: 4 + 4 + 8 bytes big-endian; empty before the first quote."""
    tpm_firmware: bytes
    """firmwareVersion that it must not fall below, 8 bytes big-endian; empty before the first quote."""
    boot_log_sha256: bytes
    ima_state: bytes
    ima_offset: int

    @property
    def boot(self) -> bytes:
        """The 8 bytes resetCount, restartCount of the newest quote; empty before it."""
        return self.tpm_position[:8]
