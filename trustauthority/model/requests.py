"""What is asked of placement: one frozen request per operation.

What it trusts: nothing; ``host_id`` is always the authenticated caller. What it does not do: decide.
Source: design 6.3-6.6.
"""

from dataclasses import dataclass

from trustauthority.model.identifiers import HostId, RequestId, VmId


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantRequest:
    """Ask for the right to run a VM and for its key (transaction 1)."""

    request_id: RequestId
    vm_id: VmId
    host_id: HostId


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareRequest:
    """Ask for a shared secret, which several hosts may hold at a time (transaction 1)."""

    request_id: RequestId
    vm_id: VmId
    host_id: HostId


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakGlassRequest:
    """Ask for the right to run a VM under an open break-glass, whatever the verdict says."""

    request_id: RequestId
    vm_id: VmId
    host_id: HostId


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakGlassConfirmRequest:
    """Let the answer of a break-glass out (transaction 2)."""

    request_id: RequestId
    vm_id: VmId
    host_id: HostId
    response_hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakGlassRenewRequest:
    """Ask for the next lease under a grant of a break-glass that is still open."""

    request_id: RequestId
    vm_id: VmId
    host_id: HostId
    grant_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmRequest:
    """Let the answer out whose SHA-256 this is (transaction 2)."""

    request_id: RequestId
    vm_id: VmId
    host_id: HostId
    response_hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FailRequest:
    """Record that an authorised key could not be unwrapped or wrapped; nothing left."""

    request_id: RequestId
    vm_id: VmId
    host_id: HostId


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewRequest:
    """Ask for the next lease under the same grant epoch."""

    request_id: RequestId
    vm_id: VmId
    host_id: HostId
    grant_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveBackRequest:
    """Say that QEMU is dead and the key wiped; the VM is free at once."""

    request_id: RequestId
    vm_id: VmId
    host_id: HostId
    grant_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferRequest:
    """The owner offers the VM to one destination; the request id names the whole move."""

    move_id: RequestId
    vm_id: VmId
    host_id: HostId
    grant_epoch: int
    destination: HostId


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareRequest:
    """The destination asks for the key of an offered VM; it may not run it yet."""

    request_id: RequestId
    move_id: RequestId
    vm_id: VmId
    host_id: HostId


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchRequest:
    """The source, its VM paused, hands over the right to run."""

    move_id: RequestId
    vm_id: VmId
    host_id: HostId


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortRequest:
    """The source or the destination ends a move for good."""

    move_id: RequestId
    vm_id: VmId
    host_id: HostId


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeRequest:
    """An administrator takes a host's trust away."""

    host_id: HostId


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeAllRequest:
    """An administrator takes every host's trust away: one row, all releases stop."""


Request = (
    GrantRequest
    | ShareRequest
    | BreakGlassRequest
    | BreakGlassConfirmRequest
    | BreakGlassRenewRequest
    | ConfirmRequest
    | FailRequest
    | RenewRequest
    | GiveBackRequest
    | OfferRequest
    | PrepareRequest
    | SwitchRequest
    | AbortRequest
    | RevokeRequest
    | RevokeAllRequest
)
