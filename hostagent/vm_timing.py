"""When a stored lease view wants time to pass, and what is safe without a stored view.

Stage: pure; reads views of ``lease_model``, decides nothing that ``lease`` decides.
"""

from hostagent.lease_model import (
    RENEW_FRACTION,
    Action,
    LeaseView,
    Operation,
    Phase,
    Send,
    VmAction,
)

RUNS = frozenset({Phase.RUNNING, Phase.PAUSED, Phase.SWITCHING})
"""Phases in which a lease is renewed."""
ENDS = frozenset({VmAction.PAUSE, VmAction.DESTROY})
"""Actions that must happen whatever else fails."""


def is_timed(view: LeaseView) -> bool:
    """Whether time alone changes anything for this VM."""
    return view.phase in RUNS or view.phase is Phase.PREPARED


def due_ms(view: LeaseView) -> int:
    """The point in time at which ``Tick`` matters next, for a timed view."""
    renew = view.renew_at_ms
    if view.renewal is not None:
        renew = view.renewal.first_send_ms + view.lease_ms // RENEW_FRACTION
    match view.phase:
        case Phase.RUNNING:
            return min(renew, view.run_until_ms)
        case Phase.PAUSED | Phase.SWITCHING:
            return min(renew, view.destroy_at_ms)
        case _:
            return view.destroy_at_ms


def without_storage(actions: tuple[Action, ...]) -> tuple[Action, ...]:
    """What is safe although the view could not be stored: ending VMs, and renewing."""
    return tuple(
        action
        for action in actions
        if (isinstance(action, VmAction) and action in ENDS)
        or (isinstance(action, Send) and action.operation is Operation.RENEW)
    )
