"""Have a VM paused, resumed or ended by the program that the configuration names.

Stage: I/O of the agent. Trusts the program (root's file) and its exit status: 0 says that the VM is
in that state now. Guarantees that no call takes longer than its limit. Does not retry.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hostagent.lease_model import VmAction


class Enforcement(Protocol):
    """What acts on VMs."""

    @property
    def name(self) -> str:
        """As status shows it."""

    async def act(self, action: VmAction, vm_id: str, why: str) -> bool:
        """Do it, and say whether it is done. ``why`` is for people; empty when nothing is wrong."""

    def arm(self, vm_id: str, at_ms: int) -> None:
        """Have the watchdog outside the agent end the VM at this CLOCK_BOOTTIME. Raises OSError."""


@dataclass(frozen=True, slots=True)
class NoEnforcement:
    """For hosts whose VMs somebody else stops: says done, does nothing; status shows it."""

    name: str = "none"

    async def act(self, action: VmAction, vm_id: str, why: str) -> bool:
        """Nothing to do."""
        del action, vm_id, why
        return True

    def arm(self, vm_id: str, at_ms: int) -> None:
        """There is no watchdog."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramEnforcement:
    """``PROGRAM pause|resume|destroy VM``."""

    program: Path
    timeout_s: float
    name: str = "program"

    def arm(self, vm_id: str, at_ms: int) -> None:
        """There is no watchdog but the program's own."""

    async def act(self, action: VmAction, vm_id: str, why: str) -> bool:
        """Run the program; too slow, absent or exit status other than 0 is not done."""
        del why
        try:
            process = await asyncio.create_subprocess_exec(
                str(self.program),
                action.value,
                vm_id,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
            )
        except OSError:
            return False
        try:
            return await asyncio.wait_for(process.wait(), self.timeout_s) == 0
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            return False
