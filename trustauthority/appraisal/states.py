"""How a check counts under what the policy requires of it."""

from trustauthority.model.policy import Requirement
from trustauthority.model.verdict import CheckState


def state_of(requirement: Requirement, *, good: bool) -> CheckState:
    """The state of a check: one that is not asked for is skipped, never passed."""
    if requirement is Requirement.OFF:
        return CheckState.SKIPPED
    if good:
        return CheckState.PASSED
    return CheckState.FAILED if requirement is Requirement.REQUIRED else CheckState.WARNING
