"""The host agent against a real gRPC authority: enrolment, mutual TLS, evidence, keys, leases."""

import asyncio
import hashlib
import json
import os
import socket
import ssl
import stat
import sys
import time
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from google.rpc import code_pb2
from support.agent_authority import VM_KEY, Authority, Trouble, refusal
from support.agent_host import AgentWorld

from hostagent.events import Admission, Phase
from hostagent.failure import CallFailed, FailureKind
from hostagent.front import handle
from hostagent.lease_model import Phase as VmPhase
from hostagent.lease_model import VmAction
from trustauthority.v1 import attestation_pb2 as at
from trustauthority.v1 import common_pb2 as common


def boottime() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


@pytest.fixture
async def authority():
    made = Authority()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def world(tmp_path, authority):
    return AgentWorld(tmp_path, authority)


class Running:
    """An agent in the background for the length of a ``with``."""

    def __init__(self, agent):
        self.agent = agent

    async def __aenter__(self):
        self.task = asyncio.create_task(self.agent.run())
        return self.agent

    async def __aexit__(self, *_):
        self.agent.halt()
        await asyncio.wait_for(self.task, 10)


async def until(condition, limit_s=8.0):
    """Wait for something the agent does in its own time."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


async def enrolled(world):
    host = world.host()
    await host.enrol(lambda _step, _seconds: None)
    return host


class TestEnrolment:
    async def test_four_steps_end_in_a_stored_identity(self, world, authority):
        """Enrolment runs challenge, certify, enrol, open, activate, and leaves 0600 files (N60)."""
        seen = []
        host = world.host()
        await host.enrol(lambda step, seconds: seen.append(step))
        assert seen == ["challenge", "certify", "enrol", "open-credential", "activate"]
        stored = world.root / "state/identity.json"
        assert stat.S_IMODE(stored.stat().st_mode) == 0o600
        assert world.host().identity == host.identity
        assert host.identity.admission is Admission.ADMITTED

    async def test_certifications_are_bound_to_authority_cluster_name_and_role(
        self, world, authority
    ):
        """N78: both keys are certified for this CA, cluster, name, challenge, EK, AK and role."""
        await enrolled(world)
        ca = hashlib.sha256(authority.ca.public_bytes(Encoding.DER)).digest()
        parts = (b"prod", b"host-a", b"enrol-challenge", b"ek public", b"ak name")
        joined = b"".join(hashlib.sha256(p).digest() for p in parts)
        expected = [
            hashlib.sha256(
                b"trustauthority/enrol/v1\0" + ca + joined + hashlib.sha256(role).digest()
            ).digest()
            for role in (b"tls", b"storage")
        ]
        assert [data for _, data in world.tpm.certified] == expected

    async def test_the_ek_certificate_travels_padding_and_all(self, world, authority):
        """The agent parses nothing: NV bytes go out as they were read."""
        await enrolled(world)
        assert authority.asked_for("Enrol")[0].ek_certificate == b"ek certificate\xff\xff"

    async def test_a_server_of_another_ca_is_never_talked_to(self, world, authority):
        """Never trust on first use: another CA's server gets no byte of an enrolment."""
        (world.root / "ca.pem").write_bytes(Authority().ca_pem)
        with pytest.raises(CallFailed) as failed:
            await enrolled(world)
        assert failed.value.failure.kind is FailureKind.NO_ANSWER
        assert authority.asked == []

    async def test_another_release_key_is_not_followed_silently(self, world, authority):
        """What was pinned at enrolment stays pinned until an operator says otherwise."""
        host = await enrolled(world)
        before = host.identity
        authority.release_key = Authority().release_key
        with pytest.raises(CallFailed, match="AUTHORITY_CHANGED"):
            await host.enrol(lambda _step, _seconds: None)
        assert host.identity == before
        await host.enrol(lambda _step, _seconds: None, accept_new_authority=True)
        assert host.identity.release_public_key != before.release_public_key

    async def test_an_enrolment_under_another_name_is_kept(self, world, authority):
        """A certificate is renewed under the name the host enrolled with, not the configured one."""
        host = world.host()
        await host.enrol(lambda _step, _seconds: None, name="host-z")
        await world.host().enrol(lambda _step, _seconds: None)
        assert [r.name for r in authority.asked_for("Enrol")] == ["host-z", "host-z"]

    async def test_refusal_says_reason_and_exit_code(self, world, authority):
        """PERMISSION_DENIED with a reason ends in exit status 4 (style.md 3.5)."""
        authority.trouble["Enrol"].append(
            refusal("ENDORSEMENT_UNTRUSTED", code_pb2.PERMISSION_DENIED)
        )
        with pytest.raises(CallFailed) as failed:
            await enrolled(world)
        assert failed.value.failure.reason == "ENDORSEMENT_UNTRUSTED"
        assert failed.value.failure.exit_code == 4


class TestAttestation:
    async def test_enrols_then_attests_over_mutual_tls(self, world, authority):
        """From nothing to PASSED: the handshake is signed by the TPM's key, never by a file."""
        async with Running(world.agent(boottime)) as agent:
            await until(lambda: agent.machine.phase is Phase.PASSED)
        assert world.tpm.signatures >= 1
        secrets_on_disk = [p for p in world.root.rglob("*") if b"PRIVATE KEY" in _content(p)]
        assert secrets_on_disk == []

    async def test_quote_answers_challenge_tls_key_and_purpose(self, world, authority):
        """N11: qualifyingData binds the challenge, the TLS identity and the purpose."""
        async with Running(world.agent(boottime)) as agent:
            await until(lambda: agent.machine.phase is Phase.PASSED)
        evidence = authority.evidence[0]["quote"]
        fields = (
            b"trustauthority/qualifying-data/v1",
            evidence.challenge,
            world.tpm.keys().identity.name,
            b"attest",
        )
        joined = b"".join(len(f).to_bytes(2, "big") + f for f in fields)
        assert evidence.attest == b"quote" + hashlib.sha256(joined).digest()

    async def test_logs_go_out_whole_in_small_messages(self, world, authority):
        """Nothing known: all logs travel verbatim in chunks of at most 256 KiB (rule 49)."""
        (world.root / "userspace.log").write_bytes(b"\x1e{}\n")
        async with Running(world.agent(boottime)) as agent:
            await until(lambda: agent.machine.phase is Phase.PASSED)
        sent = authority.evidence[0]
        assert sent["boot"] == (world.root / "boot.log").read_bytes()
        assert sent["ima"] == (world.root / "ima.log").read_bytes()
        assert sent["userspace"] == b"\x1e{}\n"
        assert max(sent["sizes"]) < 257 * 1024

    async def test_only_news_is_sent(self, world, authority):
        """A known boot log is named by hash, the IMA log starts at the verified offset."""
        boot = (world.root / "boot.log").read_bytes()
        authority.known = at.KnownLogs(
            boot_log_sha256=hashlib.sha256(boot).digest(),
            reset_count=3,
            restart_count=1,
            ima_offset=599_990,
        )
        async with Running(world.agent(boottime)) as agent:
            await until(lambda: agent.machine.phase is Phase.PASSED)
        sent = authority.evidence[0]
        assert (sent["boot"], sent["ima"]) == (b"", b"ima entry ")
        assert sent["quote"].ima_offset == 599_990

    async def test_an_offset_of_another_boot_is_not_used(self, world, authority):
        """After a reset the IMA log starts anew, so it is sent from its beginning."""
        authority.known = at.KnownLogs(reset_count=2, restart_count=1, ima_offset=599_990)
        async with Running(world.agent(boottime)) as agent:
            await until(lambda: agent.machine.phase is Phase.PASSED)
        assert authority.evidence[0]["quote"].ima_offset == 0
        assert len(authority.evidence[0]["ima"]) == 600_000

    async def test_the_next_challenge_rides_in_the_report(self, world, authority):
        """The second attestation asks for no challenge."""
        authority.again_ms = 100
        async with Running(world.agent(boottime)):
            await until(lambda: len(authority.evidence) >= 2)
        assert len(authority.asked_for("GetChallenge")) == 1
        assert authority.evidence[1]["quote"].challenge.startswith(b"next-")

    async def test_a_stale_challenge_is_replaced_at_once(self, world, authority):
        """CHALLENGE_EXPIRED: a new challenge, without waiting."""
        authority.trouble["Attest"].append(refusal("CHALLENGE_EXPIRED", code_pb2.ABORTED))
        async with Running(world.agent(boottime)) as agent:
            await until(lambda: agent.machine.phase is Phase.PASSED)
        assert len(authority.asked_for("GetChallenge")) == 2

    async def test_failed_is_an_answer(self, world, authority):
        """A FAILED verdict is shown with its checks, and attesting goes on at its interval."""
        authority.standing = common.STANDING_FAILED
        async with Running(world.agent(boottime)) as agent:
            await until(lambda: agent.machine.phase is Phase.FAILED)
            answer = await handle(agent, {"do": "status"})
        assert [c["id"] for c in answer["failed_checks"]] == ["boot.kernel-command-line"]

    async def test_unavailable_is_retried(self, world, authority):
        """UNAVAILABLE and RATE_LIMITED are waited out."""
        authority.trouble["GetChallenge"] += [
            Trouble(),
            Trouble(code=code_pb2.RESOURCE_EXHAUSTED, reason="RATE_LIMITED", retry_ms=50),
        ]
        async with Running(world.agent(boottime)) as agent:
            await until(lambda: agent.machine.phase is Phase.PASSED)
        assert len(authority.asked_for("GetChallenge")) == 3

    async def test_an_expired_certificate_comes_back_by_itself(self, world, authority):
        """A host that was off for a weekend re-activates with the same keys."""
        authority.certificate_life = timedelta(seconds=1)
        await enrolled(world)
        authority.certificate_life = timedelta(hours=1)
        await asyncio.sleep(1.1)  # certificates are checked against the wall clock
        async with Running(world.agent(boottime)) as agent:
            await until(lambda: agent.machine.phase is Phase.PASSED)
        assert len(authority.asked_for("Activate")) == 2

    async def test_a_renewed_certificate_rides_in_the_report(self, world, authority):
        """A certificate in a report is stored and used; no second enrolment is needed."""
        authority.renew_with_report = True
        async with Running(world.agent(boottime)) as agent:
            first = None
            await until(lambda: agent.machine.phase is Phase.PASSED)
            first = agent.host.identity.certificate_chain
        assert world.host().identity.certificate_chain == first
        assert len(authority.asked_for("Activate")) == 1

    async def test_a_pushed_wish_hastens_the_next_attestation(self, world, authority):
        """The watch stream is best effort: it only makes the agent ask earlier."""
        authority.pushes = [at.WatchHostResponse(wish=at.HOST_WISH_ATTEST_NOW)]
        async with Running(world.agent(boottime)):
            await until(lambda: len(authority.evidence) >= 2)
        assert authority.again_ms == 60_000


class TestCheckpoints:
    async def test_the_highest_checkpoint_is_kept_and_echoed(self, world, authority):
        """N91: what was seen is shown again, also by the next process."""
        async with Running(world.agent(boottime)) as agent:
            await until(lambda: agent.machine.phase is Phase.PASSED)
        assert (world.root / "state/checkpoint").read_bytes() == authority.note()
        async with Running(world.agent(boottime)):
            await until(lambda: len(authority.evidence) >= 2)
        echoed = authority.metadata_of("GetChallenge")[1]["ta-checkpoint-bin"]
        assert echoed == authority.note()

    async def test_a_checkpoint_on_an_error_counts_too(self, world, authority):
        """Checkpoints ride on every answer, errors too."""
        authority.trouble["GetChallenge"].append(Trouble(size=11))
        async with Running(world.agent(boottime)) as agent:
            await until(lambda: agent.machine.phase is Phase.PASSED)
        assert (world.root / "state/checkpoint").read_bytes() == authority.note(size=11)

    async def test_a_lower_checkpoint_never_replaces_a_higher_one(self, world, authority):
        """N91: yesterday's database shows a smaller tree; the kept one stays."""
        async with Running(world.agent(boottime)) as agent:
            await until(lambda: agent.machine.phase is Phase.PASSED)
            kept = authority.note()
            authority.tree_size = 3
            await handle(agent, {"do": "attest"})
        assert (world.root / "state/checkpoint").read_bytes() == kept

    async def test_a_forged_checkpoint_is_not_kept(self, world, authority):
        """Only the audit key pinned at activation makes a checkpoint count."""
        host = await enrolled(world)
        pinned = host.identity.audit_public_key
        authority.audit_key = Authority().audit_key
        async with Running(world.agent(boottime)) as agent:
            await until(lambda: agent.machine.phase is Phase.PASSED)
        assert not (world.root / "state/checkpoint").exists()
        assert world.host().identity.audit_public_key == pinned

    async def test_rollback_detected_means_doubt_and_no_keys(self, world, authority):
        """N64/N91: an authority that lost what it showed is asked for nothing."""
        authority.trouble["GetChallenge"] += [refusal("ROLLBACK_DETECTED")] * 50
        async with Running(world.agent(boottime)) as agent:
            await until(lambda: agent.machine.phase is Phase.DOUBT)
            answer = await handle(agent, {"do": "key-request", "vm": "vm-1"})
        assert (answer["ok"], answer["reason"], answer["exit_code"]) == (False, "NOT_READY", 1)
        assert authority.asked_for("RequestKey") == []

    async def test_a_split_view_lasts_until_an_operator_looks(self, world, authority):
        """N65: two signed trees of one size are kept as proof, also over a restart."""
        async with Running(world.agent(boottime)) as agent:
            await until(lambda: agent.machine.phase is Phase.PASSED)
            authority.root = hashlib.sha256(b"another history").digest()
            await handle(agent, {"do": "attest"})
            await until(lambda: agent.machine.phase is Phase.DOUBT)
        assert (world.root / "state/checkpoint.conflict").exists()
        authority.root = hashlib.sha256(b"root").digest()
        seen = len(authority.evidence)
        async with Running(world.agent(boottime)) as agent:
            await until(lambda: len(authority.evidence) > seen)
            assert agent.machine.phase is Phase.DOUBT


class TestKeys:
    async def ready(self, agent):
        await until(lambda: agent.machine.phase is Phase.PASSED)

    async def test_a_key_is_opened_and_only_described(self, world, authority, capsys):
        """N69: length and SHA-256 leave the agent, the key does not, nor into logs or state."""
        async with Running(world.agent(boottime)) as agent:
            await self.ready(agent)
            answer = await handle(agent, {"do": "key-request", "vm": "vm-1", "open": True})
        assert answer["key"]["sha256"] == hashlib.sha256(VM_KEY).hexdigest()
        assert answer["key"]["length"] == len(VM_KEY)
        assert VM_KEY.decode() not in json.dumps(answer)
        said = capsys.readouterr()
        assert VM_KEY.decode() not in said.out + said.err
        assert [p for p in world.root.rglob("*") if VM_KEY in _content(p)] == []

    async def test_a_key_file_is_private_and_wiped_at_give_back(self, world, authority):
        """Design 6.4 (6): the VM ends, the key is wiped, then the grant goes back."""
        out = world.root / "vm-1.key"
        async with Running(world.agent(boottime)) as agent:
            await self.ready(agent)
            asked = {"do": "key-request", "vm": "vm-1", "open": True, "out": str(out)}
            await handle(agent, asked)
            assert out.read_bytes() == VM_KEY
            assert stat.S_IMODE(out.stat().st_mode) == 0o600
            answer = await handle(agent, {"do": "key-give-back", "vm": "vm-1"})
        assert answer["ok"]
        assert not out.exists()
        assert world.enforcement.acts == [(VmAction.DESTROY, "vm-1")]

    async def test_nothing_is_given_back_before_the_vm_is_gone(self, world, authority):
        """A destroy that fails is repeated; the authority hears nothing before it is done."""
        async with Running(world.agent(boottime)) as agent:
            await self.ready(agent)
            await handle(agent, {"do": "key-request", "vm": "vm-1"})
            world.enforcement.failures = 2
            giving = asyncio.create_task(handle(agent, {"do": "key-give-back", "vm": "vm-1"}))
            await until(lambda: len(world.enforcement.acts) == 2)
            assert authority.asked_for("GiveBackKey") == []
            assert (await giving)["ok"]
        assert len(world.enforcement.acts) == 3

    async def test_a_repeated_request_id_gets_the_grant_again(self, world, authority):
        """A replay of the request id answers the grant and begins no new lease (N85)."""
        asked = {"do": "key-request", "vm": "vm-1", "request_id": "request-id-0123456789"}
        async with Running(world.agent(boottime)) as agent:
            await self.ready(agent)
            await handle(agent, asked)
            until_ms = agent.keeper.view("vm-1").run_until_ms
            again = await handle(agent, {**asked, "open": True})
            assert agent.keeper.view("vm-1").run_until_ms == until_ms
        assert again["key"]["length"] == len(VM_KEY)
        assert len({r.request_id for r in authority.asked_for("RequestKey")}) == 1

    async def test_another_request_for_a_held_vm_is_not_sent(self, world, authority):
        """One VM, one grant: a second wish to start it is refused on the host already."""
        async with Running(world.agent(boottime)) as agent:
            await self.ready(agent)
            await handle(agent, {"do": "key-request", "vm": "vm-1"})
            answer = await handle(agent, {"do": "key-request", "vm": "vm-1"})
        assert answer["reason"] == "NOT_NOW"
        assert len(authority.asked_for("RequestKey")) == 1

    async def test_a_key_is_asked_for_with_a_fresh_challenge(self, world, authority):
        """The age of evidence counts from its challenge: a new quote to an old one is old evidence."""
        authority.again_ms, skipped = 45_000, [0]
        async with Running(world.agent(lambda: boottime() + skipped[0])) as agent:
            await self.ready(agent)
            skipped[0] = 45_000
            await until(lambda: len(authority.evidence) == 2)
            assert authority.evidence[1]["quote"].challenge.startswith(b"next-")
            await handle(agent, {"do": "key-request", "vm": "vm-1"})
            assert authority.evidence[2]["quote"].challenge.startswith(b"challenge-")
            await handle(agent, {"do": "key-give-back", "vm": "vm-1"})
            await handle(agent, {"do": "key-request", "vm": "vm-1"})
        assert len(authority.evidence) == 3

    async def test_a_refusal_has_the_authoritys_reason(self, world, authority):
        """KEY_NOT_PERMITTED is an answer: exit status 1, nothing held."""
        authority.trouble["RequestKey"].append(
            refusal("KEY_NOT_PERMITTED", code_pb2.PERMISSION_DENIED)
        )
        async with Running(world.agent(boottime)) as agent:
            await self.ready(agent)
            answer = await handle(agent, {"do": "key-request", "vm": "vm-1"})
            assert agent.keeper.view("vm-1").phase is VmPhase.IDLE
        assert (answer["reason"], answer["exit_code"]) == ("KEY_NOT_PERMITTED", 1)

    async def test_a_lost_reply_is_asked_for_again_under_the_same_id(self, world, authority):
        """N85: the KMS fails twice; the third send has the first one's id and clock."""
        authority.trouble["RequestKey"] += [Trouble(reason="KMS_UNAVAILABLE")] * 2
        async with Running(world.agent(boottime)) as agent:
            await self.ready(agent)
            began = boottime()
            answer = await handle(agent, {"do": "key-request", "vm": "vm-1"})
            held = agent.keeper.view("vm-1")
        assert answer["ok"]
        assert len({r.request_id for r in authority.asked_for("RequestKey")}) == 1
        assert held.run_until_ms - authority.lease_ms - began < 50

    @pytest.mark.parametrize(
        "request_",
        [
            {"do": "key-request", "vm": "../../etc"},
            {"do": "key-request", "vm": "vm\n1"},
            {"do": "key-request", "vm": "vm-1", "request_id": "short"},
            {"do": "key-request", "vm": "vm-1", "purpose": "escape"},
            {"do": "key-request", "vm": "vm-1", "purpose": "migrate"},
            {"do": "key-request"},
            {"do": "frobnicate", "vm": "vm-1"},
        ],
    )
    async def test_requests_that_are_none_are_refused(self, world, authority, request_):
        """N44: ids follow their grammar before anything is sent."""
        async with Running(world.agent(boottime)) as agent:
            await self.ready(agent)
            with pytest.raises((ValueError, KeyError)):
                await handle(agent, request_)
        assert authority.asked_for("RequestKey") == []


class TestLeases:
    async def hold(self, agent, vm="vm-1", **more):
        await until(lambda: agent.machine.phase is Phase.PASSED)
        answer = await handle(agent, {"do": "key-request", "vm": vm, **more})
        assert answer["ok"], answer

    async def test_a_lease_is_renewed_at_a_third(self, world, authority):
        """Design 6.4 (4): renewed at a third, under a new request id each time."""
        authority.lease_ms = 600
        async with Running(world.agent(boottime)) as agent:
            await self.hold(agent)
            await until(lambda: len(authority.asked_for("RenewLease")) >= 3)
            assert agent.keeper.view("vm-1").phase is VmPhase.RUNNING
        ids = [r.request_id for r in authority.asked_for("RenewLease")]
        assert len(set(ids)) == len(ids)
        assert world.enforcement.acts == []

    async def test_with_the_authority_down_the_vm_is_paused_then_ended(self, world, authority):
        """N49: the lease ends without an answer: pause, wipe the key, destroy; in this order."""
        authority.lease_ms, authority.continue_ms, authority.skew_ms = 500, 200, 1200
        out = world.root / "vm-1.key"
        async with Running(world.agent(boottime)) as agent:
            await self.hold(agent, open=True, out=str(out))
            began = boottime()
            await authority.stop()
            await until(lambda: (VmAction.PAUSE, "vm-1") in world.enforcement.acts)
            paused_after = boottime() - began
            await until(lambda: not out.exists())
            await until(lambda: (VmAction.DESTROY, "vm-1") in world.enforcement.acts)
            ended_after = boottime() - began
        assert world.enforcement.acts[:2] == [
            (VmAction.PAUSE, "vm-1"),
            (VmAction.DESTROY, "vm-1"),
        ]
        assert paused_after < 900
        assert ended_after < 500 + 200 + 1200

    async def test_fenced_ends_the_vm_at_once(self, world, authority):
        """N52: an owner that was replaced destroys its VM and gives nothing back."""
        authority.lease_ms = 600
        async with Running(world.agent(boottime)) as agent:
            await self.hold(agent)
            authority.trouble["RenewLease"].append(refusal("FENCED"))
            await until(lambda: agent.keeper.view("vm-1").phase is VmPhase.IDLE)
            await until(lambda: world.enforcement.acts == [(VmAction.DESTROY, "vm-1")])
        assert authority.asked_for("GiveBackKey") == []

    async def test_a_pushed_revocation_asks_and_then_pauses(self, world, authority):
        """Design 6.6: the push hastens the renewal, whose refusal pauses the VM."""
        async with Running(world.agent(boottime)) as agent:
            await self.hold(agent)
            authority.trouble["RenewLease"] += [refusal("HOST_REVOKED")] * 100
            authority.pushes = [at.WatchHostResponse(wish=at.HOST_WISH_REVOKED)]
            await until(lambda: (VmAction.PAUSE, "vm-1") in world.enforcement.acts)
            assert agent.keeper.view("vm-1").phase is VmPhase.PAUSED

    async def test_refused_renewals_do_not_become_a_busy_loop(self, world, authority):
        """A refusal is asked about again, but a few times per lease and not as fast as it comes."""
        authority.lease_ms, authority.skew_ms = 1200, 60_000
        async with Running(world.agent(boottime)) as agent:
            await self.hold(agent)
            authority.trouble["RenewLease"] += [refusal("HOST_NOT_ATTESTED")] * 1000
            await until(lambda: agent.keeper.view("vm-1").phase is VmPhase.PAUSED)
        assert 1 <= len(authority.asked_for("RenewLease")) <= 12

    async def test_a_restarted_agent_keeps_its_leases(self, world, authority):
        """Leases outlive the process: the next one renews what the last one held."""
        authority.lease_ms = 1500
        async with Running(world.agent(boottime)) as agent:
            await self.hold(agent)
        async with Running(world.agent(boottime)) as agent:
            await until(lambda: len(authority.asked_for("RenewLease")) >= 2)
            assert agent.keeper.view("vm-1").phase is VmPhase.RUNNING
        ended = {VmAction.PAUSE, VmAction.DESTROY} & {act for act, _ in world.enforcement.acts}
        assert ended == set()

    async def test_leases_of_another_boot_are_forgotten(self, world, authority):
        """After a reboot the VMs are gone and the clock began anew."""
        async with Running(world.agent(boottime)) as agent:
            await self.hold(agent)
        async with Running(world.agent(boottime, boot_id="boot-2")) as agent:
            assert agent.keeper.view("vm-1").phase is VmPhase.IDLE

    async def test_a_destroy_that_was_not_confirmed_is_repeated_after_a_restart(
        self, world, authority
    ):
        """An agent that dies while it ends a VM leaves the job to the next one."""
        authority.lease_ms = 400
        async with Running(world.agent(boottime)) as agent:
            await self.hold(agent)
            world.enforcement.failures = 10_000
            await authority.stop()
            await until(lambda: (VmAction.DESTROY, "vm-1") in world.enforcement.acts)
        world.enforcement.acts.clear()
        world.enforcement.failures = 0
        async with Running(world.agent(boottime)):
            await until(lambda: (VmAction.DESTROY, "vm-1") in world.enforcement.acts)


class TestMoves:
    async def test_offer_switch_hands_over_after_a_pause(self, world, authority):
        """Design 6.5: the source pauses, switches, and only then ends its VM."""
        async with Running(world.agent(boottime)) as agent:
            await until(lambda: agent.machine.phase is Phase.PASSED)
            await handle(agent, {"do": "key-request", "vm": "vm-1"})
            offered = await handle(agent, {"do": "move-offer", "vm": "vm-1", "destination": "b"})
            assert offered["ok"]
            switched = await handle(agent, {"do": "move-switch", "vm": "vm-1"})
            assert switched["ok"]
            await until(lambda: len(world.enforcement.acts) == 2)
        assert [act for act, _ in world.enforcement.acts] == [VmAction.PAUSE, VmAction.DESTROY]
        move = authority.asked_for("SwitchMove")[0].request_id
        assert move == authority.asked_for("OfferMove")[0].request_id == offered["move_id"]

    async def test_a_lost_answer_to_the_switch_keeps_the_source_paused(self, world, authority):
        """N88: no answer, no resume; the same switch is asked until its outcome is read."""
        authority.trouble["SwitchMove"] += [Trouble()] * 3
        async with Running(world.agent(boottime)) as agent:
            await until(lambda: agent.machine.phase is Phase.PASSED)
            await handle(agent, {"do": "key-request", "vm": "vm-1"})
            await handle(agent, {"do": "move-offer", "vm": "vm-1", "destination": "b"})
            assert (await handle(agent, {"do": "move-switch", "vm": "vm-1"}))["ok"]
        assert VmAction.RESUME not in [act for act, _ in world.enforcement.acts]
        assert len({r.request_id for r in authority.asked_for("SwitchMove")}) == 1
        assert len(authority.asked_for("SwitchMove")) == 4


_HANDSHAKES = """
import asyncio, sys
from hostagent.channel import EnrolmentLink, Pinned
from hostagent.failure import CallFailed
from trustauthority.v1 import attestation_pb2 as at

async def ask(address, ca):
    link = EnrolmentLink(address, Pinned(ca_pem=open(ca, "rb").read()))
    request = at.GetEnrolmentChallengeRequest()
    try:
        await link.answer(link.enrolment.GetEnrolmentChallenge(request, timeout=2.0))
    except CallFailed:
        pass
    await link.close()

asyncio.run(ask(*sys.argv[1:]))
"""


class TestTls:
    @pytest.mark.parametrize(
        ("version", "outcome"),
        [(ssl.TLSVersion.TLSv1_2, "NO_SHARED_CIPHER"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")],
    )
    async def test_only_tls_1_3_is_spoken(self, tmp_path, authority, version, outcome):
        """N70: a server that speaks at most TLS 1.2 finds no cipher in common with the agent."""
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (tmp_path / "server.pem").write_bytes(pem + authority.issue(key.public_key()))
        (tmp_path / "ca.pem").write_bytes(authority.ca_pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "server.pem")
        context.maximum_version = version
        context.set_alpn_protocols(["h2"])

        def handshake(listener):
            connection, _ = listener.accept()
            with connection:
                try:
                    with context.wrap_socket(connection, server_side=True) as tls:
                        return tls.version()
                except ssl.SSLError as failure:
                    return failure.reason

        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(20)
            waiting = asyncio.create_task(asyncio.to_thread(handshake, listener))
            # a process of its own: gRPC reads its cipher list when it is first imported
            client = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                _HANDSHAKES,
                f"127.0.0.1:{listener.getsockname()[1]}",
                str(tmp_path / "ca.pem"),
            )
            assert await client.wait() == 0
            assert await waiting == outcome


def _content(path):
    return path.read_bytes() if path.is_file() and os.access(path, os.R_OK) else b""
