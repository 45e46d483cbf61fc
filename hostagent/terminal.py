"""Where commands write: data to stdout, narration to stderr."""

import sys

from hostagent.control import Json


def say(text: str) -> None:
    """One line of data."""
    sys.stdout.write(text + "\n")


def narrate(text: str) -> None:
    """One line for people."""
    sys.stderr.write(text + "\n")


def refused(answer: Json) -> int:
    """Say why not; returns the exit status."""
    narrate(f"{answer['reason']}: {answer['detail']}")
    return int(answer["exit_code"])
