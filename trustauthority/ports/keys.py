"""Ports of VM keys: their records, the providers that wrap them, and what is left of destroyed ones."""

from collections.abc import Sequence
from typing import Protocol

from trustauthority.model.identifiers import HostId, RequestId, VmId
from trustauthority.model.placement import KeyState
from trustauthority.model.vm import BreakGlassEntry, Tombstone, VmKeyEntry


class Keys(Protocol):
    """Wrapped VM keys."""

    async def put(self, entry: VmKeyEntry) -> bool:
        """Insert a key if its epoch is the next one of its VM, and make it the current one."""

    async def current(self, vm: VmId) -> VmKeyEntry | None:
        """The key that is released for a VM."""

    async def epochs(self, vm: VmId) -> Sequence[VmKeyEntry]:
        """Every key that a VM ever had, newest first."""

    async def page(self, *, after: str, limit: int) -> Sequence[VmKeyEntry]:
        """The current keys of VMs, by VM."""

    async def replace(self, was: VmKeyEntry, now: VmKeyEntry) -> bool:
        """Change a key if it still is what it was; the VM's row follows."""

    async def due(self, *, limit: int) -> Sequence[VmKeyEntry]:
        """Keys whose time of destruction has come."""

    async def in_states(self, states: frozenset[KeyState]) -> Sequence[VmKeyEntry]:
        """Keys of all epochs in some states."""


class KeyProviders(Protocol):
    """Names for KEKs."""

    async def kek(self, provider: str) -> str | None:
        """The KEK id that a provider name stands for."""

    async def put_kek(self, provider: str, kek_id: str) -> bool:
        """Record a provider's KEK; False when it has one already."""


class Tombstones(Protocol):
    """What is remembered of destroyed keys where putting an older database back does not reach."""

    def append(self, tombstone: Tombstone) -> None:
        """Remember one, durably. Raises StoreUnavailable."""

    def entries(self) -> Sequence[Tombstone]:
        """Every one, oldest first. Raises ConfigurationInvalid for one that we did not sign."""


class BreakGlasses(Protocol):
    """Decisions of people that a host gets a VM once, whatever its verdict says."""

    async def put(self, entry: BreakGlassEntry) -> None:
        """Keep one."""

    async def open_for(self, vm: VmId, host: HostId) -> BreakGlassEntry | None:
        """The newest one for a VM and a host that is not closed and not expired. Advice only."""

    async def page(self, *, open_only: bool, limit: int) -> Sequence[BreakGlassEntry]:
        """Newest first; only those that are open now, or all."""

    async def close(self, glass_id: RequestId, *, by: str) -> BreakGlassEntry | None:
        """Close one that is not closed; None when there is no such."""
