"""Serve libvirt's hook in a running agent.

Stage: assembly. Guarantees that the hook's desk tends VMs, that VMs with autostart are started after a
boot, and that ordered moves are carried out, for as long as the socket is served.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import structlog

from hostagent.autostart import Autostart
from hostagent.control import HOOK_SOCKET, MAX_HOOK_LINE, serve
from hostagent.daemon import Agent
from hostagent.events import Phase
from hostagent.front import handle
from hostagent.hook_desk import HookDesk
from hostagent.inspector import Inspector
from hostagent.lease_model import Phase as LeasePhase
from hostagent.libvirt_vms import LibvirtVms
from hostagent.migration import stop_copy
from hostagent.order_taker import OrderTaker, Peers, mover

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
        spent=agent.host.spent.so_far,
    )
    server = await serve(settings.paths.run_dir, desk.handle, name=HOOK_SOCKET, limit=MAX_HOOK_LINE)
    _log.info("hooks-served", action="serve", libvirt=vms.virsh.uri)
    autostart = Autostart(
        virsh=vms.virsh,
        run_dir=settings.paths.run_dir,
        attested=lambda: agent.machine.phase is Phase.PASSED,
    )
    work: list[Callable[[], Awaitable[None]]] = [desk.tend, autostart.run]
    if settings.libvirt.moves_by_order:
        work.append(_taker(agent, vms).run)
    tending = [asyncio.create_task(_tended(each)) for each in work]
    try:
        async with server:
            yield
    finally:
        for task in tending:
            task.cancel()
        await asyncio.gather(*tending, return_exceptions=True)


def _taker(agent: Agent, vms: LibvirtVms) -> OrderTaker:
    libvirt = agent.host.settings.libvirt

    def domain_of(vm_id: str) -> str | None:
        known = vms.known.get(vm_id)
        runs = agent.keeper.view(vm_id).phase is LeasePhase.RUNNING
        return known.uuid if known is not None and known.started and runs else None

    taker = OrderTaker(
        orders=agent,
        host_id=lambda: agent.host.enrolled().host_id,
        domain_of=domain_of,
        peers=Peers(
            uri=libvirt.peer_uri,
            migrate_uri=libvirt.peer_migrate_uri,
            tls=libvirt.peer_tls,
            unsafe=libvirt.peer_unsafe,
        ),
        move=mover(vms.virsh, partial(handle, agent)),
        stop_copy=partial(stop_copy, vms.virsh),
        at_once=libvirt.moves_at_once,
    )
    agent.on_order = taker.look
    return taker


async def _tended(work: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await work()
        except Exception:  # noqa: BLE001 - a bug for one VM must not end the care for all
            _log.exception("tending-failed")
            await asyncio.sleep(_AGAIN_S)
        else:
            return
