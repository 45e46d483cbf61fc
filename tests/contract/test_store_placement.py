"""The contract of placement: the store decides as the pure core does, by one statement (design 3)."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncConnection
from support.placement_database import (
    CLUSTER,
    HOUR_MS,
    NOW_MS,
    OTHER_BOOT,
    VM,
    A,
    B,
    Database,
    dump,
    fill,
    good,
    pure_step,
    state_of,
)
from support.placement_scenarios import (
    ABORT_A,
    ABORT_B,
    ACCEPTED,
    CHANGES,
    CONFIRM_A,
    DATABASES,
    FAIL_A,
    GRANT_A,
    GRANT_B,
    I1,
    M1,
    M2,
    OFFER_A,
    PREPARE_B,
    R1,
    R3,
    RENEW_A,
    RETURN_A,
    REVOKE_A,
    REVOKE_ALL,
    SCENARIOS,
    SWITCH_A,
    Change,
    after,
    edges,
    requests,
)
from support.stores import ENGINES

from trustauthority.adapters.sql import tables
from trustauthority.adapters.sql.compile import DECISIONS
from trustauthority.adapters.sql.placement import SqlPlacement
from trustauthority.adapters.sql.store import SqlStore
from trustauthority.model.identifiers import HostId, RequestId, VmId
from trustauthority.model.placement import PlacementState
from trustauthority.model.requests import GrantRequest, Request, RevokeRequest
from trustauthority.placement.authority import Accepted, Refused
from trustauthority.placement.condition import Scene, holds
from trustauthority.placement.decide import ADVICE, PlacementQuestion, advise, place
from trustauthority.placement.transitions import TRANSITIONS

Spoil = Callable[[SqlPlacement], Awaitable[None]]


@dataclass(frozen=True)
class Bench:
    """One connection in one transaction that is never committed: a decision costs no disk."""

    runner: asyncio.Runner
    connection: AsyncConnection

    def decide(
        self, database: Database, request: Request, spoil: Spoil | None = None
    ) -> tuple[PlacementState, tuple[str, ...], Database]:
        """Let the store decide; ``spoil`` may tamper with it first."""
        return self.runner.run(self._decide(database, request, spoil))

    async def _decide(
        self, database: Database, request: Request, spoil: Spoil | None
    ) -> tuple[PlacementState, tuple[str, ...], Database]:
        await self.connection.run_sync(fill, database)
        placement = SqlPlacement(self.connection, NOW_MS)
        if spoil is not None:
            await spoil(placement)
        state, failed = await placement.decide(request)
        left = await self.connection.run_sync(dump)
        return state, tuple(rule.name for rule in failed), left


def replacing(connection: AsyncConnection, meanwhile: Database) -> Spoil:
    """Replace all rows between reading and writing."""

    async def spoil(placement: SqlPlacement) -> None:
        read = placement._rows_of

        async def read_then_change(request: Request) -> Any:
            found = await read(request)
            placement._rows_of = read  # type: ignore[method-assign]
            await connection.run_sync(fill, meanwhile)
            return found

        placement._rows_of = read_then_change  # type: ignore[method-assign]

    return spoil


async def _connected(store: SqlStore) -> AsyncConnection:
    connection = await store._engine.connect()
    await connection.begin()
    return connection


@pytest.fixture(scope="module", params=sorted(ENGINES))
def bench(request, tmp_path_factory) -> Iterator[Bench]:
    """A connection of each engine."""
    folder: Path = tmp_path_factory.mktemp("placement")
    with asyncio.Runner() as runner:
        stores = ENGINES[request.param](folder)
        store = runner.run(stores.open())
        connection = runner.run(_connected(store))
        yield Bench(runner=runner, connection=connection)
        runner.run(connection.close())
        runner.run(stores.close())


def _without_counts(state: PlacementState) -> PlacementState:
    host = state.host and replace(state.host, live_grants=0, new_grants=0)
    return replace(state, host=host, intent=None)


def agree(bench: Bench, database: Database, request: Request) -> str:
    """Check that store and core decide alike; returns the transition that was accepted, or ""."""
    expected, outcome = pure_step(database, request, NOW_MS)
    state, failed, left = bench.decide(database, request)
    assert left == expected
    if isinstance(outcome, Refused):
        assert failed == tuple(rule.name for rule in outcome.failed)
        assert state == state_of(database, request, NOW_MS)
        return ""
    assert failed == ()
    after_it = state_of(expected, request, NOW_MS)
    assert _without_counts(state) == _without_counts(after_it)
    return outcome.transition.name


bounded = settings(
    max_examples=int(os.environ.get("TA_EXAMPLES", "100")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


# --- advice --------------------------------------------------------------------------------------


@bounded
@given(DATABASES, st.data())
def test_advice_looks_at_the_rows_of_a_decision(bench: Bench, database, data) -> None:
    """However many are asked at once, each answer rests on what its own grant would see (N47)."""
    known = ([VM, *database.vms, VmId("nothing")], [*database.hosts, HostId("h-nobody")])
    questions = data.draw(st.lists(st.tuples(*map(st.sampled_from, known)), min_size=1, max_size=9))

    async def look() -> Any:
        await bench.connection.run_sync(fill, database)
        return await SqlPlacement(bench.connection, NOW_MS).look(questions)

    for (vm, host), state in zip(questions, bench.runner.run(look()), strict=True):
        asked = GrantRequest(request_id=RequestId(""), vm_id=vm, host_id=host)
        assert state == state_of(database, asked, NOW_MS)


NOBODY = (HostId("h-nobody"), HostId("name-nobody"), HostId('"], 1, ['))


def agree_on_advice(
    bench: Bench, database: Database, questions: Sequence[tuple[VmId, HostId]]
) -> None:
    """The database and the pure rules say the same of every question, asked all at once."""

    async def weigh() -> Any:
        await bench.connection.run_sync(fill, database)
        naming = update(tables.host).values(reserved_name="name-" + tables.host.c.host_id)
        await bench.connection.execute(naming)
        return await SqlPlacement(bench.connection, NOW_MS).weigh(questions, ADVICE)

    found = bench.runner.run(weigh())
    answers = advise(questions, found)
    for (vm, named), each, told in zip(questions, found, answers, strict=True):
        host = HostId(named.removeprefix("name-"))
        asked = GrantRequest(request_id=RequestId(""), vm_id=vm, host_id=host)
        state = state_of(database, asked, NOW_MS)
        assert each.host_id == (None if state.host is None else host)
        assert each.vm_known == (state.vm is not None)
        if state.host is None or state.vm is None:
            assert (told.allowed, [unmet.reason for unmet in told.unmet]) == (False, ["NOT_FOUND"])
            continue
        scene = Scene(state=state, request=asked, now_ms=NOW_MS)
        held = [bool(each.holds >> place & 1) for place in range(len(ADVICE))]
        assert held == [holds(condition, scene) for condition in ADVICE]
        assert told == place(PlacementQuestion(vm_id=vm, host_id=host), state, NOW_MS)


@bounded
@given(DATABASES, st.data())
def test_advice_of_the_database_is_that_of_the_pure_rules(bench: Bench, database, data) -> None:
    """However many are asked at once, each answer is what its own grant would be told (N47)."""
    named = [HostId(f"name-{host}") for host in database.hosts]
    known = ([VM, *database.vms, VmId("nothing")], [*database.hosts, *named, *NOBODY])
    questions = data.draw(st.lists(st.tuples(*map(st.sampled_from, known)), min_size=1, max_size=9))
    agree_on_advice(bench, database, questions)


@pytest.mark.parametrize("edge", edges())
def test_advice_at_the_edge(bench: Bench, edge) -> None:
    """One row or one millisecond more, and both say so alike (N47)."""
    database = edges()[edge]
    agree_on_advice(bench, database, list(product(database.vms, database.hosts)))


# --- agreement -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "request_", "transition"), ACCEPTED)
def test_accepted(bench: Bench, base, request_, transition) -> None:
    """Each transition writes the rows that the pure core writes, no more and no less (S2, S3)."""
    assert agree(bench, SCENARIOS[base], request_) == transition


def test_every_transition_was_accepted() -> None:
    """No transition is left out above, and each has its statement."""
    names = {each.name for each in TRANSITIONS}
    assert {transition for _, _, transition in ACCEPTED} == names == set(DECISIONS)


def _first_refusal(request: Request, base: str, rule: str) -> Database | None:
    for change in CHANGES:
        database = change.apply(SCENARIOS[base])
        _, outcome = pure_step(database, request, NOW_MS)
        if isinstance(outcome, Refused) and rule in {each.name for each in outcome.failed}:
            if outcome.transition.name != ACCEPTED_AS[base, request]:
                continue
            return database
    return None


ACCEPTED_AS = {(base, request): transition for base, request, transition in ACCEPTED}


def _spoiled() -> list[Any]:
    """For each rule of each transition, an acceptable request and a row that breaks the rule."""
    by_name = {each.name: each for each in TRANSITIONS}
    found: dict[tuple[str, str], Any] = {}
    for base, request, transition in ACCEPTED:
        for rule in by_name[transition].rules:
            if (transition, rule.name) not in found:
                database = _first_refusal(request, base, rule.name)
                if database is not None:
                    mark = f"{transition}-{rule.name}"
                    found[transition, rule.name] = pytest.param(database, request, id=mark)
    return list(found.values())


SPOILED = _spoiled()


@pytest.mark.parametrize(("database", "request_"), SPOILED)
def test_refused(bench: Bench, database, request_) -> None:
    """Each rule of each transition refuses in SQL as it does in the core, and nothing changes."""
    assert agree(bench, database, request_) == ""


BY_REQUEST = {
    "offer-no-other-move": (SCENARIOS["offered"], replace(OFFER_A, move_id=M2)),
    "offer-another-destination": (SCENARIOS["granted"], replace(OFFER_A, destination=A)),
}


@pytest.mark.parametrize("rule", BY_REQUEST)
def test_refused_by_request(bench: Bench, rule) -> None:
    """Rules that no row breaks by itself, but a request does."""
    database, request = BY_REQUEST[rule]
    _, outcome = pure_step(database, request, NOW_MS)
    assert isinstance(outcome, Refused)
    assert f"{outcome.transition.name}-{outcome.failed[0].name}" == rule
    assert agree(bench, database, request) == ""


def test_every_rule_was_broken() -> None:
    """No rule of any transition is left out above."""
    broken = {param.id for param in SPOILED} | set(BY_REQUEST)
    every = {f"{each.name}-{rule.name}" for each in TRANSITIONS for rule in each.rules}
    # a return under another epoch is not taken for a replay in the first place
    # a return under another epoch is not taken for a replay in the first place
    assert every - broken == {"give-back-replay-grant-epoch-current"}


@given(database=DATABASES, request_=requests())
@bounded
def test_store_and_core_agree(bench: Bench, database, request_) -> None:
    """Whatever the rows and the request: same outcome, same rules, same rows (design 3)."""
    agree(bench, database, request_)


@pytest.mark.parametrize("epoch", [2**63 - 1, 2**63, 2**64 - 1])
def test_epochs_near_the_end(bench: Bench, epoch) -> None:
    """A request with an epoch beyond 63 bits is refused, not a crash (N84)."""
    for request in (RENEW_A, RETURN_A, OFFER_A):
        assert agree(bench, SCENARIOS["granted"], replace(request, grant_epoch=epoch)) == ""


def test_unknown_host_is_not_revoked(bench: Bench) -> None:
    """Revoking nobody is refused and writes nothing."""
    database = good()
    _, failed, left = bench.decide(database, RevokeRequest(host_id=HostId("h-x")))
    assert failed
    assert left == database


def test_old_grants_do_not_count(bench: Bench) -> None:
    """The cap on new grants counts an hour, to the millisecond."""
    base = after(GRANT_A, RETURN_A)
    clusters = {**base.clusters, CLUSTER: replace(base.clusters[CLUSTER], new_grants_cap=1)}
    request = replace(GRANT_A, request_id=R3)
    for age_ms, transition in ((HOUR_MS - 1, ""), (HOUR_MS, "grant")):
        at = {R1: NOW_MS - age_ms}
        database = replace(base, clusters=clusters, authorised_ms=at)
        assert agree(bench, database, request) == transition


# --- stale reads ---------------------------------------------------------------------------------


def stale(bench: Bench, read: Database, meanwhile: Database, request: Request) -> bool:
    """Decide after a stale read; returns whether it was accepted, which only truth may be."""
    expected, outcome = pure_step(meanwhile, request, NOW_MS)
    _, failed, left = bench.decide(read, request, replacing(bench.connection, meanwhile))
    if failed:
        assert left == meanwhile
        return False
    assert isinstance(outcome, Accepted)
    assert left == expected
    return True


@given(
    base=st.sampled_from(ACCEPTED),
    changes=st.lists(st.sampled_from(CHANGES), min_size=1, max_size=2),
)
@bounded
def test_a_stale_read_only_refuses(bench: Bench, base, changes) -> None:
    """Rows that change between read and write lead to a refusal, or do not matter (N48, S1, S7)."""
    read = SCENARIOS[base[0]]
    meanwhile = reduce(lambda found, each: each.apply(found), changes, read)
    stale(bench, read, meanwhile, base[1])


STALE = [
    ("free", REVOKE_A, GRANT_A),
    ("free", REVOKE_ALL, GRANT_A),
    ("free", Change("clusters", CLUSTER, "policy_epoch", 8), GRANT_A),
    ("free", Change("hosts", A, "boot", OTHER_BOOT), GRANT_A),
    ("free", Change("vms", VM, "lease_ms", 1), GRANT_A),
    ("free", GRANT_A, GRANT_A),
    ("free", GRANT_A, replace(GRANT_A, request_id=R3)),
    ("intended", Change("intents", I1, "used_by", R3), GRANT_B),
    ("intended", Change("intents", I1, "expires_ms", NOW_MS), GRANT_B),
    ("granted", REVOKE_A, CONFIRM_A),
    ("granted", RETURN_A, CONFIRM_A),
    ("granted", FAIL_A, FAIL_A),
    ("granted", RETURN_A, RENEW_A),
    ("granted", OFFER_A, replace(OFFER_A, move_id=M2)),
    ("granted", ABORT_A, OFFER_A),
    ("granted", OFFER_A, ABORT_A),
    ("offered", ABORT_A, PREPARE_B),
    ("offered", PREPARE_B, PREPARE_B),
    ("confirmed", ABORT_B, SWITCH_A),
    ("confirmed", RETURN_A, SWITCH_A),
    ("confirmed", SWITCH_A, ABORT_B),
    ("confirmed", Change("hosts", B, "boot", OTHER_BOOT), SWITCH_A),
    ("confirmed", Change("moves", M1, "destination", A), SWITCH_A),
]


@pytest.mark.parametrize(("base", "between", "request_"), STALE, ids=range(len(STALE)))
def test_a_decision_between_read_and_write(bench: Bench, base, between, request_) -> None:
    """What was decided in between is never undone or passed over (N48, N51, S7, L2)."""
    read = SCENARIOS[base]
    meanwhile = between.apply(read) if isinstance(between, Change) else after(between, start=read)
    assert meanwhile != read
    assert not stale(bench, read, meanwhile, request_)


def test_a_halt_between_read_and_write(bench: Bench) -> None:
    """Releases stop at once: the deciding statement itself asks (N91)."""

    async def halt(placement: SqlPlacement) -> None:
        read = placement._rows_of

        async def read_then_halt(request: Request) -> Any:
            found = await read(request)
            halted = update(tables.authority).values(halted_because="rolled back")
            await bench.connection.execute(halted)
            return found

        placement._rows_of = read_then_halt  # type: ignore[method-assign]

    for base, request, transition in ACCEPTED:
        _, failed, left = bench.decide(SCENARIOS[base], request, spoil=halt)
        if request in (REVOKE_A, REVOKE_ALL):
            assert failed == ()
        else:
            assert failed == ("raced",), transition
            assert left == SCENARIOS[base]
