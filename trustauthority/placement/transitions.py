"""The table of decisions: for each, its rules, its writes and the action of its audit row.

What it is: data over ``placement.rules``. What it trusts: nothing. What it guarantees: grant epochs
and fences only grow, except that giving back clears the fence; each request id or move id is
inserted once. What it does not do: evaluate. Source: design 6.3-6.6.
"""

from trustauthority.model.placement import NO_FENCE_MS, GrantPhase, MovePhase, Purpose
from trustauthority.placement import move_rules, release_policy, rules
from trustauthority.placement.break_glass import TRANSITIONS as BREAK_GLASS_TRANSITIONS
from trustauthority.placement.condition import (
    Asked,
    Field,
    Largest,
    Literal,
    Now,
    Sum,
    Term,
    Transition,
    Write,
    WriteKind,
)

_NEXT_EPOCH: Term = Sum((Field("vm", "grant_epoch"), Literal(1)))
_LEASE_END: Term = Sum((Now(), Field("vm", "lease_ms")))
_FENCE_END: Term = Largest(
    Field("vm", "fence_until_ms"),
    Sum(
        (
            Now(),
            Field("vm", "lease_ms"),
            Field("vm", "continue_for_ms"),
            Field("vm", "skew_ms"),
        )
    ),
)
_NO_MOVE: tuple[tuple[str, Term], ...] = (("move_id", Literal(None)), ("move_until_ms", Literal(0)))
_STANDING_OF_GRANT: tuple[tuple[str, Term], ...] = (
    ("request_id", Asked("request_id")),
    ("vm_id", Asked("vm_id")),
    ("host_id", Asked("host_id")),
    ("key_epoch", Field("vm", "key_epoch")),
    ("trust_epoch", Field("host", "trust_epoch")),
    ("policy_epoch", Field("cluster", "policy_epoch")),
    ("global_epoch", Field("authority", "global_epoch")),
    ("boot", Field("host", "boot")),
    ("phase", Literal(GrantPhase.AUTHORISED)),
)
_GRANT_REPLAYED = Write(
    record="grant", values=(("replays", Sum((Field("grant", "replays"), Literal(1)))),)
)
_MOVE_REPLAYED = Write(
    record="move", values=(("replays", Sum((Field("move", "replays"), Literal(1)))),)
)

GRANT = Transition(
    name="grant",
    rules=(
        *rules.STANDING,
        *rules.OWNABLE,
        *release_policy.RULES,
        rules.REASON,
        rules.CLEAR_OF_OTHERS,
        *rules.TAKES_VMS,
    ),
    writes=(
        Write(
            record="vm",
            values=(
                ("owner", Asked("host_id")),
                ("last_owner", Asked("host_id")),
                ("owner_boot", Field("host", "boot")),
                ("grant_epoch", _NEXT_EPOCH),
                ("lease_until_ms", _LEASE_END),
                ("fence_until_ms", _FENCE_END),
                *_NO_MOVE,
            ),
        ),
        Write(
            record="grant",
            kind=WriteKind.INSERT,
            values=(
                *_STANDING_OF_GRANT,
                ("purpose", Literal(Purpose.RUN)),
                ("grant_epoch", _NEXT_EPOCH),
                ("lease_until_ms", _LEASE_END),
            ),
        ),
        Write(
            record="intent",
            values=(("used_by", Asked("request_id")),),
            when=rules.INTENT_STANDS,
        ),
    ),
    audit="grant.authorised",
)
SHARE = Transition(
    name="share",
    rules=(
        *rules.STANDING,
        *rules.VM_USABLE,
        rules.VM_SHARED,
        *release_policy.RULES,
        rules.REASON,
        rules.NEW_CAP,
    ),
    writes=(
        Write(
            record="grant",
            kind=WriteKind.INSERT,
            values=(
                *_STANDING_OF_GRANT,
                ("purpose", Literal(Purpose.SHARE)),
                ("grant_epoch", Field("vm", "grant_epoch")),
                ("lease_until_ms", _LEASE_END),
            ),
        ),
        Write(
            record="intent",
            values=(("used_by", Asked("request_id")),),
            when=rules.INTENT_STANDS,
        ),
    ),
    audit="grant.shared",
)
"""A shared secret has no owner, epoch or fence to write: only the grant with its lease."""
GRANT_REPLAY = Transition(
    name="grant-replay",
    rules=rules.RELEASABLE,
    writes=(_GRANT_REPLAYED,),
    audit="grant.replayed",
)
CONFIRM = Transition(
    name="confirm",
    rules=rules.RELEASABLE,
    writes=(
        Write(
            record="grant",
            values=(
                ("phase", Literal(GrantPhase.RELEASED)),
                ("response_hash", Asked("response_hash")),
            ),
        ),
    ),
    audit="grant.released",
)
FAIL = Transition(
    name="fail",
    rules=(rules.GRANT_OF_ASKER, rules.NOT_YET_RELEASED),
    writes=(Write(record="grant", values=(("phase", Literal(GrantPhase.FAILED)),)),),
    audit="grant.failed",
)
RENEW = Transition(
    name="renew",
    rules=(
        *rules.STANDING,
        *rules.OWNABLE,
        rules.ASKER_OWNS,
        rules.EPOCH_CURRENT,
        rules.SAME_BOOT,
    ),
    writes=(
        Write(
            record="vm",
            values=(("lease_until_ms", _LEASE_END), ("fence_until_ms", _FENCE_END)),
        ),
    ),
    audit="lease.renewed",
)
GIVE_BACK = Transition(
    name="give-back",
    rules=(rules.ASKER_OWNS, rules.EPOCH_CURRENT),
    writes=(
        Write(
            record="vm",
            values=(
                ("owner", Literal(None)),
                ("lease_until_ms", Literal(0)),
                ("fence_until_ms", Literal(NO_FENCE_MS)),
                *_NO_MOVE,
            ),
        ),
    ),
    audit="grant.given-back",
)
GIVE_BACK_REPLAY = Transition(
    name="give-back-replay",
    rules=(rules.EPOCH_CURRENT,),
    writes=(),
    audit="grant.given-back",
)
OFFER = Transition(
    name="offer",
    rules=(
        rules.CLOCK_FORWARD,
        rules.HOST_ADMITTED,
        rules.HOST_NOT_REVOKED,
        *rules.OWNABLE,
        rules.ASKER_OWNS,
        rules.EPOCH_CURRENT,
        rules.SAME_BOOT,
        move_rules.ANOTHER_DESTINATION,
        move_rules.NO_OTHER_MOVE,
    ),
    writes=(
        Write(
            record="vm",
            values=(
                ("move_id", Asked("move_id")),
                ("move_until_ms", Sum((Now(), Field("cluster", "offer_ms")))),
            ),
        ),
        Write(
            record="move",
            kind=WriteKind.INSERT,
            values=(
                ("move_id", Asked("move_id")),
                ("vm_id", Asked("vm_id")),
                ("source", Asked("host_id")),
                ("destination", Asked("destination")),
                ("grant_epoch", Asked("grant_epoch")),
                ("expires_ms", Sum((Now(), Field("cluster", "offer_ms")))),
                ("phase", Literal(MovePhase.OFFERED)),
            ),
        ),
    ),
    audit="move.offered",
)
OFFER_REPLAY = Transition(
    name="offer-replay",
    rules=(
        move_rules.MOVE_OF_VM,
        move_rules.SOURCE_ASKS,
        move_rules.MOVE_CURRENT,
        move_rules.MOVE_OPEN,
    ),
    writes=(_MOVE_REPLAYED,),
    audit="move.offered",
)
PREPARE = Transition(
    name="prepare",
    rules=(
        *rules.STANDING,
        *rules.OWNABLE,
        *release_policy.RULES,
        move_rules.MOVE_OF_VM,
        move_rules.OFFERED_TO_HOST,
        move_rules.MOVE_CURRENT,
        move_rules.MOVE_IN_TIME,
        *rules.TAKES_VMS,
    ),
    writes=(
        Write(
            record="move",
            values=(
                ("phase", Literal(MovePhase.PREPARED)),
                ("prepared_boot", Field("host", "boot")),
                ("expires_ms", Sum((Now(), Field("cluster", "prepare_for_ms")))),
            ),
        ),
        Write(
            record="vm",
            values=(("move_until_ms", Sum((Now(), Field("cluster", "prepare_for_ms")))),),
        ),
        Write(
            record="grant",
            kind=WriteKind.INSERT,
            values=(
                *_STANDING_OF_GRANT,
                ("purpose", Literal(Purpose.PREPARE)),
                ("move_id", Asked("move_id")),
                ("grant_epoch", Field("vm", "grant_epoch")),
                ("lease_until_ms", Sum((Now(), Field("cluster", "prepare_for_ms")))),
            ),
        ),
    ),
    audit="move.prepared",
)
SWITCH = Transition(
    name="switch",
    rules=(
        *rules.STANDING,
        *rules.OWNABLE,
        move_rules.MOVE_OF_VM,
        move_rules.SOURCE_ASKS,
        move_rules.MOVE_CURRENT,
        move_rules.DESTINATION_PREPARED,
        move_rules.MOVE_IN_TIME,
    ),
    writes=(
        Write(
            record="vm",
            values=(
                ("owner", Field("move", "destination")),
                ("last_owner", Field("move", "destination")),
                ("owner_boot", Field("host", "boot")),
                ("grant_epoch", _NEXT_EPOCH),
                ("lease_until_ms", _LEASE_END),
                ("fence_until_ms", _FENCE_END),
                *_NO_MOVE,
            ),
        ),
        Write(record="move", values=(("phase", Literal(MovePhase.SWITCHED)),)),
    ),
    audit="move.switched",
)
SWITCH_REPLAY = Transition(
    name="switch-replay",
    rules=(move_rules.MOVE_OF_VM, move_rules.PARTY_ASKS),
    writes=(_MOVE_REPLAYED,),
    audit="move.switched",
)
ABORT = Transition(
    name="abort",
    rules=(move_rules.MOVE_OF_VM, move_rules.PARTY_ASKS, move_rules.MOVE_OPEN),
    writes=(
        Write(record="move", values=(("phase", Literal(MovePhase.ABORTED)),)),
        Write(record="vm", values=_NO_MOVE, when=rules.MOVE_IS_CURRENT),
    ),
    audit="move.aborted",
)
ABORT_UNKNOWN = Transition(
    name="abort-unknown",
    rules=(rules.VM_OF_CLUSTER, rules.ASKER_OWNS),
    writes=(
        Write(
            record="move",
            kind=WriteKind.INSERT,
            values=(
                ("move_id", Asked("move_id")),
                ("vm_id", Asked("vm_id")),
                ("source", Asked("host_id")),
                ("destination", Asked("host_id")),
                ("grant_epoch", Field("vm", "grant_epoch")),
                ("expires_ms", Now()),
                ("phase", Literal(MovePhase.ABORTED)),
            ),
        ),
    ),
    audit="move.aborted",
)
"""The owner aborts what was never offered, as far as we know: the offer may still arrive, and must
find its id used up. Without this row the owner could never read an outcome (found by the checker)."""
ABORT_REPLAY = Transition(
    name="abort-replay",
    rules=(move_rules.MOVE_OF_VM, move_rules.PARTY_ASKS),
    writes=(_MOVE_REPLAYED,),
    audit="move.aborted",
)
REVOKE = Transition(
    name="revoke",
    rules=(),
    writes=(
        Write(
            record="host",
            values=(
                ("revoked", Literal(value=True)),
                ("trust_epoch", Sum((Field("host", "trust_epoch"), Literal(1)))),
            ),
        ),
    ),
    audit="host.revoked",
)
REVOKE_ALL = Transition(
    name="revoke-all",
    rules=(),
    writes=(
        Write(
            record="authority",
            values=(("global_epoch", Sum((Field("authority", "global_epoch"), Literal(1)))),),
        ),
    ),
    audit="host.all-revoked",
)

TRANSITIONS = (
    *BREAK_GLASS_TRANSITIONS,
    GRANT,
    SHARE,
    GRANT_REPLAY,
    CONFIRM,
    FAIL,
    RENEW,
    GIVE_BACK,
    GIVE_BACK_REPLAY,
    OFFER,
    OFFER_REPLAY,
    PREPARE,
    SWITCH,
    SWITCH_REPLAY,
    ABORT,
    ABORT_UNKNOWN,
    ABORT_REPLAY,
    REVOKE,
    REVOKE_ALL,
)
