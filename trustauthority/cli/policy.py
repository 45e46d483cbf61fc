# ruff: noqa: D417 - options is documented by its class
"""``ta policy``: what must hold for a host to be trusted."""

from pathlib import Path

from cyclopts import App

from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.options import DEFAULTS, ClusterName, DryRun, Options
from trustauthority.cli.policy_runtime import app as runtime
from trustauthority.cli.session import session
from trustauthority.cli.text import absolute, moment
from trustauthority.client.plain import plain

app = App(name="policy", help="Policies: what must hold for a host to be trusted.")
app.command(runtime)


@app.command(help_epilogue=examples("ta policy show", "ta policy show -c prod > prod-policy.toml"))
def show(*, cluster: ClusterName = "", options: Options = DEFAULTS) -> ExitCode:
    """Print the policy in force, as it was applied.

    Args:
        cluster: The cluster.
    """
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import ClusterServiceStub

    with session(options) as ta:
        request = admin.GetPolicyRequest(cluster=ta.cluster(cluster))
        reply = ta.authority.on(ClusterServiceStub).read(lambda s: s.GetPolicy, request)
        if ta.screen.for_machines:
            ta.screen.machine(plain(reply), names=[reply.policy_sha256])
            return ExitCode.YES
        ta.screen.say(
            f"# cluster {request.cluster}, version {reply.policy_epoch}, in force since "
            f"{absolute(moment(reply.applied_at))} by {reply.applied_by}, {reply.policy_sha256}"
        )
        ta.screen.document(reply.document)
    return ExitCode.YES


@app.command(
    help_epilogue=examples(
        "ta policy apply prod-policy.toml -c prod --dry-run",
        "ta policy apply prod-policy.toml -c prod",
    )
)
def apply(
    file: Path,
    /,
    *,
    cluster: ClusterName = "",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Put a policy document in force; hosts are judged by it from their next evidence on.

    Args:
        file: The document, TOML.
        cluster: The cluster.
        dry_run: Only check the document.
    """
    from trustauthority.client.files import read_public
    from trustauthority.errors import PolicyInvalid
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import ClusterServiceStub

    try:
        document = read_public(file, "policy document").decode()
    except UnicodeDecodeError as error:
        raise PolicyInvalid(f"{file} is not UTF-8 text", fields="document") from error
    with session(options) as ta:
        request = admin.ApplyPolicyRequest(
            cluster=ta.cluster(cluster), document=document, dry_run=dry_run
        )
        reply = ta.authority.on(ClusterServiceStub).write(lambda s: s.ApplyPolicy, request)
        ta.done(
            f"the document is good ({reply.policy_sha256}); nothing was changed"
            if dry_run
            else f"policy version {reply.policy_epoch} is in force for cluster {request.cluster} "
            f"({reply.policy_sha256})",
            reply,
            name=reply.policy_sha256,
        )
    return ExitCode.YES
