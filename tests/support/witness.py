"""A virsh that stays open, so that looking at a VM costs a third of a millisecond, not a process.

Stage: test support. Trusts libvirt. Says nothing rather than something old: whatever is not a whole
answer to the question that was just asked is none, and the next question opens another virsh.
"""

import os
import re
import select
import subprocess
import time

_PROMPT = b"virsh # "
_ANSWER_S = 2.0
_STATE = re.compile(r"[a-z ]+ \([a-z- ]+\)|[a-z ]+")
_ABSENT = "failed to get domain"


class Witness:
    """Looks at VMs of one libvirt. For one thread."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._virsh: subprocess.Popen[bytes] | None = None

    def state(self, vm: str) -> str:
        """State and reason as virsh says them, «absent», or empty when libvirt does not answer."""
        lines = self.said(f"domstate --reason {vm}")
        if any(_ABSENT in line for line in lines):
            return "absent"
        if len(lines) == 1 and _STATE.fullmatch(lines[0]):
            return lines[0]
        self.close()
        return ""

    def close(self) -> None:
        """End it."""
        if self._virsh is not None:
            self._virsh.kill()
            self._virsh.wait(5)
            self._virsh.stdin.close()
            self._virsh.stdout.close()
            self._virsh = None

    def said(self, question: str) -> list[str]:
        """The lines of an answer; none when libvirt does not answer."""
        try:
            if self._virsh is None:
                self._virsh = self._open()
                self._answer()
            os.write(self._virsh.stdin.fileno(), question.encode() + b"\n")
            said = self._answer()
        except (OSError, TimeoutError):
            self.close()
            return []
        lines = [line.strip() for line in said.splitlines()]
        return [line for line in lines if line and line != question]

    def _open(self) -> "subprocess.Popen[bytes]":
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
            left = max(deadline - time.monotonic(), 0)
            ready, _, _ = select.select([self._virsh.stdout], [], [], left)
            part = self._virsh.stdout.read(65536) if ready else b""
            if not part:
                raise TimeoutError
            said += part
        return said.removesuffix(_PROMPT).decode()
