"""Evidence in, VerifiedEvidence out: the verifier as a numbered argument.

What it trusts on entry: the enrolment, the policy and the challenge keys, which are ours. What it
guarantees on exit: the quote is genuine, fresh, ours and forward in the TPM's time; of the logs,
only what the quoted PCRs prove is reachable. What it does not do: judge. A log that does not fit
its PCRs is a finding of ``appraisal``, since the quote under it *is* genuine; a quote that is not
genuine is an error and changes nothing, or anybody could fail a host (design.md section 4).
Spec: TPM 2.0 Part 2 §10.12; PFP 1.06 §10; pitfalls.md rules 1-18, 34-41, 51-56.
"""

from dataclasses import dataclass

from trustauthority.codec.tpm import (
    decode_attest,
    decode_public,
    object_name,
    primary_qualified_name,
    qualified_name,
)
from trustauthority.errors import LogRejected
from trustauthority.model.evidence import Evidence
from trustauthority.model.policy import Policy
from trustauthority.model.runtimerules import RuntimeRules
from trustauthority.model.tpm import HANDLE_ENDORSEMENT, ClockInfo, PcrSelection
from trustauthority.verification.bootreplay import BootReplay, KnownBoots, replay_boot
from trustauthority.verification.challenge import qualifying_data
from trustauthority.verification.quote import (
    QuoteExpectation,
    VerifiedQuote,
    require_quote,
    verify_quote,
)
from trustauthority.verification.runtimelog import (
    RuntimeProgress,
    RuntimeReplay,
    no_progress,
    replay_runtime_log,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedEvidence:
    """What is known of the host before its evidence is looked at."""

    ak_public: bytes
    """TPMT_PUBLIC of the enrolled AK."""
    ak_qualified_name: bytes
    qualifying_data: bytes
    last_clock: ClockInfo | None
    progress: RuntimeProgress | None
    """Of the boot of ``last_clock``; None before the first evidence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedEvidence:
    """What a genuine quote proves. Constructed in ``verify_evidence`` only."""

    quote: VerifiedQuote
    boot: BootReplay
    runtime: RuntimeReplay
    same_boot: bool
    """Whether (resetCount, restartCount) are those of the evidence before."""


def expect_evidence(
    *,
    ak_public: bytes,
    ek_public: bytes,
    tls_public: bytes,
    challenge: bytes,
    purpose: str,
    last_clock: ClockInfo | None,
    progress: RuntimeProgress | None,
) -> ExpectedEvidence:
    """What evidence must be, given the keys that it is held against.

    Args:
        ak_public: TPMT_PUBLIC of the AK.
        ek_public: TPMT_PUBLIC of the EK: the AK is its child.
        tls_public: TPMT_PUBLIC of the TLS identity, which the quote names.
        challenge: what the quote answers.
        purpose: what for.
        last_clock: the TPM's position before; None when it is not known.
        progress: what the IMA delta continues; None for a whole log.
    """
    endorsement = primary_qualified_name(HANDLE_ENDORSEMENT, object_name(decode_public(ek_public)))
    return ExpectedEvidence(
        ak_public=ak_public,
        ak_qualified_name=qualified_name(endorsement, object_name(decode_public(ak_public))),
        qualifying_data=qualifying_data(challenge, object_name(decode_public(tls_public)), purpose),
        last_clock=last_clock,
        progress=progress,
    )


def verify_evidence(
    evidence: Evidence,
    expected: ExpectedEvidence,
    policy: Policy,
    rules: RuntimeRules | None = None,
    boots: KnownBoots | None = None,
) -> VerifiedEvidence:
    """Verify one piece of evidence, step by step.

    Args:
        evidence: the host's bytes.
        expected: what they must be.
        policy: which banks and PCRs, and which quirks.
        rules: the runtime rules in force: proven entries that they approve by path and digest are
            only counted.
        boots: boot logs that were replayed before; None replays each one.

    Raises:
        MalformedEvidence: the quote or its signature do not decode.
        EvidenceRejected: the quote is not genuine, not ours, not fresh or not forward in time; or
            the IMA delta does not continue what is known (rule 55).
    """
    # (1) structure, magic and type; (2) signature under the enrolled AK, with the AK's own scheme;
    # (3) qualifyingData; (4) selection covers policy; (5) digest; (6) TPM time moves forward
    quote = verify_quote(
        attest=evidence.attest,
        signature=evidence.signature,
        pcr_values=evidence.pcr_values,
        expectation=QuoteExpectation(
            attestation_key=decode_public(expected.ak_public),
            qualified_name=expected.ak_qualified_name,
            qualifying_data=expected.qualifying_data,
            selection=expected_selection(evidence.attest, policy),
            last_clock=expected.last_clock,
        ),
    )
    same_boot = (
        expected.last_clock is not None
        and expected.last_clock.counter_bytes == quote.clock_info.counter_bytes
    )
    # (7) the boot log replays in every quoted bank
    replay = replay_boot if boots is None else boots.replay
    boot = replay(
        evidence.boot_log,
        quote.pcrs,
        pcrs=policy.evidence.replayed_pcrs,
        quirks=frozenset(policy.boot.quirks),
        banks=policy.evidence.quoted_banks,
    )
    # (8) the IMA log reproduces PCR 10 at some prefix
    known = expected.progress if same_boot else None
    runtime = _replay_runtime(evidence, quote, policy, known, rules)
    return VerifiedEvidence(quote=quote, boot=boot, runtime=runtime, same_boot=same_boot)


def expected_selection(attest: bytes, policy: Policy) -> tuple[PcrSelection, ...]:
    """The selection a quote must have: the claimed bank always, others where the TPM has them.

    A bank that the quote leaves out is not active, or the host hides it: ``replay_boot`` finds a bank that
    the log says firmware measured into (rule 40).
    """
    quoted = {entry.bank for entry in require_quote(decode_attest(attest)).selection}
    banks = [
        bank
        for bank in policy.evidence.quoted_banks
        if bank is policy.evidence.bank or bank in quoted
    ]
    return tuple(PcrSelection(bank=bank, indices=policy.evidence.pcrs) for bank in banks)


def _replay_runtime(
    evidence: Evidence,
    quote: VerifiedQuote,
    policy: Policy,
    known: RuntimeProgress | None,
    rules: RuntimeRules | None,
) -> RuntimeReplay:
    bank = policy.evidence.bank
    start = known or no_progress(bank)
    if evidence.ima_offset != start.offset:
        raise LogRejected(
            f"the IMA log continues at byte {start.offset}, not at {evidence.ima_offset}",
            expectedOffset=start.offset,
        )
    return replay_runtime_log(evidence.ima_log, start, quote.pcrs, bank=bank, rules=rules)
