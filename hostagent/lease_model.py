"""The nouns of the host's lease machine: view, events and actions.

What it is: frozen values without behaviour. What it does not do: decide; see ``hostagent.lease``.
Source: design 6.4, 6.5.
"""

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """Where this host stands with the VM."""

    IDLE = "idle"
    REQUESTING = "requesting"
    RUNNING = "running"
    PAUSED = "paused"
    """The lease is over; a renewal may still come before the VM is destroyed."""
    SWITCHING = "switching"
    """The VM is paused for a hand-over whose outcome this host has not read."""
    GIVING_BACK = "giving-back"
    PREPARING = "preparing"
    PREPARED = "prepared"
    """The key and the incoming VM are here; the right to run is not."""


class Operation(StrEnum):
    """What a message asks."""

    REQUEST = "request"
    RENEW = "renew"
    GIVE_BACK = "give-back"
    OFFER = "offer"
    PREPARE = "prepare"
    SWITCH = "switch"
    ABORT = "abort"
    SHARE = "share"
    """A shared secret: not a VM, so the lease machine never sends it; see ``hostagent.shared``."""


FENCED = "FENCED"
HOST_REVOKED = "HOST_REVOKED"
"""Reasons of refusals (``ErrorInfo.reason``) that this machine acts on."""
RENEW_FRACTION = 3
"""A lease is renewed when a third of it is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A request without an answer; retries keep its id and its first send."""

    operation: Operation
    request_id: str
    first_send_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseView:
    """Everything this host remembers about one VM. Times are CLOCK_BOOTTIME milliseconds."""

    phase: Phase = Phase.IDLE
    grant_epoch: int = 0
    """The epoch held, or while PREPARED that of the source."""
    run_until_ms: int = 0
    destroy_at_ms: int = 0
    """The watchdog ends the VM then, whatever else happens."""
    renew_at_ms: int = 0
    errand: Pending | None = None
    renewal: Pending | None = None
    lease_ms: int = 0
    destroys_at_once: bool = False
    """At the end of the lease the VM is destroyed without a pause in between."""
    move_id: str | None = None
    destination: str = ""


# --- events ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Somebody wants the VM to run here."""

    fresh_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time passed."""

    fresh_id: str
    """A new request id, used if a renewal is due."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resend:
    """An answer is overdue: send again what is pending, under the same ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """Stop waiting for the answer to a request or a preparation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """QEMU is dead (the guest shut down, or somebody stopped it)."""

    fresh_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferMove:
    """Somebody wants the VM to move to ``destination``; ``fresh_id`` names the whole move."""

    fresh_id: str
    destination: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareMove:
    """The VM of the move ``move_id`` shall come here."""

    fresh_id: str
    move_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOver:
    """The copy is complete: pause and switch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortMove:
    """Somebody wants the VM to stay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The source is believed to have switched: ask whether the VM may run here now."""

    fresh_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The authority's answer, with the request id that it echoes."""

    operation: Operation
    request_id: str
    accepted: bool
    reason: str = ""
    grant_epoch: int = 0
    lease_ms: int = 0
    """The lease, or for PREPARE how long the authority keeps the preparation."""
    continue_for_ms: int = 0
    skew_ms: int = 0
    destroys_at_once: bool = False


Event = (
    Start
    | Tick
    | Resend
    | GiveUp
    | Stopped
    | OfferMove
    | PrepareMove
    | HandOver
    | AbortMove
    | Claim
    | Reply
)


# --- actions ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Send a request; what is not asked for stays empty."""

    operation: Operation
    request_id: str
    grant_epoch: int = 0
    destination: str = ""
    move_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmWatchdog:
    """Have the watchdog outside the agent destroy the VM at this CLOCK_BOOTTIME."""

    at_ms: int


class VmAction(StrEnum):
    """What happens to the VM."""

    START = "start"
    """Open the key in the TPM, start QEMU, wipe our copy."""
    RECEIVE = "receive"
    """Open the key, start QEMU for an incoming migration, paused."""
    PAUSE = "pause"
    RESUME = "resume"
    DESTROY = "destroy"
    """End QEMU, wipe the key; "wiped" means that the process is gone."""


Action = Send | ArmWatchdog | VmAction
Step = tuple[LeaseView, tuple[Action, ...]]
