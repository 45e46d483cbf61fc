"""Serve libvirt's hook in a running agent.

Stage: assembly. Guarantees that the hook's desk tends VMs, and that VMs with autostart are started after a
boot, for as long as the socket is served.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog

from hostagent.autostart import Autostart
from hostagent.control import HOOK_SOCKET, MAX_HOOK_LINE, serve
from hostagent.daemon import Agent
from hostagent.events import Phase
from hostagent.hook_desk import HookDesk
from hostagent.inspector import Inspector
from hostagent.libvirt_vms import LibvirtVms

_log = structlog.get_logger("hostagent.hook")
_AGAIN_S = 1.0


@asynccontextmanager
async def hooks_served(agent: Agent, vms: LibvirtVms) -> AsyncIterator[None]:
    """The hook socket, and what the desk does by itself. Raises OSError."""
    settings = agent.host.settings
    desk = HookDesk(
        desk=agent.desk,
        vms=vms,
        may_ask=lambda: agent.machine.may_ask,
        patience_s=settings.libvirt.patience_ms / 1000,
        inspector=Inspector(
            vms=vms,
            keeper=agent.keeper,
            destroys=settings.libvirt.on_exposure == "destroy",
        ),
    )
    server = await serve(settings.paths.run_dir, desk.handle, name=HOOK_SOCKET, limit=MAX_HOOK_LINE)
    _log.info("hooks-served", action="serve", libvirt=vms.virsh.uri)
    autostart = Autostart(
        virsh=vms.virsh,
        run_dir=settings.paths.run_dir,
        attested=lambda: agent.machine.phase is Phase.PASSED,
    )
    tending = [asyncio.create_task(_tended(work)) for work in (desk.tend, autostart.run)]
    try:
        async with server:
            yield
    finally:
        for task in tending:
            task.cancel()
        await asyncio.gather(*tending, return_exceptions=True)


async def _tended(work: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await work()
        except Exception:  # noqa: BLE001 - a bug for one VM must not end the care for all
            _log.exception("tending-failed")
            await asyncio.sleep(_AGAIN_S)
        else:
            return
