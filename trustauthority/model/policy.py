"""What must hold for a cluster's hosts. Plain dataclasses; documents are parsed at the edge.

Durations are integer milliseconds and say so in their names (N08).
"""

from dataclasses import dataclass, field
from enum import StrEnum

from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.lease import OnLeaseLoss
from trustauthority.model.quirk import Quirk

SECOND_MS = 1_000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS


class Requirement(StrEnum):
    """How a check counts."""

    REQUIRED = "required"
    WARN = "warn"
    OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidencePolicy:
    """What evidence a host must show, and how long it counts."""

    max_age_ms: int = HOUR_MS
    """A verdict counts this long from the issue of its challenge."""
    attest_interval_ms: int = 15 * MINUTE_MS
    bank: HashAlgorithm = HashAlgorithm.SHA256
    """The bank that claims rest on."""
    quoted_banks: tuple[HashAlgorithm, ...] = (HashAlgorithm.SHA1, HashAlgorithm.SHA256)
    """Banks to quote when they are active; each must replay (TPM Carte Blanche, rule 40)."""
    pcrs: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14)
    """PCRs to quote."""
    replayed_pcrs: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14)
    """PCRs that the boot log must reproduce."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BootPolicy:
    """What the boot must look like."""

    secure_boot: Requirement = Requirement.REQUIRED
    baseline: Requirement = Requirement.REQUIRED
    baseline_pcrs: tuple[int, ...] = (0, 2, 3, 4, 7, 8, 9, 14)
    """PCRs whose events a baseline fixes. 1 and 5 differ per machine and disk."""
    host_class: Requirement = Requirement.OFF
    """The host has a class, and its firmware is a variant of that class: an EK meets its own hardware."""
    debug: Requirement = Requirement.WARN
    """UEFI debug mode, disabled DMA protection and the like."""
    quirks: tuple[Quirk, ...] = ()
    """Known deviations of firmware that are allowed, each by its name (rule 43)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimePolicy:
    """What the runtime log must look like."""

    ima: Requirement = Requirement.REQUIRED
    """The IMA log must reproduce PCR 10 at some prefix."""
    boot_aggregate: Requirement = Requirement.WARN
    violations: Requirement = Requirement.WARN
    files: Requirement = Requirement.OFF
    """Every measured file must be approved by the runtime rules."""
    rules: str = ""
    """Hex SHA-256 of the runtime rules document, as ``ta policy runtime upload`` printed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmPolicy:
    """What the TPM itself must be."""

    firmware_flaws: Requirement = Requirement.WARN
    """Its firmware has no published flaw (rule 17)."""
    firmware_rollback: Requirement = Requirement.WARN
    """Its firmware is not older than it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasePolicy:
    """Lengths of the lease classes."""

    strict_ms: int = 5 * MINUTE_MS
    standard_ms: int = HOUR_MS
    on_lease_loss: OnLeaseLoss = OnLeaseLoss.PAUSE_THEN_DESTROY
    continue_for_ms: int = 0
    """Only with on_lease_loss continue-for."""
    skew_ms: int = 20 * SECOND_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantPolicy:
    """Who may hold how many grants, and what the key is sealed to."""

    sealed_pcrs: tuple[int, ...] = (0, 2, 4, 7, 8, 9, 14)
    """Stable PCRs of the key's TPM policy. Never 10 or others that grow."""
    open_by_ms: int = 2 * MINUTE_MS
    """A released blob opens at most this long: it is a way in, not a cache."""
    max_quote_age_ms: int = MINUTE_MS
    """A key is bound to the TPM clock of a quote at most this old."""
    max_live_per_host: int = 512
    max_new_per_hour: int = 256
    warned_hosts_take: bool = True
    """A host whose verdict passed with warnings may take VMs that it did not run last. Without, it
    keeps what it has and gives it away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndorsementPolicy:
    """Which TPMs may enrol, and which are admitted by themselves."""

    ignore_ek_not_after: bool = False
    require_crl: bool = False
    """Each CA of a chain must have a revocation list that is in date."""
    denied: tuple[str, ...] = ()
    """Hex SHA-256 of certificates, of their SubjectPublicKeyInfo, or of EKs (TPMT_PUBLIC)."""
    admit_by_inventory: bool = True
    """A host whose EK is in the inventory is admitted; others wait for approval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One cluster's policy."""

    name: str
    evidence: EvidencePolicy = field(default_factory=EvidencePolicy)
    boot: BootPolicy = field(default_factory=BootPolicy)
    runtime: RuntimePolicy = field(default_factory=RuntimePolicy)
    tpm: TpmPolicy = field(default_factory=TpmPolicy)
    leases: LeasePolicy = field(default_factory=LeasePolicy)
    grants: GrantPolicy = field(default_factory=GrantPolicy)
    endorsement: EndorsementPolicy = field(default_factory=EndorsementPolicy)
