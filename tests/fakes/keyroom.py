"""A key room without a KMS: real keys, real wrapping, real grants, and every fault a method.

It does in this process what ``adapters.keyroom`` does in a child and what a KMS does elsewhere, so
it says that it is a fake and warns when it is made. ``make_key_room`` is for tests that know it.
"""

import asyncio
import os
import warnings
from collections.abc import Callable, Sequence

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from trustauthority.adapters.kms.escrow import binding_of, seal_to_escrow
from trustauthority.codec.tpm import decode_public
from trustauthority.errors import InvalidRequest, KmsUnavailable
from trustauthority.keyrelease.escrow import drill_answer
from trustauthority.keyrelease.keyimport import open_import
from trustauthority.keyrelease.wrap import GRANT_ENTROPY, build_key_grant
from trustauthority.model.escrow import EscrowKey, StoredKey
from trustauthority.model.grant import ReleaseOrder
from trustauthority.model.keyjob import RewrapOrder
from trustauthority.model.kms import HealthState, KmsHealth
from trustauthority.model.vm import NewKey


class InsecureAdapterWarning(UserWarning):
    """Something stands in for an adapter and protects nothing."""


class Gate:
    """Holds a call until it is opened: how slow a KMS is, without sleeping."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._open = asyncio.Event()

    def open(self) -> None:
        """Let the call go on."""
        self._open.set()

    async def wait(self) -> None:
        """Say that the call is here, and wait."""
        self.reached.set()
        await self._open.wait()


class FakeKeyRoom:
    """``ports.KeyRoom`` in memory. It is a fake: KEKs and VM keys lie open in it."""

    is_fake = True

    def __init__(self, release_key: ec.EllipticCurvePrivateKey | None = None) -> None:
        warnings.warn(
            "FakeKeyRoom keeps keys in the clear in this process",
            InsecureAdapterWarning,
            stacklevel=2,
        )
        self.release_key = release_key or ec.derive_private_key(78, ec.SECP256R1())
        self.keks: dict[str, bytes] = {}
        self.vm_keys: dict[bytes, bytes] = {}
        """VM keys in the clear, by the AAD of their wrapping; the newest one made for it."""
        self.made: list[bytes] = []
        """Every VM key that was ever made."""
        self.orders: list[ReleaseOrder] = []
        self.answers: list[bytes] = []
        """Every grant that was made, whether or not it left the authority."""
        self.escrow_key: EscrowKey | None = None
        """The offline key that keys are sealed to besides."""
        self.origin = "authority.test/audit"
        self.closed = False
        self.import_key_private = X25519PrivateKey.generate()
        self.providers: Sequence[str] = ("default",)
        self.rewrapped = 0
        """How many keys were wrapped again."""
        self._gates: list[Gate] = []
        self._failure: KmsUnavailable | None = None
        self._change: Callable[[bytes], bytes] = _as_it_is
        self._before_release: Callable[[ReleaseOrder], ReleaseOrder] = _the_order

    # --- faults --------------------------------------------------------------------------------

    def fail(self, message: str = "the KMS does not answer") -> None:
        """From now on every order fails."""
        self._failure = KmsUnavailable(message)

    def recover(self) -> None:
        """Orders are answered again, and rightly."""
        self._failure, self._change, self._before_release = None, _as_it_is, _the_order

    def hold(self) -> Gate:
        """The next order waits at this gate, after it was received and before it is answered."""
        gate = Gate()
        self._gates.append(gate)
        return gate

    def change_answers(self, change: Callable[[bytes], bytes]) -> None:
        """Answer releases with other bytes: truncated, tampered, somebody else's."""
        self._change = change

    def mistake_orders(self, change: Callable[[ReleaseOrder], ReleaseOrder]) -> None:
        """Carry out another release than the one that was ordered, and sign it."""
        self._before_release = change

    # --- the port ------------------------------------------------------------------------------

    async def create_kek(self, provider: str) -> str:
        """Make a KEK."""
        await self._arrive()
        kek_id = f"fake-{provider}-{len(self.keks)}"
        self.keks[kek_id] = AESGCM.generate_key(256)
        return kek_id

    async def rotate_kek(self, provider: str, kek_id: str) -> str:
        """Make another KEK."""
        self._kek(kek_id)
        return await self.create_kek(provider)

    async def create_key(self, provider: str, kek_id: str, aad: bytes) -> NewKey:
        """Make a VM key and return it wrapped."""
        await self._arrive()
        nonce, vm_key = os.urandom(12), os.urandom(32)
        self.vm_keys[aad] = vm_key
        self.made.append(vm_key)
        wrapped = nonce + AESGCM(self._kek(kek_id)).encrypt(nonce, vm_key, aad)
        return NewKey(wrapped=wrapped, escrowed=self._escrowed(vm_key, aad))

    async def escrow(self, key: StoredKey) -> bytes:
        """Seal a stored VM key to the escrow key of today."""
        await self._arrive()
        return self._escrowed(self._unwrapped(key.kek_id, key.wrapped, key.aad), key.aad)

    async def answer_drill(self, key: StoredKey, challenge: bytes) -> bytes:
        """Answer as the real child does."""
        await self._arrive()
        vm_key = self._unwrapped(key.kek_id, key.wrapped, key.aad)
        return drill_answer(vm_key, binding_of(key.aad, self.origin), challenge)

    def _escrowed(self, vm_key: bytes, aad: bytes) -> bytes:
        if self.escrow_key is None:
            return b""
        return seal_to_escrow(vm_key, binding_of(aad, self.origin), self.escrow_key)

    def _unwrapped(self, kek_id: str, wrapped: bytes, aad: bytes) -> bytes:
        try:
            return AESGCM(self._kek(kek_id)).decrypt(wrapped[:12], wrapped[12:], aad)
        except InvalidTag:
            raise KmsUnavailable("the wrapped key does not unwrap under this KEK") from None

    async def import_key(
        self, provider: str, kek_id: str, aad: bytes, *, sealed: bytes, vm: str
    ) -> NewKey:
        """Open a sealed passphrase and return it wrapped."""
        await self._arrive()
        try:
            vm_key = bytes(open_import(sealed, self.import_key_private, vm))
        except InvalidRequest as refused:
            raise KmsUnavailable(refused.message) from None
        self.vm_keys[aad] = vm_key
        nonce = os.urandom(12)
        wrapped = nonce + AESGCM(self._kek(kek_id)).encrypt(nonce, vm_key, aad)
        return NewKey(wrapped=wrapped, escrowed=self._escrowed(vm_key, aad))

    async def rewrap(self, order: RewrapOrder) -> bytes:
        """Unwrap a VM key and wrap it by another KEK."""
        await self._arrive()
        vm_key = self._unwrapped(order.kek_id, order.wrapped, order.aad)
        nonce = os.urandom(12)
        self.vm_keys[order.target_aad] = vm_key
        self.rewrapped += 1
        sealed = AESGCM(self._kek(order.target_kek_id)).encrypt(nonce, vm_key, order.target_aad)
        return nonce + sealed

    async def release(self, order: ReleaseOrder) -> bytes:
        """Unwrap a VM key and return a signed KeyGrant v1."""
        self.orders.append(order)
        await self._arrive()
        order = self._before_release(order)
        vm_key = self._unwrapped(order.kek_id, order.wrapped, order.aad)
        grant = build_key_grant(
            binding=order.binding,
            vm_key=vm_key,
            storage=decode_public(order.storage_public),
            pcrs=order.sealed_pcrs,
            counters=order.counters,
            entropy=os.urandom(GRANT_ENTROPY),
            release_key=self.release_key,
        )
        answer = self._change(grant.wire)
        self.answers.append(answer)
        return answer

    async def health(self, provider: str) -> KmsHealth:
        """Whether orders would be answered."""
        if self._failure is not None:
            return KmsHealth(state=HealthState.ERROR, detail=self._failure.message)
        return KmsHealth(state=HealthState.OK, detail=f"FakeKeyRoom, insecure, for {provider}")

    async def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True

    async def _arrive(self) -> None:
        if self._gates:
            await self._gates.pop(0).wait()
        if self._failure is not None:
            raise self._failure

    def _kek(self, kek_id: str) -> bytes:
        if kek_id not in self.keks:
            raise KmsUnavailable(f"the KMS has no key {kek_id}")
        return self.keks[kek_id]


def make_key_room(release_key: ec.EllipticCurvePrivateKey | None = None) -> FakeKeyRoom:
    """Make a fake knowingly; it must warn all the same."""
    with pytest.warns(InsecureAdapterWarning, match="in the clear"):
        return FakeKeyRoom(release_key)


def _as_it_is(wire: bytes) -> bytes:
    return wire


def _the_order(order: ReleaseOrder) -> ReleaseOrder:
    return order
