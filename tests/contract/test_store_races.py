"""The contract under concurrency: several nodes, threads and loops on one database (N06, N48)."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from support.stores import (
    CLUSTER,
    VM,
    Stores,
    host_row,
    pending,
    populate,
    position,
    rows_of,
    verdict,
)

from trustauthority.adapters.sql import tables
from trustauthority.adapters.sql.store import SqlStore
from trustauthority.model.host import Admission
from trustauthority.model.identifiers import HostId, RequestId
from trustauthority.model.requests import GiveBackRequest, GrantRequest

Result = TypeVar("Result")
HOSTS = tuple(f"h-{number:x}" for number in range(16))
NODES = 4


def race(
    stores: Stores, count: int, work: Callable[[SqlStore, int], Awaitable[Result]]
) -> list[Result]:
    """Run ``work`` ``count`` times at once: over nodes that have a thread and a loop each."""
    gate = threading.Barrier(NODES)

    async def node(number: int) -> list[Result]:
        store = await stores.open(busy_timeout_ms=30_000)
        gate.wait(timeout=60)
        try:
            return await asyncio.gather(*(work(store, n) for n in range(number, count, NODES)))
        finally:
            await store.close()

    with ThreadPoolExecutor(NODES) as pool:
        found = list(pool.map(lambda number: asyncio.run(node(number)), range(NODES)))
    return [each for some in found for each in some]


async def grant(store: SqlStore, host: str, request: str) -> tuple[str, int, int] | str:
    """Ask for the VM: (host, epoch, replays), or the rule that failed first."""
    async with store.transaction() as tx:
        wanted = GrantRequest(
            request_id=RequestId(request.ljust(16, "-")), vm_id=VM, host_id=HostId(host)
        )
        state, failed = await tx.placement.decide(wanted)
    if failed:
        return failed[0].name
    assert state.grant is not None
    return state.grant.host_id, state.grant.grant_epoch, state.grant.replays


async def test_sixteen_hosts_one_grant(stores: Stores) -> None:
    """Sixteen hosts ask for one VM at once, three times: one owner each, epochs grow (N48, S2, S3)."""
    store = await stores.open()
    await populate(store, HOSTS)
    for round_number in (1, 2, 3):

        async def ask(node: SqlStore, n: int, r: int = round_number) -> object:
            return await grant(node, HOSTS[n], f"r{r}-{n}")

        told = await asyncio.to_thread(race, stores, len(HOSTS), ask)
        (winner,) = [each for each in told if not isinstance(each, str)]
        assert [each for each in told if isinstance(each, str)] == ["clear-of-others"] * 15
        assert winner[1:] == (round_number, 0)
        (row,) = await rows_of(store, tables.vm)
        assert (row["owner"], row["grant_epoch"]) == (winner[0], round_number)
        async with store.transaction() as tx:
            back = GiveBackRequest(
                request_id=RequestId("b" * 16),
                vm_id=VM,
                host_id=winner[0],
                grant_epoch=round_number,
            )
            assert (await tx.placement.decide(back))[1] == ()
    epochs = [row["grant_epoch"] for row in await rows_of(store, tables.grant)]
    assert epochs == [1, 2, 3]


async def test_one_request_sixteen_times(stores: Stores) -> None:
    """Retries of one request id get the one grant, and each of them writes (design 6.4, 7)."""
    store = await stores.open()
    await populate(store, HOSTS[:1])

    async def ask(node: SqlStore, _: int) -> object:
        return await grant(node, HOSTS[0], "same")

    told = await asyncio.to_thread(race, stores, 16, ask)
    assert sorted(told) == [(HOSTS[0], 1, replays) for replays in range(16)]
    (row,) = await rows_of(store, tables.grant)
    assert (row["grant_epoch"], row["replays"]) == (1, 15)


async def test_one_challenge_on_three_nodes(stores: Stores) -> None:
    """The same challenge, sixteen times on each of three nodes: used once (N06, S4)."""
    await stores.open()

    async def use(node: SqlStore, _: int) -> bool:
        async with node.transaction() as tx:
            return await tx.enrolments.consume_challenge(bytes(32), expires_at_ms=2**60)

    told: Sequence[bool] = await asyncio.to_thread(race, stores, 48, use)
    assert sum(told) == 1
    assert len(told) == 48


async def test_verdicts_race_forward(stores: Stores) -> None:
    """Quotes that arrive in any order at any node leave the furthest position (N17, S14)."""
    store = await stores.open()
    await populate(store, HOSTS[:1])

    async def record(node: SqlStore, n: int) -> bool:
        at = position(1, 0, 2**63 - 8 + n)
        async with node.transaction() as tx:
            values = verdict(tx.now_ms, verdict_id=str(n))
            return await tx.hosts.record_verdict(HostId(HOSTS[0]), position=at, values=values)

    told = await asyncio.to_thread(race, stores, 16, record)
    row = await host_row(store, HOSTS[0])
    assert row.tpm_position == position(1, 0, 2**63 + 7)
    assert row.verdict_id == "15"
    assert any(told)


async def test_one_tpm_enrols_once(stores: Stores) -> None:
    """One TPM that enrols on every node at once is one host (N01, N77, S5)."""
    store = await stores.open()
    await populate(store, ())

    async def enrol(node: SqlStore, n: int) -> bool:
        async with node.transaction() as tx:
            row = pending("h-a", name=f"name-{n}", host_id=f"h-{n}")
            return await tx.hosts.enrol(row, Admission.WAITING)

    told = await asyncio.to_thread(race, stores, 16, enrol)
    assert sum(told) == 1
    assert [row["cluster_id"] for row in await rows_of(store, tables.host)] == [CLUSTER]


async def test_pending_rows_are_taken_once(stores: Stores) -> None:
    """Two activations of one pending row at once: one attempt (rule 21)."""
    store = await stores.open()
    async with store.transaction() as tx:
        await tx.enrolments.put("p1", bytes(32), pending("h-a", expires_at_ms=2**60))

    async def take(node: SqlStore, _: int) -> bool:
        async with node.transaction() as tx:
            return await tx.enrolments.take("p1") is not None

    assert sum(await asyncio.to_thread(race, stores, 8, take)) == 1
