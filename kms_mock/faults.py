"""Faults on demand, named in one control file that is read again for each connection and request."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

FAULT_FILE = "fault"
MAX_DELAY_S = 600.0
MAX_SKEW_S = 1e8


class FaultKind(StrEnum):
    """What the KMS does wrong."""

    NONE = "none"
    DOWN = "down"
    """Connections are reset before TLS, and in the middle."""
    SLOW = "slow"
    """Each answer is late."""
    WRONG_KEY = "wrong-key"
    """Get answers with another key's bytes."""
    WRONG_TENANT = "wrong-tenant"
    """Every key belongs to somebody else."""
    TRUNCATED = "truncated"
    """Half an answer, then the end of the connection."""
    REVOKED = "revoked"
    """Every client certificate is on the revocation list: no handshake is completed."""
    SKEW = "skew"
    """The clock is wrong."""


WITH_NUMBER = frozenset({FaultKind.SLOW, FaultKind.SKEW})
WORDS = "none, down, slow:SECONDS, wrong-key, wrong-tenant, truncated, revoked or skew:SECONDS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault."""

    kind: FaultKind
    seconds: float = 0.0
    """Before each answer, of SLOW; ahead of the right time, of SKEW (or behind, if negative)."""

    def __str__(self) -> str:
        return f"{self.kind}:{self.seconds:g}" if self.kind in WITH_NUMBER else str(self.kind)


NO_FAULT = Fault(kind=FaultKind.NONE)


def parse_fault(text: str) -> Fault:
    """Read what ``WORDS`` says. Raises ValueError for anything else."""
    name, colon, number = text.strip().partition(":")
    if name not in set(FaultKind):
        raise ValueError(f"a fault is {WORDS}")
    kind = FaultKind(name)
    if (kind in WITH_NUMBER) != bool(colon):
        raise ValueError("slow and skew take a number of seconds, slow:5, and nothing else does")
    seconds = float(number) if colon else 0.0
    if kind is FaultKind.SLOW and not 0 <= seconds <= MAX_DELAY_S:
        raise ValueError(f"a delay is between 0 and {MAX_DELAY_S:g} seconds")
    if not abs(seconds) <= MAX_SKEW_S:
        raise ValueError(f"a skew is at most {MAX_SKEW_S:g} seconds")
    return Fault(kind=kind, seconds=seconds)


def write_fault(folder: Path, fault: Fault) -> None:
    """Set the fault of the KMS that serves ``folder``, running or not."""
    temporary = folder / f".{FAULT_FILE}.new"
    temporary.write_text(f"{fault}\n", encoding="ascii")
    temporary.replace(folder / FAULT_FILE)


def read_fault(folder: Path) -> Fault:
    """The current fault; no file means none.

    Raises ValueError when the file says something else.
    """
    try:
        return parse_fault((folder / FAULT_FILE).read_text(encoding="ascii"))
    except FileNotFoundError:
        return NO_FAULT
