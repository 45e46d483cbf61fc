"""The model check: the product's own functions, every interleaving within bounds.

S1-S4, S6-S9 and I-C are checked in every state and step, L1-L3 from every fourth state here and from
every state by ``python -m support.modelcheck``. S5 (an EK is bound
to one host) is enrolment's; S4 is told here of intents, of challenges it is attestation's.
``TA_MODEL_CHECK=large`` searches the larger bounds.
"""

import os

import pytest
from support.modelcheck.bugs import PLANTED
from support.modelcheck.explore import search
from support.modelcheck.prove import prove
from support.modelcheck.scenarios import large, short

from trustauthority.placement.transitions import TRANSITIONS

SCENARIOS = large() if os.environ.get("TA_MODEL_CHECK") == "large" else short()
SETTLE_EVERY = 4 if short() == SCENARIOS else 1
LIMIT = 300_000 if short() == SCENARIOS else 20_000_000
NOT_COUNTED = {"fail", "revoke", "revoke-all", "share"}
"""Done by the scenarios beside the counted path; their unit tests are in test_placement_grant.py. The
model's VM is exclusive: that it is never shared is what is searched for; see test_sharing.py."""


@pytest.mark.timeout(600 if LIMIT < 10**6 else 7_200)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.name.replace(" ", "-"))
def test_no_promise_is_broken(scenario) -> None:
    """S1-S9, I-A, I-C and L1-L3 hold in every reachable state (N48, N51, N52, N85, N86, N88, N90)."""
    proof = prove(scenario, limit=LIMIT, settle_every=SETTLE_EVERY)
    assert not proof.broken, proof.broken
    assert proof.complete
    assert proof.settled >= proof.states // SETTLE_EVERY > 300


@pytest.mark.parametrize("planted", PLANTED, ids=lambda each: each.variant.name.replace(" ", "-"))
def test_planted_bug_is_found(planted) -> None:
    """The checker finds each bug that the protocol's rules are there to prevent, by a short trace."""
    result = search(planted.scenario, planted.variant, limit=LIMIT)
    print(result.told())
    assert result.violation.startswith(planted.breaks), result.told()
    assert len(result.trace) <= planted.longest


def test_search_reaches_every_decision() -> None:
    """A proof about decisions that never happen would prove nothing."""
    seen: set[str] = set()
    names = {"shutdown and crash", "move, a retry", "every step once"}
    names |= {"break-glass against a running VM", "break-glass: revoked, closed, used twice"}
    for scenario in short():
        if scenario.name in names:
            seen |= set(prove(scenario, limit=LIMIT, settle_every=0).decisions)
    accepted = {name.removeprefix("Accepted ") for name in seen if name.startswith("Accepted")}
    assert {each.name for each in TRANSITIONS} - accepted == NOT_COUNTED
