"""What may be changed of a protected VM, and hosts that are emptied: by a write, with an entry."""

import pytest
from support.simulated_authority import BY, VM, SimulatedAuthority

from trustauthority.errors import (
    Conflict,
    FailedPrecondition,
    InvalidRequest,
    KeyNotPermitted,
    NotFound,
)
from trustauthority.model.placement import VmState
from trustauthority.services.vmchanges import VmChanges

NEW, OTHER = b"n" * 32, b"o" * 32


def changes(authority: SimulatedAuthority) -> VmChanges:
    return VmChanges(authority.store)


class TestReprofile:
    async def test_old_and_new_are_recorded(self, authority):
        """Design 6.3: the profile is changed on the record; the audit log has both digests."""
        await authority.add_vm()
        made = await changes(authority).reprofile(VM, NEW, replaces=b"", by=BY, dry_run=False)
        assert made.profile_sha256 == NEW
        entry = await authority.last("vm.reprofile")
        assert (entry["actor"], entry["details"]) == (BY, {"old": "", "new": NEW.hex()})

    async def test_takes_effect_at_the_next_grant(self, authority):
        """The owner's running VM is left alone; whoever starts it next is told the new digest."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        before = await authority.request(host)
        await changes(authority).reprofile(VM, NEW, replaces=b"", by=BY, dry_run=False)
        record = await authority.record(host)
        await authority.keys.renew(
            record, vm=VM, grant_epoch=before.grant_epoch, request_id="renewal-0000001"
        )
        await authority.keys.give_back(
            record, vm=VM, grant_epoch=before.grant_epoch, request_id="return-00000001"
        )
        again = await authority.request(host, request_id="request-0000002")
        assert (before.profile_sha256, again.profile_sha256) == (b"", NEW)

    @pytest.mark.parametrize("dry_run", [False, True])
    async def test_not_over_somebody_elses_change(self, authority, dry_run):
        """The digest that was looked at is part of the write."""
        await authority.add_vm()
        await changes(authority).reprofile(VM, NEW, replaces=b"", by=BY, dry_run=False)
        with pytest.raises(Conflict):
            await changes(authority).reprofile(VM, OTHER, replaces=b"", by=BY, dry_run=dry_run)
        assert (await authority.placement.get(VM)).profile_sha256 == NEW

    @pytest.mark.parametrize("digest", [b"", b"x", bytes(31), bytes(33)])
    async def test_of_any_other_size(self, authority, digest):
        """A profile can't be taken away again, or be no digest."""
        await authority.add_vm()
        with pytest.raises(InvalidRequest):
            await changes(authority).reprofile(VM, digest, replaces=b"", by=BY, dry_run=False)

    async def test_dry_run_and_unknown(self, authority):
        """Only checked; and no VM, no change."""
        await authority.add_vm()
        await changes(authority).reprofile(VM, NEW, replaces=b"", by=BY, dry_run=True)
        assert (await authority.placement.get(VM)).profile_sha256 == b""
        with pytest.raises(NotFound):
            await changes(authority).reprofile("nobody", NEW, replaces=b"", by=BY, dry_run=False)


class TestRetire:
    async def test_no_host_gets_it(self, authority):
        """A retired VM is refused to everybody, its last owner too."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        done = await changes(authority).retire(
            VM, even_if_held=False, why="gone", by=BY, dry_run=False
        )
        assert done.state is VmState.RETIRED
        with pytest.raises(KeyNotPermitted):
            await authority.request(host)
        assert (await authority.last("vm.retire"))["details"]["why"] == "gone"
        with pytest.raises(FailedPrecondition, match="retired"):
            await changes(authority).retire(VM, even_if_held=True, why="", by=BY, dry_run=False)

    @pytest.mark.parametrize("dry_run", [False, True])
    async def test_not_while_it_is_held(self, authority, dry_run):
        """A VM that runs is not taken out by a slip."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        await authority.request(host)
        with pytest.raises(FailedPrecondition, match="holds"):
            await changes(authority).retire(VM, even_if_held=False, why="", by=BY, dry_run=dry_run)

    async def test_even_if_held_ends_its_leases(self, authority):
        """Taking away needs no consent: the owner can't renew from the acknowledgement on (S7)."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        held = await authority.request(host)
        await changes(authority).retire(VM, even_if_held=True, why="", by=BY, dry_run=False)
        with pytest.raises(KeyNotPermitted):
            await authority.keys.renew(
                await authority.record(host),
                vm=VM,
                grant_epoch=held.grant_epoch,
                request_id="renewal-0000001",
            )


class TestDraining:
    async def test_nothing_starts_there_until_undrained(self, authority):
        """A host before maintenance gets no key; afterwards it does again; both are recorded once."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        for _ in range(2):
            await authority.hosts.set_draining(
                "esx-1", draining=True, why="board", by=BY, dry_run=False
            )
        with pytest.raises(KeyNotPermitted, match="drained"):
            await authority.request(host)
        await authority.hosts.set_draining("esx-1", draining=False, why="", by=BY, dry_run=False)
        await authority.request(host, request_id="request-0000002")
        assert len(await authority.log("host.drain")) == 1
        assert len(await authority.log("host.undrain")) == 1

    async def test_a_verdict_does_not_end_it(self, authority):
        """Only a person ends maintenance: a host that attests is still drained."""
        (host,) = await authority.trusted("esx-1")
        await authority.hosts.set_draining("esx-1", draining=True, why="", by=BY, dry_run=False)
        await authority.attest(host)
        assert (await authority.record(host)).draining


class TestWarnings:
    async def test_a_host_with_warnings_takes_nothing_new(self, authority):
        """The policy key reaches the grant: a warned host is refused, by the rule's name."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        await authority.apply_policy(
            'name = "choosy"\n[grants]\nwarned_hosts_take = false\n[boot]\nhost_class = "warn"\n'
        )
        await authority.attest(host)
        assert (await authority.record(host)).warned
        with pytest.raises(KeyNotPermitted, match="warnings"):
            await authority.request(host)
        await authority.apply_policy(
            'name = "calm"\n[grants]\nwarned_hosts_take = true\n[boot]\nhost_class = "warn"\n'
        )
        await authority.attest(host)
        await authority.request(host, request_id="request-0000002")

    async def test_candidates_without_warnings_come_first(self, authority):
        """Ranking: allowed ones, then those without warnings; owners are named."""
        first, _second = await authority.trusted("esx-1", "esx-2")
        await authority.add_vm(any_host=True)
        await authority.request(first)
        await authority.write_sql("UPDATE host SET warned = 1 WHERE name = 'esx-1'")
        ranked = await authority.placement.candidates(VM)
        assert [(each.name, each.owns, each.warned) for each in ranked] == [
            ("esx-2", False, False),
            ("esx-1", True, True),
        ]
        await authority.hosts.revoke("esx-2", why="", by=BY, dry_run=False)
        ranked = await authority.placement.candidates(VM)
        assert [each.decision.allowed for each in ranked] == [True, False]
        assert ranked[1].decision.unmet[0].reason == "HOST_REVOKED"
        with pytest.raises(NotFound):
            await authority.placement.candidates("nobody")
