"""Checks, verdicts and standing: what an appraisal says, as values.

A verdict is constructed in ``appraisal.appraise`` only. Standing is never stored: it is derived
from the newest verdict and the clock, so that nobody can forget to clear it (S12, N89).
"""

from dataclasses import dataclass
from enum import StrEnum

from trustauthority.model.baseline import MatchedVariant
from trustauthority.model.identifiers import ClusterId, HostId


class CheckState(StrEnum):
    """The outcome of one check."""

    PASSED = "passed"
    FAILED = "failed"
    WARNING = "warning"
    SKIPPED = "skipped"


class Standing(StrEnum):
    """Whether a host is trusted now."""

    PASSED = "passed"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One node of the check tree that CLI, console, reports and docs share."""

    id: str
    """Stable identifier, such as ``boot.pcr-8``."""
    title: str
    state: CheckState
    expected: str = ""
    found: str = ""
    detail: str = ""
    """Why it matters, and the event that explains it."""
    remedy: str = ""
    """What to do about it."""
    pcr: int = -1
    event_index: int = -1
    children: tuple["Check", ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The appraisal of one piece of verified evidence."""

    host_id: HostId
    cluster: ClusterId
    passed: bool
    checks: tuple[Check, ...]
    policy: str
    policy_sha256: str
    policy_epoch: int
    baseline: str
    """The approved variants that matched, on one line: a name, or ``component=name`` each."""
    decided_at_ms: int
    attested_until_ms: int
    """Counts from the issue of the challenge; equals ``decided_at_ms`` for a failed verdict."""
    variants: tuple[MatchedVariant, ...] = ()
    """The approved variants that matched, one per component."""

    @property
    def warned(self) -> bool:
        """Whether it passed, and something in it warns: outdated or odd, but known."""
        return self.passed and any(map(_warns, self.checks))

    @property
    def reason(self) -> str:
        """The first thing that failed, in words; empty when nothing did."""
        failed = first_failure(self.checks)
        return "" if failed is None else f"{failed.title}: {failed.detail or failed.found}"


def first_failure(checks: tuple[Check, ...]) -> Check | None:
    """Find the first failed leaf of a check tree, depth first."""
    for check in checks:
        if check.state is CheckState.FAILED:
            return first_failure(check.children) or check
    return None


def _warns(check: Check) -> bool:
    return check.state is CheckState.WARNING or any(map(_warns, check.children))


def standing_of(
    *, passed: bool | None, attested_until_ms: int, superseded: bool, now_ms: int
) -> Standing:
    """Derive a host's standing from its newest verdict.

    Args:
        passed: the newest verdict, None when there is none.
        attested_until_ms: when that verdict stops counting.
        superseded: whether a revocation or another policy version came after it.
        now_ms: the store's clock.
    """
    if passed is None:
        return Standing.UNKNOWN
    if not passed:
        return Standing.FAILED
    return Standing.UNKNOWN if superseded or now_ms >= attested_until_ms else Standing.PASSED
