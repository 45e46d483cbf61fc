"""When to enrol, when to attest, when to believe nothing more: the agent's life without I/O.

Stage: pure core of the agent (sans-IO). Trusts on entry: the clock readings and random numbers it is
given; nothing of the authority beyond what ``channel`` authenticated. Guarantees that at most one
enrolment and one attestation are under way, that failures are paced with full jitter under a cap,
and that a contradiction of the audit log stops renewals: doubt never resumes anything. Leases are
kept by ``lease``; nothing here ends or extends one by itself. Source: design sections 6.1, 6.2, 6.6.
"""

from dataclasses import dataclass, field
from typing import assert_never

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
    Phase,
    Pushed,
    Reconnect,
    RenewNow,
    Started,
    Tick,
    Wish,
)
from hostagent.failure import FailureKind

_ENROL_AFTER_SILENCE = 6
"""Attestations without any answer after which the certificate itself is in question: a refused
handshake looks like silence."""
_LONGEST_AGAIN_MS = 86_400_000
"""One day: no reply silences the agent for longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Lengths of time that the machine needs, in milliseconds."""

    backoff_first_ms: int = 500
    backoff_cap_ms: int = 60_000
    backoff_floor_ms: int = 100
    """Full jitter may draw zero; a reply that always fails at once must not become a busy loop."""
    admission_poll_ms: int = 600_000
    renew_margin_ms: int = 300_000
    """Before the end of the certificate, at most; a tenth of what is left when that is shorter."""

    def delay_ms(self, failures: int, jitter: float, retry_after_ms: int | None) -> int:
        """How long to wait after so many failures in a row (from 1): full jitter under a cap."""
        ceiling = min(self.backoff_cap_ms, self.backoff_first_ms << min(failures - 1, 30))
        return max(self.backoff_floor_ms, int(ceiling * jitter)) + (retry_after_ms or 0)


@dataclass(slots=True)
class _Timer:
    """One call that happens again and again: when next, whether now, how often it failed."""

    due_ms: int | None = None
    busy: bool = False
    failures: int = 0
    started_ms: int = 0

    def is_ready(self, now_ms: int) -> bool:
        return not self.busy and self.due_ms is not None and self.due_ms <= now_ms

    def start(self, now_ms: int) -> None:
        self.busy, self.due_ms, self.started_ms = True, None, now_ms

    def succeed(self, due_ms: int | None) -> None:
        self.busy, self.failures, self.due_ms = False, 0, due_ms

    def hasten(self, now_ms: int) -> None:
        """At once, or right after the one that is under way."""
        self.due_ms = now_ms


@dataclass(slots=True)
class AgentMachine:
    """Feed it with ``receive``; do what it returns; call again at ``next_due_ms``."""

    pace: Pace = field(default_factory=Pace)
    phase: Phase = Phase.NEEDS_ENROL
    admission: Admission = Admission.UNKNOWN
    verdict_at_ms: int | None = None
    """When the newest verdict came, on CLOCK_BOOTTIME."""
    last_failure: str = ""
    """Reason of the newest failure, empty after a success."""
    _split_view: bool = False
    _certified: bool = False
    _fresh: bool = False
    _enrol: _Timer = field(default_factory=_Timer)
    _attest: _Timer = field(default_factory=_Timer)
    _watch: _Timer = field(default_factory=_Timer)

    def next_due_ms(self) -> int | None:
        """The next point in time at which ``Tick`` will want something; None while all is under way."""
        timers = (self._enrol, self._attest, self._watch)
        due = [t.due_ms for t in timers if t.due_ms is not None and not t.busy]
        return min(due, default=None)

    @property
    def may_ask(self) -> bool:
        """Whether asking for keys and renewals makes sense: a certificate, and no doubt."""
        return self._certified and self.phase not in {Phase.DOUBT, Phase.REMOVED}

    def receive(self, event: Event, *, now_ms: int, jitter: float) -> tuple[Action, ...]:
        """Take one event and say what to do.

        Args:
            event: what happened.
            now_ms: CLOCK_BOOTTIME.
            jitter: a random number from 0 to 1, new for each call.
        """
        match event:
            case Started():
                actions = self._started(event, now_ms)
            case Enrolled():
                actions = self._enrolled(event, now_ms)
            case Attested():
                actions = self._attested(event, now_ms)
            case Failed():
                actions = self._failed(event, now_ms, jitter)
            case Pushed():
                actions = self._pushed(event, now_ms)
            case Contradicted():
                self._split_view = self._split_view or event.lasting
                self.phase, actions = Phase.DOUBT, ()
            case AttestWanted():
                self._attest.hasten(now_ms)
                actions = ()
            case Tick():
                actions = ()
            case _:
                assert_never(event)
        return (*actions, *self._ready(now_ms))

    # --- what is due -------------------------------------------------------------------------

    def _ready(self, now_ms: int) -> tuple[Action, ...]:
        actions: list[Action] = []
        if self._enrol.is_ready(now_ms):
            self._enrol.start(now_ms)
            if not self._certified and self.phase is not Phase.DOUBT:
                self.phase = Phase.ENROLLING
            actions.append(Enrol())
        if self._certified and self._attest.is_ready(now_ms):
            self._attest.start(now_ms)
            actions.append(Attest(fresh=self._fresh))
            self._fresh = False
        if self._certified and self._watch.is_ready(now_ms):
            self._watch.start(now_ms)
            actions.append(OpenWatch())
        return tuple(actions)

    def _hold_certificate(self, left_ms: int, now_ms: int) -> None:
        self._certified = True
        margin = min(self.pace.renew_margin_ms, left_ms // 10)
        self._enrol.due_ms = now_ms + left_ms - margin

    def _settle(self, phase: Phase) -> None:
        """A certificate is no reason to believe again."""
        if self.phase is not Phase.DOUBT:
            self.phase = phase

    # --- events ------------------------------------------------------------------------------

    def _started(self, event: Started, now_ms: int) -> tuple[Action, ...]:
        self.admission, self._split_view = event.admission, event.split_view
        left = event.certificate_left_ms
        if left is None or left <= 0:
            self.phase = Phase.NEEDS_ENROL
            self._enrol.hasten(now_ms)
        else:
            self.phase = Phase.ATTESTING
            self._hold_certificate(left, now_ms)
            self._attest.hasten(now_ms)
            self._watch.hasten(now_ms)
        if event.split_view:
            self.phase = Phase.DOUBT
        return ()

    def _enrolled(self, event: Enrolled, now_ms: int) -> tuple[Action, ...]:
        self._enrol.succeed(None)
        self.admission, self.last_failure = event.admission, ""
        poll = now_ms + self.pace.admission_poll_ms
        if event.admission is Admission.REMOVED:
            self._certified, self._enrol.due_ms = False, poll
            self.phase = Phase.REMOVED
            return ()
        left = event.certificate_left_ms
        if left is None or left <= 0:
            self._certified, self._enrol.due_ms = False, poll
            self._settle(Phase.WAITING_ADMISSION)
            return ()
        was_certified = self._certified
        self._hold_certificate(left, now_ms)
        if event.admission is Admission.WAITING and self._enrol.due_ms is not None:
            self._enrol.due_ms = min(self._enrol.due_ms, poll)
        if not was_certified or self.phase in {Phase.ENROLLING, Phase.REMOVED}:
            self._settle(Phase.ATTESTING)
        self._attest.failures = 0
        self._attest.hasten(now_ms)
        if not self._watch.busy:
            self._watch.hasten(now_ms)
        return (Reconnect(),)

    def _attested(self, event: Attested, now_ms: int) -> tuple[Action, ...]:
        again = min(max(event.again_in_ms, self.pace.backoff_floor_ms), _LONGEST_AGAIN_MS)
        hastened = self._attest.due_ms is not None  # asked for while this one was under way
        self._attest.succeed(now_ms if hastened else now_ms + again)
        self.verdict_at_ms, self.last_failure = now_ms, ""
        actions: tuple[Action, ...] = ()
        if event.certificate_left_ms is not None and event.certificate_left_ms > 0:
            self._hold_certificate(event.certificate_left_ms, now_ms)
            actions = (Reconnect(),)
        if self._split_view:
            return actions
        self.phase = Phase.PASSED if event.passed else Phase.FAILED
        return actions

    def _pushed(self, event: Pushed, now_ms: int) -> tuple[Action, ...]:
        match event.wish:
            case Wish.HELLO | Wish.MOVE_ORDERED:
                return ()
            case Wish.ATTEST_NOW:
                self._attest.hasten(now_ms)
                return ()
            case Wish.REVOKED:
                self._attest.hasten(now_ms)
                return (RenewNow(),)

    # --- failures ----------------------------------------------------------------------------

    def _failed(self, event: Failed, now_ms: int, jitter: float) -> tuple[Action, ...]:
        timer = {Call.ENROL: self._enrol, Call.ATTEST: self._attest, Call.WATCH: self._watch}
        failed = timer[event.call]
        if event.call is Call.WATCH and now_ms - failed.started_ms > self.pace.backoff_cap_ms:
            failed.failures = 0  # it lasted: its end is no reason to wait long
        failed.busy, failed.failures = False, failed.failures + 1
        failed.due_ms = now_ms + self._delay_ms(failed, event, jitter)
        if event.call is Call.WATCH:  # best effort; its end says nothing about this host
            return ()
        self.last_failure = event.failure.reason
        if event.call is Call.ENROL and not self._certified and self.phase is Phase.ENROLLING:
            self.phase = Phase.NEEDS_ENROL
        kind = event.failure.kind
        if kind is FailureKind.ROLLED_BACK:
            self._split_view = self._split_view or event.failure.reason == "SPLIT_VIEW"
            self.phase = Phase.DOUBT
            return ()
        if event.call is Call.ATTEST:
            self._fresh = True
            silent = kind is FailureKind.NO_ANSWER and failed.failures % _ENROL_AFTER_SILENCE == 0
            if kind is FailureKind.UNKNOWN_CALLER or silent:
                self._hasten_enrolment(now_ms)
        return ()

    def _hasten_enrolment(self, now_ms: int) -> None:
        if self._enrol.busy or self._enrol.failures:  # it has its own pace already
            return
        self._enrol.hasten(now_ms)

    def _delay_ms(self, timer: _Timer, event: Failed, jitter: float) -> int:
        if event.failure.kind is FailureKind.STALE and timer.failures == 1:
            return 0
        return self.pace.delay_ms(timer.failures, jitter, event.failure.retry_after_ms)
