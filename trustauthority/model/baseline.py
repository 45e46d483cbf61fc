"""The expected boot of a class of hosts: the measured events of the PCRs that policy fixes."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from trustauthority.model.identifiers import ClusterId


class BaselineState(StrEnum):
    """Life of a baseline: nothing is in force before somebody approved it."""

    PROPOSED = "proposed"
    APPROVED = "approved"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedEvent:
    """One measurement of the expected boot."""

    type: str
    """Event type name, for people; never compared alone, digests do not cover it (rule 37)."""
    digest: str
    """Hex digest in the policy's bank."""
    meaning: str
    """What was measured, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Expected events, in order, per PCR."""

    name: str
    cluster: ClusterId
    bank: str
    pcrs: Mapping[int, tuple[ExpectedEvent, ...]]
