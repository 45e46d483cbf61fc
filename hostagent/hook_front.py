"""Serve libvirt's hook in a running agent.

Stage: assembly. Guarantees that the hook's desk tends VMs for as long as its socket is served.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from hostagent.control import HOOK_SOCKET, MAX_HOOK_LINE, serve
from hostagent.daemon import Agent
from hostagent.hook_desk import HookDesk
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
    )
    server = await serve(settings.paths.run_dir, desk.handle, name=HOOK_SOCKET, limit=MAX_HOOK_LINE)
    tending = asyncio.create_task(_tended(desk))
    try:
        async with server:
            yield
    finally:
        tending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await tending


async def _tended(desk: HookDesk) -> None:
    while True:
        try:
            await desk.tend()
        except Exception:  # noqa: BLE001 - a bug for one VM must not end the care for all
            _log.exception("tending-failed")
            await asyncio.sleep(_AGAIN_S)
