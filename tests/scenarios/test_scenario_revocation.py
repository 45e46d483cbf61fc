"""Revocation end to end: acknowledged means that no key leaves and no lease is renewed any more."""

import asyncio

import pytest
from support.simulated_authority import BY, VM, SimulatedAuthority
from support.simulated_host import SimulatedHost

from trustauthority.errors import (
    Fenced,
    GrantHeldElsewhere,
    HostNotAdmitted,
    HostNotAttested,
    HostRevoked,
    ReleaseRefused,
)
from trustauthority.model.policy import Policy

LEASES = Policy(name="default").leases


async def revoke(authority: SimulatedAuthority, host: SimulatedHost) -> None:
    """Take trust away; returning means acknowledged."""
    await authority.hosts.revoke(host.host_id, why="stolen", by=BY, dry_run=False)


async def renew(authority: SimulatedAuthority, host: SimulatedHost, epoch: int) -> None:
    """The host asks to go on."""
    await authority.keys.renew(
        await authority.record(host), vm=VM, grant_epoch=epoch, request_id="renewal-0000001"
    )


async def _revoke_host(authority: SimulatedAuthority, host: SimulatedHost) -> None:
    await revoke(authority, host)


async def _revoke_all(authority: SimulatedAuthority, _: SimulatedHost) -> None:
    await authority.hosts.revoke_all(why="", by=BY, dry_run=False)


async def _remove(authority: SimulatedAuthority, host: SimulatedHost) -> None:
    await authority.hosts.remove(host.host_id, by=BY, dry_run=False)


async def _change_policy(authority: SimulatedAuthority, _: SimulatedHost) -> None:
    await authority.apply_policy('name = "other"\n')


async def _fail(authority: SimulatedAuthority, host: SimulatedHost) -> None:
    host.lie_about_pcr(7)
    assert not (await authority.attest(host)).verdict.passed


async def _reset(authority: SimulatedAuthority, host: SimulatedHost) -> None:
    host.reboot()
    assert (await authority.attest(host)).verdict.passed


async def _fall_silent(authority: SimulatedAuthority, host: SimulatedHost) -> None:
    authority.pass_ms(3_600_000)


async def _give_back(authority: SimulatedAuthority, host: SimulatedHost) -> None:
    await authority.keys.give_back(
        await authority.record(host), vm=VM, grant_epoch=1, request_id="give-back-00001"
    )


LOSSES = {
    "revoked": (_revoke_host, HostRevoked),
    "all-revoked": (_revoke_all, HostRevoked),
    "removed": (_remove, HostNotAdmitted),
    "policy-changed": (_change_policy, HostNotAttested),
    "failed": (_fail, HostNotAttested),
    "reset": (_reset, Fenced),
    "silent": (_fall_silent, ReleaseRefused),
    "given-back": (_give_back, Fenced),
}


@pytest.mark.parametrize("loss", LOSSES)
async def test_what_is_lost_while_the_kms_thinks_keeps_the_key_in(authority, loss):
    """N90: the KMS answers after trust was lost: transaction 2 refuses and nothing leaves."""
    lose, error = LOSSES[loss]
    (host,) = await authority.trusted("esx-1")
    await authority.add_vm(any_host=True)
    gate = authority.room.hold()
    asking = asyncio.create_task(authority.request(host, request_id="request-0000001"))
    await gate.reached.wait()
    await lose(authority, host)
    gate.open()
    with pytest.raises(error):
        await asking
    assert len(authority.room.answers) == 1  # it was made, and it did not leave
    entry = await authority.last("key.release")
    assert (entry["decision"], bool(entry["reason"])) == ("refused", True)
    with pytest.raises(ReleaseRefused):
        await authority.request(host, request_id="request-0000001")
    assert [e["decision"] for e in await authority.log("key.release")] == ["refused"]


class TestRevoke:
    async def test_acknowledged_means_no_later_key(self, authority):
        """S7, N25: after the answer, no request and no renewal, on any node."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        other = await authority.another_node()
        epoch = (await authority.request(host)).grant_epoch
        await revoke(other, host)
        answers = len(authority.room.answers)
        for node in (authority, other):
            with pytest.raises(HostRevoked):
                await node.request(host)
            with pytest.raises(HostRevoked):
                await renew(node, host, epoch)
        assert len(authority.room.answers) == answers
        refused = [e for e in await authority.log() if e["decision"] == "refused"]
        assert [e["operation"] for e in refused] == ["key.request", "lease.renew"] * 2

    async def test_says_what_may_still_run(self, authority):
        """N55: the answer lists the VMs whose leases go on; others come in after the fence."""
        host, other = await authority.trusted("esx-1", "esx-2")
        await authority.add_vm(any_host=True)
        await authority.request(host)
        dry = await authority.hosts.revoke(host.host_id, why="", by=BY, dry_run=True)
        assert await authority.standing(host) == "passed"
        revoked = await authority.hosts.revoke(host.host_id, why="", by=BY, dry_run=False)
        assert [vm.vm_id for vm in dry.running] == [vm.vm_id for vm in revoked.running] == [VM]
        with pytest.raises(GrantHeldElsewhere):
            await authority.request(other)
        authority.pass_ms(LEASES.strict_ms + LEASES.skew_ms, other)
        await authority.attest(other)
        assert (await authority.request(other)).grant_epoch == 2

    async def test_new_evidence_does_not_undo_it(self, authority):
        """S1: a revoked host attests, and stays without trust until it is reinstated."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        await revoke(authority, host)
        assert not (await authority.attest(host)).verdict.passed
        with pytest.raises(ReleaseRefused):
            await authority.request(host)

    async def test_a_reinstated_host_attests_anew(self, authority):
        """S6, S7: reinstating gives back no old verdict; epochs only grow."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        epoch = (await authority.record(host)).trust_epoch
        await revoke(authority, host)
        await authority.hosts.reinstate(host.host_id, why="found", by=BY, dry_run=False)
        assert (await authority.record(host)).trust_epoch == epoch + 2
        with pytest.raises(HostNotAttested):
            await authority.request(host)
        assert (await authority.attest(host)).verdict.passed
        assert (await authority.request(host)).grant_epoch == 1
        assert (await authority.last("host.revoke"))["details"]["why"] == "stolen"
        assert (await authority.last("host.reinstate"))["details"]["why"] == "found"

    async def test_of_one_host_leaves_the_others_alone(self, authority):
        """N55: only the revoked host loses its VMs."""
        host, other = await authority.trusted("esx-1", "esx-2")
        await authority.add_vm(any_host=True)
        epoch = (await authority.request(other)).grant_epoch
        await revoke(authority, host)
        await renew(authority, other, epoch)

    async def test_all_is_one_row(self, authority):
        """S6, S7: the kill switch stops every host at once; each comes back by attesting."""
        hosts = await authority.trusted("esx-1", "esx-2")
        await authority.add_vm(any_host=True)
        epoch = await authority.hosts.revoke_all(why="drill", by=BY, dry_run=False)
        for host in hosts:
            assert await authority.standing(host) == "unknown"
            with pytest.raises(HostRevoked):
                await authority.request(host)
        assert (await authority.last("host.revoke-all"))["details"]["global_epoch"] == epoch
        authority.pass_ms(1, *hosts)
        await authority.attest(hosts[0])
        assert (await authority.request(hosts[0])).grant_epoch == 1
        with pytest.raises(HostRevoked):
            await authority.request(hosts[1])

    async def test_evidence_for_an_older_challenge_does_not_outlive_it(self, authority):
        """N25: a challenge from before the kill switch gives no standing after it."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        invitation = await authority.invite(host)
        authority.pass_ms(1_000, host)
        await authority.hosts.revoke_all(why="", by=BY, dry_run=False)
        await authority.attestation.attest(await authority.record(host), host.evidence(invitation))
        with pytest.raises(HostNotAttested):
            await authority.request(host)
        assert authority.room.answers == []


class TestDetection:
    async def test_a_failed_host_loses_its_lease(self, authority):
        """N55: a re-attestation that fails ends renewals; the trail says which PCR."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        epoch = (await authority.request(host)).grant_epoch
        host.lie_about_pcr(8)
        await authority.attest(host)
        with pytest.raises(HostNotAttested):
            await renew(authority, host, epoch)
        entry = await authority.last("host.attest")
        assert (entry["decision"], "PCR 8" in entry["reason"]) == ("failed", True)
        assert (await authority.last("lease.renew"))["decision"] == "refused"

    async def test_silence_ends_like_failure(self, authority):
        """N89: without evidence the standing is UNKNOWN at its maximum age, and no lease goes on."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        epoch = (await authority.request(host)).grant_epoch
        authority.pass_ms(Policy(name="").evidence.max_age_ms - 1, host)
        await renew(authority, host, epoch)
        authority.pass_ms(1, host)
        assert await authority.standing(host) == "unknown"
        with pytest.raises(HostNotAttested):
            await renew(authority, host, epoch)
