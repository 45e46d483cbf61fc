# ruff: noqa: D417 - options is documented by its class
"""``ta cluster``: sets of hosts under one policy."""

from typing import TYPE_CHECKING

from cyclopts import App

from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.options import DEFAULTS, DryRun, Options
from trustauthority.cli.render import STRONG, Column, Field, Marked
from trustauthority.cli.session import session
from trustauthority.cli.text import absolute, count, moment

if TYPE_CHECKING:
    from trustauthority.v1.admin_pb2 import Cluster

app = App(name="cluster", help="Trusted clusters: sets of hosts under one policy.")


@app.command(help_epilogue=examples("ta cluster create prod", "ta cluster create lab --dry-run"))
def create(name: str, /, *, dry_run: DryRun = False, options: Options = DEFAULTS) -> ExitCode:
    """Make a trusted cluster.

    Args:
        name: Its name: 1-63 of a-z 0-9 . _ -.
        dry_run: Only show what would be sent.
    """
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import ClusterServiceStub

    with session(options) as ta:
        request = admin.CreateClusterRequest(name=name)
        if dry_run:
            ta.would_send(request)
            return ExitCode.YES
        service = ta.authority.on(ClusterServiceStub)
        made = service.write(lambda s: s.CreateCluster, request).cluster
        ta.screen.record(
            Marked(text=f"cluster {made.name} is made", style=STRONG),
            [
                Field("policy", f"{made.policy_name} v{made.policy_epoch}"),
                Field("next", f"ta anchor add CA.pem --cluster {made.name}"),
            ],
            name=made.name,
            data=made,
        )
    return ExitCode.YES


@app.command(name="list", help_epilogue=examples("ta cluster list", "ta cluster list -o json"))
def list_clusters(*, options: Options = DEFAULTS) -> ExitCode:
    """List trusted clusters."""
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import ClusterServiceStub

    with session(options) as ta:
        service = ta.authority.on(ClusterServiceStub)
        clusters = list(
            service.read(lambda s: s.ListClusters, admin.ListClustersRequest()).clusters
        )
        ta.screen.listing(
            clusters,
            _COLUMNS,
            header=ta.scope(count(len(clusters), "cluster")),
            empty="There is no cluster. Make one: ta cluster create NAME",
            name=lambda cluster: cluster.name,
        )
    return ExitCode.YES


_COLUMNS: "list[Column[Cluster]]" = [
    Column("CLUSTER", lambda cluster: cluster.name),
    Column("HOSTS", lambda cluster: str(cluster.hosts)),
    Column("POLICY", lambda cluster: f"{cluster.policy_name} v{cluster.policy_epoch}"),
    Column(
        "ADMITS", lambda cluster: "by inventory" if cluster.admit_by_inventory else "by approval"
    ),
    Column("CREATED", lambda cluster: absolute(moment(cluster.created_at)), wide=True),
]
