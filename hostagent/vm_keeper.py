"""Keep the leases of this host's VMs: feed ``lease``, store its view, do what it decides.

Stage: around the pure lease machine. Trusts ``lease`` for every decision. Guarantees that a view is
stored before its actions begin, that pausing and destroying wait for nobody's answer and are
repeated until done, also by the next process, that a VM is never resumed beyond its lease, and that
giving back is said only after the VM is gone and its key file wiped. Requests go out again under
their first id until there is an answer. Does not open grants.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from hostagent import lease
from hostagent.channel import new_request_id
from hostagent.enforcement import Enforcement
from hostagent.failure import CallFailed, Failure, local_failure
from hostagent.files import overwrite_and_remove
from hostagent.lease_model import (
    Action,
    ArmWatchdog,
    Event,
    LeaseView,
    Operation,
    Phase,
    Send,
    Stopped,
    Tick,
    VmAction,
)
from hostagent.lease_store import LeaseStore, VmRecord
from hostagent.machine import Pace
from hostagent.vm_calls import Answered
from hostagent.vm_timing import ENDS, RUNS, due_ms, is_timed, without_storage

_log = structlog.get_logger("hostagent.vm")
_PAUSE_ATTEMPTS = 5
_REPEAT_S = 0.5

Caller = Callable[[str, Send], Awaitable[Answered]]
"""Sends one request of a VM; raises CallFailed when there is no definitive answer."""
OnFailure = Callable[[Failure], None]


@dataclass(slots=True)
class _Live:
    """What of a VM is not stored."""

    jobs: asyncio.Queue[Action] = field(default_factory=asyncio.Queue)
    worker: asyncio.Task[None] | None = None
    grant: bytes = field(default=b"", repr=False)
    """The newest grant, until it is opened or the lease ends."""
    last: Answered | None = None
    """The newest answer, for whoever waits."""
    failure: Failure | None = None
    """Why the newest try had no answer; None after one."""


class VmKeeper:
    """All VMs of this host. Runs in one event loop; every method is called from it."""

    def __init__(
        self,
        store: LeaseStore,
        call: Caller,
        enforcement: Enforcement,
        clock_ms: Callable[[], int],
        *,
        pace: Pace,
        on_failure: OnFailure,
    ) -> None:
        self._store, self._call, self._enforcement = store, call, enforcement
        self._clock_ms, self._pace, self._on_failure = clock_ms, pace, on_failure
        self.records: dict[str, VmRecord] = {}
        self._live: dict[str, _Live] = {}
        self._senders: set[asyncio.Task[None]] = set()
        self._may_send = asyncio.Event()
        self._changed = asyncio.Event()

    # --- life --------------------------------------------------------------------------------

    def take_up(self) -> None:
        """Go on where the last process of this boot stopped. Raises BrokenState, InsecureFile."""
        self.records = self._store.load()
        for vm_id, record in self.records.items():
            if record.todo is not None:
                self._queue(vm_id, record.todo)
            elif record.view.phase is Phase.IDLE:
                continue  # its end was confirmed; what runs under that name now is not ours
            record.view, actions = lease.restarted(record.view, self._clock_ms())
            if record.lent:  # whoever used the key died with the last process
                stopped = Stopped(fresh_id=new_request_id())
                record.view, actions = lease.step(record.view, stopped, self._clock_ms())
                record.lent = False
            self._carry_out(vm_id, actions)
        self._save()

    def allow(self, sending: bool) -> None:
        """Let requests go out, or hold them back; time goes on for leases either way."""
        if sending:
            self._may_send.set()
        else:
            self._may_send.clear()

    async def close(self) -> None:
        """Stop working; VMs and leases stay as they are."""
        workers = [live.worker for live in self._live.values() if live.worker is not None]
        tasks = [*self._senders, *workers]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- events ------------------------------------------------------------------------------

    def view(self, vm_id: str) -> LeaseView:
        """Where this host stands with a VM."""
        record = self.records.get(vm_id)
        return record.view if record is not None else LeaseView()

    def last_answer(self, vm_id: str) -> Answered | None:
        """The newest answer about a VM in this process."""
        return self._of(vm_id).last

    def last_failure(self, vm_id: str) -> Failure | None:
        """Why the newest try about a VM had no answer, if it had none."""
        return self._of(vm_id).failure

    def take_grant(self, vm_id: str) -> bytes:
        """The grant that just arrived, once; empty when there is none."""
        live = self._of(vm_id)
        grant, live.grant = live.grant, b""
        return grant

    def receive(self, vm_id: str, event: Event, *, at_ms: int | None = None) -> None:
        """Feed one event about a VM: decide, store, then act."""
        record = self._record(vm_id)
        now_ms = self._clock_ms() if at_ms is None else at_ms
        record.view, actions = lease.step(record.view, event, now_ms)
        for action in actions:
            if isinstance(action, VmAction) and action in ENDS:
                record.todo = action
        stored = self._save()
        self._carry_out(vm_id, actions if stored else without_storage(actions))
        self._changed.set()

    def receive_first(self, vm_id: str, event: Event, request_id: str) -> None:
        """Feed an event that sends ``request_id``, timed by the first send of that id ever (N85)."""
        first = self._record(vm_id).first_send_ms(request_id, self._clock_ms())
        self.receive(vm_id, event, at_ms=first)

    async def ask_again(self, vm_id: str, asked: Send) -> bytes:
        """The grant of a request that was answered before; leases don't change. Raises CallFailed."""
        return (await self._call(vm_id, asked)).key_grant

    def note_lent(self, vm_id: str, *, lent: bool) -> None:
        """Remember that a key is asked for that runs nothing, or no more. Raises OSError."""
        self._record(vm_id).lent = lent
        self._store.save(self.records)

    def note_key_file(self, vm_id: str, path: Path) -> None:
        """Remember where a key is about to be handed out. Raises OSError when that can't be stored."""
        self._record(vm_id).key_file = str(path)
        self._store.save(self.records)

    def tick(self) -> None:
        """Do what is due. Call at ``next_due_ms`` at the latest."""
        for vm_id in list(self.records):
            view = self.records[vm_id].view
            if is_timed(view) and due_ms(view) <= self._clock_ms():
                self.receive(vm_id, Tick(fresh_id=new_request_id()))

    def next_due_ms(self) -> int | None:
        """The next point in time that matters for a lease."""
        due = [due_ms(r.view) for r in self.records.values() if is_timed(r.view)]
        return min(due, default=None)

    def renew_now(self) -> None:
        """Renew every lease at once; a refusal that names a revocation pauses the VM."""
        for record in self.records.values():
            if record.view.phase in RUNS and record.view.renewal is None:
                record.view = replace(record.view, renew_at_ms=self._clock_ms())
        self.tick()

    async def settled(
        self, vm_id: str, done: Callable[[LeaseView], bool], timeout_s: float
    ) -> LeaseView:
        """Wait until the view is as wanted, for at most ``timeout_s``; returns the view."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not done(self.view(vm_id)):
            self._changed.clear()
            left = deadline - asyncio.get_running_loop().time()
            try:
                await asyncio.wait_for(self._changed.wait(), max(left, 0))
            except TimeoutError:
                break
        return self.view(vm_id)

    # --- acting ------------------------------------------------------------------------------

    def _carry_out(self, vm_id: str, actions: tuple[Action, ...]) -> None:
        for action in actions:
            if isinstance(action, ArmWatchdog):
                self._arm(vm_id, action)
                continue
            if isinstance(action, VmAction):
                self._log(vm_id, action.value, why=self._why(vm_id))
            self._queue(vm_id, action)

    def _queue(self, vm_id: str, action: Action) -> None:
        live = self._of(vm_id)
        live.jobs.put_nowait(action)
        if live.worker is None:
            live.worker = asyncio.create_task(self._work(vm_id, live))

    async def _work(self, vm_id: str, live: _Live) -> None:
        """Act in the order of the decisions: what follows a destroy waits for it."""
        while True:
            action = await live.jobs.get()
            match action:
                case Send():
                    sender = asyncio.create_task(self._deliver(vm_id, action))
                    self._senders.add(sender)
                    sender.add_done_callback(self._senders.discard)
                case VmAction.PAUSE | VmAction.DESTROY:
                    await self._end(vm_id, action)
                case VmAction.RESUME:
                    if self._may_run(vm_id):
                        await self._act(action, vm_id)
                case VmAction.START | VmAction.RECEIVE | ArmWatchdog():
                    pass  # whoever asked for the grant starts the VM

    async def _end(self, vm_id: str, action: VmAction) -> None:
        record, attempt = self._record(vm_id), 0
        self._of(vm_id).grant = b""
        while True:
            attempt += 1
            if await self._act(action, vm_id) and self._wipe(record):
                break
            self._log(vm_id, f"{action.value}-failed", attempt=attempt)
            if action is VmAction.PAUSE and attempt >= _PAUSE_ATTEMPTS:
                return  # its end is decided by time already
            await asyncio.sleep(_REPEAT_S)
        if record.todo is action:
            record.todo = None
            self._save()

    async def _act(self, action: VmAction, vm_id: str) -> bool:
        try:
            return await self._enforcement.act(action, vm_id, self._why(vm_id))
        except Exception:  # noqa: BLE001 - a bug there must not end what ends VMs
            _log.exception("vm", action="enforcement-crashed", vm=vm_id)
            return False

    def _arm(self, vm_id: str, action: ArmWatchdog) -> None:
        """At once: whoever waits for the lease must find the watchdog armed."""
        try:
            self._enforcement.arm(vm_id, action.at_ms)
        except OSError as failure:  # it stays armed for an earlier moment
            _log.error("watchdog-not-armed", vm=vm_id, detail=str(failure))

    def _why(self, vm_id: str) -> str:
        """Why a VM is paused or ended, for people; empty when nothing is wrong."""
        live = self._of(vm_id)
        if live.failure is not None:
            return f"its lease was not renewed: {live.failure.reason}"
        if live.last is not None and not live.last.reply.accepted:
            return f"its lease was not renewed: {live.last.reply.reason}"
        return ""

    def _wipe(self, record: VmRecord) -> bool:
        try:
            if record.key_file:
                overwrite_and_remove(Path(record.key_file))
        except OSError:
            return False
        record.key_file = ""
        return True

    def _may_run(self, vm_id: str) -> bool:
        view = self.view(vm_id)
        return view.phase is Phase.RUNNING and self._clock_ms() < view.run_until_ms

    async def _deliver(self, vm_id: str, asked: Send) -> None:
        """Send until there is an answer or nobody waits for it any more."""
        attempt = 0
        while True:
            await self._may_send.wait()
            if not self._is_pending(vm_id, asked):
                return
            try:
                answered = await self._call(vm_id, asked)
            except CallFailed as error:
                failure = error.failure
                self._on_failure(failure)
            except Exception as error:  # noqa: BLE001 - a bug in a call is no answer either
                failure = local_failure("INTERNAL", error)
                _log.exception("vm", action="crashed", vm=vm_id)
            else:
                self._take_answer(vm_id, answered)
                return
            attempt += 1
            self._of(vm_id).failure = failure
            self._log(vm_id, f"{asked.operation.value}-unanswered", reason=failure.reason)
            jitter = random.random()  # noqa: S311 - spreads load
            wait_ms = self._pace.delay_ms(attempt, jitter, failure.retry_after_ms)
            await asyncio.sleep(wait_ms / 1000)

    def _take_answer(self, vm_id: str, answered: Answered) -> None:
        reply, live, record = answered.reply, self._of(vm_id), self._record(vm_id)
        live.last, live.failure = answered, None
        outcome = "accepted" if reply.accepted else "refused"
        self._log(vm_id, reply.operation.value, outcome=outcome, reason=reply.reason)
        if reply.accepted and answered.key_grant:
            live.grant, record.granted = answered.key_grant, reply.request_id
        self.receive(vm_id, reply)
        if is_timed(record.view) and record.view.destroy_at_ms <= self._clock_ms():
            self.receive(vm_id, Tick(fresh_id=new_request_id()))
        if reply.operation is Operation.RENEW and not reply.accepted:
            self._ask_later(record)

    def _ask_later(self, record: VmRecord) -> None:
        """After a refused renewal: not at once again, but before a third of the lease is over."""
        pause_ms = min(self._pace.backoff_cap_ms, max(record.view.lease_ms // 12, 100))
        if record.view.phase in RUNS and record.view.renewal is None:
            record.view = replace(record.view, renew_at_ms=self._clock_ms() + pause_ms)

    # --- parts -------------------------------------------------------------------------------

    def _is_pending(self, vm_id: str, asked: Send) -> bool:
        view = self.view(vm_id)
        return any(
            p is not None and p.request_id == asked.request_id and p.operation is asked.operation
            for p in (view.errand, view.renewal)
        )

    def _record(self, vm_id: str) -> VmRecord:
        return self.records.setdefault(vm_id, VmRecord())

    def _of(self, vm_id: str) -> _Live:
        return self._live.setdefault(vm_id, _Live())

    def _save(self) -> bool:
        try:
            self._store.save(self.records)
        except OSError as failure:
            _log.error("leases-not-stored", detail=str(failure))
            return False
        return True

    def _log(self, vm_id: str, action: str, **more: object) -> None:
        view = self._record(vm_id).view
        _log.info("vm", action=action, vm=vm_id, phase=view.phase.value, **more)
