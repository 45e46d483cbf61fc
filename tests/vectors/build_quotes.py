"""Writes the quote vectors: ``PYTHONPATH=tests python tests/vectors/build_quotes.py``.

Running it again must change nothing; ``git diff --exit-code`` says so.
"""

import json
from pathlib import Path

from support.quote_vectors import quote_vectors

FOLDER = Path(__file__).parent / "quotes"


def main() -> None:
    """Write one folder per vector and the index of verdicts."""
    vectors = quote_vectors()
    for vector in vectors:
        folder = FOLDER / vector.name
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in vector.files().items():
            (folder / name).write_bytes(content)
    index = json.dumps([vector.entry() for vector in vectors], indent=1, ensure_ascii=False)
    (FOLDER / "index.json").write_text(index + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
