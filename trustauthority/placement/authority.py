"""The authority's side of the protocol: each decision is a transition from rows to rows.

What it is: tables of preconditions and writes, and functions that run them. What it trusts: that
``host_id`` in a request is the authenticated caller, and that ``now_ms`` passed through
``placement.clock`` in the same transaction. What it guarantees: a refused request changes nothing;
an accepted one changes exactly the transition's writes. What it does not do: I/O. The store compiles
``transition_for(state, request)`` into one conditional statement; if that matches no row it reads
and calls ``why_not``. Source: design 3, 6.3-6.6; the model checker runs these very functions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trustauthority.errors import DependencyUnavailable, TrustAuthorityError
from trustauthority.model.placement import Grant, Move, MovePhase, PlacementState
from trustauthority.model.requests import (
    AbortRequest,
    BreakGlassConfirmRequest,
    BreakGlassRenewRequest,
    BreakGlassRequest,
    ConfirmRequest,
    FailRequest,
    GiveBackRequest,
    GrantRequest,
    OfferRequest,
    PrepareRequest,
    RenewRequest,
    Request,
    RevokeAllRequest,
    RevokeRequest,
    ShareRequest,
    SwitchRequest,
)
from trustauthority.placement.break_glass import (
    BREAK_GLASS,
    BREAK_GLASS_CONFIRM,
    BREAK_GLASS_RENEW,
    BREAK_GLASS_REPLAY,
)
from trustauthority.placement.condition import Rule, Scene, Transition, apply, failing
from trustauthority.placement.transitions import (
    ABORT,
    ABORT_REPLAY,
    ABORT_UNKNOWN,
    CONFIRM,
    FAIL,
    GIVE_BACK,
    GIVE_BACK_REPLAY,
    GRANT,
    GRANT_REPLAY,
    OFFER,
    OFFER_REPLAY,
    PREPARE,
    RENEW,
    REVOKE,
    REVOKE_ALL,
    SHARE,
    SWITCH,
    SWITCH_REPLAY,
)

INSERTED: dict[str, type[Any]] = {"grant": Grant, "move": Move}
"""Records that a transition may insert; their keys make a request id good for one decision only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The decision was taken and written."""

    transition: Transition
    replayed: bool = False
    """The request id was decided before; the recorded outcome is told again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Nothing was written."""

    transition: Transition
    failed: tuple[Rule, ...]
    """Every rule that did not hold; the first one names the error."""


Outcome = Accepted | Refused

_FRESH: Mapping[type[Request], Transition] = {
    GrantRequest: GRANT,
    ShareRequest: SHARE,
    BreakGlassRequest: BREAK_GLASS,
    BreakGlassConfirmRequest: BREAK_GLASS_CONFIRM,
    BreakGlassRenewRequest: BREAK_GLASS_RENEW,
    ConfirmRequest: CONFIRM,
    FailRequest: FAIL,
    RenewRequest: RENEW,
    GiveBackRequest: GIVE_BACK,
    OfferRequest: OFFER,
    PrepareRequest: PREPARE,
    SwitchRequest: SWITCH,
    AbortRequest: ABORT,
    RevokeRequest: REVOKE,
    RevokeAllRequest: REVOKE_ALL,
}
_REPLAY: Mapping[type[Request], Transition] = {
    GrantRequest: GRANT_REPLAY,
    ShareRequest: GRANT_REPLAY,
    BreakGlassRequest: BREAK_GLASS_REPLAY,
    PrepareRequest: GRANT_REPLAY,
    GiveBackRequest: GIVE_BACK_REPLAY,
    OfferRequest: OFFER_REPLAY,
    SwitchRequest: SWITCH_REPLAY,
    AbortRequest: ABORT_REPLAY,
}
_REPLAYS = frozenset(_REPLAY.values())


def transition_for(state: PlacementState, request: Request) -> Transition:
    """Choose the transition: the fresh decision, or the replay of a recorded one.

    The store makes this choice by the insert of the request id (or move id) failing, or the phase
    in its ``WHERE`` not matching, never by a read alone.
    """
    if isinstance(request, AbortRequest) and state.move is None:
        return ABORT_UNKNOWN
    table = _REPLAY if _is_recorded(state, request) else _FRESH
    return table[type(request)]


def decide(state: PlacementState, request: Request, now_ms: int) -> tuple[PlacementState, Outcome]:
    """Run one request against the rows it concerns."""
    transition = transition_for(state, request)
    scene = Scene(state=state, request=request, now_ms=now_ms)
    failed = failing(transition, scene)
    if failed:
        return state, Refused(transition=transition, failed=failed)
    accepted = Accepted(transition=transition, replayed=transition in _REPLAYS)
    return apply(transition, scene, INSERTED), accepted


def why_not(state: PlacementState, request: Request, now_ms: int) -> tuple[Rule, ...]:
    """Explain a statement that matched no row: every rule that does not hold, in order.

    Empty when all hold *now*: the rows changed between the statement and this reading, and the
    caller should repeat the statement, never treat the emptiness as a yes.
    """
    scene = Scene(state=state, request=request, now_ms=now_ms)
    return failing(transition_for(state, request), scene)


def refusal(failed: tuple[Rule, ...], *, retry_after_ms: int | None = None) -> TrustAuthorityError:
    """Make the error of a refusal from its first rule; an unexplained refusal is still one."""
    if not failed:
        return DependencyUnavailable("the rows changed while they were decided on; repeat")
    first = failed[0]
    if retry_after_ms is None:
        return first.error(first.says, rule=first.name)
    return first.error(first.says, rule=first.name, retryAfterMs=max(0, retry_after_ms))


def retry_after_ms(state: PlacementState, now_ms: int) -> int | None:
    """When the VM's fence will have passed, from now; ``None`` where nothing holds it."""
    if state.vm is None or state.vm.owner is None:
        return None
    return max(state.vm.fence_until_ms, state.authority.hold_owners_until_ms) - now_ms


# --- the same by name --------------------------------------------------------------------------


def grant(
    state: PlacementState, request: GrantRequest, now_ms: int
) -> tuple[PlacementState, Outcome]:
    """Transaction 1: authorise one host to get a VM's key and run it under the next epoch."""
    return decide(state, request, now_ms)


def confirm(
    state: PlacementState, request: ConfirmRequest, now_ms: int
) -> tuple[PlacementState, Outcome]:
    """Transaction 2: record the release, after which, and only then, the reply leaves."""
    return decide(state, request, now_ms)


def fail(
    state: PlacementState, request: FailRequest, now_ms: int
) -> tuple[PlacementState, Outcome]:
    """Record that the key could not be made; the holder may retry or give back at once."""
    return decide(state, request, now_ms)


def renew(
    state: PlacementState, request: RenewRequest, now_ms: int
) -> tuple[PlacementState, Outcome]:
    """Give the owner the next lease under the same epoch."""
    return decide(state, request, now_ms)


def give_back(
    state: PlacementState, request: GiveBackRequest, now_ms: int
) -> tuple[PlacementState, Outcome]:
    """Free the VM at once: the host says that its QEMU is dead."""
    return decide(state, request, now_ms)


def offer(
    state: PlacementState, request: OfferRequest, now_ms: int
) -> tuple[PlacementState, Outcome]:
    """Let one destination prepare, for a short time."""
    return decide(state, request, now_ms)


def prepare(
    state: PlacementState, request: PrepareRequest, now_ms: int
) -> tuple[PlacementState, Outcome]:
    """Authorise the offered destination to get the key, not to run the VM (transaction 1)."""
    return decide(state, request, now_ms)


def switch(
    state: PlacementState, request: SwitchRequest, now_ms: int
) -> tuple[PlacementState, Outcome]:
    """Hand the right to run from the paused source to the prepared destination."""
    return decide(state, request, now_ms)


def abort(
    state: PlacementState, request: AbortRequest, now_ms: int
) -> tuple[PlacementState, Outcome]:
    """End a move for good, so that no late switch can succeed."""
    return decide(state, request, now_ms)


def revoke(
    state: PlacementState, request: RevokeRequest, now_ms: int
) -> tuple[PlacementState, Outcome]:
    """Bump the host's trust epoch: acknowledged means no later release or renewal succeeds."""
    return decide(state, request, now_ms)


def revoke_all(
    state: PlacementState, request: RevokeAllRequest, now_ms: int
) -> tuple[PlacementState, Outcome]:
    """Bump the global epoch: every host must attest again before anything is released."""
    return decide(state, request, now_ms)


def _is_recorded(state: PlacementState, request: Request) -> bool:
    match request:
        case GrantRequest() | ShareRequest() | BreakGlassRequest() | PrepareRequest():
            return state.grant is not None
        case OfferRequest():
            return state.move is not None
        case SwitchRequest():
            return _has_phase(state, MovePhase.SWITCHED)
        case AbortRequest():
            return _has_phase(state, MovePhase.ABORTED)
        case GiveBackRequest():
            return _was_given_back(state, request)
        case _:
            return False


def _has_phase(state: PlacementState, phase: MovePhase) -> bool:
    return state.move is not None and state.move.phase is phase


def _was_given_back(state: PlacementState, request: GiveBackRequest) -> bool:
    vm = state.vm
    return (
        vm is not None
        and vm.owner is None
        and vm.last_owner == request.host_id
        and vm.grant_epoch == request.grant_epoch
    )
