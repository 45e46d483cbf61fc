"""Rank the hosts of a VM's cluster: where it may run best, and why not elsewhere.

What it is: an order over advice of ``placement.decide``. What it trusts: rows as read, maybe seconds
old. What it guarantees: a host that may not run the VM is never before one that may. What it does not
do: authorise. Source: design 6.5 (advice).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from trustauthority.model.placement import PlacementState
from trustauthority.placement.decide import MoveDecision


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One host, for one VM."""

    name: str
    state: PlacementState
    """Rows that the advice was given on; its host is there."""
    decision: MoveDecision

    @property
    def owns(self) -> bool:
        """Whether it holds the VM's grant now."""
        vm, host = self.state.vm, self.state.host
        return vm is not None and host is not None and vm.owner == host.host_id

    @property
    def free(self) -> int:
        """How many more VMs it may hold."""
        host = self.state.host
        held = 0 if host is None else host.live_grants
        return max(0, self.state.cluster.live_grants_cap - held)

    @property
    def warned(self) -> bool:
        """Whether its newest verdict passed with warnings."""
        return self.state.host is not None and self.state.host.warned

    @property
    def attested_until_ms(self) -> int:
        """When its newest verdict stops counting."""
        return 0 if self.state.host is None else self.state.host.attested_until_ms


def rank(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Best first: allowed, without warnings, with room, freshly attested; then by name."""
    return tuple(sorted(candidates, key=_rank))


def _rank(candidate: Candidate) -> tuple[bool, bool, int, int, str]:
    return (
        not candidate.decision.allowed,
        candidate.warned,
        -candidate.free,
        -candidate.attested_until_ms,
        candidate.name,
    )
