"""Shared secrets on this host: fetched under attestation, lent for a moment or held under a lease.

Stage: between the authority and programs of this host. Trusts ``KeyOpener`` and the release key
behind it. Guarantees that a secret is in memory while it is handed out, or until the end of the
lease that counts from the first send of its request (CLOCK_BOOTTIME), and that a definitive refusal
ends it at once. Does not decide who may have it: ``secret_desk``, ``kubernetes.plugin``.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from hostagent.channel import new_request_id
from hostagent.failure import CallFailed, Failure, FailureKind
from hostagent.grant import wipe
from hostagent.lease_model import RENEW_FRACTION, Operation, Send
from hostagent.vm_calls import Answered
from hostagent.vm_keys import HandOut, KeyOpener

_log = structlog.get_logger("hostagent.secrets")
RETRY_S = 5.0
"""Between tries while the authority does not answer."""

Caller = Callable[[str, Send], Awaitable[Answered]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lent:
    """What is known of a secret that was handed out."""

    key_epoch: int
    until_ms: int
    """End of its lease by CLOCK_BOOTTIME."""
    lease_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSecrets:
    """Asks for shared secrets."""

    call: Caller
    opener: Callable[[], KeyOpener]
    clock_ms: Callable[[], int]

    async def lend(self, subject: str, hand_out: HandOut) -> Lent:
        """Fetch a secret, let ``hand_out`` have it, wipe it.

        Raises CallFailed when the authority refuses (kind REFUSED), or there is no answer now.
        """
        request_id, first_ms = new_request_id(), self.clock_ms()
        opener = self.opener()
        answered = await self.call(subject, Send(operation=Operation.SHARE, request_id=request_id))
        reply = answered.reply
        if not reply.accepted:
            raise CallFailed(_refused(reply.reason, answered.detail, answered.exit_code))
        until_ms = first_ms + reply.lease_ms
        if reply.request_id != request_id or self.clock_ms() >= until_ms:
            raise CallFailed(_refused("LEASE_OVER", "the lease ended before the secret came", 5))
        opened = await opener.open(
            answered.key_grant, vm_id=subject, request_id=request_id, shared=True, hand_out=hand_out
        )
        return Lent(key_epoch=opened.key_epoch, until_ms=until_ms, lease_ms=reply.lease_ms)


@dataclass(slots=True, kw_only=True)
class HeldSecret:
    """One secret that a service of this host needs all the time. Runs in one event loop."""

    subject: str
    secrets: SharedSecrets
    key: bytearray = field(default_factory=bytearray, repr=False)
    lent: Lent | None = None
    refusal: str = "it was not asked for yet"
    """Why it is not here."""

    async def run(self, stop: asyncio.Event) -> None:
        """Keep it until told to stop; then wipe it."""
        try:
            while not stop.is_set():
                wait_s = await self.step()
                try:
                    await asyncio.wait_for(stop.wait(), wait_s)
                except TimeoutError:
                    continue
        finally:
            self.drop("the agent stops")

    async def step(self) -> float:
        """Do what is due now; returns the seconds until something is due again."""
        now_ms = self.secrets.clock_ms()
        if self.lent is not None and now_ms < self._renew_at_ms(self.lent):
            return (self._renew_at_ms(self.lent) - now_ms) / 1000
        try:
            await self._fetch()
        except CallFailed as error:
            failure = error.failure
            if failure.kind is FailureKind.REFUSED:
                self.drop(failure.reason)
            self.refusal = failure.reason
            _log.warning("secret", action="not-renewed", subject=self.subject, reason=self.refusal)
        if self.lent is not None and self.secrets.clock_ms() >= self.lent.until_ms:
            self.drop("its lease ended")
        return self._until_due_s()

    def current(self) -> tuple[bytearray, int] | None:
        """The secret and its epoch while its lease runs; wipes it when the lease is over."""
        if self.lent is None:
            return None
        if self.secrets.clock_ms() >= self.lent.until_ms:
            self.drop("its lease ended")
            return None
        return self.key, self.lent.key_epoch

    def drop(self, because: str) -> None:
        """Wipe it now."""
        if self.lent is not None:
            _log.warning("secret", action="wiped", subject=self.subject, reason=because)
        wipe(self.key)
        self.key, self.lent, self.refusal = bytearray(), None, because

    async def _fetch(self) -> None:
        fresh = bytearray()
        lent = await self.secrets.lend(self.subject, fresh.extend)
        wipe(self.key)
        self.key, self.lent, self.refusal = fresh, lent, ""
        _log.info("secret", action="held", subject=self.subject, key_epoch=lent.key_epoch)

    def _until_due_s(self) -> float:
        if self.lent is None:
            return RETRY_S
        now_ms = self.secrets.clock_ms()
        if now_ms < self._renew_at_ms(self.lent):
            return (self._renew_at_ms(self.lent) - now_ms) / 1000
        return min(RETRY_S, max(self.lent.until_ms - now_ms, 1) / 1000)

    @staticmethod
    def _renew_at_ms(lent: Lent) -> int:
        return lent.until_ms - lent.lease_ms + lent.lease_ms // RENEW_FRACTION


def _refused(reason: str, detail: str, exit_code: int) -> Failure:
    return Failure(kind=FailureKind.REFUSED, reason=reason, detail=detail, exit_code=exit_code or 1)
