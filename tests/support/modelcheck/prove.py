"""One scenario searched for safety, then every world of it continued for liveness."""

import gc
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import islice

from support.modelcheck.explore import Model, Scenario, search_model, trace_to
from support.modelcheck.liveness import Stuck, settle
from support.modelcheck.parties import Variant


@dataclass(kw_only=True)
class Proof:
    """What was shown, and within which extent."""

    scenario: str
    states: int
    steps: int
    settled: int
    complete: bool
    broken: str = ""
    decisions: Counter = field(default_factory=Counter)
    """Accepted decisions by transition name: what the search really exercised."""


def prove(scenario: Scenario, *, limit: int = 10**7, settle_every: int = 1) -> Proof:
    """Search all worlds for S1-S9, then settle every n-th (0: none) for L1-L3."""
    gc.disable()  # nothing here is cyclic; walking millions of tuples is what would cost
    try:
        return _prove(scenario, limit, settle_every)
    finally:
        gc.enable()


def _prove(scenario: Scenario, limit: int, settle_every: int) -> Proof:
    decisions: Counter = Counter()
    product = Variant()

    def counting(state, request, now_ms):
        after, outcome = product.decide(state, request, now_ms)
        decisions[f"{type(outcome).__name__} {outcome.transition.name}"] += 1
        return after, outcome

    model = Model(scenario, replace(product, decide=counting))
    result = search_model(model, limit=limit)
    proof = Proof(
        scenario=scenario.name,
        states=result.states,
        steps=result.steps,
        settled=0,
        complete=result.complete,
        broken=result.told() if result.violation else "",
        decisions=Counter(decisions),
    )
    if result.violation or not settle_every:
        return proof
    known: set = set()
    for world in islice(result.parents, 0, None, settle_every):
        try:
            settle(model, world, known)
        except Stuck as stuck:
            trace = "\n".join(f"  {label}" for label in trace_to(result.parents, world))
            proof.broken = f"{scenario.name}: L1-L3: {stuck}, after\n{trace}"
            return proof
        proof.settled += 1
    return proof
