"""How long verdicts and the evidence behind them are kept."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What may go, and when. A host's newest verdict and its evidence are always kept."""

    keep_passed_ms: int
    """Verdicts that passed are kept this long."""
    keep_failed_ms: int
    """Verdicts that failed are kept this long: somebody may have to explain them."""
    max_bytes: int
    """Above this the oldest go before their time, those that passed first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptVerdict:
    """A verdict that may go."""

    verdict_id: str
    passed: bool
    decided_at_ms: int
