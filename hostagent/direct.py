"""Do what the control socket does, in this process, when no agent runs.

Stage: assembly for one command. Guarantees the lock of the agent, so that a lease has one keeper,
and that leases begun here are on disk for the agent that takes them up. Nobody renews meanwhile.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from hostagent.control import Json, NoDaemon, ask
from hostagent.daemon import Agent
from hostagent.enforcement import Enforcement, NoEnforcement, ProgramEnforcement
from hostagent.host import only_agent, open_host
from hostagent.lease_store import LeaseStore, boot_id
from hostagent.libvirt_vms import LibvirtVms
from hostagent.notify import Notifier
from hostagent.ports import boottime_ms
from hostagent.settings import Settings
from hostagent.status import failed_checks
from hostagent.virsh import Virsh


@asynccontextmanager
async def agent_of(settings: Settings) -> AsyncIterator[Agent]:
    """An agent that does not run yet, with the lock and the TPM. Raises as ``open_host``."""
    with only_agent(settings.paths.run_dir), open_host(settings) as host:
        yield Agent(
            host=host,
            store=LeaseStore(settings.paths.run_dir, boot_id()),
            enforcement=enforcement_of(settings),
            clock_ms=boottime_ms,
            notifier=Notifier(),
        )


async def ask_or_do(settings: Settings, request: Json) -> tuple[Json, bool]:
    """The answer of the running agent, or of this process; and whether an agent runs."""
    timeout_s = 2 * settings.intervals.attest_timeout_ms / 1000
    try:
        return await ask(settings.paths.run_dir, request, timeout_s), True
    except NoDaemon:
        async with agent_of(settings) as agent:
            agent.keeper.take_up()
            agent.keeper.allow(True)
            try:
                return await agent.desk.handle(request), False
            finally:
                await agent.close()


async def attest_once(settings: Settings) -> Json:
    """One attestation by the running agent, or by this process. Raises as ``open_host``."""
    timeout_s = 2 * settings.intervals.attest_timeout_ms / 1000
    try:
        return await ask(settings.paths.run_dir, {"do": "attest"}, timeout_s)
    except NoDaemon:
        async with agent_of(settings) as agent:
            try:
                judged = await agent.attest_once(fresh=True)
            finally:
                await agent.close()
        verdict = agent.verdict
        failed = failed_checks(verdict) if verdict is not None else []
        return {"ok": True, "passed": judged.passed, "failed": failed}


def enforcement_of(settings: Settings) -> Enforcement:
    """What acts on VMs, as configured."""
    if settings.libvirt.uri is not None:
        virsh = Virsh(uri=settings.libvirt.uri, timeout_s=settings.libvirt.timeout_ms / 1000)
        return LibvirtVms(virsh, settings.paths.run_dir)
    program: Path | None = settings.enforcement.program
    if program is None:
        return NoEnforcement()
    return ProgramEnforcement(
        program=program, timeout_s=settings.enforcement.program_timeout_ms / 1000
    )
