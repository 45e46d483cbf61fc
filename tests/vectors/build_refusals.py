"""Writes what decoders say of changed inputs: ``PYTHONPATH=tests python tests/vectors/build_refusals.py``.

Read the diff before it is committed: a line that changed is an answer that hosts and operators get.
"""

from pathlib import Path

from support.refusals import FAMILIES, decoders, table

FOLDER = Path(__file__).parent / "refusals"


def main() -> None:
    """One file per family."""
    FOLDER.mkdir(exist_ok=True)
    for family in FAMILIES:
        lines = [line for decoder in decoders(family) for line in table(decoder)]
        (FOLDER / f"{family}.txt").write_text("\n".join(lines) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
