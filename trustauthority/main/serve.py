"""``trustauthority serve``: run roles, tell systemd, drain on SIGTERM."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator

from trustauthority.adapters.clock import SystemClock
from trustauthority.errors import ConfigurationInvalid, TrustAuthorityError
from trustauthority.main.compose import Process, Surroundings, running
from trustauthority.main.notify import notify
from trustauthority.services.retention import RetentionService
from trustauthority.settings import Settings
from trustauthority.telemetry.journal import StructlogJournal, configure_logging

ROLES = frozenset({"attest", "key", "placement", "admin"})
HOUSEKEEPING_S = 10.0
PURGE_EVERY_S = 3_600.0
"""How often evidence is looked for that need not be kept any more."""


def parse_roles(text: str) -> frozenset[str]:
    """Roles from the command line.

    Raises:
        ConfigurationInvalid: an unknown one, or none.
    """
    roles = frozenset(each.strip() for each in text.split(",") if each.strip())
    if not roles or not roles <= ROLES:
        raise ConfigurationInvalid(
            f"--roles takes some of {', '.join(sorted(ROLES))}", field="roles"
        )
    return roles


async def serve_roles(settings: Settings, roles: frozenset[str]) -> None:
    """Serve until SIGTERM or SIGINT."""
    configure_logging()
    journal = StructlogJournal(node=settings.node, roles=",".join(sorted(roles)))
    stop = _stop_on_signals()  # before anybody is told that we are ready
    async with running(
        settings, roles, Surroundings(clock=SystemClock(), journal=journal)
    ) as process:
        listeners = (f"{name} {address}" for name, address in process.addresses.items())
        journal.record("serving", listeners=", ".join(listeners))
        notify("READY=1")
        try:
            async with purging(process, stop):
                await _until_told(process, stop)
        finally:
            notify("STOPPING=1")
    journal.record("stopped")


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _until_told(process: Process, stop: asyncio.Event) -> None:
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), timeout=HOUSEKEEPING_S)
        notify("WATCHDOG=1")
        await keep_house(process)


async def keep_house(process: Process) -> None:
    """Forget what has expired, destroy keys whose time has come.

    A store that has no room or stands still does not end the process.
    """
    try:
        if "attest" in process.roles:
            async with process.store.transaction() as tx:
                await tx.enrolments.purge()
        if process.key_role is not None:
            await process.key_role.destruction.run()
    except TrustAuthorityError as error:
        process.journal.record("housekeeping_failed", reason=error.reason, detail=error.message)


@contextlib.asynccontextmanager
async def purging(
    process: Process, stop: asyncio.Event, *, every_s: float = PURGE_EVERY_S
) -> AsyncIterator[None]:
    """Remove old evidence beside what the block does, in a process with the attest role.

    A task of its own: a backlog must not keep the watchdog from hearing of us.
    """
    if "attest" not in process.roles:
        yield
        return
    settings = process.settings
    service = RetentionService(
        process.store, process.journal, settings.evidence.retention, settings.node
    )
    task = asyncio.create_task(service.run(stop, every_s=every_s))
    try:
        yield
    finally:
        stop.set()
        await task  # it looks at ``stop`` between batches
