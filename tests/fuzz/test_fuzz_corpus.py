"""The fuzzing corpus without the fuzzer: what once crashed a decoder stays found (N45)."""

import time

import pytest

from fuzz.inputs import ALL, FAMILIES, checked_in, run_one, seeds

IN_MS = 2_000
"""Far above what an input of 16 KiB takes, far below what more than linear work would."""


@pytest.mark.parametrize("family", FAMILIES)
def test_no_input_of_the_corpus_is_a_finding(family):
    """Every input of corpus and seeds: a model or an announced error, in linear time (N45, rule 45)."""
    inputs = [*seeds(family), *checked_in(family)]
    assert len(inputs) >= 3
    for data in inputs:
        began = time.process_time()
        run_one(family, data)
        assert time.process_time() - began < IN_MS / 1000


def test_every_decoder_is_reached():
    """The first byte reaches each decoder of a family, and the first two each decoder of all."""
    for family, decoders in FAMILIES.items():
        firsts = {data[0] % len(decoders) for data in seeds(family)}
        assert firsts == set(range(len(decoders)))
    assert {data[0] for data in seeds(ALL)} == set(range(len(FAMILIES)))


def test_a_finding_is_not_swallowed(monkeypatch):
    """What a decoder does not announce comes out: the fuzzer would see it."""
    from dataclasses import replace

    def crash(_: bytes) -> None:
        raise IndexError

    decoder = replace(FAMILIES["cel"][0], run=crash)
    monkeypatch.setitem(FAMILIES, "cel", [decoder])
    with pytest.raises(IndexError):
        run_one("cel", b"\0x")
