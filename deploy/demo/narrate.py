"""What the demo prints: acts, steps, and whether each expectation held, with timings."""

import sys
import time

from stage import DemoFailed

WIDTH = 108


class Narrator:
    """Prints the play and counts expectations; the first one that does not hold ends it."""

    def __init__(self) -> None:
        self.held = 0
        self.began = time.monotonic()

    def act(self, number: int, title: str) -> None:
        """Begin an act."""
        sys.stdout.write(f"\n\033[1mAct {number}  {title}\033[0m\n")
        sys.stdout.flush()

    def say(self, text: str) -> None:
        """Tell what happens."""
        sys.stdout.write(f"   {text}\n")
        sys.stdout.flush()

    def show(self, text: str, *, lines: int = 30) -> None:
        """Show what a command printed."""
        for line in text.rstrip().splitlines()[:lines]:
            sys.stdout.write(f"   │ {line}\n")

    def expect(
        self, what: str, *, holds: bool, said: str = "", seconds: float | None = None
    ) -> None:
        """State an expectation and whether it held.

        Raises:
            DemoFailed: it did not.
        """
        took = "" if seconds is None else f"{seconds * 1000:6.0f} ms"
        mark = "\033[32m✔\033[0m" if holds else "\033[31m✖\033[0m"
        sys.stdout.write(f" {mark} {what:<{WIDTH - 14}}{took}\n")
        sys.stdout.flush()
        if not holds:
            raise DemoFailed(f"expected: {what}\n{said}")
        self.held += 1

    def end(self) -> None:
        """Sum up."""
        sys.stdout.write(
            f"\nAll {self.held} expectations held, in {time.monotonic() - self.began:.0f} s.\n"
        )
