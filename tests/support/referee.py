"""Watch that a VM never runs at two hosts: libvirt's word and the guest's own clock.

Stage: test support. Two witnesses, each enough alone. libvirt is asked in turn, host by host, fifty
times a second; «a runs, b runs, a runs» in a row can only be two that run. The guest writes a line
each half second of *its* time to one file, whichever host it is on, so two of them write twice as
many. What a host says whose libvirt does not answer is not counted.
"""

import contextlib
import itertools
import os
import select
import subprocess
import threading
import time
from collections.abc import Callable, Mapping

_PROMPT = b"virsh # "
_BEAT_S = 0.02
_ANSWER_S = 2.0
TICK_S = 0.494
"""Nine beats of 18.2 Hz: how often a guest writes."""
_BURST = 4
"""Lines that may stand for time before the watch began, and for rounding."""


class Witness:
    """One virsh that stays open: an answer costs a third of a millisecond."""

    def __init__(self, uri: str, vm: str) -> None:
        self._uri, self._question = uri, f"domstate {vm}\n".encode()
        self._virsh: subprocess.Popen[bytes] | None = None

    def state(self) -> str:
        """What libvirt says now; empty when it does not answer."""
        try:
            if self._virsh is None:
                self._virsh = self._open()
                self._answer()
            os.write(self._virsh.stdin.fileno(), self._question)
            said = self._answer()
        except (OSError, TimeoutError):
            self.close()
            return ""
        lines = [line for line in said.splitlines() if line and not line.startswith("domstate")]
        return lines[0] if lines else ""

    def close(self) -> None:
        """End it."""
        if self._virsh is not None:
            self._virsh.kill()
            self._virsh.wait(5)
            self._virsh.stdin.close()
            self._virsh.stdout.close()
            self._virsh = None

    def _open(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["virsh", "-q", "-c", self._uri],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )

    def _answer(self) -> str:
        said, deadline = b"", time.monotonic() + _ANSWER_S
        while not said.endswith(_PROMPT):
            ready, _, _ = select.select([self._virsh.stdout], [], [], deadline - time.monotonic())
            part = self._virsh.stdout.read(65536) if ready else b""
            if not part:
                raise TimeoutError
            said += part
        return said.removesuffix(_PROMPT).decode()


class Referee:
    """Watches in a thread from ``begin`` to ``verdict``."""

    def __init__(self, uris: Mapping[str, str], vm: str, lines: Callable[[], int]) -> None:
        self._witnesses = {name: Witness(uri, vm) for name, uri in uris.items()}
        self._lines = lines
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.seen: list[tuple[float, str, str]] = []
        """Each change: when, where, state."""
        self.looks = 0
        self.doubles: list[str] = []

    def begin(self) -> None:
        """Start to watch."""
        self.seen, self.doubles, self.looks = [], [], 0
        self._stop.clear()
        self._began, self._before = time.monotonic(), self._lines()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def verdict(self) -> None:
        """Stop watching. Raises AssertionError if two ran at once, or if nobody looked."""
        self._stop.set()
        self._thread.join(10)
        for witness in self._witnesses.values():
            witness.close()
        took = time.monotonic() - self._began
        wrote = self._lines() - self._before
        assert self.looks > 2, "the referee saw nothing"
        assert not self.doubles, f"two ran: {self.doubles}"
        assert wrote <= took / TICK_S + _BURST, f"{wrote} lines in {took:.1f} s: two guests wrote"

    def _watch(self) -> None:
        last: dict[str, str] = {}
        before, before_that = "", ""
        for name in itertools.cycle(self._witnesses):
            if self._stop.is_set():
                return
            with contextlib.suppress(ValueError):
                state = self._witnesses[name].state()
                self.looks += bool(state)
                if state != last.get(name, ""):
                    last[name] = state
                    self.seen.append((time.monotonic(), name, state))
                runs = name if state == "running" else ""
                if runs and before and runs == before_that and before != runs:
                    self.doubles.append(f"{before} and {runs} ran: {self.seen[-6:]}")
                before_that, before = before, runs
            self._stop.wait(_BEAT_S / 2)
