# ruff: noqa: D417 - options is documented by its class
"""``ta host``: which hosts there are, whether each is trusted, and why."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from trustauthority.cli import host_changes, host_drain
from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.options import DEFAULTS, ClusterName, Options
from trustauthority.cli.paging import all_pages
from trustauthority.cli.render import CAUTION, STRONG, Cell, Column, Field, Marked
from trustauthority.cli.session import Session, session
from trustauthority.cli.text import absolute, ago, count, left, moment
from trustauthority.client.plain import plain, word

if TYPE_CHECKING:
    from trustauthority.v1.admin_pb2 import GetHostResponse, Host

app = App(name="host", help="Hosts: who is trusted, and why not.")
host_changes.add_to(app)
host_drain.add_to(app)

MAX_BUNDLE_SIZE = 256 * 1024 * 1024
"""Bytes of an evidence bundle: logs of a year of uptime are far smaller."""


@app.command(name="list", help_epilogue=examples("ta host list", "ta host list -c prod -o wide"))
def list_hosts(*, cluster: ClusterName = "", options: Options = DEFAULTS) -> ExitCode:
    """List hosts with their standing.

    Args:
        cluster: Only hosts of this cluster.
    """
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import HostServiceStub

    with session(options) as ta:
        service = ta.authority.on(HostServiceStub)
        hosts: list[Host] = list(
            all_pages(
                lambda token: service.read(
                    lambda s: s.ListHosts,
                    admin.ListHostsRequest(cluster=cluster, page_size=500, page_token=token),
                ),
                lambda page: page.hosts,
            )
        )
        ta.screen.listing(
            hosts,
            _columns(ta),
            header=ta.scope(_summary(hosts, cluster)),
            empty=f"No host is enrolled{f' in cluster {cluster}' if cluster else ''}. "
            "Start the host agent on one, with this authority's CA.",
            name=lambda host: host.name or host.host_id,
        )
    return ExitCode.YES


@app.command(help_epilogue=examples("ta host show esx-a03", "ta host show esx-a03 -o yaml"))
def show(host: str, /, *, options: Options = DEFAULTS) -> ExitCode:
    """Show what is recorded of one host.

    Args:
        host: Name or id of the host.
    """
    with session(options) as ta:
        record = _get(ta, host).host
        ta.screen.record(
            Marked(text=record.name or record.host_id, style=STRONG),
            host_fields(ta, record),
            name=record.name or record.host_id,
            data=record,
        )
    return ExitCode.YES


@app.command(help_epilogue=examples("ta host explain esx-a03", "ta host explain esx-a03 --all"))
def explain(
    host: str,
    /,
    *,
    everything: Annotated[bool, Parameter(name=("--all", "-a"), negative="")] = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Say why a host is trusted or not: every check, what was expected and what was found.

    Exits 0 when the host is trusted now, 1 when it is not.

    Args:
        host: Name or id of the host.
        everything: Show also the details of checks that passed.
    """
    with session(options) as ta:
        reply = _get(ta, host)
        passed = word(reply.host, "standing") == "passed" and not reply.host.revoked
        if ta.screen.for_machines:
            ta.screen.machine(plain(reply), names=[reply.host.name or reply.host.host_id])
        else:
            _explain(ta, reply, everything=everything)
    return ExitCode.YES if passed else ExitCode.NO


@app.command(
    help_epilogue=examples(
        "ta host evidence esx-a03 --out esx-a03.bundle",
        "ta host evidence esx-a03 --out esx-a03.bundle --force",
        "ta host evidence esx-a03 --verdict 5f1c…e9 --out then.bundle",
    )
)
def evidence(
    host: str,
    /,
    *,
    out: Path,
    verdict: str = "",
    force: Annotated[bool, Parameter(negative="")] = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Save the evidence behind a verdict on a host, to look at it offline.

    Args:
        host: Name or id of the host.
        out: File to write.
        verdict: Id of an earlier verdict, as the audit log has it; the newest one unless given.
        force: Replace the file when it exists.
    """
    from trustauthority.client.files import write_private
    from trustauthority.errors import AlreadyExists, InvalidRequest
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import HostServiceStub

    with session(options) as ta:
        if out.exists() and not force:
            raise AlreadyExists(f"{out} exists: --force replaces it", kind="file", name=str(out))
        bundle = bytearray()
        service = ta.authority.on(HostServiceStub)
        request = admin.GetEvidenceRequest(host=host, verdict_id=verdict)
        for part in service.stream(lambda s: s.GetEvidence, request):
            bundle += part.chunk
            if len(bundle) > MAX_BUNDLE_SIZE:
                raise InvalidRequest("the bundle is larger than 256 MiB", field="chunk")
        write_private(out, bytes(bundle), replace=force)
        ta.screen.say(f"wrote {count(len(bundle), 'byte')} to {out}: see ta evidence --help")
        if ta.screen.for_machines:
            ta.screen.machine({"file": str(out), "bytes": len(bundle)}, names=[str(out)])
    return ExitCode.YES


def _get(ta: Session, host: str) -> "GetHostResponse":
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import HostServiceStub

    service = ta.authority.on(HostServiceStub)
    return service.read(lambda s: s.GetHost, admin.GetHostRequest(host=host))


def _summary(hosts: "list[Host]", cluster: str) -> str:
    words = [word(host, "standing") for host in hosts]
    passed, failed = words.count("passed"), words.count("failed")
    scope = f" in cluster {cluster}" if cluster else ""
    return (
        f"{count(len(hosts), 'host')}{scope} · {passed} passed, {failed} failed, "
        f"{len(hosts) - passed - failed} unknown"
    )


def _columns(ta: Session) -> "list[Column[Host]]":
    from trustauthority.cli.checks import standing

    def since(host: "Host") -> str:
        when = moment(host.standing_since)
        return absolute(when) if ta.screen.wide else ago(when, ta.now)

    def report(host: "Host") -> str:
        when = moment(host.attested_until)
        return absolute(when) if ta.screen.wide else left(when, ta.now)

    return [
        Column("HOST", lambda host: host.name),
        Column("STANDING", lambda host: standing(word(host, "standing"))),
        Column("SINCE", since),
        Column("REPORT", report),
        Column("CLUSTER", lambda host: host.cluster, wide=True),
        Column("ADMISSION", lambda host: word(host, "admission"), wide=True),
        Column("VMS", lambda host: str(host.vms), wide=True),
        Column("TPM", lambda host: host.tpm, wide=True),
        Column("ID", lambda host: host.host_id, wide=True),
        Column("BASELINE", lambda host: host.baseline),
        Column("REASON", _reason),
    ]


def _reason(host: "Host") -> Cell:
    """What stands between this host and keys, and the command that leads on."""
    name = host.name or host.host_id
    if host.revoked:
        return Marked(text=f"revoked   → ta host reinstate {name}", style=CAUTION)
    if word(host, "admission") != "admitted":
        return Marked(text=f"not admitted: no keys   → ta host admit {name}", style=CAUTION)
    match word(host, "standing"):
        case "passed":
            return _caution(host, name)
        case "failed":
            return f"{host.reason}   → ta host explain {name}"
        case _:
            return f"{host.reason or 'no fresh evidence'}   → is its agent running?"


def _caution(host: "Host", name: str) -> Cell:
    """What keeps a trusted host from taking VMs, or might."""
    if host.draining:
        text = f"draining: takes no VM   → ta host undrain {name}"
        return Marked(text=text, style=CAUTION)
    if host.warned:
        return Marked(text=f"with warnings   → ta host explain {name}", style=CAUTION)
    return ""


def host_fields(ta: Session, host: "Host") -> list[Field]:
    """The lines of one host's record."""
    from trustauthority.cli.checks import standing

    since, until = moment(host.standing_since), moment(host.attested_until)
    return [
        Field("id", host.host_id),
        Field("cluster", host.cluster),
        Field("standing", standing(word(host, "standing"))),
        Field("since", f"{absolute(since)} ({ago(since, ta.now)})" if since else ""),
        Field("attested until", f"{absolute(until)} ({left(until, ta.now)})" if until else ""),
        Field("reason", host.reason),
        Field("admission", word(host, "admission")),
        Field("class", host.host_class),
        Field("revoked", Marked(text="yes", style=CAUTION) if host.revoked else "no"),
        Field("warnings", Marked(text="yes", style=CAUTION) if host.warned else "none"),
        Field("draining", Marked(text="yes", style=CAUTION) if host.draining else ""),
        Field("baseline", host.baseline),
        Field("VMs", str(host.vms)),
        Field("TPM", host.tpm),
        Field("EK SHA-256", host.ek_sha256),
        Field("approval", host.approval_sha256),
        Field("enrolled", absolute(moment(host.enrolled_at))),
        Field("trust epoch", str(host.trust_epoch)),
    ]


def _explain(ta: Session, reply: "GetHostResponse", *, everything: bool) -> None:
    from trustauthority.cli.checks import show_checks, standing

    host, verdict = reply.host, reply.verdict
    name = host.name or host.host_id
    now_is = standing(word(host, "standing"))
    if not reply.HasField("verdict"):
        ta.screen.line(Marked(text=name, style=STRONG), " is ", now_is, ": it never sent evidence")
    else:
        decided = moment(verdict.decided_at)
        judged = absolute(decided) if ta.screen.wide else f"{absolute(decided)[11:]}"
        ta.screen.line(
            Marked(text=name, style=STRONG),
            " is ",
            now_is,
            f", judged {ago(decided, ta.now)} ago at {judged} "
            f"(policy {verdict.policy} v{verdict.policy_epoch}, authority {ta.context.server})",
        )
        show_checks(ta.screen, verdict.checks, everything=everything or ta.screen.wide)
    ta.screen.line(Marked(text="Effect: ", style=STRONG), _effect(host))
    for number, step in enumerate(_next_steps(reply)):
        ta.screen.line(Marked(text="        " if number else "Next:   ", style=STRONG), step)


def _effect(host: "Host") -> str:
    running = count(host.vms, "running encrypted VM")
    if host.revoked:
        return f"revoked: no keys and no renewals; {running} must stop when their leases end."
    if word(host, "admission") != "admitted":
        return "not admitted: it is attested, but may hold no key."
    if word(host, "standing") == "passed":
        return f"may receive keys it has a reason to ask for; {running}."
    return (
        f"no new keys and no renewals; {running} must stop when their leases end; "
        "moves to this host are refused."
    )


def _next_steps(reply: "GetHostResponse") -> list[str]:
    from trustauthority.cli.checks import remedies

    host = reply.host
    name = host.name or host.host_id
    if host.revoked:
        return [f"ta host reinstate {name}   when the reason for the revocation is gone"]
    steps = [] if word(host, "standing") == "passed" else remedies(reply.verdict.checks)
    if word(host, "standing") not in {"passed", "failed"}:
        steps.append(f"check that the agent on {name} runs and reaches this authority")
    if word(host, "admission") != "admitted":
        steps.append(f"ta host admit {name}")
    return steps
