"""The life of a key: its states, and the one table of steps between them.

What it is: data and two functions. What it trusts: nothing. What it guarantees: whatever is not in the
table is refused; no step leads back from deactivated, compromised or destroyed. What it does not do:
write; the store changes a state only where it still is the one that was judged here.
Source: NIST SP 800-57 part 1 rev. 5, section 7; promises N58.
"""

from collections.abc import Mapping
from enum import StrEnum

from trustauthority.errors import FailedPrecondition
from trustauthority.model.placement import KeyState


class KeyStep(StrEnum):
    """What somebody does to a key."""

    ACTIVATE = "activate"
    SUSPEND = "suspend"
    RESUME = "resume"
    DEACTIVATE = "deactivate"
    COMPROMISE = "compromise"
    DESTROY = "destroy"


STEPS: Mapping[KeyStep, Mapping[KeyState, KeyState]] = {
    KeyStep.ACTIVATE: {KeyState.PRE_ACTIVE: KeyState.ACTIVE},
    KeyStep.SUSPEND: {KeyState.ACTIVE: KeyState.SUSPENDED},
    KeyStep.RESUME: {KeyState.SUSPENDED: KeyState.ACTIVE},
    KeyStep.DEACTIVATE: {
        KeyState.ACTIVE: KeyState.DEACTIVATED,
        KeyState.SUSPENDED: KeyState.DEACTIVATED,
    },
    KeyStep.COMPROMISE: {
        KeyState.PRE_ACTIVE: KeyState.COMPROMISED,
        KeyState.ACTIVE: KeyState.COMPROMISED,
        KeyState.SUSPENDED: KeyState.COMPROMISED,
        KeyState.DEACTIVATED: KeyState.COMPROMISED,
        KeyState.DESTROYED: KeyState.DESTROYED_COMPROMISED,
    },
    KeyStep.DESTROY: {
        KeyState.PRE_ACTIVE: KeyState.DESTROYED,
        KeyState.DEACTIVATED: KeyState.DESTROYED,
        KeyState.COMPROMISED: KeyState.DESTROYED_COMPROMISED,
    },
}
"""Each step: the states in which it is legal, and the state that follows. Narrower than the source
where it leaves a choice: an active or suspended key is deactivated before it is destroyed."""

DESTROYED = frozenset({KeyState.DESTROYED, KeyState.DESTROYED_COMPROMISED})
"""States in which nothing of the key is left."""


def after(step: KeyStep, current: KeyState) -> KeyState:
    """The state that a step leads to.

    Raises:
        FailedPrecondition: the table has no such step from here; it says from where there is one.
    """
    following = STEPS[step].get(current)
    if following is None:
        legal = ", ".join(str(state) for state in STEPS[step])
        raise FailedPrecondition(
            f"can't {step} a key that is {current}; that needs one that is {legal}",
            step=step,
            state=current,
        )
    return following


def may_release(state: KeyState) -> bool:
    """Say whether a VM key in this state may leave: a running VM also writes, so only active."""
    return state is KeyState.ACTIVE


def may_unwrap(state: KeyState) -> bool:
    """Say whether a KEK in this state may still unwrap what it wrapped before."""
    return state in {KeyState.ACTIVE, KeyState.DEACTIVATED}
