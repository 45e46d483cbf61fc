"""Faults on demand, named in one control file that is read again for each connection and request."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

FAULT_FILE = "fault"
MAX_DELAY_S = 600.0


class FaultKind(StrEnum):
    """What the KMS does wrong."""

    NONE = "none"
    DOWN = "down"
    """Connections are reset before TLS, and in the middle."""
    SLOW = "slow"
    """Each answer is late."""
    WRONG_KEY = "wrong-key"
    """Get answers with another key's bytes."""
    TRUNCATED = "truncated"
    """Half an answer, then the end of the connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault."""

    kind: FaultKind
    delay_s: float = 0.0
    """Seconds before each answer, of SLOW."""

    def __str__(self) -> str:
        return f"slow:{self.delay_s:g}" if self.kind is FaultKind.SLOW else str(self.kind)


NO_FAULT = Fault(kind=FaultKind.NONE)


def parse_fault(text: str) -> Fault:
    """Read ``none``, ``down``, ``slow:SECONDS``, ``wrong-key`` or ``truncated``.

    Raises ValueError for anything else.
    """
    name, colon, number = text.strip().partition(":")
    if name not in set(FaultKind):
        raise ValueError("a fault is none, down, slow:SECONDS, wrong-key or truncated")
    kind = FaultKind(name)
    if (kind is FaultKind.SLOW) != bool(colon):
        raise ValueError("slow takes a number of seconds, slow:5, and nothing else does")
    delay_s = float(number) if colon else 0.0
    if not 0 <= delay_s <= MAX_DELAY_S:
        raise ValueError(f"a delay is between 0 and {MAX_DELAY_S:g} seconds")
    return Fault(kind=kind, delay_s=delay_s)


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
