"""Finds the shared corpus of real TPM data beside the project; tests skip where it is absent."""

from pathlib import Path

import pytest

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"


def corpus_folder(name: str) -> Path:
    """A folder of the corpus; the test that asks for it skips when the corpus is not there."""
    folder = CORPUS / name
    if not folder.is_dir():
        pytest.skip(f"the corpus folder {name} is not beside the project")
    return folder


def quote_cases(*folders: str) -> list[Path]:
    """Case folders of ``quotes`` and ``negative`` (or the ones named), for parametrisation."""
    return [
        case
        for folder in (folders or ("quotes", "negative"))
        if (CORPUS / folder).is_dir()
        for case in sorted((CORPUS / folder).iterdir())
        if case.is_dir()
    ]
