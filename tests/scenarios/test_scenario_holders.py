"""Which keys a host ever held: complete, paged, and by what the hosts were at that time."""

import pytest
from support.simulated_authority import VM, SimulatedAuthority
from support.simulated_host import SimulatedHost

from trustauthority.errors import HostRevoked, InvalidRequest, KmsUnavailable, NotFound
from trustauthority.services.holders import HeldKey, HolderQuestion, matches_baseline


async def all_of(
    authority: SimulatedAuthority, limit: int = 100, **question: str | int
) -> list[HeldKey]:
    """Every page."""
    found, place = [], -1
    while True:
        held, following = await authority.holders.page(
            HolderQuestion(**question), after=place, limit=limit
        )
        assert len(held) <= limit
        found += held
        if following is None:
            return found
        assert following > place
        place = following


async def give_back(authority: SimulatedAuthority, host: SimulatedHost, epoch: int) -> None:
    await authority.keys.give_back(
        await authority.record(host), vm=VM, grant_epoch=epoch, request_id="give-back-00001"
    )


class TestWhoHeld:
    async def test_each_release_once(self, authority):
        """Section 9: all releases to a host and none of another's, however small the pages are."""
        one, two = await authority.trusted("esx-1", "esx-2")
        vms = [f"vm-{number}" for number in range(5)]
        for vm in vms:
            await authority.add_vm(vm, any_host=True)
            await authority.request(one if vm != "vm-2" else two, vm)
        for limit in (1, 2, 3, 100):
            held = await all_of(authority, limit, host="esx-1")
            assert [each.vm_id for each in held] == ["vm-0", "vm-1", "vm-3", "vm-4"]
        (other,) = await all_of(authority, host=two.host_id)
        assert (other.vm_id, other.host_name, other.key_epoch) == ("vm-2", "esx-2", 1)
        assert (other.baseline, other.purpose, other.current_key_epoch) == ("golden", "run", 1)

    async def test_what_never_left_was_never_held(self, authority):
        """Refused, or cut off by a dead KMS: no key, no holder."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        authority.room.fail()
        with pytest.raises(KmsUnavailable):
            await authority.request(host)
        authority.room.recover()
        await authority.hosts.revoke("esx-1", why="", by="x", dry_run=False)
        with pytest.raises(HostRevoked):
            await authority.request(host)
        assert await all_of(authority, host="esx-1") == []

    async def test_held_until_the_host_says_otherwise(self, authority):
        """A lease that ended says nothing about the host's memory; giving back does."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        start = authority.clock.now_ms()
        epoch = (await authority.request(host)).grant_epoch
        authority.pass_ms(10 * 3_600_000, host)
        (held,) = await all_of(authority, host="esx-1", since_ms=authority.clock.now_ms())
        assert (held.released_at_ms, held.ended_at_ms) == (start, 0)
        await give_back(authority, host, epoch)
        ended = authority.clock.now_ms()
        (held,) = await all_of(authority, host="esx-1", since_ms=ended)
        assert held.ended_at_ms == ended
        assert await all_of(authority, host="esx-1", since_ms=ended + 1) == []

    async def test_asked_about_nothing(self, authority):
        """A question without a subject is refused; so is a host that does not exist."""
        with pytest.raises(InvalidRequest):
            await all_of(authority)
        with pytest.raises(NotFound):
            await all_of(authority, host="ghost")

    async def test_a_removed_host_is_still_told(self, authority):
        """What a host held does not go away with the host."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        await authority.request(host)
        await authority.hosts.remove("esx-1", by="x", dry_run=False)
        assert [each.vm_id for each in await all_of(authority, host=host.host_id)] == [VM]


class TestExposed:
    async def test_by_what_the_host_was_then(self, authority):
        """A baseline counts at the time of the release, whatever the host matches later."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        await authority.request(host)
        await authority.write_sql("UPDATE host SET baseline = 'other'")
        assert [each.vm_id for each in await all_of(authority, baseline="golden")] == [VM]
        assert [each.vm_id for each in await all_of(authority, baseline="kernel=golden")] == [VM]
        assert await all_of(authority, baseline="other") == []
        assert await all_of(authority, baseline="gold") == []

    async def test_by_the_tpm(self, authority):
        """Every host with such a TPM, by any part of its description."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        await authority.request(host)
        tpm = (await authority.record(host)).tpm
        assert tpm
        assert [each.tpm for each in await all_of(authority, tpm=tpm[:4].lower())] == [tpm]
        assert await all_of(authority, tpm="no such maker") == []

    @pytest.mark.parametrize(
        ("matched", "wanted", "answer"),
        [
            ("golden", "golden", True),
            ("golden", "kernel=golden", True),
            ("golden", "gold", False),
            ("firmware=a kernel=b", "b", True),
            ("firmware=a kernel=b", "kernel=b", True),
            ("firmware=a kernel=b", "firmware=b", False),
            ("firmware=a kernel=b", "c", False),
            ("kernel=b", "b", True),
            ("", "golden", False),
        ],
    )
    def test_names_of_baselines(self, matched, wanted, answer) -> None:
        """A whole name, of any or of one component; never a part of one."""
        assert matches_baseline(matched, wanted) is answer
