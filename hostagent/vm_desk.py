"""What people and hooks on this host ask about a VM: its key, giving it back, moving it.

Stage: between control socket (or command line) and ``vm_keeper``. Trusts nothing in a request.
Guarantees that a key is opened only under a lease that runs, that its file is known to whoever wipes
it before it exists, that an answer never holds a key, and that a repeated request id asks for the
same grant again without counting anew. Does not keep leases: it feeds those who do.
"""

import base64
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hostagent.channel import new_request_id
from hostagent.control import Json, refusal
from hostagent.failure import CallFailed, Failure, FailureKind
from hostagent.files import write_private
from hostagent.lease_model import (
    AbortMove,
    Claim,
    GiveUp,
    HandOver,
    LeaseView,
    OfferMove,
    Operation,
    Phase,
    PrepareMove,
    Send,
    Start,
    Stopped,
)
from hostagent.vm_calls import UNLIMITED_MS
from hostagent.vm_keeper import VmKeeper
from hostagent.vm_keys import Expect, HandOut, KeyOpener, claimed_request

VM_ID = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{16,64}")
_WAITS = frozenset({Phase.REQUESTING, Phase.PREPARING})
_HOLDS = frozenset({Phase.RUNNING, Phase.PREPARED})


@dataclass(frozen=True, slots=True, kw_only=True)
class VmDesk:
    """Answers requests of this host."""

    keeper: VmKeeper
    opener: Callable[[], KeyOpener]
    """Raises CallFailed while the host is not enrolled."""
    clock_ms: Callable[[], int]
    timeout_s: float

    async def handle(self, request: Json) -> Json:
        """Do what the request asks.

        Raises CallFailed, or KeyError, TypeError or ValueError for a request that is none.
        """
        vm_id = request["vm"] if request["do"] != "key-open" else ""
        if vm_id and not VM_ID.fullmatch(vm_id):
            raise ValueError("vm: 1-63 of a-z 0-9 . _ -")
        match request["do"]:
            case "key-request":
                return await self._request_key(vm_id, request)
            case "key-open":
                return await self._open_saved(request)
            case "key-give-back":
                return await self._give_back(vm_id)
            case "move-offer" | "move-switch" | "move-abort" | "move-claim":
                return await self._move(vm_id, request)
            case unknown:
                raise ValueError(f"do: {unknown} is not known")

    async def lend_key(
        self,
        vm_id: str,
        *,
        move_id: str,
        profile_sha256: bytes | None,
        hand_out: HandOut,
        expect: Expect | None = None,
    ) -> Json:
        """Ask for a VM's key, open it and hand it out. Raises CallFailed, or what ``hand_out`` does.

        A ``profile_sha256`` other than the VM was protected with is refused after the grant: the
        caller gives back, and no key is opened (N75). None is for uses that run no definition.
        ``expect`` as in ``KeyOpener.open``.
        """
        request_id, prepares = new_request_id(), bool(move_id)
        opener = self.opener()
        grant = await self._obtain(vm_id, request_id, move_id, prepares=prepares)
        if isinstance(grant, dict):
            return grant
        last = self.keeper.last_answer(vm_id)
        protected = last.profile_sha256 if last is not None else b""
        if protected and profile_sha256 not in {None, protected}:
            raise CallFailed(_other_profile(protected, profile_sha256 or b""))
        self._check_lease(vm_id)
        opened = await opener.open(
            grant,
            vm_id=vm_id,
            request_id=request_id,
            prepares=prepares,
            hand_out=hand_out,
            expect=expect,
        )
        return {"ok": True, "vm": vm_id, "key_epoch": opened.key_epoch}

    @asynccontextmanager
    async def borrowing(self, vm_id: str) -> AsyncIterator[None]:
        """While a key is lent to this host for a disk: it is given back at the end, whatever happened.

        If this process is killed meanwhile, the next one gives it back.
        """
        self.keeper.note_lent(vm_id, lent=True)
        try:
            yield
        finally:
            self.keeper.receive(vm_id, Stopped(fresh_id=new_request_id()))
            await self.keeper.settled(vm_id, lambda v: v.phase is Phase.IDLE, self.timeout_s)
            self.keeper.note_lent(vm_id, lent=False)

    def describe(self) -> list[Json]:
        """All VMs, for status."""
        now = self.clock_ms()
        return [
            {"vm": vm_id, **_described(record.view, now)}
            for vm_id, record in sorted(self.keeper.records.items())
            if record.view.phase is not Phase.IDLE
        ]

    # --- keys --------------------------------------------------------------------------------

    async def _request_key(self, vm_id: str, request: Json) -> Json:
        prepares = _purpose(request)
        request_id = request.get("request_id") or new_request_id()
        if not _REQUEST_ID.fullmatch(request_id):
            raise ValueError("request_id: 16-64 of A-Z a-z 0-9 _ -")
        move_id = request.get("move_id") or ""
        if prepares and not _REQUEST_ID.fullmatch(move_id):
            raise ValueError("move_id: a migration takes the offer of a move")
        opener = self.opener()  # (1) not enrolled: nothing is asked
        grant = await self._obtain(vm_id, request_id, move_id, prepares=prepares)
        if isinstance(grant, dict):
            return grant
        answer = {"ok": True, "vm": vm_id, "request_id": request_id, **self._lease(vm_id)}
        if request.get("want_grant"):
            answer["grant"] = base64.b64encode(grant).decode()
        if request.get("open"):
            answer["key"] = await self._open(
                opener, vm_id, request_id, grant, prepares=prepares, out=_out(request)
            )
        return answer

    async def _obtain(
        self, vm_id: str, request_id: str, move_id: str, *, prepares: bool
    ) -> bytes | Json:
        keeper, view = self.keeper, self.keeper.view(vm_id)
        operation = Operation.PREPARE if prepares else Operation.REQUEST
        if view.phase in _HOLDS:
            if keeper.records[vm_id].granted != request_id:
                return _not_now(view)
            again = Send(operation=operation, request_id=request_id, move_id=move_id)
            return await keeper.ask_again(vm_id, again)
        waiting = view.errand is not None and view.errand.request_id == request_id
        if view.phase is not Phase.IDLE and not (view.phase in _WAITS and waiting):
            return _not_now(view)
        if view.phase is Phase.IDLE:
            event = (
                PrepareMove(fresh_id=request_id, move_id=move_id)
                if prepares
                else Start(fresh_id=request_id)
            )
            keeper.receive_first(vm_id, event, request_id)
        settled = await keeper.settled(vm_id, lambda v: v.phase not in _WAITS, self.timeout_s)
        if settled.phase in _WAITS:
            keeper.receive(vm_id, GiveUp())
            return _unanswered(keeper.last_failure(vm_id), request_id)
        if settled.phase in _HOLDS:
            return keeper.take_grant(vm_id)
        return self._refused(vm_id, request_id)

    async def _open(
        self,
        opener: KeyOpener,
        vm_id: str,
        request_id: str,
        grant: bytes,
        *,
        prepares: bool,
        out: Path | None,
    ) -> Json:
        self._check_lease(vm_id)
        if out is not None:
            self.keeper.note_key_file(vm_id, out)
        opened = await opener.open(
            grant,
            vm_id=vm_id,
            request_id=request_id,
            prepares=prepares,
            hand_out=None if out is None else partial(write_private, out),
        )
        return {
            "length": opened.length,
            "sha256": opened.sha256,
            "key_epoch": opened.key_epoch,
            "written": str(out) if out is not None else None,
        }

    def _check_lease(self, vm_id: str) -> None:
        view = self.keeper.view(vm_id)
        over = view.phase is Phase.RUNNING and self.clock_ms() >= view.run_until_ms
        if view.phase not in _HOLDS or over:
            detail = "the lease ended before the key was opened"
            raise CallFailed(Failure(kind=FailureKind.REFUSED, reason="LEASE_OVER", detail=detail))

    async def _open_saved(self, request: Json) -> Json:
        grant = base64.b64decode(request["grant"], validate=True)
        opener = self.opener()
        vm_id, request_id, prepares = claimed_request(grant, opener.identity)
        key = await opener.open(
            grant, vm_id=vm_id, request_id=request_id, prepares=prepares, hand_out=None
        )
        shown = {"length": key.length, "sha256": key.sha256, "key_epoch": key.key_epoch}
        return {"ok": True, "vm": vm_id, "grant_epoch": key.grant_epoch, "key": shown}

    async def _give_back(self, vm_id: str) -> Json:
        keeper = self.keeper
        if keeper.view(vm_id).phase not in {Phase.RUNNING, Phase.PAUSED, Phase.PREPARED}:
            return _not_now(keeper.view(vm_id))
        keeper.receive(vm_id, Stopped(fresh_id=new_request_id()))
        view = await keeper.settled(vm_id, lambda v: v.phase is Phase.IDLE, self.timeout_s)
        if view.phase is not Phase.IDLE:
            return _no_answer("the VM is stopped; giving back goes on by itself")
        return {"ok": True, "vm": vm_id}

    # --- moves -------------------------------------------------------------------------------

    async def _move(self, vm_id: str, request: Json) -> Json:
        keeper, before = self.keeper, self.keeper.view(vm_id)
        match request["do"]:
            case "move-offer":
                keeper.receive(
                    vm_id, OfferMove(fresh_id=new_request_id(), destination=request["destination"])
                )
            case "move-switch":
                keeper.receive(vm_id, HandOver())
            case "move-abort":
                keeper.receive(vm_id, AbortMove())
            case _:
                keeper.receive(vm_id, Claim(fresh_id=new_request_id()))
        if keeper.view(vm_id) == before:
            return _not_now(before)
        view = await keeper.settled(vm_id, _is_quiet, self.timeout_s)
        if not _is_quiet(view):
            return _no_answer("it is asked again until there is an answer; see hostagent status")
        wanted = {
            "move-offer": view.move_id is not None,
            "move-switch": view.phase is Phase.IDLE,
            "move-abort": view.move_id is None,
            "move-claim": view.phase is Phase.RUNNING,
        }
        if not wanted[request["do"]]:
            return self._refused(vm_id, "")
        return {"ok": True, "vm": vm_id, "move_id": view.move_id, **_described(view, 0)}

    # --- answers -----------------------------------------------------------------------------

    def _lease(self, vm_id: str) -> Json:
        return _described(self.keeper.view(vm_id), self.clock_ms())

    def _refused(self, vm_id: str, request_id: str) -> Json:
        last = self.keeper.last_answer(vm_id)
        if last is None:
            return refusal("NO_ANSWER", "the agent does not know why", 5)
        if last.reply.accepted:
            detail = "the lease was over when the grant came: ask with a new request id"
            return {**refusal("GRANT_TOO_LATE", detail, 5), "request_id": request_id}
        return refusal(last.reply.reason, last.detail, last.exit_code)


def _described(view: LeaseView, now_ms: int) -> Json:
    left = max(view.run_until_ms - now_ms, 0)
    return {
        "phase": view.phase.value,
        "grant_epoch": view.grant_epoch,
        "lease_left_ms": left,
        "lease_unlimited": left > UNLIMITED_MS // 2,
    }


def _is_quiet(view: LeaseView) -> bool:
    return view.errand is None and (view.phase is not Phase.PREPARED or view.renewal is None)


def _purpose(request: Json) -> bool:
    purpose = request.get("purpose") or "start"
    if purpose not in {"start", "migrate"}:
        raise ValueError("purpose: start or migrate")
    return bool(purpose == "migrate")


def _out(request: Json) -> Path | None:
    if not request.get("out"):
        return None
    out = Path(request["out"])
    if not out.is_absolute():
        raise ValueError("out: an absolute path")
    return out


def _other_profile(protected: bytes, found: bytes) -> Failure:
    detail = (
        f"it was protected with profile {protected.hex()[:16]}…, this definition has"
        f" {found.hex()[:16]}…: its firmware, boot order, disks or devices were changed"
    )
    return Failure(kind=FailureKind.REFUSED, reason="PROFILE_DIFFERS", detail=detail)


def _not_now(view: LeaseView) -> Json:
    return refusal("NOT_NOW", f"this host is «{view.phase.value}» with the VM")


def _unanswered(failure: Failure | None, request_id: str) -> Json:
    """No key yet; says why, and how to ask for the same grant again."""
    again = f"ask again with --request-id {request_id}"
    if failure is None:
        return _no_answer(again, request_id)
    detail = f"{failure.detail or failure.reason}; nothing is lost, {again}"
    return {**refusal(failure.reason, detail, 5), "request_id": request_id}


def _no_answer(detail: str, request_id: str = "") -> Json:
    return {**refusal("NO_ANSWER", detail, 5), "request_id": request_id}
