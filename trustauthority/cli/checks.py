"""The check tree on a screen: the same tree in ``explain``, ``baseline diff`` and ``report show``.

A state is a mark and a place in the tree, never colour alone. Unset states count as failed.
"""

from collections.abc import Iterable, Iterator

from trustauthority.cli.render import BAD, CAUTION, GOOD, QUIET, Cell, Marked, Screen
from trustauthority.client.plain import word
from trustauthority.v1.common_pb2 import Check

MARKS = {"passed": ("✔", GOOD), "warning": ("!", CAUTION), "skipped": ("–", QUIET)}
FAILED_MARK = ("✖", BAD)
STANDINGS = {"passed": ("●", GOOD), "failed": ("✖", BAD)}
UNKNOWN_STANDING = ("?", CAUTION)
MAX_VALUE = 96
"""Characters of a value in the table form: what fits on a line behind its label."""
MAX_DEPTH = 8
"""Levels shown; deeper ones are only in JSON. A server that nests without end can't fill the stack."""


def standing(text: str) -> Marked:
    """A standing with its mark: ``● passed``, ``✖ failed``, ``? unknown``."""
    mark, style = STANDINGS.get(text, UNKNOWN_STANDING)
    return Marked(text=f"{mark} {text if text in STANDINGS else 'unknown'}", style=style)


def around_difference(expected: str, found: str) -> tuple[str, str]:
    """Cut two long texts to where they begin to differ; a newline shows as ↵.

    The whole texts are in ``-o wide`` and ``-o json``.
    """
    one, two = (text.replace("\n", "↵") for text in (expected, found))
    if max(len(one), len(two)) <= MAX_VALUE:
        return one, two
    shorter = min(len(one), len(two))
    same = next((at for at in range(shorter) if one[at] != two[at]), shorter)
    start = max(0, same - MAX_VALUE // 3)
    return _window(one, start), _window(two, start)


def _window(text: str, start: int) -> str:
    end = start + MAX_VALUE
    return ("…" if start else "") + text[start:end] + ("…" if len(text) > end else "")


def mark(check: Check) -> Marked:
    """The mark of one check."""
    text, style = MARKS.get(word(check, "state"), FAILED_MARK)
    return Marked(text=text, style=style)


def is_good(check: Check) -> bool:
    """Whether there is nothing to look at below this check."""
    return word(check, "state") in {"passed", "skipped"}


def show_checks(screen: Screen, checks: Iterable[Check], *, everything: bool = False) -> None:
    """Print a tree: what is fine in a line each, what is not with expected, found and why."""
    tree = list(checks)
    width = max((len(check.id) for check in tree), default=0)
    for check in tree:
        for line in _lines(check, indent=0, width=width, everything=everything):
            screen.line(*line)


def _lines(
    check: Check, *, indent: int, width: int, everything: bool
) -> Iterator[tuple[Cell, ...]]:
    where = f"  PCR {check.pcr}" if check.pcr >= 0 and not is_good(check) and check.found else ""
    margin = " " * indent
    yield (margin, mark(check), f" {check.id.ljust(width)}  {check.title}{where}")
    if not is_good(check) or everything:
        yield from _explanation(check, " " * (indent + 6), whole=everything)
    if indent // 2 + 1 >= MAX_DEPTH:
        return
    shown = [child for child in check.children if everything or not is_good(child)]
    inner = max((len(child.id) for child in shown), default=0)
    for child in shown:
        yield from _lines(child, indent=indent + 2, width=inner, everything=everything)


def _explanation(check: Check, margin: str, *, whole: bool) -> Iterator[tuple[Cell, ...]]:
    expected, found = check.expected, check.found
    if not whole:
        expected, found = around_difference(expected, found)
    event = f"  event #{check.event_index}" if check.event_index >= 0 and check.found else ""
    parts = (
        ("expected", expected),
        ("found", f"{found}{event}" if check.found else ""),
        ("why", check.detail),
    )
    for label, text in parts:
        if text:
            yield (margin, Marked(text=f"{label.ljust(8)}  ", style=QUIET), text)


def remedies(checks: Iterable[Check]) -> list[str]:
    """What to do about each failed check, leaves first, without repetition."""
    found: dict[str, None] = {}
    for check in _failed_leaves(checks, 0):
        if check.remedy:
            found.setdefault(check.remedy)
    return list(found)


def _failed_leaves(checks: Iterable[Check], depth: int) -> Iterator[Check]:
    for check in checks:
        if not is_good(check):
            if depth < MAX_DEPTH:
                yield from _failed_leaves(check.children, depth + 1)
            yield check
