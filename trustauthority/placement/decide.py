"""Advice to schedulers: may this VM run on that host, and what is missing.

What it is: the same rules as a grant's, evaluated without writing. What it trusts: rows as read,
maybe seconds old. What it guarantees: it never raises, and it never says yes when a rule of the
host or the VM fails. What it does not do: authorise; only the conditional write of a grant does.
Source: design 6.5 ("advice"), promises N47.
"""

from dataclasses import dataclass

from trustauthority.model.identifiers import HostId, RequestId, VmId
from trustauthority.model.placement import PlacementState
from trustauthority.model.requests import GrantRequest
from trustauthority.placement import rules
from trustauthority.placement.condition import Rule, Scene, predicate
from trustauthority.placement.transitions import GRANT

STEPS = (rules.REASON, rules.CLEAR_OF_OTHERS)
"""Rules that a scheduler can make true itself: write an intent; have the owner give back or move."""
_ASKED = tuple((rule, predicate(rule.condition)) for rule in GRANT.rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementQuestion:
    """May this VM run there?"""

    vm_id: VmId
    host_id: HostId


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmet:
    """One thing that is missing."""

    rule: str
    """Stable name of the rule."""
    reason: str
    """``ErrorInfo.reason`` that the host itself would be told."""
    says: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveDecision:
    """Advice. ``allowed`` says that the host may hold this VM; ``steps`` what remains to be done."""

    question: PlacementQuestion
    allowed: bool
    unmet: tuple[Unmet, ...] = ()
    """Everything about host and VM that stands in the way; empty exactly when allowed."""
    steps: tuple[Unmet, ...] = ()
    """What must happen before the host can get the key: an intent, the owner leaving."""
    warnings: tuple[str, ...] = ()

    @property
    def grantable_now(self) -> bool:
        """Whether the host's own request would be granted, were it made now."""
        return self.allowed and not self.steps


def place(question: PlacementQuestion, state: PlacementState, now_ms: int) -> MoveDecision:
    """Answer one question. A crash in a rule is a no that says so."""
    try:
        return _answer(question, state, now_ms)
    except Exception:  # noqa: BLE001 - advice never raises; a doubt is a no
        crashed = Unmet(rule="check-crashed", reason="INTERNAL", says="the check itself failed")
        return MoveDecision(question=question, allowed=False, unmet=(crashed,))


def _answer(question: PlacementQuestion, state: PlacementState, now_ms: int) -> MoveDecision:
    request = GrantRequest(request_id=RequestId(""), vm_id=question.vm_id, host_id=question.host_id)
    scene = Scene(state=state, request=request, now_ms=now_ms)
    failed = [rule for rule, holds in _ASKED if not holds(scene)]
    unmet = tuple(_unmet(rule) for rule in failed if rule not in STEPS)
    rows_match = _rows_match(question, state)
    if not rows_match:
        unmet = (*unmet, _unmet(rules.VM_OF_CLUSTER))
    return MoveDecision(
        question=question,
        allowed=not unmet,
        unmet=unmet,
        steps=tuple(_unmet(rule) for rule in failed if rule in STEPS),
        warnings=_warnings(state),
    )


def _rows_match(question: PlacementQuestion, state: PlacementState) -> bool:
    """Rows that are absent fail their rules; rows of something else must not pass them."""
    vm_matches = state.vm is None or state.vm.vm_id == question.vm_id
    return vm_matches and (state.host is None or state.host.host_id == question.host_id)


def _unmet(rule: Rule) -> Unmet:
    return Unmet(rule=rule.name, reason=rule.error.reason, says=rule.says)


def _warnings(state: PlacementState) -> tuple[str, ...]:
    if state.vm is None:
        return ()
    found = []
    if state.vm.terms.is_unlimited:
        found.append("the VM's lease is unlimited: a revoked host keeps running it")
    if state.vm.any_host_of_cluster:
        found.append("the VM's policy lets every host of its cluster start it")
    return tuple(found)
