"""What ``ta evidence eventlog`` and ``ta evidence ima`` share: many files, one process, one answer each.

Trusts no file. A file that can't be read or decoded is an answer of its own and never stops the others.
Exit status of a call: the worst of its files; 0 yes, 1 refused, 2 malformed or unreadable.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console

from trustauthority.cli.input_files import not_judged, read_input
from trustauthority.codec.efi_text import printable
from trustauthority.errors import InvalidRequest, MalformedEvidence, TrustAuthorityError

EXIT_YES = 0
EXIT_REFUSED = 1
EXIT_MALFORMED = 2
_RESULTS = ("accepted", "refused", "malformed")

Output = Annotated[Literal["table", "json"], Parameter(name=["--output", "-o"])]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is said about one file."""

    exit_code: int
    reason: str | None
    message: str | None
    document: dict[str, Any]


def read_log(path: Path, limit: int) -> bytes:
    """The content of a file of at most ``limit`` bytes.

    Raises:
        InvalidRequest: it can't be read, is no regular file, or is longer.
    """
    return read_input(path, limit, name=path.name, field="FILE")


def judge_files(
    files: Sequence[Path], judge: Callable[[bytes], Answer], *, limit: int
) -> list[tuple[Path, Answer]]:
    """One answer per file, in order; what can't be judged is an answer too."""
    return [(path, _judge_file(path, judge, limit)) for path in files]


def _judge_file(path: Path, judge: Callable[[bytes], Answer], limit: int) -> Answer:
    try:
        return judge(read_log(path, limit))
    except TrustAuthorityError as error:
        document: dict[str, Any] = {}
        if isinstance(error, MalformedEvidence):
            document = {"part": error.part, "offset": error.offset}
        invalid = isinstance(error, InvalidRequest)
        return Answer(
            exit_code=EXIT_MALFORMED if invalid else EXIT_REFUSED,
            reason=error.reason,
            message=printable(error.message),
            document=document,
        )
    except Exception as error:  # noqa: BLE001 - a defect of ours refuses one file, and stops no other
        crash = not_judged(error)
        return Answer(
            exit_code=EXIT_REFUSED, reason=crash.reason, message=crash.message, document={}
        )


def print_answers(
    answers: Sequence[tuple[Path, Answer]],
    output: str,
    table: Callable[[dict[str, Any]], Iterable[str]],
) -> int:
    """Print one JSON document, an array of them for several files, or lines for people.

    Returns the exit status.
    """
    if not answers:
        Console(stderr=True).print("name at least one FILE", markup=False)
        return EXIT_MALFORMED
    console = Console(soft_wrap=True)
    documents = [
        {
            "file": str(path),
            "result": _RESULTS[answer.exit_code],
            "reason": answer.reason,
            "message": answer.message,
        }
        | answer.document
        for path, answer in answers
    ]
    if output == "json":
        shown = documents[0] if len(documents) == 1 else documents
        console.out(json.dumps(shown, indent=2), highlight=False)
    else:
        for document, (_, answer) in zip(documents, answers, strict=True):
            reason = f" ({document['reason']}): {document['message']}" if answer.reason else ""
            _line(console, f"{printable(str(document['file']))}: {document['result']}{reason}")
            for line in table(document) if answer.exit_code != EXIT_MALFORMED else ():
                _line(console, f"  {line}")
    return max(answer.exit_code for _, answer in answers)


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False)
