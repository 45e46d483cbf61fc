# ruff: noqa: D417 - options is documented by its class
"""``ta key break-glass``: one host gets one VM once, whatever its verdict says."""

from datetime import timedelta
from typing import TYPE_CHECKING

from cyclopts import App

from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.options import DEFAULTS, DryRun, Duration, Options
from trustauthority.cli.render import CAUTION, Column, Field, Marked
from trustauthority.cli.session import Session, session
from trustauthority.cli.text import absolute, count, left, moment

if TYPE_CHECKING:
    from trustauthority.v1.breakglass_pb2 import BreakGlass

break_glass_app = App(
    name="break-glass", help="Let one host have one VM once, whatever its verdict says."
)


@break_glass_app.command(
    name="open",
    help_epilogue=examples(
        'ta key break-glass open payroll --host esx-1 --why "policy 7 fails all; INC-481"',
        'ta key break-glass open payroll --host esx-1 --for 30m --why "INC-481, see pager"',
    ),
)
def open_(
    vm: str,
    /,
    *,
    host: str,
    why: str,
    for_: Duration = timedelta(hours=1),
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Open a break-glass. The host must be ours, not revoked, and show a genuine quote; once.

    Args:
        vm: Id of the VM.
        host: The host that shall run it.
        why: Why, for the audit log: 10 characters or more.
        for_: How long: 1m to 8h. The VM is paused when it ends, unless the host passes by then.
        dry_run: Only show what would be sent.
    """
    from trustauthority.v1 import breakglass_pb2 as pb
    from trustauthority.v1.breakglass_pb2_grpc import BreakGlassServiceStub

    with session(options) as ta:
        request = pb.OpenBreakGlassRequest(
            vm_id=vm, host=host, why=why, ttl_ms=round(for_.total_seconds() * 1000)
        )
        if dry_run:
            ta.would_send(request)
            return ExitCode.YES
        ta.confirm(f"Let {host} have VM {vm} whatever its verdict says?")
        service = ta.authority.on(BreakGlassServiceStub)
        glass = service.write(lambda s: s.OpenBreakGlass, request).glass
        fields = [*_fields(ta, glass), Field("next", f"on {host}: start the VM")]
        title = Marked(text=f"! Break-glass {glass.glass_id} is open", style=CAUTION)
        ta.screen.record(title, fields, name=glass.glass_id, data=glass)
    return ExitCode.YES


@break_glass_app.command(
    name="list", help_epilogue=examples("ta key break-glass list", "ta key break-glass list --all")
)
def list_break_glasses(*, all_: bool = False, options: Options = DEFAULTS) -> ExitCode:
    """List break-glasses that are open.

    Args:
        all_: Also those that are over.
    """
    from trustauthority.v1 import breakglass_pb2 as pb
    from trustauthority.v1.breakglass_pb2_grpc import BreakGlassServiceStub

    with session(options) as ta:
        request = pb.ListBreakGlassesRequest(all=all_)
        service = ta.authority.on(BreakGlassServiceStub)
        rows = list(service.read(lambda s: s.ListBreakGlasses, request).glasses)
        ta.screen.listing(
            rows,
            _columns(ta),
            header=ta.scope(count(len(rows), "break-glass", "break-glasses")),
            empty="No break-glass is open." if not all_ else "No break-glass was ever opened.",
            name=lambda glass: glass.glass_id,
        )
    return ExitCode.YES


@break_glass_app.command(
    help_epilogue=examples(
        "ta key break-glass close 91ab34f207c5d6e8", "ta key break-glass close 91ab34f207c5d6e8 -q"
    )
)
def close(glass: str, /, *, options: Options = DEFAULTS) -> ExitCode:
    """End a break-glass before its time: no lease under it is renewed any more.

    Args:
        glass: Its id.
    """
    from trustauthority.v1 import breakglass_pb2 as pb
    from trustauthority.v1.breakglass_pb2_grpc import BreakGlassServiceStub

    with session(options) as ta:
        request = pb.CloseBreakGlassRequest(glass_id=glass)
        service = ta.authority.on(BreakGlassServiceStub)
        closed = service.write(lambda s: s.CloseBreakGlass, request).glass
        ta.done(f"break-glass {closed.glass_id} is closed", closed, name=closed.glass_id)
    return ExitCode.YES


def state_of(glass: "BreakGlass") -> str:
    """Where it is in its life."""
    if glass.open:
        return "open, used" if glass.used_by else "open"
    return "closed" if glass.HasField("closed_at") else "expired"


def _fields(ta: Session, glass: "BreakGlass") -> list[Field]:
    ends = moment(glass.expires_at)
    return [
        Field("VM", glass.vm_id),
        Field("host", f"{glass.host_name} ({glass.host_id})"),
        Field("until", f"{absolute(ends)} ({left(ends, ta.now)})"),
        Field("reason", glass.reason),
        Field("opened", f"{absolute(moment(glass.opened_at))} by {glass.opened_by}"),
    ]


def _columns(ta: Session) -> "list[Column[BreakGlass]]":
    return [
        Column("ID", lambda glass: glass.glass_id),
        Column(
            "STATE",
            lambda glass: (
                Marked(text=f"! {state_of(glass)}", style=CAUTION)
                if glass.open
                else state_of(glass)
            ),
        ),
        Column("VM", lambda glass: glass.vm_id),
        Column("HOST", lambda glass: glass.host_name or glass.host_id),
        Column("LEFT", lambda glass: left(moment(glass.expires_at), ta.now) if glass.open else ""),
        Column("EPOCH", lambda glass: str(glass.grant_epoch or "")),
        Column("BY", lambda glass: glass.opened_by),
        Column("REASON", lambda glass: glass.reason),
        Column("CLOSED BY", lambda glass: glass.closed_by, wide=True),
        Column("OPENED", lambda glass: absolute(moment(glass.opened_at)), wide=True),
    ]
