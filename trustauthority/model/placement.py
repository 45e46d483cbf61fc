"""The nouns of placement: rows, requests and phases that a decision about one VM looks at.

What it is: frozen records, one per table row, and one frozen request per operation. What it trusts:
nothing; constructors check ranges only. What it does not do: decide. The rules live in
``placement.rules``, the transitions in ``placement.authority``. Source: design 6.3-6.6.

All times are integer milliseconds of the store's clock; 0 means "never happened, nothing held".
Absent rows are ``None``. Epochs are integers that only grow.
"""

from dataclasses import dataclass
from enum import StrEnum

from trustauthority.model.identifiers import ClusterId, HostId, RequestId, VmId
from trustauthority.model.lease import OnLeaseLoss
from trustauthority.model.releasepolicy import ReleasePolicyRecord

UNLIMITED_MS = 2**53
"""A lease length that never ends (285 000 years): ordinary arithmetic, no NULL to compare with."""
NO_FENCE_MS = 0
"""``fence_until_ms`` of a VM whose last owner gave it back, or that never had one."""


class LeaseClass(StrEnum):
    """How long a host may run a VM without asking again."""

    STRICT = "strict"
    STANDARD = "standard"
    UNLIMITED = "unlimited"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTerms:
    """Lengths of one lease class; every one is settable, down to seconds for tests."""

    lease_ms: int
    """How long the right to run lasts, counted on the host from the first send of its request."""
    continue_for_ms: int = 0
    """How long the VM may go on running after its lease ended (0: it is paused at once)."""
    skew_ms: int
    """Margin for slow host clocks and reaction time; the host destroys within its first half."""
    on_lease_loss: OnLeaseLoss = OnLeaseLoss.PAUSE_THEN_DESTROY

    def __post_init__(self) -> None:
        if self.lease_ms <= 0 or self.continue_for_ms < 0 or self.skew_ms < 0:
            raise ValueError(
                "a lease has a positive length, continue-for and skew are not negative"
            )

    @property
    def fence_ms(self) -> int:
        """Time from an authority's decision until another owner may come in."""
        return self.lease_ms + self.continue_for_ms + self.skew_ms

    @property
    def is_unlimited(self) -> bool:
        """Whether the lease never ends, which is flagged wherever it shows."""
        return self.lease_ms >= UNLIMITED_MS


DEFAULT_TERMS: dict[LeaseClass, LeaseTerms] = {
    LeaseClass.STRICT: LeaseTerms(lease_ms=300_000, skew_ms=10_000),
    LeaseClass.STANDARD: LeaseTerms(lease_ms=3_600_000, skew_ms=20_000),
    LeaseClass.UNLIMITED: LeaseTerms(lease_ms=UNLIMITED_MS, skew_ms=20_000),
}
"""Strict 5 minutes, standard 1 hour, unlimited as vSphere Trust Authority has it."""


class KeyState(StrEnum):
    """State of a key. Source: NIST SP 800-57 part 1 rev. 5, section 7."""

    PRE_ACTIVE = "pre-active"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    DEACTIVATED = "deactivated"
    COMPROMISED = "compromised"
    DESTROYED = "destroyed"
    DESTROYED_COMPROMISED = "destroyed-compromised"


class VmState(StrEnum):
    """Whether a VM record takes part in placement."""

    PROTECTED = "protected"
    RETIRED = "retired"


class Sharing(StrEnum):
    """How many hosts may hold a secret at a time."""

    EXCLUSIVE = "exclusive"
    """One: a VM, and whatever has a disk."""
    SHARED = "shared"
    """Several: a secret of a service that runs on many hosts. It has no owner and no fence."""


class Purpose(StrEnum):
    """What a released key is for; part of its authenticated data."""

    RUN = "run"
    PREPARE = "prepare"
    SHARE = "share"
    """To hold a shared secret: no right to run anything."""


class GrantPhase(StrEnum):
    """How far a grant's release came: transaction 1, then transaction 2 or a failure between."""

    AUTHORISED = "authorised"
    RELEASED = "released"
    FAILED = "failed"


class MovePhase(StrEnum):
    """How far a migration came. SWITCHED and ABORTED are final: the recorded outcome."""

    OFFERED = "offered"
    PREPARED = "prepared"
    SWITCHED = "switched"
    ABORTED = "aborted"


# --- rows ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityRecord:
    """The one row of facts about the whole authority."""

    global_epoch: int = 1
    """Grows when every host is revoked at once."""
    no_report_before_ms: int = 0
    """Verdicts on evidence older than this count for nothing."""
    high_water_ms: int = 0
    """The latest time ever decided at; an earlier ``now`` decides nothing (N33)."""
    hold_owners_until_ms: int = 0
    """No fence counts as passed before this time (N86); set by ``placement.clock``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRecord:
    """A trusted cluster as a release sees it."""

    cluster_id: ClusterId
    policy_epoch: int = 1
    """Grows with each change of the cluster's policy."""
    may_hold_keys: bool = True
    """False where hosts are admitted by vendor CA alone: attested, never holding a grant (N76)."""
    live_grants_cap: int = 1_000
    """How many VMs one host may own at a time."""
    new_grants_cap: int = 100
    """How many grants one host may be authorised for within the store's counting window."""
    offer_ms: int = 60_000
    """How long an offer of a migration stands."""
    prepare_for_ms: int = 900_000
    """How long a prepared destination may wait, holding the key, for the switch."""
    warned_hosts_take: bool = True
    """Whether a host that passed with warnings may take VMs that it did not run last."""


NO_CLUSTER = ClusterRecord(cluster_id=ClusterId(""), may_hold_keys=False)
"""Stands for the cluster of a host that is not known: its hosts hold nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStanding:
    """A host as a release sees it. Its standing is derived from these by rules, never stored."""

    host_id: HostId
    cluster_id: ClusterId
    host_class: str = ""
    region: str = ""
    admitted: bool = False
    revoked: bool = False
    trust_epoch: int = 1
    """Grows with each revocation; a verdict counts only under the epoch it was reached in."""
    verdict_trust_epoch: int = 0
    verdict_policy_epoch: int = 0
    verdict_global_epoch: int = 0
    challenged_at_ms: int = 0
    """Issue time of the challenge that the newest quote answers, whatever its verdict: the age of
    evidence counts from here, for a host may have quoted long before it sent the quote."""
    attested_until_ms: int = 0
    """End of the newest PASSED verdict; 0 after a FAILED one. Silence ends like failure (N89)."""
    no_report_before_ms: int = 0
    boot: bytes = b""
    """resetCount and restartCount of the newest quote, 8 bytes big-endian."""
    variant_firmware: str = ""
    """Baselines that the newest verdict matched, by component; empty where none."""
    variant_secure_boot: str = ""
    variant_boot_loader: str = ""
    variant_kernel: str = ""
    variant_command_line: str = ""
    warned: bool = False
    """The newest verdict passed with warnings: outdated, but known."""
    draining: bool = False
    """An operator empties the host before maintenance: it keeps what it has and takes nothing."""
    live_grants: int = 0
    """VMs *other than the one asked for* that this host owns: counted by the store under the
    host's row lock."""
    new_grants: int = 0
    """Grants authorised for this host within the counting window: counted as ``live_grants``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VmRecord:
    """A protected VM: who owns it, under which epoch, and from when another may."""

    vm_id: VmId
    cluster_id: ClusterId
    state: VmState = VmState.PROTECTED
    key_state: KeyState = KeyState.ACTIVE
    key_epoch: int = 1
    lease_ms: int
    continue_for_ms: int = 0
    skew_ms: int
    sharing: Sharing = Sharing.EXCLUSIVE
    on_lease_loss: OnLeaseLoss = OnLeaseLoss.PAUSE_THEN_DESTROY
    any_host_of_cluster: bool = False
    """The VM's policy lets every host of the cluster start it; shown as a warning."""
    owner: HostId | None = None
    last_owner: HostId | None = None
    """The newest owner, kept after it gave the VM back: it may start the VM again by itself."""
    owner_boot: bytes = b""
    """The owner's boot when it became owner; another boot of it holds nothing."""
    grant_epoch: int = 0
    lease_until_ms: int = 0
    fence_until_ms: int = NO_FENCE_MS
    move_id: RequestId | None = None
    """The one move in progress, if any."""
    move_until_ms: int = 0
    """When the move in progress stops keeping others out."""
    policy_version: int = 0
    """Version of the VM's release policy; 0 without one."""

    @property
    def terms(self) -> LeaseTerms:
        """The lease lengths stored with this VM."""
        return LeaseTerms(
            lease_ms=self.lease_ms,
            continue_for_ms=self.continue_for_ms,
            skew_ms=self.skew_ms,
            on_lease_loss=self.on_lease_loss,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """A placement caller's wish: this VM on that host, once, until then. Never sufficient."""

    intent_id: RequestId
    vm_id: VmId
    destination: HostId
    expires_ms: int
    used_by: RequestId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakGlass:
    """Somebody's decision that one host gets one VM once, whatever its verdict says, until then."""

    glass_id: RequestId
    vm_id: VmId
    host_id: HostId
    expires_ms: int
    """Nothing that it gave lasts longer: leases end then."""
    closed_at_ms: int = 0
    """When somebody closed it; 0 while it is open."""
    used_by: RequestId | None = None
    """The one request that it let through."""
    grant_epoch: int = 0
    """The epoch that this request got."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """One release of a VM key, keyed by the request id that asked for it (a replay finds it)."""

    request_id: RequestId
    vm_id: VmId
    host_id: HostId
    purpose: Purpose
    grant_epoch: int
    key_epoch: int
    trust_epoch: int
    policy_epoch: int
    global_epoch: int
    boot: bytes
    lease_until_ms: int
    """The key is released before this time or not at all."""
    phase: GrantPhase = GrantPhase.AUTHORISED
    move_id: RequestId | None = None
    response_hash: bytes | None = None
    replays: int = 0
    """A retry writes this, so that it waits for replication like the first attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One migration, keyed by the request id of its offer; its final phase is never changed."""

    move_id: RequestId
    vm_id: VmId
    source: HostId
    destination: HostId
    grant_epoch: int
    """The source's epoch; the destination runs under the next one."""
    expires_ms: int
    """End of the offer, then of the preparation."""
    phase: MovePhase = MovePhase.OFFERED
    prepared_boot: bytes | None = None
    replays: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementState:
    """Every row that one decision about one VM may look at; ``None`` where there is no such row."""

    authority: AuthorityRecord
    cluster: ClusterRecord
    """The cluster of ``host``."""
    host: HostStanding | None
    """The host that gets or keeps a right: the asker, but the *destination* in a switch."""
    vm: VmRecord | None
    intent: Intent | None = None
    """The newest unused intent for (vm, host)."""
    grant: Grant | None = None
    """The grant of the request id."""
    move: Move | None = None
    """The move of the move id."""
    policy: ReleasePolicyRecord | None = None
    """The VM's release policy."""
    glass: BreakGlass | None = None
    """The newest break-glass for (vm, host) that is not closed."""
