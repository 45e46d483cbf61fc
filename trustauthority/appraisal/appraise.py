"""VerifiedEvidence in, Verdict out. Never raises: a check that crashes is FAILED.

What it trusts: VerifiedEvidence, policy and approved baselines. What it guarantees: a verdict passes
only when no check failed, and each check of the policy was made; doubt is failure (S12, N04).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from trustauthority.appraisal.alternatives import BootJudgement, judge_boot
from trustauthority.appraisal.boot import boot_log_checks, secure_boot_checks
from trustauthority.appraisal.runtime import runtime_checks
from trustauthority.appraisal.runtimefiles import FileJudgement, judge_files
from trustauthority.appraisal.states import state_of
from trustauthority.appraisal.tpm import TpmKnowledge, tpm_checks
from trustauthority.model.baseline import Baseline, compact_names
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.identifiers import ClusterId, HostId
from trustauthority.model.policy import Policy, Requirement
from trustauthority.model.runtimerules import RuntimeRules
from trustauthority.model.verdict import Check, CheckState, Verdict
from trustauthority.verification.pipeline import VerifiedEvidence
from trustauthority.verification.replay import VerifiedBootLog
from trustauthority.verification.runtime import MAX_FINDINGS
from trustauthority.verification.runtimelog import RuntimeReplay

NOTHING_KNOWN = TpmKnowledge()


@dataclass(frozen=True, slots=True, kw_only=True)
class AppraisalContext:
    """What an appraisal knows besides the evidence."""

    host_id: HostId
    cluster: ClusterId
    endorsement: str
    """Anchor and TPM as they were accepted at enrolment."""
    policy_sha256: str
    policy_epoch: int
    issued_at_ms: int
    """When the challenge was issued: evidence is at least this fresh."""
    now_ms: int
    host_class: str = ""
    """What hardware the host is, as its admission says; empty when that was not said."""
    revoked: bool = False
    """An administrator took trust away: no evidence gives it back."""
    tpm: TpmKnowledge = NOTHING_KNOWN
    taken_back: str = ""
    """Why the TPM's certificate or key counts no more, in words; empty when it does."""
    files: FileJudgement | None = None
    """What ``judge_files`` found in the runtime log of this boot; None when nothing judged it."""


def appraise(
    evidence: VerifiedEvidence,
    policy: Policy,
    baselines: Iterable[Baseline],
    context: AppraisalContext,
) -> Verdict:
    """Judge verified evidence."""
    judged: list[BootJudgement] = []
    checks = (
        _endorsement(context),
        _identity_check("residency", "the keys live in that TPM", "proven at enrolment"),
        *_revocation(context),
        _group("quote", "the quote is genuine and fresh", lambda: _quote_checks(evidence)),
        _group(
            "tpm-firmware",
            "the TPM's firmware",
            lambda: tpm_checks(evidence.quote, policy.tpm, context.tpm),
        ),
        _group("boot-log", "the boot log explains the PCRs", lambda: _boot_log(evidence, policy)),
        _group(
            "secure-boot",
            "Secure Boot",
            lambda: secure_boot_checks(_claimed_log(evidence, policy), policy.boot),
        ),
        _group(
            "baseline",
            "the boot is an approved one",
            lambda: _baseline_checks(evidence, policy, tuple(baselines), context, judged),
        ),
        _group(
            "runtime",
            "the runtime log",
            lambda: runtime_checks(evidence.runtime, policy.runtime, context.files),
        ),
    )
    passed = all(check.state is not CheckState.FAILED for check in checks)
    until_ms = context.issued_at_ms + policy.evidence.max_age_ms
    return Verdict(
        host_id=context.host_id,
        cluster=context.cluster,
        passed=passed,
        checks=checks,
        policy=policy.name,
        policy_sha256=context.policy_sha256,
        policy_epoch=context.policy_epoch,
        baseline=compact_names(judged[0].matched, whole=judged[0].complete) if judged else "",
        variants=judged[0].matched if judged else (),
        decided_at_ms=context.now_ms,
        attested_until_ms=until_ms if passed else context.now_ms,
    )


def judge_runtime(
    replay: RuntimeReplay, rules: RuntimeRules | None, before: FileJudgement | None
) -> FileJudgement | None:
    """Judge the new entries of a runtime log; None without rules, or when the judging crashed.

    None is no approval: a policy that asks for files fails on it (N04).
    """
    if replay.problem:
        return before  # nothing was proven, and what was refused before stays refused
    if rules is None or replay.rules != rules.sha256:
        return None  # entries that other rules approved count for nothing
    try:
        return judge_files(
            replay.entries,
            rules,
            approved=replay.approved,
            before=before,
            defective=replay.defective,
            defects_cut=len(replay.defective) >= MAX_FINDINGS,
        )
    except Exception:  # noqa: BLE001 - fail closed
        return None


def _identity_check(check_id: str, title: str, found: str) -> Check:
    """What enrolment proved; a host without it has no row and no evidence is looked at."""
    return Check(id=check_id, title=title, state=CheckState.PASSED, found=found)


def _endorsement(context: AppraisalContext) -> Check:
    """What enrolment proved, unless somebody took it back since."""
    accepted = replace(
        _identity_check("endorsement", "the TPM is accepted", context.endorsement),
        children=(_certificate(context.tpm.manufacturer),),
    )
    if not context.taken_back:
        return accepted
    return replace(
        accepted,
        children=(),
        state=CheckState.FAILED,
        detail=context.taken_back,
        remedy="Replace the TPM or the machine; ta anchor crl list and endorsement.denied of the policy "
        "say what was taken back.",
    )


def _certificate(manufacturer: str) -> Check:
    """Whether a vendor says that this is a TPM, or only a person who named its key (rule 63)."""
    return Check(
        id="endorsement.certificate",
        title="a certificate of its vendor stands behind the TPM",
        state=CheckState.PASSED if manufacturer else CheckState.SKIPPED,
        found=manufacturer,
        detail="" if manufacturer else "an operator named this very key",
    )


def _revocation(context: AppraisalContext) -> tuple[Check, ...]:
    """Make no signed statement say that a revoked host is good; nothing for the others."""
    if not context.revoked:
        return ()
    return (
        Check(
            id="revocation",
            title="the host is not revoked",
            state=CheckState.FAILED,
            found="revoked",
            detail="an administrator revoked this host",
            remedy="ta host reinstate, once it is known why it was revoked",
        ),
    )


def _group(check_id: str, title: str, make: Callable[[], tuple[Check, ...]]) -> Check:
    """Sum up checks; an exception in one of them is a failure that says so (N04)."""
    try:
        children = make()
    except Exception as error:  # noqa: BLE001 - fail closed: whatever crashes a check fails the host
        crash = Check(
            id=f"{check_id}.crashed",
            title=title,
            state=CheckState.FAILED,
            detail=f"the check crashed: {type(error).__name__}",
            remedy="This is a defect of the authority; report it with the evidence bundle.",
        )
        children = (crash,)
    states = {child.state for child in children}
    if not children or CheckState.FAILED in states:
        state = CheckState.FAILED
    elif CheckState.WARNING in states:
        state = CheckState.WARNING
    else:
        state = CheckState.PASSED if CheckState.PASSED in states else CheckState.SKIPPED
    detail = "" if children else "there was nothing to check"
    return Check(id=check_id, title=title, state=state, detail=detail, children=children)


def _quote_checks(evidence: VerifiedEvidence) -> tuple[Check, ...]:
    clock = evidence.quote.clock_info
    return (
        Check(
            id="quote.genuine",
            title="signature, challenge, selection, digest and counters",
            state=CheckState.PASSED,
            found=f"resets {clock.reset_count}, restarts {clock.restart_count}",
        ),
        Check(
            id="quote.clock-safe",
            title="the TPM's clock was not set back by a power cut",
            state=CheckState.PASSED if clock.safe else CheckState.WARNING,
            found="safe" if clock.safe else "not safe",
            detail="" if clock.safe else "the TPM lost power without a shutdown",
        ),
    )


def _boot_log(evidence: VerifiedEvidence, policy: Policy) -> tuple[Check, ...]:
    checks: list[Check] = []
    for bank, replay in evidence.boot.items():
        claimed = bank is policy.evidence.bank
        checks.extend(boot_log_checks(bank, replay, claimed=claimed))
    return tuple(checks)


def _claimed_log(evidence: VerifiedEvidence, policy: Policy) -> VerifiedBootLog | None:
    replay = evidence.boot.get(HashAlgorithm(policy.evidence.bank))
    return None if replay is None else replay.log


def _baseline_checks(
    evidence: VerifiedEvidence,
    policy: Policy,
    baselines: tuple[Baseline, ...],
    context: AppraisalContext,
    judged: list[BootJudgement],
) -> tuple[Check, ...]:
    if policy.boot.baseline is Requirement.OFF:
        return (Check(id="baseline.off", title="not asked for", state=CheckState.SKIPPED),)
    log = _claimed_log(evidence, policy)
    if log is None or not baselines:
        return (
            Check(
                id="baseline.exists",
                title="a baseline to compare with",
                state=state_of(policy.boot.baseline, good=False),
                detail="no boot log" if log is None else "no baseline is approved in this cluster",
                remedy="ta baseline capture NAME --host HOST, then ta baseline approve NAME",
            ),
        )
    judgement = judge_boot(log, baselines, policy.boot, host_class=context.host_class)
    judged.append(judgement)
    if policy.boot.baseline is Requirement.WARN:
        return tuple(_soften(check) for check in judgement.checks)
    return judgement.checks


def _soften(check: Check) -> Check:
    if check.state is not CheckState.FAILED:
        return check
    children = tuple(_soften(child) for child in check.children)
    return replace(check, state=CheckState.WARNING, children=children)
