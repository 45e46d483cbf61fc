"""A new key for a VM: hosts get one key at any time, and there is a way back until the old one is ended."""

import asyncio

import pytest
from support.simulated_authority import BY, VM, SimulatedAuthority

from trustauthority.errors import (
    Conflict,
    FailedPrecondition,
    Fenced,
    KeyNotPermitted,
    KmsUnavailable,
    NotFound,
)
from trustauthority.keyrelease.states import KeyStep
from trustauthority.model.placement import KeyState
from trustauthority.services.keyadmin import KeyName


async def states(authority: SimulatedAuthority) -> dict[int, KeyState]:
    return {key.key_epoch: key.state for key in await authority.key_admin.epochs(VM)}


async def opened(authority: SimulatedAuthority, host: object) -> bytes:
    return authority.open(host, await authority.request(host))  # type: ignore[arg-type]


async def test_there_and_back_and_there(authority):
    """S6: pre-active nothing changes; then hosts get the new key, the old one again, the new one for good."""
    (host,) = await authority.trusted("esx-1")
    await authority.add_vm(any_host=True)
    old = await opened(authority, host)
    made = await authority.key_roll.roll(VM, by=BY)
    assert (made.key_epoch, made.state) == (2, KeyState.PRE_ACTIVE)
    assert await opened(authority, host) == old
    await authority.key_roll.switch(VM, 2, by=BY)
    new = await opened(authority, host)
    assert new != old
    assert await states(authority) == {2: KeyState.ACTIVE, 1: KeyState.ACTIVE}
    await authority.key_roll.switch(VM, 1, by=BY)
    assert await opened(authority, host) == old
    await authority.key_roll.switch(VM, 2, by=BY)
    await authority.key_admin.change(
        KeyName(vm=VM, key_epoch=1), KeyStep.DEACTIVATE, why="rolled", by=BY
    )
    assert await opened(authority, host) == new
    with pytest.raises(FailedPrecondition):
        await authority.key_roll.switch(VM, 1, by=BY)
    switched = [entry["details"]["key_epoch"] for entry in await authority.log("key.switch")]
    assert switched == [2, 1, 2]


async def test_switched_while_the_kms_answers(authority):
    """N90 for keys: a grant of the old key that is still on its way is refused."""
    (host,) = await authority.trusted("esx-1")
    await authority.add_vm(any_host=True)
    await authority.key_roll.roll(VM, by=BY)
    gate = authority.room.hold()
    waiting = asyncio.create_task(authority.request(host))
    await gate.reached.wait()
    await authority.key_roll.switch(VM, 2, by=BY)
    gate.open()
    with pytest.raises((KeyNotPermitted, Fenced)):
        await waiting


async def test_one_new_key_at_a_time(authority):
    """Eight calls at once make one key; another one is refused until that one is used or destroyed."""
    await authority.add_vm()
    outcomes = await asyncio.gather(
        *(authority.key_roll.roll(VM, by=BY) for _ in range(8)), return_exceptions=True
    )
    assert sum(isinstance(each, FailedPrecondition | Conflict) for each in outcomes) == 7
    assert set(await states(authority)) == {1, 2}
    with pytest.raises(FailedPrecondition, match="waits already"):
        await authority.key_roll.roll(VM, by=BY)
    await authority.key_admin.destroy(KeyName(vm=VM, key_epoch=2), why="", by=BY)
    assert (await authority.key_roll.roll(VM, by=BY)).key_epoch == 3


async def test_what_can_not_be_rolled(authority):
    """No key, a key that nobody gets, a dead KMS, an epoch that is none or current: told, unchanged."""
    with pytest.raises(NotFound):
        await authority.key_roll.roll(VM, by=BY)
    await authority.add_vm()
    for epoch, error in ((1, FailedPrecondition), (2, NotFound)):
        with pytest.raises(error):
            await authority.key_roll.switch(VM, epoch, by=BY)
    authority.room.fail()
    with pytest.raises(KmsUnavailable):
        await authority.key_roll.roll(VM, by=BY)
    authority.room.recover()
    assert (await authority.key_roll.roll(VM, by=BY, dry_run=True)).key_epoch == 2
    await authority.key_admin.change(KeyName(vm=VM), KeyStep.SUSPEND, why="", by=BY)
    with pytest.raises(FailedPrecondition, match="suspended"):
        await authority.key_roll.roll(VM, by=BY)
    assert set(await states(authority)) == {1}
