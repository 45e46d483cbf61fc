"""The host's lease machine: counted from the first send, paused on loss, never resumed on doubt."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostagent.lease import restarted, step
from hostagent.lease_model import (
    FENCED,
    HOST_REVOKED,
    AbortMove,
    ArmWatchdog,
    Claim,
    GiveUp,
    HandOver,
    LeaseView,
    OfferMove,
    Operation,
    Phase,
    PrepareMove,
    Reply,
    Resend,
    Send,
    Start,
    Stopped,
    Tick,
    VmAction,
)

LEASE, SKEW = 3_000, 1_000
T0 = 50_000
TICK = Tick(fresh_id="tick")


def yes(operation: Operation, request_id: str, **changes: object) -> Reply:
    good = Reply(
        operation=operation,
        request_id=request_id,
        accepted=True,
        grant_epoch=6,
        lease_ms=LEASE,
        skew_ms=SKEW,
    )
    return replace(good, **changes)


def no(operation: Operation, request_id: str, reason: str = "HOST_NOT_ATTESTED") -> Reply:
    return Reply(operation=operation, request_id=request_id, accepted=False, reason=reason)


def after(view: LeaseView, *events: object, now: int = T0):
    """Run events at one time; the view and the last event's actions."""
    actions: tuple = ()
    for event in events:
        view, actions = step(view, event, now)
    return view, actions


def requesting() -> LeaseView:
    return after(LeaseView(), Start(fresh_id="r1"))[0]


def running() -> LeaseView:
    return after(requesting(), yes(Operation.REQUEST, "r1"))[0]


def moving() -> LeaseView:
    offered = OfferMove(fresh_id="m1", destination="h-b")
    return after(running(), offered, yes(Operation.OFFER, "m1"))[0]


def switching() -> LeaseView:
    return after(moving(), HandOver())[0]


def prepared() -> LeaseView:
    asked = PrepareMove(fresh_id="p1", move_id="m1")
    return after(LeaseView(), asked, yes(Operation.PREPARE, "p1"))[0]


class TestLease:
    def test_starts_under_a_watchdog(self) -> None:
        """The watchdog is armed before the VM starts (N87)."""
        view, actions = after(requesting(), yes(Operation.REQUEST, "r1"))
        assert actions == (ArmWatchdog(at_ms=T0 + LEASE + SKEW // 2), VmAction.START)
        assert (view.phase, view.run_until_ms, view.grant_epoch) == (Phase.RUNNING, T0 + LEASE, 6)

    def test_counts_from_the_first_send(self) -> None:
        """A retry does not restart the timer (N85)."""
        view, actions = step(requesting(), Resend(), T0 + 2_000)
        assert actions == (Send(operation=Operation.REQUEST, request_id="r1"),)
        view, _ = step(view, yes(Operation.REQUEST, "r1"), T0 + 2_900)
        assert view.run_until_ms == T0 + LEASE

    @pytest.mark.parametrize("delay", [LEASE, LEASE + 1, 10 * LEASE])
    def test_late_grant_is_dropped(self, delay) -> None:
        """An answer delayed for longer than the lease opens nothing (N50)."""
        assert step(requesting(), yes(Operation.REQUEST, "r1"), T0 + delay) == (LeaseView(), ())

    @pytest.mark.parametrize(
        "reply",
        [
            yes(Operation.REQUEST, "other"),
            yes(Operation.RENEW, "r1"),
            yes(Operation.PREPARE, "r1"),
            yes(Operation.SWITCH, "r1"),
        ],
    )
    def test_answers_to_something_else(self, reply) -> None:
        """Only the answer that is waited for, with its request id, counts (N50)."""
        assert step(requesting(), reply, T0) == (requesting(), ())

    def test_answer_after_giving_up(self) -> None:
        """Nobody waits any more: a late yes starts nothing."""
        view, _ = step(requesting(), GiveUp(), T0)
        assert step(view, yes(Operation.REQUEST, "r1"), T0) == (LeaseView(), ())

    def test_duplicate_answer(self) -> None:
        """A second copy of a grant does nothing."""
        assert step(running(), yes(Operation.REQUEST, "r1"), T0 + 1) == (running(), ())

    def test_refused(self) -> None:
        """No is no."""
        assert step(requesting(), no(Operation.REQUEST, "r1"), T0) == (LeaseView(), ())


class TestLoss:
    def test_pause_then_destroy(self) -> None:
        """Paused at the lease's end, destroyed inside the skew margin, then given back (N49)."""
        waiting, _ = step(running(), TICK, T0 + 1_500)
        view, actions = step(waiting, TICK, T0 + LEASE)
        assert view.phase is Phase.PAUSED
        assert actions[0] is VmAction.PAUSE
        view, actions = step(view, Tick(fresh_id="g1"), T0 + LEASE + SKEW // 2)
        assert actions == (
            VmAction.DESTROY,
            Send(operation=Operation.GIVE_BACK, request_id="g1", grant_epoch=6),
        )
        assert view.phase is Phase.GIVING_BACK

    def test_continue_for(self) -> None:
        """A policy may let the VM run on; the fence knows of it."""
        reply = yes(Operation.REQUEST, "r1", continue_for_ms=500)
        view, _ = after(requesting(), reply)
        assert view.run_until_ms == T0 + LEASE + 500
        assert view.destroy_at_ms == T0 + LEASE + 500 + SKEW // 2

    def test_destroy(self) -> None:
        """A policy may want no pause: destroyed and given back when the lease ends, not after it."""
        reply = yes(Operation.REQUEST, "r1", destroys_at_once=True)
        view, actions = after(requesting(), reply)
        assert view.destroy_at_ms == view.run_until_ms == T0 + LEASE
        assert ArmWatchdog(at_ms=T0 + LEASE) in actions
        view, actions = step(view, Tick(fresh_id="g1"), T0 + LEASE)
        assert actions[0] is VmAction.DESTROY
        assert view.phase is Phase.GIVING_BACK

    def test_destroy_is_kept_by_renewals(self) -> None:
        """What was agreed at the start is agreed by each renewal again."""
        view, _ = after(requesting(), yes(Operation.REQUEST, "r1", destroys_at_once=True))
        view, _ = step(view, TICK, T0 + 1_000)
        view, _ = step(view, yes(Operation.RENEW, "tick", destroys_at_once=True), T0 + 1_100)
        assert view.destroy_at_ms == view.run_until_ms == T0 + 1_000 + LEASE
        assert view.destroys_at_once

    def test_destroy_when_revoked(self) -> None:
        """N25: paused by the answer itself, destroyed by the tick that is due at once."""
        view, _ = after(requesting(), yes(Operation.REQUEST, "r1", destroys_at_once=True))
        view, _ = step(view, TICK, T0 + 1_000)
        view, actions = step(view, no(Operation.RENEW, "tick", HOST_REVOKED), T0 + 1_001)
        assert actions == (VmAction.PAUSE,)
        view, actions = step(view, Tick(fresh_id="g1"), T0 + 1_001)
        assert actions[0] is VmAction.DESTROY
        assert view.phase is Phase.GIVING_BACK

    def test_host_was_suspended(self) -> None:
        """CLOCK_BOOTTIME ran on: destroyed at the first tick after resume (N34)."""
        view, actions = step(running(), TICK, T0 + 100 * LEASE)
        assert actions[0] is VmAction.DESTROY
        assert view.phase is Phase.GIVING_BACK

    def test_fenced_renewal(self) -> None:
        """Somebody else has the right: destroyed at once, nothing to give back (N52)."""
        view, _ = step(running(), TICK, T0 + 1_000)
        assert step(view, no(Operation.RENEW, "tick", FENCED), T0 + 1_001) == (
            LeaseView(),
            (VmAction.DESTROY,),
        )

    def test_revoked(self) -> None:
        """Revoked: paused now, not at the lease's end (N25)."""
        view, _ = step(running(), TICK, T0 + 1_000)
        view, actions = step(view, no(Operation.RENEW, "tick", HOST_REVOKED), T0 + 1_001)
        assert (view.phase, actions) == (Phase.PAUSED, (VmAction.PAUSE,))

    def test_refused_renewal_runs_to_the_end(self) -> None:
        """Not attested just now: the lease is honoured, and asked for again."""
        view, _ = step(running(), TICK, T0 + 1_000)
        view, actions = step(view, no(Operation.RENEW, "tick"), T0 + 1_001)
        assert (view.phase, actions) == (Phase.RUNNING, ())
        _, actions = step(view, Tick(fresh_id="t2"), T0 + 1_100)
        assert actions == (Send(operation=Operation.RENEW, request_id="t2", grant_epoch=6),)

    def test_renewed_in_time(self) -> None:
        """The new lease counts from the renewal's own first send."""
        view, _ = step(running(), TICK, T0 + 1_000)
        view, actions = step(view, yes(Operation.RENEW, "tick"), T0 + 1_900)
        assert view.run_until_ms == T0 + 1_000 + LEASE
        assert actions == (ArmWatchdog(at_ms=T0 + 1_000 + LEASE + SKEW // 2),)

    def test_renewed_while_paused(self) -> None:
        """A renewal may come between pause and destruction."""
        view, _ = step(running(), Tick(fresh_id="t1"), T0 + LEASE)
        view, actions = step(view, yes(Operation.RENEW, "t1"), T0 + LEASE + 100)
        assert view.phase is Phase.RUNNING
        assert actions[-1] is VmAction.RESUME

    def test_old_renewal_is_replaced(self) -> None:
        """A renewal without an answer is not retried for ever: a new id buys more time (N85)."""
        view, _ = step(running(), Tick(fresh_id="t1"), T0 + 1_000)
        view, actions = step(view, Tick(fresh_id="t2"), T0 + 2_000)
        assert actions == (Send(operation=Operation.RENEW, request_id="t2", grant_epoch=6),)
        assert step(view, yes(Operation.RENEW, "t1"), T0 + 2_001) == (view, ())

    def test_give_back_is_repeated_until_answered(self) -> None:
        """Neither silence nor an unavailable store ends it; yes and FENCED do."""
        view, _ = step(running(), Stopped(fresh_id="g1"), T0 + 10)
        view, _ = step(view, no(Operation.GIVE_BACK, "g1", "STORE_UNAVAILABLE"), T0 + 20)
        assert view.phase is Phase.GIVING_BACK
        assert step(view, no(Operation.GIVE_BACK, "g1", FENCED), T0)[0] == LeaseView()
        assert step(view, yes(Operation.GIVE_BACK, "g1"), T0)[0] == LeaseView()


class TestSource:
    def test_pauses_before_it_sends(self) -> None:
        """The switch leaves after the VM was paused (6.5)."""
        _, actions = after(moving(), HandOver())
        assert actions[0] is VmAction.PAUSE
        assert isinstance(actions[1], Send)
        assert (actions[1].operation, actions[1].request_id) == (Operation.SWITCH, "m1")

    def test_stays_paused_without_an_answer(self) -> None:
        """Ticks and retries resume nothing (N88)."""
        view = switching()
        for now in range(T0, T0 + LEASE, 100):
            view, actions = step(view, Tick(fresh_id=f"t{now}"), now)
            assert VmAction.RESUME not in actions
            view, actions = step(view, Resend(), now)
            assert VmAction.RESUME not in actions
            assert view.phase is Phase.SWITCHING

    def test_a_refusal_is_no_outcome(self) -> None:
        """A refused switch is followed by an abort, and only its record resumes (N88)."""
        view, actions = after(switching(), no(Operation.SWITCH, "m1", "MOVE_REFUSED"))
        assert view.phase is Phase.SWITCHING
        assert [a.operation for a in actions if isinstance(a, Send)] == [Operation.ABORT]
        view, actions = after(view, yes(Operation.ABORT, "m1"))
        assert (view.phase, actions) == (Phase.RUNNING, (VmAction.RESUME,))

    def test_destination_revoked_is_not_ours(self) -> None:
        """HOST_REVOKED in a switch speaks of the destination."""
        view, actions = after(switching(), no(Operation.SWITCH, "m1", HOST_REVOKED))
        assert VmAction.DESTROY not in actions
        assert view.phase is Phase.SWITCHING

    def test_refused_abort_reads_the_switch(self) -> None:
        """The abort came too late: ask the switch for its recorded outcome, then let go."""
        view, _ = after(switching(), AbortMove())
        view, actions = after(view, no(Operation.ABORT, "m1", "MOVE_REFUSED"))
        assert [a.operation for a in actions if isinstance(a, Send)] == [Operation.SWITCH]
        assert after(view, yes(Operation.SWITCH, "m1")) == (LeaseView(), (VmAction.DESTROY,))

    @pytest.mark.parametrize(
        "reply", [yes(Operation.SWITCH, "m1"), no(Operation.SWITCH, "m1", FENCED)]
    )
    def test_lets_go(self, reply) -> None:
        """Switched, or fenced: the source destroys what it has (N52)."""
        assert after(switching(), reply) == (LeaseView(), (VmAction.DESTROY,))

    def test_aborted_after_the_lease(self) -> None:
        """An abort read too late does not resume past the lease (S8)."""
        view, _ = after(switching(), AbortMove())
        view, actions = step(view, yes(Operation.ABORT, "m1"), T0 + LEASE)
        assert (view.phase, actions) == (Phase.PAUSED, ())

    def test_no_hand_over_without_an_offer(self) -> None:
        """A move has a name or does not exist."""
        assert step(running(), HandOver(), T0) == (running(), ())

    def test_renewed_while_switching(self) -> None:
        """A renewal prolongs the lease and leaves the VM paused (N88)."""
        view, _ = step(switching(), Tick(fresh_id="t1"), T0 + 1_000)
        view, actions = step(view, yes(Operation.RENEW, "t1"), T0 + 1_100)
        assert (view.phase, view.run_until_ms) == (Phase.SWITCHING, T0 + 1_000 + LEASE)
        assert view.errand == switching().errand
        assert VmAction.RESUME not in actions

    def test_fenced_renewal_while_switching(self) -> None:
        """FENCED is an outcome: the right is gone."""
        view, _ = step(switching(), Tick(fresh_id="t1"), T0 + 1_000)
        view, actions = step(view, no(Operation.RENEW, "t1", FENCED), T0 + 1_100)
        assert (view, actions) == (LeaseView(), (VmAction.DESTROY,))

    def test_fenced_abort(self) -> None:
        """An abort of somebody who owns nothing any more: destroyed."""
        view, _ = after(switching(), AbortMove())
        view, actions = after(view, no(Operation.ABORT, "m1", FENCED))
        assert (view, actions) == (LeaseView(), (VmAction.DESTROY,))

    def test_abort_while_running(self) -> None:
        """Aborted before the pause: the VM runs on and may be offered again."""
        view, actions = after(moving(), AbortMove(), yes(Operation.ABORT, "m1"))
        assert (view.phase, view.move_id, actions) == (Phase.RUNNING, None, ())

    def test_one_offer_at_a_time(self) -> None:
        """A second offer waits for the end of the first."""
        second = OfferMove(fresh_id="m2", destination="h-c")
        assert step(moving(), second, T0) == (moving(), ())

    def test_refused_offer(self) -> None:
        """No offer, no move."""
        view, _ = after(running(), OfferMove(fresh_id="m1", destination="h-b"))
        view, _ = after(view, no(Operation.OFFER, "m1", "MOVE_REFUSED"))
        assert view.move_id is None

    def test_offer_is_resent_whole(self) -> None:
        """A retry of an offer still names its destination."""
        view, first = after(running(), OfferMove(fresh_id="m1", destination="h-b"))
        assert step(view, Resend(), T0 + 10)[1] == first


class TestDestination:
    def test_waits_for_the_right_to_run(self) -> None:
        """Prepared is not running; only a renewal under the next epoch resumes (I-C)."""
        view = prepared()
        assert view.phase is Phase.PREPARED
        view, actions = after(view, Claim(fresh_id="c1"))
        assert actions == (
            Send(operation=Operation.RENEW, request_id="c1", grant_epoch=7, move_id="m1"),
        )
        view, actions = after(view, no(Operation.RENEW, "c1", FENCED))
        assert (view.phase, actions) == (Phase.PREPARED, ())
        view, _ = after(view, Claim(fresh_id="c2"))
        view, actions = after(view, yes(Operation.RENEW, "c2", grant_epoch=7))
        assert (view.phase, actions[-1]) == (Phase.RUNNING, VmAction.RESUME)
        assert view.grant_epoch == 7

    def test_late_preparation_is_dropped(self) -> None:
        """An answer older than the preparation itself is not opened (N50)."""
        view, _ = after(LeaseView(), PrepareMove(fresh_id="p1", move_id="m1"))
        assert step(view, yes(Operation.PREPARE, "p1"), T0 + LEASE) == (LeaseView(), ())

    def test_refused_preparation(self) -> None:
        """No is no."""
        view, _ = after(LeaseView(), PrepareMove(fresh_id="p1", move_id="m1"))
        assert after(view, no(Operation.PREPARE, "p1")) == (LeaseView(), ())

    def test_incoming_vm_died(self) -> None:
        """QEMU ended while it waited: nothing is held, nothing to give back."""
        assert step(prepared(), Stopped(fresh_id="g"), T0) == (LeaseView(), (VmAction.DESTROY,))

    def test_late_claim_is_dropped(self) -> None:
        """A yes that is older than its own lease does not resume (N50)."""
        view, _ = after(prepared(), Claim(fresh_id="c1"))
        view, actions = step(view, yes(Operation.RENEW, "c1", grant_epoch=7), T0 + LEASE)
        assert (view.phase, actions) == (Phase.PREPARED, ())

    def test_restarted(self) -> None:
        """A prepared host whose agent died goes on waiting, under its watchdog (N87)."""
        view, actions = restarted(prepared(), T0 + 10)
        assert (view, actions) == (prepared(), (ArmWatchdog(at_ms=view.destroy_at_ms),))

    def test_gives_up_in_the_end(self) -> None:
        """A move that never comes leaves no key behind."""
        view, actions = step(prepared(), TICK, T0 + 2 * LEASE)
        assert (view, actions) == (LeaseView(), (VmAction.DESTROY,))


class TestRestart:
    def test_running_within_the_lease(self) -> None:
        """The lease goes on as stored; the watchdog is armed again."""
        view, actions = restarted(running(), T0 + 100)
        assert view == running()
        assert actions == (ArmWatchdog(at_ms=view.destroy_at_ms), VmAction.RESUME)

    def test_running_past_the_lease(self) -> None:
        """Paused before anything else."""
        view, actions = restarted(running(), T0 + LEASE)
        assert view.phase is Phase.PAUSED
        assert actions[-1] is VmAction.PAUSE

    def test_paused_stays_paused(self) -> None:
        """A lost lease is not found again by a restart."""
        paused = replace(running(), phase=Phase.PAUSED)
        view, actions = restarted(paused, T0 + LEASE)
        assert view.phase is Phase.PAUSED
        assert actions[-1] is VmAction.PAUSE

    def test_switching_stays_switching(self) -> None:
        """The outcome is read under the same id (N88)."""
        view, actions = restarted(switching(), T0 + 100)
        assert view == switching()
        assert VmAction.PAUSE in actions
        assert VmAction.RESUME not in actions
        assert actions[-1].request_id == "m1"

    @pytest.mark.parametrize(
        "view", [LeaseView(), requesting(), after(running(), Stopped(fresh_id="g"))[0]]
    )
    def test_nothing_held(self, view) -> None:
        """Whatever QEMU is left without a right is destroyed first (N87)."""
        assert restarted(view, T0)[1][0] is VmAction.DESTROY


events = st.sampled_from(
    [
        Start(fresh_id="r1"),
        Resend(),
        GiveUp(),
        Stopped(fresh_id="g1"),
        OfferMove(fresh_id="m1", destination="h-b"),
        PrepareMove(fresh_id="p1", move_id="m9"),
        HandOver(),
        AbortMove(),
        Claim(fresh_id="c1"),
        TICK,
        *(yes(o, i) for o in Operation for i in ("r1", "g1", "m1", "p1", "c1", "tick")),
        *(no(o, i, FENCED) for o in Operation for i in ("r1", "g1", "m1", "p1", "c1", "tick")),
        *(no(o, i, "X") for o in Operation for i in ("r1", "m1", "p1", "tick")),
    ]
)


class TestAlways:
    @given(st.lists(st.tuples(events, st.integers(0, 2_000)), max_size=40))
    def test_runs_only_under_a_lease(self, script) -> None:
        """In any order of events: no VM past its lease (S8), and none without a watchdog (N87)."""
        view, now, armed = LeaseView(), T0, False
        for event, passed in script:
            now += passed
            view, actions = step(view, TICK, now)
            armed = armed or any(isinstance(action, ArmWatchdog) for action in actions)
            view, actions = step(view, event, now)
            for action in actions:
                armed = armed or isinstance(action, ArmWatchdog)
                if action in {VmAction.START, VmAction.RESUME}:
                    assert armed
                    assert view.phase is Phase.RUNNING
                    assert now < view.run_until_ms
            assert view.phase is not Phase.RUNNING or now < view.run_until_ms
