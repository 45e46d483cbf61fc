"""Situations of a small cluster: databases, acceptable requests, and every change of one column."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import reduce
from typing import Any

from hypothesis import strategies as st

from support.placement_database import (
    BOOT,
    CLUSTER,
    HOUR_MS,
    NOW_MS,
    OTHER_BOOT,
    OTHER_CLUSTER,
    OTHER_VM,
    VM,
    A,
    B,
    Database,
    good,
    name,
    pure_step,
)
from trustauthority.model.identifiers import HostId, VmId
from trustauthority.model.placement import (
    UNLIMITED_MS,
    BreakGlass,
    GrantPhase,
    Intent,
    KeyState,
    MovePhase,
    Purpose,
    Sharing,
    VmState,
)
from trustauthority.model.releasepolicy import ReleasePolicyRecord
from trustauthority.model.requests import (
    AbortRequest,
    BreakGlassConfirmRequest,
    BreakGlassRenewRequest,
    BreakGlassRequest,
    ConfirmRequest,
    FailRequest,
    GiveBackRequest,
    GrantRequest,
    OfferRequest,
    PrepareRequest,
    RenewRequest,
    Request,
    RevokeAllRequest,
    RevokeRequest,
    ShareRequest,
    SwitchRequest,
)
from trustauthority.placement.authority import Accepted
from trustauthority.placement.condition import hour_of_week

R1, R2, R3, M1, M2, I1, G1 = (name(text) for text in ("r1", "r2", "r3", "m1", "m2", "i1", "g1"))
EPOCH = 6
"""The VM's grant epoch once A got it."""
GRANT_A = GrantRequest(request_id=R1, vm_id=VM, host_id=A)
GRANT_B = GrantRequest(request_id=R2, vm_id=VM, host_id=B)
CONFIRM_A = ConfirmRequest(request_id=R1, vm_id=VM, host_id=A, response_hash=bytes(32))
CONFIRM_B = ConfirmRequest(request_id=R2, vm_id=VM, host_id=B, response_hash=bytes(32))
FAIL_A = FailRequest(request_id=R1, vm_id=VM, host_id=A)
RENEW_A = RenewRequest(request_id=R3, vm_id=VM, host_id=A, grant_epoch=EPOCH)
RETURN_A = GiveBackRequest(request_id=R3, vm_id=VM, host_id=A, grant_epoch=EPOCH)
OFFER_A = OfferRequest(move_id=M1, vm_id=VM, host_id=A, grant_epoch=EPOCH, destination=B)
PREPARE_B = PrepareRequest(request_id=R2, move_id=M1, vm_id=VM, host_id=B)
SWITCH_A = SwitchRequest(move_id=M1, vm_id=VM, host_id=A)
ABORT_A = AbortRequest(move_id=M1, vm_id=VM, host_id=A)
ABORT_B = AbortRequest(move_id=M1, vm_id=VM, host_id=B)
ABORT_M2 = AbortRequest(move_id=M2, vm_id=VM, host_id=A)
SHARE_A = ShareRequest(request_id=R1, vm_id=VM, host_id=A)
SHARE_B = ShareRequest(request_id=R2, vm_id=VM, host_id=B)
GLASS_A = BreakGlassRequest(request_id=R1, vm_id=VM, host_id=A)
GLASS_CONFIRM_A = BreakGlassConfirmRequest(
    request_id=R1, vm_id=VM, host_id=A, response_hash=bytes(32)
)
GLASS_RENEW_A = BreakGlassRenewRequest(request_id=R3, vm_id=VM, host_id=A, grant_epoch=EPOCH)
REVOKE_A, REVOKE_ALL = RevokeRequest(host_id=A), RevokeAllRequest()


def after(*requests: Request, start: Database | None = None) -> Database:
    """The database after these requests, each of which is accepted."""
    database = start or good()
    for request in requests:
        database, outcome = pure_step(database, request, NOW_MS)
        assert isinstance(outcome, Accepted), (request, outcome)
    return database


def _with_intent() -> Database:
    intent = Intent(intent_id=I1, vm_id=VM, destination=B, expires_ms=NOW_MS + 60_000)
    return replace(good(), intents={I1: intent})


def _shared() -> Database:
    """A secret that any host of the cluster may hold, and that several do."""
    free = good()
    shared = replace(
        free.vms[VM], sharing=Sharing.SHARED, any_host_of_cluster=True, last_owner=None
    )
    return replace(free, vms={**free.vms, VM: shared})


def _failed_with_glass() -> Database:
    """Host A's newest verdict is FAILED under an older policy, and a break-glass is open for it."""
    free = good()
    failed = replace(free.hosts[A], attested_until_ms=0, verdict_policy_epoch=6)
    glass = BreakGlass(glass_id=G1, vm_id=VM, host_id=A, expires_ms=NOW_MS + 2_000)
    return replace(free, hosts={**free.hosts, A: failed}, glasses={G1: glass})


def _limited(start: Database) -> Database:
    """The VM has a release policy, and both hosts meet every limit of it."""
    policy = ReleasePolicyRecord(
        vm_id=VM,
        version=2,
        clusters=",lab,prod,",
        host_classes=",r640,r650,",
        regions=",eu,us,",
        hours=f",{hour_of_week(NOW_MS)},",
        max_evidence_age_ms=1_000,
        variants_firmware=",f0,f1,",
        variants_kernel=",k1,",
    )
    vm = replace(start.vms[VM], policy_version=2)
    return replace(start, policies={VM: policy}, vms={**start.vms, VM: vm})


def _intents(*expire_ms: int, used: int | None = None) -> Database:
    """Several intents of one VM and host, one of them used."""
    made = {}
    for place, at in enumerate(expire_ms):
        key = name(f"intent-{place}")
        used_by = R1 if place == used else None
        made[key] = Intent(intent_id=key, vm_id=VM, destination=B, expires_ms=at, used_by=used_by)
    return replace(good(), intents=made)


def _intents_of_others() -> Database:
    """Newer intents that place the VM elsewhere, and another VM here."""
    own = _intents(NOW_MS + 1).intents[name("intent-0")]
    elsewhere = replace(own, intent_id=name("intent-1"), destination=A, expires_ms=NOW_MS + 9)
    another = replace(own, intent_id=name("intent-2"), vm_id=OTHER_VM, expires_ms=NOW_MS + 9)
    free = replace(good().vms[VM], last_owner=None)
    intents = {each.intent_id: each for each in (own, elsewhere, another)}
    return replace(good(), intents=intents, vms={**good().vms, VM: free})


def _capped(base: Database, *, authorised_ms: int = NOW_MS, **caps: int) -> Database:
    clusters = {key: replace(row, **caps) for key, row in base.clusters.items()}
    return replace(base, clusters=clusters, authorised_ms=dict.fromkeys(base.grants, authorised_ms))


def edges() -> dict[str, Database]:
    """Databases where one row more or less, or a millisecond, makes another answer."""
    granted = after(GRANT_A)
    soon, later, gone = NOW_MS + 1, NOW_MS + 60_000, NOW_MS
    return {
        "host-owns-one": _capped(good(), live_grants_cap=1),
        "host-owns-both": _capped(granted, live_grants_cap=1),
        "host-owns-both-of-two": _capped(granted, live_grants_cap=2),
        "asked-an-hour-ago": _capped(granted, authorised_ms=NOW_MS - HOUR_MS, new_grants_cap=1),
        "asked-within-the-hour": _capped(
            granted, authorised_ms=NOW_MS - HOUR_MS + 1, new_grants_cap=1
        ),
        "intent-stands-for-a-moment": _intents(soon),
        "intent-expired-now": _intents(gone),
        "newer-intent-stands": _intents(gone, soon),
        "older-row-stands": _intents(soon, gone),
        "newest-intent-used": _intents(soon, later, used=1),
        "only-intent-used": _intents(later, used=0),
        "newer-intents-of-others": _intents_of_others(),
        "lease-unlimited": replace(
            good(), vms={VM: replace(good().vms[VM], lease_ms=UNLIMITED_MS)}
        ),
        "lease-almost-unlimited": replace(
            good(), vms={VM: replace(good().vms[VM], lease_ms=UNLIMITED_MS - 1)}
        ),
    }


SCENARIOS: dict[str, Database] = {
    "limited": _limited(good()),
    "limited-granted": after(GRANT_A, start=_limited(good())),
    "limited-offered": after(GRANT_A, OFFER_A, start=_limited(good())),
    "limited-glass": _limited(_failed_with_glass()),
    "limited-glass-used": after(GLASS_A, start=_limited(_failed_with_glass())),
    "limited-shared": _limited(_shared()),
    "shared": _shared(),
    "shared-by-a": after(SHARE_A, start=_shared()),
    "shared-by-both": after(SHARE_A, SHARE_B, start=_shared()),
    "glass": _failed_with_glass(),
    "glass-used": after(GLASS_A, start=_failed_with_glass()),
    "glass-confirmed": after(GLASS_A, GLASS_CONFIRM_A, start=_failed_with_glass()),
    "free": good(),
    "intended": _with_intent(),
    "granted": after(GRANT_A),
    "granted-by-intent": after(GRANT_B, start=_with_intent()),
    "released": after(GRANT_A, CONFIRM_A),
    "failed": after(GRANT_A, FAIL_A),
    "given-back": after(GRANT_A, RETURN_A),
    "offered": after(GRANT_A, OFFER_A),
    "prepared": after(GRANT_A, OFFER_A, PREPARE_B),
    "confirmed": after(GRANT_A, OFFER_A, PREPARE_B, CONFIRM_B),
    "switched": after(GRANT_A, OFFER_A, PREPARE_B, CONFIRM_B, SWITCH_A),
    "aborted": after(GRANT_A, OFFER_A, PREPARE_B, ABORT_A),
    "never-offered": after(GRANT_A, ABORT_M2),
    "revoked": after(GRANT_A, REVOKE_A, REVOKE_ALL),
}

ACCEPTED: list[tuple[str, Request, str]] = [
    ("limited", GRANT_A, "grant"),
    ("limited-granted", GRANT_A, "grant-replay"),
    ("limited-granted", CONFIRM_A, "confirm"),
    ("limited-offered", PREPARE_B, "prepare"),
    ("limited-glass", GLASS_A, "break-glass"),
    ("limited-glass-used", GLASS_A, "break-glass-replay"),
    ("limited-glass-used", GLASS_CONFIRM_A, "break-glass-confirm"),
    ("limited-shared", SHARE_A, "share"),
    ("shared", SHARE_A, "share"),
    ("shared-by-a", SHARE_B, "share"),
    ("shared-by-a", SHARE_A, "grant-replay"),
    ("shared-by-both", CONFIRM_B, "confirm"),
    ("glass", GLASS_A, "break-glass"),
    ("glass-used", GLASS_A, "break-glass-replay"),
    ("glass-used", GLASS_CONFIRM_A, "break-glass-confirm"),
    ("glass-confirmed", GLASS_RENEW_A, "break-glass-renew"),
    ("free", GRANT_A, "grant"),
    ("intended", GRANT_B, "grant"),
    ("granted", GRANT_A, "grant-replay"),
    ("released", GRANT_A, "grant-replay"),
    ("prepared", PREPARE_B, "grant-replay"),
    ("granted", CONFIRM_A, "confirm"),
    ("prepared", CONFIRM_B, "confirm"),
    ("granted", FAIL_A, "fail"),
    ("granted", RENEW_A, "renew"),
    ("granted", RETURN_A, "give-back"),
    ("prepared", RETURN_A, "give-back"),
    ("given-back", RETURN_A, "give-back-replay"),
    ("granted", OFFER_A, "offer"),
    ("aborted", replace(OFFER_A, move_id=M2), "offer"),
    ("offered", OFFER_A, "offer-replay"),
    ("offered", PREPARE_B, "prepare"),
    ("confirmed", SWITCH_A, "switch"),
    ("switched", SWITCH_A, "switch-replay"),
    ("offered", ABORT_A, "abort"),
    ("prepared", ABORT_B, "abort"),
    ("granted", ABORT_M2, "abort-unknown"),
    ("aborted", ABORT_A, "abort-replay"),
    ("free", REVOKE_A, "revoke"),
    ("free", REVOKE_ALL, "revoke-all"),
]


# --- what may differ between rows ----------------------------------------------------------------

TIMES = (0, NOW_MS - 1, NOW_MS, NOW_MS + 1, NOW_MS + 50_000)
DOMAINS: dict[str, tuple[Any, ...]] = {
    "global_epoch": (1, 3),
    "policy_epoch": (6, 8),
    "trust_epoch": (3, 5),
    "verdict_trust_epoch": (3, 5),
    "verdict_policy_epoch": (6, 8),
    "verdict_global_epoch": (1, 3),
    "key_epoch": (0, 2),
    "grant_epoch": (4, 5, 6, 7, 2**62),
    "may_hold_keys": (False,),
    "live_grants_cap": (0, 1, 2),
    "new_grants_cap": (0, 1, 2),
    "admitted": (False,),
    "revoked": (True,),
    "draining": (True,),
    "warned": (True,),
    "warned_hosts_take": (False, True),
    "any_host_of_cluster": (True, False),
    "sharing": tuple(Sharing),
    "boot": (BOOT, OTHER_BOOT, b""),
    "owner_boot": (BOOT, OTHER_BOOT, b""),
    "prepared_boot": (BOOT, OTHER_BOOT, None),
    "cluster_id": (CLUSTER, OTHER_CLUSTER),
    "state": tuple(VmState),
    "key_state": tuple(KeyState),
    "lease_ms": (1, UNLIMITED_MS),
    "continue_for_ms": (0, 500),
    "owner": (A, B, "h-x", None),
    "last_owner": (A, B, None),
    "move_id": (M1, M2, None),
    "used_by": (R1, None),
    "destination": (A, B),
    "source": (A, B),
    "host_id": (A, B),
    "vm_id": (VM, OTHER_VM),
    "purpose": tuple(Purpose),
    "response_hash": (None, bytes(32)),
    "replays": (0, 7),
    "version": (1, 2),
    "policy_version": (0, 1, 2),
    "clusters": ("", ",lab,", ",prod,"),
    "host_classes": ("", ",r640,"),
    "regions": ("", ",us,", ",eu"),
    "hours": ("", ",h0,", f",{hour_of_week(NOW_MS)},"),
    "max_evidence_age_ms": (0, 999, 1_000),
    "variants_firmware": ("", ",f0,"),
    "variants_kernel": (",k2,", ",k1,k2,"),
    "variants_command_line": (",c1,",),
    "host_class": ("", "r640", "r65"),
    "region": ("", "us", "e"),
    "variant_firmware": ("", "f0", "f"),
    "variant_kernel": ("", "k1,k2"),
    "variant_command_line": ("c1",),
}
PHASES = {"grants": tuple(GrantPhase), "moves": tuple(MovePhase)}
KEYS = {
    "clusters": "cluster_id",
    "hosts": "host_id",
    "vms": "vm_id",
    "intents": "intent_id",
    "grants": "request_id",
    "moves": "move_id",
    "glasses": "glass_id",
    "policies": "vm_id",
}


@dataclass(frozen=True)
class Change:
    """One column of one row with another value."""

    rows: str
    key: str
    column: str
    value: Any

    def apply(self, database: Database) -> Database:
        """The database with it; the same where there is no such row."""
        if self.rows == "authority":
            row = replace(database.authority, **{self.column: self.value})
            return replace(database, authority=row)
        rows = getattr(database, self.rows)
        if self.key not in rows:
            return database
        changed = replace(rows[self.key], **{self.column: self.value})
        return replace(database, **{self.rows: {**rows, self.key: changed}})


def _values(rows: str, column: str) -> tuple[Any, ...]:
    if column == "phase":
        return PHASES[rows]
    if column in DOMAINS:
        return DOMAINS[column]
    return TIMES if column.endswith("_ms") and column not in ("skew_ms", "offer_ms") else ()


def _changes() -> list[Change]:
    """Every change of one column of a row that any scenario has."""
    found: dict[tuple[str, str, str, str], Change] = {}
    for database in SCENARIOS.values():
        named = {"authority": {"": database.authority}}
        for rows in (*named, *KEYS):
            for key, row in (named.get(rows) or getattr(database, rows)).items():
                for column in (each.name for each in fields(row)):
                    if column == KEYS.get(rows):
                        continue
                    for value in _values(rows, column):
                        found[rows, key, column, repr(value)] = Change(rows, key, column, value)
    return list(found.values())


CHANGES = _changes()
REQUESTS = [request for _, request, _ in ACCEPTED]


def requests() -> st.SearchStrategy[Request]:
    """Requests that were seen, with one field or two from somewhere else."""
    others: dict[str, st.SearchStrategy[Any]] = {
        "request_id": st.sampled_from([R1, R2, R3]),
        "move_id": st.sampled_from([M1, M2]),
        "vm_id": st.sampled_from([VM, OTHER_VM, VmId("nothing")]),
        "host_id": st.sampled_from([A, B]),
        "destination": st.sampled_from([A, B, HostId("h-x")]),
        "grant_epoch": st.sampled_from([0, 5, 6, 7, 2**63 - 1, 2**63, 2**64 - 1]),
        "response_hash": st.just(bytes(32)),
    }

    @st.composite
    def draw_request(draw: Callable[..., Any]) -> Request:
        request = draw(st.sampled_from(REQUESTS))
        names = [each.name for each in fields(request)]
        if not names or draw(st.integers(0, 2)):
            return request
        changed = draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True))
        return replace(request, **{each: draw(others[each]) for each in changed})

    return draw_request()


DATABASES = st.builds(
    lambda base, changes: reduce(lambda found, each: each.apply(found), changes, SCENARIOS[base]),
    st.sampled_from(sorted(SCENARIOS)),
    st.lists(st.sampled_from(CHANGES), max_size=3),
)
