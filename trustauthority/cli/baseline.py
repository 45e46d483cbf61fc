# ruff: noqa: D417 - options is documented by its class
"""``ta baseline``: the expected boot of a class of hosts."""

from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.options import DEFAULTS, ClusterName, DryRun, Options
from trustauthority.cli.plain import plain, word
from trustauthority.cli.render import CAUTION, GOOD, STRONG, Cell, Column, Field, Marked
from trustauthority.cli.session import Session, session
from trustauthority.cli.text import absolute, ago, count, moment

if TYPE_CHECKING:
    from trustauthority.v1.admin_pb2 import Baseline

app = App(name="baseline", help="Baselines: the expected boot of a class of hosts.")


@app.command(
    help_epilogue=examples(
        "ta baseline capture r640-2.19 --host esx-a01",
        "ta baseline capture r640-2.19 --host esx-a01 -c prod -o json",
    )
)
def capture(
    name: str,
    /,
    *,
    host: str,
    cluster: ClusterName = "",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Propose a baseline from a host's newest evidence; it counts only when it is approved.

    Args:
        name: Name of the new baseline.
        host: Name or id of the host whose boot is taken as good.
        cluster: The cluster.
        dry_run: Only show what would be sent.
    """
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import ClusterServiceStub

    with session(options) as ta:
        request = admin.CaptureBaselineRequest(cluster=ta.cluster(cluster), name=name, host=host)
        if dry_run:
            ta.would_send(request)
            return ExitCode.YES
        reply = ta.authority.on(ClusterServiceStub).write(lambda s: s.CaptureBaseline, request)
        proposal = reply.baseline
        fields = _fields(ta, proposal, components=True)
        fields.append(
            Field("next", f"ta baseline approve {proposal.name} --sha256 {proposal.sha256}")
        )
        title = Marked(text=f"baseline {proposal.name} is proposed", style=STRONG)
        ta.screen.record(title, fields, name=proposal.name, data=proposal)
    return ExitCode.YES


@app.command(
    help_epilogue=examples(
        "ta baseline diff esx-a03 r640-2.19", "ta baseline diff esx-a03 r640-2.19 --all"
    )
)
def diff(
    host: str,
    name: str,
    /,
    *,
    cluster: ClusterName = "",
    everything: Annotated[bool, Parameter(name=("--all", "-a"), negative="")] = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Compare a host's newest evidence with a baseline, event by event.

    Exits 0 when the host matches, 1 when it does not.

    Args:
        host: Name or id of the host.
        name: The baseline.
        cluster: The cluster.
        everything: Show also what matches.
    """
    from trustauthority.cli.checks import show_checks
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import ClusterServiceStub

    with session(options) as ta:
        request = admin.DiffBaselineRequest(cluster=ta.cluster(cluster), host=host, name=name)
        reply = ta.authority.on(ClusterServiceStub).read(lambda s: s.DiffBaseline, request)
        if ta.screen.for_machines:
            ta.screen.machine(plain(reply), names=[host] if reply.matches else [])
        else:
            mark = ("✔", GOOD) if reply.matches else ("✖", "red")
            ta.screen.line(
                Marked(text=mark[0], style=mark[1]),
                f" {host} {'matches' if reply.matches else 'differs from'} baseline {name}",
            )
            show_checks(ta.screen, reply.checks, everything=everything or ta.screen.wide)
    return ExitCode.YES if reply.matches else ExitCode.NO


@app.command(
    help_epilogue=examples(
        "ta baseline approve r640-2.19", "ta baseline approve r640-2.19 --sha256 77e0…4f --yes"
    )
)
def approve(
    name: str,
    /,
    *,
    cluster: ClusterName = "",
    sha256: Annotated[str, Parameter(name="--sha256")] = "",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Put a proposed baseline in force: hosts that boot like it are trusted. Shows it, and asks.

    Args:
        name: The baseline.
        cluster: The cluster.
        sha256: Hash of the content you looked at; a changed one is refused.
        dry_run: Only check.
    """
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import ClusterServiceStub

    with session(options) as ta:
        where = ta.cluster(cluster)
        content = sha256
        if not content:
            proposal = _find(ta, where, name)
            content = proposal.sha256
            for component in proposal.components:
                ta.screen.say(f"  {component}")
        if not dry_run:
            ta.confirm(f"Approve baseline {name} ({content}) for cluster {where}.")
        request = admin.ApproveBaselineRequest(
            cluster=where, name=name, sha256=content, dry_run=dry_run
        )
        reply = ta.authority.on(ClusterServiceStub).write(lambda s: s.ApproveBaseline, request)
        verb = "would be" if dry_run else "is"
        ta.screen.record(
            Marked(text=f"baseline {name} {verb} in force", style=STRONG),
            [
                *_fields(ta, reply.baseline, components=False),
                Field("policy version", str(reply.policy_epoch)),
            ],
            name=name,
            data=reply,
        )
    return ExitCode.YES


@app.command(
    name="list", help_epilogue=examples("ta baseline list", "ta baseline list -c prod -o wide")
)
def list_baselines(*, cluster: ClusterName = "", options: Options = DEFAULTS) -> ExitCode:
    """List baselines and when a host last matched each.

    Args:
        cluster: Only baselines of this cluster.
    """
    with session(options) as ta:
        baselines = _all(ta, cluster)
        ta.screen.listing(
            baselines,
            _columns(ta),
            header=ta.scope(count(len(baselines), "baseline")),
            empty="There is no baseline. Take a good host's boot: ta baseline capture NAME --host HOST",
            name=lambda baseline: baseline.name,
        )
    return ExitCode.YES


@app.command(
    help_epilogue=examples(
        "ta baseline retire r640-2.17 --dry-run", "ta baseline retire r640-2.17 -c prod"
    )
)
def retire(
    name: str,
    /,
    *,
    cluster: ClusterName = "",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Take a baseline out of force; hosts that match only it will fail.

    Args:
        name: The baseline.
        cluster: The cluster.
        dry_run: Only check.
    """
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import ClusterServiceStub

    with session(options) as ta:
        where = ta.cluster(cluster)
        if not dry_run:
            matched = moment(_find(ta, where, name).last_matched_at)
            last = f"{ago(matched, ta.now)} ago" if matched else "never"
            ta.confirm(f"Retire baseline {name} of cluster {where} (last matched: {last}).")
        request = admin.RetireBaselineRequest(cluster=where, name=name, dry_run=dry_run)
        reply = ta.authority.on(ClusterServiceStub).write(lambda s: s.RetireBaseline, request)
        verb = "would be" if dry_run else "is"
        title = Marked(text=f"baseline {name} {verb} retired", style=STRONG)
        fields = _fields(ta, reply.baseline, components=False)
        ta.screen.record(title, fields, name=name, data=reply.baseline)
    return ExitCode.YES


def _all(ta: Session, cluster: str) -> "list[Baseline]":
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import ClusterServiceStub

    request = admin.ListBaselinesRequest(cluster=cluster)
    return list(
        ta.authority.on(ClusterServiceStub).read(lambda s: s.ListBaselines, request).baselines
    )


def _find(ta: Session, cluster: str, name: str) -> "Baseline":
    from trustauthority.errors import NotFound

    for baseline in _all(ta, cluster):
        if baseline.name == name:
            return baseline
    raise NotFound(
        f"there is no baseline {name} in cluster {cluster}: ta baseline list",
        kind="baseline",
        name=name,
    )


def _state(baseline: "Baseline") -> Cell:
    state = word(baseline, "state")
    return Marked(text=state, style={"approved": GOOD, "proposed": CAUTION}.get(state, ""))


def _fields(ta: Session, baseline: "Baseline", *, components: bool) -> list[Field]:
    captured = moment(baseline.captured_at)
    matched = moment(baseline.last_matched_at)
    lines = [
        Field("cluster", baseline.cluster),
        Field("state", _state(baseline)),
        Field("SHA-256", baseline.sha256),
        Field("captured from", f"{baseline.captured_from} at {absolute(captured)}"),
        Field("approved by", baseline.approved_by),
        Field("last matched", f"{ago(matched, ta.now)} ago" if matched else ""),
    ]
    shown = baseline.components if components or ta.screen.wide else ()
    return lines + [Field("expects", component) for component in shown]


def _columns(ta: Session) -> "list[Column[Baseline]]":
    def matched(baseline: "Baseline") -> str:
        when = moment(baseline.last_matched_at)
        if ta.screen.wide:
            return absolute(when)
        return f"{ago(when, ta.now)} ago" if when else "never"

    return [
        Column("BASELINE", lambda baseline: baseline.name),
        Column("CLUSTER", lambda baseline: baseline.cluster),
        Column("STATE", _state),
        Column("CAPTURED FROM", lambda baseline: baseline.captured_from),
        Column("LAST MATCHED", matched),
        Column("APPROVED BY", lambda baseline: baseline.approved_by, wide=True),
        Column("SHA-256", lambda baseline: baseline.sha256, wide=True),
    ]
