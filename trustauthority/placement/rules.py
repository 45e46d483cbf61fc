"""The preconditions of every decision about a VM, each by name, with the error that its failure is.

What it is: data. What it trusts: nothing. What it guarantees: one definition that the pure
functions, the explanation and the store's ``WHERE`` clause share. What it does not do: decide, or
say which decision needs which rule; see ``placement.authority``. Source: design 3, 6.3-6.6.
"""

from trustauthority.errors import (
    DependencyUnavailable,
    Fenced,
    GrantHeldElsewhere,
    HostNotAdmitted,
    HostNotAttested,
    HostRevoked,
    KeyNotPermitted,
    RateLimited,
)
from trustauthority.model.placement import (
    NO_FENCE_MS,
    GrantPhase,
    KeyState,
    MovePhase,
    Purpose,
    Sharing,
    VmState,
)
from trustauthority.placement import release_policy
from trustauthority.placement.condition import (
    Absent,
    AllOf,
    AnyOf,
    Asked,
    Compare,
    Comparison,
    Condition,
    Field,
    Literal,
    Now,
    Rule,
    Term,
)


def equal(left: Term, right: Term) -> Condition:
    """Both are there and equal."""
    return Compare(left, Comparison.EQUAL, right)


def before(left: Term, right: Term) -> Condition:
    """``left`` is strictly less."""
    return Compare(left, Comparison.LESS, right)


def reached(limit: Term, value: Term) -> Condition:
    """``value`` is at least ``limit``."""
    return Compare(limit, Comparison.AT_MOST, value)


# --- the clock -------------------------------------------------------------------------------

CLOCK_FORWARD = Rule(
    name="clock-forward",
    error=DependencyUnavailable,
    condition=reached(Field("authority", "high_water_ms"), Now()),
    says="the authority's clock is behind a time at which it already decided",
)

# --- the host's standing (6.2, 6.6) ------------------------------------------------------------

HOST_ADMITTED = Rule(
    name="host-admitted",
    error=HostNotAdmitted,
    condition=AllOf(
        (
            equal(Field("host", "admitted"), Literal(value=True)),
            equal(Field("cluster", "may_hold_keys"), Literal(value=True)),
        )
    ),
    says="the host is not shown to be one of ours",
)
HOST_NOT_REVOKED = Rule(
    name="host-not-revoked",
    error=HostRevoked,
    condition=equal(Field("host", "revoked"), Literal(value=False)),
    says="the host is revoked",
)
GLOBAL_EPOCH_CURRENT = Rule(
    name="global-epoch-current",
    error=HostRevoked,
    condition=equal(Field("host", "verdict_global_epoch"), Field("authority", "global_epoch")),
    says="every host was revoked since this host was last attested",
)
TRUST_EPOCH_CURRENT = Rule(
    name="trust-epoch-current",
    error=HostNotAttested,
    condition=equal(Field("host", "verdict_trust_epoch"), Field("host", "trust_epoch")),
    says="the host was revoked since it was last attested",
)
POLICY_EPOCH_CURRENT = Rule(
    name="policy-epoch-current",
    error=HostNotAttested,
    condition=equal(Field("host", "verdict_policy_epoch"), Field("cluster", "policy_epoch")),
    says="the policy changed since the host was last attested",
)
ATTESTED_NOW = Rule(
    name="attested-now",
    error=HostNotAttested,
    condition=before(Now(), Field("host", "attested_until_ms")),
    says="the host's newest verdict is FAILED, or too old",
)
EVIDENCE_NEW_ENOUGH = Rule(
    name="evidence-new-enough",
    error=HostNotAttested,
    condition=AllOf(
        (
            reached(Field("host", "no_report_before_ms"), Field("host", "challenged_at_ms")),
            reached(Field("authority", "no_report_before_ms"), Field("host", "challenged_at_ms")),
        )
    ),
    says="the host's evidence is older than an administrator accepts",
)
STANDING = (
    CLOCK_FORWARD,
    HOST_ADMITTED,
    HOST_NOT_REVOKED,
    GLOBAL_EPOCH_CURRENT,
    TRUST_EPOCH_CURRENT,
    POLICY_EPOCH_CURRENT,
    ATTESTED_NOW,
    EVIDENCE_NEW_ENOUGH,
)
"""What attested means at a commit (S1)."""

# --- the VM and the reason to have it (6.3) ----------------------------------------------------

VM_OF_CLUSTER = Rule(
    name="vm-of-cluster",
    error=KeyNotPermitted,
    condition=equal(Field("vm", "cluster_id"), Field("host", "cluster_id")),
    says="there is no such VM in the host's cluster",
)
VM_PROTECTED = Rule(
    name="vm-protected",
    error=KeyNotPermitted,
    condition=equal(Field("vm", "state"), Literal(VmState.PROTECTED)),
    says="the VM is retired",
)
KEY_ACTIVE = Rule(
    name="key-active",
    error=KeyNotPermitted,
    condition=equal(Field("vm", "key_state"), Literal(KeyState.ACTIVE)),
    says="the VM's key is not active",
)
LAST_OWNER: Condition = equal(Field("vm", "last_owner"), Field("host", "host_id"))
INTENT_STANDS: Condition = AllOf(
    (
        equal(Field("intent", "vm_id"), Field("vm", "vm_id")),
        equal(Field("intent", "destination"), Field("host", "host_id")),
        Absent(Field("intent", "used_by")),
        before(Now(), Field("intent", "expires_ms")),
    )
)
ANY_HOST: Condition = equal(Field("vm", "any_host_of_cluster"), Literal(value=True))
REASON = Rule(
    name="reason",
    error=KeyNotPermitted,
    condition=AnyOf((LAST_OWNER, INTENT_STANDS, ANY_HOST)),
    says="the host is not the VM's last owner, no intent places it there, and its policy says no",
)
LIVE_CAP = Rule(
    name="live-grants-cap",
    error=KeyNotPermitted,
    condition=before(Field("host", "live_grants"), Field("cluster", "live_grants_cap")),
    says="the host owns as many VMs as one host may",
)
NEW_CAP = Rule(
    name="new-grants-cap",
    error=RateLimited,
    condition=before(Field("host", "new_grants"), Field("cluster", "new_grants_cap")),
    says="the host asked for too many VMs lately",
)
NOT_DRAINING = Rule(
    name="host-not-draining",
    error=KeyNotPermitted,
    condition=equal(Field("host", "draining"), Literal(value=False)),
    says="the host is being drained: it takes no VM until ta host undrain",
)
MAY_TAKE = Rule(
    name="host-not-warned",
    error=KeyNotPermitted,
    condition=AnyOf(
        (
            equal(Field("host", "warned"), Literal(value=False)),
            equal(Field("cluster", "warned_hosts_take"), Literal(value=True)),
            LAST_OWNER,
        )
    ),
    says="the host passed with warnings, and the policy lets such hosts take no other VMs",
)
TAKES_VMS = (NOT_DRAINING, MAY_TAKE, LIVE_CAP, NEW_CAP)
"""What a host that is to get a VM must be besides attested; not asked of one that has it."""
VM_USABLE = (VM_OF_CLUSTER, VM_PROTECTED, KEY_ACTIVE)
VM_EXCLUSIVE = Rule(
    name="vm-exclusive",
    error=KeyNotPermitted,
    condition=equal(Field("vm", "sharing"), Literal(Sharing.EXCLUSIVE)),
    says="the secret is shared by hosts: nobody owns or runs it",
)
VM_SHARED = Rule(
    name="vm-shared",
    error=KeyNotPermitted,
    condition=equal(Field("vm", "sharing"), Literal(Sharing.SHARED)),
    says="only one host may hold this VM at a time",
)
OWNABLE = (*VM_USABLE, VM_EXCLUSIVE)

# --- ownership, fence and epoch (6.4) ----------------------------------------------------------

CLEAR_OF_OTHERS = Rule(
    name="clear-of-others",
    error=GrantHeldElsewhere,
    condition=AnyOf(
        (
            equal(Field("vm", "fence_until_ms"), Literal(NO_FENCE_MS)),
            equal(Field("vm", "owner"), Field("host", "host_id")),
            AllOf(
                (
                    reached(Field("vm", "fence_until_ms"), Now()),
                    reached(Field("authority", "hold_owners_until_ms"), Now()),
                )
            ),
        )
    ),
    says="another host holds the VM, or its fence has not passed",
)
ASKER_OWNS = Rule(
    name="asker-owns",
    error=Fenced,
    condition=equal(Field("vm", "owner"), Asked("host_id")),
    says="the host does not own the VM any more",
)
EPOCH_CURRENT = Rule(
    name="grant-epoch-current",
    error=Fenced,
    condition=equal(Field("vm", "grant_epoch"), Asked("grant_epoch")),
    says="the grant epoch is not the current one",
)
SAME_BOOT = Rule(
    name="same-boot",
    error=Fenced,
    condition=equal(Field("vm", "owner_boot"), Field("host", "boot")),
    says="the host was reset since it got the grant",
)

# --- one release (6.4) -------------------------------------------------------------------------

GRANT_OF_ASKER = Rule(
    name="grant-of-asker",
    error=KeyNotPermitted,
    condition=AllOf(
        (
            equal(Field("grant", "request_id"), Asked("request_id")),
            equal(Field("grant", "host_id"), Asked("host_id")),
            equal(Field("grant", "vm_id"), Asked("vm_id")),
        )
    ),
    says="the request id belongs to no grant of this host and VM",
)
GRANT_EPOCHS_CURRENT = Rule(
    name="grant-epochs-current",
    error=HostNotAttested,
    condition=AllOf(
        (
            equal(Field("grant", "trust_epoch"), Field("host", "trust_epoch")),
            equal(Field("grant", "policy_epoch"), Field("cluster", "policy_epoch")),
            equal(Field("grant", "global_epoch"), Field("authority", "global_epoch")),
        )
    ),
    says="a revocation or a policy change came between",
)
GRANT_KEY_CURRENT = Rule(
    name="grant-key-current",
    error=KeyNotPermitted,
    condition=equal(Field("grant", "key_epoch"), Field("vm", "key_epoch")),
    says="the VM's key was changed since",
)
GRANT_SAME_BOOT = Rule(
    name="grant-same-boot",
    error=Fenced,
    condition=equal(Field("grant", "boot"), Field("host", "boot")),
    says="the host was reset since it asked",
)
GRANT_IN_TIME = Rule(
    name="grant-in-time",
    error=Fenced,
    condition=before(Now(), Field("grant", "lease_until_ms")),
    says="the grant's lease ended before the key was released",
)
MOVE_IS_CURRENT: Condition = equal(Field("vm", "move_id"), Field("move", "move_id"))
GRANT_STILL_HELD = Rule(
    name="grant-still-held",
    error=Fenced,
    condition=AnyOf(
        (
            AllOf(
                (
                    equal(Field("grant", "purpose"), Literal(Purpose.RUN)),
                    equal(Field("vm", "owner"), Field("grant", "host_id")),
                    equal(Field("vm", "grant_epoch"), Field("grant", "grant_epoch")),
                )
            ),
            AllOf(
                (
                    equal(Field("grant", "purpose"), Literal(Purpose.PREPARE)),
                    equal(Field("grant", "move_id"), Field("move", "move_id")),
                    MOVE_IS_CURRENT,
                    equal(Field("move", "phase"), Literal(MovePhase.PREPARED)),
                    equal(Field("move", "destination"), Field("grant", "host_id")),
                    equal(Field("vm", "grant_epoch"), Field("grant", "grant_epoch")),
                    before(Now(), Field("move", "expires_ms")),
                )
            ),
            AllOf(
                (
                    equal(Field("grant", "purpose"), Literal(Purpose.SHARE)),
                    equal(Field("vm", "sharing"), Literal(Sharing.SHARED)),
                )
            ),
        )
    ),
    says="the grant was replaced, given back, or its move is over",
)
GRANT_CURRENT = (
    GRANT_OF_ASKER,
    *VM_USABLE,
    *release_policy.RULES,
    GRANT_EPOCHS_CURRENT,
    GRANT_KEY_CURRENT,
    GRANT_SAME_BOOT,
    GRANT_IN_TIME,
    GRANT_STILL_HELD,
)
RELEASABLE = (*STANDING, *GRANT_CURRENT)
"""What must hold when a key leaves, and before the KMS is asked again for the same grant."""
NOT_YET_RELEASED = Rule(
    name="not-yet-released",
    error=Fenced,
    condition=equal(Field("grant", "phase"), Literal(GrantPhase.AUTHORISED)),
    says="the grant's outcome is recorded already",
)
