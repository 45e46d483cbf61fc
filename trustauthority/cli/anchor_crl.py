# ruff: noqa: D417 - options is documented by its class
"""``ta anchor crl``: what the makers of TPMs took back."""

from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App

from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.options import DEFAULTS, ClusterName, DryRun, Options
from trustauthority.cli.render import STRONG, Column, Marked
from trustauthority.cli.session import session
from trustauthority.cli.text import absolute, count, moment

if TYPE_CHECKING:
    from trustauthority.v1.admin_pb2 import Crl

app = App(name="crl", help="Revocation lists of TPM makers: TPMs that are accepted no more.")


@app.command(
    help_epilogue=examples(
        "ta anchor crl add maker-ca.crl --cluster prod",
        "ta anchor crl add crls/ --cluster prod --dry-run",
    )
)
def add(
    *paths: Path, cluster: ClusterName = "", dry_run: DryRun = False, options: Options = DEFAULTS
) -> ExitCode:
    """Go by revocation lists from now on. Each replaces an older one of its CA; hosts attest anew.

    Args:
        paths: Lists, DER or PEM: files, or folders of them.
        cluster: The cluster they hold for.
        dry_run: Only say what would be added.
    """
    from trustauthority.cli.certificate_files import files_below, read_bytes
    from trustauthority.errors import InvalidRequest
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import ClusterServiceStub

    files = [one for path in paths for one in (files_below(path) if path.is_dir() else [path])]
    if not files:
        raise InvalidRequest("name at least one file with a revocation list", field="paths")
    with session(options) as ta:
        where = ta.cluster(cluster)
        if not dry_run:
            ta.confirm(
                f"Go by {count(len(files), 'revocation list')}: hosts of {where} attest anew."
            )
        service = ta.authority.on(ClusterServiceStub)
        contents = [read_bytes(each) for each in files]
        # all of them are looked at before the first one counts
        added: list[Crl] = []
        for trial in (True,) if dry_run else (True, False):
            requests = [
                admin.AddCrlRequest(cluster=where, crl=each, dry_run=trial) for each in contents
            ]
            added = [service.write(lambda s: s.AddCrl, request).crl for request in requests]
        ta.screen.listing(
            added,
            _COLUMNS,
            header=f"{count(len(added), 'revocation list')} {'would be' if dry_run else 'are'} in force",
            empty="",
            name=lambda crl: crl.crl_id,
        )
    return ExitCode.YES


@app.command(
    name="list",
    help_epilogue=examples("ta anchor crl list", "ta anchor crl list --cluster prod -o json"),
)
def list_crls(*, cluster: ClusterName = "", options: Options = DEFAULTS) -> ExitCode:
    """List what is gone by, and when a newer one is due.

    Args:
        cluster: Only lists of this cluster.
    """
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import ClusterServiceStub

    with session(options) as ta:
        service = ta.authority.on(ClusterServiceStub)
        crls = list(service.read(lambda s: s.ListCrls, admin.ListCrlsRequest(cluster=cluster)).crls)
        ta.screen.listing(
            crls,
            _COLUMNS,
            header=ta.scope(count(len(crls), "revocation list")),
            empty="No revocation list is in force: a TPM that its maker took back is accepted.",
            name=lambda crl: crl.crl_id,
        )
    return ExitCode.YES


@app.command(
    help_epilogue=examples(
        "ta anchor crl remove 9f3c… --cluster prod", "ta anchor crl remove 9f3c… --dry-run"
    )
)
def remove(
    crl_id: str,
    /,
    *,
    cluster: ClusterName = "",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Go by a revocation list no more; what it took back is accepted again.

    Args:
        crl_id: As ta anchor crl list shows it.
        cluster: The cluster it holds for.
        dry_run: Only show what would be sent.
    """
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import ClusterServiceStub

    with session(options) as ta:
        request = admin.RemoveCrlRequest(cluster=ta.cluster(cluster), crl_id=crl_id)
        if dry_run:
            ta.would_send(request)
            return ExitCode.YES
        ta.confirm(f"Forget revocation list {crl_id} of cluster {request.cluster}.")
        ta.authority.on(ClusterServiceStub).write(lambda s: s.RemoveCrl, request)
        ta.done(f"revocation list {crl_id} is removed", {"crlId": crl_id}, name=crl_id)
    return ExitCode.YES


_COLUMNS: "list[Column[Crl]]" = [
    Column("ISSUER", lambda crl: crl.issuer),
    Column("CLUSTER", lambda crl: crl.cluster),
    Column("REVOKED", lambda crl: str(crl.revoked)),
    Column("NEXT", lambda crl: absolute(moment(crl.next_update))),
    Column("ID", lambda crl: Marked(text=crl.crl_id, style=STRONG)),
    Column("ISSUED", lambda crl: absolute(moment(crl.this_update)), wide=True),
    Column("ADDED", lambda crl: absolute(moment(crl.added_at)), wide=True),
    Column("BY", lambda crl: crl.added_by, wide=True),
]
