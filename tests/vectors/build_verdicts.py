"""Writes what verdicts say, and what boots show: ``PYTHONPATH=tests python tests/vectors/build_verdicts.py``.

Read the diff before it is committed: a line that changed is what an operator gets to read.
"""

from pathlib import Path

from support import boot_tables, event_words
from support.verdict_trees import FAMILIES, table

FOLDER = Path(__file__).parent / "verdicts"


def main() -> None:
    """One file per family of cases."""
    FOLDER.mkdir(exist_ok=True)
    tables = {family: table(family) for family in FAMILIES} | {
        "boots": boot_tables.table(),
        "words": event_words.table(),
        "types": event_words.types_by_register(),
    }
    for family, lines in tables.items():
        (FOLDER / f"{family}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
