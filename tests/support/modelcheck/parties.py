"""The two parties, run through the product's functions and nothing else; ``Variant`` plants bugs."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from hostagent import lease
from hostagent.lease_model import (
    ArmWatchdog,
    LeaseView,
    Operation,
    Phase,
    Reply,
    Send,
    Stopped,
    VmAction,
)
from support.modelcheck.world import CLUSTER, VM, Domain, Machine, Rows, ToAuthority, ToHost
from trustauthority.model.lease import OnLeaseLoss
from trustauthority.model.placement import GrantPhase, MovePhase, PlacementState, Purpose
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
    ShareRequest,
    SwitchRequest,
)
from trustauthority.placement import authority
from trustauthority.placement.clock import ClockReading, observe

_BY_GLASS = (BreakGlassRequest, BreakGlassConfirmRequest, BreakGlassRenewRequest)


class Violation(Exception):
    """A promise is broken."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The product as it is, or with one planted bug."""

    name: str = "product"
    decide: Callable = authority.decide
    step: Callable = lease.step
    reads_then_releases: bool = False
    check_rights: bool = True
    """Planted bugs turn the ground-truth checks off that would name them at once."""


def host_name(index: int) -> str:
    return f"h{index}"


def boot_bytes(boot: int) -> bytes:
    return boot.to_bytes(8, "big")


# --- authority -------------------------------------------------------------------------------


def request_of(message: ToAuthority):
    """Make the product's request of a message; the host is who the TLS session says."""
    send, host = message.send, host_name(message.host)
    base = {"vm_id": VM, "host_id": host}
    match send.operation:
        case Operation.REQUEST:
            return GrantRequest(request_id=send.request_id, **base)
        case Operation.RENEW:
            return RenewRequest(request_id=send.request_id, grant_epoch=send.grant_epoch, **base)
        case Operation.GIVE_BACK:
            return GiveBackRequest(request_id=send.request_id, grant_epoch=send.grant_epoch, **base)
        case Operation.OFFER:
            return OfferRequest(
                move_id=send.move_id,
                grant_epoch=send.grant_epoch,
                destination=send.destination,
                **base,
            )
        case Operation.PREPARE:
            return PrepareRequest(request_id=send.request_id, move_id=send.move_id, **base)
        case Operation.SWITCH:
            return SwitchRequest(move_id=send.move_id, **base)
        case Operation.ABORT:
            return AbortRequest(move_id=send.move_id, **base)


def load(rows: Rows, request) -> PlacementState:
    """Join the rows that a decision on this request looks at."""
    move_id = getattr(request, "move_id", None)
    request_id = getattr(request, "request_id", None)
    grant = next((g for g in rows.grants if g.request_id == request_id), None)
    if move_id is None and grant is not None:
        move_id = grant.move_id
    move = next((m for m in rows.moves if m.move_id == move_id), None)
    host_id = request.host_id
    if isinstance(request, SwitchRequest):
        host_id = move.destination if move else None
    return PlacementState(
        authority=rows.authority,
        cluster=rows.cluster,
        host=next((h for h in rows.hosts if h.host_id == host_id), None),
        vm=rows.vm,
        intent=next((i for i in rows.intents if i.destination == host_id and not i.used_by), None),
        grant=grant,
        move=move,
        glass=next((g for g in rows.glasses if g.host_id == host_id and not g.closed_at_ms), None)
        if isinstance(request, _BY_GLASS)
        else None,
    )


def save(rows: Rows, before: PlacementState, after: PlacementState) -> Rows:
    """Write the changed rows back."""
    grants, moves, hosts, intents = rows.grants, rows.moves, rows.hosts, rows.intents
    glasses = rows.glasses
    if after.glass is not before.glass:
        glasses = tuple(after.glass if g.glass_id == after.glass.glass_id else g for g in glasses)
    if after.grant is not before.grant:
        rest = [g for g in grants if g.request_id != after.grant.request_id]
        grants = tuple(sorted([*rest, replace(after.grant, replays=0)], key=lambda g: g.request_id))
    if after.move is not before.move:
        rest = [m for m in moves if m.move_id != after.move.move_id]
        moves = tuple(sorted([*rest, replace(after.move, replays=0)], key=lambda m: m.move_id))
    if after.host is not before.host:
        hosts = tuple(after.host if h.host_id == after.host.host_id else h for h in hosts)
    if after.intent is not before.intent:
        intents = tuple(
            after.intent if i.intent_id == after.intent.intent_id else i for i in intents
        )
    return replace(
        rows,
        authority=after.authority,
        hosts=hosts,
        vm=after.vm,
        grants=grants,
        moves=moves,
        intents=intents,
        glasses=glasses,
    )


def guarded(rows: Rows, t: int, offset: int) -> tuple[Rows, int]:
    """Read both clocks in the transaction and bring the guard up to date (N33, N86)."""
    reading = ClockReading(wall_ms=t + offset, boot_ms=t, boot_id="b")
    longest = rows.vm.terms.fence_ms
    guard = observe(rows.guard, reading, longest_fence_ms=longest, tolerance_ms=0)
    authority_row = replace(
        rows.authority,
        high_water_ms=guard.high_water_ms,
        hold_owners_until_ms=guard.hold_owners_until_ms,
    )
    # The high-water mark of a clock that moves with t would make every state new; it is kept only
    # while it says something: when the clock is behind it.
    return replace(rows, guard=guard, authority=authority_row), t + offset


def forget_time(rows: Rows, t: int, offset: int) -> Rows:
    """Drop marks that can't matter any more, so that equal futures are equal states."""
    now = t + offset
    guard, row = rows.guard, rows.authority
    mark = guard.high_water_ms if guard.high_water_ms > now else 0
    hold = guard.hold_owners_until_ms if guard.hold_owners_until_ms > now else 0
    vm = rows.vm
    if vm.fence_until_ms and mark == 0:
        fence = vm.fence_until_ms if vm.fence_until_ms > now else 1
        vm = replace(vm, fence_until_ms=fence, lease_until_ms=0)
    return replace(
        rows,
        vm=vm,
        guard=replace(guard, high_water_ms=mark, hold_owners_until_ms=hold),
        authority=replace(row, high_water_ms=mark, hold_owners_until_ms=hold),
    )


def terms_of(rows: Rows) -> dict:
    vm = rows.vm
    return {
        "grant_epoch": vm.grant_epoch,
        "lease_ms": vm.lease_ms,
        "continue_for_ms": vm.continue_for_ms,
        "skew_ms": vm.skew_ms,
        "destroys_at_once": vm.on_lease_loss is OnLeaseLoss.DESTROY,
    }


def by_glass(rows: Rows, request, now: int):
    """What ``services.keys`` asks when the ordinary way is closed and a break-glass is open."""
    found = next(
        (
            g
            for g in rows.glasses
            if g.host_id == request.host_id and not g.closed_at_ms and now < g.expires_ms
        ),
        None,
    )
    if found is None or not isinstance(request, GrantRequest | RenewRequest | ConfirmRequest):
        return None
    base = {"request_id": request.request_id, "vm_id": VM, "host_id": request.host_id}
    match request:
        case GrantRequest():
            return BreakGlassRequest(**base)
        case RenewRequest() if found.used_by:
            return BreakGlassRenewRequest(grant_epoch=request.grant_epoch, **base)
        case ConfirmRequest() if found.used_by == request.request_id:
            return BreakGlassConfirmRequest(response_hash=request.response_hash, **base)
        case _:
            return None


def decided(variant: Variant, rows: Rows, request, now: int):
    """Decide; where that is refused and a break-glass is open, by that: (request, before, after, outcome)."""
    before = load(rows, request)
    after, outcome = variant.decide(before, request, now)
    other = by_glass(rows, request, now) if isinstance(outcome, authority.Refused) else None
    if other is None:
        return request, before, after, outcome
    again = load(rows, other)
    after_it, outcome_of_it = variant.decide(again, other, now)
    if isinstance(outcome_of_it, authority.Refused):
        return request, before, after, outcome
    return other, again, after_it, outcome_of_it


def handle(variant: Variant, rows: Rows, message: ToAuthority, t: int, offset: int):
    """Decide one message in one transaction: (rows, reply or None, request id to work on)."""
    rows, now = guarded(rows, t, offset)
    request, before, after, outcome = decided(variant, rows, request_of(message), now)
    check_growth(before, after)
    saved = forget_time(save(rows, before, after), t, offset)
    send = message.send
    if isinstance(outcome, authority.Refused):
        reason = authority.refusal(outcome.failed).reason
        reply = Reply(
            operation=send.operation, request_id=send.request_id, accepted=False, reason=reason
        )
        return saved, ToHost(host=message.host, reply=reply), None
    if isinstance(request, GrantRequest) and before.grant is None:
        check_reason(before, now)
    if isinstance(request, GrantRequest | PrepareRequest) and before.grant is None:
        check_takes(before)
    if send.operation in {Operation.REQUEST, Operation.PREPARE}:
        return saved, None, send.request_id
    glass = after.glass if isinstance(request, BreakGlassRenewRequest) else None
    if send.operation is Operation.RENEW and variant.check_rights:
        check_standing(saved, message.host, glass=glass, now=now)
    terms = terms_of(saved)
    if glass is not None:
        terms["lease_ms"] = after.vm.lease_until_ms - now
    reply = Reply(operation=send.operation, request_id=send.request_id, accepted=True, **terms)
    return saved, ToHost(host=message.host, reply=reply), None


def ask_as_shared(variant: Variant, rows: Rows, index: int, t: int, offset: int) -> Rows:
    """A rogue host asks for the VM as for a shared secret, both transactions at once."""
    rows, now = guarded(rows, t, offset)
    asked = ShareRequest(request_id=f"rogue{index}", vm_id=VM, host_id=host_name(index))
    before = load(rows, asked)
    after, outcome = variant.decide(before, asked, now)
    if isinstance(outcome, authority.Refused):
        return rows
    check_growth(before, after)
    saved = save(rows, before, after)
    confirmed, _ = confirm(variant, saved, asked.request_id, t, offset)
    return confirmed


def confirm(variant: Variant, rows: Rows, request_id: str, t: int, offset: int):
    """Transaction 2 and the reply: (rows, reply)."""
    grant = next(g for g in rows.grants if g.request_id == request_id)
    rows, now = guarded(rows, t, offset)
    request = ConfirmRequest(
        request_id=request_id, vm_id=VM, host_id=grant.host_id, response_hash=b"#"
    )
    before = load(rows, request)
    if variant.reads_then_releases and request_id in rows.read_ok:
        released = replace(before.grant, phase=GrantPhase.RELEASED)
        after, outcome = replace(before, grant=released), None
    else:
        request, before, after, outcome = decided(variant, rows, request, now)
    if isinstance(outcome, authority.Refused):
        saved = forget_time(rows, t, offset)
        reason = authority.refusal(outcome.failed).reason
        return saved, _reply_to(grant, saved, accepted=False, reason=reason)
    saved = forget_time(save(rows, before, after), t, offset)
    glass = after.glass if isinstance(request, BreakGlassConfirmRequest) else None
    if variant.check_rights:
        check_release(saved, grant, glass=glass, now=now)
    # under a break-glass the grant's lease is shorter than the VM's: what is left of it
    left = None if glass is None else grant.lease_until_ms - now
    return saved, _reply_to(grant, saved, accepted=True, lease_ms=left)


def read_only(rows: Rows, request_id: str, t: int, offset: int) -> Rows:
    """The planted bug's first half: look, remember that it was good, release later."""
    grant = next(g for g in rows.grants if g.request_id == request_id)
    guarded_rows, now = guarded(rows, t, offset)
    request = ConfirmRequest(
        request_id=request_id, vm_id=VM, host_id=grant.host_id, response_hash=b"#"
    )
    if authority.why_not(load(guarded_rows, request), request, now):
        return rows
    return replace(rows, read_ok=rows.read_ok | {request_id})


def fail(rows: Rows, request_id: str, t: int, offset: int):
    """The KMS did not answer: (rows, reply)."""
    grant = next(g for g in rows.grants if g.request_id == request_id)
    rows, now = guarded(rows, t, offset)
    request = FailRequest(request_id=request_id, vm_id=VM, host_id=grant.host_id)
    before = load(rows, request)
    after, _ = authority.decide(before, request, now)
    saved = forget_time(save(rows, before, after), t, offset)
    return saved, _reply_to(grant, saved, accepted=False, reason="KMS_UNAVAILABLE")


def _reply_to(
    grant, rows: Rows, *, accepted: bool, reason: str = "", lease_ms: int | None = None
) -> ToHost:
    prepares = grant.purpose is Purpose.PREPARE
    terms = terms_of(rows)
    if lease_ms is not None:
        terms["lease_ms"] = lease_ms
    if prepares:
        terms["lease_ms"] = rows.cluster.prepare_for_ms
    terms["grant_epoch"] = grant.grant_epoch
    reply = Reply(
        operation=Operation.PREPARE if prepares else Operation.REQUEST,
        request_id=grant.request_id,
        accepted=accepted,
        reason=reason,
        **(terms if accepted else {}),
    )
    boot = int.from_bytes(grant.boot, "big") if accepted else None
    if accepted and not _is_recorded(rows, grant.request_id):
        raise Violation("S9: a key leaves before the record of its release")
    return ToHost(host=int(grant.host_id[1:]), reply=reply, key_boot=boot)


def _is_recorded(rows: Rows, request_id: str) -> bool:
    return any(g.request_id == request_id and g.phase is GrantPhase.RELEASED for g in rows.grants)


# --- what must be true of every decision, said again without the rules --------------------------


def check_growth(before: PlacementState, after: PlacementState) -> None:
    """S3, S6: epochs never fall; an owner changes only with its epoch; fences only grow."""
    if after.vm.grant_epoch < before.vm.grant_epoch:
        raise Violation("S3: a grant epoch fell")
    changed = after.vm.owner not in {before.vm.owner, None}
    if changed and after.vm.grant_epoch == before.vm.grant_epoch:
        raise Violation("S3: an owner changed without a new epoch")
    if after.vm.owner is not None and after.vm.fence_until_ms < before.vm.fence_until_ms:
        raise Violation("S2: a fence was shortened under an owner")
    if after.host and before.host and after.host.trust_epoch < before.host.trust_epoch:
        raise Violation("S6: a trust epoch fell")
    if after.authority.global_epoch < before.authority.global_epoch:
        raise Violation("S6: the global epoch fell")
    if before.intent and before.intent.used_by and after.intent != before.intent:
        raise Violation("S4: an intent was used twice")
    if before.glass and before.glass.used_by and after.glass != before.glass:
        raise Violation("S4: a break-glass let two requests through")


def check_reason(before: PlacementState, now: int) -> None:
    """6.3: being attested is not a reason (N73); an intent is one once (S4)."""
    vm, host, intent = before.vm, before.host.host_id, before.intent
    by_intent = (
        intent is not None
        and intent.destination == host
        and intent.used_by is None
        and now < intent.expires_ms
    )
    if not (vm.last_owner == host or vm.any_host_of_cluster or by_intent):
        raise Violation("6.3: a host without a reason got a grant")


def check_takes(before: PlacementState) -> None:
    """6.3: a draining host takes no VM; a warned one none but its last, where the policy says so."""
    host, vm = before.host, before.vm
    if host.draining:
        raise Violation("6.3: a draining host took the VM")
    if host.warned and not before.cluster.warned_hosts_take and vm.last_owner != host.host_id:
        raise Violation("6.3: a host with warnings took a VM that it did not run last")


def check_standing(rows: Rows, index: int, *, glass=None, now: int) -> None:
    """S1, S7: whoever gets anything is attested, under today's policy, and not revoked.

    A break-glass stands for verdict and policy, for its host, until it expires; for nothing else.
    """
    host = rows.hosts[index]
    epochs = (
        host.verdict_trust_epoch == host.trust_epoch
        and host.verdict_global_epoch == rows.authority.global_epoch
    )
    judged = now < host.attested_until_ms and (
        host.verdict_policy_epoch == rows.cluster.policy_epoch
    )
    if glass is not None:
        judged = glass.host_id == host.host_id and now < glass.expires_ms
    if host.revoked or not epochs or not judged:
        raise Violation("S7: a revoked host, or one of another epoch, got something")


def check_release(rows: Rows, grant, *, glass=None, now: int) -> None:
    """I-A: the VM's owner or the one prepared successor, and S1."""
    check_standing(rows, int(grant.host_id[1:]), glass=glass, now=now)
    vm = rows.vm
    owns = vm.owner == grant.host_id and vm.grant_epoch == grant.grant_epoch
    prepared = any(
        m.move_id == vm.move_id
        and m.phase is MovePhase.PREPARED
        and m.destination == grant.host_id
        and m.source == vm.owner
        for m in rows.moves
    )
    if not (owns if grant.purpose is Purpose.RUN else prepared):
        raise Violation("S1: a key left for a host that is neither owner nor prepared successor")


# --- hosts -----------------------------------------------------------------------------------


def act(
    variant: Variant,
    machine: Machine,
    index: int,
    event,
    t: int,
    *,
    key_boot: int | None = None,
    stop_after: int | None = None,
) -> tuple[Machine, tuple[ToAuthority, ...]]:
    """Run one event on a host; with ``stop_after`` the agent dies after that many actions."""
    clock = t - machine.lag
    view, actions = variant.step(machine.view, event, clock)
    return carry_out(
        variant, machine, index, (view, actions), t, event, key_boot=key_boot, stop_after=stop_after
    )


def take_up(
    variant: Variant, machine: Machine, index: int, t: int
) -> tuple[Machine, tuple[ToAuthority, ...]]:
    """Start the agent again; where the view has a VM and there is none, it stopped."""
    clock = t - machine.lag
    risen = replace(machine, up=True)
    after, sent = carry_out(variant, risen, index, lease.restarted(machine.view, clock), t, None)
    holds = {Phase.RUNNING, Phase.PAUSED, Phase.SWITCHING, Phase.PREPARED}
    if after.view.phase in holds and after.domain is Domain.NONE:
        after, more = act(variant, after, index, Stopped(fresh_id=fresh(after, index)), t)
        return after, (*sent, *more)
    return after, sent


def fresh(machine: Machine, index: int) -> str:
    return f"{index}.{machine.boot}.{machine.ids}"


def carry_out(variant, machine, index, done, t, event, *, key_boot=None, stop_after=None):
    view, actions = done
    used = fresh(machine, index) in _ids_of(view)
    sent_at = dict(machine.sent_at)
    machine = replace(machine, view=view, ids=machine.ids + (1 if used else 0))
    if isinstance(event, Reply):
        machine = _note_lease(machine, event, sent_at)
    out: list[ToAuthority] = []
    for count, action in enumerate(actions):
        if stop_after is not None and count >= stop_after:
            machine = replace(machine, up=False)
            break
        if isinstance(action, Send):
            out.append(ToAuthority(host=index, send=action))
            sent_at.setdefault(action.request_id, t)
        elif isinstance(action, ArmWatchdog):
            machine = replace(machine, watchdog_ms=action.at_ms)
        else:
            machine, more = _on_vm(variant, machine, index, action, key_boot, t)
            out.extend(more)
    live = _ids_of(machine.view)
    kept = tuple(sorted((k, v) for k, v in sent_at.items() if k in live))
    if machine.domain is Domain.NONE:
        machine = replace(machine, watchdog_ms=None, lease_sent_at=0)
    return replace(machine, sent_at=kept), tuple(out)


def _note_lease(machine: Machine, reply: Reply, sent_at: dict[str, int]) -> Machine:
    """Ghost: when the request that gave this lease was first sent, in real time."""
    leases = {Operation.REQUEST, Operation.RENEW}
    if reply.accepted and reply.operation in leases and machine.view.phase is not Phase.IDLE:
        return replace(machine, lease_sent_at=sent_at.get(reply.request_id, machine.lease_sent_at))
    return machine


def _ids_of(view: LeaseView) -> set[str]:
    return {p.request_id for p in (view.errand, view.renewal) if p} | (
        {view.move_id} if view.move_id else set()
    )


def _on_vm(variant, machine: Machine, index: int, action: VmAction, key_boot: int | None, t: int):
    match action:
        case VmAction.START | VmAction.RECEIVE:
            if key_boot != machine.boot:  # the TPM refuses a blob of another boot
                event = Stopped(fresh_id=fresh(machine, index))
                return act(variant, machine, index, event, t)
            domain = Domain.RUNNING if action is VmAction.START else Domain.INCOMING
            return replace(machine, domain=domain), ()
        case VmAction.PAUSE:
            paused = machine.domain is Domain.RUNNING
            return (replace(machine, domain=Domain.PAUSED) if paused else machine), ()
        case VmAction.RESUME:
            waits = machine.domain in {Domain.PAUSED, Domain.INCOMING}
            return (replace(machine, domain=Domain.RUNNING) if waits else machine), ()
        case VmAction.DESTROY:
            return replace(machine, domain=Domain.NONE), ()


def standing(index: int) -> "object":
    from trustauthority.model.placement import HostStanding

    return HostStanding(
        host_id=host_name(index),
        cluster_id=CLUSTER,
        admitted=True,
        verdict_trust_epoch=1,
        verdict_policy_epoch=1,
        verdict_global_epoch=1,
        challenged_at_ms=1,
        attested_until_ms=10**6,
        boot=boot_bytes(1),
    )
