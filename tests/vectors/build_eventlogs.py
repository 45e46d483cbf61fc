"""Writes the log vectors: ``PYTHONPATH=tests python tests/vectors/build_eventlogs.py``.

One file per vector, named after its defect, and an index of the right answers, for boot logs
(``eventlogs/``) and runtime logs (``imalogs/``). Running it again must change nothing; a test says so.
"""

import json
from pathlib import Path

from support.log_vectors import ImaVector, LogVector, event_log_vectors, ima_vectors

FOLDER = Path(__file__).parent


def main() -> None:
    """Write both folders."""
    write(FOLDER / "eventlogs", event_log_vectors())
    write(FOLDER / "imalogs", ima_vectors())


def write(folder: Path, vectors: list[LogVector] | list[ImaVector]) -> None:
    """Write the files and the index of one kind."""
    folder.mkdir(parents=True, exist_ok=True)
    for vector in vectors:
        (folder / f"{vector.name}.bin").write_bytes(vector.raw)
    index = json.dumps([vector.entry() for vector in vectors], indent=1)
    (folder / "index.json").write_text(index + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
