"""The table of key states: N58, over every state and every step."""

import itertools

import pytest

from trustauthority.errors import FailedPrecondition
from trustauthority.keyrelease.states import (
    DESTROYED,
    STEPS,
    KeyStep,
    after,
    may_release,
    may_unwrap,
)
from trustauthority.model.placement import KeyState

FOLLOWS = {
    (step, state): following for step, row in STEPS.items() for state, following in row.items()
}
FINAL = (KeyState.DEACTIVATED, KeyState.COMPROMISED, *DESTROYED)


def reachable(start: KeyState) -> set[KeyState]:
    """Every state that some steps lead to."""
    found, frontier = {start}, [start]
    while frontier:
        state = frontier.pop()
        new = {to for (_, at), to in FOLLOWS.items() if at is state} - found
        found |= new
        frontier.extend(new)
    return found


@pytest.mark.parametrize(("step", "state"), list(itertools.product(KeyStep, KeyState)))
def test_every_step_from_every_state(step: KeyStep, state: KeyState) -> None:
    """N58: each of the 42 pairs is a row of the table or refused, naming where it is legal."""
    if (step, state) in FOLLOWS:
        assert after(step, state) is FOLLOWS[step, state]
        return
    with pytest.raises(FailedPrecondition) as refusal:
        after(step, state)
    assert refusal.value.metadata == {"step": str(step), "state": str(state)}
    assert all(str(legal) in refusal.value.message for legal in STEPS[step])


def test_the_pairs_of_the_source() -> None:
    """SP 800-57 part 1, section 7: the table has these transitions and no other."""
    p, a, s, d, c, x, xc = KeyState
    assert {(at, to) for (_, at), to in FOLLOWS.items()} == {
        *((p, each) for each in (a, c, x)),
        *((a, each) for each in (s, d, c)),
        *((s, each) for each in (a, d, c)),
        *((d, each) for each in (c, x)),
        (c, xc),
        (x, xc),
    }


def test_every_step_and_every_state_has_a_use() -> None:
    """No step without a row, no state that nothing leads to."""
    assert set(STEPS) == set(KeyStep)
    assert reachable(KeyState.PRE_ACTIVE) == set(KeyState)


@pytest.mark.parametrize("state", FINAL)
def test_nothing_comes_back(state: KeyState) -> None:
    """N58: from deactivated, compromised or destroyed no path leads to a key that may leave."""
    assert not any(may_release(each) for each in reachable(state))


@pytest.mark.parametrize("state", [KeyState.COMPROMISED, *DESTROYED])
def test_a_compromised_kek_opens_nothing(state: KeyState) -> None:
    """A KEK that is compromised or destroyed unwraps nothing any more, whatever is done to it."""
    assert not any(may_unwrap(each) for each in reachable(state))


def test_only_active_is_released() -> None:
    """N58: one state of seven; a deactivated KEK unwraps, a deactivated VM key does not leave."""
    assert [state for state in KeyState if may_release(state)] == [KeyState.ACTIVE]
    assert may_unwrap(KeyState.DEACTIVATED)
