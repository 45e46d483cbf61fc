"""A parent for processes whose own parents leave them: what ends is reaped at once.

Stage: test support. libvirtd detaches QEMU and swtpm, so process 1 inherits them; where that is no
init but whatever a container runs, a dead QEMU stays a zombie for a second, and libvirtd waits for it
at each end of a VM. On a host with systemd nobody waits. This process stands in for it (Linux's
"child subreaper"), one for each libvirt host. It ends, and leaves its children alone, when its
owner closes it or dies.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


class Fostered:
    """A process under a foster parent."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            self._descriptor = -1

    def ended(self, within_s: float = 0) -> bool:
        """Whether it has ended, or ends in time."""
        if self._descriptor >= 0 and select.select([self._descriptor], [], [], within_s)[0]:
            os.close(self._descriptor)
            self._descriptor = -1
        return self._descriptor < 0

    def send_signal(self, number: int) -> None:
        """Send a signal, if it lives."""
        with contextlib.suppress(ProcessLookupError):
            if not self.ended():
                signal.pidfd_send_signal(self._descriptor, number)


class Foster:
    """Starts processes and inherits theirs."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-IS", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,
        )

    def start(self, command: list[str], out: Path) -> Fostered:
        """Start a command in a session of its own; what it says is appended to a file."""
        self._server.stdin.write(json.dumps({"command": command, "out": str(out)}) + "\n")
        return Fostered(int(self._server.stdout.readline()))

    def end_all(self, within_s: float = 10) -> None:
        """Kill everything that descends from it. By parentage: a pid in a file may be another's by now."""
        deadline = time.monotonic() + within_s
        while (children := self._children()) and time.monotonic() < deadline:
            for pid in children:  # it stays theirs until the foster parent reaps it
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def _children(self) -> list[int]:
        found = []
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, parent = entry.read_text().rpartition(")")[2].split()[:2]
                if int(parent) == self._server.pid and state != "Z":
                    found.append(int(entry.parent.name))
        return found

    def close(self) -> None:
        """End it; its children go to process 1."""
        self._server.stdin.close()
        self._server.wait(5)
        self._server.stdout.close()


def _serve() -> None:
    import ctypes

    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError("prctl")
    signal.signal(signal.SIGCHLD, lambda *_: _reap())
    for line in sys.stdin:
        order = json.loads(line)
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, order["out"], append, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        command = order["command"]
        pid = os.posix_spawnp(
            command[0], command, os.environ, file_actions=actions, setsid=True, setsigdef=[13]
        )
        print(pid, flush=True)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    _serve()
