"""The product with one bug each: every one must be found, or the checker proves nothing."""

from dataclasses import dataclass, replace

from hostagent import lease
from hostagent.lease_model import (
    LeaseView,
    Operation,
    Phase,
    Reply,
    Resend,
    Send,
    Tick,
    VmAction,
)
from support.modelcheck.explore import Scenario
from support.modelcheck.parties import Variant
from support.modelcheck.scenarios import choosy, idle, intent_for, running, with_glass
from trustauthority.placement import authority
from trustauthority.placement.condition import Scene, apply, failing


def _now(pending, now_ms):
    return None if pending is None else replace(pending, first_send_ms=now_ms)


def counted_from_receipt(view: LeaseView, event, now_ms: int):
    """The lease starts when its answer comes."""
    if isinstance(event, Reply):
        view = replace(view, errand=_now(view.errand, now_ms), renewal=_now(view.renewal, now_ms))
    return lease.step(view, event, now_ms)


def counted_from_retry(view: LeaseView, event, now_ms: int):
    """The lease starts at the newest send."""
    if isinstance(event, Resend):
        view = replace(view, errand=_now(view.errand, now_ms), renewal=_now(view.renewal, now_ms))
    return lease.step(view, event, now_ms)


def resumes_on_doubt(view: LeaseView, event, now_ms: int):
    """No answer to the switch by the next tick: the VM goes on at the source."""
    waiting = view.phase is Phase.SWITCHING and now_ms < view.run_until_ms
    if isinstance(event, Tick) and waiting:
        return replace(view, phase=Phase.RUNNING, errand=None), (VmAction.RESUME,)
    return lease.step(view, event, now_ms)


def resumes_on_refusal(view: LeaseView, event, now_ms: int):
    """A refused switch counts as an outcome, though an earlier send may still arrive."""
    refused = isinstance(event, Reply) and event.operation is Operation.SWITCH
    if refused and not event.accepted and view.phase is Phase.SWITCHING:
        return replace(view, phase=Phase.RUNNING, errand=None), (VmAction.RESUME,)
    return lease.step(view, event, now_ms)


def gives_back_first(view: LeaseView, event, now_ms: int):
    """The VM is given back before QEMU is dead."""
    after, actions = lease.step(view, event, now_ms)
    if VmAction.DESTROY in actions and any(isinstance(a, Send) for a in actions):
        return after, tuple(reversed(actions))
    return after, actions


def without(*names: str):
    """The authority with some rules forgotten."""

    def decide(state, request, now_ms):
        transition = authority.transition_for(state, request)
        scene = Scene(state=state, request=request, now_ms=now_ms)
        failed = tuple(r for r in failing(transition, scene) if r.name not in names)
        if failed:
            return state, authority.Refused(transition=transition, failed=failed)
        accepted = authority.Accepted(transition=transition)
        return apply(transition, scene, authority.INSERTED), accepted

    return decide


def prepares_without_offer(state, request, now_ms):
    """Whoever asks to prepare is prepared: a move is made up where none was offered."""
    if isinstance(request, authority.PrepareRequest) and state.grant is None:
        made_up = authority.Move(
            move_id=request.move_id,
            vm_id=request.vm_id,
            source=state.vm.owner or request.host_id,
            destination=request.host_id,
            grant_epoch=state.vm.grant_epoch,
            expires_ms=now_ms + 3,
        )
        state = replace(state, move=state.move or made_up)
        names = ("offered-to-host", "move-current", "move-of-vm", "move-in-time")
        return without(*names)(state, request, now_ms)
    if isinstance(request, authority.ConfirmRequest):
        return without("grant-still-held")(state, request, now_ms)
    return authority.decide(state, request, now_ms)


def steps_unnoticed(state, request, now_ms):
    """The wall clock is believed whatever CLOCK_BOOTTIME says."""
    believed = replace(state.authority, hold_owners_until_ms=0)
    after, outcome = authority.decide(replace(state, authority=believed), request, now_ms)
    return replace(after, authority=state.authority), outcome


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A bug, where it shows, and how short its trace must be."""

    variant: Variant
    scenario: Scenario
    longest: int
    breaks: str


def _lease_scenario(**more: int) -> Scenario:
    budget = {"start0": 1, "start1": 1, **more}
    return Scenario(name="lease", hosts=2, horizon=12, budget=budget, **idle(2))


PLANTED = (
    Planted(
        variant=Variant(
            name="lease counted from receipt", step=counted_from_receipt, check_rights=False
        ),
        scenario=_lease_scenario(),
        longest=14,
        breaks="I-C",
    ),
    Planted(
        variant=Variant(
            name="lease counted from a retry", step=counted_from_retry, check_rights=False
        ),
        scenario=_lease_scenario(resend=1),
        longest=15,
        breaks="I-C",
    ),
    Planted(
        variant=Variant(name="no skew margin", check_rights=False),
        scenario=Scenario(
            name="lease",
            hosts=2,
            horizon=8,
            budget={"start1": 1, "lag": 1},
            **running(2, skew=0),
        ),
        longest=6,
        breaks="I-C",
    ),
    Planted(
        variant=Variant(name="read, then release", reads_then_releases=True),
        scenario=Scenario(
            name="release", hosts=2, horizon=3, budget={"start0": 1, "revoke": 1}, **idle(2)
        ),
        longest=5,
        breaks="S7",
    ),
    Planted(
        variant=Variant(name="prepare without an offer", decide=prepares_without_offer),
        scenario=Scenario(
            name="move", hosts=2, horizon=3, budget={"offer": 1, "prepare": 1}, **running(2)
        ),
        longest=5,
        breaks="S1",
    ),
    Planted(
        variant=Variant(name="resume on doubt", step=resumes_on_doubt, check_rights=False),
        scenario=Scenario(
            name="move",
            hosts=2,
            horizon=5,
            budget={"offer": 1, "prepare": 1, "hand_over": 1, "claim": 1},
            **running(2),
        ),
        longest=12,
        breaks="I-C",
    ),
    Planted(
        variant=Variant(name="resume on a refusal", step=resumes_on_refusal, check_rights=False),
        scenario=Scenario(
            name="move",
            hosts=2,
            horizon=2,
            budget={"offer": 1, "prepare": 1, "hand_over": 1, "duplicate": 1},
            **running(2),
        ),
        longest=12,
        breaks="I-C",
    ),
    Planted(
        variant=Variant(name="fence forgotten", decide=without("clear-of-others")),
        scenario=_lease_scenario(),
        longest=8,
        breaks="I-C",
    ),
    Planted(
        variant=Variant(name="epochs forgotten", decide=without("move-current", "source-asks")),
        scenario=Scenario(
            name="move",
            hosts=2,
            horizon=6,
            budget={"offer": 1, "prepare": 1, "hand_over": 1, "start0": 1},
            **running(2),
        ),
        longest=18,
        breaks="I-C",
    ),
    Planted(
        variant=Variant(name="clock step unnoticed", decide=steps_unnoticed),
        scenario=Scenario(
            name="clock", hosts=2, horizon=4, budget={"start1": 1, "step": 1}, **running(2)
        ),
        longest=6,
        breaks="I-C",
    ),
    Planted(
        variant=Variant(name="give back first", step=gives_back_first, check_rights=False),
        scenario=Scenario(
            name="lease",
            hosts=2,
            horizon=3,
            budget={"start1": 1, "stop": 1, "crash": 1},
            **running(2),
        ),
        longest=8,
        breaks="I-C",
    ),
    Planted(
        variant=Variant(name="intent used twice", decide=without("reason"), check_rights=True),
        scenario=Scenario(
            name="intent",
            hosts=2,
            horizon=4,
            budget={"start1": 2, "stop": 1},
            **idle(2, any_host=False, intents=(intent_for("h0", 4),)),
        ),
        longest=8,
        breaks="6.3",
    ),
    Planted(
        variant=Variant(name="break-glass without a fence", decide=without("clear-of-others")),
        scenario=Scenario(
            name="glass",
            hosts=2,
            horizon=3,
            budget={"start1": 1},
            **with_glass(running(2), "h1", 9),
        ),
        longest=5,
        breaks="I-C",
    ),
    Planted(
        variant=Variant(name="break-glass used twice", decide=without("break-glass-unused")),
        scenario=Scenario(
            name="glass",
            hosts=2,
            horizon=3,
            budget={"start0": 2, "stop": 1},
            **with_glass(idle(2), "h0", 9),
        ),
        longest=9,
        breaks="S4",
    ),
    Planted(
        variant=Variant(
            name="break-glass for a revoked host",
            decide=without("host-not-revoked", "trust-epoch-current", "grant-epochs-current"),
        ),
        scenario=Scenario(
            name="glass",
            hosts=2,
            horizon=2,
            budget={"start0": 1, "revoke": 1},
            **with_glass(idle(2), "h0", 9),
        ),
        longest=5,
        breaks="S7",
    ),
    Planted(
        variant=Variant(
            name="a VM is given as shared", decide=without("vm-shared", "grant-still-held")
        ),
        scenario=Scenario(name="rogue", hosts=2, horizon=2, budget={"rogue": 1}, **running(2)),
        longest=3,
        breaks="S1",
    ),
    Planted(
        variant=Variant(name="drained host takes", decide=without("host-not-draining")),
        scenario=Scenario(
            name="drain",
            hosts=2,
            horizon=2,
            budget={"offer": 1, "prepare": 1, "drain": 1},
            **running(2),
        ),
        longest=8,
        breaks="6.3",
    ),
    Planted(
        variant=Variant(name="warned host takes", decide=without("host-not-warned")),
        scenario=Scenario(
            name="warn", hosts=2, horizon=2, budget={"start1": 1, "warn": 1}, **choosy(idle(2))
        ),
        longest=8,
        breaks="6.3",
    ),
)
