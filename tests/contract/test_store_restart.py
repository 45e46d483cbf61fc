"""The contract of a restart after a loss: nothing stale is current again (S6, N64, N91)."""

import pytest
from support.stores import FENCE_MS, VM, A, B, Stores, host_row, populate, rows_of

from trustauthority.adapters.sql import tables
from trustauthority.adapters.sql.restart import EPOCH_JUMP
from trustauthority.adapters.sql.store import SqlStore
from trustauthority.model.audit import AuditEvent
from trustauthority.model.identifiers import HostId, RequestId
from trustauthority.model.requests import GiveBackRequest, GrantRequest, RenewRequest, Request


async def decide(store: SqlStore, request: Request) -> tuple[str, ...]:
    async with store.transaction() as tx:
        _, failed = await tx.placement.decide(request)
    return tuple(rule.name for rule in failed)


def ask(host: HostId, text: str) -> GrantRequest:
    return GrantRequest(request_id=RequestId(text * 16), vm_id=VM, host_id=host)


async def restarted(stores: Stores) -> SqlStore:
    """A store whose VM belongs to A, after a halt and an accepted loss."""
    store = await stores.open()
    await populate(store)
    assert await decide(store, ask(A, "1")) == ()
    async with store.transaction() as tx:
        entry = AuditEvent(actor="a", operation="o", subject="s", decision="done")
        await tx.audit.append(entry)
        await tx.audit.halt("a checkpoint of 9 entries was shown")
    async with store.transaction() as tx:
        await tx.restart.jump()
    return store


async def test_every_epoch_jumps(stores: Stores) -> None:
    """Whatever was decided after the backup is behind every epoch now (S3, S6)."""
    store = await restarted(stores)
    (authority,) = await rows_of(store, tables.authority)
    (cluster,) = await rows_of(store, tables.cluster)
    (vm,) = await rows_of(store, tables.vm)
    assert authority["global_epoch"] == cluster["policy_epoch"] == 1 + EPOCH_JUMP
    assert vm["grant_epoch"] == 1 + EPOCH_JUMP
    for host in (A, B):
        row = await host_row(store, host)
        assert (row.trust_epoch, row.attested_until_ms) == (1 + EPOCH_JUMP, 0)


async def test_nothing_is_released_before_a_new_verdict(stores: Stores) -> None:
    """A verdict of before counts for nothing, and an old grant is fenced (N64, S1)."""
    store = await restarted(stores)
    failed = await decide(store, ask(A, "2"))
    assert {"global-epoch-current", "trust-epoch-current", "attested-now"} <= set(failed)
    renewal = RenewRequest(request_id=RequestId("3" * 16), vm_id=VM, host_id=A, grant_epoch=1)
    assert "grant-epoch-current" in await decide(store, renewal)


async def test_owners_are_held(stores: Stores) -> None:
    """A host may run a VM under a lease that was forgotten: its fence is waited for (N48)."""
    store = await restarted(stores)
    stores.clock.pass_ms(FENCE_MS - 1)
    assert "clear-of-others" in await decide(store, ask(B, "4"))
    stores.clock.pass_ms(1)
    assert "clear-of-others" not in await decide(store, ask(B, "5"))


@pytest.mark.parametrize("given_back", [True, False], ids=["given-back", "never-granted"])
async def test_free_vms_are_held_too(stores: Stores, given_back) -> None:
    """What was free at the backup may have been granted since: it waits like the others (N48)."""
    store = await stores.open()
    await populate(store)
    if given_back:
        assert await decide(store, ask(A, "1")) == ()
        back = GiveBackRequest(request_id=RequestId("2" * 16), vm_id=VM, host_id=A, grant_epoch=1)
        assert await decide(store, back) == ()
    async with store.transaction() as tx:
        await tx.restart.jump()
    assert "clear-of-others" in await decide(store, ask(B, "3"))
    stores.clock.pass_ms(FENCE_MS - 1)
    assert "clear-of-others" in await decide(store, ask(B, "4"))
    stores.clock.pass_ms(1)
    assert "clear-of-others" not in await decide(store, ask(B, "5"))


async def test_the_log_goes_on(stores: Stores) -> None:
    """The halt ends, and a new era tells checkpoints of the lost part from ours (N91)."""
    store = await restarted(stores)
    async with store.snapshot() as tx:
        assert await tx.audit.halted_because() == ""
        assert await tx.audit.era() > 0
        assert await tx.audit.size() == 1
