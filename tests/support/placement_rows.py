"""Rows of a small cluster in good order, for tests that spoil one thing at a time."""

from dataclasses import replace
from typing import Any

from trustauthority.model.identifiers import ClusterId, HostId, RequestId, VmId
from trustauthority.model.placement import (
    AuthorityRecord,
    ClusterRecord,
    HostStanding,
    Intent,
    PlacementState,
    VmRecord,
)
from trustauthority.model.requests import (
    ConfirmRequest,
    GiveBackRequest,
    GrantRequest,
    OfferRequest,
    PrepareRequest,
    RenewRequest,
    SwitchRequest,
)
from trustauthority.placement import authority
from trustauthority.placement.authority import Accepted, Outcome, Refused

NOW = 1_000_000
"""A moment at which everything below is in order, milliseconds."""
LEASE, SKEW = 3_000, 1_000
FENCE = LEASE + SKEW
BOOT = bytes(7) + b"\x01"
OTHER_BOOT = bytes(7) + b"\x02"
CLUSTER = ClusterId("prod")
VM = VmId("db-1")
A, B = HostId("h-a"), HostId("h-b")


def host(host_id: HostId = A, **changes: Any) -> HostStanding:
    """An admitted, attested host."""
    good = HostStanding(
        host_id=host_id,
        cluster_id=CLUSTER,
        admitted=True,
        trust_epoch=4,
        verdict_trust_epoch=4,
        verdict_policy_epoch=7,
        verdict_global_epoch=2,
        challenged_at_ms=NOW - 1_000,
        attested_until_ms=NOW + 100_000,
        boot=BOOT,
    )
    return replace(good, **changes)


def vm(**changes: Any) -> VmRecord:
    """A VM that host A had last and gave back."""
    good = VmRecord(
        vm_id=VM,
        cluster_id=CLUSTER,
        lease_ms=LEASE,
        skew_ms=SKEW,
        last_owner=A,
        grant_epoch=5,
    )
    return replace(good, **changes)


def state(**changes: Any) -> PlacementState:
    """Host A may be granted the VM."""
    good = PlacementState(
        authority=AuthorityRecord(global_epoch=2, high_water_ms=NOW - 10),
        cluster=ClusterRecord(cluster_id=CLUSTER, policy_epoch=7),
        host=host(),
        vm=vm(),
    )
    return replace(good, **changes)


def request_id(text: str = "r1") -> RequestId:
    """An id of the right length."""
    return RequestId(text.ljust(16, "-"))


def intent(destination: HostId = B, **changes: Any) -> Intent:
    """A fresh intent."""
    good = Intent(
        intent_id=request_id("i1"), vm_id=VM, destination=destination, expires_ms=NOW + 60_000
    )
    return replace(good, **changes)


def ask(host_id: HostId = A, text: str = "r1") -> GrantRequest:
    """Ask for the VM."""
    return GrantRequest(request_id=request_id(text), vm_id=VM, host_id=host_id)


def confirmation(host_id: HostId = A, text: str = "r1") -> ConfirmRequest:
    """Transaction 2."""
    return ConfirmRequest(
        request_id=request_id(text), vm_id=VM, host_id=host_id, response_hash=bytes(32)
    )


def renewal(epoch: int, host_id: HostId = A) -> RenewRequest:
    """Renew under an epoch."""
    return RenewRequest(request_id=request_id("n1"), vm_id=VM, host_id=host_id, grant_epoch=epoch)


def return_of(epoch: int, host_id: HostId = A) -> GiveBackRequest:
    """Give back under an epoch."""
    return GiveBackRequest(
        request_id=request_id("g1"), vm_id=VM, host_id=host_id, grant_epoch=epoch
    )


def offer(epoch: int, move: str = "m1", destination: HostId = B) -> OfferRequest:
    """A offers to ``destination``."""
    return OfferRequest(
        move_id=request_id(move), vm_id=VM, host_id=A, grant_epoch=epoch, destination=destination
    )


def preparation(host_id: HostId = B, text: str = "p1", move: str = "m1") -> PrepareRequest:
    """The destination prepares."""
    return PrepareRequest(
        request_id=request_id(text), move_id=request_id(move), vm_id=VM, host_id=host_id
    )


def handover(host_id: HostId = A, move: str = "m1") -> SwitchRequest:
    """The source switches."""
    return SwitchRequest(move_id=request_id(move), vm_id=VM, host_id=host_id)


def accepted(done: tuple[PlacementState, Outcome]) -> PlacementState:
    """The new rows, where the decision was yes."""
    after, outcome = done
    assert isinstance(outcome, Accepted), outcome
    return after


def refused(before: PlacementState, done: tuple[PlacementState, Outcome]) -> list[str]:
    """The failed rules' names, where the decision was no and changed nothing."""
    after, outcome = done
    assert isinstance(outcome, Refused), outcome
    assert after == before
    return [rule.name for rule in outcome.failed]


def reason(done: tuple[PlacementState, Outcome]) -> str:
    """The reason that the caller is told."""
    outcome = done[1]
    assert isinstance(outcome, Refused), outcome
    return authority.refusal(outcome.failed).reason


def owned() -> PlacementState:
    """Host A owns the VM since NOW, its key released."""
    granted = accepted(authority.grant(state(), ask(), NOW))
    return accepted(authority.confirm(granted, confirmation(), NOW))
