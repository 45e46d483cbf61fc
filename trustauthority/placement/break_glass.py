"""Break-glass: one host gets one VM once, whatever its verdict says; everything else still holds.

What it is: rules and transitions as data, apart from all others, so that no ordinary decision has a
way round the verdict in it. What it trusts: nothing. What it guarantees: the host is enrolled, ours, not revoked,
and quoted a minute ago; no other host holds the VM; the break-glass names this VM and host, is open,
and lets one request through; no lease under it outlasts it. What it does not do: evaluate, or say
who may open one. A second person's approval would be one more rule in ``GLASS_OPEN``.
Source: issue 5 (c); docs/reference/errors.md.
"""

from trustauthority.errors import BreakGlassOver, QuoteTooOld
from trustauthority.model.placement import GrantPhase, Purpose
from trustauthority.placement import release_policy, rules
from trustauthority.placement.condition import (
    Absent,
    AllOf,
    Asked,
    Field,
    Largest,
    Literal,
    Now,
    Rule,
    Smallest,
    Sum,
    Term,
    Transition,
    Write,
    WriteKind,
)
from trustauthority.placement.rules import before, equal, reached

FRESH_MS = 60_000
"""How old the quote may be. Fixed: the policy may be what broke."""

GLASS_OPEN = Rule(
    name="break-glass-open",
    error=BreakGlassOver,
    condition=AllOf(
        (
            equal(Field("glass", "vm_id"), Field("vm", "vm_id")),
            equal(Field("glass", "host_id"), Field("host", "host_id")),
            equal(Field("glass", "host_id"), Asked("host_id")),
            equal(Field("glass", "closed_at_ms"), Literal(0)),
            before(Now(), Field("glass", "expires_ms")),
        )
    ),
    says="no break-glass for this VM and host is open",
)
GLASS_UNUSED = Rule(
    name="break-glass-unused",
    error=BreakGlassOver,
    condition=Absent(Field("glass", "used_by")),
    says="the break-glass let a request through already",
)
GLASS_OF_GRANT = Rule(
    name="break-glass-of-grant",
    error=BreakGlassOver,
    condition=equal(Field("glass", "used_by"), Field("grant", "request_id")),
    says="the break-glass let another request through",
)
GLASS_OF_EPOCH = Rule(
    name="break-glass-of-epoch",
    error=BreakGlassOver,
    condition=AllOf(
        (
            equal(Field("glass", "grant_epoch"), Asked("grant_epoch")),
            equal(Field("glass", "grant_epoch"), Field("vm", "grant_epoch")),
        )
    ),
    says="the host holds the VM by another grant than that of the break-glass",
)
QUOTED_LATELY = Rule(
    name="quoted-lately",
    error=QuoteTooOld,
    condition=reached(Now(), Sum((Field("host", "challenged_at_ms"), Literal(FRESH_MS)))),
    says="the host showed no genuine quote within the last minute; attest and repeat",
)
QUOTE_NEW_ENOUGH = Rule(
    name="quote-new-enough",
    error=QuoteTooOld,
    condition=AllOf(
        (
            reached(Field("host", "no_report_before_ms"), Field("host", "challenged_at_ms")),
            reached(Field("authority", "no_report_before_ms"), Field("host", "challenged_at_ms")),
        )
    ),
    says="the host's evidence is older than an administrator accepts",
)
STANDING_WITHOUT_VERDICT = (
    rules.CLOCK_FORWARD,
    rules.HOST_ADMITTED,
    rules.HOST_NOT_REVOKED,
    rules.GLOBAL_EPOCH_CURRENT,
    rules.TRUST_EPOCH_CURRENT,
    QUOTE_NEW_ENOUGH,
)
"""``rules.STANDING`` without what a policy decides: the verdict and the policy it was reached under."""

_LEASE_END: Term = Smallest(Sum((Now(), Field("vm", "lease_ms"))), Field("glass", "expires_ms"))
_FENCE_END: Term = Largest(
    Field("vm", "fence_until_ms"),
    Sum((_LEASE_END, Field("vm", "continue_for_ms"), Field("vm", "skew_ms"))),
)
_NEXT_EPOCH: Term = Sum((Field("vm", "grant_epoch"), Literal(1)))

BREAK_GLASS = Transition(
    name="break-glass",
    rules=(
        *STANDING_WITHOUT_VERDICT,
        QUOTED_LATELY,
        GLASS_OPEN,
        GLASS_UNUSED,
        *rules.OWNABLE,
        *release_policy.RULES,
        rules.CLEAR_OF_OTHERS,
        rules.NOT_DRAINING,
        rules.LIVE_CAP,
        rules.NEW_CAP,
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
                ("move_id", Literal(None)),
                ("move_until_ms", Literal(0)),
            ),
        ),
        Write(
            record="grant",
            kind=WriteKind.INSERT,
            values=(
                ("request_id", Asked("request_id")),
                ("vm_id", Asked("vm_id")),
                ("host_id", Asked("host_id")),
                ("key_epoch", Field("vm", "key_epoch")),
                ("trust_epoch", Field("host", "trust_epoch")),
                ("policy_epoch", Field("cluster", "policy_epoch")),
                ("global_epoch", Field("authority", "global_epoch")),
                ("boot", Field("host", "boot")),
                ("phase", Literal(GrantPhase.AUTHORISED)),
                ("purpose", Literal(Purpose.RUN)),
                ("grant_epoch", _NEXT_EPOCH),
                ("lease_until_ms", _LEASE_END),
            ),
        ),
        Write(
            record="glass",
            values=(("used_by", Asked("request_id")), ("grant_epoch", _NEXT_EPOCH)),
        ),
    ),
    audit="grant.by-break-glass",
)
BREAK_GLASS_REPLAY = Transition(
    name="break-glass-replay",
    rules=(
        *STANDING_WITHOUT_VERDICT,
        QUOTED_LATELY,
        GLASS_OPEN,
        GLASS_OF_GRANT,
        *rules.GRANT_CURRENT,
    ),
    writes=(
        Write(record="grant", values=(("replays", Sum((Field("grant", "replays"), Literal(1)))),)),
    ),
    audit="grant.replayed",
)
BREAK_GLASS_CONFIRM = Transition(
    name="break-glass-confirm",
    rules=(
        *STANDING_WITHOUT_VERDICT,
        GLASS_OPEN,
        GLASS_OF_GRANT,
        *rules.GRANT_CURRENT,
    ),
    writes=(
        Write(
            record="grant",
            values=(
                ("phase", Literal(GrantPhase.RELEASED)),
                ("response_hash", Asked("response_hash")),
            ),
        ),
    ),
    audit="grant.released-by-break-glass",
)
BREAK_GLASS_RENEW = Transition(
    name="break-glass-renew",
    rules=(
        *STANDING_WITHOUT_VERDICT,
        GLASS_OPEN,
        GLASS_OF_EPOCH,
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
    audit="lease.renewed-by-break-glass",
)
TRANSITIONS = (BREAK_GLASS, BREAK_GLASS_REPLAY, BREAK_GLASS_CONFIRM, BREAK_GLASS_RENEW)
