"""The running agent: machine and leases in one event loop, with the world around them.

Stage: I/O shell of the agent. Trusts ``machine`` and ``vm_keeper`` for every decision. Guarantees
that their timers are served even while calls hang, that a bug in one call becomes a paced failure
instead of the end of all leases, and that stopping leaves leases on disk for the next process.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog

from hostagent.channel import AuthorityLink
from hostagent.checkpoint import CheckpointMemory
from hostagent.collect import Attestor
from hostagent.enforcement import Enforcement
from hostagent.events import (
    Action,
    Admission,
    Attest,
    Attested,
    AttestWanted,
    Call,
    Contradicted,
    Enrol,
    Enrolled,
    Event,
    Failed,
    OpenWatch,
    Pushed,
    Reconnect,
    RenewNow,
    Started,
    Tick,
    Wish,
)
from hostagent.failure import CallFailed, Failure, FailureKind, local_failure
from hostagent.host import Host
from hostagent.lease_model import Operation, Send
from hostagent.lease_store import LeaseStore
from hostagent.machine import AgentMachine, Pace
from hostagent.notify import Notifier
from hostagent.rekey_desk import HeldPassphrases
from hostagent.spent import AUTHORITY
from hostagent.status import failed_checks, one_line
from hostagent.vm_calls import Answered, send
from hostagent.vm_desk import VmDesk
from hostagent.vm_keeper import VmKeeper
from hostagent.vm_keys import KeyOpener
from trustauthority.v1 import attestation_pb2 as pb
from trustauthority.v1 import placement_pb2 as placement
from trustauthority.v1.common_pb2 import STANDING_PASSED, Verdict

_log = structlog.get_logger("hostagent")
_WISHES = {
    pb.HOST_WISH_ATTEST_NOW: Wish.ATTEST_NOW,
    pb.HOST_WISH_REVOKED: Wish.REVOKED,
    pb.HOST_WISH_MOVE_ORDERED: Wish.MOVE_ORDERED,
}
_GRACE_S = 30.0
_QUOTE_LASTS_MS = 40_000
"""A key is released on a quote of at most 60 s, less the time that asking takes."""
_FOR_KEYS = frozenset({Operation.REQUEST, Operation.PREPARE, Operation.SHARE})
_LONGEST_WAIT_S = 5.0
"""The loop turns at least so often: cheap, and the watchdog sees it."""


@dataclass(slots=True, kw_only=True)
class Agent:
    """One host's agent. ``run`` serves until ``stop`` is set."""

    host: Host
    store: LeaseStore
    enforcement: Enforcement
    clock_ms: Callable[[], int]
    notifier: Notifier
    machine: AgentMachine = field(init=False)
    keeper: VmKeeper = field(init=False)
    desk: VmDesk = field(init=False)
    verdict: Verdict | None = None
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    judged: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at the end of each attestation, whatever came of it."""
    on_order: Callable[[], None] = lambda: None
    """Called when moves of this host's VMs may have been ordered."""
    passphrases: HeldPassphrases = field(default_factory=HeldPassphrases)
    """Of VMs that are being given a new key."""
    _attestor: Attestor = field(init=False)
    _attesting: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Evidence goes one by one: the authority takes only what is newer than the last."""
    _checkpoints: CheckpointMemory | None = None
    _link: AuthorityLink | None = None
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _bug: BaseException | None = None

    def __post_init__(self) -> None:
        intervals = self.host.settings.intervals
        pace = Pace(
            backoff_first_ms=intervals.backoff_first_ms,
            backoff_cap_ms=intervals.backoff_cap_ms,
            admission_poll_ms=intervals.admission_poll_ms,
        )
        self.machine = AgentMachine(pace=pace)
        self.keeper = VmKeeper(
            self.store,
            self.call_for_vm,
            self.enforcement,
            self.clock_ms,
            pace=pace,
            on_failure=self._noted,
        )
        self.desk = VmDesk(
            keeper=self.keeper,
            opener=self.opener,
            clock_ms=self.clock_ms,
            timeout_s=intervals.answer_timeout_ms / 1000,
        )
        self._attestor = Attestor(self.host.tpm, self.host.keys, self.host.logs, self.clock_ms)

    # --- the loop ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until stopped. Raises BrokenState or InsecureFile at start only."""
        self._connect()
        self.keeper.take_up()
        self.feed(self._started())
        self.notifier.tell("READY=1")
        try:
            while not self.stop.is_set():
                self.keeper.tick()
                self.feed(Tick())
                self.notifier.alive(one_line(self.machine, self.keeper), self.clock_ms())
                await self._wait()
            if self._bug is not None:
                raise self._bug
        finally:
            self.notifier.tell("STOPPING=1")
            await self.close()

    def feed(self, event: Event) -> None:
        """Let the machine decide, and begin what it wants."""
        before = self.machine.phase
        jitter = random.random()  # noqa: S311 - spreads load, protects nothing
        actions = self.machine.receive(event, now_ms=self.clock_ms(), jitter=jitter)
        if self.machine.phase is not before:
            _log.info("phase", action="phase", before=before.value, now=self.machine.phase.value)
        self.keeper.allow(self.machine.may_ask)
        for action in actions:
            self._begin(action)
        self._wake.set()

    def halt(self) -> None:
        """Ask the loop to end."""
        self.stop.set()
        self._wake.set()

    def _begin(self, action: Action) -> None:
        match action:
            case Enrol():
                self._spawn(Call.ENROL, self._enrol)
            case Attest(fresh=fresh):
                self._spawn(Call.ATTEST, partial(self.attest_once, fresh=fresh))
            case OpenWatch():
                self._spawn(Call.WATCH, self._watch)
            case Reconnect():
                self._connect()
            case RenewNow():
                self.keeper.renew_now()

    def _spawn(self, call: Call, work: Callable[[], Awaitable[Event]]) -> None:
        async def guarded() -> None:
            try:
                event = await work()
            except CallFailed as error:
                event = Failed(call=call, failure=error.failure)
                _log.warning(
                    call.value, action=call.value, outcome="failed", **_shown(error.failure)
                )
            except Exception as error:  # noqa: BLE001 - a bug must not end all leases
                event = Failed(call=call, failure=local_failure("INTERNAL", error))
                _log.exception(call.value, action=call.value, outcome="crashed")
            self.feed(event)
            if call is Call.ATTEST:
                self.judged.set()

        self._keep(guarded())

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A task that raises has a bug in what follows every call: end, and let systemd restart."""
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._bug = task.exception()
            self.halt()

    async def _wait(self) -> None:
        dues = [d for d in (self.machine.next_due_ms(), self.keeper.next_due_ms()) if d is not None]
        left_s = (min(dues) - self.clock_ms()) / 1000 if dues else _LONGEST_WAIT_S
        self._wake.clear()
        try:
            await asyncio.wait_for(self._wake.wait(), min(max(left_s, 0.001), _LONGEST_WAIT_S))
        except TimeoutError:
            return

    async def close(self) -> None:
        """Stop calls and connections; leases stay on disk."""
        await self.keeper.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._link is not None:
            await self._link.close()

    # --- calls -------------------------------------------------------------------------------

    def _started(self) -> Started:
        identity, checkpoints = self.host.identity, self._checkpoints
        return Started(
            certificate_left_ms=self.host.certificate_left_ms(),
            admission=identity.admission if identity is not None else Admission.UNKNOWN,
            split_view=checkpoints is not None and checkpoints.split_view,
        )

    def _connect(self) -> None:
        """Connections with the present certificate; the old ones finish what they are doing."""
        if self.host.identity is None or not self.host.identity.certificate_chain:
            return
        if self._checkpoints is None:
            self._checkpoints = self.host.checkpoints()
        old, self._link = self._link, self.host.link(self._checkpoints)
        if old is not None:
            self._keep(old.close(_GRACE_S))

    def _linked(self) -> AuthorityLink:
        if self._link is None:
            self.host.enrolled()
            self._connect()
        if self._link is None:
            raise CallFailed(Failure(kind=FailureKind.LOCAL, reason="NOT_ENROLLED"))
        return self._link

    async def _enrol(self) -> Event:
        identity = await self.host.enrol(lambda _step, _seconds: None)
        _log.info(
            "enrol",
            action="enrol",
            outcome="accepted",
            host=identity.host_id,
            name=identity.name,
            admission=identity.admission.value,
        )
        left_ms = self.host.certificate_left_ms()
        return Enrolled(admission=identity.admission, certificate_left_ms=left_ms)

    async def attest_once(self, *, fresh: bool) -> Attested:
        """Run one attestation. Raises CallFailed, OSError."""
        timeout_ms = self.host.settings.intervals.attest_timeout_ms
        async with self._attesting:
            reply = await self._attestor.attest(self._linked(), timeout_ms=timeout_ms, fresh=fresh)
        self.verdict = reply.verdict
        passed = reply.verdict.standing == STANDING_PASSED
        renewed = None
        if reply.certificate_chain:
            self.host.store(self.host.enrolled().renewed(reply.certificate_chain))
            renewed = self.host.certificate_left_ms()
        _log.info(
            "attest",
            action="attest",
            outcome="passed" if passed else "failed",
            verdict=reply.verdict.verdict_id,
            policy=reply.verdict.policy,
            failed=[check["id"] for check in failed_checks(reply.verdict)][:8],
            again_in_ms=reply.attest_again_in_ms,
        )
        return Attested(
            passed=passed, again_in_ms=reply.attest_again_in_ms, certificate_left_ms=renewed
        )

    async def _watch(self) -> Event:
        link = self._linked()
        stream = link.attestation.WatchHost(pb.WatchHostRequest(), metadata=link.metadata())
        async for pushed in link.pushed(stream):
            wish = _WISHES.get(pushed.wish, Wish.HELLO)
            if wish is not Wish.HELLO:
                _log.info("watch", action="pushed", wish=wish.value, detail=pushed.detail)
            self.feed(Pushed(wish=wish))
            if wish in {
                Wish.HELLO,
                Wish.MOVE_ORDERED,
            }:  # what was ordered before comes with no hint
                self.on_order()
        ended = Failure(kind=FailureKind.NO_ANSWER, reason="STREAM_ENDED")
        return Failed(call=Call.WATCH, failure=ended)

    async def own(self) -> list[placement.MoveOrder]:
        """The open move orders of this host. Raises CallFailed."""
        link, timeout_s = self._linked(), self.host.settings.intervals.call_timeout_ms / 1000
        request = placement.ListOwnMoveOrdersRequest()
        call = link.placement.ListOwnMoveOrders(
            request, timeout=timeout_s, metadata=link.metadata()
        )
        return list((await link.answer(call)).orders)

    async def report(self, request: placement.ReportMoveOrderRequest) -> placement.MoveOrder:
        """Tell how far a move order is; the order as it stands. Raises CallFailed."""
        link, timeout_s = self._linked(), self.host.settings.intervals.call_timeout_ms / 1000
        call = link.placement.ReportMoveOrder(request, timeout=timeout_s, metadata=link.metadata())
        return (await link.answer(call)).order

    async def call_for_vm(self, vm_id: str, asked: Send) -> Answered:
        """Send one request about a VM or a secret, with a fresh quote before it where it is for a key.

        Raises CallFailed when there is no definitive answer.
        """
        timeout_s = self.host.settings.intervals.call_timeout_ms / 1000
        asks_for_key = asked.operation in _FOR_KEYS
        if asks_for_key and not self._challenged_lately():
            # a key is bound to the TPM clock of a recent quote, and the age of evidence counts from
            # its challenge; who is not trusted is told so below
            with contextlib.suppress(CallFailed):
                await self.attest_once(fresh=True)
        with self.host.spent.on(AUTHORITY):
            answered = await send(self._linked(), vm_id, asked, timeout_s)
        if asks_for_key and answered.reply.reason == "QUOTE_TOO_OLD":
            await self.attest_once(fresh=True)
            answered = await send(self._linked(), vm_id, asked, timeout_s)
        return answered

    def _challenged_lately(self) -> bool:
        challenged_ms = self._attestor.challenged_at_ms
        return challenged_ms is not None and self.clock_ms() - challenged_ms < _QUOTE_LASTS_MS

    def _noted(self, failure: Failure) -> None:
        """A failure of a VM's call says something about the host too."""
        if failure.kind is FailureKind.ROLLED_BACK:
            self.feed(Contradicted(lasting=failure.reason == "SPLIT_VIEW"))
        if failure.kind is FailureKind.UNKNOWN_CALLER:
            self.feed(AttestWanted())

    def opener(self) -> KeyOpener:
        """What opens grants in this host's TPM. Raises CallFailed while it is not enrolled."""
        return KeyOpener(
            tpm=self.host.tpm,
            keys=self.host.keys,
            identity=self.host.enrolled(),
            state_dir=self.host.settings.paths.state_dir,
        )


def _shown(failure: Failure) -> dict[str, object]:
    shown: dict[str, object] = {"kind": failure.kind.value, "reason": failure.reason}
    return {**shown, "detail": failure.detail, "retry_after_ms": failure.retry_after_ms}
