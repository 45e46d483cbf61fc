"""What verdicts say, case by case: each failed check, where it points, why, and what to do."""

from pathlib import Path

import pytest
from support import boot_tables, event_words
from support.verdict_trees import FAMILIES, table

from trustauthority.model.verdict import CheckState

FOLDER = Path(__file__).parents[2] / "vectors" / "verdicts"


def expected(family: str) -> list[str]:
    """The lines that were read by a person and checked in."""
    return (FOLDER / f"{family}.txt").read_text(encoding="utf-8").split("\n")[:-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_verdicts_are_those_that_were_read_and_checked_in(family):
    """N13, N18: no failure turns into a pass, and no register, event or word into another, unseen.

    After a change on purpose: PYTHONPATH=tests python tests/vectors/build_verdicts.py, and read the diff.
    """
    assert table(family) == expected(family)


def test_boots_are_read_as_they_were_checked_in():
    """Rules 37, 38: each event of real boots has its component, its proof and its words, unchanged."""
    assert boot_tables.table() == expected("boots")


def test_events_are_said_as_they_were_checked_in():
    """Rules 37, 38: each type of event in words, and how far its digest proves them, unchanged."""
    assert event_words.table() == expected("words")
    assert event_words.types_by_register() == expected("types")


@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family, cases in FAMILIES.items() for name in cases]
)
def test_whatever_fails_says_why(family, name):
    """S12: a failed check without children gives a reason, or what it found; none is only a title."""

    def leaves(checks):
        for check in checks:
            yield from leaves(check.children) if check.children else (check,)

    for check in leaves(FAMILIES[family][name]()):
        if check.state is CheckState.FAILED and check.id not in {"verdict", "judgement"}:
            assert check.detail or check.found != "", check.id
