"""Release of VM keys end to end: who gets one, bound to what, and the record that comes first."""

import asyncio
import hashlib
from dataclasses import replace

import pytest
from support.simulated_authority import VM, SimulatedAuthority
from support.simulated_host import SimulatedHost

from hostagent.grant import GrantRefused
from trustauthority.errors import (
    Fenced,
    GrantHeldElsewhere,
    HostNotAttested,
    KeyNotPermitted,
    KmsUnavailable,
    PolicyInvalid,
    QuoteTooOld,
    RateLimited,
    StoreUnavailable,
)
from trustauthority.model.lease import OnLeaseLoss
from trustauthority.model.placement import LeaseClass
from trustauthority.model.policy import Policy
from trustauthority.services.keys import ReleasedKey

LEASES = Policy(name="default").leases
STRICT_MS, SKEW_MS = LEASES.strict_ms, LEASES.skew_ms


async def released_vm(authority: SimulatedAuthority) -> tuple[SimulatedHost, ReleasedKey]:
    """A trusted host with the key of the VM."""
    (host,) = await authority.trusted("esx-1")
    await authority.add_vm(any_host=True)
    return host, await authority.request(host)


async def nothing_leaves(
    authority: SimulatedAuthority,
    host: SimulatedHost,
    error: type[Exception] | tuple[type[Exception], ...],
    vm: str = VM,
) -> None:
    """Assert that a request is refused before the key room hears of it, and audited."""
    orders = len(authority.room.orders)
    with pytest.raises(error):
        await authority.request(host, vm)
    assert len(authority.room.orders) == orders
    entry = await authority.last("key.request")
    assert (entry["decision"], entry["actor"]) == ("refused", f"host:{host.host_id}")
    assert entry["reason"]


class TestKey:
    async def test_the_host_opens_what_it_got(self, authority):
        """L1: an attested host with a reason gets the VM's very key."""
        host, released = await released_vm(authority)
        assert authority.open(host, released) == authority.vm_key()

    async def test_only_this_host_opens_it(self, authority):
        """N53: copied to another attested host, the blob opens nowhere."""
        host, other = await authority.trusted("esx-1", "esx-2")
        await authority.add_vm(any_host=True)
        released = await authority.request(host)
        with pytest.raises(GrantRefused, match="another host"):
            authority.open(other, released)
        with pytest.raises(GrantRefused, match="another storage"):
            authority.open(other, released, host_id=host.host_id)
        with pytest.raises(GrantRefused, match="not the enrolled one"):
            authority.open(
                other, released, host_id=host.host_id, storage_name=host.storage.key.name
            )

    async def test_only_in_this_boot_and_time_with_these_pcrs(self, authority):
        """N53, N81: after a reboot, after T, or with a PCR changed, the TPM refuses."""
        host, released = await released_vm(authority)
        host.restart_count += 1
        with pytest.raises(GrantRefused) as refused:
            authority.open(host, released)
        assert refused.value.reason == "tpm-refused"
        host.restart_count -= 1
        host.lie_about_pcr(7)
        with pytest.raises(GrantRefused, match="the TPM does not open"):
            authority.open(host, released)
        host.lies.pcrs.clear()
        host.lie_about_pcr(10)  # grows while a host runs: no key is sealed to it
        assert authority.open(host, released) == authority.vm_key()
        host.pass_ms(120_000)
        with pytest.raises(GrantRefused, match="the TPM does not open"):
            authority.open(host, released)

    async def test_a_tampered_grant_is_refused(self, authority):
        """N57: any byte of a grant changed, or cut off, and the host refuses it."""
        host, released = await released_vm(authority)
        wire = released.key_grant
        for at in range(len(wire)):
            changed = wire[:at] + bytes([wire[at] ^ 1]) + wire[at + 1 :]
            with pytest.raises(GrantRefused):
                authority.open(host, released, wire=changed)
        for cut in range(0, len(wire), 11):
            with pytest.raises(GrantRefused):
                authority.open(host, released, wire=wire[:cut])

    async def test_a_grant_for_something_else_is_refused(self, authority):
        """N57: for another VM, request, purpose or an epoch that is over."""
        host, released = await released_vm(authority)
        for expected, reason in (
            ({"vm_id": "other"}, "other-vm"),
            ({"request_id": "another-request"}, "other-request"),
            ({"purpose": "prepare"}, "other-purpose"),
            ({"lowest_grant_epoch": released.grant_epoch + 1}, "old-grant-epoch"),
            ({"lowest_key_epoch": 2}, "old-key-epoch"),
        ):
            with pytest.raises(GrantRefused) as refused:
                authority.open(host, released, **expected)
            assert refused.value.reason == reason

    async def test_a_grant_by_another_key_service_is_refused(self, authority, tmp_path):
        """N57: the release key is pinned at enrolment."""
        host, released = await released_vm(authority)
        stranger = SimulatedHost("x", authority_ca_sha256=b"").tpm.ek.public_key()
        with pytest.raises(GrantRefused, match="not pinned"):
            host.open(released, vm=VM, release_key=stranger)


class TestLease:
    @pytest.mark.parametrize(
        ("lease_class", "length"),
        [(LeaseClass.STRICT, STRICT_MS), (LeaseClass.STANDARD, LEASES.standard_ms)],
    )
    async def test_the_reply_echoes_request_and_terms(self, authority, lease_class, length):
        """N50, N85: the host counts its lease from the first send of the id that is echoed."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True, lease_class=lease_class)
        released = await authority.request(host, request_id="request-0000001")
        assert released.request_id == "request-0000001"
        assert (released.terms.lease_ms, released.terms.skew_ms) == (length, SKEW_MS)
        renewed = await authority.keys.renew(
            await authority.record(host),
            vm=VM,
            grant_epoch=released.grant_epoch,
            request_id="request-0000002",
        )
        assert renewed == released.terms

    async def test_a_retry_gets_the_same_grant(self, authority):
        """N27, N85: the reply was lost; the same id gets the same epoch and no longer lease."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        first = await authority.request(host, request_id="request-0000001")
        until = (await authority.placement.get(VM)).lease_until_ms
        authority.pass_ms(20_000, host)
        second = await authority.request(host, request_id="request-0000001")
        assert (second.grant_epoch, second.terms) == (first.grant_epoch, first.terms)
        assert (await authority.placement.get(VM)).lease_until_ms == until
        assert authority.open(host, second) == authority.vm_key()

    async def test_a_retry_after_the_lease_is_refused(self, authority):
        """N85: an id retried for longer than its lease gets nothing; a new id does."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        first = await authority.request(host, request_id="request-0000001")
        authority.pass_ms(STRICT_MS, host)
        await authority.attest(host)
        with pytest.raises(Fenced):
            await authority.request(host, request_id="request-0000001")
        again = await authority.request(host)
        assert again.grant_epoch == first.grant_epoch + 1

    async def test_a_request_id_is_for_one_vm_and_host(self, authority):
        """S2: an id that was decided for one VM or host serves for no other."""
        host, other = await authority.trusted("esx-1", "esx-2")
        await authority.add_vm(any_host=True)
        await authority.add_vm("billing", any_host=True)
        await authority.request(host, request_id="request-0000001")
        for asker, vm in ((host, "billing"), (other, VM), (other, "billing")):
            answers = len(authority.room.answers)
            with pytest.raises(KeyNotPermitted):
                await authority.request(asker, vm, request_id="request-0000001")
            assert len(authority.room.answers) == answers

    async def test_the_blob_opens_no_longer_than_the_lease(self, authority):
        """N53: open-by is the lease's end where that comes first."""
        await authority.apply_policy('name = "short"\n[leases]\nstrict_ms = 20000\n')
        host, released = await released_vm(authority)
        host.pass_ms(20_001)
        with pytest.raises(GrantRefused, match="the TPM does not open"):
            authority.open(host, released)


class TestTerms:
    @pytest.mark.parametrize(
        ("leases", "loss", "longer"),
        [
            ("", OnLeaseLoss.PAUSE_THEN_DESTROY, 0),
            ('on_lease_loss = "destroy"', OnLeaseLoss.DESTROY, 0),
            (
                'on_lease_loss = "continue-for"\ncontinue_for_ms = 60000',
                OnLeaseLoss.CONTINUE_FOR,
                60_000,
            ),
        ],
    )
    async def test_what_happens_at_the_end_is_part_of_the_lease(
        self, authority, leases, loss, longer
    ):
        """S8: the host is told what to do at the end, and the fence counts what it may run on."""
        await authority.apply_policy(f'name = "loss"\n[leases]\nstrict_ms = 20000\n{leases}\n')
        _, released = await released_vm(authority)
        assert (released.terms.on_lease_loss, released.terms.continue_for_ms) == (loss, longer)
        entry = await authority.placement.get(VM)
        assert entry.fence_until_ms - entry.lease_until_ms == longer + entry.skew_ms

    @pytest.mark.parametrize(
        "leases",
        [
            'on_lease_loss = "continue-for"',
            "continue_for_ms = 1",
            'on_lease_loss = "destroy"\ncontinue_for_ms = 1',
            'on_lease_loss = "ignore"',
            'on_lease_loss = "continue-for"\ncontinue_for_ms = -1',
        ],
    )
    async def test_a_policy_that_contradicts_itself_is_refused(self, authority, leases):
        """A length without continue-for, or the other way round, would mean something else to each reader."""
        with pytest.raises(PolicyInvalid):
            await authority.apply_policy(f'name = "loss"\n[leases]\n{leases}\n')


class TestReason:
    async def test_being_attested_is_no_reason(self, authority):
        """N73: a good host asks for every VM and gets the one that was placed there."""
        host, other = await authority.trusted("esx-1", "esx-2")
        for vm in ("a", "b", "c"):
            await authority.add_vm(vm)
        await authority.intend(host, "b")
        await authority.intend(other, "c")
        for vm in ("a", "c", "unknown"):
            await nothing_leaves(authority, host, KeyNotPermitted, vm)
        assert (await authority.request(host, "b")).grant_epoch == 1
        assert (await authority.placement.get("a")).owner is None

    async def test_an_intent_serves_once(self, authority):
        """N73: an intent is used up by the grant, and expires unused."""
        host, other = await authority.trusted("esx-1", "esx-2")
        await authority.add_vm()
        await authority.intend(host)
        released = await authority.request(host)
        await _give_back(authority, host, released)
        await authority.intend(other)
        await _give_back(authority, other, await authority.request(other))
        await nothing_leaves(authority, host, KeyNotPermitted)  # neither last owner nor intended
        await authority.intend(host)
        authority.pass_ms(600_000, host)
        await authority.attest(host)
        await nothing_leaves(authority, host, KeyNotPermitted)

    async def test_the_last_owner_may_start_it_again(self, authority):
        """Design 6.3: a host restarts its VMs while every scheduler is down."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm()
        await authority.intend(host)
        await _give_back(authority, host, await authority.request(host))
        assert (await authority.request(host)).grant_epoch == 2

    async def test_a_vm_of_another_cluster_is_none_of_its_business(self, authority):
        """N73: a VM of another cluster looks like no VM at all, whatever its policy says."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_cluster("lab")
        await authority.add_vm("lab-vm", any_host=True, cluster="lab")
        await nothing_leaves(authority, host, KeyNotPermitted, "lab-vm")

    async def test_caps_hold(self, authority):
        """N73: a host owns and asks for so many VMs and no more."""
        await authority.apply_policy(
            'name = "few"\n[grants]\nmax_live_per_host = 2\nmax_new_per_hour = 3\n'
        )
        (host,) = await authority.trusted("esx-1")
        for vm in ("a", "b", "c"):
            await authority.add_vm(vm, any_host=True)
        await authority.request(host, "a")
        released = await authority.request(host, "b")
        await nothing_leaves(authority, host, KeyNotPermitted, "c")
        await _give_back(authority, host, released, "b")
        await authority.request(host, "c")
        await nothing_leaves(authority, host, KeyNotPermitted, "b")
        await _give_back(authority, host, await _again(authority, "c"), "c")
        await nothing_leaves(authority, host, RateLimited, "b")


async def _again(authority: SimulatedAuthority, vm: str) -> ReleasedKey:
    """The grant of a VM as its row tells it."""
    entry = await authority.placement.get(vm)
    return ReleasedKey(request_id="", grant_epoch=entry.grant_epoch, terms=None, key_grant=b"")  # type: ignore[arg-type]


async def _give_back(
    authority: SimulatedAuthority, host: SimulatedHost, released: ReleasedKey, vm: str = VM
) -> None:
    await authority.keys.give_back(
        await authority.record(host),
        vm=vm,
        grant_epoch=released.grant_epoch,
        request_id="give-back-00001",
    )


class TestRaces:
    async def test_sixteen_requests_of_two_hosts_get_one_owner(self, authority):
        """N48, S2: two hosts on two nodes ask for one VM, sixteen times at once: one owner."""
        one, two = await authority.trusted("esx-1", "esx-2")
        await authority.add_vm(any_host=True)
        nodes = (authority, await authority.another_node())
        outcomes = await asyncio.gather(
            *(
                node.request(host, request_id=f"race-{host.name}-{number}")
                for number in range(4)
                for node in nodes
                for host in (one, two)
            ),
            return_exceptions=True,
        )
        granted = [each for each in outcomes if isinstance(each, ReleasedKey)]
        refused = [each for each in outcomes if not isinstance(each, ReleasedKey)]
        assert granted
        assert all(isinstance(each, GrantHeldElsewhere | Fenced) for each in refused)
        owner = (await authority.placement.get(VM)).owner
        loser = two if owner == one.host_id else one
        released = [e for e in await authority.log("key.release") if e["decision"] == "allowed"]
        assert {entry["actor"] for entry in released} == {f"host:{owner}"}
        await nothing_leaves(authority, loser, GrantHeldElsewhere)

    async def test_epochs_of_a_vm_are_never_used_twice(self, authority):
        """S3: each new grant has a higher epoch than every one before it."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        released = await asyncio.gather(
            *(authority.request(host) for _ in range(8)), return_exceptions=True
        )
        epochs = [each.grant_epoch for each in released if isinstance(each, ReleasedKey)]
        assert len(epochs) == len(set(epochs)) >= 1
        assert (await authority.placement.get(VM)).grant_epoch == 8

    async def test_another_host_waits_for_the_fence(self, authority):
        """S2, S8: the next owner comes in after lease and skew, not one millisecond before."""
        one, two = await authority.trusted("esx-1", "esx-2")
        await authority.add_vm(any_host=True)
        await authority.request(one)
        authority.pass_ms(STRICT_MS + SKEW_MS - 1, one, two)
        await authority.attest(two)
        await nothing_leaves(authority, two, GrantHeldElsewhere)
        authority.pass_ms(1, one, two)
        assert (await authority.request(two)).grant_epoch == 2

    async def test_a_step_of_the_clock_frees_no_vm(self, authority):
        """N86: the store's clock jumps an hour; nobody else gets in before the longest fence."""
        one, two = await authority.trusted("esx-1", "esx-2")
        await authority.add_vm(any_host=True)
        await authority.request(one)
        authority.clock.step_ms(600_000)
        await authority.attest(two)
        await nothing_leaves(authority, two, GrantHeldElsewhere)
        authority.pass_ms(STRICT_MS + SKEW_MS, one, two)
        await authority.attest(two)
        assert (await authority.request(two)).grant_epoch == 2


class TestRecordFirst:
    async def test_authorised_before_the_kms_released_before_the_reply(self, authority):
        """S9: while the KMS thinks, *authorised* is durable; with the reply, *released* is."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        another = await authority.another_node()  # reads what is durable, over its own connection
        gate = authority.room.hold()
        asking = asyncio.create_task(authority.request(host, request_id="request-0000001"))
        await gate.reached.wait()
        entry = await another.last("key.request")
        assert (entry["decision"], entry["details"]["request"]) == ("allowed", "request-0000001")
        assert await another.log("key.release") == []
        gate.open()
        released = await asking
        entry = await another.last("key.release")
        assert entry["decision"] == "allowed"
        digest = hashlib.sha256(released.key_grant).hexdigest()
        assert entry["details"]["response_sha256"] == digest

    async def test_no_room_for_the_record_no_key(self, authority):
        """N66, S9: when the audit log can't be written, nothing leaves."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        await authority.write_ddl("ALTER TABLE audit RENAME TO lost")
        with pytest.raises(StoreUnavailable):
            await authority.request(host)
        assert authority.room.orders == []
        await authority.write_ddl("ALTER TABLE lost RENAME TO audit")
        assert (await authority.placement.get(VM)).owner is None

    async def test_the_record_fails_after_the_kms_answered(self, authority):
        """N66, S9: the grant is made, *released* can't be written: the caller gets no bytes."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        gate = authority.room.hold()
        asking = asyncio.create_task(authority.request(host, request_id="request-0000001"))
        await gate.reached.wait()
        await authority.write_ddl("ALTER TABLE audit RENAME TO lost")
        gate.open()
        with pytest.raises(StoreUnavailable):
            await asking
        assert len(authority.room.answers) == 1
        await authority.write_ddl("ALTER TABLE lost RENAME TO audit")
        again = await authority.request(host, request_id="request-0000001")
        assert again.grant_epoch == 1

    async def test_every_answer_has_its_entry(self, authority):
        """S9, I-D: grants and refusals, renewals and give-backs, one entry each, with reasons."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        released = await authority.request(host)
        record = await authority.record(host)
        renewal = {"vm": VM, "request_id": "request-0000009"}
        await authority.keys.renew(record, grant_epoch=1, **renewal)
        with pytest.raises(Fenced):
            await authority.keys.renew(record, grant_epoch=9, **renewal)
        await _give_back(authority, host, released)
        with pytest.raises(Fenced):
            await authority.keys.renew(record, grant_epoch=1, **renewal)
        told = [
            (entry["operation"], entry["decision"])
            for entry in await authority.log()
            if entry["subject"] == VM and entry["actor"].startswith("host:")
        ]
        assert told == [
            ("key.request", "allowed"),
            ("key.release", "allowed"),
            ("lease.renew", "allowed"),
            ("lease.renew", "refused"),
            ("key.give-back", "allowed"),
            ("lease.renew", "refused"),
        ]
        refusals = [e for e in await authority.log("lease.renew") if e["decision"] == "refused"]
        assert [e["reason"] for e in refusals] == ["grant-epoch-current", "asker-owns"]


class TestSeals:
    """The key role believes a verdict that the attest role signed, never a column (T14)."""

    FORGERIES = (
        "attested_until_ms = attested_until_ms + 3600000",
        "verdict_policy_epoch = verdict_policy_epoch + 1",
        "verdict_trust_epoch = verdict_trust_epoch + 1",
        "verdict_global_epoch = verdict_global_epoch + 1",
        "boot = x'0000000500000009'",
        "tpm_position = x'000000050000000900000000000f4240'",
        "verdict_id = 'nothing'",
        "warned = NOT warned",
    )

    @pytest.mark.parametrize("forgery", FORGERIES)
    async def test_an_edited_row_releases_nothing(self, authority, forgery):
        """T14: the row must say what the seal says, column by column."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        await authority.write_sql(f"UPDATE host SET {forgery}")  # noqa: S608 - the test's own text
        await nothing_leaves(authority, host, (HostNotAttested, Fenced))

    async def test_a_failed_host_can_not_be_edited_into_a_passed_one(self, authority):
        """T14: setting the columns of a pass beside the seal of a failure releases nothing."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        host.lie_about_pcr(7)
        await authority.attest(host)
        await nothing_leaves(authority, host, HostNotAttested)
        until = authority.clock.now_ms() + 3_600_000
        await authority.write_sql(
            "UPDATE host SET passed = 1, reason = '', attested_until_ms = :until", until=until
        )
        await nothing_leaves(authority, host, HostNotAttested)

    async def test_an_older_pass_is_not_the_newest_verdict(self, authority):
        """T14: pointing the row at an older good verdict fails by the boot and times it seals."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        good = (await authority.record(host)).verdict_id
        host.reboot()
        host.lie_about_pcr(7)
        await authority.attest(host)
        await authority.write_sql("UPDATE host SET passed = 1, verdict_id = :good", good=good)
        await nothing_leaves(authority, host, HostNotAttested)

    async def test_the_seal_of_another_host_releases_nothing(self, authority):
        """T14: a seal names its host and verdict."""
        host, other = await authority.trusted("esx-1", "esx-2")
        await authority.add_vm(any_host=True)
        theirs = (await authority.record(other)).verdict_id
        await authority.write_sql(
            "UPDATE host SET verdict_id = :theirs WHERE host_id = :host",
            theirs=theirs,
            host=host.host_id,
        )
        await nothing_leaves(authority, host, HostNotAttested)
        _, stored = await authority.hosts.get(other.host_id)
        mine = "a" * 64
        await authority.write_sql(
            "INSERT INTO verdict SELECT :mine, :host, passed, decided_at_ms, document, seal, report, "
            "evidence_sha256, boot_log_sha256, ima_log_sha256, size FROM verdict "
            "WHERE verdict_id = :theirs",
            mine=mine,
            host=host.host_id,
            theirs=theirs,
        )
        await authority.write_sql(
            "UPDATE host SET verdict_id = :mine WHERE host_id = :host",
            mine=mine,
            host=host.host_id,
        )
        await nothing_leaves(authority, host, HostNotAttested)
        assert stored is not None

    async def test_an_unsigned_seal_releases_nothing(self, authority):
        """T14, N68: cut, unsigned, signed by nobody we know, or a report in its place."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        _, stored = await authority.hosts.get(host.host_id)
        header, claims, signature = stored["seal"].split(".")
        for seal in (
            "",
            f"{header}.{claims}.",
            f"{header}.{claims}.{signature[:-4]}AAAA",
            f"eyJhbGciOiJub25lIn0.{claims}.",
            stored["report"],
        ):
            await authority.write_sql("UPDATE verdict SET seal = :seal", seal=seal)
            await nothing_leaves(authority, host, HostNotAttested)

    async def test_an_old_quote_binds_no_key(self, authority):
        """N19: a key is bound to the TPM clock of a quote that is at most a minute old."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        authority.pass_ms(60_001, host)
        await nothing_leaves(authority, host, QuoteTooOld)
        await authority.attest(host)
        assert authority.open(host, await authority.request(host)) == authority.vm_key()


class TestKms:
    async def test_a_dead_kms_gives_nothing_and_loses_nothing(self, authority):
        """N56: nothing leaves, the failure is audited, the same id works once the KMS is back."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        authority.room.fail()
        with pytest.raises(KmsUnavailable):
            await authority.request(host, request_id="request-0000001")
        entry = await authority.last("key.release")
        assert (entry["decision"], entry["reason"]) == ("refused", "KMS_UNAVAILABLE")
        assert authority.room.answers == []
        assert not (await authority.key_providers.health())["default"].usable
        authority.room.recover()
        released = await authority.request(host, request_id="request-0000001")
        assert authority.open(host, released) == authority.vm_key()

    async def test_the_holder_may_give_back_after_a_failure(self, authority):
        """L3: a failed release holds the VM from nobody once its holder gave it back."""
        one, two = await authority.trusted("esx-1", "esx-2")
        await authority.add_vm(any_host=True)
        authority.room.fail()
        with pytest.raises(KmsUnavailable):
            await authority.request(one)
        authority.room.recover()
        await _give_back(authority, one, await _again(authority, VM))
        assert (await authority.request(two)).grant_epoch == 2

    async def test_a_kms_that_unwraps_for_another_vm_is_found_out(self, authority):
        """N56: the wrapping is bound to VM, epoch and provider; a swapped row does not unwrap."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        await authority.add_vm("victim")
        await authority.write_sql(
            "UPDATE vm_key SET wrapped = (SELECT wrapped FROM vm_key WHERE vm_id = 'victim') "
            "WHERE vm_id = :vm",
            vm=VM,
        )
        with pytest.raises(KmsUnavailable):
            await authority.request(host)
        assert authority.room.answers == []

    async def test_a_wrong_answer_is_refused_by_the_host(self, authority):
        """N56, N57: truncated, or the grant of another request: the host takes none of them."""
        host, released = await released_vm(authority)
        authority.room.change_answers(lambda wire: wire[:-8])
        with pytest.raises(GrantRefused):
            authority.open(host, await authority.request(host))
        authority.room.change_answers(lambda _: released.key_grant)
        with pytest.raises(GrantRefused, match="another request"):
            authority.open(host, await authority.request(host))
        authority.room.recover()
        authority.room.mistake_orders(
            lambda order: replace(order, binding=replace(order.binding, vm_id="other"))
        )
        with pytest.raises(GrantRefused, match="another vm"):
            authority.open(host, await authority.request(host))

    async def test_the_service_never_holds_a_plaintext_key(self, authority):
        """Section 9: no VM key in any row, order, answer or audit entry of the authority."""
        host, released = await released_vm(authority)
        key = authority.open(host, released)
        told = repr(authority.room.orders) + repr(await authority.log())
        assert key.hex() not in told
        assert key not in released.key_grant
        for path in authority.stores.path.parent.iterdir():
            assert key not in path.read_bytes()
