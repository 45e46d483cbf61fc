"""Ports of VM keys: their records, the providers that wrap them, and what is left of destroyed ones."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from trustauthority.model.audit import AuditEntry
from trustauthority.model.identifiers import HostId, RequestId, VmId
from trustauthority.model.keyjob import KekEntry, RewrapJob
from trustauthority.model.placement import Grant, KeyState
from trustauthority.model.releasepolicy import ReleasePolicyEntry
from trustauthority.model.vm import BreakGlassEntry, Tombstone, VmKeyEntry


class Keys(Protocol):
    """Wrapped VM keys."""

    async def put(self, entry: VmKeyEntry) -> bool:
        """Insert a key if its epoch is the next one of its VM; the first one becomes current."""

    async def make_current(self, was: VmKeyEntry, now: VmKeyEntry) -> bool:
        """Let another key of a VM be the one that is released; False when ``was`` is not current."""

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


class KeyHistory(Protocol):
    """Who received which key, from the audit log."""

    async def releases(self, *, actor: str, after: int, limit: int) -> Sequence[AuditEntry]:
        """Entries of releases after a place in the log, in order; of one actor or (empty) of all."""

    async def ends(self, *, actor: str, subject: str, after: int) -> Sequence[AuditEntry]:
        """Entries by which a host gave a VM away after a place in the log, in order."""


class KeyProviders(Protocol):
    """Names for KEKs in a KMS, and their versions."""

    async def current(self, provider: str) -> KekEntry | None:
        """The KEK that new keys of a provider are wrapped by."""

    async def versions(self, provider: str) -> Sequence[KekEntry]:
        """Every KEK that a provider ever had, newest first."""

    async def names(self) -> Sequence[str]:
        """Providers that have a KEK."""

    async def add_kek(self, entry: KekEntry) -> bool:
        """Record a KEK; False when its version is taken."""

    async def keys_by_kek(self, provider: str) -> Mapping[str, int]:
        """How many VM keys each KEK of a provider wraps."""

    async def defaults(self) -> Mapping[str, str]:
        """The default provider of each cluster that has one of its own."""

    async def set_default(self, cluster: str, provider: str) -> None:
        """Choose a cluster's default."""


class ReleasePolicies(Protocol):
    """Release policies of VMs, and what of hosts they look at that nothing measures."""

    async def get(self, vm: VmId) -> ReleasePolicyEntry | None:
        """The newest release policy of a VM."""

    async def put(self, entry: ReleasePolicyEntry, *, after_version: int) -> bool:
        """Put the next version in force; False when another one came first."""

    async def region(self, host: HostId) -> str:
        """A host's region; empty when it has none."""

    async def set_region(self, host: HostId, region: str) -> bool:
        """Say in which region a host is; False when there is no such host."""


class RewrapJobs(Protocol):
    """Jobs that wrap many keys again, one worker at a time."""

    async def add(self, job: RewrapJob) -> None:
        """Keep a new job."""

    async def get(self, job_id: str) -> RewrapJob | None:
        """Find a job."""

    async def page(self, *, limit: int) -> Sequence[RewrapJob]:
        """Jobs, newest first."""

    async def unfinished(self) -> Sequence[RewrapJob]:
        """Jobs that somebody must work at, newest first."""

    async def claim(self, job_id: str, *, worker: str, until_ms: int) -> RewrapJob | None:
        """Take a job that nobody works at, or go on with one's own; None when it is not free."""

    async def save(self, job: RewrapJob, *, worker: str) -> bool:
        """Write progress; False when the job is not running or another worker has it."""

    async def cancel(self, job_id: str) -> bool:
        """End a running job; False when there is none."""

    async def remaining(self, job: RewrapJob, *, limit: int) -> tuple[Sequence[VmKeyEntry], int]:
        """The next keys after the job's place, and how many there are from the start."""


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

    async def let_through(self, grant: Grant) -> bool:
        """Whether one, whatever became of it since, gave this grant."""

    async def page(self, *, open_only: bool, limit: int) -> Sequence[BreakGlassEntry]:
        """Newest first; only those that are open now, or all."""

    async def close(self, glass_id: RequestId, *, by: str) -> BreakGlassEntry | None:
        """Close one that is not closed; None when there is no such."""
