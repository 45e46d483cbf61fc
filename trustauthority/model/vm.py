"""Protected VMs and their keys, as they are kept and listed."""

from dataclasses import dataclass

from trustauthority.model.identifiers import ClusterId, HostId, RequestId, VmId
from trustauthority.model.placement import KeyState, LeaseClass


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
    any_host_of_cluster: bool
    owner: HostId | None
    last_owner: HostId | None
    grant_epoch: int
    lease_until_ms: int
    fence_until_ms: int
    move_id: RequestId | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VmKeyEntry:
    """One key of a VM: wrapped by a KEK of a KMS, never in the clear."""

    vm_id: VmId
    key_epoch: int
    state: KeyState
    provider: str
    kek_id: str
    wrapped: bytes
    """Nonce and AES-256-GCM ciphertext; the AAD binds VM, key epoch and provider."""
    created_at_ms: int
    created_by: str


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
