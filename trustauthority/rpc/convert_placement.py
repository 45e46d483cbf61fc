"""Candidates, orders and events between protobuf messages and the model."""

from collections.abc import Iterable, Mapping

from trustauthority.errors import InvalidRequest
from trustauthority.model.identifiers import RequestId
from trustauthority.model.moveorder import MoveOrder, OrderPhase, OrderReport, OrderState
from trustauthority.placement.candidates import Candidate
from trustauthority.placement.decide import MoveDecision, Unmet
from trustauthority.rpc import convert
from trustauthority.services.events import EventKind
from trustauthority.services.hosts import HostView
from trustauthority.v1 import placement_pb2 as pb

MAX_DETAIL = 500
MAX_WATCHED = 100
ORDER_STATES = {
    state: pb.MoveOrderState.Value(f"MOVE_ORDER_STATE_{state.name}") for state in OrderState
}
PHASES = {
    phase: pb.MovePhase.Value(f"MOVE_PHASE_{'UNSPECIFIED' if not phase else phase.name}")
    for phase in OrderPhase
}
EVENT_KINDS = {
    kind: pb.PlacementEventKind.Value(f"PLACEMENT_EVENT_KIND_{str(kind).upper()}")
    for kind in EventKind
}
_TOLD_PHASES = {phase: number for phase, number in PHASES.items() if phase}
_TOLD_BY_SOURCE = frozenset(
    {OrderState.RUNNING, OrderState.DONE, OrderState.FAILED, OrderState.CANCELLED}
)


def unmet(values: Iterable[Unmet]) -> list[pb.UnmetCondition]:
    """What is missing."""
    return [
        pb.UnmetCondition(reason=each.reason, detail=each.says, rule=each.rule) for each in values
    ]


def answer(vm: str, host: str, decision: MoveDecision) -> pb.PlacementAnswer:
    """The answer to one question."""
    return pb.PlacementAnswer(
        vm_id=vm,
        host=host,
        allowed=decision.allowed,
        unmet=unmet(decision.unmet),
        warnings=[
            *decision.warnings,
            *(f"before it can start there: {each.says}" for each in decision.steps),
        ],
        steps=unmet(decision.steps),
    )


def candidate(value: Candidate) -> pb.Candidate:
    """One ranked host."""
    host = value.state.host
    return pb.Candidate(
        host_id=value.decision.question.host_id,
        host_name=value.name,
        allowed=value.decision.allowed,
        unmet=unmet(value.decision.unmet),
        steps=unmet(value.decision.steps),
        warnings=value.decision.warnings,
        owner=value.owns,
        free=value.free,
        vms=0 if host is None else host.live_grants + value.owns,
        attested_until=convert.timestamp(value.attested_until_ms),
        warned=value.warned,
        draining=host is not None and host.draining,
    )


def order(value: MoveOrder, names: Mapping[str, str], now_ms: int) -> pb.MoveOrder:
    """An order, with what time made of it; ``names`` gives host names by id."""
    return pb.MoveOrder(
        order_id=value.order_id,
        vm_id=value.vm_id,
        source_host_id=value.source,
        source_host_name=names.get(value.source, ""),
        destination_host_id=value.destination,
        destination_host_name=names.get(value.destination, ""),
        state=ORDER_STATES[value.state_at(now_ms)],
        phase=PHASES[value.phase],
        percent=value.percent,
        detail=value.detail,
        created_by=value.created_by,
        created_at=convert.timestamp(value.created_at_ms),
        updated_at=convert.timestamp(value.updated_at_ms),
        expires_at=convert.timestamp(value.expires_ms),
    )


def report(request: pb.ReportMoveOrderRequest) -> OrderReport:
    """What a source says of an order."""
    state: OrderState = convert.chosen(ORDER_STATES, request.state, "state")
    if state not in _TOLD_BY_SOURCE:
        raise InvalidRequest("state: RUNNING, DONE, FAILED or CANCELLED", field="state")
    if not 0 <= request.percent <= 100:
        raise InvalidRequest("percent: 0 to 100", field="percent")
    return OrderReport(
        order_id=RequestId(convert.request_id(request.order_id, "order_id")),
        state=state,
        phase=convert.chosen(_TOLD_PHASES, request.phase, "phase"),
        percent=request.percent,
        detail=convert.text(request.detail, "detail")[:MAX_DETAIL],
    )


def watched(vm_ids: Iterable[str]) -> frozenset[str]:
    """Which VMs somebody wants to hear of."""
    named = frozenset(convert.name(each, "vm_ids") for each in vm_ids)
    if len(named) > MAX_WATCHED:
        raise InvalidRequest(f"vm_ids: at most {MAX_WATCHED}", field="vm_ids")
    return named


def host(view: HostView) -> pb.PlacementHost:
    """What a host may do now."""
    record = view.host
    return pb.PlacementHost(
        host_id=record.host_id,
        host_name=record.name,
        standing=convert.STANDINGS[view.standing],
        attested_until=convert.timestamp(record.attested_until_ms),
        revoked=record.revoked,
        warned=record.warned,
        draining=record.draining,
        reason=record.reason,
    )
