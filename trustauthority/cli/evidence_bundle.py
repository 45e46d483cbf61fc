"""``ta evidence show`` and ``check``: bundles of ``ta host evidence`` and ``hostagent collect``, offline.

What they answer is in ``bundle_answers``. That is imported when one of them runs: policies and the
authority's messages take longer to load than the other commands of ``ta evidence`` take to judge a log.
"""

from pathlib import Path

import cyclopts

from trustauthority.cli.evidence_files import (
    EXIT_MALFORMED,
    Answer,
    Output,
    judge_files,
    print_answers,
)
from trustauthority.codec.bundle import MAX_BUNDLE_BYTES
from trustauthority.errors import TrustAuthorityError


def show(*files: Path, output: Output = "table") -> int:
    """Say what evidence bundles hold, and whether their quotes are genuine.

    Exit status: 0 genuine, 1 refused with a reason code, 2 malformed with part and offset; of several
    files the worst.

    Args:
        files: Bundles of ta host evidence or hostagent collect.
        output: Format of the answer.
    """
    from trustauthority.cli import bundle_answers as bundles

    answers = judge_files(files, bundles.describe_bundle, limit=MAX_BUNDLE_BYTES)
    return print_answers(answers, output, bundles.shown)


def check(
    *files: Path,
    policy: Path | None = None,
    baseline: list[Path] | None = None,
    rules: Path | None = None,
    output: Output = "table",
) -> int:
    """Judge evidence bundles as the authority would, with the check tree.

    Exit status: 0 passed, 1 failed or refused with a reason code, 2 malformed with part and offset; of
    several files the worst.

    Args:
        files: Bundles of ta host evidence or hostagent collect.
        policy: Policy document; the bundle's own unless given.
        baseline: Approved variants, JSON; may be given several times. The bundle's own unless given.
        rules: Runtime rules document that the policy names.
        output: Format of the answer.
    """
    from trustauthority.cli import bundle_answers as bundles

    try:
        grounds = bundles.read_grounds(policy, baseline, rules)
    except TrustAuthorityError as error:
        no_grounds = Answer(
            exit_code=EXIT_MALFORMED, reason=error.reason, message=error.message, document={}
        )
        return print_answers([(each, no_grounds) for each in files], output, bundles.explained)
    answers = judge_files(
        files, lambda data: bundles.judge_by(data, grounds), limit=MAX_BUNDLE_BYTES
    )
    status = print_answers(answers, output, bundles.explained)
    if output != "json":
        for path, answer in answers:
            if "checks" in answer.document:
                bundles.show_tree(path.name, answer.document["checks"])
    return status


def register(app: cyclopts.App) -> None:
    """Add ``show`` and ``check`` to the commands of ``ta evidence``."""
    app.command(show, name="show")
    app.command(check, name="check")
