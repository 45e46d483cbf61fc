"""What must hold for the host that gets one VM's key, besides what its cluster's policy asks for."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from trustauthority.model.baseline import Component
from trustauthority.model.identifiers import VmId


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasePolicy:
    """One version of a VM's release policy. What is empty or 0 limits nothing."""

    vm: str
    version: int
    """Only grows."""
    clusters: tuple[str, ...] = ()
    host_classes: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    max_evidence_age_ms: int = 0
    """Counts from the issue of the challenge that the host's newest quote answers."""
    variants: Mapping[Component, tuple[str, ...]] = field(default_factory=dict)
    """For each component that is named, the baselines of which the host's boot must be one."""
    hours: tuple[str, ...] = ()
    """Hours of the week in UTC, such as ``mon-fri 08-18``."""
    owner_key: str = ""
    """SubjectPublicKeyInfo in base64, Ed25519 or P-256: signs the next version. Empty: nobody must."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasePolicyRecord:
    """A release policy as a release decision sees it. Lists are texts ``,a,b,``; empty is any."""

    vm_id: VmId
    version: int
    clusters: str = ""
    host_classes: str = ""
    regions: str = ""
    hours: str = ""
    max_evidence_age_ms: int = 0
    variants_firmware: str = ""
    variants_secure_boot: str = ""
    variants_boot_loader: str = ""
    variants_kernel: str = ""
    variants_command_line: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasePolicyEntry:
    """A release policy as it is kept."""

    record: ReleasePolicyRecord
    document: bytes
    """Canonical; what the owner signed."""
    signature: bytes
    """By the owner of the version before; empty where it had none."""
    set_at_ms: int
    set_by: str
