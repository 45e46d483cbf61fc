"""Attestation end to end: what passes, what fails a host, and what proves nothing at all."""

import asyncio
import hashlib
import os
import struct
from dataclasses import replace
from types import FunctionType
from typing import Any

import pytest
from support.bootlogs import read_event_log, read_ima_log
from support.logbuilder import NO_ACTION, legacy_record, spec_id
from support.logslices import event_slices
from support.simulated_authority import BY, CLUSTER, HOUR_MS, SimulatedAuthority
from support.simulated_host import BOOTS, SimulatedHost

from trustauthority.appraisal import (
    alternatives,
    appraise,
    baseline,
    boot,
    components,
    runtime,
)
from trustauthority.appraisal.rejudge import Grounds, judge_bundle
from trustauthority.codec.bundle import decode_bundle
from trustauthority.errors import (
    ChallengeAlreadyUsed,
    ChallengeExpired,
    ChallengeMismatch,
    EvidenceRejected,
    FailedPrecondition,
    HostNotAttested,
    LogRejected,
    MalformedEvidence,
    NotAQuote,
    PcrDigestMismatch,
    PcrSelectionRejected,
    QuoteSignatureInvalid,
    ReportRejected,
    TpmClockRolledBack,
    TrustAuthorityError,
)
from trustauthority.model.evidence import Evidence
from trustauthority.model.policy import Policy
from trustauthority.model.verdict import Check, CheckState, Verdict
from trustauthority.report.token import check_report
from trustauthority.services import attestation, judgement, verdicts
from trustauthority.services.attestation import Attested
from trustauthority.services.baselines import VariantName
from trustauthority.services.bundles import evidence_bundle
from trustauthority.verification import (
    bootreplay,
    challenge,
    pipeline,
    quote,
    replay,
    runtimelog,
    signature,
)
from trustauthority.verification import runtime as runtime_verification
from trustauthority.verification.bootreplay import KnownBoots

EXHAUSTIVE = bool(os.environ.get("TA_EXHAUSTIVE"))
"""Whether sweeps take every event and every bit, not a sample."""
POLICY = Policy(name="default")
OWN_GROUNDS = Grounds()
STRICT_RUNTIME = (
    'name = "strict"\n[runtime]\nboot_aggregate = "required"\nviolations = "required"\n'
)


def failed_leaves(checks: tuple[Check, ...]) -> list[Check]:
    """Leaves of the check tree that failed."""
    found: list[Check] = []
    for check in checks:
        if check.children:
            found.extend(failed_leaves(check.children))
        elif check.state is CheckState.FAILED:
            found.append(check)
    return found


def failed_pcrs(verdict: Verdict) -> set[int]:
    """PCRs that failed checks name."""
    return {check.pcr for check in failed_leaves(verdict.checks)}


async def send(authority: SimulatedAuthority, host: SimulatedHost, evidence: Evidence) -> Attested:
    """Send evidence for a host."""
    return await authority.attestation.attest(await authority.record(host), evidence)


async def refuse(
    authority: SimulatedAuthority,
    host: SimulatedHost,
    evidence: Evidence,
    error: type[TrustAuthorityError],
) -> None:
    """Assert that evidence is refused, changes nothing of the host, and leaves an audit entry."""
    before = await authority.record(host)
    entries = len(await authority.log())
    with pytest.raises(error) as refused:
        await send(authority, host, evidence)
    assert await authority.record(host) == before
    assert len(await authority.log()) == entries + 1
    entry = await authority.last("host.attest")
    assert (entry["decision"], entry["reason"]) == ("refused", refused.value.reason)


class TestChallenges:
    async def test_evidence_is_judged_once(self, authority):
        """N07: a replay after success is refused and gives the verdict no more time."""
        (host,) = await authority.trusted("esx-1")
        evidence = host.evidence(await authority.invite(host))
        await send(authority, host, evidence)
        until = (await authority.record(host)).attested_until_ms
        authority.pass_ms(1_000)
        await refuse(authority, host, evidence, TpmClockRolledBack)
        assert (await authority.record(host)).attested_until_ms == until

    async def test_a_challenge_is_used_once(self, authority):
        """N07, S4: a newer quote over a used challenge is refused, though the TPM moved on."""
        (host,) = await authority.trusted("esx-1")
        invitation = await authority.invite(host)
        await send(authority, host, host.evidence(invitation))
        await refuse(
            authority,
            host,
            host.evidence(await authority.invite(host), challenge=invitation.challenge),
            ChallengeAlreadyUsed,
        )

    async def test_three_nodes_and_sixteen_calls_each_record_one_verdict(self, authority):
        """Rule 59, N06: the same challenge and evidence everywhere at once: exactly one success."""
        (host,) = await authority.trusted("esx-1")
        nodes = [authority, await authority.another_node(), await authority.another_node()]
        evidence = host.evidence(await authority.invite(host))
        record = await authority.record(host)
        passed_before = len([e for e in await authority.log() if e["decision"] == "passed"])
        outcomes = await asyncio.gather(
            *(node.attestation.attest(record, evidence) for node in nodes for _ in range(16)),
            return_exceptions=True,
        )
        assert sum(isinstance(each, Attested) for each in outcomes) == 1
        assert all(isinstance(each, Attested | EvidenceRejected) for each in outcomes)
        passed = [e for e in await authority.log() if e["decision"] == "passed"]
        assert len(passed) == passed_before + 1

    async def test_lives_a_minute(self, authority):
        """N08: one second before its end it counts, one second after it does not."""
        (host,) = await authority.trusted("esx-1")
        invitation = await authority.invite(host)
        assert invitation.expires_in_ms == 60_000
        authority.pass_ms(59_000, host)
        await send(authority, host, host.evidence(invitation))
        late = await authority.invite(host)
        authority.pass_ms(61_000, host)
        await refuse(authority, host, host.evidence(late), ChallengeExpired)

    async def test_the_one_in_a_reply_lives_until_the_next_attestation(self, authority):
        """N08, design 6.2: it serves for the attest interval and a minute, not longer."""
        (host,) = await authority.trusted("esx-1")
        riding = (await authority.attest(host)).invitation
        authority.pass_ms(riding.expires_in_ms - 1_000, host)
        riding = (await send(authority, host, host.evidence(riding))).invitation
        authority.pass_ms(riding.expires_in_ms + 1_000, host)
        await refuse(authority, host, host.evidence(riding), ChallengeExpired)

    async def test_evidence_counts_from_its_challenge(self, authority):
        """S13: a verdict ends one maximum age after the *issue* of its challenge."""
        (host,) = await authority.trusted("esx-1")
        riding = (await authority.attest(host)).invitation
        issued = authority.clock.now_ms()
        authority.pass_ms(600_000, host)
        attested = await send(authority, host, host.evidence(riding))
        assert attested.verdict.attested_until_ms == issued + POLICY.evidence.max_age_ms

    async def test_comes_from_no_future(self, authority):
        """N08: an issue time more than two seconds ahead is refused, whoever signed it."""
        (host,) = await authority.trusted("esx-1")
        for ahead_ms, accepted in ((2_000, True), (2_001, False)):
            token = challenge.encode(
                kid=2,
                key=authority.secrets.challenge_keys[2],
                cluster=CLUSTER,
                purpose=challenge.Purpose.ATTEST,
                host=host.host_id,
                issued_at_ms=authority.clock.now_ms() + ahead_ms,
                random=os.urandom(16),
            )
            evidence = host.evidence(await authority.invite(host), challenge=token)
            if accepted:
                await send(authority, host, evidence)
            else:
                await refuse(authority, host, evidence, ChallengeExpired)

    async def test_a_changed_token_is_not_ours(self, authority):
        """N09: no bit of a challenge can be changed, even by a host that quotes for the result."""
        (host,) = await authority.trusted("esx-1")
        before = await authority.record(host)
        invitation = await authority.invite(host)
        token = invitation.challenge
        step = 1 if EXHAUSTIVE else 37
        for bit in range(0, 8 * len(token), step):
            changed = bytearray(token)
            changed[bit // 8] ^= 1 << bit % 8
            with pytest.raises(EvidenceRejected):
                await send(authority, host, host.evidence(invitation, challenge=bytes(changed)))
        for cut in (0, 1, len(token) - 1):
            with pytest.raises(EvidenceRejected):
                await send(authority, host, host.evidence(invitation, challenge=token[:cut]))
        assert await authority.record(host) == before

    async def test_every_bit_of_a_token_counts(self, authority):
        """N09: the sweep over every bit, at the check that the service makes."""
        (host,) = await authority.trusted("esx-1")
        token = (await authority.invite(host)).challenge
        accepted = 0
        for bit in range(8 * len(token)):
            changed = bytearray(token)
            changed[bit // 8] ^= 1 << bit % 8
            for purpose in challenge.Purpose:
                try:
                    challenge.check(
                        bytes(changed),
                        keys=authority.secrets.challenge_keys,
                        cluster=CLUSTER,
                        purpose=purpose,
                        host=host.host_id,
                        now_ms=authority.clock.now_ms(),
                        ttl_ms=60_000,
                    )
                except EvidenceRejected:
                    continue
                accepted += 1
        assert accepted == 0

    async def test_is_for_one_purpose_cluster_and_host(self, authority):
        """N10: of an enrolment, another cluster or another host: refused."""
        host, other = await authority.trusted("esx-1", "esx-2")
        await authority.add_cluster("lab")
        stranger = authority.host("lab-1", cluster="lab")
        await authority.enrol(stranger)
        invitation = await authority.invite(host)
        enrolling, _ = await authority.enrolment.challenge(
            cluster=CLUSTER, ek_public=host.tpm.ek_public
        )
        for token in (
            enrolling,
            (await authority.invite(other)).challenge,
            (await authority.invite(stranger)).challenge,
        ):
            evidence = host.evidence(invitation, challenge=token)
            await refuse(authority, host, evidence, ChallengeMismatch)

    async def test_a_retired_key_signs_none(self, authority):
        """N67: a kid that is not among the live ones is refused."""
        (host,) = await authority.trusted("esx-1")
        token = challenge.encode(
            kid=9,
            key=b"9" * 32,
            cluster=CLUSTER,
            purpose=challenge.Purpose.ATTEST,
            host=host.host_id,
            issued_at_ms=authority.clock.now_ms(),
            random=bytes(16),
        )
        evidence = host.evidence(await authority.invite(host), challenge=token)
        await refuse(authority, host, evidence, ChallengeExpired)


class TestQuotes:
    async def test_a_relayed_quote_is_refused(self, authority):
        """Rule 32, N11: the right challenge, but the TLS key of another agent."""
        host, other = await authority.trusted("esx-1", "esx-2")
        invitation = await authority.invite(host)
        host.relay_nonce(invitation.challenge, tls_area=other.tls_area)
        await refuse(authority, host, host.evidence(invitation), ChallengeMismatch)
        earlier = (await authority.invite(host)).challenge
        host.relay_nonce(earlier, tls_area=host.tls_area)
        await refuse(authority, host, host.evidence(invitation), ChallengeMismatch)

    async def test_the_quote_of_another_host_is_refused(self, authority):
        """T6: an honest TPM elsewhere answers in this host's place."""
        host, other = await authority.trusted("esx-1", "esx-2")
        invitation = await authority.invite(host)
        evidence = other.evidence(invitation)
        await refuse(authority, host, evidence, QuoteSignatureInvalid)

    async def test_another_ak_is_refused(self, authority):
        """Only the enrolled AK signs for a host."""
        (host,) = await authority.trusted("esx-1")
        host.use_ak("elsewhere")
        await refuse(
            authority, host, host.evidence(await authority.invite(host)), QuoteSignatureInvalid
        )

    async def test_the_ak_in_another_hierarchy_is_refused(self, authority):
        """N82: the signer that the TPM names must be the AK below its EK."""
        (host,) = await authority.trusted("esx-1")
        host.lies.signer = b"\x00\x0b" + bytes(32)
        await refuse(
            authority, host, host.evidence(await authority.invite(host)), QuoteSignatureInvalid
        )

    async def test_what_no_tpm_wrote_is_refused_by_name(self, authority):
        """N12: wrong magic, another type, bytes left over; each signed by the very AK."""
        (host,) = await authority.trusted("esx-1")
        for fields, error in (
            ({"magic": 0xFF544346}, NotAQuote),
            ({"magic": 0}, NotAQuote),
            ({"kind": 0x8017}, (NotAQuote, MalformedEvidence)),
            ({"kind": 0x8014}, (NotAQuote, MalformedEvidence)),
        ):
            host.lies.quote_fields = fields
            await refuse(authority, host, host.evidence(await authority.invite(host)), error)
        host.lies.quote_fields = {}
        host.lies.change_attest = lambda attest: attest + b"\0"
        await refuse(
            authority, host, host.evidence(await authority.invite(host)), MalformedEvidence
        )

    async def test_a_quote_cut_anywhere_is_malformed(self, authority):
        """N12: truncated at each length, signed again: MALFORMED, never a crash."""
        (host,) = await authority.trusted("esx-1")
        before = await authority.record(host)
        invitation = await authority.invite(host)
        length = len(host.evidence(invitation).attest)
        for cut in range(1, length, 1 if EXHAUSTIVE else 7):
            host.lies.change_attest = lambda attest, cut=cut: attest[:cut]
            with pytest.raises((MalformedEvidence, NotAQuote)):
                await send(authority, host, host.evidence(invitation))
        assert await authority.record(host) == before

    async def test_changed_bytes_do_not_verify(self, authority):
        """A quote that was changed after it was signed is refused."""
        (host,) = await authority.trusted("esx-1")
        host.lies.resign = False
        host.lies.change_attest = lambda attest: attest[:-1] + bytes([attest[-1] ^ 1])
        await refuse(
            authority, host, host.evidence(await authority.invite(host)), QuoteSignatureInvalid
        )

    async def test_other_pcr_values_than_the_signed_ones_are_refused(self, authority):
        """A genuine quote beside the PCR values of a good boot."""
        (host,) = await authority.trusted("esx-1")
        evidence = host.evidence(await authority.invite(host))
        values = bytes([evidence.pcr_values[0] ^ 1]) + evidence.pcr_values[1:]
        await refuse(authority, host, replace(evidence, pcr_values=values), PcrDigestMismatch)
        short = replace(evidence, pcr_values=evidence.pcr_values[:-1])
        await refuse(authority, host, short, PcrSelectionRejected)

    async def test_a_pcr_may_not_be_left_out(self, authority):
        """N14: any PCR of the policy missing, or all of SHA-256, is refused."""
        (host,) = await authority.trusted("esx-1")
        for pcr in POLICY.evidence.pcrs:
            host.lies.left_out = frozenset({pcr})
            evidence = host.evidence(await authority.invite(host))
            await refuse(authority, host, evidence, PcrSelectionRejected)
        host.lies.left_out, host.lies.banks = frozenset(), ("sha1",)
        evidence = host.evidence(await authority.invite(host))
        await refuse(authority, host, evidence, PcrSelectionRejected)

    async def test_no_claim_rests_on_sha1(self, authority):
        """N14: the SHA-1 bank may be absent; where it is active it is quoted and must replay as well."""
        (host,) = await authority.trusted("esx-1")
        both, host.event_log = host.event_log, without_sha1(host.event_log)
        host.lies.banks = ("sha256",)
        assert (await authority.attest(host)).verdict.passed
        host.event_log = both
        host.lies.banks = ("sha1", "sha256")
        host.lie_about_pcr(4, "sha1")
        attested = await authority.attest(host)
        assert not attested.verdict.passed
        assert failed_pcrs(attested.verdict) >= {4}

    async def test_an_active_bank_may_not_be_left_out(self, authority):
        """Rule 40: the log says that firmware measured into SHA-1, and the quote is silent about it."""
        (host,) = await authority.trusted("esx-1")
        host.lies.banks = ("sha256",)
        verdict = (await authority.attest(host)).verdict
        assert not verdict.passed
        (check,) = failed_leaves(verdict.checks)
        assert check.id == "boot-log.sha1"
        assert "the quote leaves out" in check.detail

    async def test_a_log_without_the_quoted_bank_fails(self, authority):
        """Rule 39: no other bank is tried for one that the log does not have."""
        (host,) = await authority.trusted("esx-1")
        host.event_log = without_sha1(host.event_log)
        verdict = (await authority.attest(host)).verdict
        (check,) = failed_leaves(verdict.checks)
        assert check.id == "boot-log.sha1"
        assert "no sha1 bank" in check.detail


def without_sha1(raw: bytes) -> bytes:
    """The same boot as firmware without a SHA-1 bank logs it."""
    records = [legacy_record(0, NO_ACTION, bytes(20), spec_id([(0x0B, 32)]))]
    for event in read_event_log(raw):
        digest = event.digests["sha256"]
        head = struct.pack("<IIIH", event.pcr, event.kind, 1, 0x0B) + digest
        records.append(head + struct.pack("<I", len(event.data)) + event.data)
    return b"".join(records)


class TestTpmTime:
    async def test_an_older_state_of_the_tpm_is_refused(self, authority):
        """N17: the same counters with a lower, or the same, clock."""
        (host,) = await authority.trusted("esx-1")
        await authority.attest(host)
        host.rollback_clock(5_000)
        await refuse(
            authority, host, host.evidence(await authority.invite(host)), TpmClockRolledBack
        )
        host.clock += 5_000 - 100  # evidence() lets 50 ms pass: exactly the recorded clock
        await refuse(
            authority, host, host.evidence(await authority.invite(host)), TpmClockRolledBack
        )
        assert (await authority.attest(host)).verdict.passed

    async def test_counters_never_go_back(self, authority):
        """Rule 50, S14: fewer resets or restarts than before, whatever the clock says."""
        (host,) = await authority.trusted("esx-1")
        await authority.attest(host)
        for field in ("reset_count", "restart_count"):
            setattr(host, field, getattr(host, field) - 1)
            host.clock += 10_000_000
            evidence = host.evidence(await authority.invite(host))
            await refuse(authority, host, evidence, TpmClockRolledBack)
            setattr(host, field, getattr(host, field) + 1)

    async def test_a_power_cut_may_set_the_clock_back(self, authority):
        """N18: with a new reset count a lower clock is fine; ``safe=NO`` is a finding, no refusal."""
        (host,) = await authority.trusted("esx-1")
        await authority.attest(host)
        host.reboot()
        host.clock, host.safe = 1_000, False
        attested = await authority.attest(host)
        assert attested.verdict.passed
        quoted = next(check for check in attested.verdict.checks if check.id == "quote")
        assert quoted.state is CheckState.WARNING

    async def test_clocks_near_the_end_of_64_bits(self, authority):
        """N84: positions are compared as unsigned numbers; the key's bound does not wrap around."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        host.clock = 2**63 - 60
        assert (await authority.attest(host)).verdict.passed
        host.clock = 2**63 + 10
        assert (await authority.attest(host)).verdict.passed
        await authority.request(host)
        host.clock = 2**63 - 10
        await refuse(
            authority, host, host.evidence(await authority.invite(host)), TpmClockRolledBack
        )
        host.clock = 2**64 - 100
        assert (await authority.attest(host)).verdict.passed
        released = len(authority.room.answers)
        with pytest.raises(HostNotAttested, match="at its end"):
            await authority.request(host)
        assert len(authority.room.answers) == released
        assert (await authority.last("key.request"))["decision"] == "refused"

    async def test_counters_near_the_end_of_32_bits(self, authority):
        """N84: the highest reset count is higher than every other."""
        (host,) = await authority.trusted("esx-1")
        host.reset_count = 2**31
        await authority.attest(host)
        host.reset_count = 2**32 - 1
        assert (await authority.attest(host)).verdict.passed
        host.reset_count = 2**31
        await refuse(
            authority, host, host.evidence(await authority.invite(host)), TpmClockRolledBack
        )


class TestBoot:
    @pytest.mark.parametrize("pcr", POLICY.evidence.pcrs)
    async def test_each_pcr_counts(self, authority, pcr):
        """N13: every PCR of the policy wrong by itself fails the host and is named."""
        (host,) = await authority.trusted("esx-1")
        host.lie_about_pcr(pcr)
        attested = await authority.attest(host)
        assert not attested.verdict.passed
        assert pcr in failed_pcrs(attested.verdict)
        assert await authority.standing(host) == "failed"
        host.lies.pcrs.clear()
        assert (await authority.attest(host)).verdict.passed

    @pytest.mark.parametrize("lie", ["drop", "duplicate", "swap"])
    async def test_each_event_counts(self, authority, lie):
        """N13: an event dropped, logged twice or out of order fails the host, naming its PCR."""
        (host,) = await authority.trusted("esx-1")
        log = host.event_log
        events = read_event_log(log)
        measured = [
            number
            for number, event in enumerate(events)
            if event.is_measured and event.pcr in POLICY.evidence.replayed_pcrs
        ]
        assert len(measured) >= 40
        for number in measured[:: 1 if EXHAUSTIVE else 3]:
            host.event_log = log
            if lie == "drop":
                host.drop_event(number)
            elif lie == "duplicate":
                host.duplicate_event(number)
            else:
                other = _next_different(events, number)
                if other is None:
                    continue
                host.swap_events(number, other)
            attested = await authority.attest(host)
            assert not attested.verdict.passed, number
            assert events[number].pcr in failed_pcrs(attested.verdict), number

    async def test_a_log_that_is_cut_or_absent_fails(self, authority):
        """N21: a genuine quote under a log that ends early, or none, is a FAILED verdict."""
        (host,) = await authority.trusted("esx-1")
        log = host.event_log
        header, events = event_slices(log)
        for body in (b"", log[:-1], header, header + b"".join(events[:-1]), b"\xff" * 64):
            host.event_log = body
            assert not (await authority.attest(host)).verdict.passed

    @pytest.mark.parametrize(
        ("capture", "pcrs"),
        [
            ("changed-cmdline", {8, 9}),
            ("other-kernel-build", {4, 9}),
            ("secureboot-off", {0, 4, 7, 8, 9}),
        ],
    )
    async def test_another_real_boot_is_not_the_approved_one(self, authority, capture, pcrs):
        """N13: honest logs of other boots fail by the PCRs in which they differ."""
        (host,) = await authority.trusted("esx-1")
        host.reboot(BOOTS / capture)
        attested = await authority.attest(host)
        assert not attested.verdict.passed
        differing = {
            check.pcr
            for group in attested.verdict.checks
            if group.id == "baseline"
            for check in failed_leaves((group,))
        }
        assert differing == pcrs

    async def test_the_same_boot_again_passes(self, authority):
        """N18: a reboot into the approved state needs nobody."""
        (host,) = await authority.trusted("esx-1")
        host.reboot(BOOTS / "good-second-boot")
        assert (await authority.attest(host)).verdict.passed


def _next_different(events: tuple[Any, ...], number: int) -> int | None:
    """The next event of the same PCR with another digest."""
    for other in range(number + 1, len(events)):
        same = events[other].pcr == events[number].pcr and events[other].is_measured
        if same and events[other].digests != events[number].digests:
            return other
    return None


class TestRuntime:
    async def test_a_log_that_does_not_explain_pcr_10_fails(self, authority):
        """N22: a missing prefix, a missing entry and an invented one."""
        (host,) = await authority.trusted("esx-1")
        whole = host.ima_log
        host.reboot()  # a boot of which nothing is known yet
        for log in (whole[200:], b"", whole[: len(whole) // 2]):
            host.ima_log = log
            attested = await authority.attest(host)
            assert not attested.verdict.passed
            assert failed_pcrs(attested.verdict) == {10}

    async def test_only_news_travels_and_it_counts(self, authority):
        """Rule 55: the delta continues what was proven; a gap or an overlap is refused."""
        (host,) = await authority.trusted("esx-1")
        host.measure_file("/usr/bin/news", b"news")
        invitation = await authority.invite(host)
        evidence = host.evidence(invitation)
        assert 0 < len(evidence.ima_log) < 500
        gap = replace(evidence, ima_offset=evidence.ima_offset + 1)
        await refuse(authority, host, gap, LogRejected)
        overlap = replace(evidence, ima_offset=0, ima_log=host.ima_log)
        await refuse(authority, host, overlap, LogRejected)
        assert (await send(authority, host, evidence)).verdict.passed

    async def test_what_was_measured_can_not_be_hidden(self, authority):
        """N55: a program that IMA measured and the host leaves out of the log fails the host."""
        (host,) = await authority.trusted("esx-1")
        honest = host.ima_log
        host.measure_file("/lib/modules/evil.ko", b"evil")
        host.ima_log = honest
        attested = await authority.attest(host)
        assert not attested.verdict.passed
        assert failed_pcrs(attested.verdict) == {10}

    async def test_violations_count_as_the_policy_says(self, authority):
        """N22: a file written while it was measured warns, and fails where policy says so."""
        (host,) = await authority.trusted("esx-1")
        host.measure_file("/usr/bin/racy", b"racy", violation=True)
        assert (await authority.attest(host)).verdict.passed
        await authority.apply_policy(STRICT_RUNTIME)
        attested = await authority.attest(host)
        assert not attested.verdict.passed
        assert [check.id for check in failed_leaves(attested.verdict.checks)] == [
            "runtime.violations"
        ]

    async def test_the_runtime_log_of_another_boot_fails(self, authority):
        """N22: boot_aggregate ties the log to these PCRs; another boot's log does not fit."""
        (host,) = await authority.trusted("esx-1")
        await authority.apply_policy(STRICT_RUNTIME)
        host.reboot()
        host.ima_log = (BOOTS / "secureboot-off" / "ima.bin").read_bytes()
        host._measure()
        attested = await authority.attest(host)
        assert not attested.verdict.passed
        assert [check.id for check in failed_leaves(attested.verdict.checks)] == [
            "runtime.boot-aggregate"
        ]

    @pytest.mark.parametrize("together", [True, False], ids=["one-delta", "two-deltas"])
    async def test_each_boot_aggregate_must_be_of_this_boot(self, authority, together):
        """Rule 56: kexec adds another one; a wrong one counts wherever it stands."""
        (host,) = await authority.trusted("esx-1")
        await authority.apply_policy(STRICT_RUNTIME)
        if together:
            host.reboot()
        else:
            assert (await authority.attest(host)).verdict.passed
        pcrs = b"".join(host.pcrs["sha256"][pcr] for pcr in range(10))
        host.measure_file("boot_aggregate", pcrs)
        assert (await authority.attest(host)).verdict.passed
        host.measure_file("boot_aggregate", b"another kernel's")
        failed = failed_leaves((await authority.attest(host)).verdict.checks)
        assert [check.id for check in failed] == ["runtime.boot-aggregate"]

    async def test_a_file_of_nearly_that_name_is_a_file(self, authority):
        """Rule 56: only the kernel's own name counts, not one that ends in it."""
        (host,) = await authority.trusted("esx-1")
        await authority.apply_policy(STRICT_RUNTIME)
        host.measure_file("/tmp/boot_aggregate", b"anything")
        assert (await authority.attest(host)).verdict.passed

    async def test_a_later_boot_aggregate_heals_nothing(self, authority):
        """Rule 56: a process may call a file of its own so; the first entry is the kernel's."""
        (host,) = await authority.trusted("esx-1")
        await authority.apply_policy(STRICT_RUNTIME)
        host.reboot()
        host.ima_log = (BOOTS / "secureboot-off" / "ima.bin").read_bytes()
        pcrs = b"".join(host.pcrs["sha256"][pcr] for pcr in range(10))
        host.measure_file("boot_aggregate", pcrs)
        failed = failed_leaves((await authority.attest(host)).verdict.checks)
        assert [check.id for check in failed] == ["runtime.boot-aggregate"]

    async def test_a_kernel_that_pads_sha1_is_refused_by_name(self, authority):
        """Rule 51: kernels before 5.8 extend padded SHA-1 digests; no claim rests on those."""
        (host,) = await authority.trusted("esx-1")
        host.reboot()
        value = bytes(32)
        for entry in read_ima_log(host.ima_log):
            padded = entry.digest("sha1").ljust(32, b"\0")
            value = hashlib.sha256(value + padded).digest()
        host.lies.pcrs["sha256", 10] = value
        (check, *_) = failed_leaves((await authority.attest(host)).verdict.checks)
        assert check.id == "runtime.replay"
        assert "padded" in check.detail


WITH_USERSPACE = (
    'name = "uki"\n[evidence]\npcrs = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14]\n'
    "replayed_pcrs = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 14]\n"
)


class TestUserspace:
    async def test_what_user_space_measures_counts_by_its_log(self, authority):
        """Rule 49: PCR 11 replays with the second log, at any prefix, and fails without it."""
        (host,) = await authority.trusted("esx-1")
        await authority.apply_policy(WITH_USERSPACE)
        host.measure_phase("sysinit")
        assert (await authority.attest(host)).verdict.passed
        ahead, host.pcrs = host.pcrs, {bank: dict(values) for bank, values in host.pcrs.items()}
        host.measure_phase("ready")
        host.pcrs = ahead  # quoted before, logged after
        assert (await authority.attest(host)).verdict.passed
        host.measure_phase("evil", logged=False)
        verdict = (await authority.attest(host)).verdict
        assert failed_pcrs(verdict) == {11}
        bundle = decode_bundle(await evidence_bundle(authority.store, host.name))
        assert bundle.part("userspace.log") == host.userspace_log
        assert failed_pcrs(judge_bundle(bundle, OWN_GROUNDS, 1).verdict) == {11}

    async def test_a_policy_that_does_not_ask_needs_no_second_log(self, authority):
        """By default PCR 11 is no claim, whatever user space does with it."""
        (host,) = await authority.trusted("esx-1")
        host.measure_phase("sysinit", logged=False)
        assert (await authority.attest(host)).verdict.passed


GOLDEN = VariantName(cluster=CLUSTER, name="golden")
STEPS = (
    attestation,
    judgement,
    verdicts,
    challenge,
    pipeline,
    quote,
    signature,
    replay,
    bootreplay,
    runtime_verification,
    runtimelog,
    appraise,
    alternatives,
    baseline,
    components,
    boot,
    runtime,
)
CORE = {
    "check",
    "verify_evidence",
    "verify_quote",
    "authenticate_quote",
    "check_signer",
    "check_qualifying_data",
    "check_selection_form",
    "check_selection_matches",
    "split_pcr_values",
    "check_pcr_digest",
    "check_clock_forward",
    "check_signature",
    "replay_boot",
    "verify_boot_log",
    "replay_runtime_log",
    "appraise",
    "boot_log_checks",
    "secure_boot_checks",
    "runtime_checks",
    "judge_boot",
    "split_components",
    "component_of",
    "differences",
}


class TestCrashes:
    async def test_a_crash_at_any_step_never_passes(self, authority, monkeypatch):
        """N04, S12: a fault in each function of verification and appraisal that a verdict calls."""
        (host,) = await authority.trusted("esx-1")
        crashed: set[str] = set()
        for module in STEPS:
            for name, function in list(vars(module).items()):
                if not isinstance(function, FunctionType):
                    continue
                calls: list[str] = []

                def crash(*_: object, calls: list[str] = calls, **__: object) -> None:
                    calls.append("called")
                    raise RuntimeError("fault injected")

                with monkeypatch.context() as patch:
                    patch.setattr(module, name, crash)
                    forget_boots(authority)
                    outcome = await _outcome(authority, host)
                if not calls:
                    continue
                crashed.add(name)
                assert outcome != "passed", f"{module.__name__}.{name}"
                if outcome == "raised":
                    entry = await authority.last("host.attest")
                    assert entry["decision"] == "refused", name
        assert crashed >= CORE
        assert (await authority.attest(host)).verdict.passed

    async def test_a_check_that_crashes_is_failed_and_says_so(self, authority, monkeypatch):
        """N04: an appraisal's crash is a FAILED check, and the verdict is recorded."""
        (host,) = await authority.trusted("esx-1")
        monkeypatch.setattr(appraise, "secure_boot_checks", None)
        attested = await authority.attest(host)
        failed = failed_leaves(attested.verdict.checks)
        assert [(check.id, "crashed" in check.detail) for check in failed] == [
            ("secure-boot.crashed", True)
        ]
        assert await authority.standing(host) == "failed"

    async def test_a_crash_renews_no_lease(self, authority, monkeypatch):
        """N04: while verification crashes, evidence grows old and the lease ends with it."""
        (host,) = await authority.trusted("esx-1")
        await authority.add_vm(any_host=True)
        released = await authority.request(host)
        monkeypatch.setattr(judgement, "verify_evidence", None)
        authority.pass_ms(POLICY.evidence.max_age_ms, host)
        with pytest.raises(TypeError):
            await authority.attest(host)
        assert await authority.standing(host) == "unknown"
        with pytest.raises(HostNotAttested):
            await authority.keys.renew(
                await authority.record(host),
                vm="payroll",
                grant_epoch=released.grant_epoch,
                request_id="r" * 16,
            )


def forget_boots(authority: SimulatedAuthority) -> None:
    """Let the next evidence be verified from its first step on: nothing is known of its boot."""
    authority.attestation._judgement._boots = KnownBoots()


async def _outcome(authority: SimulatedAuthority, host: SimulatedHost) -> str:
    try:
        invitation = await authority.invite(host)
    except RuntimeError:
        return "no challenge"
    try:
        attested = await send(authority, host, host.evidence(invitation))
    except (RuntimeError, TrustAuthorityError):
        return "raised"
    return "passed" if attested.verdict.passed else "failed"


class TestRecord:
    async def test_a_key_that_changed_meanwhile_is_not_attested(self, authority, monkeypatch):
        """N03: the AK's row is swapped between the quote's check and the verdict: refused."""
        (host,) = await authority.trusted("esx-1")
        record = await authority.record(host)
        evidence = host.evidence(await authority.invite(host))
        judge = authority.attestation._judge

        async def swapped(*arguments: Any) -> Any:
            judged = await judge(*arguments)
            await authority.write_sql(
                "UPDATE host SET ak_public = :other WHERE host_id = :host",
                other=b"another AK",
                host=host.host_id,
            )
            return judged

        monkeypatch.setattr(authority.attestation, "_judge", swapped)
        with pytest.raises(FailedPrecondition):
            await authority.attestation.attest(record, evidence)
        assert (await authority.record(host)).verdict_id == record.verdict_id

    async def test_evidence_sent_to_an_older_row_is_refused(self, authority):
        """N03: the connection's row names another AK than the store's."""
        (host,) = await authority.trusted("esx-1")
        stale = replace(await authority.record(host), ak_public=b"another AK")
        evidence = host.evidence(await authority.invite(host))
        with pytest.raises(FailedPrecondition):
            await authority.attestation.attest(stale, evidence)

    async def test_a_revocation_that_comes_between_wins(self, authority, monkeypatch):
        """S7: a host that is revoked while it is judged gets no verdict."""
        (host,) = await authority.trusted("esx-1")
        judge = authority.attestation._judge

        async def revoked(*arguments: Any) -> Any:
            judged = await judge(*arguments)
            await authority.hosts.revoke(host.host_id, why="", by=BY, dry_run=False)
            return judged

        monkeypatch.setattr(authority.attestation, "_judge", revoked)
        with pytest.raises(FailedPrecondition):
            await authority.attest(host)
        assert await authority.standing(host) == "unknown"

    async def test_silence_is_unknown(self, authority):
        """N89: a host that falls silent is UNKNOWN when its evidence reaches the maximum age."""
        (host,) = await authority.trusted("esx-1")
        authority.pass_ms(HOUR_MS - 1)
        assert await authority.standing(host) == "passed"
        authority.pass_ms(1)
        assert await authority.standing(host) == "unknown"

    async def test_a_policy_change_makes_verdicts_stale(self, authority):
        """S1: a verdict counts only under the policy it was reached under."""
        (host,) = await authority.trusted("esx-1")
        await authority.apply_policy('name = "tighter"\n[boot]\ndebug = "required"\n')
        assert await authority.standing(host) == "unknown"
        await authority.attest(host)
        assert await authority.standing(host) == "passed"

    async def test_a_baseline_is_approved_as_it_was_looked_at(self, authority):
        """I-E: approval names the hash; dry runs and other hashes put nothing in force."""
        host = await authority.enrolled("esx-1")
        assert not (await authority.attest(host)).verdict.passed
        proposed = await authority.baselines.capture(GOLDEN, host.host_id, by=BY)
        for sha256, dry_run in (("0" * 64, False), (proposed.sha256, True)):
            with pytest.raises(TrustAuthorityError) if not dry_run else _nothing():
                await authority.baselines.approve(GOLDEN, sha256=sha256, by=BY, dry_run=dry_run)
            assert not (await authority.attest(host)).verdict.passed
        await authority.baselines.approve(GOLDEN, sha256=proposed.sha256, by=BY, dry_run=False)
        entries = [each["details"] for each in await authority.log("baseline.approve")]
        assert [(each["component"], each["sha256"]) for each in entries] == [
            (str(each.component), each.sha256) for each in proposed.entries
        ]
        attested = await authority.attest(host)
        assert (attested.verdict.passed, attested.verdict.baseline) == (True, "golden")

    async def test_a_retired_baseline_makes_verdicts_stale(self, authority):
        """S1: once a baseline is retired nobody who matched it is trusted any more."""
        (host,) = await authority.trusted("esx-1")
        await authority.baselines.retire(GOLDEN, by=BY, dry_run=False)
        assert await authority.standing(host) == "unknown"
        assert not (await authority.attest(host)).verdict.passed

    async def test_a_baseline_is_captured_from_proven_logs_only(self, authority):
        """I-E: nothing is captured from a host whose log does not explain its PCRs."""
        host = await authority.enrolled("esx-1")
        host.drop_event(20)
        await authority.attest(host)
        with pytest.raises(FailedPrecondition, match="does not explain"):
            await authority.baselines.capture(GOLDEN, host.host_id, by=BY)

    async def test_stored_evidence_can_be_judged_again(self, authority):
        """Rule 67: judged again offline, a bundle gives the verdict that was recorded, check by check."""
        (host,) = await authority.trusted("esx-1")
        for change in (lambda: None, lambda: host.measure_file("/x", b"x"), host.reboot):
            change()
            attested = await authority.attest(host)
            data = await evidence_bundle(authority.store, host.host_id)
            again = judge_bundle(decode_bundle(data), OWN_GROUNDS, 0).verdict
            assert again.passed is attested.verdict.passed is True
            assert again.baseline == attested.verdict.baseline
            by_enrolment, shown = again.checks[:2], again.checks[2:]
            assert {check.state for check in by_enrolment} == {CheckState.SKIPPED}
            assert shown == attested.verdict.checks[2:]


class _nothing:  # noqa: N801 - reads as a word where it is used
    """A context in which nothing is expected."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


class TestReports:
    def _check(self, authority: SimulatedAuthority, token: str, **changes: Any) -> Any:
        expected = {
            "keys": authority.verdict_keys,
            "issuer": "authority.test/audit",
            "audience": "trustauthority",
            "now_ms": authority.clock.now_ms(),
        }
        return check_report(token, **(expected | changes))

    async def test_a_report_says_what_the_verdict_says(self, authority):
        """N92: a FAILED report reads as failed; a relying party can't take it for a pass."""
        (host,) = await authority.trusted("esx-1")
        good = self._check(authority, (await authority.attest(host)).report)
        assert (good.passed, good.host_id) == (True, host.host_id)
        host.lie_about_pcr(7)
        bad = self._check(authority, (await authority.attest(host)).report)
        assert not bad.passed

    async def test_a_report_is_for_one_audience_and_time(self, authority):
        """N92: another audience, another issuer, after its end: refused."""
        (host,) = await authority.trusted("esx-1")
        token = (await authority.attest(host)).report
        for changes in (
            {"audience": "sigstore"},
            {"issuer": "authority.test"},
            {"now_ms": authority.clock.now_ms() + HOUR_MS},
            {"now_ms": authority.clock.now_ms() - HOUR_MS},
        ):
            with pytest.raises(ReportRejected):
                self._check(authority, token, **changes)

    async def test_a_seal_is_no_report(self, authority):
        """N92, N68: what the roles tell each other is of another type, and refused outside."""
        (host,) = await authority.trusted("esx-1")
        _, stored = await authority.hosts.get(host.host_id)
        with pytest.raises(ReportRejected, match="ta-verdict"):
            self._check(authority, stored["seal"])

    async def test_a_report_ends_with_its_evidence(self, authority):
        """S13: the end of a report is that of the verdict, counted from the challenge."""
        (host,) = await authority.trusted("esx-1")
        attested = await authority.attest(host)
        report = self._check(authority, attested.report)
        assert report.expires_at_ms <= attested.verdict.attested_until_ms

    async def test_a_revoked_host_gets_no_good_report(self, authority):
        """S1: evidence does not undo a revocation; the report says why it failed."""
        (host,) = await authority.trusted("esx-1")
        await authority.hosts.revoke(host.host_id, why="test", by=BY, dry_run=False)
        attested = await authority.attest(host)
        assert not self._check(authority, attested.report).passed
        assert [check.id for check in failed_leaves(attested.verdict.checks)] == ["revocation"]
