"""Offer, prepare, switch, abort: no step without the one before, none after the outcome (6.5)."""

from dataclasses import replace

import pytest
from support.placement_rows import (
    FENCE,
    NOW,
    OTHER_BOOT,
    VM,
    A,
    B,
    accepted,
    ask,
    confirmation,
    handover,
    host,
    offer,
    owned,
    preparation,
    reason,
    refused,
    renewal,
    request_id,
    return_of,
)

from trustauthority.model.identifiers import HostId
from trustauthority.model.placement import MovePhase, Purpose
from trustauthority.model.requests import AbortRequest
from trustauthority.placement import authority

C = HostId("h-c")


def as_host(rows, host_id, **changes):
    """The same rows, asked by another host; the grant row is found by its request id."""
    return replace(rows, host=host(host_id, **changes), grant=None)


def offered():
    return accepted(authority.offer(owned(), offer(6), NOW + 1))


def prepared():
    return accepted(authority.prepare(as_host(offered(), B), preparation(), NOW + 2))


def abort(host_id=A, move="m1"):
    return AbortRequest(move_id=request_id(move), vm_id=VM, host_id=host_id)


class TestOffer:
    def test_stands(self) -> None:
        """The owner's offer names one destination, for a short time."""
        after = offered()
        assert after.move is not None
        assert (after.move.source, after.move.destination) == (A, B)
        assert after.move.phase is MovePhase.OFFERED
        assert after.move.expires_ms == NOW + 1 + after.cluster.offer_ms

    @pytest.mark.parametrize(
        ("rows", "request_", "told"),
        [
            (owned(), offer(5), "FENCED"),
            (replace(owned(), vm=replace(owned().vm, owner=B)), offer(6), "FENCED"),
            (replace(owned(), host=host(boot=OTHER_BOOT)), offer(6), "FENCED"),
            (replace(owned(), host=host(revoked=True)), offer(6), "HOST_REVOKED"),
            (replace(owned(), host=host(admitted=False)), offer(6), "HOST_NOT_ADMITTED"),
            (owned(), offer(6, destination=A), "MOVE_REFUSED"),
        ],
        ids=["old epoch", "not the owner", "another boot", "revoked", "not admitted", "to itself"],
    )
    def test_refused(self, rows, request_, told) -> None:
        """Only the present owner offers, and not to itself (N52)."""
        assert reason(authority.offer(rows, request_, NOW)) == told

    def test_one_at_a_time(self) -> None:
        """One offer per VM, until it expires (6.5)."""
        busy = replace(offered(), move=None)
        second = offer(6, "m2", C)
        assert refused(busy, authority.offer(busy, second, NOW + 2)) == ["no-other-move"]
        later = NOW + 1 + busy.cluster.offer_ms
        assert accepted(authority.offer(busy, second, later)).vm.move_id == request_id("m2")

    def test_failed_host_may_send_its_vms_away(self) -> None:
        """A host whose re-attestation failed may be emptied; the destination must be good."""
        accepted(authority.offer(replace(owned(), host=host(attested_until_ms=0)), offer(6), NOW))


class TestPrepare:
    def test_authorises_without_ownership(self) -> None:
        """Prepared is not running: the owner and its epoch stay (I-C)."""
        after = prepared()
        assert (after.vm.owner, after.vm.grant_epoch) == (A, 6)
        assert (after.grant.purpose, after.grant.host_id) == (Purpose.PREPARE, B)
        released = accepted(authority.confirm(after, confirmation(B, "p1"), NOW + 3))
        assert released.grant.response_hash is not None

    def test_without_an_offer(self) -> None:
        """No offer, no key (N74)."""
        rows = as_host(owned(), B)
        names = refused(rows, authority.prepare(rows, preparation(), NOW + 2))
        assert {"move-of-vm", "offered-to-host", "move-current"} <= set(names)

    def test_by_another_destination(self) -> None:
        """An offer to B is nothing to C (N74)."""
        rows = as_host(offered(), C)
        assert refused(rows, authority.prepare(rows, preparation(C), NOW + 2)) == [
            "offered-to-host"
        ]

    def test_after_the_offer_expired(self) -> None:
        """The offer's time is short (N74)."""
        rows = as_host(offered(), B)
        late = NOW + 1 + rows.cluster.offer_ms
        assert refused(rows, authority.prepare(rows, preparation(), late)) == ["move-in-time"]

    def test_twice(self) -> None:
        """A second preparation under another request id is denied (N74)."""
        rows = as_host(prepared(), B)
        again = authority.prepare(rows, preparation(text="p2"), NOW + 3)
        assert refused(rows, again) == ["offered-to-host"]

    def test_replay(self) -> None:
        """The same request id answers the same grant."""
        rows = prepared()
        after = accepted(authority.prepare(rows, preparation(), NOW + 3))
        assert after.move == rows.move

    @pytest.mark.parametrize(
        "changes", [{"revoked": True}, {"attested_until_ms": 0}, {"admitted": False}]
    )
    def test_destination_without_standing(self, changes) -> None:
        """A destination gets the key only as it would get any other (I-A)."""
        rows = as_host(offered(), B, **changes)
        assert reason(authority.prepare(rows, preparation(), NOW + 2)).startswith("HOST_")

    def test_after_the_owner_gave_back(self) -> None:
        """An offer dies with the ownership it rests on."""
        back = accepted(authority.give_back(offered(), return_of(6), NOW + 2))
        rows = as_host(back, B)
        assert "move-current" in refused(rows, authority.prepare(rows, preparation(), NOW + 3))

    def test_release_after_an_abort(self) -> None:
        """What the source took back meanwhile is not released (N90)."""
        rows = accepted(authority.abort(prepared(), abort(), NOW + 3))
        done = authority.confirm(rows, confirmation(B, "p1"), NOW + 4)
        assert refused(rows, done) == ["grant-still-held"]


class TestSwitch:
    def test_is_the_one_moment(self) -> None:
        """Owner and epoch change together (I-C, S3)."""
        after = accepted(authority.switch(prepared(), handover(), NOW + 3))
        assert (after.vm.owner, after.vm.grant_epoch, after.vm.last_owner) == (B, 7, B)
        assert after.vm.fence_until_ms == NOW + 3 + FENCE
        assert after.move.phase is MovePhase.SWITCHED
        renewed = accepted(authority.renew(as_host(after, B), renewal(7, B), NOW + 4))
        assert renewed.vm.owner == B
        assert reason(authority.renew(as_host(after, A), renewal(6), NOW + 4)) == "FENCED"

    def test_lost_answer_is_read_again(self) -> None:
        """The same move id tells the recorded outcome, for ever (N88)."""
        after = accepted(authority.switch(prepared(), handover(), NOW + 3))
        again = accepted(authority.switch(after, handover(), NOW + 10**9))
        assert again.vm == after.vm

    def test_not_prepared(self) -> None:
        """The destination must be ready to receive the right."""
        rows = as_host(offered(), B)
        assert refused(rows, authority.switch(rows, handover(), NOW + 2)) == [
            "destination-prepared"
        ]

    def test_preparation_expired(self) -> None:
        """A destination that stopped waiting gets nothing."""
        rows = replace(prepared(), host=host(B, attested_until_ms=NOW + 10**9))
        late = rows.move.expires_ms
        names = refused(rows, authority.switch(rows, handover(), late))
        assert names == ["move-in-time"]

    def test_destination_was_reset(self) -> None:
        """The copy was in the RAM of another boot."""
        rows = replace(prepared(), host=host(B, boot=OTHER_BOOT))
        assert refused(rows, authority.switch(rows, handover(), NOW + 3)) == [
            "destination-prepared"
        ]

    def test_destination_was_revoked(self) -> None:
        """No revoked host gains the right to run (S7)."""
        rows = replace(prepared(), host=host(B, revoked=True))
        assert reason(authority.switch(rows, handover(), NOW + 3)) == "HOST_REVOKED"

    def test_by_the_destination(self) -> None:
        """Only the source lets go."""
        assert reason(authority.switch(prepared(), handover(B), NOW + 3)) == "FENCED"

    def test_late_after_takeover(self) -> None:
        """A switch that was under way while the VM changed hands finds another epoch (N52)."""
        before = prepared()
        again = accepted(authority.grant(as_host(before, A), ask(A, "r9"), NOW + 3))
        rows = as_host(again, B)
        names = refused(rows, authority.switch(rows, handover(), NOW + 4))
        assert "move-current" in names

    def test_late_after_a_new_offer(self) -> None:
        """A switch names its move: an old one can't complete a new one (found by the checker)."""
        aborted = accepted(authority.abort(prepared(), abort(), NOW + 3))
        second = accepted(
            authority.offer(as_host(replace(aborted, move=None), A), offer(6, "m2"), NOW + 4)
        )
        stale = replace(as_host(second, B), move=aborted.move)
        assert "destination-prepared" in refused(
            stale, authority.switch(stale, handover(), NOW + 5)
        )


class TestAbort:
    @pytest.mark.parametrize("host_id", [A, B])
    def test_is_final(self, host_id) -> None:
        """After an abort no late switch or preparation succeeds (N88)."""
        rows = accepted(authority.abort(prepared(), abort(host_id), NOW + 3))
        assert rows.vm.move_id is None
        assert rows.vm.owner == A
        done = authority.switch(as_host(rows, B), handover(), NOW + 4)
        assert "destination-prepared" in [rule.name for rule in done[1].failed]

    def test_of_nothing_uses_the_id_up(self) -> None:
        """An offer that arrives after its abort finds its id taken (found by the checker)."""
        rows = accepted(authority.abort(owned(), abort(), NOW + 1))
        assert rows.move.phase is MovePhase.ABORTED
        assert reason(authority.offer(rows, offer(6), NOW + 2)) == "MOVE_REFUSED"

    def test_of_nothing_by_another(self) -> None:
        """Nobody but the owner uses up ids."""
        rows = as_host(owned(), C)
        assert reason(authority.abort(rows, abort(C), NOW)) == "FENCED"

    def test_after_the_switch(self) -> None:
        """SWITCHED stays SWITCHED."""
        rows = accepted(authority.switch(prepared(), handover(), NOW + 3))
        assert reason(authority.abort(rows, abort(), NOW + 4)) == "MOVE_REFUSED"

    def test_by_a_stranger(self) -> None:
        """A host that takes no part can't stop a move."""
        assert reason(authority.abort(prepared(), abort(C), NOW + 3)) == "MOVE_REFUSED"

    def test_keeps_a_newer_move(self) -> None:
        """A late abort of an old move leaves the new one alone."""
        rows = prepared()
        newer = replace(rows, vm=replace(rows.vm, move_id=request_id("m2")))
        after = accepted(authority.abort(newer, abort(), NOW + 3))
        assert after.vm.move_id == request_id("m2")

    def test_again(self) -> None:
        """A retry reads the recorded outcome."""
        rows = accepted(authority.abort(prepared(), abort(), NOW + 3))
        assert accepted(authority.abort(rows, abort(), NOW + 4)).vm == rows.vm
