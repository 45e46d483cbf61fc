"""The children of the key room: rotation, a warm spare, and every way of failing."""

import asyncio
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.keyroom_orders import (
    AAD,
    open_grant,
    release_order,
    room_settings,
    write_release_key,
)
from support.kms_process import running_kms

from trustauthority.adapters.keyroom import ChildKeyRoom
from trustauthority.adapters.kms.kmip import KmipKms
from trustauthority.adapters.kms.settings import KmipSettings
from trustauthority.errors import KmsUnavailable

PATIENCE_S = 30


@pytest.fixture(scope="module")
def kms(tmp_path_factory):
    with running_kms(tmp_path_factory.mktemp("kms") / "kms") as running:
        write_release_key(running.folder / "release.key")
        yield running


@pytest.fixture(scope="module")
def order(kms):
    provider = KmipKms(kms.settings())
    kek_id = provider.create_kek("kek")
    return release_order(kek_id, provider.wrap(kek_id, bytearray(b"known passphrase"), AAD))


@pytest.fixture
async def make_room(kms):
    rooms = []

    def make(*, command=None, provider=None, **changes):
        settings = room_settings(provider or kms.settings(), kms.folder / "release.key", **changes)
        rooms.append(
            ChildKeyRoom(settings) if command is None else ChildKeyRoom(settings, command=command)
        )
        return rooms[-1]

    yield make
    for room in rooms:
        await room.close()


def pool(room):
    return room._pools["default"]


def pids(room):
    return {child.pid for child in pool(room)._children}


async def until(condition):
    """Wait for something that another process does."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  no event of ours: another process
            await asyncio.sleep(0.02)


async def spare_is_warm(room):
    await until(lambda: pool(room)._spare is None or pool(room)._spare.done())


def is_running(pid):
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class TestRotation:
    async def test_a_child_ends_after_its_batch(self, make_room, order):
        """Plaintext remains of at most a batch of keys are ever in one process (design 8)."""
        room = make_room(batch=2, parallel=1)
        seen = []
        for _ in range(4):
            assert open_grant(await room.release(order)) == b"known passphrase"
            await spare_is_warm(room)
            seen.append(pids(room))
        first = seen[0] - seen[1]
        assert len(first) == 1
        assert not seen[0] & seen[3]
        await until(lambda: not is_running(*first))

    async def test_a_child_ends_with_its_time(self, make_room, order):
        """However few keys it had: remains do not stay for hours in a quiet fleet."""
        room = make_room(lifetime_s=0.5)
        await room.start()
        (first,) = pids(room)
        await room.release(order)
        await until(lambda: first not in pids(room))
        await until(lambda: not is_running(first))
        assert open_grant(await room.release(order)) == b"known passphrase"

    async def test_questions_without_keys_do_not_wear_a_child_out(self, make_room):
        """Health is asked every few seconds and shows no key to the child."""
        room = make_room(batch=1, lifetime_s=0.01)
        await room.start()
        before = pids(room)
        for _ in range(3):
            assert (await room.health("default")).usable
        assert before <= pids(room)

    async def test_a_spare_is_ready_before_it_is_needed(self, make_room, order):
        """A release never waits for Python to start, unless children die faster than they come."""
        room = make_room(batch=1)
        await room.start()
        for _ in range(3):
            await spare_is_warm(room)
            ready = pids(room)
            assert len(ready) >= 1
            await room.release(order)
            assert ready - pids(room)
        assert pool(room)._idle == []

    async def test_many_orders_at_once_share_few_children(self, make_room, order):
        """Concurrency is bounded; every caller gets an answer."""
        room = make_room(parallel=2)
        grants = await asyncio.gather(*(room.release(order) for _ in range(12)))
        assert {open_grant(grant) for grant in grants} == {b"known passphrase"}
        assert len(set(grants)) == 12
        assert len(pids(room)) <= 3


class TestFaults:
    @pytest.mark.parametrize("fault", ["down", "truncated", "wrong-key", "slow:30"])
    async def test_each_fault_of_the_kms_is_told_and_gone_afterwards(
        self, kms, make_room, order, fault
    ):
        """N56: fail closed in time, no cached plaintext, recovery by itself."""
        room = make_room(provider=kms.settings(timeout_s=0.5))
        assert await room.release(order)
        with kms.fault(fault), pytest.raises(KmsUnavailable):
            await room.release(order)
        assert open_grant(await room.release(order)) == b"known passphrase"

    async def test_a_kms_that_is_killed_and_comes_back(self, tmp_path, make_room):
        """N56: a clear error, nothing lost, a retry works (demo, step 6)."""
        with running_kms(tmp_path / "kms") as mortal:
            room = make_room(provider=mortal.settings())
            kek_id = await room.create_kek("default")
            wrapped = (await room.create_key("default", kek_id, AAD)).wrapped
            mortal.kill()
            with pytest.raises(KmsUnavailable, match="is it running"):
                await room.release(release_order(kek_id, wrapped))
            mortal.start()
            assert open_grant(await room.release(release_order(kek_id, wrapped)))

    async def test_a_late_answer_is_nobodys_answer(self, kms, make_room, order):
        """N66, N90: the limit holds, and the child that still waits is killed with its keys."""
        room = make_room(timeout_s=20.0, provider=kms.settings(timeout_s=60.0))
        await room.release(order)
        await spare_is_warm(room)
        object.__setattr__(room._settings, "timeout_s", 0.5)
        before = pids(room)
        with kms.fault("slow:30"):
            with pytest.raises(KmsUnavailable, match=r"within 0\.5 s"):
                await room.release(order)
            (late,) = before - pids(room)
            await until(lambda: not is_running(late))
        object.__setattr__(room._settings, "timeout_s", 20.0)
        assert open_grant(await room.release(order)) == b"known passphrase"

    async def test_a_caller_that_gives_up_takes_the_child_along(self, kms, make_room, order):
        """An RPC whose deadline passed leaves no half-used child: its answer would be the next one's."""
        room = make_room()
        await room.start()
        before, warm = pids(room), pool(room)._spare
        with kms.fault("slow:30"):
            asking = asyncio.create_task(room.release(order))
            await until(lambda: pool(room)._spare is not warm)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        await until(lambda: not any(is_running(pid) for pid in before))
        assert open_grant(await room.release(order)) == b"known passphrase"

    async def test_a_child_killed_in_the_middle_costs_one_answer(self, kms, make_room, order):
        """The out-of-memory killer is a KmsUnavailable, and the next order works."""
        room = make_room()
        await room.start()
        (victim,), warm = pids(room), pool(room)._spare
        with kms.fault("slow:30"):
            asking = asyncio.create_task(room.release(order))
            await until(lambda: pool(room)._spare is not warm)
            os.kill(victim, 9)
            with pytest.raises(KmsUnavailable, match="in the middle"):
                await asking
        assert open_grant(await room.release(order)) == b"known passphrase"

    async def test_a_child_killed_while_idle_costs_nothing(self, make_room, order):
        """Dead children are not handed orders."""
        room = make_room()
        await room.release(order)
        await spare_is_warm(room)
        (idle,) = pool(room)._idle
        os.kill(idle.pid, 9)
        await until(lambda: not idle.alive)
        assert open_grant(await room.release(order)) == b"known passphrase"

    async def test_a_spare_killed_while_it_waits_costs_nothing(self, make_room, order):
        """Nor is an order handed to a dead spare."""
        room = make_room()
        await room.start()
        child = pool(room)._spare.result()
        os.kill(child.pid, 9)
        await until(lambda: not child.alive)
        assert open_grant(await room.release(order)) == b"known passphrase"

    async def test_closing_ends_everything(self, kms, make_room, order):
        """After close no child is left and no order is taken; one in flight fails."""
        room = make_room()
        await room.release(order)
        await spare_is_warm(room)
        with kms.fault("slow:30"):
            asking = asyncio.create_task(room.release(order))
            await until(lambda: not pool(room)._idle)
            children = pids(room)
            await room.close()
            with pytest.raises(KmsUnavailable):
                await asking
        assert not any(is_running(pid) for pid in children)
        with pytest.raises(KmsUnavailable, match="closed"):
            await room.release(order)


def framed(body):
    return len(body).to_bytes(4, "big") + body


READY = framed(b'{"ok":"ready"}')
FRAME = "import sys,time;w=lambda b:(sys.stdout.buffer.write(b),sys.stdout.flush());"
HELLO = "sys.stdin.buffer.read(20);" + f"w({READY!r});"


class TestStrangeChildren:
    """The parent trusts no byte of a child beyond its shape."""

    @pytest.mark.parametrize(
        "program",
        [
            "pass",
            "raise SystemExit(3)",
            FRAME + "w(b'garbage in plain text')",
            FRAME + "w(b'\\xff\\xff\\xff\\xff')",
            FRAME + "w(b'\\0\\0\\0\\0')",
            FRAME + "w(b'\\0\\0\\0\\2[]')",
            FRAME + "w(b'\\0\\0\\0\\2{}')",
        ],
    )
    async def test_one_that_does_not_start_is_told(self, make_room, order, program):
        """A broken installation is KmsUnavailable, at once."""
        room = make_room(command=(sys.executable, "-c", program))
        await room.start()
        with pytest.raises(KmsUnavailable, match="start a child"):
            await room.release(order)

    async def test_a_program_that_is_not_there_is_told(self, make_room, order):
        """No traceback for a missing interpreter either."""
        with pytest.raises(KmsUnavailable, match="start a child"):
            await make_room(command=("/nonexistent/python",)).release(order)

    async def test_one_that_never_gets_ready_costs_the_limit(self, make_room, order):
        """N66: nothing waits longer than it said."""
        room = make_room(
            command=(sys.executable, "-c", "import time;time.sleep(60)"), timeout_s=0.5
        )
        with pytest.raises(KmsUnavailable, match=r"within 0\.5 s"):
            await room.release(order)

    @pytest.mark.parametrize(
        ("answer", "words"),
        [
            (b"", "in the middle"),
            (b"\0\0", "in the middle"),
            (b"\xff\xff\xff\xff", "in the middle"),
            (framed(b"[1]"), "in the middle"),
            (framed(b"no json"), "in the middle"),
            (framed(b"{}"), "no answer"),
            (framed(b'{"ok":1}'), "no answer"),
            (framed(b'{"ok":"xyz"}'), "no answer"),
            (framed(b'{"error":2}'), "no answer"),
            (framed(b'{"error":"because"}'), "because"),
        ],
    )
    async def test_nonsense_is_no_grant(self, make_room, order, answer, words):
        """Only hex in an ok is a grant."""
        wait = "time.sleep(60)" if len(answer) > 4 else ""
        program = FRAME + HELLO + f"w({answer!r});{wait}"
        room = make_room(command=(sys.executable, "-c", program))
        with pytest.raises(KmsUnavailable, match=words):
            await room.release(order)


class TestOrders:
    async def test_a_provider_that_is_down_does_not_stop_the_others(self, kms, make_room, order):
        """One KMS that refuses does not take the room down."""
        dead = KmipSettings(
            host="127.0.0.1",
            port=1,
            ca=kms.folder / "ca.pem",
            certificate=kms.folder / "client.pem",
            key=kms.folder / "client.key",
        )
        room = make_room(providers={"default": kms.settings(), "dead": dead})
        with pytest.raises(KmsUnavailable, match="is it running"):
            await room.create_kek("dead")
        assert open_grant(await room.release(order)) == b"known passphrase"

    async def test_a_slow_provider_holds_up_nobody_else(self, kms, make_room, order):
        """N66: with every slot of one KMS stuck, releases of another go on at their usual pace."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            room = make_room(
                providers={
                    "default": kms.settings(),
                    "stuck": kms.settings(port=port, timeout_s=50.0),
                },
                parallel=2,
            )
            await room.release(order)
            stuck = [asyncio.create_task(room.create_kek("stuck")) for _ in range(6)]
            await until(lambda: len(room._pools["stuck"]._children) == 2)
            async with asyncio.timeout(PATIENCE_S):
                grants = await asyncio.gather(*(room.release(order) for _ in range(6)))
            assert {open_grant(grant) for grant in grants} == {b"known passphrase"}
            assert not any(task.done() for task in stuck)
            await room.close()
            ended = await asyncio.gather(*stuck, return_exceptions=True)
        assert all(isinstance(each, KmsUnavailable) for each in ended)

    async def test_orders_that_wait_for_a_turn_say_so(self, kms, make_room):
        """N66: a queue is no excuse for hanging, and no evidence against the KMS."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            stuck = kms.settings(port=silent.getsockname()[1], timeout_s=50.0)
            room = make_room(providers={"stuck": stuck}, parallel=1, timeout_s=3.0)
            await room.start()
            asked, waiting = await asyncio.gather(
                room.create_kek("stuck"), room.create_kek("stuck"), return_exceptions=True
            )
        assert "did not answer within 3 s" in str(asked)
        assert "too many orders wait for provider 'stuck'" in str(waiting)

    async def test_a_dead_kms_is_left_alone_and_found_again(self, kms, make_room, order):
        """N56: breaker per provider; refusals at once; health asks all the same; recovery by itself."""
        room = make_room(trip_after=2, rest_s=0.5)
        with kms.fault("down"):
            for _ in range(2):
                with pytest.raises(KmsUnavailable, match="closed the connection"):
                    await room.release(order)
            with pytest.raises(KmsUnavailable, match="2 times in a row; it is tried again in 0"):
                await room.release(order)
            assert "closed the connection" in (await room.health("default")).detail
        await asyncio.sleep(0.6)  # the rest that was asked for
        assert open_grant(await room.release(order)) == b"known passphrase"

    async def test_a_kms_that_says_no_is_not_left_alone(self, kms, make_room, order):
        """A bad row of the database must not stop the releases of the good ones."""
        room = make_room(trip_after=1, rest_s=60.0)
        for bad in (b"", b"\x01\x01\x01" + bytes(60), b"\x01\x02\x01" + bytes(60)):
            with pytest.raises(KmsUnavailable):
                await room.release(replace(order, wrapped=bad))
        with pytest.raises(KmsUnavailable, match="item not found"):
            await room.release(replace(order, kek_id="987654"))
        assert open_grant(await room.release(order)) == b"known passphrase"

    async def test_health_finds_out_that_the_kms_is_back(self, kms, make_room, order):
        """Whoever looks at ta status ends the rest, if the KMS answers."""
        room = make_room(trip_after=1, rest_s=600.0)
        with kms.fault("down"), pytest.raises(KmsUnavailable):
            await room.release(order)
        with pytest.raises(KmsUnavailable, match="in a row"):
            await room.release(order)
        assert (await room.health("default")).usable
        assert open_grant(await room.release(order)) == b"known passphrase"

    async def test_an_order_that_is_too_long_is_refused(self, make_room, order):
        """Frames have a limit in both directions."""
        room = make_room()
        with pytest.raises(KmsUnavailable, match="too long"):
            await room.create_key("default", "1", bytes(1 << 17))
        assert await room.release(order)
