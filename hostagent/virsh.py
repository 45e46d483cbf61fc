"""Run virsh, for the agent: one call, one limit, an answer.

Stage: I/O of the agent. Trusts libvirt on this host. Guarantees that no call takes longer than its
limit (a libvirt that hangs costs a killed virsh, never the agent's loop), that a key goes through a
pipe and never into a file or an argument. Decides nothing.
"""

import asyncio
import contextlib
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_ENVIRONMENT = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent"}
ABSENT = "absent"
_PROBE_S = 2.0
_UNITS = {unit: power for power, unit in enumerate(("B", "KiB", "MiB", "GiB", "TiB", "PiB"))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Virsh:
    """virsh against one libvirt."""

    uri: str
    timeout_s: float

    async def run(self, *words: str, limit_s: float | None = None) -> tuple[int, str, str]:
        """Exit status, stdout, stderr; status -1 when there was no answer in time."""
        timeout_s = self.timeout_s if limit_s is None else limit_s
        try:
            process = await asyncio.create_subprocess_exec(
                *("virsh", "-q", "-c", self.uri, *words),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=_ENVIRONMENT,
            )
        except OSError as failure:
            return -1, "", str(failure)
        try:
            out, err = await asyncio.wait_for(process.communicate(), timeout_s)
        except TimeoutError:
            return -1, "", f"virsh {words[0]}: no answer within {timeout_s} s"
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        return process.returncode or 0, out.decode(), err.decode().strip()

    async def answers(self) -> bool:
        """Whether libvirt serves now. It does not while it starts, nor while it autostarts VMs."""
        code, _, _ = await self.run("uri", limit_s=min(_PROBE_S, self.timeout_s))
        return code == 0

    async def state(self, uuid: str) -> str | None:
        """«running», «paused (user)» …, ``ABSENT``; None when libvirt does not answer."""
        code, out, err = await self.run("domstate", "--reason", uuid)
        if code == 0:
            return out.strip()
        return ABSENT if "failed to get domain" in err else None

    def set_secret(self, uuid: str, usage: str, value: bytes | bytearray) -> str:
        """Define an ephemeral, private secret and set it; what went wrong, or nothing.

        Synchronous: called in the thread that holds the opened key.
        """
        xml = f"<secret ephemeral='yes' private='yes'><uuid>{uuid}</uuid>{usage}</secret>"
        with _pipes({"xml": xml.encode(), "value": value}) as ends:
            commands = (
                f"secret-define /dev/fd/{ends['xml']};"
                f"secret-set-value {uuid} --file /dev/fd/{ends['value']} --plain"
            )
            try:
                done = subprocess.run(
                    ("virsh", "-q", "-c", self.uri, commands),
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    pass_fds=tuple(ends.values()),
                    env=_ENVIRONMENT,
                    timeout=self.timeout_s,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired) as failure:
                return f"virsh: {type(failure).__name__}"
        return "" if done.returncode == 0 else done.stderr.decode().strip() or "virsh failed"


def job_percent(said: str) -> int | None:
    """How much of the memory was copied, from ``virsh domjobinfo``; None when it does not say."""
    found = dict(
        re.findall(r"^Memory (processed|remaining|total): +([0-9.]+ \w+)$", said, re.MULTILINE)
    )
    total, left = _bytes(found.get("total", "")), _bytes(found.get("remaining", ""))
    if not total or left is None:
        return None
    return max(0, min(100, round(100 * (1 - left / total))))


def _bytes(shown: str) -> float | None:
    number, _, unit = shown.partition(" ")
    power = _UNITS.get(unit)
    return float(number) * 1024**power if power is not None else None


@contextlib.contextmanager
def _pipes(contents: Mapping[str, bytes | bytearray]) -> Iterator[dict[str, int]]:
    """Read ends of pipes that hold what is given: each is far below a pipe's 64 KiB."""
    ends: dict[str, int] = {}
    try:
        for name, content in contents.items():
            ends[name], writing = os.pipe()
            try:
                os.write(writing, content)
            finally:
                os.close(writing)
        yield ends
    finally:
        for end in ends.values():
            os.close(end)
