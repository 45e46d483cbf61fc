"""Runtime facts: the IMA log against PCR 10.

What it trusts: a RuntimeReplay, whose entries a quote proves. Entries after the matched prefix are
unverified and never appraised (rule 54). Files are judged in ``runtimefiles``.
"""

from trustauthority.appraisal.runtimefiles import FileJudgement, file_checks
from trustauthority.appraisal.states import state_of
from trustauthority.model.policy import RuntimePolicy
from trustauthority.model.verdict import Check
from trustauthority.verification.runtime import TIED
from trustauthority.verification.runtimelog import RuntimeReplay


def runtime_checks(
    replay: RuntimeReplay, policy: RuntimePolicy, files: FileJudgement | None
) -> tuple[Check, ...]:
    """Checks of the runtime log and of the files it names."""
    progress = replay.progress
    tied = progress.aggregate in TIED
    return (
        Check(
            id="runtime.replay",
            title="the IMA log reproduces PCR 10",
            state=state_of(policy.ima, good=not replay.problem),
            pcr=10,
            found=replay.problem or f"{progress.count} entries",
            detail=replay.problem,
            remedy="Attest again; if it stays, the log was changed or PCR 10 extended outside of it."
            if replay.problem
            else "",
        ),
        Check(
            id="runtime.entries",
            title="each entry's digest fits its content",
            state=state_of(policy.ima, good=progress.defects == 0),
            pcr=10,
            expected="0",
            found=str(progress.defects),
        ),
        Check(
            id="runtime.boot-aggregate",
            title="the runtime log belongs to this boot",
            state=state_of(policy.boot_aggregate, good=tied),
            pcr=10,
            expected="hash of PCRs 0-7 or 0-9",
            found=str(progress.aggregate),
        ),
        Check(
            id="runtime.violations",
            title="no file was changed while it was measured",
            state=state_of(policy.violations, good=progress.violations == 0),
            pcr=10,
            expected="0",
            found=str(progress.violations),
        ),
        *file_checks(files, policy),
    )
