"""The key role's side of the key room: hands orders to children, and leaves a dead KMS alone.

Stage: adapter behind ``ports.KeyRoom``. Guarantees: this process never holds a plaintext key; each
order is answered within ``timeout_s``, waiting included; a KMS that does not answer costs orders of
its own provider only, and after ``trip_after`` of them a refusal at once (``breaker``). Does not
retry: the caller's request id makes that safe there. Source: design 8; docs/reference/kms.md.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from trustauthority.adapters.keyroom.breaker import Breaker
from trustauthority.adapters.keyroom.frames import (
    encode_frame,
    health_from_json,
    new_key_from_json,
    order_to_json,
    settings_to_json,
    stored_key_to_json,
)
from trustauthority.adapters.keyroom.pool import Pool
from trustauthority.adapters.keyroom.process import COMMAND
from trustauthority.adapters.keyroom.settings import KeyRoomSettings
from trustauthority.errors import KmsUnavailable
from trustauthority.model.escrow import StoredKey
from trustauthority.model.grant import ReleaseOrder
from trustauthority.model.keyjob import RewrapOrder
from trustauthority.model.kms import HealthState, KmsHealth
from trustauthority.model.vm import NewKey

_KEY_ORDERS = frozenset({"create_key", "import_key", "escrow", "answer_drill", "release", "rewrap"})
"""Orders that show a key to the child."""
_NO_ANSWER = "the key room's child answered with what is no answer"


class ChildKeyRoom:
    """``ports.KeyRoom`` and ``ports.EscrowRoom`` with child processes. Belongs to one event loop."""

    def __init__(self, settings: KeyRoomSettings, *, command: Sequence[str] = COMMAND) -> None:
        self._settings = settings
        self._pools = {
            name: Pool(settings, command, settings_to_json(settings, warm=name))
            for name in settings.providers
        }
        self._breakers = {
            name: Breaker(trip_after=settings.trip_after, rest_s=settings.rest_s)
            for name in settings.providers
        }
        self._closed = False

    @property
    def providers(self) -> Sequence[str]:
        """Names of the configured providers."""
        return tuple(self._pools)

    async def start(self) -> None:
        """Warm one child per provider. Never fails: orders will tell."""
        await asyncio.gather(*(pool.start() for pool in self._pools.values()))

    async def create_kek(self, provider: str) -> str:
        """Make and activate a KEK in the KMS; returns its id. Raises KmsUnavailable."""
        return await self._order("create_kek", provider)

    async def rotate_kek(self, provider: str, kek_id: str) -> str:
        """Let new key material follow a KEK; returns the id to wrap under. Raises KmsUnavailable."""
        return await self._order("rotate_kek", provider, {"kek_id": kek_id})

    async def create_key(self, provider: str, kek_id: str, aad: bytes) -> NewKey:
        """Make a VM key and return it wrapped. Raises KmsUnavailable."""
        details = {"kek_id": kek_id, "aad": aad.hex()}
        return _new_key(await self._order("create_key", provider, details))

    async def escrow(self, key: StoredKey) -> bytes:
        """Seal a stored VM key to the escrow key of today. Raises KmsUnavailable."""
        return _bytes(await self._order("escrow", key.provider, stored_key_to_json(key)))

    async def answer_drill(self, key: StoredKey, challenge: bytes) -> bytes:
        """What a holder of a stored VM key answers to a drill's challenge. Raises KmsUnavailable."""
        details = stored_key_to_json(key) | {"challenge": challenge.hex()}
        return _bytes(await self._order("answer_drill", key.provider, details))

    async def import_key(
        self, provider: str, kek_id: str, aad: bytes, *, sealed: bytes, vm: str
    ) -> NewKey:
        """Take in a passphrase that was sealed to the import key. Raises KmsUnavailable."""
        details = {"kek_id": kek_id, "aad": aad.hex(), "sealed": sealed.hex(), "vm": vm}
        return _new_key(await self._order("import_key", provider, details))

    async def rewrap(self, order: RewrapOrder) -> bytes:
        """Unwrap a VM key and wrap it by another KEK, in one child. Raises KmsUnavailable."""
        details = {
            "kek_id": order.kek_id,
            "wrapped": order.wrapped.hex(),
            "aad": order.aad.hex(),
            "target": order.target,
            "target_kek_id": order.target_kek_id,
            "target_aad": order.target_aad.hex(),
        }
        return _bytes(await self._order("rewrap", order.provider, details, also=order.target))

    async def release(self, order: ReleaseOrder) -> bytes:
        """Unwrap a VM key and return a signed KeyGrant v1. Raises KmsUnavailable."""
        return _bytes(
            await self._order("release", order.provider, {"release": order_to_json(order)})
        )

    async def health(self, provider: str) -> KmsHealth:
        """How the KMS is doing, and whether grants can be signed. Asks it even while it is left alone."""
        try:
            answer = await self._order("health", provider)
            return health_from_json(json.loads(answer))
        except KmsUnavailable as failure:
            detail = failure.message
        except (ValueError, KeyError, TypeError):
            detail = _NO_ANSWER
        settings = self._settings.providers.get(provider)
        kind = None if settings is None else settings.kind
        return KmsHealth(state=HealthState.ERROR, detail=detail, kind=kind)

    async def close(self) -> None:
        """End the children; orders in flight fail with KmsUnavailable."""
        self._closed = True
        await asyncio.gather(*(pool.close() for pool in self._pools.values()))

    # --- orders --------------------------------------------------------------------------------

    async def _order(
        self,
        order: str,
        provider: str,
        details: Mapping[str, Any] | None = None,
        *,
        also: str = "",
    ) -> str:
        """Let a child of the provider carry out an order.

        Args:
            order: A name in ``orders.ORDERS``.
            provider: Whose KMS it needs; the child gets the name with the details.
            details: What else the child gets.
            also: A second provider that the order needs: a slot of it is taken too.
        """
        if self._closed:
            raise KmsUnavailable("the key room is closed")
        needed = sorted({provider, also or provider})
        for name in needed:
            if name not in self._pools:
                raise KmsUnavailable(
                    f"no KMS is configured for key provider {name!r}", provider=name
                )
        try:
            frame = encode_frame({"order": order, "provider": provider, **(details or {})})
        except ValueError as failure:
            raise KmsUnavailable(str(failure)) from None
        if len(needed) == 1:
            reply = await self._guarded(order, provider, frame)
        else:  # which of two KMSes was at fault is not known, so no breaker hears of it
            reply = await self._ask(order, provider, frame, needed)
        match reply:
            case {"ok": str() as answer}:
                return answer
            case {"error": str() as because}:
                raise KmsUnavailable(because, provider=provider)
            case _:
                raise KmsUnavailable(_NO_ANSWER)

    async def _guarded(self, order: str, provider: str, frame: bytes) -> Mapping[str, Any]:
        """Ask unless the KMS is left alone for now; tell the breaker how it went."""
        breaker, now = self._breakers[provider], asyncio.get_running_loop().time
        wait_s = breaker.wait_s(now())
        if wait_s is not None and order != "health":
            raise KmsUnavailable(
                f"the KMS of provider {provider!r} did not answer {self._settings.trip_after} times"
                f" in a row; it is tried again in {wait_s:.1f} s",
                provider=provider,
            )
        try:
            reply = await self._ask(order, provider, frame, [provider])
        except BaseException:
            breaker.gave_up()
            raise
        if reply.get("outage") is True:
            breaker.failed(now())
        else:
            breaker.answered()
        return reply

    async def _ask(
        self, order: str, provider: str, frame: bytes, needed: Sequence[str]
    ) -> Mapping[str, Any]:
        asked, limit_s = False, self._settings.timeout_s
        try:
            async with asyncio.timeout(limit_s), AsyncExitStack() as slots:
                for name in needed:  # in the order of their names, so that two never wait in a ring
                    await slots.enter_async_context(self._pools[name].slots)
                asked = True
                return await self._pools[provider].ask(frame, shows_a_key=order in _KEY_ORDERS)
        except TimeoutError:
            if asked:
                return {"error": f"the KMS did not answer within {limit_s:g} s", "outage": True}
            raise KmsUnavailable(
                f"too many orders wait for provider {provider!r}: no turn within {limit_s:g} s"
            ) from None


def _new_key(answer: str) -> NewKey:
    try:
        return new_key_from_json(json.loads(answer))
    except (ValueError, KeyError, TypeError):
        raise KmsUnavailable(_NO_ANSWER) from None


def _bytes(answer: str) -> bytes:
    try:
        return bytes.fromhex(answer)
    except ValueError:
        raise KmsUnavailable(_NO_ANSWER) from None
