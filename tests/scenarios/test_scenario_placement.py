"""Placement end to end: advice and what it is worth, and moves of a VM between two hosts."""

import asyncio

import pytest
from support.simulated_authority import BY, VM, SimulatedAuthority
from support.simulated_host import SimulatedHost

from hostagent.grant import GrantRefused
from trustauthority.errors import (
    Fenced,
    GrantHeldElsewhere,
    HostRevoked,
    KeyNotPermitted,
    MoveRefused,
    NotFound,
)
from trustauthority.model.placement import ClusterRecord, MovePhase
from trustauthority.model.policy import Policy

MOVE = "move-0000000001"
CLUSTER_DEFAULTS = ClusterRecord(cluster_id="prod")
LEASES = Policy(name="default").leases


async def running_vm(authority: SimulatedAuthority) -> tuple[SimulatedHost, SimulatedHost, int]:
    """A VM that runs on the first of two trusted hosts."""
    source, destination = await authority.trusted("esx-1", "esx-2")
    await authority.add_vm()
    await authority.intend(source)
    released = await authority.request(source)
    return source, destination, released.grant_epoch


async def offer(
    authority: SimulatedAuthority,
    source: SimulatedHost,
    destination: SimulatedHost,
    epoch: int,
    move_id: str = MOVE,
) -> None:
    """The owner offers its VM."""
    await authority.placement.offer(
        await authority.record(source),
        vm=VM,
        grant_epoch=epoch,
        destination=destination.host_id,
        move_id=move_id,
    )


async def switch(authority: SimulatedAuthority, host: SimulatedHost, move_id: str = MOVE) -> int:
    """A host hands over."""
    return await authority.placement.switch(await authority.record(host), vm=VM, move_id=move_id)


async def abort(authority: SimulatedAuthority, host: SimulatedHost, move_id: str = MOVE) -> None:
    """A host ends a move."""
    await authority.placement.abort(await authority.record(host), vm=VM, move_id=move_id)


async def renew(authority: SimulatedAuthority, host: SimulatedHost, epoch: int) -> None:
    """A host asks to go on."""
    await authority.keys.renew(
        await authority.record(host), vm=VM, grant_epoch=epoch, request_id="renewal-0000001"
    )


async def phase(authority: SimulatedAuthority, host: SimulatedHost) -> MovePhase:
    """The recorded outcome of the move, as one party reads it."""
    move, _ = await authority.placement.outcome(await authority.record(host), vm=VM, move_id=MOVE)
    assert move is not None
    return move.phase


class TestAdvice:
    async def test_is_no_grant(self, authority):
        """N47: the scheduler was told yes, then the host was revoked: no key, nothing started."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        (advice,) = await authority.placement.check([(VM, "esx-1")])
        assert advice.allowed
        await authority.hosts.revoke("esx-1", why="", by=BY, dry_run=False)
        with pytest.raises(HostRevoked):
            await authority.request(host)
        assert authority.room.answers == []
        (advice,) = await authority.placement.check([(VM, "esx-1")])
        assert not advice.allowed

    async def test_names_what_is_missing(self, authority):
        """Design 6.5: yes or no and why, for each candidate, unknown ones among them."""
        await running_vm(authority)
        stranger = authority.host("bench")
        await authority.enrol(stranger)
        answers = await authority.placement.check(
            [
                (VM, "esx-1"),
                (VM, "esx-2"),
                (VM, stranger.host_id),
                (VM, "nobody"),
                ("none", "esx-1"),
            ]
        )
        assert [each.allowed for each in answers] == [True, True, False, False, False]
        assert [each.rule for each in answers[1].steps] == ["reason", "clear-of-others"]
        assert "host-admitted" in {each.rule for each in answers[2].unmet}

    async def test_gives_no_grant_by_itself(self, authority):
        """N47: asking for advice writes nothing."""
        await running_vm(authority)
        before, entries = await authority.placement.get(VM), await authority.log()
        await authority.placement.check([(VM, "esx-2")])
        assert await authority.placement.get(VM) == before
        assert await authority.log() == entries


class TestMove:
    async def test_hands_over_once(self, authority):
        """Design 6.5: offer, prepare, switch; then the old owner is fenced, the new one runs."""
        source, destination, epoch = await running_vm(authority)
        await offer(authority, source, destination, epoch)
        prepared = await authority.request(destination, move_id=MOVE)
        assert prepared.grant_epoch == epoch
        assert authority.open(destination, prepared, purpose="prepare") == authority.vm_key()
        with pytest.raises(GrantRefused, match="another purpose"):
            authority.open(destination, prepared)
        await renew(authority, source, epoch)
        assert await switch(authority, source) == epoch + 1
        assert await phase(authority, destination) is MovePhase.SWITCHED
        for host, owned in ((source, epoch), (source, epoch + 1), (destination, epoch)):
            with pytest.raises(Fenced):
                await renew(authority, host, owned)
        await renew(authority, destination, epoch + 1)
        await authority.intend(source)
        with pytest.raises(GrantHeldElsewhere):
            await authority.request(source)

    async def test_the_prepared_host_may_not_run_it(self, authority):
        """S2: a preparation is no grant: before the switch the destination owns nothing."""
        source, destination, epoch = await running_vm(authority)
        await offer(authority, source, destination, epoch)
        await authority.request(destination, move_id=MOVE)
        assert (await authority.placement.get(VM)).owner == source.host_id
        with pytest.raises(Fenced):
            await renew(authority, destination, epoch)

    async def test_terms_of_a_preparation_are_its_own(self, authority):
        """Design 6.5: the prepared key may wait so long for the switch, with no fence."""
        source, destination, epoch = await running_vm(authority)
        await offer(authority, source, destination, epoch)
        prepared = await authority.request(destination, move_id=MOVE)
        assert prepared.terms.lease_ms == CLUSTER_DEFAULTS.prepare_for_ms

    async def test_nobody_prepares_what_was_not_offered(self, authority):
        """N74: without an offer, for another destination, after its end, twice: no key."""
        source, destination, epoch = await running_vm(authority)
        third = await authority.enrolled("esx-3")
        await authority.attest(third)
        released = len(authority.room.orders)
        with pytest.raises(MoveRefused):
            await authority.request(destination, move_id=MOVE)
        await offer(authority, source, destination, epoch)
        with pytest.raises(MoveRefused):
            await authority.request(third, move_id=MOVE)
        with pytest.raises(MoveRefused):
            await authority.request(source, move_id=MOVE)
        authority.pass_ms(CLUSTER_DEFAULTS.offer_ms, source, destination)
        await authority.attest(destination)
        with pytest.raises(MoveRefused):
            await authority.request(destination, move_id=MOVE)
        assert len(authority.room.orders) == released
        refused = [e for e in await authority.log("key.request") if e["decision"] == "refused"]
        assert len(refused) == 4
        assert all(entry["reason"] for entry in refused)

    async def test_prepares_once(self, authority):
        """N74: a second preparation of the same move is refused; a retry of the first is not."""
        source, destination, epoch = await running_vm(authority)
        await offer(authority, source, destination, epoch)
        await authority.request(destination, move_id=MOVE, request_id="prepare-0000001")
        await authority.request(destination, move_id=MOVE, request_id="prepare-0000001")
        with pytest.raises(MoveRefused):
            await authority.request(destination, move_id=MOVE, request_id="prepare-0000002")

    async def test_only_the_owner_offers(self, authority):
        """N74: another host, or the owner under an old epoch, offers nothing."""
        source, destination, epoch = await running_vm(authority)
        for host, owned, error in (
            (destination, epoch, Fenced),
            (source, epoch + 1, Fenced),
            (source, epoch - 1, Fenced),
        ):
            target = source if host is destination else destination
            with pytest.raises(error):
                await offer(authority, host, target, owned)
        with pytest.raises(MoveRefused):
            await offer(authority, source, source, epoch)
        with pytest.raises(NotFound):
            await offer(authority, source, authority.host("nobody"), epoch)

    async def test_one_offer_at_a_time(self, authority):
        """Design 6.5: a second offer waits for the end of the first."""
        source, destination, epoch = await running_vm(authority)
        await offer(authority, source, destination, epoch)
        with pytest.raises(MoveRefused):
            await offer(authority, source, destination, epoch, "move-0000000002")
        await abort(authority, source)
        await offer(authority, source, destination, epoch, "move-0000000002")

    async def test_nothing_switches_unprepared(self, authority):
        """S2: no switch before the destination holds the key, and none by the destination."""
        source, destination, epoch = await running_vm(authority)
        with pytest.raises(MoveRefused):
            await switch(authority, source)
        await offer(authority, source, destination, epoch)
        with pytest.raises(MoveRefused):
            await switch(authority, source)
        await authority.request(destination, move_id=MOVE)
        with pytest.raises(Fenced):
            await switch(authority, destination)
        assert (await authority.placement.get(VM)).owner == source.host_id

    async def test_a_destination_that_rebooted_is_not_prepared(self, authority):
        """S2: the key it got does not open any more, so nothing is handed to it."""
        source, destination, epoch = await running_vm(authority)
        await offer(authority, source, destination, epoch)
        await authority.request(destination, move_id=MOVE)
        destination.reboot()
        assert (await authority.attest(destination)).verdict.passed
        with pytest.raises(MoveRefused):
            await switch(authority, source)

    async def test_a_destination_that_was_revoked_gets_nothing(self, authority):
        """S7: revoked between preparation and switch: the VM stays where it is."""
        source, destination, epoch = await running_vm(authority)
        await offer(authority, source, destination, epoch)
        await authority.request(destination, move_id=MOVE)
        await authority.hosts.revoke(destination.host_id, why="", by=BY, dry_run=False)
        with pytest.raises(HostRevoked):
            await switch(authority, source)
        await renew(authority, source, epoch)

    async def test_an_aborted_move_is_over(self, authority):
        """L2: after an abort the source runs on, and no late switch succeeds."""
        source, destination, epoch = await running_vm(authority)
        await offer(authority, source, destination, epoch)
        await authority.request(destination, move_id=MOVE)
        await abort(authority, destination)
        with pytest.raises(MoveRefused):
            await switch(authority, source)
        assert await phase(authority, source) is MovePhase.ABORTED
        await renew(authority, source, epoch)

    async def test_a_switched_move_is_not_aborted(self, authority):
        """L2: the outcome that was recorded first stays; a retry reads it (N88)."""
        source, destination, epoch = await running_vm(authority)
        await offer(authority, source, destination, epoch)
        await authority.request(destination, move_id=MOVE)
        await switch(authority, source)
        with pytest.raises(MoveRefused):
            await abort(authority, source)
        assert await switch(authority, source) == epoch + 1
        assert await phase(authority, source) is MovePhase.SWITCHED

    async def test_an_abort_that_overtakes_its_offer_wins(self, authority):
        """L3: the offer arrives late and finds its id used up."""
        source, destination, epoch = await running_vm(authority)
        await abort(authority, source)
        with pytest.raises(MoveRefused):
            await offer(authority, source, destination, epoch)

    async def test_a_stranger_takes_no_part(self, authority):
        """N52: a third host neither aborts nor reads a move."""
        source, destination, epoch = await running_vm(authority)
        third = await authority.enrolled("esx-3")
        await offer(authority, source, destination, epoch)
        with pytest.raises(MoveRefused):
            await abort(authority, third)
        move, _ = await authority.placement.outcome(
            await authority.record(third), vm=VM, move_id=MOVE
        )
        assert move is None

    async def test_switch_and_abort_race_to_one_outcome(self, authority):
        """N51, S2: both at once on two nodes: one outcome, one host that may go on."""
        source, destination, epoch = await running_vm(authority)
        other = await authority.another_node()
        await offer(authority, source, destination, epoch)
        await authority.request(destination, move_id=MOVE)
        outcomes = await asyncio.gather(
            switch(authority, source), abort(other, destination), return_exceptions=True
        )
        assert sum(isinstance(each, MoveRefused) for each in outcomes) == 1
        switched = await phase(authority, source) is MovePhase.SWITCHED
        runs, stopped = (destination, source) if switched else (source, destination)
        await renew(authority, runs, epoch + switched)
        with pytest.raises(Fenced):
            await renew(authority, stopped, epoch + switched)

    async def test_every_step_is_in_the_log(self, authority):
        """I-D: offer, preparation, release, switch, and the refused attempts, in order."""
        source, destination, epoch = await running_vm(authority)
        before = len(await authority.log())
        await offer(authority, source, destination, epoch)
        await authority.request(destination, move_id=MOVE)
        await switch(authority, source)
        with pytest.raises(MoveRefused):
            await abort(authority, destination)
        told = [(e["operation"], e["decision"]) for e in (await authority.log())[before:]]
        assert told == [
            ("move.offer", "allowed"),
            ("key.request", "allowed"),
            ("key.release", "allowed"),
            ("move.switch", "allowed"),
            ("move.abort", "refused"),
        ]


class TestZombie:
    async def test_an_owner_of_an_older_epoch_does_nothing(self, authority):
        """N52: renew, offer, give back under an epoch that is over: FENCED, the owner untouched."""
        one, two = await authority.trusted("esx-1", "esx-2")
        await authority.add_vm(any_host=True)
        old = (await authority.request(one)).grant_epoch
        authority.pass_ms(LEASES.strict_ms + LEASES.skew_ms, one, two)
        await authority.attest(two)
        new = await authority.request(two)
        with pytest.raises(Fenced):
            await renew(authority, one, old)
        with pytest.raises(Fenced):
            await offer(authority, one, two, old)
        with pytest.raises(Fenced):
            await authority.keys.give_back(
                await authority.record(one), vm=VM, grant_epoch=old, request_id="r" * 16
            )
        entry = await authority.placement.get(VM)
        assert (entry.owner, entry.grant_epoch) == (two.host_id, new.grant_epoch)

    async def test_a_reboot_ends_a_grant(self, authority):
        """N18: after another boot the old grant renews nothing; the host asks again."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        epoch = (await authority.request(host)).grant_epoch
        host.reboot()
        await authority.attest(host)
        with pytest.raises(Fenced):
            await renew(authority, host, epoch)
        assert (await authority.request(host)).grant_epoch == epoch + 1

    async def test_a_suspended_tpm_ends_a_grant(self, authority):
        """N79: a restart that keeps resetCount is another boot all the same."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        epoch = (await authority.request(host)).grant_epoch
        host.restart_count += 1
        host.clock += 100
        assert (await authority.attest(host)).verdict.passed
        with pytest.raises(Fenced):
            await renew(authority, host, epoch)


class TestIntents:
    async def test_are_necessary_and_not_sufficient(self, authority):
        """T10: a scheduler's intent gives nothing to a host that is not attested or ours."""
        await authority.trusted("esx-1")
        late = await authority.enrolled("esx-2")
        await authority.add_vm()
        await authority.intend(late)
        with pytest.raises(Exception, match="not attested") as refused:
            await authority.request(late)
        assert refused.value.reason == "HOST_NOT_ATTESTED"
        await authority.attest(late)
        assert (await authority.request(late)).grant_epoch == 1

    async def test_name_their_host(self, authority):
        """N73: an intent for one host is none for another, and its writer is in the log."""
        one, two = await authority.trusted("esx-1", "esx-2")
        await authority.add_vm()
        await authority.intend(one)
        with pytest.raises(KeyNotPermitted):
            await authority.request(two)
        entry = await authority.last("placement.intent")
        assert (entry["actor"], entry["details"]["host_id"]) == ("identity:nova", one.host_id)
