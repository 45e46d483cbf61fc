"""What decoders answer to every small change of a good input: the part, the place, the words (rule 65)."""

from pathlib import Path

import pytest
from support.refusals import FAMILIES, table

FOLDER = Path(__file__).parents[2] / "vectors" / "refusals"


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_that_were_read_and_checked_in(family):
    """No refusal turns into a model, and no place or word into another, without being looked at.

    After a change on purpose: PYTHONPATH=tests python tests/vectors/build_refusals.py, and read the diff.
    """
    expected = (FOLDER / f"{family}.txt").read_text(encoding="ascii").splitlines()
    assert table(family) == expected
