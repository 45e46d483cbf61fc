"""The contract of the audit log: one tree, no gap, in the transaction of the decision (S9, S11)."""

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.stores import A, Stores, host_row, populate, rows_of

from trustauthority.adapters.sql import tables
from trustauthority.codec import tlog
from trustauthority.errors import RollbackDetected
from trustauthority.model.audit import AuditEvent
from trustauthority.model.identifiers import RequestId
from trustauthority.model.requests import (
    GiveBackRequest,
    GrantRequest,
    RevokeAllRequest,
    RevokeRequest,
)
from trustauthority.ports import Transaction


def event(subject: str = "db-1", operation: str = "key.release") -> AuditEvent:
    return AuditEvent(
        actor="host:h-a", operation=operation, subject=subject, decision="done", details={"n": 1}
    )


class TestTree:
    async def test_root_of_every_size(self, stores: Stores) -> None:
        """Each root that was ever signed can be told again, and is the tree's (S11)."""
        store = await stores.open()
        sizes = 70
        async with store.transaction() as tx:
            assert await tx.audit.size() == 0
            assert await tx.audit.root(0) == tlog.EMPTY_ROOT
            for sequence in range(sizes):
                assert await tx.audit.append(event(f"vm-{sequence}")) == sequence
        async with store.snapshot() as tx:
            entries = await tx.audit.entries(start=0, limit=sizes + 1)
            leaves = [entry.leaf for entry in entries]
            assert [entry.sequence for entry in entries] == list(range(sizes))
            assert await tx.audit.size() == sizes
            for size in range(sizes + 1):
                assert await tx.audit.root(size) == tlog.tree_root(leaves[:size])
        for entry in entries:
            assert entry.leaf == tlog.leaf_hash(entry.content)

    async def test_content_says_when_and_where(self, stores: Stores) -> None:
        """The hashed bytes hold the entry's own place and the store's time."""
        store = await stores.open()
        async with store.transaction() as tx:
            await tx.audit.append(event())
            stores.clock.pass_ms(1)  # within one transaction, time stands
            await tx.audit.append(event())
            _, second = await tx.audit.entries(start=0, limit=2)
        told = json.loads(second.content)
        assert (told["sequence"], told["time_ms"]) == (1, stores.clock.wall_ms - 1)
        assert (told["actor"], told["details"]) == ("host:h-a", {"n": 1})

    async def test_unknown_size_is_no_root(self, stores: Stores) -> None:
        """A size that the tree never had has no root; it is not taken for the empty tree (N91)."""
        store = await stores.open()
        async with store.transaction() as tx:
            await tx.audit.append(event())
            with pytest.raises(ValueError, match="entries"):
                await tx.audit.root(2)

    async def test_pages(self, stores: Stores) -> None:
        """Entries come in order; those about one subject newest first."""
        store = await stores.open()
        async with store.transaction() as tx:
            for subject in ("a", "b", "a"):
                await tx.audit.append(event(subject))
            await tx.audit.append(event("a", "host.attest"))
            page = await tx.audit.entries(start=1, limit=2)
            about = await tx.audit.about(operation="key.release", subject="a", limit=9)
            newest = await tx.audit.about(operation="key.release", subject="a", limit=1)
        assert [entry.sequence for entry in page] == [1, 2]
        assert [entry.sequence for entry in about] == [2, 0]
        assert [entry.sequence for entry in newest] == [2]


class TestAtomic:
    async def test_neither_or_both(self, stores: Stores) -> None:
        """An error after the entry undoes the decision, and the other way round (S9, I-D)."""
        store = await stores.open()
        await populate(store)

        async def decide(*, entry_first: bool) -> None:
            async with store.transaction() as tx:
                if entry_first:
                    await tx.audit.append(event())
                await tx.hosts.set_revoked(A, revoked=True)
                if not entry_first:
                    await tx.audit.append(event())
                raise ZeroDivisionError

        for entry_first in (True, False):
            with pytest.raises(ZeroDivisionError):
                await decide(entry_first=entry_first)
        assert not (await host_row(store, A)).revoked
        assert await rows_of(store, tables.audit) == []

    async def test_cancelled_before_commit(self, stores: Stores) -> None:
        """A caller that goes away before the commit leaves nothing, and the store usable (L3)."""
        store = await stores.open()
        await populate(store)
        inside = asyncio.Event()

        async def decide() -> None:
            async with store.transaction() as tx:
                await tx.hosts.set_revoked(A, revoked=True)
                await tx.audit.append(event())
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(decide())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not (await host_row(store, A)).revoked
        async with store.transaction() as tx:
            assert await tx.audit.append(event()) == 0

    async def test_two_stores_leave_no_gap(self, stores: Stores) -> None:
        """Concurrent appends of several nodes make one sequence and one tree (S11)."""
        opened = [await stores.open() for _ in range(2)]

        async def append(number: int) -> int:
            async with opened[number % 2].transaction() as tx:
                return await tx.audit.append(event(f"vm-{number}"))

        told = await asyncio.gather(*(append(number) for number in range(24)))
        assert sorted(told) == list(range(24))
        async with opened[0].snapshot() as tx:
            leaves = [entry.leaf for entry in await tx.audit.entries(start=0, limit=99)]
            assert await tx.audit.root(24) == tlog.tree_root(leaves)
            for number, sequence in enumerate(told):
                (entry,) = await tx.audit.entries(start=sequence, limit=1)
                assert json.loads(entry.content)["subject"] == f"vm-{number}"


class TestHalt:
    async def test_halt_stops_releases(self, stores: Stores) -> None:
        """A rolled-back database gives no VM away or back, and goes on taking trust (N91)."""
        store = await stores.open()
        await populate(store)
        async with store.transaction() as tx:
            assert await tx.audit.halted_because() == ""
            await tx.audit.halt("checkpoint 9 is ahead of our 7")
            assert await tx.audit.era() == 0

        async def grant(tx: Transaction) -> None:
            request = GrantRequest(request_id=RequestId("r" * 16), vm_id=VM_ID, host_id=A)
            await tx.placement.decide(request)

        async def give_back(tx: Transaction) -> None:
            request = GiveBackRequest(
                request_id=RequestId("r" * 16), vm_id=VM_ID, host_id=A, grant_epoch=0
            )
            await tx.placement.decide(request)

        other = await stores.open()
        for attempt in (grant, give_back):
            with pytest.raises(RollbackDetected, match="ahead of our 7"):
                async with other.transaction() as tx:
                    await attempt(tx)
        async with other.transaction() as tx:
            assert "ahead" in await tx.audit.halted_because()
            assert (await tx.placement.decide(RevokeRequest(host_id=A)))[1] == ()
            assert (await tx.placement.decide(RevokeAllRequest()))[1] == ()
        assert (await host_row(store, A)).revoked


VM_ID = "db-1"


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=40))
@settings(max_examples=50, deadline=None)
def test_stored_edges_read_back(leaves) -> None:
    """A right edge survives being stored as bytes, whatever the size (S11)."""
    frontier = tlog.frontier_of(leaves)
    stored = b"".join(frontier.nodes)
    nodes = tuple(stored[at : at + 32] for at in range(0, len(stored), 32))
    assert tlog.Frontier(size=len(leaves), nodes=nodes).root() == tlog.tree_root(leaves)
