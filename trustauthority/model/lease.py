"""What happens to a VM at the end of its lease. Frozen words, no behaviour; design 6.4 (5)."""

from enum import StrEnum


class OnLeaseLoss(StrEnum):
    """What the host does with a VM whose lease ends without a renewal (design 6.4 (5))."""

    PAUSE_THEN_DESTROY = "pause-then-destroy"
    """Pause at the end of the lease; a renewal may still come before it is destroyed."""
    DESTROY = "destroy"
    """Destroy at the end of the lease: no memory that waits for better times."""
    CONTINUE_FOR = "continue-for"
    """Run on for a while first, which counts in the fence."""
