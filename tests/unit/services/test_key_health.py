"""The health of key providers, as ta status asks for it."""

import asyncio

import pytest

from trustauthority.model.kms import HealthState, KmsHealth
from trustauthority.services.keyproviders import KeyProviderService


class Room:
    """A key room with some providers, none of which answers before all are asked."""

    def __init__(self, providers):
        self.providers = providers
        self.asked = []
        self.all_asked = asyncio.Event()

    async def health(self, provider):
        self.asked.append(provider)
        if len(self.asked) >= len(self.providers):
            self.all_asked.set()
        await self.all_asked.wait()
        return KmsHealth(state=HealthState.OK, detail=provider)


@pytest.mark.parametrize(
    ("providers", "told"),
    [(("hsm", "bao"), ["bao", "hsm"]), (("default",), ["default"]), ((), ["default"])],
)
async def test_each_provider_is_asked_at_once(providers, told):
    """One that is slow delays no other's line; without any, the default one is missed."""
    room = Room(providers)
    async with asyncio.timeout(10):
        health = await KeyProviderService(store=None, room=room).health()
    assert list(health) == told
    assert [each.detail for each in health.values()] == told
