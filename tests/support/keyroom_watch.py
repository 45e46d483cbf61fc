"""A key room in a process of its own, and looks into its memory and its /proc."""

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from trustauthority.adapters.kms.settings import ProviderSettings, provider_to_json

TESTS = Path(__file__).parents[1]
PATIENCE_S = 60


class Parent:
    """A parent process that goes on releasing one key; ``folder`` has its release key."""

    def __init__(self, kms: ProviderSettings, folder: Path) -> None:
        self.log = folder / "parent.log"
        program = "from support.keyroom_parent import main; import asyncio; asyncio.run(main())"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program, json.dumps(provider_to_json(kms)), str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
            )
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            assert selector.select(PATIENCE_S), self.log.read_text()
        self.news = json.loads(self.process.stdout.readline())

    def stop(self) -> None:
        """End it, and with it its children."""
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def found_in_memory(pid: int, needles: Mapping[str, bytes]) -> set[str]:
    """The names of the needles that are in the writable memory of a process."""
    found = set()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, mode = line.split()[:2]
            if not mode.startswith("rw"):
                continue
            start, end = (int(part, 16) for part in span.split("-"))
            try:
                memory.seek(start)
                content = memory.read(end - start)
            except (OSError, ValueError, OverflowError):
                continue  # vanished, or a special mapping
            found |= {name for name, needle in needles.items() if needle in content}
    return found


def current_children(pid: int) -> list[int]:
    """The children of a process, those of its threads included."""
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


def proc(pid: int, name: str) -> bytes:
    """A file of /proc, empty when the process is gone or keeps it to itself."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""
