# ruff: noqa: D417 - options is documented by its class
"""``ta audit``: who got which key when, and proof that nobody edited the answer."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from trustauthority.cli.audit_proof import (
    Auditor,
    decode_entry,
    entry_detail,
    entry_details,
    entry_time,
    entry_value,
)
from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.options import DEFAULTS, Options
from trustauthority.cli.render import BAD, CAUTION, GOOD, Cell, Column, Marked
from trustauthority.cli.session import Session, session
from trustauthority.cli.text import absolute, count, printable

if TYPE_CHECKING:
    from trustauthority.v1.admin_pb2 import AuditEntry

app = App(name="audit", help="Audit log: who got which key when, and proof that it is whole.")

PAGE = 1_000
"""Entries of one request, the most that the authority gives."""


@app.command(
    help_epilogue=examples(
        "ta audit tail", "ta audit tail -n 100 -o wide", "ta audit tail --follow"
    )
)
def tail(
    *,
    number: Annotated[int, Parameter(name=("--number", "-n"))] = 20,
    follow: Annotated[bool, Parameter(name=("--follow", "-f"), negative="")] = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Show the newest decisions, each proven to be in the signed log.

    The first column says whether an entry is proven: ✔ it is under the signed checkpoint,
    … it is too new to be under one yet. A proof that fails ends the command with exit 1.

    Args:
        number: How many entries (at most 1000).
        follow: Go on as new entries come, until interrupted.
    """
    from trustauthority.errors import InvalidRequest
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import AuditServiceStub

    if not 1 <= number <= PAGE:
        raise InvalidRequest(f"-n is between 1 and {PAGE}", field="number")
    with session(options) as ta, _auditor(ta) as auditor:
        service = ta.authority.on(AuditServiceStub)
        request = admin.ListAuditRequest(from_sequence=-number, limit=number)
        reply = service.read(lambda s: s.ListAudit, request)
        size = auditor.begin(reply.checkpoint)
        _say_whose_word(ta)
        proven = {
            entry.sequence: auditor.prove(entry.sequence, entry.content) for entry in reply.entries
        }
        ta.screen.listing(
            list(reply.entries),
            _columns(proven),
            header=ta.scope(f"last {count(len(reply.entries), 'entry', 'entries')} of {size}"),
            empty="The audit log is empty: nothing was decided yet.",
            name=lambda entry: str(entry.sequence),
            data=lambda entry: _data(entry, proven),
        )
        if follow:
            start = max((entry.sequence for entry in reply.entries), default=-1) + 1
            _follow(ta, auditor, start)
    return ExitCode.YES


@app.command(help_epilogue=examples("ta audit verify", "ta audit verify -o json"))
def verify(*, options: Options = DEFAULTS) -> ExitCode:
    """Hash every entry of the log again and compare with the signed checkpoint.

    Also checks that the log goes on from the checkpoint this machine saw before. Exits 0 when the
    log is whole, 1 when it is not.
    """
    from trustauthority.codec.tlog import Frontier, leaf_hash
    from trustauthority.errors import CheckpointInvalid
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import AuditServiceStub

    with session(options) as ta, _auditor(ta) as auditor:
        before = auditor.before
        service = ta.authority.on(AuditServiceStub)
        note = service.read(lambda s: s.GetCheckpoint, admin.GetCheckpointRequest()).checkpoint
        checkpoint = auditor.open(note)
        _say_whose_word(ta)
        if before is not None and before.era < checkpoint.era:
            ta.screen.warn(
                "the operators accepted a loss since this machine last looked: what was decided "
                f"after entry {min(before.size, checkpoint.size)} may be missing"
            )
            before = None
        if before is not None and (before.era, before.size) > (checkpoint.era, checkpoint.size):
            raise CheckpointInvalid(
                f"this machine saw {before.size} entries before, now there are {checkpoint.size}",
                size=checkpoint.size,
            )
        frontier = Frontier()
        for entry in _entries(ta, checkpoint.size):
            if entry.sequence != frontier.size:
                raise CheckpointInvalid(f"entry {frontier.size} is missing", size=frontier.size)
            decode_entry(entry.content)
            frontier = frontier.append(leaf_hash(entry.content))
            if before is not None and before.size == frontier.size:
                _require_root(frontier.root(), before.root, frontier.size)
            if frontier.size % (10 * PAGE) == 0:
                ta.screen.say(f"hashed {frontier.size} of {checkpoint.size} entries")
        if frontier.size != checkpoint.size:
            raise CheckpointInvalid(
                f"the checkpoint counts {checkpoint.size} entries, the log shows {frontier.size}",
                size=frontier.size,
            )
        _require_root(frontier.root(), checkpoint.root, checkpoint.size)
        root = checkpoint.root.hex()
        data = {"origin": checkpoint.origin, "size": checkpoint.size, "root": root, "whole": True}
        ta.done(
            f"✔ {count(checkpoint.size, 'entry', 'entries')} of {checkpoint.origin} hash to the "
            f"signed root {root}",
            data,
            name=root,
        )
    return ExitCode.YES


@contextlib.contextmanager
def _auditor(ta: Session) -> "Iterator[Auditor]":
    auditor = Auditor(ta.authority)
    with auditor.holding_on():
        yield auditor


def _require_root(found: bytes, signed: bytes, size: int) -> None:
    from trustauthority.errors import CheckpointInvalid

    if found != signed:
        raise CheckpointInvalid(
            f"the first {size} entries hash to {found.hex()}, but {signed.hex()} was signed",
            size=size,
        )


def _entries(ta: Session, size: int) -> "Iterator[AuditEntry]":
    """The first ``size`` entries, page by page."""
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import AuditServiceStub

    service = ta.authority.on(AuditServiceStub)
    position = 0
    while position < size:
        request = admin.ListAuditRequest(from_sequence=position, limit=min(PAGE, size - position))
        page = service.read(lambda s: s.ListAudit, request).entries
        if not page:
            return
        yield from page[: size - position]
        position += len(page)


def _say_whose_word(ta: Session) -> None:
    if ta.context.audit_key is None:
        ta.screen.warn(
            "the audit key is not pinned in this context, so the log's signature proves nothing: "
            "get the key from the authority's operators and run ta context add … --audit-key KEY"
        )


def _follow(ta: Session, auditor: Auditor, start: int) -> None:
    """Print entries as they come, each with the proof there is at that moment."""
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import AuditServiceStub

    service = ta.authority.on(AuditServiceStub)
    request = admin.TailAuditRequest(from_sequence=start)
    for reply in service.stream(lambda s: s.TailAudit, request, endless=True):
        entry = reply.entry
        if entry.sequence >= auditor.size:
            auditor.advance()
        proven = {entry.sequence: auditor.prove(entry.sequence, entry.content)}
        if ta.screen.for_machines:
            ta.screen.machine(_data(entry, proven), names=[str(entry.sequence)])
        else:
            cells = [c.cell(entry) for c in _columns(proven) if ta.screen.wide or not c.wide]
            ta.screen.line(*(part for cell in cells for part in (cell or "–", "  ")))
        ta.screen.out.flush()


def _data(entry: "AuditEntry", proven: dict[int, bool]) -> dict[str, Any]:
    return {**decode_entry(entry.content), "proven": proven[entry.sequence]}


def _columns(proven: dict[int, bool]) -> "list[Column[AuditEntry]]":
    def text(name: str) -> Any:
        return lambda entry: entry_value(entry.content, name)

    def mark(entry: "AuditEntry") -> Cell:
        if proven[entry.sequence]:
            return Marked(text="✔", style=GOOD)
        return Marked(text="…", style=CAUTION)

    def decision(entry: "AuditEntry") -> Cell:
        value = entry_value(entry.content, "decision")
        return Marked(text=value, style=BAD if value in {"refused", "failed"} else "")

    def actor(entry: "AuditEntry") -> Cell:
        """Who; a host by its label, since ids say nothing to people."""
        who = str(entry_value(entry.content, "actor"))
        label = entry_detail(entry.content, "host") or entry_detail(entry.content, "name")
        kind, _, identifier = who.partition(":")
        return f"host {label} ({identifier[:10]}…)" if kind == "host" and label else who

    return [
        Column("", mark),
        Column("SEQ", lambda entry: str(entry.sequence)),
        Column("TIME", lambda entry: absolute(entry_time(entry.content))),
        Column("ACTOR", actor),
        Column("OPERATION", text("operation")),
        Column("SUBJECT", text("subject")),
        Column("DECISION", decision),
        Column("REASON", text("reason")),
        Column("DETAILS", lambda entry: printable(entry_details(entry.content)), wide=True),
    ]
