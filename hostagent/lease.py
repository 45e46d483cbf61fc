"""The host's side of the protocol: what one host may do with one VM, and until when.

What it is: a sans-IO state machine, ``step(view, event, now) -> (view, actions)``. What it trusts:
that ``now_ms`` is CLOCK_BOOTTIME of this host, that the caller stores the view (on a file system
that a reboot empties) *before* it carries out the actions, and that replies came over the
authority's mTLS. What it guarantees: a VM runs only under a lease counted from the *first* send of
the request that got it; on loss it is paused, then destroyed, before any other host gets in; nobody
resumes on doubt. What it does not do: talk, sleep, or touch libvirt or the TPM. Source: design
6.4 (4)-(6), 6.5. The model checker runs this very code against the authority's.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import assert_never

from hostagent.lease_model import (
    FENCED,
    HOST_REVOKED,
    RENEW_FRACTION,
    AbortMove,
    Action,
    ArmWatchdog,
    Claim,
    Event,
    GiveUp,
    HandOver,
    LeaseView,
    OfferMove,
    Operation,
    Pending,
    Phase,
    PrepareMove,
    Reply,
    Resend,
    Send,
    Start,
    Step,
    Stopped,
    Tick,
    VmAction,
)


def step(view: LeaseView, event: Event, now_ms: int) -> Step:
    """Advance by one event. An event that does not fit the phase changes nothing."""
    match event:
        case Reply():
            return _on_reply(view, event, now_ms)
        case Tick():
            return _on_tick(view, event.fresh_id, now_ms)
        case Resend():
            return view, tuple(_sent(view, each) for each in (view.errand, view.renewal) if each)
        case Stopped():
            return _on_stopped(view, event.fresh_id, now_ms)
        case Start() | GiveUp() | PrepareMove() | Claim():
            return _on_arrival(view, event, now_ms)
        case OfferMove() | HandOver() | AbortMove():
            return _on_departure(view, event, now_ms)
        case _:
            assert_never(event)


def restarted(view: LeaseView, now_ms: int) -> Step:
    """Take up a stored view after the agent died, at any point between storing and acting.

    A hand-over stays a hand-over: the VM stays paused until its outcome was read. The actions make
    the VM what the view says; each is harmless where it was carried out before. A caller that finds
    no VM where the view has one goes on with ``Stopped``.
    """
    kept = replace(view, renewal=None)
    armed = ArmWatchdog(at_ms=view.destroy_at_ms)
    match view.phase:
        case Phase.IDLE | Phase.REQUESTING | Phase.PREPARING:
            return LeaseView(), (VmAction.DESTROY,)
        case Phase.GIVING_BACK:
            return _preceded_by((VmAction.DESTROY,), _and_send(kept))
        case Phase.SWITCHING | Phase.PAUSED:
            return _preceded_by((armed, VmAction.PAUSE), _and_send(kept))
        case Phase.RUNNING:
            running = replace(kept, errand=None)
            if now_ms >= view.run_until_ms:
                return _preceded_by((armed,), _on_time(running, now_ms))
            return running, (armed, VmAction.RESUME)
        case Phase.PREPARED:
            return kept, (armed,)
        case _:
            assert_never(view.phase)


def _preceded_by(first: tuple[Action, ...], done: Step) -> Step:
    view, actions = done
    return view, (*first, *actions)


# --- starting and preparing ------------------------------------------------------------------


def _on_arrival(view: LeaseView, event: Start | GiveUp | PrepareMove | Claim, now_ms: int) -> Step:
    match event:
        case Claim(fresh_id=fresh_id) if view.phase is Phase.PREPARED:
            renewal = _pending(Operation.RENEW, fresh_id, now_ms)
            return replace(view, renewal=renewal), (_sent(view, renewal),)
        case Start(fresh_id=fresh_id) if view.phase is Phase.IDLE:
            errand = _pending(Operation.REQUEST, fresh_id, now_ms)
            return _and_send(LeaseView(phase=Phase.REQUESTING, errand=errand))
        case PrepareMove(fresh_id=fresh_id, move_id=move_id) if view.phase is Phase.IDLE:
            errand = _pending(Operation.PREPARE, fresh_id, now_ms)
            preparing = LeaseView(phase=Phase.PREPARING, errand=errand, move_id=move_id)
            return _and_send(preparing)
        case GiveUp() if view.phase in {Phase.REQUESTING, Phase.PREPARING}:
            return LeaseView(), ()
        case _:
            return view, ()


# --- leaving ---------------------------------------------------------------------------------


def _on_departure(view: LeaseView, event: OfferMove | HandOver | AbortMove, now_ms: int) -> Step:
    running = view.phase is Phase.RUNNING and now_ms < view.run_until_ms
    match event:
        case OfferMove(fresh_id=fresh_id, destination=destination) if running:
            if view.errand is not None or view.move_id is not None:
                return view, ()
            errand = _pending(Operation.OFFER, fresh_id, now_ms)
            return _and_send(
                replace(view, errand=errand, move_id=fresh_id, destination=destination)
            )
        case HandOver() if running and view.move_id is not None:
            errand = _pending(Operation.SWITCH, view.move_id, now_ms)
            switching = replace(view, phase=Phase.SWITCHING, errand=errand)
            return switching, (VmAction.PAUSE, _sent(switching, errand))
        case AbortMove() if view.move_id and view.phase in {Phase.RUNNING, Phase.SWITCHING}:
            return _and_send(replace(view, errand=_pending(Operation.ABORT, view.move_id, now_ms)))
        case _:
            return view, ()


def _on_stopped(view: LeaseView, fresh_id: str, now_ms: int) -> Step:
    if view.phase in {Phase.RUNNING, Phase.PAUSED, Phase.SWITCHING}:
        return _give_back(view, fresh_id, now_ms)
    if view.phase is Phase.PREPARED:
        return LeaseView(), (VmAction.DESTROY,)
    return view, ()


def _give_back(view: LeaseView, fresh_id: str, now_ms: int) -> Step:
    errand = _pending(Operation.GIVE_BACK, fresh_id, now_ms)
    giving = LeaseView(phase=Phase.GIVING_BACK, grant_epoch=view.grant_epoch, errand=errand)
    return giving, (VmAction.DESTROY, _sent(giving, errand))


# --- time ------------------------------------------------------------------------------------


def _on_tick(view: LeaseView, fresh_id: str, now_ms: int) -> Step:
    if _holds_vm(view) and now_ms >= view.destroy_at_ms:
        if view.phase is Phase.PREPARED:
            return LeaseView(), (VmAction.DESTROY,)
        return _give_back(view, fresh_id, now_ms)
    checked, actions = _on_time(view, now_ms)
    if not _renewal_is_due(checked, now_ms):
        return checked, actions
    renewal = _pending(Operation.RENEW, fresh_id, now_ms)
    return replace(checked, renewal=renewal), (*actions, _sent(checked, renewal))


def _renewal_is_due(view: LeaseView, now_ms: int) -> bool:
    """A third of the lease is over, or the last attempt is so old that a new id buys more time."""
    if view.phase not in {Phase.RUNNING, Phase.PAUSED, Phase.SWITCHING}:
        return False
    if view.renewal is None:
        return now_ms >= view.renew_at_ms
    return now_ms >= view.renewal.first_send_ms + view.lease_ms // RENEW_FRACTION


def _on_time(view: LeaseView, now_ms: int) -> Step:
    if view.phase is Phase.RUNNING and now_ms >= view.run_until_ms:
        return replace(view, phase=Phase.PAUSED), (VmAction.PAUSE,)
    return view, ()


# --- answers ---------------------------------------------------------------------------------


def _on_reply(view: LeaseView, reply: Reply, now_ms: int) -> Step:
    if _answers(view.renewal, reply):
        return _on_renewed(view, reply, now_ms)
    if not _answers(view.errand, reply):
        return view, ()  # nobody waits for it: too late, a duplicate, or of another life
    return _ERRANDS[reply.operation](view, reply, now_ms)


def _on_granted(view: LeaseView, reply: Reply, now_ms: int) -> Step:
    if not reply.accepted or view.errand is None:
        return LeaseView(), ()
    granted = _under(view, reply, view.errand.first_send_ms)
    if now_ms >= granted.run_until_ms:  # delayed for longer than the lease: never opened (N50)
        return LeaseView(), ()
    return granted, (ArmWatchdog(at_ms=granted.destroy_at_ms), VmAction.START)


def _on_prepared(view: LeaseView, reply: Reply, now_ms: int) -> Step:
    """Keep the incoming VM for as long as the authority may still let the source switch.

    The authority counts from when it decided, before this reply came; a reply within one length of
    the first send is therefore safely covered by two.
    """
    if not reply.accepted or view.errand is None:
        return LeaseView(), ()
    if now_ms >= view.errand.first_send_ms + reply.lease_ms:
        return LeaseView(), ()
    until = view.errand.first_send_ms + 2 * reply.lease_ms
    prepared = LeaseView(
        phase=Phase.PREPARED,
        grant_epoch=reply.grant_epoch,
        destroy_at_ms=until,
        move_id=view.move_id,
    )
    return prepared, (ArmWatchdog(at_ms=until), VmAction.RECEIVE)


def _on_renewed(view: LeaseView, reply: Reply, now_ms: int) -> Step:
    if view.renewal is None:
        return view, ()
    if not reply.accepted:
        return _on_not_renewed(view, reply, now_ms)
    renewed = _under(view, reply, view.renewal.first_send_ms)
    if now_ms >= renewed.run_until_ms:
        return replace(view, renewal=None), ()
    watchdog = ArmWatchdog(at_ms=renewed.destroy_at_ms)
    if view.phase is Phase.SWITCHING:  # the lease goes on, the VM stays paused
        return replace(renewed, phase=Phase.SWITCHING, errand=view.errand), (watchdog,)
    if view.phase in {Phase.PAUSED, Phase.PREPARED}:
        kept = None if view.phase is Phase.PREPARED else view.move_id
        return replace(renewed, move_id=kept), (watchdog, VmAction.RESUME)
    return replace(renewed, errand=view.errand), (watchdog,)


def _on_not_renewed(view: LeaseView, reply: Reply, now_ms: int) -> Step:
    waiting = replace(view, renewal=None)
    if view.phase is Phase.PREPARED:
        return waiting, ()  # not switched, or not yet
    if reply.reason == FENCED:
        return LeaseView(), (VmAction.DESTROY,)
    if reply.reason == HOST_REVOKED and view.phase is Phase.RUNNING:
        paused = replace(waiting, phase=Phase.PAUSED, errand=None)
        if view.destroys_at_once:  # the next tick, which is due now, destroys and gives back
            paused = replace(paused, run_until_ms=now_ms, destroy_at_ms=now_ms)
        return paused, (VmAction.PAUSE,)
    return waiting, ()


def _on_given_back(view: LeaseView, reply: Reply, _now_ms: int) -> Step:
    return (LeaseView() if reply.accepted or reply.reason == FENCED else view), ()


def _on_offered(view: LeaseView, reply: Reply, _now_ms: int) -> Step:
    return replace(view, errand=None, move_id=view.move_id if reply.accepted else None), ()


def _on_switched(view: LeaseView, reply: Reply, now_ms: int) -> Step:
    if reply.accepted or reply.reason == FENCED:
        return LeaseView(), (VmAction.DESTROY,)
    # A refusal is no outcome: an earlier send may still arrive. Only a recorded abort is one.
    return _and_send(
        replace(view, errand=_pending(Operation.ABORT, reply.request_id, now_ms)),
    )


def _on_aborted(view: LeaseView, reply: Reply, now_ms: int) -> Step:
    if reply.reason == FENCED and view.phase is Phase.SWITCHING:
        return LeaseView(), (VmAction.DESTROY,)
    if not reply.accepted and view.phase is Phase.SWITCHING:
        return _and_send(
            replace(view, errand=_pending(Operation.SWITCH, reply.request_id, now_ms)),
        )
    stays = replace(view, errand=None, move_id=None)
    if view.phase is not Phase.SWITCHING:
        return stays, ()
    if now_ms < view.run_until_ms:
        return replace(stays, phase=Phase.RUNNING), (VmAction.RESUME,)
    return replace(stays, phase=Phase.PAUSED), ()


_ERRANDS: Mapping[Operation, Callable[[LeaseView, Reply, int], Step]] = {
    Operation.REQUEST: _on_granted,
    Operation.PREPARE: _on_prepared,
    Operation.GIVE_BACK: _on_given_back,
    Operation.OFFER: _on_offered,
    Operation.SWITCH: _on_switched,
    Operation.ABORT: _on_aborted,
}


# --- parts -----------------------------------------------------------------------------------


def _under(view: LeaseView, reply: Reply, first_send_ms: int) -> LeaseView:
    """The view of a lease that began when its request was first sent."""
    run_until = first_send_ms + reply.lease_ms + reply.continue_for_ms
    margin = 0 if reply.destroys_at_once else reply.skew_ms // 2
    return LeaseView(
        phase=Phase.RUNNING,
        grant_epoch=reply.grant_epoch,
        run_until_ms=run_until,
        destroy_at_ms=run_until + margin,
        renew_at_ms=first_send_ms + reply.lease_ms // RENEW_FRACTION,
        lease_ms=reply.lease_ms,
        destroys_at_once=reply.destroys_at_once,
        move_id=view.move_id,
        destination=view.destination,
    )


def _pending(operation: Operation, request_id: str, now_ms: int) -> Pending:
    return Pending(operation=operation, request_id=request_id, first_send_ms=now_ms)


def _answers(pending: Pending | None, reply: Reply) -> bool:
    return (
        pending is not None
        and pending.operation is reply.operation
        and pending.request_id == reply.request_id
    )


def _holds_vm(view: LeaseView) -> bool:
    return view.phase in {Phase.RUNNING, Phase.PAUSED, Phase.SWITCHING, Phase.PREPARED}


def _and_send(view: LeaseView) -> Step:
    return view, (_sent(view, view.errand),) if view.errand is not None else ()


def _sent(view: LeaseView, pending: Pending) -> Send:
    claims = view.phase is Phase.PREPARED and pending.operation is Operation.RENEW
    return Send(
        operation=pending.operation,
        request_id=pending.request_id,
        grant_epoch=view.grant_epoch + 1 if claims else view.grant_epoch,
        destination=view.destination if pending.operation is Operation.OFFER else "",
        move_id=view.move_id or "",
    )
