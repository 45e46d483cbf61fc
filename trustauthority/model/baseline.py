"""What a good boot is: approved alternatives for each component of it, event by event.

A host's boot is good when every component of it is one of the approved variants. So an updated kernel
is one new variant of one component, and the old one stays good until it is retired.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from trustauthority.model.identifiers import ClusterId


class Component(StrEnum):
    """The parts of a boot that change for different reasons, in the order in which they run."""

    FIRMWARE = "firmware"
    SECURE_BOOT = "secure-boot"
    BOOT_LOADER = "boot-loader"
    KERNEL = "kernel"
    COMMAND_LINE = "command-line"


class BaselineState(StrEnum):
    """Life of a variant: nothing is in force before somebody approved it."""

    PROPOSED = "proposed"
    APPROVED = "approved"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedEvent:
    """One measurement of the expected boot."""

    type: str
    """Event type name, for people; never compared, digests do not cover it (rule 37)."""
    digest: str
    """Hex digest in the policy's bank."""
    meaning: str
    """What was measured, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedRun:
    """Events of one component that follow each other in a PCR without another component between."""

    after: Component | None
    """The component whose events come right before, None at the start of the PCR. It fixes the order
    of components: the runs of a whole boot fit together in one way only."""
    events: tuple[ExpectedEvent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """One variant of one component: its expected events, in order, per PCR."""

    name: str
    cluster: ClusterId
    component: Component
    host_class: str
    """Only hosts of this class may match it; empty for any."""
    bank: str
    pcrs: Mapping[int, tuple[ExpectedRun, ...]]
    """Every PCR that the variant says something about, without runs where it measures nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedVariant:
    """The name of the approved variant that a component of a host's boot is."""

    component: Component
    name: str


def compact_names(matched: tuple[MatchedVariant, ...], *, whole: bool) -> str:
    """Matched variants on one line: the one name that all share, else ``component=name`` each.

    Args:
        matched: what matched.
        whole: whether every component of the boot is among them.
    """
    names = {each.name for each in matched}
    if whole and len(names) == 1:
        return names.pop()
    return " ".join(f"{each.component}={each.name}" for each in matched)


def matched_by_component(compact: str) -> Mapping[Component, str]:
    """The names in what ``compact_names`` made, by component."""
    if "=" not in compact:
        return dict.fromkeys(Component, compact) if compact else {}
    pairs = (word.partition("=") for word in compact.split(" "))
    return {Component(component): name for component, _, name in pairs}
