"""Protected VMs and their keys, as they are kept and listed."""

from dataclasses import dataclass

from trustauthority.model.identifiers import ClusterId, HostId, RequestId, VmId
from trustauthority.model.lease import OnLeaseLoss
from trustauthority.model.placement import KeyState, LeaseClass, Sharing, VmState


@dataclass(frozen=True, slots=True, kw_only=True)
class VmEntry:
    """A protected VM with its grant."""

    vm_id: VmId
    cluster_id: ClusterId
    key_state: KeyState | None
    key_epoch: int
    profile_sha256: bytes
    lease_class: LeaseClass
    lease_ms: int
    continue_for_ms: int
    skew_ms: int
    on_lease_loss: OnLeaseLoss
    sharing: Sharing = Sharing.EXCLUSIVE
    any_host_of_cluster: bool
    owner: HostId | None
    last_owner: HostId | None
    grant_epoch: int
    lease_until_ms: int
    fence_until_ms: int
    move_id: RequestId | None
    state: VmState = VmState.PROTECTED


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A VM key as the key room makes or takes it in: never in the clear."""

    wrapped: bytes
    """Under the provider's KEK."""
    escrowed: bytes = b""
    """To the offline escrow key, empty without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VmKeyEntry:
    """One key of a VM: wrapped by a KEK of a KMS, never in the clear."""

    vm_id: VmId
    key_epoch: int
    state: KeyState
    provider: str
    kek_id: str
    wrapped: bytes
    """Under the KEK; the AAD binds VM, key epoch and provider. Empty once the key is destroyed."""
    escrowed: bytes = b""
    """The same key to the offline escrow key; empty without one, and once the key is destroyed."""
    created_at_ms: int
    created_by: str
    changed_at_ms: int = 0
    """When it came into its state."""
    destroy_at_ms: int = 0
    """When it will be destroyed; 0 when nobody asked for that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tombstone:
    """A key that was destroyed. Kept outside of the database, which may be put back to older days."""

    vm_id: VmId
    key_epoch: int
    created_at_ms: int
    """Tells this key from one that a restored authority made under the same epoch."""
    destroyed_at_ms: int
    compromised: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class IntentEntry:
    """A scheduler's single-use, expiring reason for a host to ask for a VM."""

    intent_id: RequestId
    vm_id: VmId
    destination: HostId
    created_by: str
    created_at_ms: int
    expires_ms: int
    used_by: RequestId | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakGlassEntry:
    """A break-glass as it is kept and listed."""

    glass_id: RequestId
    vm_id: VmId
    host_id: HostId
    reason: str
    """Why, in somebody's words."""
    opened_by: str
    opened_at_ms: int
    expires_ms: int
    closed_at_ms: int = 0
    closed_by: str = ""
    used_by: RequestId | None = None
    grant_epoch: int = 0
    """The epoch that it gave; 0 while nobody used it."""

    def is_open(self, now_ms: int) -> bool:
        """Whether it still lets a request through, or a lease that it gave go on."""
        return not self.closed_at_ms and now_ms < self.expires_ms
