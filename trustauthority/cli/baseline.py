# ruff: noqa: D417 - options is documented by its class
"""``ta baseline``: what a good boot is, as alternatives per component."""

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, TypeAlias

from cyclopts import App, Parameter

from trustauthority.cli import baseline_predict
from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.options import DEFAULTS, ClusterName, DryRun, Options
from trustauthority.cli.render import CAUTION, GOOD, STRONG, Cell, Column, Field, Marked
from trustauthority.cli.session import Session, session
from trustauthority.cli.text import absolute, ago, count, moment
from trustauthority.client.plain import plain, word
from trustauthority.model.baseline import Component

if TYPE_CHECKING:
    from trustauthority.v1.admin_pb2 import Baseline, BootComponent

app = App(name="baseline", help="Baselines: what a good boot is, as alternatives per component.")
baseline_predict.add_to(app)
OnlyComponent: TypeAlias = Annotated[Component | None, Parameter(name="--component")]
UNUSED_AFTER = timedelta(days=90)


@app.command(
    help_epilogue=examples(
        "ta baseline capture r640-2.19 --host esx-a01",
        "ta baseline capture kernel-6.1.0-28 --host esx-a01 --component kernel -c prod",
    )
)
def capture(
    name: str,
    /,
    *,
    host: str,
    component: OnlyComponent = None,
    host_class: Annotated[str, Parameter(name="--class")] = "",
    cluster: ClusterName = "",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Propose a host's newest boot as one variant of each component; it counts only when approved.

    Args:
        name: Name of the new variants.
        host: Name or id of the host whose boot is taken as good.
        component: Only this component.
        host_class: Only hosts of this class may match; any, if it is left out.
        cluster: The cluster.
        dry_run: Only show what would be sent.
    """
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import ClusterServiceStub

    with session(options) as ta:
        request = admin.CaptureBaselineRequest(
            cluster=ta.cluster(cluster),
            name=name,
            host=host,
            component=component_number(component),
            host_class=host_class,
        )
        if dry_run:
            ta.would_send(request)
            return ExitCode.YES
        reply = ta.authority.on(ClusterServiceStub).write(lambda s: s.CaptureBaseline, request)
        ta.screen.record(
            Marked(text=f"baseline {name} is proposed", style=STRONG),
            proposal_fields(ta, name, component, reply.baselines, sha256=reply.sha256),
            name=name,
            data=reply,
        )
    return ExitCode.YES


@app.command(
    help_epilogue=examples(
        "ta baseline diff esx-a03 r640-2.19",
        "ta baseline diff esx-a03 r640-2.19 --component firmware --all",
    )
)
def diff(
    host: str,
    name: str,
    /,
    *,
    component: OnlyComponent = None,
    cluster: ClusterName = "",
    everything: Annotated[bool, Parameter(name=("--all", "-a"), negative="")] = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Compare a host's newest evidence with the variants of a name, event by event.

    Exits 0 when the host matches, 1 when it does not.

    Args:
        host: Name or id of the host.
        name: Name of the variants.
        component: Only this component.
        cluster: The cluster.
        everything: Show also what matches.
    """
    from trustauthority.cli.checks import show_checks
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import ClusterServiceStub

    with session(options) as ta:
        request = admin.DiffBaselineRequest(
            cluster=ta.cluster(cluster),
            host=host,
            name=name,
            component=component_number(component),
        )
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
        "ta baseline approve r640-2.19",
        "ta baseline approve r640-2.19 --component kernel --sha256 77e0…4f --yes",
    )
)
def approve(
    name: str,
    /,
    *,
    component: OnlyComponent = None,
    cluster: ClusterName = "",
    sha256: Annotated[str, Parameter(name="--sha256")] = "",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Put proposed variants in force: hosts that boot like it are trusted. Shows them, and asks.

    Args:
        name: Name of the variants.
        component: Only this component.
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
            found = _find(ta, where, name, component)
            waiting = [each for each in found if each.state != admin.BASELINE_STATE_APPROVED]
            content = _content(waiting or found)
            for variant in waiting:
                ta.screen.say(f"  {_expects(variant)}")
        if not dry_run:
            ta.confirm(f"Approve baseline {name} ({content}) for cluster {where}.")
        request = admin.ApproveBaselineRequest(
            cluster=where,
            name=name,
            sha256=content,
            dry_run=dry_run,
            component=component_number(component),
        )
        reply = ta.authority.on(ClusterServiceStub).write(lambda s: s.ApproveBaseline, request)
        verb = "would be" if dry_run else "is"
        ta.screen.record(
            Marked(text=f"baseline {name} {verb} in force", style=STRONG),
            [
                *_fields(ta, reply.baselines),
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
    """List variants and when a host last matched each.

    Args:
        cluster: Only variants of this cluster.
    """
    with session(options) as ta:
        baselines = _all(ta, cluster)
        ta.screen.listing(
            baselines,
            _columns(ta),
            header=ta.scope(count(len(baselines), "variant")),
            empty="There is no baseline. Take a good host's boot: ta baseline capture NAME --host HOST",
            name=lambda baseline: f"{word(baseline, 'component')}={baseline.name}",
        )
    return ExitCode.YES


@app.command(
    help_epilogue=examples(
        "ta baseline retire r640-2.17 --dry-run",
        "ta baseline retire kernel-6.1.0-26 --component kernel -c prod",
    )
)
def retire(
    name: str,
    /,
    *,
    component: OnlyComponent = None,
    cluster: ClusterName = "",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Take variants out of force; hosts that match no other one will fail.

    Args:
        name: Name of the variants.
        component: Only this component.
        cluster: The cluster.
        dry_run: Only check.
    """
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import ClusterServiceStub

    with session(options) as ta:
        where = ta.cluster(cluster)
        if not dry_run:
            for variant in _find(ta, where, name, component):
                matched = moment(variant.last_matched_at)
                last = f"{ago(matched, ta.now)} ago" if matched else "never"
                ta.screen.say(f"  {word(variant, 'component')}: last matched {last}")
            ta.confirm(f"Retire baseline {name} of cluster {where}.")
        request = admin.RetireBaselineRequest(
            cluster=where, name=name, dry_run=dry_run, component=component_number(component)
        )
        reply = ta.authority.on(ClusterServiceStub).write(lambda s: s.RetireBaseline, request)
        verb = "would be" if dry_run else "is"
        title = Marked(text=f"baseline {name} {verb} retired", style=STRONG)
        ta.screen.record(title, _fields(ta, reply.baselines), name=name, data=reply)
    return ExitCode.YES


def component_number(component: Component | None) -> "BootComponent.ValueType":
    """The number of a component in a message; unspecified for all of them."""
    from trustauthority.v1 import admin_pb2 as admin

    return admin.BootComponent.Value(
        f"BOOT_COMPONENT_{component.name if component else 'UNSPECIFIED'}"
    )


def proposal_fields(
    ta: Session, name: str, component: Component | None, found: "Sequence[Baseline]", *, sha256: str
) -> list[Field]:
    """What was proposed, and the command that puts it in force."""
    only = f" --component {component}" if component else ""
    return [
        *_fields(ta, found),
        Field("next", f"ta baseline approve {name}{only} -c {found[0].cluster} --sha256 {sha256}"),
    ]


def _all(ta: Session, cluster: str) -> "list[Baseline]":
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import ClusterServiceStub

    request = admin.ListBaselinesRequest(cluster=cluster)
    return list(
        ta.authority.on(ClusterServiceStub).read(lambda s: s.ListBaselines, request).baselines
    )


def _find(ta: Session, cluster: str, name: str, component: Component | None) -> "list[Baseline]":
    from trustauthority.errors import NotFound

    wanted = component_number(component)
    found = [
        each for each in _all(ta, cluster) if each.name == name and wanted in {0, each.component}
    ]
    if not found:
        raise NotFound(
            f"there is no {f'{component} ' if component else ''}baseline {name}"
            f" in cluster {cluster}: ta baseline list",
            kind="baseline",
            name=name,
        )
    return found


def _content(variants: "Sequence[Baseline]") -> str:
    """What the authority calls exactly these variants."""
    from trustauthority.appraisal.baseline import content_sha256

    return content_sha256({Component(word(each, "component")): each.sha256 for each in variants})


def _expects(baseline: "Baseline") -> str:
    where = f" (class {baseline.host_class})" if baseline.host_class else ""
    return f"{word(baseline, 'component')}{where}: {', '.join(baseline.expects)}"


def _state(baseline: "Baseline") -> Cell:
    state = word(baseline, "state")
    return Marked(text=state, style={"approved": GOOD, "proposed": CAUTION}.get(state, ""))


def _fields(ta: Session, found: "Sequence[Baseline]") -> list[Field]:
    """What variants of one name have in common, and a line for each."""
    first = found[0]
    lines = [
        Field("cluster", first.cluster),
        Field("state", _state(first)),
        Field("from", f"{first.captured_from} at {absolute(moment(first.captured_at))}"),
        Field("approved by", first.approved_by),
    ]
    for variant in found:
        lines.append(Field(word(variant, "component"), ", ".join(variant.expects)))
        if ta.screen.wide:
            lines.append(Field("SHA-256", variant.sha256))
    return lines


def _columns(ta: Session) -> "list[Column[Baseline]]":
    return [
        Column("BASELINE", lambda baseline: baseline.name),
        Column("COMPONENT", lambda baseline: word(baseline, "component")),
        Column("CLUSTER", lambda baseline: baseline.cluster),
        Column("CLASS", lambda baseline: baseline.host_class or "(any)"),
        Column("STATE", _state),
        Column("CAPTURED FROM", lambda baseline: baseline.captured_from, wide=True),
        Column("LAST MATCHED", lambda baseline: _last_matched(ta, baseline)),
        Column("APPROVED BY", lambda baseline: baseline.approved_by, wide=True),
        Column("SHA-256", lambda baseline: baseline.sha256, wide=True),
    ]


def _last_matched(ta: Session, baseline: "Baseline") -> Cell:
    """When a host last matched, and a hint where that is long ago."""
    matched = moment(baseline.last_matched_at)
    shown = absolute(matched) if ta.screen.wide else f"{ago(matched, ta.now)} ago"
    shown = shown if matched else "never"
    since = matched or moment(baseline.captured_at)
    unused = since is not None and ta.now - since > UNUSED_AFTER
    if word(baseline, "state") == "approved" and unused:
        return Marked(text=f"{shown}: safe to delete?", style=CAUTION)
    return shown
