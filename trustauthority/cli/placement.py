# ruff: noqa: D417 - options is documented by its class
"""``ta placement``: may this VM run there, and the reasons for hosts to ask."""

from datetime import timedelta
from typing import TYPE_CHECKING

from cyclopts import App

from trustauthority.cli import placement_orders
from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.options import DEFAULTS, DryRun, Duration, Options
from trustauthority.cli.render import BAD, CAUTION, GOOD, STRONG, Column, Field, Marked
from trustauthority.cli.session import Session, session
from trustauthority.cli.text import absolute, count, left, moment
from trustauthority.client.plain import plain

if TYPE_CHECKING:
    from trustauthority.v1.placement_pb2 import Intent, PlacementAnswer

app = App(name="placement", help="Placement: may this VM run there, and why not.")
placement_orders.add_to(app)


@app.command(
    help_epilogue=examples(
        "ta placement check --vm payroll --host esx-a02",
        "ta placement check --vm payroll --host esx-a01 --host esx-a02 -o name",
    )
)
def check(*, vm: str, host: list[str], options: Options = DEFAULTS) -> ExitCode:
    """Ask whether a VM may run on a host. It is advice: the grant decides when the VM starts.

    Exits 0 when every host may run it, 1 when one may not. With -o name only the hosts that may.

    Args:
        vm: Id of the VM.
        host: Name or id of a host; may be given several times.
    """
    from trustauthority.v1 import placement_pb2 as placement
    from trustauthority.v1.placement_pb2_grpc import PlacementServiceStub

    with session(options) as ta:
        questions = [placement.PlacementCandidate(vm_id=vm, host=one) for one in host]
        request = placement.CheckPlacementRequest(candidates=questions)
        service = ta.authority.on(PlacementServiceStub)
        answers = service.read(lambda s: s.CheckPlacement, request).answers
        allowed = [answer for answer in answers if answer.allowed]
        if ta.screen.for_machines:
            data = [plain(answer) for answer in answers]
            ta.screen.machine(data, names=[answer.host for answer in allowed])
        else:
            for answer in answers:
                _show(ta, answer)
    everything = len(allowed) == len(host) == len(answers)
    return ExitCode.YES if everything else ExitCode.NO


@app.command(
    help_epilogue=examples(
        "ta placement intent --vm payroll --host esx-a02",
        "ta placement intent --vm payroll --host esx-a02 --ttl 30m",
    )
)
def intent(
    *,
    vm: str,
    host: str,
    ttl: Duration = timedelta(0),
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Give a host a reason to ask for a VM, once, for a while.

    Args:
        vm: Id of the VM.
        host: Name or id of the host.
        ttl: How long the reason lasts (10m unless given, at most 24h).
        dry_run: Only show what would be sent.
    """
    from trustauthority.v1 import placement_pb2 as placement
    from trustauthority.v1.placement_pb2_grpc import PlacementServiceStub

    with session(options) as ta:
        ttl_ms = ttl // timedelta(milliseconds=1)
        request = placement.CreateIntentRequest(vm_id=vm, host=host, ttl_ms=ttl_ms)
        if dry_run:
            ta.would_send(request)
            return ExitCode.YES
        made = ta.authority.on(PlacementServiceStub).write(lambda s: s.CreateIntent, request).intent
        until = moment(made.expires_at)
        ta.screen.record(
            Marked(text=f"{made.host_name or host} may ask for VM {made.vm_id}", style=STRONG),
            [
                Field("intent", made.intent_id),
                Field("until", f"{absolute(until)} ({left(until, ta.now)})"),
            ],
            name=made.intent_id,
            data=made,
        )
    return ExitCode.YES


@app.command(
    help_epilogue=examples("ta placement intents", "ta placement intents --vm payroll -o json")
)
def intents(*, vm: str = "", options: Options = DEFAULTS) -> ExitCode:
    """List the reasons that hosts were given, newest first.

    Args:
        vm: Only those for this VM.
    """
    from trustauthority.v1 import placement_pb2 as placement
    from trustauthority.v1.placement_pb2_grpc import PlacementServiceStub

    with session(options) as ta:
        request = placement.ListIntentsRequest(vm_id=vm)
        service = ta.authority.on(PlacementServiceStub)
        rows = list(service.read(lambda s: s.ListIntents, request).intents)
        ta.screen.listing(
            rows,
            _columns(ta),
            header=ta.scope(count(len(rows), "intent")),
            empty="No intent is open. Give one: ta placement intent --vm VM --host HOST",
            name=lambda row: row.intent_id,
        )
    return ExitCode.YES


def _show(ta: Session, answer: "PlacementAnswer") -> None:
    mark, style, word = ("✔", GOOD, "yes") if answer.allowed else ("✖", BAD, "no")
    ta.screen.line(
        Marked(text=f"{mark} {word}", style=style),
        f"  VM {answer.vm_id} {'may' if answer.allowed else 'may not'} run on {answer.host}",
    )
    for unmet in answer.unmet:
        ta.screen.line(f"      {unmet.reason}  {unmet.detail}")
    for warning in answer.warnings:
        ta.screen.line("      ", Marked(text="!", style=CAUTION), f" {warning}")


def _columns(ta: Session) -> "list[Column[Intent]]":
    def until(row: "Intent") -> str:
        when = moment(row.expires_at)
        return absolute(when) if ta.screen.wide else left(when, ta.now)

    return [
        Column("VM", lambda row: row.vm_id),
        Column("HOST", lambda row: row.host_name or row.host_id),
        Column("UNTIL", until),
        Column("USED", lambda row: "yes" if row.used else "no"),
        Column("BY", lambda row: row.created_by),
        Column("ID", lambda row: row.intent_id),
        Column("HOST ID", lambda row: row.host_id, wide=True),
    ]
