# ruff: noqa: D417 - options is documented by its class
"""``ta placement candidates``, ``orders``, ``cancel`` and ``watch``."""

from typing import TYPE_CHECKING

from cyclopts import App

from trustauthority.cli import orders as move_orders
from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.host_drain import candidates as ranked
from trustauthority.cli.options import DEFAULTS, DryRun, Options
from trustauthority.cli.render import BAD, CAUTION, GOOD, STRONG, Cell, Column, Field, Marked
from trustauthority.cli.session import Session, session
from trustauthority.cli.text import absolute, ago, count, left, moment
from trustauthority.client.plain import plain, word

if TYPE_CHECKING:
    from trustauthority.v1.placement_pb2 import Candidate, MoveOrder, WatchPlacementResponse


def candidates(vm: str, /, *, options: Options = DEFAULTS) -> ExitCode:
    """Rank the hosts of a VM's cluster: where it may run best, and why not elsewhere.

    It is advice: the grant decides. Exits 0 when another host than its owner may run it, else 1.

    Args:
        vm: Id of the VM.
    """
    with session(options) as ta:
        found = ranked(ta, vm)
        allowed = [each for each in found if each.allowed]
        ta.screen.listing(
            found,
            _candidate_columns(ta),
            header=ta.scope(f"{len(allowed)} of {count(len(found), 'host')} may run {vm}"),
            empty="The VM's cluster has no host.",
            name=lambda each: each.host_name or each.host_id,
        )
    return ExitCode.YES if any(not each.owner for each in allowed) else ExitCode.NO


def orders(
    *, vm: str = "", host: str = "", everything: bool = False, options: Options = DEFAULTS
) -> ExitCode:
    """List move orders: those that wait or run, newest first.

    Args:
        vm: Only those of this VM.
        host: Only those from or to this host.
        everything: Those that ended, too.
    """
    with session(options) as ta:
        found = move_orders.read(ta, vm_id=vm, host=host, open_only=not everything)
        ta.screen.listing(
            found,
            _order_columns(ta),
            header=ta.scope(count(len(found), "order")),
            empty="No order is open. Give one: ta vm migrate VM HOST",
            name=lambda each: each.order_id,
        )
    return ExitCode.YES


def cancel(
    order: str, /, *, wait: bool = True, dry_run: DryRun = False, options: Options = DEFAULTS
) -> ExitCode:
    """Take a move order back; a copy that is under way is stopped, and the VM stays where it is.

    What has left its source can't be stopped: that is refused (SWITCH_BEGUN), and the move finished.
    Exits 0 when the VM stays, 1 when it was too late.

    Args:
        order: Its id.
        wait: Wait until its source has stopped it.
        dry_run: Only show what would be sent.
    """
    from trustauthority.v1 import placement_pb2 as placement

    with session(options) as ta:
        if dry_run:
            ta.would_send(placement.CancelMoveOrderRequest(order_id=order))
            return ExitCode.YES
        made = move_orders.cancel(ta, order, unless_begun=False)
        if wait and move_orders.is_open(made):
            made = move_orders.ended(ta, made)
        state = word(made, "state")
        told = {"cancelled": "is cancelled", "cancelling": "is being cancelled"}
        ta.screen.record(
            Marked(text=f"order {made.order_id} {told.get(state, f'is {state}')}", style=STRONG),
            [
                Field("VM", made.vm_id),
                Field("from", made.source_host_name or made.source_host_id),
                Field("to", made.destination_host_name or made.destination_host_id),
                Field("why", made.detail),
            ],
            name=made.order_id,
            data=made,
        )
    return ExitCode.YES if state in told else ExitCode.NO


def watch(*, vm: tuple[str, ...] = (), cursor: str = "", options: Options = DEFAULTS) -> ExitCode:
    """Show what happens to hosts, VMs, moves, intents and orders, until interrupted.

    With -o json one document per line; its cursor goes on exactly after it with --cursor.

    Args:
        vm: Only events about this VM; may be given several times.
        cursor: Go on after the event with this cursor.
    """
    from trustauthority.v1 import placement_pb2 as placement
    from trustauthority.v1.placement_pb2_grpc import PlacementServiceStub

    with session(options) as ta:
        request = placement.WatchPlacementRequest(cursor=cursor, vm_ids=vm)
        service = ta.authority.on(PlacementServiceStub)
        for event in service.stream(lambda s: s.WatchPlacement, request, endless=True):
            if ta.screen.for_machines:
                ta.screen.json_line(plain(event))
            elif event.operation:
                _show(ta, event)
            ta.screen.out.flush()
    return ExitCode.YES


def _show(ta: Session, event: "WatchPlacementResponse") -> None:
    bad = event.decision in {"refused", "failed"}
    ta.screen.line(
        absolute(moment(event.time)),
        "  ",
        Marked(text=event.decision, style=BAD if bad else GOOD),
        f"  {event.operation}  {event.host.host_name or event.subject}",
        f"  {move_orders.told(event.order)}" if event.HasField("order") else "",
        f"  {event.reason}" if event.reason else "",
        f"  by {event.actor}",
    )


def _candidate_columns(ta: Session) -> "list[Column[Candidate]]":
    def allowed(each: "Candidate") -> Cell:
        if each.owner:
            return Marked(text="● owner", style=GOOD)
        return Marked(text="✔ yes", style=GOOD) if each.allowed else Marked(text="✖ no", style=BAD)

    def why(each: "Candidate") -> Cell:
        if each.unmet:
            return "; ".join(f"{one.reason}: {one.detail}" for one in each.unmet)
        notes = ["passed with warnings"] * each.warned + list(each.warnings)
        return Marked(text="; ".join(notes), style=CAUTION) if notes else ""

    def until(each: "Candidate") -> str:
        when = moment(each.attested_until)
        return absolute(when) if ta.screen.wide else left(when, ta.now)

    return [
        Column("HOST", lambda each: each.host_name or each.host_id),
        Column("MAY", allowed),
        Column("VMS", lambda each: str(each.vms)),
        Column("FREE", lambda each: str(each.free)),
        Column("REPORT", until),
        Column("WHY", why),
        Column("FIRST", lambda each: "; ".join(one.detail for one in each.steps), wide=True),
        Column("ID", lambda each: each.host_id, wide=True),
    ]


def _order_columns(ta: Session) -> "list[Column[MoveOrder]]":
    return [
        Column("VM", lambda each: each.vm_id),
        Column("FROM", lambda each: each.source_host_name or each.source_host_id),
        Column("TO", lambda each: each.destination_host_name or each.destination_host_id),
        Column("STATE", lambda each: word(each, "state")),
        Column("AGE", lambda each: ago(moment(each.created_at), ta.now)),
        Column("BY", lambda each: each.created_by),
        Column("ID", lambda each: each.order_id),
        Column("HOW FAR", move_orders.told),
    ]


def add_to(app: App) -> None:
    """Register these commands with ``ta placement``."""
    app.command(
        candidates,
        help_epilogue=examples(
            "ta placement candidates payroll", "ta placement candidates payroll -o wide"
        ),
    )
    app.command(
        orders,
        help_epilogue=examples("ta placement orders", "ta placement orders --vm payroll -o json"),
    )
    app.command(
        cancel,
        help_epilogue=examples(
            "ta placement cancel q3Zl0d8hQJ6mVd1w5C2kYg",
            "ta placement cancel q3Zl0d8hQJ6mVd1w5C2kYg -o json",
        ),
    )
    app.command(
        watch,
        help_epilogue=examples("ta placement watch", "ta placement watch --vm payroll -o json"),
    )
