"""Advice to schedulers: may this VM run on that host, and what is missing.

What it is: the same rules as a grant's, evaluated without writing. What it trusts: rows as read,
maybe seconds old. What it guarantees: it never raises, and it never says yes when a rule of the
host or the VM fails. What it does not do: authorise; only the conditional write of a grant does.
Source: design 6.5 ("advice"), promises N47.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from trustauthority.model.identifiers import HostId, RequestId, VmId
from trustauthority.model.placement import UNLIMITED_MS, PlacementState
from trustauthority.model.requests import GrantRequest
from trustauthority.placement import rules
from trustauthority.placement.condition import (
    Condition,
    Field,
    Literal,
    Rule,
    Scene,
    Weighed,
    predicate,
)
from trustauthority.placement.transitions import GRANT

STEPS = (rules.REASON, rules.CLEAR_OF_OTHERS)
"""Rules that a scheduler can make true itself: write an intent; have the owner give back or move."""
_WARNINGS = (
    (
        "the VM's lease is unlimited: a revoked host keeps running it",
        rules.reached(Literal(UNLIMITED_MS), Field("vm", "lease_ms")),
    ),
    ("the VM's policy lets every host of its cluster start it", rules.ANY_HOST),
)
ADVICE: tuple[Condition, ...] = (
    *(rule.condition for rule in GRANT.rules),
    *(condition for _, condition in _WARNINGS),
)
"""What is asked of the rows, in the order of the bits of ``Weighed.holds``."""
_ASKED = tuple(map(predicate, ADVICE))
_SAME_ROWS = GRANT.rules.index(rules.VM_OF_CLUSTER)


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


def advise(asked: Sequence[tuple[str, str]], found: Sequence[Weighed]) -> Sequence[MoveDecision]:
    """Answer many (VM, host id or name) from what the store found about ``ADVICE``."""
    return [_told(vm, host, each) for (vm, host), each in zip(asked, found, strict=True)]


def _told(vm: str, host: str, found: Weighed) -> MoveDecision:
    """Answer one; with one plain reason where it is about something that does not exist."""
    known = PlacementQuestion(vm_id=VmId(vm), host_id=found.host_id or HostId(host))
    if found.host_id is None:
        return _about_nothing(known, "host-known", f"there is no host {host}")
    if not found.vm_known:
        return _about_nothing(known, "vm-known", f"there is no VM {vm}")
    return _decision(known, found.holds)


def _about_nothing(question: PlacementQuestion, rule: str, says: str) -> MoveDecision:
    unknown = Unmet(rule=rule, reason="NOT_FOUND", says=says)
    return MoveDecision(question=question, allowed=False, unmet=(unknown,))


def _answer(question: PlacementQuestion, state: PlacementState, now_ms: int) -> MoveDecision:
    request = GrantRequest(request_id=RequestId(""), vm_id=question.vm_id, host_id=question.host_id)
    scene = Scene(state=state, request=request, now_ms=now_ms)
    holds = sum(1 << place for place, asks in enumerate(_ASKED) if asks(scene))
    if not _rows_match(question, state):
        holds &= ~(1 << _SAME_ROWS)
    return _decision(question, holds)


def _rows_match(question: PlacementQuestion, state: PlacementState) -> bool:
    """Rows that are absent fail their rules; rows of something else must not pass them."""
    vm_matches = state.vm is None or state.vm.vm_id == question.vm_id
    return vm_matches and (state.host is None or state.host.host_id == question.host_id)


def _decision(question: PlacementQuestion, holds: int) -> MoveDecision:
    unmet, steps, warnings = _meaning(holds)
    return MoveDecision(
        question=question, allowed=not unmet, unmet=unmet, steps=steps, warnings=warnings
    )


@lru_cache(maxsize=4096)
def _meaning(holds: int) -> tuple[tuple[Unmet, ...], tuple[Unmet, ...], tuple[str, ...]]:
    """What stands in the way, what remains to be done, and the warnings: many hosts share them."""
    failed = [rule for place, rule in enumerate(GRANT.rules) if not holds >> place & 1]
    warned = holds >> len(GRANT.rules)
    return (
        tuple(_unmet(rule) for rule in failed if rule not in STEPS),
        tuple(_unmet(rule) for rule in failed if rule in STEPS),
        tuple(says for place, (says, _) in enumerate(_WARNINGS) if warned >> place & 1),
    )


def _unmet(rule: Rule) -> Unmet:
    return Unmet(rule=rule.name, reason=rule.error.reason, says=rule.says)
