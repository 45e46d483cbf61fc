"""What the services need of the store about move orders."""

from collections.abc import Sequence
from typing import Protocol

from trustauthority.model.identifiers import HostId, RequestId
from trustauthority.model.moveorder import MoveOrder, OrderReport


class MoveOrders(Protocol):
    """Orders of moves: at most one that is open per VM, a bounded number per host."""

    async def place(self, order: MoveOrder, *, most_per_host: int) -> bool:
        """Insert an order if its source owns the VM, no other one of it is open, and there is room."""

    async def get(self, order_id: RequestId) -> MoveOrder | None:
        """Find an order."""

    async def entries(
        self, *, vm: str, source: str, host: str, open_only: bool, limit: int
    ) -> Sequence[MoveOrder]:
        """List orders, newest first; empty arguments don't filter. ``host`` is either end."""

    async def report(self, source: HostId, report: OrderReport, *, until_ms: int) -> bool:
        """Write what the source says, while the order is open and has not lapsed.

        One that is being cancelled goes on being that until it ends; only such a one ends as CANCELLED.
        """

    async def cancel(self, order_id: RequestId, *, unless_begun: bool) -> bool:
        """Take back an order that waits, or have its source stop one that runs.

        False when it ended or lapsed, is being cancelled, its VM is handed over already, or
        (``unless_begun``) it has begun.
        """

    async def purge(self, *, before_ms: int) -> None:
        """Forget orders that ended or lapsed before a time (L4)."""
