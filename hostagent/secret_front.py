"""Start what hands shared secrets to this host: the socket and the Kubernetes plug-in.

Stage: assembly of the agent. Guarantees that nothing listens that was not configured, and that held
secrets are wiped when the agent stops.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from hostagent.daemon import Agent
from hostagent.secret_desk import SecretDesk, secrets_served
from hostagent.shared import HeldSecret, SharedSecrets


@asynccontextmanager
async def shared_secrets_served(agent: Agent) -> AsyncIterator[None]:
    """Serve, for the time of the block, whatever the configuration names. Raises OSError."""
    settings = agent.host.settings
    secrets = SharedSecrets(call=agent.call_for_vm, opener=agent.opener, clock_ms=agent.clock_ms)
    async with AsyncExitStack() as stack:
        if settings.secrets:
            desk = SecretDesk(secrets=secrets, known=settings.secrets)
            await stack.enter_async_context(secrets_served(settings.paths.run_dir, desk))
        if settings.kubernetes.subject is not None:
            from hostagent.kubernetes.plugin import kms_served

            held = HeldSecret(subject=settings.kubernetes.subject, secrets=secrets)
            await stack.enter_async_context(_kept(held))
            await stack.enter_async_context(kms_served(settings.kubernetes.socket, held))
        yield


@asynccontextmanager
async def _kept(held: HeldSecret) -> AsyncIterator[None]:
    stop = asyncio.Event()
    keeping = asyncio.create_task(held.run(stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(keeping, return_exceptions=True)
