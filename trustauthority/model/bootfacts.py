"""What a verified boot log shows about a host. Constructed in ``appraisal.bootfacts`` only."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How much a finding weighs."""

    INFO = "info"
    WARNING = "warning"
    REFUSE = "refuse"
    """No genuine boot looks like this: nothing may be claimed about the register."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BootFinding:
    """Something worth saying about the log, with a stable id."""

    id: str
    severity: Severity
    message: str
    pcr: int = -1
    event: int = -1
    """Number of the record, or -1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDatabase:
    """PK, KEK, db or dbx as measured."""

    name: str
    sha256: str
    """Of the value of the variable: what a baseline compares; empty for an empty variable."""
    size: int
    entries: int
    """Certificates and digests in it; -1 when the lists do not parse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityUsed:
    """A key or digest by which an image was accepted."""

    variable: str
    guid: str
    sha256: str
    """Of the value of the variable: the signature data that matched."""
    before_separator: bool
    """Whether it accepted a driver, before the boot loader."""
    event: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureBootFacts:
    """Secure Boot as PCR 7 proves it (pitfalls 41, 42)."""

    enabled: bool | None
    """What the one proven SecureBoot variable says; None when it is missing, empty, longer than a
    byte, measured twice or too late. Not enough to rely on: see ``enforced``."""
    enforced: bool
    """Enabled, by a PCR 7 without defects in which an authority was used. The only thing to claim."""
    setup_mode: bool | None
    """No platform key: anyone may enrol keys."""
    audit_mode: bool | None
    deployed_mode: bool | None
    databases: Mapping[str, KeyDatabase]
    authorities: tuple[AuthorityUsed, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedImage:
    """An image that firmware or a boot loader loaded. Its digest is the claim.

    Where it came from no digest covers; ``codec.efi`` reads that hint from the event for people.
    """

    pcr: int
    digest: str
    event: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredFile:
    """A file or section that a boot loader measured. The digest is the claim, the name a hint."""

    pcr: int
    digest: str
    name: str
    event: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BootFacts:
    """Facts from verified events only."""

    secure_boot: SecureBootFacts
    images: tuple[LoadedImage, ...]
    option_roms: int
    """Images and drivers measured into PCR 2."""
    command_lines: tuple[str, ...]
    """Kernel command lines whose digest proves them."""
    files: tuple[MeasuredFile, ...]
    """GRUB's files, the initrd, sections of a unified kernel image, MOK lists."""
    sbat_level: str | None
    uki_profile: str | None
    """Number of the chosen profile of a unified kernel image, where its digest proves it."""
    uefi_debug: bool
    dma_protection_disabled: bool
    unrecognised: Mapping[int, tuple[int, ...]]
    """Register → records of an unknown or misplaced type: such a register proves no claim (rule 37)."""
    findings: tuple[BootFinding, ...]

    @property
    def refused(self) -> bool:
        """Whether a finding says that no genuine boot looks like this."""
        return any(finding.severity is Severity.REFUSE for finding in self.findings)
