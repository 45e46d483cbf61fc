"""What decoders answer to every small change of a good input: the part, the place, the words (rule 65)."""

from collections import defaultdict
from pathlib import Path

import pytest
from support.decoders import Decoder
from support.refusals import FAMILIES, decoders, table

FOLDER = Path(__file__).parents[2] / "vectors" / "refusals"


WALKED: dict[str, list[Decoder]] = defaultdict(list)
for _family in FAMILIES:
    for _decoder in decoders(_family):
        WALKED[_decoder.name].append(_decoder)


def expected(family: str) -> list[str]:
    """The lines that were read by a person and checked in."""
    return (FOLDER / f"{family}.txt").read_text(encoding="ascii").splitlines()


@pytest.mark.parametrize("name", WALKED)
def test_answers_are_those_that_were_read_and_checked_in(name):
    """No refusal turns into a model, and no place or word into another, without being looked at.

    After a change on purpose: PYTHONPATH=tests python tests/vectors/build_refusals.py, and read the diff.
    """
    ways = WALKED[name]
    ours = [line for line in expected(ways[0].family) if line.startswith(f"{name} ")]
    assert [line for decoder in ways for line in table(decoder)] == ours
    assert ours


def test_every_line_is_of_a_decoder_that_is_walked():
    """No answer of a decoder that is gone stays behind."""
    for family in FAMILIES:
        assert {line.split(" ")[0] for line in expected(family)} <= set(WALKED)
