"""Move orders: the wish that the host which runs a VM moves it, and how far it is.

An order gives no right. The move that carries it out is offered, prepared and switched as any other;
losing every order loses no VM. Times are milliseconds of the store's clock.
"""

from dataclasses import dataclass
from enum import StrEnum

from trustauthority.model.identifiers import HostId, RequestId, VmId

REPORT_WITHIN_MS = 120_000
"""An order that runs lapses when its source is silent for this long: a dead agent blocks nothing."""


class OrderState(StrEnum):
    """How far an order is. EXPIRED is never stored: time makes it so."""

    ORDERED = "ordered"
    RUNNING = "running"
    CANCELLING = "cancelling"
    """It runs, and its source is asked to stop the copy; it may still come out as DONE."""
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


OPEN = frozenset({OrderState.ORDERED, OrderState.RUNNING, OrderState.CANCELLING})
"""States in which an order keeps others of its VM out, until it lapses."""


class OrderPhase(StrEnum):
    """The steps of a migration, in order."""

    NONE = ""
    OFFER = "offer"
    PREPARE = "prepare"
    COPY = "copy"
    SWITCH = "switch"
    RESUME = "resume"


HANDING_OVER = frozenset({OrderPhase.SWITCH, OrderPhase.RESUME})
"""Steps in which no QEMU lives at the source: there is nothing to go back to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveOrder:
    """One order."""

    order_id: RequestId
    vm_id: VmId
    source: HostId
    """The owner when it was ordered; only its agent may carry it out."""
    destination: HostId
    state: OrderState
    phase: OrderPhase = OrderPhase.NONE
    percent: int = 0
    """Of the copy, 0 to 100."""
    detail: str = ""
    created_by: str
    created_at_ms: int
    updated_at_ms: int
    expires_ms: int
    """When it lapses: grows with each report while it runs."""

    def state_at(self, now_ms: int) -> OrderState:
        """The state, with what time makes of it."""
        lapsed = self.state in OPEN and now_ms >= self.expires_ms
        return OrderState.EXPIRED if lapsed else self.state


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderReport:
    """What the source says of an order."""

    order_id: RequestId
    state: OrderState
    phase: OrderPhase
    percent: int
    detail: str
