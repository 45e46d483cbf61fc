"""``ta vm migrate | reprofile | retire | --watch``, ``ta host drain``, ``ta placement candidates | orders | watch``."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from fakes.fake_authority import FakeAuthority

from trustauthority.cli import orders
from trustauthority.cli.exit import ExitCode
from trustauthority.v1 import admin_pb2 as admin
from trustauthority.v1 import keyprovider_pb2 as keys
from trustauthority.v1 import placement_pb2 as pb

ORDER_ID = "order-0000000001"
DIGEST = "91ab" * 16
STATES = pb.MoveOrderState
PHASES = pb.MovePhase


def order(
    state: str = "ORDERED", phase: str = "UNSPECIFIED", percent: int = 0, **changes: Any
) -> pb.MoveOrder:
    values = {
        "order_id": ORDER_ID,
        "vm_id": "payroll",
        "source_host_id": "h-1",
        "source_host_name": "esx-a01",
        "destination_host_id": "h-2",
        "destination_host_name": "esx-a02",
        "state": STATES.Value(f"MOVE_ORDER_STATE_{state}"),
        "phase": PHASES.Value(f"MOVE_PHASE_{phase}"),
        "percent": percent,
        "created_by": "identity:alice",
    }
    return pb.MoveOrder(**(values | changes))


def event(told: pb.MoveOrder | None = None, number: int = 1) -> pb.WatchPlacementResponse:
    return pb.WatchPlacementResponse(
        cursor=f"e0-{number}",
        operation="" if told is None else "order.progress",
        subject="payroll",
        order=told,
    )


def script(*told: pb.MoveOrder | None) -> list[pb.WatchPlacementResponse]:
    return [event(each, number) for number, each in enumerate(told)]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch) -> None:
    monkeypatch.setattr(orders, "_PAUSE_S", 0.0)


# --- migrate ---------------------------------------------------------------------------------


class TestMigrate:
    def test_shows_each_step_and_the_outcome(self, ta, authority: FakeAuthority) -> None:
        """Phases as they happen, on standard error; the outcome is the answer."""
        authority.answer("OrderMove", pb.OrderMoveResponse(order=order()))
        authority.answer("ListMoveOrders", pb.ListMoveOrdersResponse(orders=[order()]))
        steps = script(
            None,
            order("RUNNING", "OFFER"),
            order("RUNNING", "PREPARE"),
            order("RUNNING", "COPY", 42),
            order("RUNNING", "SWITCH", 100),
            order("DONE", "RESUME", 100),
        )
        authority.answer("WatchPlacement", lambda _request: steps)
        result = ta("vm", "migrate", "payroll", "esx-a02")
        assert result.code is ExitCode.YES
        lines = result.err.splitlines()
        assert lines[0] == "waits for the source's agent"
        assert lines[1] == "offer …  prepare  copy  switch  resume"
        assert lines[3] == "offer ✔  prepare ✔  copy ████████────────────  42 %  switch  resume"
        assert lines[-1] == "offer ✔  prepare ✔  copy ✔  switch ✔  resume ✔"
        assert "VM payroll runs on esx-a02" in result.out

    @pytest.mark.parametrize("state", ["FAILED", "EXPIRED", "CANCELLED"])
    def test_exits_1_when_it_stays(self, ta, authority: FakeAuthority, state: str) -> None:
        """The answer is no: with the reason that the source told."""
        authority.answer("OrderMove", pb.OrderMoveResponse(order=order()))
        ended = order(state, detail="NOT_COPIED: no route")
        authority.answer("WatchPlacement", lambda _request: script(ended))
        result = ta("vm", "migrate", "payroll", "esx-a02")
        assert result.code is ExitCode.NO
        assert f"stays: {state.lower()}" in result.out
        assert "NOT_COPIED: no route" in result.out

    def test_a_lapsed_order_is_noticed_without_an_event(self, ta, authority: FakeAuthority) -> None:
        """No event tells that time passed: a sign of life has the order read again."""
        authority.answer("OrderMove", pb.OrderMoveResponse(order=order()))
        authority.answer("ListMoveOrders", pb.ListMoveOrdersResponse(orders=[order("EXPIRED")]))
        authority.answer("WatchPlacement", lambda _request: script(None))
        assert ta("vm", "migrate", "payroll", "esx-a02").code is ExitCode.NO
        assert authority.request(pb.ListMoveOrdersRequest).order_id == ORDER_ID

    def test_goes_on_from_its_cursor_when_the_stream_breaks(
        self, ta, authority: FakeAuthority
    ) -> None:
        """A restarted authority costs nothing: the next stream begins where the last ended."""
        authority.answer("OrderMove", pb.OrderMoveResponse(order=order()))
        told = iter([script(order("RUNNING", "COPY", 10)), script(order("DONE", "RESUME"))])
        authority.answer("WatchPlacement", lambda _request: next(told))
        assert ta("vm", "migrate", "payroll", "esx-a02").code is ExitCode.YES
        cursors = [r.cursor for r in authority.requests if isinstance(r, pb.WatchPlacementRequest)]
        assert cursors == ["", "e0-0"]

    def test_gives_up_when_it_may_not_watch(self, ta, authority: FakeAuthority) -> None:
        """A refusal is not retried."""
        authority.answer("OrderMove", pb.OrderMoveResponse(order=order()))
        authority.fail(
            "WatchPlacement", code=grpc.StatusCode.PERMISSION_DENIED, reason="ROLE_REQUIRED"
        )
        assert ta("vm", "migrate", "payroll", "esx-a02").code is ExitCode.DENIED

    def test_interrupted_before_it_began(self, ta, authority: FakeAuthority, monkeypatch) -> None:
        """Ctrl-C takes back an order that nobody began."""
        authority.answer("OrderMove", pb.OrderMoveResponse(order=order()))
        authority.answer("CancelMoveOrder", pb.CancelMoveOrderResponse(order=order("CANCELLED")))
        monkeypatch.setattr(orders, "news", interrupted)
        result = ta("vm", "migrate", "payroll", "esx-a02")
        assert result.code is ExitCode.INTERRUPTED
        asked = authority.request(pb.CancelMoveOrderRequest)
        assert (asked.order_id, asked.unless_begun) == (ORDER_ID, True)
        assert "taken back" in result.err

    def test_interrupted_after_it_began(self, ta, authority: FakeAuthority, monkeypatch) -> None:
        """What has begun goes on, and the command says how to follow it."""
        authority.answer("OrderMove", pb.OrderMoveResponse(order=order()))
        authority.fail(
            "CancelMoveOrder",
            code=grpc.StatusCode.FAILED_PRECONDITION,
            reason="FAILED_PRECONDITION",
            message="the order is running",
        )
        monkeypatch.setattr(orders, "news", interrupted)
        result = ta("vm", "migrate", "payroll", "esx-a02")
        assert result.code is ExitCode.INTERRUPTED
        assert "it goes on" in result.err
        assert "ta placement orders --vm payroll" in result.err

    def test_no_wait_and_dry_run(self, ta, authority: FakeAuthority) -> None:
        """Nobody watches; a dry run is checked by the authority and orders nothing."""
        authority.answer("OrderMove", pb.OrderMoveResponse(order=order()))
        assert ta("vm", "migrate", "payroll", "esx-a02", "--no-wait", "-o", "name").out == (
            f"{ORDER_ID}\n"
        )
        result = ta("vm", "migrate", "payroll", "esx-a02", "--dry-run", "--ttl", "1h")
        assert "would move to esx-a02" in result.out
        assert authority.request(pb.OrderMoveRequest) == pb.OrderMoveRequest(
            vm_id="payroll", destination="esx-a02", ttl_ms=3_600_000, dry_run=True
        )
        assert not any(isinstance(r, pb.WatchPlacementRequest) for r in authority.requests)

    def test_on_a_terminal_one_line_is_redrawn(self, ta, authority: FakeAuthority) -> None:
        """A progress bar for people, and what a source says can't move the cursor (N44)."""
        ta.terminal = True
        authority.answer("OrderMove", pb.OrderMoveResponse(order=order()))
        ended = order("FAILED", detail="\x1b[2Jgone\r\n")
        steps = script(order("RUNNING", "COPY", 50), ended)
        authority.answer("WatchPlacement", lambda _request: steps)
        result = ta("vm", "migrate", "payroll", "esx-a02")
        assert result.err.count("\r\x1b[K") == 3
        assert "\x1b[2J" not in result.err + result.out


def interrupted(_ta: Any, _ids: Callable[[], Any]) -> Iterator[list[pb.MoveOrder]]:
    raise KeyboardInterrupt
    yield []


# --- drain -----------------------------------------------------------------------------------


def candidate(name: str, *, allowed: bool = True, owner: bool = False) -> pb.Candidate:
    unmet = (
        [] if allowed else [pb.UnmetCondition(reason="HOST_REVOKED", detail="the host is revoked")]
    )
    return pb.Candidate(
        host_id=f"h-{name}", host_name=name, allowed=allowed, owner=owner, unmet=unmet
    )


def held(*names: str) -> keys.ListVmsResponse:
    return keys.ListVmsResponse(vms=[keys.Vm(vm_id=name, owner_host_id="h-1") for name in names])


class TestDrain:
    @pytest.fixture(autouse=True)
    def _host(self, authority: FakeAuthority) -> None:
        host = admin.Host(host_id="h-1", name="esx-a01", draining=True)
        authority.answer("DrainHost", admin.DrainHostResponse(host=host))
        authority.answer("UndrainHost", admin.UndrainHostResponse(host=host))
        ranked = [candidate("esx-a01", owner=True), candidate("esx-a02"), candidate("esx-a03")]
        authority.answer("ListCandidates", pb.ListCandidatesResponse(candidates=ranked))

    def test_moves_all_a_few_at_a_time(self, ta, authority: FakeAuthority) -> None:
        """Bounded parallelism; each to its best other host; exit 0 when none is left."""
        authority.answer("ListVms", held("vm-1", "vm-2", "vm-3"))
        open_now: set[str] = set()
        most: list[int] = []

        def place(request: pb.OrderMoveRequest) -> pb.OrderMoveResponse:
            open_now.add(request.vm_id)
            most.append(len(open_now))
            made = order(vm_id=request.vm_id, order_id=f"order-of-{request.vm_id}0")
            return pb.OrderMoveResponse(order=made)

        def told(_request: Any) -> list[pb.WatchPlacementResponse]:
            vm = min(open_now)
            open_now.discard(vm)
            return script(order("DONE", "RESUME", vm_id=vm, order_id=f"order-of-{vm}0"))

        authority.answer("OrderMove", place)
        authority.answer("WatchPlacement", told)
        result = ta("host", "drain", "esx-a01", "--why", "board")
        assert result.code is ExitCode.YES, result.err
        assert max(most) == 2
        sent = [r for r in authority.requests if isinstance(r, pb.OrderMoveRequest)]
        assert {r.destination for r in sent} == {"esx-a02"}
        assert "esx-a01: 3 of 3 VMs moved" in result.out
        assert authority.request(admin.DrainHostRequest).why == "board"

    def test_says_what_stays_and_why(self, ta, authority: FakeAuthority) -> None:
        """A VM without another host, one that is refused, one that failed: exit 1."""
        authority.answer("ListVms", held("vm-1", "vm-2"))

        def ranked(request: pb.ListCandidatesRequest) -> pb.ListCandidatesResponse:
            other = candidate("esx-a02", allowed=request.vm_id == "vm-2")
            return pb.ListCandidatesResponse(candidates=[candidate("esx-a01", owner=True), other])

        authority.answer("ListCandidates", ranked)
        authority.answer("OrderMove", pb.OrderMoveResponse(order=order(vm_id="vm-2")))
        failed = order("FAILED", vm_id="vm-2", detail="NOT_COPIED: no route")
        authority.answer("WatchPlacement", lambda _request: script(failed))
        result = ta("host", "drain", "esx-a01", "-o", "json")
        assert result.code is ExitCode.NO
        told = {each["vm"]: (each["result"], each["why"]) for each in json.loads(result.out)}
        assert told == {
            "vm-1": ("stays", "esx-a02: the host is revoked"),
            "vm-2": ("stays", "NOT_COPIED: no route"),
        }

    def test_to_one_host(self, ta, authority: FakeAuthority) -> None:
        """--to is taken as it is; the authority refuses where it does not fit."""
        authority.answer("ListVms", held("vm-1"))
        authority.fail(
            "OrderMove",
            code=grpc.StatusCode.FAILED_PRECONDITION,
            reason="MOVE_REFUSED",
            message="esx-a09: the host is revoked",
        )
        result = ta("host", "drain", "esx-a01", "--to", "esx-a09")
        assert result.code is ExitCode.NO
        assert "esx-a09: the host is revoked" in result.out
        assert not any(isinstance(r, pb.ListCandidatesRequest) for r in authority.requests)

    def test_nothing_to_move(self, ta, authority: FakeAuthority) -> None:
        """An empty host is drained at once."""
        authority.answer("ListVms", held())
        result = ta("host", "drain", "esx-a01")
        assert result.code is ExitCode.YES
        assert "holds no VM" in result.err

    def test_dry_run_orders_nothing(self, ta, authority: FakeAuthority) -> None:
        """Which VM would go where; the host is not drained."""
        authority.answer("ListVms", held("vm-1"))
        result = ta("host", "drain", "esx-a01", "--dry-run")
        assert result.code is ExitCode.YES
        assert "would move" in result.out
        assert "esx-a02" in result.out
        assert authority.request(admin.DrainHostRequest).dry_run
        assert not any(isinstance(r, pb.OrderMoveRequest) for r in authority.requests)

    def test_interrupted_takes_back_what_waits(
        self, ta, authority: FakeAuthority, monkeypatch
    ) -> None:
        """Ctrl-C: nothing new begins, and the summary says so."""
        authority.answer("ListVms", held("vm-1", "vm-2", "vm-3"))
        authority.answer(
            "OrderMove",
            lambda r: pb.OrderMoveResponse(
                order=order(vm_id=r.vm_id, order_id=f"order-of-{r.vm_id}0")
            ),
        )
        authority.answer("CancelMoveOrder", pb.CancelMoveOrderResponse(order=order("CANCELLED")))
        monkeypatch.setattr(orders, "news", interrupted)
        result = ta("host", "drain", "esx-a01")
        assert result.code is ExitCode.INTERRUPTED
        cancelled = [r for r in authority.requests if isinstance(r, pb.CancelMoveOrderRequest)]
        assert [each.unless_begun for each in cancelled] == [True, True]
        assert result.out.count("interrupted") == 3

    @pytest.mark.parametrize("parallel", ["0", "9", "-1"])
    def test_parallel_is_bounded(self, ta, parallel: str) -> None:
        """More than the authority keeps open is a mistake."""
        assert ta("host", "drain", "esx-a01", "--parallel", parallel).code is ExitCode.USAGE

    def test_undrain(self, ta, authority: FakeAuthority) -> None:
        """The host takes VMs again."""
        result = ta("host", "undrain", "esx-a01")
        assert result.code is ExitCode.YES
        assert "takes VMs again" in result.out
        assert authority.request(admin.UndrainHostRequest).host == "esx-a01"


# --- candidates, orders, events --------------------------------------------------------------


class TestPlacement:
    def test_candidates(self, ta, authority: FakeAuthority) -> None:
        """Best first as the authority ranked them, with reasons; exit 1 when only the owner may."""
        ranked = [candidate("esx-a02"), candidate("esx-a01", owner=True)]
        ranked += [candidate("esx-a03", allowed=False)]
        authority.answer("ListCandidates", pb.ListCandidatesResponse(candidates=ranked))
        result = ta("placement", "candidates", "payroll")
        assert result.code is ExitCode.YES
        assert "2 of 3 hosts may run payroll" in result.out
        assert [line.split()[0] for line in result.out.splitlines()[2:]] == [
            "esx-a02",
            "esx-a01",
            "esx-a03",
        ]
        assert "HOST_REVOKED: the host is revoked" in result.out
        authority.answer("ListCandidates", pb.ListCandidatesResponse(candidates=ranked[1:]))
        assert ta("placement", "candidates", "payroll").code is ExitCode.NO

    def test_orders_and_cancel(self, ta, authority: FakeAuthority) -> None:
        """Open ones unless all are asked for; cancelling shows which."""
        listed = pb.ListMoveOrdersResponse(orders=[order("RUNNING", "COPY", 50)])
        authority.answer("ListMoveOrders", listed)
        assert "copy ██████████──────────  50 %" in ta("placement", "orders").out
        assert authority.request(pb.ListMoveOrdersRequest).open_only
        ta("placement", "orders", "--everything", "--host", "esx-a01")
        assert authority.request(pb.ListMoveOrdersRequest) == pb.ListMoveOrdersRequest(
            host="esx-a01"
        )
        authority.answer("CancelMoveOrder", pb.CancelMoveOrderResponse(order=order("CANCELLED")))
        assert "is cancelled" in ta("placement", "cancel", ORDER_ID).out
        before = len(authority.requests)
        assert ta("placement", "cancel", ORDER_ID, "--dry-run").code is ExitCode.YES
        assert len(authority.requests) == before

    def test_cancels_what_runs(self, ta, authority: FakeAuthority) -> None:
        """It waits for the source: exit 0 when the VM stays, 1 when the move was finished all the same."""
        asked = pb.CancelMoveOrderResponse(order=order("CANCELLING", "COPY", 40))
        authority.answer("CancelMoveOrder", asked)
        for state, code in (
            ("CANCELLED", ExitCode.YES),
            ("DONE", ExitCode.NO),
            ("FAILED", ExitCode.NO),
        ):
            ended = order(state, detail="because")
            authority.answer(
                "WatchPlacement", lambda _request, ended=ended: [event(), event(ended)]
            )
            stands = pb.ListMoveOrdersResponse(orders=[order("CANCELLING", "COPY", 50)])
            authority.answer("ListMoveOrders", stands)
            result = ta("placement", "cancel", ORDER_ID)
            assert result.code is code, state
            assert f"is {state.lower()}" in result.out
            assert "because" in result.out
        assert not authority.request(pb.CancelMoveOrderRequest).unless_begun
        result = ta("placement", "cancel", ORDER_ID, "--no-wait")
        assert result.code is ExitCode.YES
        assert "is being cancelled" in result.out

    def test_too_late_to_cancel(self, ta, authority: FakeAuthority) -> None:
        """The refusal says what can be done."""
        code = grpc.StatusCode.FAILED_PRECONDITION
        authority.fail("CancelMoveOrder", code=code, reason="SWITCH_BEGUN", message="has left")
        result = ta("placement", "cancel", ORDER_ID)
        assert result.code is ExitCode.NO
        assert "ta vm migrate" in result.err

    def test_watch(self, ta, authority: FakeAuthority) -> None:
        """One line per event for people; one document per line, with its cursor, for programs."""
        told = [event(), event(order("RUNNING", "COPY", 20), 7)]
        authority.answer("WatchPlacement", lambda _request: told)
        shown = ta("placement", "watch")
        assert len(shown.out.splitlines()) == 1
        assert "order.progress" in shown.out
        lines = ta("placement", "watch", "-o", "json", "--cursor", "e0-3").out.splitlines()
        assert [json.loads(line)["cursor"] for line in lines] == ["e0-1", "e0-7"]
        assert authority.request(pb.WatchPlacementRequest).cursor == "e0-3"


# --- VMs -------------------------------------------------------------------------------------


def vm(**changes: Any) -> keys.Vm:
    return keys.Vm(vm_id="payroll", cluster="prod", **changes)


class TestVmWatch:
    def test_every_change_is_a_document(self, ta, authority: FakeAuthority) -> None:
        """A program reads one JSON document per line."""
        told = [
            keys.WatchVmsResponse(vms=[vm()], complete=True),
            keys.WatchVmsResponse(complete=True),
            keys.WatchVmsResponse(vms=[vm(grant_epoch=2)], complete=True),
        ]
        authority.answer("WatchVms", lambda _request: told)
        authority.answer("ListVms", keys.ListVmsResponse())
        lines = ta("vm", "list", "--watch", "-o", "json").out.splitlines()
        assert [json.loads(line)["grantEpoch"] for line in lines[:2]] == [0, 2]

    def test_a_terminal_is_redrawn_at_the_stores_time(self, ta, authority: FakeAuthority) -> None:
        """Lease left is by the authority's clock, not by this machine's."""
        ta.terminal = True
        running = vm(owner_host_id="h-1", grant_epoch=4)
        running.lease.lease_ms = 300_000
        running.lease_until.FromDatetime(datetime(2026, 11, 20, 14, 5, tzinfo=UTC))
        first = keys.WatchVmsResponse(vms=[running], complete=True)
        first.now.FromDatetime(datetime(2026, 11, 20, 14, 0, tzinfo=UTC))
        second = keys.WatchVmsResponse(complete=True)
        second.now.FromDatetime(datetime(2026, 11, 20, 14, 4, 30, tzinfo=UTC))
        authority.answer("WatchVms", lambda _request: [first, second])
        authority.answer("GetVm", keys.GetVmResponse(vm=running))
        shown = ta("vm", "show", "payroll", "--watch").out
        drawn = shown.split("\x1b[H\x1b[2J")[1:3]
        assert "5m left" in drawn[0]
        assert "30s left" in drawn[1]
        assert list(authority.request(keys.WatchVmsRequest).vm_ids) == ["payroll"]

    def test_states_in_one_word(self) -> None:
        """What a VM may do now, and why, from owner, lease, fence and key."""
        from trustauthority.cli.render import Marked
        from trustauthority.cli.vm_view import state

        now = datetime(2026, 11, 20, 14, 0, tzinfo=UTC)

        def held_until(lease: int, fence: int, **changes: Any) -> keys.Vm:
            made = vm(owner_host_id="h-1", **changes)
            made.lease_until.FromSeconds(int(now.timestamp()) + lease)
            made.fence_until.FromSeconds(int(now.timestamp()) + fence)
            return made

        cases = [
            (vm(retired=True, owner_host_id="h-1"), "✖ retired"),
            (vm(key_state=keys.KEY_STATE_ACTIVE), "free"),
            (vm(key_state=keys.KEY_STATE_SUSPENDED), "! no usable key"),
            (vm(), "! no usable key"),
            (held_until(5, 9), "● runs"),
            (held_until(5, 9, prepared_host_id="h-2"), "● moving"),
            (held_until(-1, 5), "! lease over: fenced"),
            (held_until(-9, -1), "! lease over: free"),
            (vm(owner_host_id="h-1"), "● runs"),
        ]
        for shown, wanted in cases:
            found = state(shown, now)
            assert (found.text if isinstance(found, Marked) else found) == wanted


class TestReprofile:
    def test_the_old_digest_rides_along(self, ta, authority: FakeAuthority) -> None:
        """Both are shown, and the change is of the one that was looked at."""
        authority.answer("GetVm", keys.GetVmResponse(vm=vm(profile_digest=b"o" * 32)))
        authority.answer("ReprofileVm", keys.ReprofileVmResponse(vm=vm()))
        result = ta("vm", "reprofile", "payroll", "--profile-sha256", DIGEST, "--yes")
        assert result.code is ExitCode.YES
        assert (b"o" * 32).hex() in result.err
        assert DIGEST in result.err
        assert authority.request(keys.ReprofileVmRequest) == keys.ReprofileVmRequest(
            vm_id="payroll", profile_digest=bytes.fromhex(DIGEST), replaces=b"o" * 32
        )

    def test_asks_first(self, ta, authority: FakeAuthority) -> None:
        """It widens what may read the disk: not without a yes."""
        authority.answer("GetVm", keys.GetVmResponse(vm=vm()))
        result = ta("vm", "reprofile", "payroll", "--profile-sha256", DIGEST)
        assert result.code is ExitCode.USAGE
        assert not any(isinstance(r, keys.ReprofileVmRequest) for r in authority.requests)

    @pytest.mark.parametrize(
        "words",
        [(), ("--profile-sha256", DIGEST, "--definition", "x.xml"), ("--profile-sha256", "91ab")],
    )
    def test_one_way_to_say_it(self, ta, words: tuple[str, ...]) -> None:
        """Exactly one of both, and a digest is 64 hex digits."""
        assert ta("vm", "reprofile", "payroll", *words, "--yes").code is ExitCode.USAGE

    @pytest.mark.parametrize(
        ("says", "status", "code"),
        [
            (f'{{"vm": "payroll", "profile_sha256": "{DIGEST}"}}', 0, ExitCode.YES),
            (f'{{"vm": "", "profile_sha256": "{DIGEST}"}}', 0, ExitCode.YES),
            (f'{{"vm": "other", "profile_sha256": "{DIGEST}"}}', 0, ExitCode.USAGE),
            ('{"vm": "payroll", "profile_sha256": "91ab"}', 0, ExitCode.NO),
            ("[]", 0, ExitCode.NO),
            ("nonsense", 0, ExitCode.NO),
            ("", 2, ExitCode.USAGE),
            ("", 5, ExitCode.NO),
        ],
    )
    def test_by_definition(
        self, ta, authority: FakeAuthority, tmp_path: Path, monkeypatch, says, status, code
    ) -> None:
        """hostagent reads the definition; what it prints is not believed beyond a digest."""
        program = tmp_path / "hostagent"
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{says}\nEND\nexit {status}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        authority.answer("GetVm", keys.GetVmResponse(vm=vm()))
        authority.answer("ReprofileVm", keys.ReprofileVmResponse(vm=vm()))
        result = ta("vm", "reprofile", "payroll", "--definition", "payroll.xml", "--yes")
        assert result.code is code, result.err

    def test_no_hostagent_here(self, ta, tmp_path: Path, monkeypatch) -> None:
        """Said in words, not as a traceback."""
        monkeypatch.setenv("PATH", str(tmp_path))
        result = ta("vm", "reprofile", "payroll", "--definition", "payroll.xml", "--yes")
        assert result.code is ExitCode.NO
        assert "run this on the VM's host" in result.err


class TestRetire:
    def test_asks_and_sends(self, ta, authority: FakeAuthority) -> None:
        """It is for good, so a yes is needed; what was typed is sent."""
        authority.answer("RetireVm", keys.RetireVmResponse(vm=vm(retired=True)))
        assert ta("vm", "retire", "payroll").code is ExitCode.USAGE
        result = ta("vm", "retire", "payroll", "--even-if-held", "--why", "old", "--yes")
        assert result.code is ExitCode.YES
        assert "✖ retired" in result.out
        assert authority.request(keys.RetireVmRequest) == keys.RetireVmRequest(
            vm_id="payroll", even_if_held=True, why="old"
        )
