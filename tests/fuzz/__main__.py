"""Fuzz one family or all: ``PYTHONPATH=tests python -m fuzz [--target x509] [--seconds 60]``.

The time is divided among the families; ``--target all`` is one short process for all of them. What libFuzzer finds new stays in .build/fuzz and is where the
next run starts; ``--keep`` adds the shortest input of each answer to the checked-in corpus.
"""

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

from fuzz.inputs import ALL, FAMILIES, answer, check_in, checked_in, seeds

WORK = Path(__file__).resolve().parents[2] / ".build" / "fuzz"
LONGEST = 16_384
"""Bytes of an input: enough for each structure, small enough that more than linear time shows."""
INPUT_S = 5
"""One input may take this long: about a thousand times what a linear decoder needs for LONGEST."""
MEMORY_MB = 1_024
KEEP_BYTES = 2_048


def main() -> int:
    """0 when nothing was found."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--target", default="", choices=["", ALL, *FAMILIES])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    chosen = [options.target] if options.target else list(FAMILIES)
    failed = [each for each in chosen if not fuzz(each, max(2, options.seconds // len(chosen)))]
    if options.keep and not failed:
        for family in chosen:
            keep(family)
    for family in failed:
        print(f"{family}: see {WORK / family / 'findings'}; add the input to tests/fuzz/corpus")
    return bool(failed)


def fuzz(family: str, seconds: int) -> bool:
    """Run libFuzzer for a while; say whether it found nothing."""
    corpus, findings = WORK / family / "corpus", WORK / family / "findings"
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    write(corpus, [*seeds(family), *checked_in(family)])
    limits = [
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST}",
        f"-timeout={INPUT_S}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-artifact_prefix={findings}/",
    ]
    status, output = run(family, *limits, str(corpus))
    last = [line for line in output.splitlines() if " cov: " in line][-1:]
    print(f"{family}: {' '.join(last[0].split()[1:9]) if last else 'did not start'}", flush=True)
    if status != 0:
        print(output[-4_000:])
    return status == 0


def keep(family: str) -> None:
    """Check in the shortest input of each answer that a decoder gave: what was found, without repetition."""
    known = set(seeds(family))
    found = {each.read_bytes() for each in (WORK / family / "corpus").iterdir()}
    shortest: dict[str, bytes] = {}
    for data in sorted(found - known, key=lambda data: (len(data), data)):
        if len(data) <= KEEP_BYTES:
            shortest.setdefault(answer(family, data), data)
    check_in(family, [*shortest.values(), *checked_in(family)])


def write(folder: Path, inputs: list[bytes]) -> None:
    """One file per input, named by its hash as libFuzzer does."""
    for data in inputs:
        name = hashlib.sha1(data, usedforsecurity=False).hexdigest()
        (folder / name).write_bytes(data)


def run(family: str, *options: str) -> tuple[int, str]:
    """One libFuzzer process."""
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.target", family, *options],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(main())
