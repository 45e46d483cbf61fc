"""hostagent.vm_keeper: leases on an injected clock, with a caller and an enforcement in memory."""

import asyncio
import stat

import pytest
from support.agent_host import RecordingEnforcement

from hostagent.failure import CallFailed, Failure, FailureKind
from hostagent.files import BrokenState
from hostagent.lease_model import Operation, Phase, Reply, Start, Stopped, VmAction
from hostagent.lease_store import LeaseStore
from hostagent.machine import Pace
from hostagent.vm_calls import Answered
from hostagent.vm_keeper import VmKeeper

LEASE = 300_000
REQUEST = "request-id-of-the-test"


class Keeping:
    """A keeper whose clock, authority and VMs a test controls."""

    def __init__(self, folder, boot_id="boot-1"):
        self.now = 5_000
        self.sent = []
        self.answer = self.grant
        self.enforcement = RecordingEnforcement()
        self.failures = []
        self.store = LeaseStore(folder, boot_id)
        self.keeper = VmKeeper(
            self.store,
            self._call,
            self.enforcement,
            lambda: self.now,
            pace=Pace(backoff_first_ms=1, backoff_cap_ms=2, backoff_floor_ms=1),
            on_failure=self.failures.append,
        )
        self.keeper.allow(True)

    async def _call(self, vm_id, asked):
        self.sent.append((vm_id, asked))
        return self.answer(asked)

    def grant(self, asked, **terms):
        shape = {"lease_ms": LEASE, "continue_for_ms": 0, "skew_ms": 60_000, **terms}
        reply = Reply(
            operation=asked.operation,
            request_id=asked.request_id,
            accepted=True,
            grant_epoch=5,
            **shape,
        )
        return Answered(reply=reply, key_grant=b"grant")

    def one_after_the_other(self, answers):
        left = iter(answers)

        def answer(asked):
            return next(left)(asked)

        return answer

    def silent(self, _asked):
        raise CallFailed(Failure(kind=FailureKind.NO_ANSWER, reason="UNAVAILABLE"))

    async def settle(self):
        """Let everything run that needs no clock."""
        for _ in range(40):
            await asyncio.sleep(0)

    async def start(self):
        self.keeper.receive_first("vm-1", Start(fresh_id=REQUEST), REQUEST)
        await self.settle()
        assert self.view.phase is Phase.RUNNING

    async def at(self, now_ms):
        self.now = now_ms
        self.keeper.tick()
        await self.settle()

    @property
    def view(self):
        return self.keeper.view("vm-1")


@pytest.fixture
async def keeping(tmp_path):
    tmp_path.chmod(0o700)
    made = Keeping(tmp_path)
    yield made
    await made.keeper.close()


class TestLease:
    async def test_with_the_authority_down_the_vm_is_paused_then_ended(self, keeping, tmp_path):
        """N49: at the end of the lease pause and wipe; before the fence destroy. Nothing earlier."""
        await keeping.start()
        key = tmp_path / "vm-1.key"
        key.write_bytes(b"key")
        keeping.keeper.note_key_file("vm-1", key)
        keeping.answer = keeping.silent
        await keeping.at(5_000 + LEASE - 1)
        assert keeping.enforcement.acts == []
        await keeping.at(5_000 + LEASE)
        assert keeping.enforcement.acts == [(VmAction.PAUSE, "vm-1")]
        assert not key.exists()
        await keeping.at(5_000 + LEASE + 30_000)
        assert keeping.enforcement.acts[1:] == [(VmAction.DESTROY, "vm-1")]
        assert keeping.keeper.take_grant("vm-1") == b""

    async def test_destroy_at_the_end_of_the_lease(self, keeping):
        """on_lease_loss = destroy: nothing is paused to wait for better times."""
        keeping.answer = lambda asked: keeping.grant(asked, destroys_at_once=True)
        await keeping.start()
        keeping.answer = keeping.silent
        await keeping.at(5_000 + LEASE - 1)
        assert keeping.enforcement.acts == []
        await keeping.at(5_000 + LEASE)
        assert keeping.enforcement.acts == [(VmAction.DESTROY, "vm-1")]

    async def test_destroy_when_the_host_is_revoked(self, keeping):
        """N25: the answer that says so destroys; no tick of the agent's loop is waited for."""
        keeping.answer = lambda asked: keeping.grant(asked, destroys_at_once=True)
        await keeping.start()
        keeping.answer = lambda asked: Answered(
            reply=Reply(
                operation=asked.operation,
                request_id=asked.request_id,
                accepted=asked.operation is Operation.GIVE_BACK,
                reason="HOST_REVOKED",
            )
        )
        await keeping.at(5_000 + LEASE // 3)
        assert keeping.enforcement.acts[-1] == (VmAction.DESTROY, "vm-1")
        assert keeping.view.phase is Phase.IDLE

    async def test_a_grant_delayed_beyond_its_lease_is_dropped(self, keeping):
        """N50: a reply that comes after the lease is over starts nothing."""

        def late(asked):
            keeping.now += LEASE + 1
            return keeping.grant(asked)

        keeping.answer = late
        keeping.keeper.receive_first("vm-1", Start(fresh_id=REQUEST), REQUEST)
        await keeping.settle()
        assert keeping.view.phase is Phase.IDLE

    async def test_a_retried_request_counts_from_its_first_send(self, keeping, tmp_path):
        """N85: given up, restarted, asked again under the same id: the first send still counts."""
        keeping.answer = keeping.silent
        keeping.keeper.receive_first("vm-1", Start(fresh_id=REQUEST), REQUEST)
        await keeping.settle()
        await keeping.keeper.close()

        later = Keeping(tmp_path)
        later.now = 5_000 + LEASE // 2
        later.keeper.take_up()
        await later.start()
        assert later.view.run_until_ms == 5_000 + LEASE
        await later.keeper.close()

    async def test_a_key_that_was_lent_to_a_killed_agent_goes_back(self, keeping, tmp_path):
        """No VM runs with it: the next process gives it back instead of renewing it for ever."""
        keeping.keeper.note_lent("vm-1", lent=True)
        await keeping.start()
        await keeping.keeper.close()

        later = Keeping(tmp_path)
        later.keeper.take_up()
        await later.settle()
        assert [asked.operation for _, asked in later.sent] == [Operation.GIVE_BACK]
        assert later.enforcement.acts == [(VmAction.DESTROY, "vm-1")]
        assert later.view.phase is Phase.IDLE
        await later.keeper.close()

    async def test_a_key_that_was_lent_and_put_back_is_forgotten(self, keeping, tmp_path):
        """The VM that is started afterwards is kept by the next process as any other."""
        keeping.keeper.note_lent("vm-1", lent=True)
        keeping.keeper.note_lent("vm-1", lent=False)
        await keeping.start()
        await keeping.keeper.close()

        later = Keeping(tmp_path)
        later.keeper.take_up()
        await later.settle()
        assert later.sent == []
        assert later.view.phase is Phase.RUNNING
        await later.keeper.close()

    async def test_a_request_retried_for_longer_than_the_lease_gets_nothing(self, keeping):
        """N85: the authority's answer is good, and too old before it came."""
        keeping.keeper.receive_first("vm-1", Start(fresh_id=REQUEST), REQUEST)
        await keeping.settle()
        keeping.keeper.receive("vm-1", Stopped(fresh_id="x" * 20))
        await keeping.settle()
        keeping.now = 5_000 + LEASE
        keeping.keeper.receive_first("vm-1", Start(fresh_id=REQUEST), REQUEST)
        await keeping.settle()
        assert keeping.view.phase is Phase.IDLE

    async def test_renewed_at_a_third_counted_from_the_send(self, keeping):
        """Design 6.4: renewed when a third is over; the new lease counts from that send."""
        await keeping.start()
        await keeping.at(5_000 + LEASE // 3 - 1)
        assert len(keeping.sent) == 1
        await keeping.at(5_000 + LEASE // 3)
        assert keeping.sent[-1][1].operation is Operation.RENEW
        assert keeping.view.run_until_ms == 5_000 + LEASE // 3 + LEASE

    async def test_held_back_requests_still_let_time_pass(self, keeping):
        """Doubt: nothing is sent, the lease runs out, the VM is paused; nothing resumes it."""
        await keeping.start()
        keeping.keeper.allow(False)
        await keeping.at(5_000 + LEASE // 3)
        assert len(keeping.sent) == 1
        await keeping.at(5_000 + LEASE)
        assert keeping.enforcement.acts == [(VmAction.PAUSE, "vm-1")]

    async def test_resume_is_not_carried_out_after_the_lease(self, keeping):
        """A VM is never resumed late: the lease is looked at again when it is its turn."""
        await keeping.start()
        keeping.keeper._queue("vm-1", VmAction.RESUME)
        keeping.now = 5_000 + LEASE
        await keeping.settle()
        assert keeping.enforcement.acts == []

    async def test_a_bug_in_the_enforcement_is_not_done(self, keeping):
        """Destroying is repeated although the first attempt crashed; giving back waits for it."""
        await keeping.start()
        act, attempts = keeping.enforcement.act, []

        async def crash_once(action, vm_id, why):
            attempts.append(action)
            if len(attempts) == 1:
                raise ZeroDivisionError
            return await act(action, vm_id, why)

        keeping.enforcement.act = crash_once
        keeping.keeper.receive("vm-1", Stopped(fresh_id="x" * 20))
        await keeping.settle()
        assert len(keeping.sent) == 1
        view = await keeping.keeper.settled("vm-1", lambda v: v.phase is Phase.IDLE, 5)
        assert view.phase is Phase.IDLE
        assert attempts == [VmAction.DESTROY] * 2


class TestStorage:
    async def test_the_view_is_stored_before_anything_is_sent(self, keeping, tmp_path):
        """A crash right after the send finds the first send on disk."""
        seen = []

        def look(asked):
            seen.append(LeaseStore(tmp_path, "boot-1").load()["vm-1"])
            return keeping.grant(asked)

        keeping.answer = look
        keeping.keeper.receive_first("vm-1", Start(fresh_id=REQUEST), REQUEST)
        await keeping.settle()
        assert seen[0].asked == {REQUEST: 5_000}
        assert seen[0].view.phase is Phase.REQUESTING
        assert stat.S_IMODE((tmp_path / "leases.json").stat().st_mode) == 0o600

    async def test_what_can_not_be_stored_is_not_begun(self, keeping, tmp_path):
        """A full disk: no request leaves; but a lease that ends still pauses the VM."""
        await keeping.start()
        (tmp_path / ".leases.json.new").mkdir()  # makes every save fail
        keeping.keeper.receive_first("vm-2", Start(fresh_id="x" * 20), "x" * 20)
        await keeping.settle()
        assert [vm for vm, _ in keeping.sent] == ["vm-1"]
        keeping.answer = keeping.silent
        await keeping.at(5_000 + LEASE)
        assert keeping.enforcement.acts == [(VmAction.PAUSE, "vm-1")]

    async def test_another_boot_starts_empty(self, keeping, tmp_path):
        """CLOCK_BOOTTIME began anew and the VMs are gone."""
        await keeping.start()
        other = Keeping(tmp_path, boot_id="boot-2")
        other.keeper.take_up()
        assert other.keeper.records == {}

    async def test_an_ended_vm_is_not_touched_again(self, keeping, tmp_path):
        """What runs under that name after a confirmed give-back is not ours to destroy."""
        await keeping.start()
        keeping.keeper.receive("vm-1", Stopped(fresh_id="x" * 20))
        await keeping.settle()
        assert keeping.view.phase is Phase.IDLE
        later = Keeping(tmp_path)
        later.keeper.take_up()
        await later.settle()
        assert later.enforcement.acts == []
        await later.keeper.close()

    @pytest.mark.parametrize(
        "content",
        [b"", b"[]", b"{", b'{"boot_id": "boot-1"}', b'{"boot_id":"boot-1","format":1,"vms":[]}'],
    )
    async def test_a_damaged_file_stops_the_agent(self, keeping, tmp_path, content):
        """Leases are not lost silently."""
        path = tmp_path / "leases.json"
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(BrokenState):
            LeaseStore(tmp_path, "boot-1").load()


class TestAnswers:
    async def test_silence_is_reported_and_asked_again(self, keeping):
        """No answer is never a refusal: the same id goes out again."""
        answers = [keeping.silent, keeping.silent, keeping.grant]
        keeping.answer = keeping.one_after_the_other(answers)
        keeping.keeper.receive_first("vm-1", Start(fresh_id=REQUEST), REQUEST)
        view = await keeping.keeper.settled("vm-1", lambda v: v.phase is Phase.RUNNING, 5)
        assert view.phase is Phase.RUNNING
        assert {asked.request_id for _, asked in keeping.sent} == {REQUEST}
        assert [f.reason for f in keeping.failures] == ["UNAVAILABLE"] * 2

    async def test_a_bug_in_a_call_is_no_answer(self, keeping):
        """An unexpected exception ends neither the agent nor the request."""
        answers = [lambda _asked: 1 / 0, keeping.grant]
        keeping.answer = keeping.one_after_the_other(answers)
        keeping.keeper.receive_first("vm-1", Start(fresh_id=REQUEST), REQUEST)
        view = await keeping.keeper.settled("vm-1", lambda v: v.phase is Phase.RUNNING, 5)
        assert view.phase is Phase.RUNNING

    async def test_a_reply_with_another_request_id_changes_nothing(self, keeping):
        """Replies echo the id; one that does not is of another life."""

        def other(asked):
            reply = keeping.grant(asked).reply
            wrong = Reply(
                operation=reply.operation,
                request_id="another-request-id",
                accepted=True,
                grant_epoch=5,
                lease_ms=LEASE,
            )
            return Answered(reply=wrong, key_grant=b"grant")

        keeping.answer = other
        keeping.keeper.receive_first("vm-1", Start(fresh_id=REQUEST), REQUEST)
        await keeping.settle()
        assert keeping.view.phase is Phase.REQUESTING
