"""hostagent.machine: when the agent enrols, attests, waits and doubts; driven by an injected clock."""

import pytest

from hostagent.events import (
    Admission,
    Attest,
    Attested,
    AttestWanted,
    Call,
    Contradicted,
    Enrol,
    Enrolled,
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
from hostagent.failure import Failure, FailureKind
from hostagent.machine import AgentMachine, Pace

HOUR = 3_600_000


def failure(kind=FailureKind.NO_ANSWER, reason="UNAVAILABLE", retry_after_ms=None):
    return Failure(kind=kind, reason=reason, retry_after_ms=retry_after_ms)


class Driven:
    """A machine with a clock that a test moves."""

    def __init__(self, **pace):
        self.machine = AgentMachine(pace=Pace(**pace))
        self.now = 1_000_000

    def feed(self, event, jitter=1.0):
        return self.machine.receive(event, now_ms=self.now, jitter=jitter)

    def after(self, ms, event=None):
        self.now += ms
        return self.feed(event or Tick())

    def due_in(self):
        return self.machine.next_due_ms() - self.now

    def fail(self, call, jitter=1.0, **more):
        return self.feed(Failed(call=call, failure=failure(**more)), jitter)


def certified(left_ms=1000 * HOUR, **pace):
    """An agent that just started with a good certificate; its first attestation is under way."""
    driven = Driven(**pace)
    actions = driven.feed(Started(certificate_left_ms=left_ms, admission=Admission.ADMITTED))
    assert actions == (Attest(), OpenWatch())
    return driven


def passed(**pace):
    driven = certified(**pace)
    driven.feed(Attested(passed=True, again_in_ms=60_000))
    assert driven.machine.phase is Phase.PASSED
    return driven


class TestEnrolment:
    def test_without_a_certificate_the_first_act_is_to_enrol(self):
        """Nothing is attested before there is a certificate for mutual TLS."""
        driven = Driven()
        assert driven.feed(Started()) == (Enrol(),)
        assert driven.machine.phase is Phase.ENROLLING
        assert not driven.machine.may_ask

    @pytest.mark.parametrize("left", [0, -5])
    def test_an_expired_certificate_is_none(self, left):
        """A host that was off for a weekend enrols first."""
        assert Driven().feed(Started(certificate_left_ms=left)) == (Enrol(),)

    def test_enrolled_connects_attests_and_watches(self):
        """The certificate opens mutual TLS."""
        driven = Driven()
        driven.feed(Started())
        actions = driven.feed(Enrolled(admission=Admission.ADMITTED, certificate_left_ms=HOUR))
        assert actions == (Reconnect(), Attest(), OpenWatch())
        assert driven.machine.phase is Phase.ATTESTING

    def test_never_two_enrolments_at_once(self):
        """However much time passes, one enrolment is under way."""
        driven = Driven()
        driven.feed(Started())
        assert [driven.after(HOUR) for _ in range(3)] == [(), (), ()]

    def test_failures_back_off_with_full_jitter_under_a_cap(self):
        """Each failure doubles the ceiling; jitter spreads the whole fleet below it."""
        driven = Driven(backoff_first_ms=1000, backoff_cap_ms=8000, backoff_floor_ms=100)
        driven.feed(Started())
        waits = []
        for _ in range(6):
            driven.fail(Call.ENROL)
            waits.append(driven.due_in())
            assert driven.after(waits[-1]) == (Enrol(),)
        assert waits == [1000, 2000, 4000, 8000, 8000, 8000]
        driven.fail(Call.ENROL, jitter=0.0)
        assert driven.due_in() == 100

    def test_the_certificate_is_renewed_before_it_ends(self):
        """A tenth of what is left, at most five minutes, is kept as a margin."""
        driven = passed(left_ms=24 * HOUR)
        driven.now = 1_000_000 + 24 * HOUR - 300_000 - 1
        assert Enrol() not in driven.feed(Tick())
        driven.now += 1
        assert Enrol() in driven.feed(Tick())
        assert driven.machine.phase is Phase.PASSED

    def test_waiting_for_admission_without_a_certificate_polls(self):
        """Before an operator admits the host nothing but enrolment is tried, slowly."""
        driven = Driven(admission_poll_ms=600_000)
        driven.feed(Started())
        assert driven.feed(Enrolled(admission=Admission.WAITING, certificate_left_ms=None)) == ()
        assert driven.machine.phase is Phase.WAITING_ADMISSION
        assert driven.after(599_999) == ()
        assert driven.after(1) == (Enrol(),)

    def test_waiting_with_a_certificate_attests_and_asks_again(self):
        """N76: a genuine TPM that is not ours yet is attested; admission is asked for later."""
        driven = Driven(admission_poll_ms=600_000)
        driven.feed(Started())
        actions = driven.feed(Enrolled(admission=Admission.WAITING, certificate_left_ms=24 * HOUR))
        assert Attest() in actions
        driven.feed(Attested(passed=True, again_in_ms=HOUR))
        assert driven.after(600_000) == (Enrol(),)

    def test_removed_stops_everything_but_asking(self):
        """A removed host asks for no key."""
        driven = Driven()
        driven.feed(Started())
        driven.feed(Enrolled(admission=Admission.REMOVED, certificate_left_ms=HOUR))
        assert driven.machine.phase is Phase.REMOVED
        assert not driven.machine.may_ask


class TestAttestation:
    def test_the_authority_says_when(self):
        """attest_again_in_ms rules, to the millisecond."""
        driven = passed()
        assert driven.after(59_999) == ()
        assert driven.after(1) == (Attest(),)

    @pytest.mark.parametrize(("told", "used"), [(0, 100), (-9, 100), (10**12, 86_400_000)])
    def test_absurd_intervals_are_bounded(self, told, used):
        """Neither a busy loop nor silence for a year, whatever a reply says."""
        driven = certified()
        driven.feed(Attested(passed=True, again_in_ms=told))
        assert driven.machine.next_due_ms() - driven.now == used

    def test_failed_is_a_phase_and_not_an_error(self):
        """A bad verdict is a value: attesting goes on, keys may be asked for (and are refused)."""
        driven = certified()
        driven.feed(Attested(passed=False, again_in_ms=60_000))
        assert driven.machine.phase is Phase.FAILED
        assert driven.after(60_000) == (Attest(),)

    def test_a_failure_asks_for_a_fresh_challenge(self):
        """What the last reply brought is not used after a failure."""
        driven = certified()
        driven.fail(Call.ATTEST)
        assert driven.after(500) == (Attest(fresh=True),)

    def test_a_stale_challenge_is_retried_at_once_but_only_once(self):
        """CHALLENGE_EXPIRED: at once; a second time: back-off."""
        driven = certified()
        assert driven.fail(Call.ATTEST, kind=FailureKind.STALE) == (Attest(fresh=True),)
        assert driven.fail(Call.ATTEST, kind=FailureKind.STALE) == ()
        assert driven.due_in() == 1000

    def test_rate_limited_waits_at_least_what_it_was_told(self):
        """retry_after is the least; jitter comes on top."""
        driven = certified()
        driven.fail(Call.ATTEST, jitter=0.0, kind=FailureKind.BUSY, retry_after_ms=30_000)
        assert driven.due_in() == 30_100

    def test_an_unknown_certificate_leads_to_enrolment(self):
        """UNAUTHENTICATED: the same keys activate again."""
        driven = certified()
        assert Enrol() in driven.fail(Call.ATTEST, kind=FailureKind.UNKNOWN_CALLER)

    def test_long_silence_questions_the_certificate(self):
        """A refused handshake looks like silence: after six failures the host enrols again."""
        driven = certified()
        enrolments = 0
        for _ in range(6):
            enrolments += driven.fail(Call.ATTEST).count(Enrol())
            driven.after(60_000)
        assert enrolments == 1

    def test_attestation_is_never_doubled_but_remembered(self):
        """A wish during an attestation leads to one more after it, at once."""
        driven = certified()
        assert driven.feed(AttestWanted()) == ()
        assert driven.feed(Attested(passed=True, again_in_ms=60_000)) == (Attest(),)

    def test_silence_of_the_authority_does_not_change_a_verdict(self):
        """The verdict's age is shown; leases end by their own clock."""
        driven = passed()
        driven.after(60_000)
        driven.fail(Call.ATTEST)
        assert driven.machine.phase is Phase.PASSED
        assert driven.machine.last_failure == "UNAVAILABLE"


class TestWatch:
    def test_a_wish_to_attest_hastens(self):
        """Pushed: attest now."""
        assert passed().feed(Pushed(wish=Wish.ATTEST_NOW)) == (Attest(),)

    def test_a_revocation_is_checked_by_asking(self):
        """A push is best effort: it makes the agent ask, it ends nothing by itself."""
        driven = passed()
        assert driven.feed(Pushed(wish=Wish.REVOKED)) == (RenewNow(), Attest())
        assert driven.machine.phase is Phase.PASSED

    def test_a_lost_stream_is_no_failure_of_the_host(self):
        """The stream is opened again with back-off; phase and attestation don't change."""
        driven = passed()
        driven.fail(Call.WATCH)
        assert (driven.machine.phase, driven.machine.last_failure) == (Phase.PASSED, "")
        assert driven.after(500) == (OpenWatch(),)

    def test_a_stream_that_ends_again_and_again_is_opened_less_often(self):
        """An authority that hangs up after each greeting is not stormed."""
        driven = passed(backoff_first_ms=500, backoff_cap_ms=60_000)
        waits = []
        for _ in range(4):
            driven.fail(Call.WATCH)
            waits.append(driven.due_in())
            driven.after(waits[-1])
        assert waits == [500, 1000, 2000, 4000]


class TestDoubt:
    def test_rollback_detected_means_doubt(self):
        """N64: whoever lost what it showed is asked for no key and no renewal."""
        driven = passed()
        driven.after(60_000)
        driven.fail(Call.ATTEST, kind=FailureKind.ROLLED_BACK, reason="ROLLBACK_DETECTED")
        assert driven.machine.phase is Phase.DOUBT
        assert not driven.machine.may_ask

    def test_doubt_ends_with_an_accepted_attestation(self):
        """An authority that answers contains what was echoed to it."""
        driven = passed()
        driven.feed(Contradicted(lasting=False))
        assert driven.machine.phase is Phase.DOUBT
        driven.after(60_000)
        driven.feed(Attested(passed=True, again_in_ms=60_000))
        assert driven.machine.phase is Phase.PASSED

    def test_a_certificate_is_no_reason_to_believe_again(self):
        """Enrolling anew does not end doubt; only an attestation that echoes a checkpoint does."""
        driven = Driven()
        driven.feed(Started())
        driven.feed(Contradicted(lasting=False))
        driven.feed(Enrolled(admission=Admission.ADMITTED, certificate_left_ms=HOUR))
        assert driven.machine.phase is Phase.DOUBT
        driven.feed(Attested(passed=True, again_in_ms=60_000))
        assert driven.machine.phase is Phase.PASSED

    @pytest.mark.parametrize("how", ["event", "failure", "start"])
    def test_a_split_view_is_not_forgotten(self, how):
        """N65: two signed trees are proof; no later answer ends the doubt."""
        driven = Driven()
        if how == "start":
            driven.feed(Started(certificate_left_ms=24 * HOUR, split_view=True))
        else:
            driven.feed(Started(certificate_left_ms=24 * HOUR))
        if how == "event":
            driven.feed(Contradicted(lasting=True))
        if how == "failure":
            driven.fail(Call.ATTEST, kind=FailureKind.ROLLED_BACK, reason="SPLIT_VIEW")
            driven.after(60_000)
        driven.feed(Attested(passed=True, again_in_ms=60_000))
        driven.feed(Enrolled(admission=Admission.ADMITTED, certificate_left_ms=HOUR))
        assert driven.machine.phase is Phase.DOUBT
        assert not driven.machine.may_ask
