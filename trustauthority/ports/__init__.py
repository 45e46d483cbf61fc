"""What the services need of the world, as Protocols of at most eight methods each.

Every decision of the store is one conditional statement inside ``Store.transaction()``; a method that
may refuse returns whether its condition held; the audit row joins the transaction (S9, I-D).
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from trustauthority.model.audit import AuditEntry, AuditEvent
from trustauthority.model.catalogue import IdentityEntry
from trustauthority.model.host import Admission, HostRecord, PendingEnrolment
from trustauthority.model.identifiers import HostId, RequestId, VmId
from trustauthority.model.placement import AuthorityRecord, Move, PlacementState
from trustauthority.model.requests import Request
from trustauthority.model.retention import KeptVerdict
from trustauthority.model.vm import IntentEntry, VmEntry
from trustauthority.placement.condition import Condition, Rule, Weighed
from trustauthority.ports.catalogue import Baselines, Catalogue, Inventory, TrustLists
from trustauthority.ports.keyroom import EscrowRoom, KeyRoom
from trustauthority.ports.keys import (
    BreakGlasses,
    KeyHistory,
    KeyProviders,
    Keys,
    ReleasePolicies,
    RewrapJobs,
    Tombstones,
)
from trustauthority.ports.orders import MoveOrders


class Clock(Protocol):
    """Clocks of the machine; injected in tests."""

    def now_ms(self) -> int:
        """Wall clock, milliseconds since the epoch."""

    def boottime_ms(self) -> int:
        """Milliseconds since boot, suspension included."""

    def boot_id(self) -> str:
        """Identify this boot of the machine."""


class Hosts(Protocol):
    """Enrolled TPMs."""

    async def get(self, name_or_id: str) -> HostRecord | None:
        """Find a host by id, or by reserved name."""

    async def by_tls_key(self, spki_sha256: str) -> HostRecord | None:
        """Find the host whose TLS key a connection showed."""

    async def page(self, *, cluster: str, after: str, limit: int) -> Sequence[HostRecord]:
        """List hosts ordered by name, then id; ``after`` is the last host id of the page before."""

    async def enrol(self, pending: PendingEnrolment, admission: Admission) -> bool:
        """Insert a host once; False when its id, AK or keys belong to another one (N01, S5)."""

    async def set_admission(
        self, host: HostId, admission: Admission, *, name: str | None, host_class: str | None = None
    ) -> bool:
        """Admit (reserving ``name``) or remove; False when the name is taken. A class voids verdicts."""

    async def set_revoked(self, host: HostId, *, revoked: bool) -> int:
        """Revoke or reinstate; returns the host's new trust epoch, which only grows."""

    async def record_verdict(
        self, host: HostId, *, position: bytes, values: Mapping[str, object]
    ) -> bool:
        """Write the newest verdict if the TPM's position moved forward.

        A revocation that came first is in no verdict's epochs: such a verdict counts for nothing.
        """

    async def revoke_all(self, *, no_report_before_ms: int) -> int:
        """Void every verdict so far; returns the new global epoch."""


class Enrolments(Protocol):
    """Pending enrolments and used challenges: short-lived, counted, purged."""

    async def put(self, pending_id: str, row_sha256: bytes, pending: PendingEnrolment) -> None:
        """Keep a pending row."""

    async def take(self, pending_id: str) -> tuple[bytes, PendingEnrolment] | None:
        """Remove and return a pending row that has not expired: one attempt each (rule 21)."""

    async def count(self, peer: str) -> int:
        """Count the live pending rows of a peer."""

    async def consume_challenge(self, challenge_sha256: bytes, *, expires_at_ms: int) -> bool:
        """Use a challenge up; False when it was used before (S4, N06)."""

    async def purge(self) -> None:
        """Forget what has expired (L4)."""


class EvidenceArchive(Protocol):
    """Verdicts and the evidence that led to them, content-addressed."""

    async def put_blob(self, content: bytes) -> bytes:
        """Keep bytes; returns their SHA-256."""

    async def get_blob(self, sha256: bytes) -> bytes | None:
        """Read bytes back."""

    async def put_verdict(self, verdict_id: str, values: Mapping[str, object]) -> None:
        """Keep a verdict with its seal and report."""

    async def get_verdict(self, verdict_id: str) -> Mapping[str, object] | None:
        """Read a verdict back."""

    async def removable(
        self, *, passed_before_ms: int, failed_before_ms: int, limit: int
    ) -> Sequence[KeptVerdict]:
        """List verdicts that were decided before these times; never a host's newest one.

        Those that passed come before those that failed, and older ones first.
        """

    async def remove(self, verdicts: Sequence[KeptVerdict]) -> int:
        """Remove verdicts, and what no other verdict rests on; returns the bytes that this frees.

        A verdict that became a host's newest one, or is gone already, is left alone.
        """

    async def stored_bytes(self) -> int:
        """Count the bytes of all verdicts and of what they rest on."""


class Vms(Protocol):
    """Protected VMs, their keys, and intents."""

    async def protect(self, entry: VmEntry, *, by: str) -> bool:
        """Insert a VM; False when the id is taken."""

    async def get(self, vm: str) -> VmEntry | None:
        """Find a VM."""

    async def page(self, *, after: str, limit: int, owner: str = "") -> Sequence[VmEntry]:
        """List VMs by id, of one owner or (empty) of all."""

    async def owned_by(self, host: HostId) -> Sequence[VmEntry]:
        """List the VMs whose grant a host holds."""

    async def reprofile(self, vm: VmId, profile_sha256: bytes, *, replaces: bytes) -> bool:
        """Replace the digest of the profile; False when it is not the one that was looked at."""

    async def retire(self, vm: VmId, *, even_if_held: bool) -> bool:
        """Take a VM out of placement for good; False when a host holds it, or held it lately."""

    async def put_intent(self, entry: IntentEntry) -> None:
        """Keep an intent."""

    async def intents(self, vm: str) -> Sequence[IntentEntry]:
        """List intents, newest first, of one VM or (empty) of all."""


class Placement(Protocol):
    """Grants and moves: the transitions of ``placement.authority``, decided by a write."""

    async def decide(self, request: Request) -> tuple[PlacementState, tuple[Rule, ...]]:
        """Apply the request's transition; returns the rows after it and the rules that failed."""

    async def authority(self) -> AuthorityRecord:
        """What holds for every host: the global epoch among it."""

    async def look(self, questions: Sequence[tuple[str, str]]) -> Sequence[PlacementState]:
        """Read what decisions about these (VM, host id or name) look at; None where unknown. Advice."""

    async def weigh(
        self, questions: Sequence[tuple[str, str]], conditions: tuple[Condition, ...]
    ) -> Sequence[Weighed]:
        """Say which conditions hold for each (VM, host id or name); none asks the request. Advice."""

    async def move(self, move_id: RequestId) -> Move | None:
        """Read one move: its recorded outcome."""

    async def set_draining(self, host: HostId, *, draining: bool) -> None:
        """Let a host take no VM any more, or take VMs again."""


class Identities(Protocol):
    """Registered keys and their roles."""

    async def put(self, entry: IdentityEntry) -> bool:
        """Insert or renew an identity; False when the name belongs to another key."""

    async def by_key(self, key_sha256: str) -> IdentityEntry | None:
        """Find the identity of a connection's key."""

    async def entries(self) -> Sequence[IdentityEntry]:
        """List identities by name."""

    async def revoke(self, name: str) -> bool:
        """Revoke an identity; False when there is none."""


class AuditLog(Protocol):
    """The Merkle log; entries are appended in the transaction of the decision they record."""

    async def append(self, event: AuditEvent) -> int:
        """Append an entry; returns its sequence number."""

    async def size(self) -> int:
        """How many entries there are."""

    async def root(self, size: int) -> bytes:
        """The root of the tree of the first ``size`` entries; ValueError for more than there are."""

    async def entries(self, *, start: int, limit: int) -> Sequence[AuditEntry]:
        """Entries in order."""

    async def about(self, *, operation: str, subject: str, limit: int) -> Sequence[AuditEntry]:
        """Entries of one kind about one subject, newest first."""

    async def halt(self, because: str) -> None:
        """Stop all releases until an accepted loss."""

    async def era(self) -> int:
        """Which beginning of the log this is; grows with each accepted loss."""

    async def halted_because(self) -> str:
        """Why releases are stopped; empty when they are not."""


class Transaction(Protocol):
    """One unit of work; everything in it becomes durable together or not at all."""

    @property
    def now_ms(self) -> int:
        """The store's clock: the only clock of decisions."""

    @property
    def hosts(self) -> Hosts:
        """Enrolled TPMs."""

    @property
    def enrolments(self) -> Enrolments:
        """Pending enrolments and used challenges."""

    @property
    def archive(self) -> EvidenceArchive:
        """Verdicts and evidence."""

    @property
    def trust_lists(self) -> TrustLists:
        """Revocation lists."""

    @property
    def catalogue(self) -> Catalogue:
        """Clusters and anchors."""

    @property
    def inventory(self) -> Inventory:
        """Our machines."""

    @property
    def baselines(self) -> Baselines:
        """Expected boots."""

    @property
    def vms(self) -> Vms:
        """Protected VMs."""

    @property
    def keys(self) -> Keys:
        """Wrapped VM keys."""

    @property
    def key_history(self) -> KeyHistory:
        """Who received which key."""

    @property
    def key_providers(self) -> KeyProviders:
        """Names for KEKs."""

    @property
    def break_glass(self) -> BreakGlasses:
        """What lets a host past its verdict."""

    @property
    def release_policies(self) -> ReleasePolicies:
        """Release policies of VMs."""

    @property
    def rewrap_jobs(self) -> RewrapJobs:
        """Jobs that wrap many keys again."""

    @property
    def placement(self) -> Placement:
        """Grants and moves."""

    @property
    def orders(self) -> MoveOrders:
        """Wishes to move VMs."""

    @property
    def identities(self) -> Identities:
        """People and programs."""

    @property
    def audit(self) -> AuditLog:
        """The log of decisions."""


class Store(Protocol):
    """Where state lives. SQLite today; PostgreSQL can stand behind the same port."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Begin a unit of work that may write. Raises StoreUnavailable."""

    def snapshot(self) -> AbstractAsyncContextManager[Transaction]:
        """Begin a read-only unit of work: for lists and advice, never for a decision."""

    async def close(self) -> None:
        """Close all connections."""


class Journal(Protocol):
    """Where services tell what happened; telemetry turns it into lines and figures."""

    def record(self, event: str, **facts: str | float | bool) -> None:
        """Tell one event. Facts never hold secrets."""

    def crash(self, error_id: str, where: str, error: BaseException) -> None:
        """Tell an unexpected exception: its trace goes to the log, its id to the caller."""


class Signer(Protocol):
    """A signing key whose private part stays behind the port."""

    @property
    def key_id(self) -> str:
        """Names the key."""

    def sign(self, message: bytes) -> bytes:
        """Sign; ECDSA P-256 with SHA-256 in DER form, or Ed25519, as the key is."""


__all__ = [
    "AuditLog",
    "Baselines",
    "BreakGlasses",
    "Catalogue",
    "Clock",
    "Enrolments",
    "EscrowRoom",
    "EvidenceArchive",
    "Hosts",
    "Identities",
    "Inventory",
    "Journal",
    "KeyHistory",
    "KeyProviders",
    "KeyRoom",
    "Keys",
    "MoveOrders",
    "Placement",
    "ReleasePolicies",
    "RewrapJobs",
    "Signer",
    "Store",
    "Tombstones",
    "Transaction",
    "TrustLists",
    "Vms",
]
