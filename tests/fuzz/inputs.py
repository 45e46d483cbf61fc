"""What a fuzz input means, and the checked-in inputs."""

import base64
from collections.abc import Callable, Iterable
from pathlib import Path

from support.decoders import families
from support.refusals import answer_to

CORPUS = Path(__file__).parent / "corpus"
FAMILIES = families()
ALL = "all"
"""One target that fuzzes every family in one process: the first byte picks it."""


def run_one(family: str, data: bytes) -> None:
    """One input: the first byte picks the decoder, the rest is what it reads.

    Only the decoder's announced errors are swallowed; anything else is a finding.
    """
    if not data:
        return
    if family == ALL:
        run_one([*FAMILIES][data[0] % len(FAMILIES)], data[1:])
        return
    decoders = FAMILIES[family]
    decoder = decoders[data[0] % len(decoders)]
    try:
        decoder.run(data[1:])
    except decoder.errors:
        return


def answer(family: str, data: bytes) -> str:
    """Which decoder an input reaches and what it says, numbers left open."""
    decoders = FAMILIES[family]
    decoder = decoders[data[0] % len(decoders)] if data else decoders[0]
    return f"{decoder.name} {answer_to(decoder, data[1:])[0]}"


def seeds(family: str) -> list[bytes]:
    """The small good inputs of each decoder of a family."""
    if family == ALL:
        return _of_all(seeds)
    return [
        bytes((number,)) + seed
        for number, decoder in enumerate(FAMILIES[family])
        for seed in decoder.seeds()
    ]


def checked_in(family: str) -> list[bytes]:
    """The family's corpus: inputs that reached something new, and inputs that once crashed it."""
    if family == ALL:
        return _of_all(checked_in)
    path = CORPUS / f"{family}.txt"
    if not path.exists():
        return []
    lines = path.read_text(encoding="ascii").splitlines()
    return [base64.b64decode(line, validate=True) for line in lines if not line.startswith("#")]


def _of_all(inputs: Callable[[str], list[bytes]]) -> list[bytes]:
    return [
        bytes((number,)) + data for number, family in enumerate(FAMILIES) for data in inputs(family)
    ]


def check_in(family: str, inputs: Iterable[bytes]) -> None:
    """Write a family's corpus, smallest first."""
    CORPUS.mkdir(exist_ok=True)
    ordered = sorted(set(inputs), key=lambda data: (len(data), data))
    text = "".join(base64.b64encode(data).decode() + "\n" for data in ordered)
    (CORPUS / f"{family}.txt").write_text(text, encoding="ascii")
