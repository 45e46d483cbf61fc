"""Watch that a VM never runs at two hosts: libvirt's word and the guest's own clock.

Stage: test support. Two witnesses, each enough alone. libvirt is asked in turn, host by host, fifty
times a second; «a runs, b runs, a runs» in a row can only be two that run. The guest writes a line
six times in a second of *its* time to one file, whichever host it is on, so two of them write twice as
many. What a host says whose libvirt does not answer is not counted.
"""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Mapping

from support.witness import Witness

_BEAT_S = 0.02
_LEAST_LOOKS = 2
_PATIENCE_S = 10.0
TICK_S = 0.1647
"""Three beats of 18.2 Hz: how often a guest writes."""
_BURST = 4
"""Lines that may stand for time before the watch began, and for rounding."""


class Referee:
    """Watches in a thread from ``begin`` to ``verdict``."""

    def __init__(self, uris: Mapping[str, str], vm: str, lines: Callable[[], int]) -> None:
        self._witnesses = {name: Witness(uri) for name, uri in uris.items()}
        self._vm = vm
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
        deadline = time.monotonic() + _PATIENCE_S
        while self.looks <= _LEAST_LOOKS and time.monotonic() < deadline:
            time.sleep(_BEAT_S)  # a test that ends at once
        self._stop.set()
        self._thread.join(10)
        for witness in self._witnesses.values():
            witness.close()
        took = time.monotonic() - self._began
        wrote = self._lines() - self._before
        assert self.looks > _LEAST_LOOKS, "the referee saw nothing"
        assert not self.doubles, f"two ran: {self.doubles}"
        assert wrote <= took / TICK_S + _BURST, f"{wrote} lines in {took:.1f} s: two guests wrote"

    def told(self) -> str:
        """What was seen, a change a line, with seconds since the beginning."""
        began = self._began
        return "\n".join(f"{when - began:8.2f} {where} {what}" for when, where, what in self.seen)

    def _watch(self) -> None:
        last: dict[str, str] = {}
        before, before_that = "", ""
        for name in itertools.cycle(self._witnesses):
            if self._stop.is_set():
                return
            with contextlib.suppress(ValueError):
                state = self._witnesses[name].state(self._vm).partition(" (")[0]
                self.looks += bool(state)
                if state != last.get(name, ""):
                    last[name] = state
                    self.seen.append((time.monotonic(), name, state))
                runs = name if state == "running" else ""
                if runs and before and runs == before_that and before != runs:
                    self.doubles.append(f"{before} and {runs} ran: {self.seen[-6:]}")
                before_that, before = before, runs
            self._stop.wait(_BEAT_S / 2)
