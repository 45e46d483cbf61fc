"""An authority whose wall clock a test can step, for processes that share one machine's clock.

``python stepping_authority.py FILE ARGUMENTS…`` is ``trustauthority ARGUMENTS…`` whose wall clock is ahead by
the milliseconds in FILE, read each time. CLOCK_BOOTTIME stays: that is what a step of NTP, or a person with
``date``, does to a process. Everything else is the real program.
"""

import sys
from pathlib import Path

from trustauthority.adapters.clock import SystemClock
from trustauthority.main import main


def step_by(path: Path) -> None:
    """Have every wall clock of this process ahead by what the file says."""
    real = SystemClock.now_ms

    def stepped(self: SystemClock) -> int:
        return real(self) + int(path.read_text() or 0)

    SystemClock.now_ms = stepped  # type: ignore[method-assign]


if __name__ == "__main__":
    step_by(Path(sys.argv[1]))
    sys.argv = ["trustauthority", *sys.argv[2:]]
    sys.exit(main())
