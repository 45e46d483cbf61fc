"""Move a running VM to another host by libvirt: offer, copy, hand over, see it run.

Stage: between whoever orders a move (a person's command, a job of the agent) and libvirt. Trusts
neither the exit status of ``virsh migrate`` nor that the caller lives to its end: the switch is the
hook's (ADR 0011), and a move that nobody watches comes out the same. Guarantees that the memory
arrives paused, that a failed copy ends the offer only while QEMU still lives here, and that progress
goes to an injected observer. Decides nothing about who may run what.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum

from hostagent.control import Json
from hostagent.domain import MOVE, DefinitionInvalid, read_domain
from hostagent.libvirt_vms import is_active
from hostagent.virsh import Virsh, job_percent

SWITCH_S = 20.0
"""How long to wait for the VM to run at its destination once its memory is there."""
COPY_S = 4 * 3600.0
"""The longest copy; virsh is ended then, and the VM stays."""
CANCELLED = "CANCELLED"
"""The reason of a result: somebody stopped the move, and the VM goes on here."""
_LEAVES = "Outgoing migration"
_BEAT_S = 0.2
_REMOTE_S = 10.0

Ask = Callable[[Json], Awaitable[Json]]
"""Asks the agent of this host, as its control socket does."""


class MoveStep(StrEnum):
    """How far a move is."""

    OFFERED = "offered"
    COPYING = "copying"
    HANDING_OVER = "handing over"
    DONE = "done"
    STAYS = "stays"


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveOrder:
    """What is wanted."""

    domain: str
    """Name or uuid of the domain on this host."""
    destination: str
    """The host's name or id at the authority."""
    to_uri: str
    """The destination's libvirt, as for virsh migrate."""
    migrate_uri: str = ""
    """Where the memory goes, as for virsh migrate --migrateuri."""
    tls: bool = True
    """Encrypt the memory on its way. It holds the key of the disk."""
    unsafe: bool = False
    """As for virsh migrate --unsafe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveProgress:
    """What an observer is told; ``percent`` is that of the memory, None while it is not known."""

    step: MoveStep
    percent: int | None = None
    detail: str = ""


Observer = Callable[[MoveProgress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveResult:
    """How it ended. ``exit_code`` as for hostagent's commands: 0 moved, 1 it stays, 5 not known."""

    ok: bool
    vm: str = ""
    reason: str = ""
    detail: str = ""
    exit_code: int = 0
    seconds: float = 0.0
    copy_seconds: float = 0.0


async def migrate(
    order: MoveOrder,
    *,
    virsh: Virsh,
    ask: Ask,
    observe: Observer = lambda _: None,
    stop: asyncio.Event | None = None,
) -> MoveResult:
    """Move a VM from this host; never raises for what the hosts do. Cancelling it ends the copy.

    Once ``stop`` is set, libvirt is asked to end the copy. It decides whether that comes in time: the
    result is CANCELLED and the VM goes on here under its grant, or the move is finished.
    """
    code, definition, problem = await virsh.run("dumpxml", order.domain)
    if code != 0:
        return MoveResult(ok=False, reason="NO_SUCH_DOMAIN", detail=problem, exit_code=3)
    try:
        vm = read_domain(definition.encode()).vm_id
    except DefinitionInvalid as failure:
        return _no("DEFINITION_INVALID", f"{order.domain}: {failure}", 2)
    if not vm:
        detail = f"{order.domain} is not a protected VM: move it with virsh migrate"
        return _no("NOT_PROTECTED", detail, 2)
    offered = await ask({"do": "move-offer", "vm": vm, "destination": order.destination})
    if not offered["ok"]:
        return MoveResult(
            ok=False,
            vm=vm,
            reason=offered["reason"],
            detail=offered["detail"],
            exit_code=int(offered.get("exit_code", 1)),
        )
    observe(MoveProgress(step=MoveStep.OFFERED, detail=order.destination))
    move = _Move(order, virsh, ask, observe, vm, stop or asyncio.Event())
    try:
        return await move.carry_out(str(offered["move_id"]))
    except BaseException:  # cancelled, too: nobody would end the offer
        with contextlib.suppress(Exception):
            await asyncio.shield(move.stay("INTERRUPTED", "the move was interrupted"))
        raise


async def stop_copy(virsh: Virsh, domain: str, job: str | None = None) -> None:
    """Ask libvirt to end a copy that leaves this host, if one does; it refuses when it is too late.

    ``job`` is what ``virsh domjobinfo`` just said, if that is known. Other jobs are left alone.
    """
    said = (await virsh.run("domjobinfo", domain))[1] if job is None else job
    if _LEAVES in said:
        await virsh.run("domjobabort", domain)


def _no(reason: str, detail: str, exit_code: int) -> MoveResult:
    return MoveResult(ok=False, reason=reason, detail=detail, exit_code=exit_code)


def _sentence(problem: str) -> str:
    """Our hook's own words, where libvirt quotes them behind the command line of the hook."""
    _, ours, words = problem.rpartition("trustauthority: ")
    return (ours + words).strip()


@dataclass(slots=True)
class _Move:
    order: MoveOrder
    virsh: Virsh
    ask: Ask
    observe: Observer
    vm: str
    stop: asyncio.Event
    began: float = field(default_factory=time.monotonic)
    copied: float = 0.0

    async def carry_out(self, move_id: str) -> MoveResult:
        if self.stop.is_set():
            return await self.stay(CANCELLED, "nothing was copied yet")
        code, _, problem = await self._metadata("--set", f"<move id='{move_id}'/>")
        if code == 0:
            code, problem = await self._copy()
        self.copied = time.monotonic() - self.began
        state = await self.virsh.state(self.order.domain)
        if code != 0 and (state is None or is_active(state)):  # it may have left all the same
            await self._metadata("--remove")
            if self.stop.is_set() and state is not None:
                return await self.stay(CANCELLED, "the copy was stopped")
            return await self.stay("NOT_COPIED", _sentence(problem) or "virsh migrate failed")
        self.observe(MoveProgress(step=MoveStep.HANDING_OVER, percent=100))
        return await self._arrived()

    async def _copy(self) -> tuple[int, str]:
        order = self.order
        words = ["migrate", "--live", "--suspend", "--persistent", "--undefinesource"]
        words += [*("--tls",) * order.tls, *("--unsafe",) * order.unsafe]
        words += ["--migrateuri", order.migrate_uri] if order.migrate_uri else []
        copying = asyncio.create_task(
            self.virsh.run(*words, order.domain, order.to_uri, limit_s=COPY_S)
        )
        try:
            while not copying.done():
                await asyncio.wait({copying}, timeout=_BEAT_S)
                if not copying.done():
                    said = (await self.virsh.run("domjobinfo", order.domain))[1]
                    self.observe(MoveProgress(step=MoveStep.COPYING, percent=job_percent(said)))
                    if self.stop.is_set():
                        await stop_copy(self.virsh, order.domain, said)
            code, _, problem = await copying
        finally:
            copying.cancel()
        return code, problem

    async def _arrived(self) -> MoveResult:
        there = Virsh(uri=self.order.to_uri, timeout_s=_REMOTE_S)
        deadline = time.monotonic() + SWITCH_S
        while time.monotonic() < deadline:
            if (await there.state(self.order.domain) or "").startswith("running"):
                self.observe(MoveProgress(step=MoveStep.DONE, percent=100))
                return self._result(ok=True)
            await asyncio.sleep(_BEAT_S)
        detail = "it does not run at its destination yet; see hostagent status on both hosts"
        return self._result(reason="NOT_ARRIVED", detail=detail, exit_code=5)

    async def stay(self, reason: str, detail: str) -> MoveResult:
        """End the offer: the VM goes on here."""
        aborted = await self.ask({"do": "move-abort", "vm": self.vm})
        if not aborted["ok"]:
            detail = f"{detail}; and the offer stands: {aborted['reason']}: {aborted['detail']}"
        self.observe(MoveProgress(step=MoveStep.STAYS, detail=detail))
        return self._result(reason=reason, detail=detail, exit_code=1)

    async def _metadata(self, *change: str) -> tuple[int, str, str]:
        where = ("metadata", self.order.domain, MOVE, "--key", "ta", *change, "--live")
        return await self.virsh.run(*where)

    def _result(
        self, *, ok: bool = False, reason: str = "", detail: str = "", exit_code: int = 0
    ) -> MoveResult:
        return MoveResult(
            ok=ok,
            vm=self.vm,
            reason=reason,
            detail=detail,
            exit_code=exit_code,
            seconds=time.monotonic() - self.began,
            copy_seconds=self.copied,
        )
