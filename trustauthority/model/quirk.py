"""Known deviations of firmware and boot loaders, by the names that policy uses (pitfalls 43).

Stage: model. What each one changes stands in ``verification.quirks``.
"""

from enum import StrEnum


class Quirk(StrEnum):
    """The table of known deviations. Ids are what policy names; they are never renamed."""

    EXIT_BOOT_SERVICES_MISSING = "exit-boot-services-missing"
    """PCR 5: neither the invocation nor the success of ExitBootServices was logged."""
    EXIT_BOOT_SERVICES_INVOCATION_ONLY = "exit-boot-services-invocation-missing"
    """PCR 5: the invocation was extended and not logged; no outcome was measured."""
    EXIT_BOOT_SERVICES_FAILED_ONCE = "exit-boot-services-failed-once"
    """PCR 5: a first call failed, a second succeeded; neither was logged."""
    SHIM_TRAILING_BYTES = "shim-trailing-bytes"
    """PCR 7: old builds of shim logged one byte more of an authority than they measured."""
    APPLICATION_BEFORE_CALLING_EVENT = "application-before-calling-event"
    """PCR 4: firmware starts an application of its own before it announces boot options."""
