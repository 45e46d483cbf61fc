"""The life of VM keys: made once, released only while active, every release on record."""

import asyncio

import pytest
from support.simulated_authority import BY, VM, SimulatedAuthority

from trustauthority.errors import (
    AlreadyExists,
    InvalidRequest,
    KeyNotPermitted,
    KmsUnavailable,
    NotFound,
)
from trustauthority.keyrelease.keyimport import seal_import
from trustauthority.model.placement import KeyState, LeaseClass
from trustauthority.services.placement import NewVm


async def protect(authority: SimulatedAuthority, vm: str = VM) -> None:
    """A VM without a key."""
    new = NewVm(
        vm_id=vm,
        cluster="prod",
        lease_class=LeaseClass.STRICT,
        any_host=True,
        profile_sha256=b"",
    )
    await authority.placement.protect(new, by=BY)


class TestMaking:
    async def test_a_vm_has_one_first_key(self, authority):
        """A second key of a VM is refused; the first one stays what it was."""
        await authority.add_vm()
        wrapped = (await authority.key_admin.get(VM))[0].wrapped
        with pytest.raises(AlreadyExists):
            await authority.key_admin.create(VM, provider="", by=BY)
        assert (await authority.key_admin.get(VM))[0].wrapped == wrapped
        entry = await authority.last("key.create")
        assert (entry["actor"], entry["details"]["key_epoch"]) == (BY, 1)

    async def test_a_race_makes_one_key(self, authority):
        """S3: eight calls at once make one key; the losers are told."""
        await protect(authority)
        outcomes = await asyncio.gather(
            *(authority.key_admin.create(VM, provider="", by=BY) for _ in range(8)),
            return_exceptions=True,
        )
        assert sum(isinstance(each, AlreadyExists) for each in outcomes) == 7
        assert len(await authority.log("key.create")) == 1
        (host,) = await authority.trusted("esx-1")
        released = await authority.request(host)
        assert authority.open(host, released) in authority.room.made

    async def test_keys_of_one_provider_share_its_kek(self, authority):
        """Section 9: the KEK is made once and recorded before a key rests on it."""
        await authority.add_vm("a")
        await authority.add_vm("b")
        one, two = (await authority.key_admin.get("a"))[0], (await authority.key_admin.get("b"))[0]
        assert one.kek_id == two.kek_id
        assert one.wrapped != two.wrapped
        assert len(await authority.log("provider.create")) == 1

    async def test_a_dead_kms_makes_no_key(self, authority):
        """N56: nothing is recorded of a key that was not made."""
        await protect(authority)
        authority.room.fail()
        with pytest.raises(KmsUnavailable):
            await authority.key_admin.create(VM, provider="", by=BY)
        assert await authority.log("key.create") == []
        with pytest.raises(NotFound):
            await authority.key_admin.get(VM)
        authority.room.recover()
        assert (await authority.key_admin.create(VM, provider="", by=BY)).state is KeyState.ACTIVE

    async def test_no_key_for_a_vm_that_nobody_protects(self, authority):
        """A key belongs to a VM record."""
        with pytest.raises(NotFound):
            await authority.key_admin.create("ghost", provider="", by=BY)
        assert authority.room.vm_keys == {}


class TestImport:
    async def test_an_existing_passphrase(self, authority):
        """What the owner had is what the host gets; it is on record as imported."""
        (host,) = await authority.trusted("esx-1")
        await protect(authority)
        public = authority.room.import_key_private.public_key().public_bytes_raw()
        sealed = seal_import(b"correct horse", public, VM)
        key = await authority.key_admin.take_in(VM, sealed, provider="", by=BY)
        assert (key.state, key.key_epoch) == (KeyState.ACTIVE, 1)
        assert authority.open(host, await authority.request(host)) == b"correct horse"
        assert (await authority.last("key.import"))["actor"] == BY
        with pytest.raises(AlreadyExists):
            await authority.key_admin.take_in(VM, sealed, provider="", by=BY)

    async def test_a_key_that_was_sealed_for_another_vm(self, authority):
        """Nobody moves a sealed passphrase to a VM of his own."""
        await protect(authority)
        public = authority.room.import_key_private.public_key().public_bytes_raw()
        sealed = seal_import(b"correct horse", public, "other")
        with pytest.raises(KmsUnavailable, match="another VM"):
            await authority.key_admin.take_in(VM, sealed, provider="", by=BY)
        for wrong in (b"", bytes(5_000)):
            with pytest.raises(InvalidRequest):
                await authority.key_admin.take_in(VM, wrong, provider="", by=BY)
        assert await authority.log("key.import") == []


class TestState:
    async def test_a_vm_without_a_key_gets_no_grant(self, authority):
        """N58: protected and not yet keyed: the request is refused and audited."""
        (host,) = await authority.trusted("esx-1")
        await protect(authority)
        with pytest.raises(KeyNotPermitted):
            await authority.request(host)
        assert (await authority.placement.get(VM)).owner is None
        assert (await authority.last("key.request"))["decision"] == "refused"

    @pytest.mark.parametrize("state", [each for each in KeyState if each is not KeyState.ACTIVE])
    async def test_only_an_active_key_is_released(self, authority, state):
        """N58: suspended, deactivated, compromised or destroyed: nothing leaves, nothing renews."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        epoch = (await authority.request(host)).grant_epoch
        await authority.write_sql("UPDATE vm SET key_state = :state", state=str(state))
        answers = len(authority.room.answers)
        with pytest.raises(KeyNotPermitted):
            await authority.request(host)
        with pytest.raises(KeyNotPermitted):
            await authority.keys.renew(
                await authority.record(host), vm=VM, grant_epoch=epoch, request_id="r" * 16
            )
        assert len(authority.room.answers) == answers

    async def test_the_key_row_has_the_last_word(self, authority):
        """N58, I-D: a VM row that says active beside a key row that does not: refused, audited."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        await authority.write_sql("UPDATE vm_key SET state = 'suspended'")
        with pytest.raises(KeyNotPermitted):
            await authority.request(host)
        assert authority.room.orders == []
        assert (await authority.last("key.request"))["reason"] == "KEY_NOT_PERMITTED"
        assert (await authority.placement.get(VM)).owner is None


class TestTrail:
    async def test_who_ever_held_a_key(self, authority):
        """Section 8: the releases of a key, newest first, from the log itself."""
        one, two = await authority.trusted("esx-1", "esx-2")
        await authority.add_vm(any_host=True)
        first = await authority.request(one)
        await authority.keys.give_back(
            await authority.record(one),
            vm=VM,
            grant_epoch=first.grant_epoch,
            request_id="give-back-00001",
        )
        await authority.request(two)
        _, releases = await authority.key_admin.get(VM)
        assert [entry["actor"] for entry in releases] == [
            f"host:{two.host_id}",
            f"host:{one.host_id}",
        ]
        assert [entry["details"]["grant_epoch"] for entry in releases] == [2, 1]
