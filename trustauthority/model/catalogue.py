"""What administrators keep: clusters with their policy, anchors, inventory, baselines, identities."""

from dataclasses import dataclass
from enum import StrEnum

from trustauthority.model.baseline import BaselineState, Component
from trustauthority.model.identifiers import ClusterId


class AnchorKind(StrEnum):
    """What an anchor accepts: every TPM of a CA, or one EK."""

    CA = "ca"
    EK = "ek"


class EkType(StrEnum):
    """Kind of an endorsement key."""

    RSA = "rsa"
    ECC = "ecc"


class Role(StrEnum):
    """What a registered identity may do. Default deny; ``rpc.authorize`` holds the one matrix."""

    POLICY = "policy"
    HOSTS = "hosts"
    KEYS = "keys"
    AUDITOR = "auditor"
    APPROVER = "approver"
    OPERATOR = "operator"
    PLACEMENT = "placement"
    IDENTITY = "identity"
    BREAK_GLASS = "break-glass"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterEntry:
    """A trusted cluster and the policy document in force."""

    cluster_id: ClusterId
    policy_document: str
    policy_sha256: str
    policy_epoch: int
    applied_at_ms: int
    applied_by: str
    created_at_ms: int
    live_grants_cap: int
    new_grants_cap: int
    warned_hosts_take: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorEntry:
    """Something a cluster accepts TPMs by."""

    cluster_id: ClusterId
    anchor_id: str
    kind: AnchorKind
    ek_type: EkType
    """The one kind of EK that it admits: a TPM usually has two, and is one host (N77)."""
    subject: str
    certificate: bytes
    """DER for kind CA, empty for kind EK (whose ``anchor_id`` is the EK's hash)."""
    expires_at_ms: int
    added_at_ms: int
    added_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationListEntry:
    """A certificate revocation list that a cluster goes by."""

    cluster_id: ClusterId
    list_id: str
    """Hex SHA-256 of the DER."""
    issuer: str
    document: bytes
    """DER or PEM. Its signature is checked against the issuer in each chain that it concerns."""
    revoked: int
    """How many certificates it takes back."""
    this_update_ms: int
    next_update_ms: int
    """When it is outdated; 0 when it does not say."""
    added_at_ms: int
    added_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InventoryEntry:
    """A machine that is ours, known by the hash of its EK."""

    cluster_id: ClusterId
    ek_sha256: str
    name: str
    host_class: str
    """What hardware it is; empty for not said. Variants of a class match hosts of it only."""
    added_at_ms: int
    added_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineEntry:
    """A variant's document with its life; one per cluster, component and name."""

    cluster_id: ClusterId
    component: Component
    name: str
    host_class: str
    """Hosts of this class may match it; empty for any."""
    state: BaselineState
    document: str
    """Canonical JSON; ``sha256`` is over it."""
    sha256: str
    captured_from: str
    captured_at_ms: int
    approved_by: str
    last_matched_at_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityEntry:
    """A registered key with its roles: never a name in a certificate."""

    key_sha256: str
    name: str
    roles: frozenset[Role]
    revoked: bool
    certificate_expires_ms: int
    issued_by: str
