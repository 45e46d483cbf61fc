"""The words that the state machine and the daemon exchange: what happened, what to do.

Stage: model of the agent; values without behaviour. Times are milliseconds; points in time are on
CLOCK_BOOTTIME, which counts while the host sleeps and never steps.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from hostagent.failure import Failure


class Phase(StrEnum):
    """Where the host stands with its authority, as ``hostagent status`` shows it."""

    NEEDS_ENROL = "needs-enrol"
    """No certificate, or it ended."""
    ENROLLING = "enrolling"
    WAITING_ADMISSION = "waiting-admission"
    """A genuine TPM, no certificate before an operator admits it."""
    ATTESTING = "attesting"
    """A certificate, no verdict yet."""
    PASSED = "passed"
    FAILED = "failed"
    REMOVED = "removed"
    """An operator removed this host."""
    DOUBT = "doubt"
    """The authority contradicts its own audit log: nothing new is accepted from it."""


class Admission(StrEnum):
    """Whether this host may hold keys, as the authority said last."""

    UNKNOWN = "unknown"
    ADMITTED = "admitted"
    WAITING = "waiting"
    REMOVED = "removed"


class Call(StrEnum):
    """Calls whose failures the machine paces."""

    ENROL = "enrol"
    ATTEST = "attest"
    WATCH = "watch"


class Wish(StrEnum):
    """What the authority pushed."""

    HELLO = "hello"
    ATTEST_NOW = "attest-now"
    REVOKED = "revoked"
    MOVE_ORDERED = "move-ordered"


# --- events ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The daemon read its state."""

    certificate_left_ms: int | None = None
    """Until the stored certificate ends; None without one."""
    admission: Admission = Admission.UNKNOWN
    split_view: bool = False
    """Proof of two contradicting audit logs lies in the state folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """An activation was answered."""

    admission: Admission
    certificate_left_ms: int | None
    """None when the authority gave no certificate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested:
    """A verdict came back; FAILED is an answer."""

    passed: bool
    again_in_ms: int
    certificate_left_ms: int | None = None
    """Of a renewed certificate, when one came along."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A call did not succeed."""

    call: Call
    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """A wish arrived on the watch stream."""

    wish: Wish


@dataclass(frozen=True, slots=True, kw_only=True)
class Contradicted:
    """The authority contradicts its audit log, seen on a call that the machine does not pace."""

    lasting: bool
    """Two signed checkpoints are proof; only an operator ends this. Otherwise an authority that
    answers an attestation again, and so contains what was echoed to it, ends it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestWanted:
    """Somebody on this host asked for an attestation now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time passed."""


Event: TypeAlias = (
    Started | Enrolled | Attested | Failed | Pushed | Contradicted | AttestWanted | Tick
)

# --- actions -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrol:
    """Run the enrolment; answer with ``Enrolled`` or ``Failed``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attest:
    """Run one attestation; answer with ``Attested`` or ``Failed``."""

    fresh: bool = False
    """Forget the challenge and the known logs of the last reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenWatch:
    """Open the watch stream; answer with ``Pushed`` as wishes come, and ``Failed`` at its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconnect:
    """Open new connections: the certificate changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewNow:
    """Ask at once whether the leases go on: the authority said that they will not."""


Action: TypeAlias = Enrol | Attest | OpenWatch | Reconnect | RenewNow
