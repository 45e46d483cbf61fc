"""Break-glass end to end: a host whose verdict is FAILED gets one VM once, loudly; nobody else does."""

import asyncio

import pytest
from support.simulated_authority import BY, CLUSTER, VM, SimulatedAuthority
from support.simulated_host import SimulatedHost

from hostagent.grant import GrantRefused
from trustauthority.errors import (
    AlreadyExists,
    BreakGlassOver,
    FailedPrecondition,
    HostNotAttested,
    HostRevoked,
    InvalidRequest,
    KmsUnavailable,
    NotFound,
)
from trustauthority.model.placement import Sharing

MINUTE_MS = 60_000
REASON = "policy fails every host, INC-481"


async def broken(authority: SimulatedAuthority, *names: str) -> list[SimulatedHost]:
    """Hosts of ours that a new policy fails, all at once: three in the morning."""
    hosts = await authority.trusted(*names)
    await authority.add_vm()
    await authority.apply_policy('name = "broken"\n[boot]\nhost_class = "required"\n')
    for host in hosts:
        assert not (await authority.attest(host)).verdict.passed
    return hosts


async def open_glass(authority, host, vm=VM, *, minutes=60, reason=REASON):
    return await authority.break_glass.open(
        vm, host.host_id, reason=reason, ttl_ms=minutes * MINUTE_MS, by=BY
    )


class TestOpens:
    async def test_the_host_gets_the_vm_and_its_tpm_opens_it(self, authority):
        """Break-glass: the policy is what broke; the key goes to that host's TPM and boot."""
        (host,) = await broken(authority, "esx-1")
        with pytest.raises(HostNotAttested):
            await authority.request(host)
        await open_glass(authority, host)
        released = await authority.request(host)
        assert authority.open(host, released) == authority.vm_key()
        host.restart_count += 1
        with pytest.raises(GrantRefused):
            authority.open(host, released)

    async def test_it_is_in_the_audit_log_with_its_reason(self, authority):
        """I-D: who opened it and why stands beside what it let through."""
        (host,) = await broken(authority, "esx-1")
        glass = await open_glass(authority, host)
        await authority.request(host)
        opened, used = [await authority.last(f"key.{each}-break-glass") for each in ("open", "use")]
        assert opened["actor"] == BY
        assert opened["details"]["reason"] == used["details"]["reason"] == REASON
        assert used["decision"] == "allowed"
        assert used["actor"] == f"host:{host.host_id}"
        assert used["details"]["glass"] == glass.glass_id
        assert used["details"]["opened_by"] == BY
        assert used["details"]["instead_of"] == "HOST_NOT_ATTESTED"
        assert (await authority.last("key.release"))["decision"] == "allowed"
        assert authority.journal.events[-2][0] == "break_glass"

    async def test_the_lease_ends_with_it(self, authority):
        """Time-boxed: the reply, the row and the fence end when the break-glass does."""
        (host,) = await broken(authority, "esx-1")
        glass = await open_glass(authority, host, minutes=2)
        released = await authority.request(host)
        assert released.terms.lease_ms == 2 * MINUTE_MS
        row = await authority.placement.get(VM)
        assert row.lease_until_ms == glass.expires_ms
        assert row.fence_until_ms == glass.expires_ms + row.skew_ms

    async def test_renewals_go_on_until_it_ends(self, authority):
        """Time-boxed: renewals end with it, and then only a good verdict helps."""
        (host,) = await broken(authority, "esx-1")
        await open_glass(authority, host, minutes=2)
        released = await authority.request(host)
        authority.pass_ms(MINUTE_MS, host)
        terms = await _renew(authority, host, released.grant_epoch)
        assert terms.lease_ms == MINUTE_MS
        entry = await authority.last("lease.renew-by-break-glass")
        assert (entry["decision"], entry["details"]["reason"]) == ("allowed", REASON)
        authority.pass_ms(MINUTE_MS, host)
        with pytest.raises(HostNotAttested):
            await _renew(authority, host, released.grant_epoch)

    async def test_a_host_that_passes_again_goes_on_by_itself(self, authority):
        """The ordinary way is tried first: a mended policy takes over without another break."""
        (host,) = await broken(authority, "esx-1")
        await open_glass(authority, host, minutes=2)
        released = await authority.request(host)
        await authority.apply_policy('name = "mended"\n')
        assert (await authority.attest(host)).verdict.passed
        terms = await _renew(authority, host, released.grant_epoch)
        assert terms.lease_ms == (await authority.placement.get(VM)).lease_ms

    async def test_a_retry_that_passes_by_itself_gets_no_longer_lease(self, authority):
        """S1: a host told of a lease beyond its fence would run beside the next owner."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm()
        await open_glass(authority, host, minutes=2)  # there is no intent
        released = await authority.request(host, request_id="r" * 16)
        again = await authority.request(host, request_id="r" * 16)
        row = await authority.placement.get(VM)
        assert again.grant_epoch == released.grant_epoch
        assert row.lease_ms > 2 * MINUTE_MS
        assert released.terms.lease_ms == again.terms.lease_ms == 2 * MINUTE_MS
        (glass,), _ = await authority.break_glass.listed(every=False)
        await authority.break_glass.close(glass.glass_id, by=BY)
        closed = await authority.request(host, request_id="r" * 16)
        assert closed.terms.lease_ms == 2 * MINUTE_MS

    async def test_a_passing_host_does_not_use_it_up(self, authority):
        """The break-glass is for what is broken: an ordinary release leaves it unused."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        await open_glass(authority, host)
        await authority.request(host)
        (glass,), _ = await authority.break_glass.listed(every=False)
        assert glass.used_by is None


class TestStaysClosed:
    async def test_without_one(self, authority):
        """No break-glass, no way round the verdict; nothing reaches the key room."""
        (host,) = await broken(authority, "esx-1")
        with pytest.raises(HostNotAttested):
            await authority.request(host)
        assert authority.room.orders == []
        assert await authority.log("key.use-break-glass") == []

    async def test_used_twice(self, authority):
        """Single use: the second request gets nothing, and the log says that it was used."""
        (host,) = await broken(authority, "esx-1")
        await open_glass(authority, host)
        first = await authority.request(host)
        await authority.keys.give_back(
            await authority.record(host), vm=VM, grant_epoch=first.grant_epoch, request_id="g" * 16
        )
        orders = len(authority.room.orders)
        with pytest.raises(HostNotAttested):
            await authority.request(host)
        assert len(authority.room.orders) == orders
        entry = await authority.last("key.use-break-glass")
        assert (entry["decision"], entry["reason"]) == ("refused", "break-glass-unused")

    async def test_expired(self, authority):
        """Time-boxed: after its end it lets nothing through."""
        (host,) = await broken(authority, "esx-1")
        await open_glass(authority, host, minutes=1)
        authority.pass_ms(MINUTE_MS, host)
        await authority.attest(host)
        with pytest.raises(HostNotAttested):
            await authority.request(host)

    async def test_closed(self, authority):
        """Closing narrows at once: no request, and no renewal of what it gave."""
        (host,) = await broken(authority, "esx-1")
        glass = await open_glass(authority, host)
        released = await authority.request(host)
        await authority.break_glass.close(glass.glass_id, by=BY)
        with pytest.raises(HostNotAttested):
            await _renew(authority, host, released.grant_epoch)
        with pytest.raises(NotFound):
            await authority.break_glass.close(glass.glass_id, by=BY)

    async def test_another_host_and_another_vm(self, authority):
        """One host, one VM: neither a second host nor a second VM profits."""
        host, other = await broken(authority, "esx-1", "esx-2")
        await authority.add_vm("billing")
        await open_glass(authority, host)
        for asker, vm in ((other, VM), (host, "billing"), (other, "billing")):
            with pytest.raises(HostNotAttested):
                await authority.request(asker, vm)
        assert authority.room.orders == []

    async def test_a_revoked_host(self, authority):
        """S7: revoked after it was opened, before or after it was used: nothing any more."""
        (host,) = await broken(authority, "esx-1")
        await open_glass(authority, host)
        released = await authority.request(host)
        await authority.hosts.revoke(host.host_id, why="stolen", by=BY, dry_run=False)
        with pytest.raises(HostRevoked):
            await _renew(authority, host, released.grant_epoch)
        with pytest.raises(HostRevoked):
            await authority.request(host)
        with pytest.raises(FailedPrecondition, match="revoked"):
            await open_glass(authority, host, "payroll")

    async def test_held_elsewhere(self, authority):
        """I-C: the fence of a healthy owner holds whatever is opened."""
        (owner,) = await authority.trusted("esx-0")
        host = await authority.enrolled("esx-1")
        await authority.add_vm(any_host=True)
        await authority.request(owner)
        host.lie_about_pcr(7)
        await authority.attest(host)
        await open_glass(authority, host)
        orders = len(authority.room.orders)
        with pytest.raises(HostNotAttested):
            await authority.request(host)
        assert len(authority.room.orders) == orders
        assert (await authority.last("key.use-break-glass"))["reason"] == "clear-of-others"

    async def test_without_a_fresh_quote(self, authority):
        """The quote must be genuine and of this minute: silence is no emergency."""
        (host,) = await broken(authority, "esx-1")
        await open_glass(authority, host)
        authority.pass_ms(MINUTE_MS + 1, host)
        with pytest.raises(HostNotAttested):
            await authority.request(host)
        entry = await authority.last("key.use-break-glass")
        assert (entry["decision"], entry["reason"]) == ("refused", "quoted-lately")
        await authority.attest(host)
        assert authority.open(host, await authority.request(host)) == authority.vm_key()

    async def test_a_host_that_was_never_attested(self, authority):
        """Genuine evidence first: an enrolled host that showed none has nothing to seal to."""
        host = await authority.enrolled("esx-1")
        await authority.add_vm()
        await open_glass(authority, host)
        with pytest.raises(HostNotAttested):
            await authority.request(host)
        assert authority.room.orders == []

    async def test_a_forged_seal(self, authority):
        """T14: the quote comes from the signed verdict; a row that says otherwise releases nothing."""
        (host,) = await broken(authority, "esx-1")
        await open_glass(authority, host)
        await authority.write_sql("UPDATE verdict SET seal = 'x.y.z'")
        with pytest.raises(HostNotAttested):
            await authority.request(host)
        assert authority.room.orders == []

    async def test_the_kms_fails(self, authority):
        """N56: nothing left; the same request id gets it once the KMS is back, still single use."""
        (host,) = await broken(authority, "esx-1")
        await open_glass(authority, host)
        authority.room.fail()
        with pytest.raises(KmsUnavailable):
            await authority.request(host, request_id="request-0000001")
        authority.room.recover()
        released = await authority.request(host, request_id="request-0000001")
        assert authority.open(host, released) == authority.vm_key()

    async def test_closed_while_the_kms_answers(self, authority):
        """N90: closed between the transactions: transaction 2 refuses, nothing leaves."""
        (host,) = await broken(authority, "esx-1")
        glass = await open_glass(authority, host)
        gate = authority.room.hold()
        asking = asyncio.create_task(authority.request(host))
        await gate.reached.wait()
        await authority.break_glass.close(glass.glass_id, by=BY)
        gate.open()
        with pytest.raises(BreakGlassOver):
            await asking
        assert (await authority.last("key.release"))["decision"] == "refused"

    async def test_a_restored_database_has_none_open(self, authority):
        """Single use also across a restore: what may have been used since is closed."""
        (host,) = await broken(authority, "esx-1")
        await open_glass(authority, host)
        async with authority.store.transaction() as tx:
            await tx.restart.jump()
        assert await authority.break_glass.listed(every=False) == ([], authority.clock.now_ms())


class TestOpening:
    @pytest.mark.parametrize("reason", ["", "         ", "too short"])
    async def test_without_a_reason(self, authority, reason):
        """Auditors will ask: no reason, no break-glass."""
        (host,) = await broken(authority, "esx-1")
        with pytest.raises(InvalidRequest, match="why"):
            await open_glass(authority, host, reason=reason)
        assert await authority.log("key.open-break-glass") == []

    @pytest.mark.parametrize("minutes", [0, 8 * 60 + 1, -5])
    async def test_for_too_long(self, authority, minutes):
        """Time-boxed: 1 minute to 8 hours."""
        (host,) = await broken(authority, "esx-1")
        with pytest.raises(InvalidRequest, match="8 hours"):
            await open_glass(authority, host, minutes=minutes)

    async def test_what_could_never_be_used(self, authority):
        """Told at once: unknown host or VM, a host that is not ours, another cluster, one open already."""
        (host,) = await broken(authority, "esx-1")
        with pytest.raises(NotFound):
            await open_glass(authority, host, "unknown")
        with pytest.raises(NotFound):
            await authority.break_glass.open(
                VM, "h-unknown", reason=REASON, ttl_ms=MINUTE_MS, by=BY
            )
        stranger = authority.host("stranger")
        await authority.enrol(stranger)
        with pytest.raises(FailedPrecondition, match="not admitted"):
            await open_glass(authority, stranger)
        await authority.add_cluster("lab")
        await authority.add_vm("lab-vm", cluster="lab")
        with pytest.raises(FailedPrecondition, match="cluster"):
            await open_glass(authority, host, "lab-vm")
        await authority.add_vm("etcd", sharing=Sharing.SHARED)
        with pytest.raises(FailedPrecondition, match="shared"):
            await open_glass(authority, host, "etcd")
        await open_glass(authority, host)
        with pytest.raises(AlreadyExists):
            await open_glass(authority, host)
        assert host.cluster == CLUSTER


async def _renew(authority, host, epoch):
    return await authority.keys.renew(
        await authority.record(host), vm=VM, grant_epoch=epoch, request_id="n" * 16
    )
