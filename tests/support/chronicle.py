"""What all processes of two hosts said during one test, for whoever looks for the cause of a failure.

Stage: test support. Reads logs from where they ended when the test began. Needs no journal; where
there is one, the watchdog's lines are taken from it.
"""

import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

_LONGEST = 60_000
"""Bytes of one log: the end of it is what matters."""
_LOOKS = ("VmService/GetVm", "PlacementService/ListMoveOrders")
"""What tests ask many times in a second."""
_PATTERNS = (
    "logs/*.log",
    "libvirt-*/libvirtd.out",
    "libvirt-*/log/**/*.log",
    "libvirt-*/swtpm/**/*.log",
)


class Chronicle:
    """The logs below a folder, from now on."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._began = folder, datetime.now(UTC)
        self._sizes = {path: path.stat().st_size for path in self._logs()}

    def said(self) -> list[tuple[str, str]]:
        """Title and text of each log that grew, and the watchdogs' words."""
        found = [(str(path.relative_to(self._folder)), self._new(path)) for path in self._logs()]
        found.append(("journal: ta-watchdog", self._journal()))
        return [(title, text) for title, text in found if text.strip()]

    def _logs(self) -> list[Path]:
        return sorted({path for each in _PATTERNS for path in self._folder.glob(each)})

    def _new(self, path: Path) -> str:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            begin = self._sizes.get(path, 0) if size >= self._sizes.get(path, 0) else 0
            file.seek(max(begin, size - _LONGEST))
            lines = file.read(_LONGEST).decode(errors="replace").splitlines()
        return "\n".join(line for line in lines if not any(look in line for look in _LOOKS))

    def _journal(self) -> str:
        if shutil.which("journalctl") is None:
            return ""
        since = self._began.strftime("%Y-%m-%d %H:%M:%S UTC")
        words = ("journalctl", "-q", "--no-pager", "-t", "ta-watchdog", "--since", since)
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=False)
        return done.stdout
