"""Bounds of the searches: what may happen in each, and how often; short and large forms."""

from dataclasses import replace

from support.modelcheck import parties
from support.modelcheck.explore import Model, Scenario
from support.modelcheck.parties import Variant
from support.modelcheck.world import CLUSTER, VM, Rows
from trustauthority.model.lease import OnLeaseLoss
from trustauthority.model.placement import (
    AuthorityRecord,
    BreakGlass,
    ClusterRecord,
    Intent,
    VmRecord,
)
from trustauthority.placement.clock import ClockGuard

LEASE, SKEW = 3, 2
"""Ticks. A host destroys one tick after its lease; the fence leaves one more for its slow clock."""


def rows(
    hosts: int, *, skew: int = SKEW, any_host: bool = True, intents: tuple = (), **vm: object
) -> Rows:
    """A protected VM that nobody owns, and attested hosts."""
    return Rows(
        authority=AuthorityRecord(),
        cluster=ClusterRecord(cluster_id=CLUSTER, offer_ms=3, prepare_for_ms=4),
        hosts=tuple(parties.standing(index) for index in range(hosts)),
        vm=VmRecord(
            vm_id=VM,
            cluster_id=CLUSTER,
            lease_ms=LEASE,
            skew_ms=skew,
            any_host_of_cluster=any_host,
            last_owner="h0",
            **vm,
        ),
        guard=ClockGuard(boot_id="b"),
        intents=intents,
    )


def running(hosts: int, *, skew: int = SKEW, **vm: object) -> dict:
    """The same with the VM running on h0, brought there by the product itself at tick 1."""
    start = rows(hosts, skew=skew, **vm)
    model = Model(
        Scenario(name="prefix", hosts=hosts, horizon=1, rows=start, budget={"start0": 1}),
        Variant(check_rights=False),
    )
    world = model.initial()
    for words in ("starts", "request", "transaction 2", "answer"):
        world = next(after for label, after in model.successors(world) if words in label)
    return {
        "rows": model.pool[world.rows],
        "machines": tuple(model.pool[number] for number in world.machines),
    }


def idle(hosts: int, *, skew: int = SKEW, any_host: bool = True, intents: tuple = ()) -> dict:
    """Nobody runs it."""
    return {"rows": rows(hosts, skew=skew, any_host=any_host, intents=intents)}


def choosy(base: dict) -> dict:
    """The same under a policy by which hosts with warnings take nothing new."""
    cluster = replace(base["rows"].cluster, warned_hosts_take=False)
    return {**base, "rows": replace(base["rows"], cluster=cluster)}


def intent_for(host: str, expires: int) -> Intent:
    """A wish of a scheduler."""
    return Intent(intent_id="i1", vm_id=VM, destination=host, expires_ms=expires)


def with_glass(base: dict, host: str, expires: int) -> dict:
    """Verdict FAILED on one host, and a break-glass for it."""
    before = base["rows"]
    hosts = tuple(
        replace(each, attested_until_ms=0) if each.host_id == host else each
        for each in before.hosts
    )
    glass = BreakGlass(glass_id="g1", vm_id=VM, host_id=host, expires_ms=expires)
    return {**base, "rows": replace(before, hosts=hosts, glasses=(glass,))}


def _scenario(name: str, horizon: int, base: dict, hosts: int = 2, **budget: int) -> Scenario:
    return Scenario(name=name, hosts=hosts, horizon=horizon, budget=budget, **base)


def short() -> tuple[Scenario, ...]:
    """Bounds that the suite affords; every search is complete within them."""
    free, owned = idle(2), running(2)
    wish = idle(2, any_host=False, intents=(intent_for("h1", 4),))
    ended = running(2, on_lease_loss=OnLeaseLoss.DESTROY)
    longer = running(2, on_lease_loss=OnLeaseLoss.CONTINUE_FOR, continue_for_ms=2)
    moving = {"offer": 1, "prepare": 1, "hand_over": 1, "claim": 1}
    return (
        _scenario("two want it, one clock lags", 6, free, start0=1, start1=1, lag=1),
        _scenario("two want it, a duplicate", 5, free, start0=1, start1=1, duplicate=1),
        _scenario("two want it, a retry", 5, free, start0=1, start1=1, resend=1),
        _scenario("renewal and slow clock", 9, owned, start1=1, renew=1, lag=1),
        _scenario("destroyed at once, slow clock", 8, ended, start1=1, renew=1, lag=1),
        _scenario("destroyed at once, revoked", 5, ended, start1=1, renew=1, revoke=1, crash=1),
        _scenario("runs on for a while, slow clock", 9, longer, start1=1, lag=1, crash=1),
        _scenario("agent dies, clock lags", 7, owned, start1=1, lag=1, crash=1, renew=1),
        _scenario("shutdown and crash", 3, owned, start1=1, stop=1, duplicate=1, crash=1),
        _scenario(
            "release: revocation, policy, KMS",
            3,
            free,
            start0=1,
            start1=1,
            revoke=1,
            policy=1,
            attest=1,
            kms_fails=1,
        ),
        _scenario(
            "release: retry and revoke all",
            2,
            free,
            start0=2,
            revoke_all=1,
            attest=1,
            resend=1,
            kms_fails=1,
            give_up=1,
        ),
        _scenario("one intent, used once", 4, wish, start0=1, start1=2, stop=1, duplicate=1),
        _scenario("move and abort", 3, owned, **moving, abort=1),
        _scenario("every step once", 1, owned, **moving, abort=1, resend=1),
        _scenario("move, a duplicate", 2, owned, **moving, duplicate=1),
        _scenario("move, a retry", 2, owned, **moving, resend=1),
        _scenario("move, a party dies", 3, owned, **moving, crash=1),
        _scenario("move, a host is revoked", 3, owned, **moving, revoke=1),
        _scenario("move, a host reboots", 3, owned, **moving, reboot=1, attest=1),
        _scenario(
            "two moves with late messages",
            1,
            owned,
            offer=2,
            prepare=2,
            hand_over=1,
            claim=1,
            abort=1,
            duplicate=1,
        ),
        _scenario("move against takeover", 6, owned, offer=1, prepare=1, hand_over=1, start0=1),
        _scenario("the authority's clock steps", 7, owned, start1=1, step=1, renew=1, step_back=1),
        _scenario(
            "break-glass, then the healthy host",
            7,
            with_glass(free, "h0", 4),
            start0=1,
            start1=1,
            lag=1,
            renew=1,
        ),
        _scenario(
            "break-glass against a running VM",
            7,
            with_glass(owned, "h1", 7),
            start1=2,
            renew=1,
            stop=1,
        ),
        _scenario(
            "break-glass: revoked, closed, used twice",
            3,
            with_glass(free, "h0", 3),
            start0=2,
            revoke=1,
            close_glass=1,
            duplicate=1,
            stop=1,
            give_up=1,
        ),
        _scenario("a rogue host asks for a VM as shared", 4, owned, rogue=2, start1=1, stop=1),
        _scenario("drained while moving", 3, owned, **moving, drain=2, start1=1),
        _scenario("warned while moving", 5, choosy(owned), **moving, warn=1, start1=1, start0=1),
        _scenario("reboots", 6, owned, start1=1, start0=1, reboot=1, attest=1),
    )


def large() -> tuple[Scenario, ...]:
    """The same with a duplicate and a crash more, and a third host: hours, and many GiB."""
    grown = []
    for scenario in short():
        budget = dict(scenario.budget)
        for kind in ("duplicate", "crash"):
            budget[kind] = budget.get(kind, 0) + 1
        grown.append(replace(scenario, budget=budget))
    moving = {"offer": 1, "prepare": 1, "hand_over": 1, "claim": 1}
    grown.append(_scenario("three hosts, one moves", 7, running(3), 3, **moving, start2=1))
    grown.append(_scenario("three want it", 7, idle(3), 3, start0=1, start1=1, start2=1))
    return tuple(grown)
