# ruff: noqa: D417 - options is documented by its class
"""``ta anchor``: whose TPMs are accepted."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from trustauthority.cli.anchor_crl import app as crl
from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.hexes import sha256_argument
from trustauthority.cli.options import DEFAULTS, ClusterName, DryRun, Options
from trustauthority.cli.render import STRONG, Column, Field, Marked
from trustauthority.cli.session import Session, session
from trustauthority.cli.text import absolute, count, moment
from trustauthority.client.plain import word

if TYPE_CHECKING:
    from trustauthority.model.certificate import Certificate
    from trustauthority.v1.admin_pb2 import AddAnchorRequest, Anchor

app = App(name="anchor", help="Anchors: the TPM makers' CAs, or single TPMs, that are accepted.")
app.command(crl)


@app.command(
    help_epilogue=examples(
        "ta anchor add infineon-root.pem --cluster prod",
        "ta anchor add --ek-sha256 5f0c…e1 --cluster lab",
        "ta anchor add infineon-root.pem --cluster prod --dry-run",
    )
)
def add(
    certificate: Path | None = None,
    /,
    *,
    cluster: ClusterName = "",
    ek_sha256: Annotated[str, Parameter(name="--ek-sha256")] = "",
    ek_type: Literal["rsa", "ecc"] = "rsa",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Accept the TPMs of a CA, or one TPM. Shows what that would trust, and asks.

    Being accepted is not being admitted: see ta inventory and ta host admit.

    Args:
        certificate: CA certificates, PEM or DER; each becomes an anchor.
        cluster: The cluster it holds for.
        ek_sha256: Instead of a CA: the one TPM whose EK public key has this SHA-256.
        ek_type: The one kind of EK it admits; a TPM usually has two, and is one host.
        dry_run: Only say what would be added.
    """
    from trustauthority.errors import InvalidRequest
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import ClusterServiceStub

    if (certificate is None) == (not ek_sha256):
        raise InvalidRequest(
            "give a file with CA certificates, or --ek-sha256", field="certificate"
        )
    with session(options) as ta:
        where = ta.cluster(cluster)
        requests = []
        if certificate is None:
            requests.append(
                admin.AddAnchorRequest(
                    cluster=where,
                    kind=admin.ANCHOR_KIND_EK,
                    ek_sha256=sha256_argument(ek_sha256, "--ek-sha256"),
                    ek_type=ek_type,
                    dry_run=dry_run,
                )
            )
            ta.screen.say(f"This accepts one TPM for cluster {where}: EK SHA-256 {ek_sha256}")
        else:
            requests += _ca_requests(ta, certificate, where, ek_type=ek_type, dry_run=dry_run)
        if not dry_run:
            ta.confirm(f"Accept {count(len(requests), 'anchor')} for cluster {where}.")
        service = ta.authority.on(ClusterServiceStub)
        added = [service.write(lambda s: s.AddAnchor, request).anchor for request in requests]
        ta.screen.listing(
            added,
            _COLUMNS,
            header=f"{count(len(added), 'anchor')} {'would be' if dry_run else 'are'} accepted",
            empty="",
            name=lambda anchor: anchor.anchor_id,
        )
    return ExitCode.YES


@app.command(
    name="import",
    help_epilogue=examples(
        "ta anchor import TrustedTpm/ --cluster prod --dry-run",
        "ta anchor import vendor-roots.pem --cluster prod",
    ),
)
def import_anchors(
    path: Path,
    /,
    *,
    cluster: ClusterName = "",
    ek_type: Literal["rsa", "ecc"] = "rsa",
    test_authorities: bool = False,
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Accept the CAs of a folder or bundle. Shows per vendor what that would trust, and asks.

    Args:
        path: A PEM bundle, or a folder such as the extracted TrustedTpm.cab.
        cluster: The cluster they hold for.
        ek_type: The one kind of EK they admit; a TPM usually has two, and is one host.
        test_authorities: Take CAs of software TPMs too. Never in production.
        dry_run: Only say what would be added.
    """
    from trustauthority.cli.anchor_import import import_from

    with session(options) as ta:
        return import_from(
            ta, path, cluster, ek_type=ek_type, allow_test=test_authorities, dry_run=dry_run
        )


@app.command(
    name="list", help_epilogue=examples("ta anchor list", "ta anchor list --cluster prod -o wide")
)
def list_anchors(*, cluster: ClusterName = "", options: Options = DEFAULTS) -> ExitCode:
    """List what is accepted.

    Args:
        cluster: Only anchors of this cluster.
    """
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import ClusterServiceStub

    with session(options) as ta:
        request = admin.ListAnchorsRequest(cluster=cluster)
        service = ta.authority.on(ClusterServiceStub)
        anchors = list(service.read(lambda s: s.ListAnchors, request).anchors)
        ta.screen.listing(
            anchors,
            _COLUMNS,
            header=ta.scope(count(len(anchors), "anchor")),
            empty="No TPM is accepted, so no host can enrol. Add a maker's CA: ta anchor add FILE",
            name=lambda anchor: anchor.anchor_id,
        )
    return ExitCode.YES


@app.command(
    help_epilogue=examples(
        "ta anchor remove 9f3c… --cluster prod", "ta anchor remove 9f3c… --dry-run"
    )
)
def remove(
    anchor_id: str,
    /,
    *,
    cluster: ClusterName = "",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Stop accepting an anchor for new enrolments; hosts that are enrolled stay.

    Args:
        anchor_id: As ta anchor list shows it.
        cluster: The cluster it holds for.
        dry_run: Only show what would be sent.
    """
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import ClusterServiceStub

    with session(options) as ta:
        request = admin.RemoveAnchorRequest(cluster=ta.cluster(cluster), anchor_id=anchor_id)
        if dry_run:
            ta.would_send(request)
            return ExitCode.YES
        ta.confirm(f"Remove anchor {anchor_id} of cluster {request.cluster}.")
        ta.authority.on(ClusterServiceStub).write(lambda s: s.RemoveAnchor, request)
        ta.done(f"anchor {anchor_id} is removed", {"anchorId": anchor_id}, name=anchor_id)
    return ExitCode.YES


def _ca_requests(
    ta: Session, path: Path, cluster: str, *, ek_type: str, dry_run: bool
) -> "list[AddAnchorRequest]":
    # our own decoder: the usual library refuses genuine certificates of several TPM makers
    from trustauthority.cli.certificate_files import read_bytes
    from trustauthority.codec.x509 import decode_certificates
    from trustauthority.v1 import admin_pb2 as admin

    requests = []
    for certificate in decode_certificates(read_bytes(path)):
        ta.screen.say(f"This accepts for cluster {cluster} every TPM that this CA vouches for:")
        for field in _ca_fields(certificate):
            ta.screen.say(f"  {field.label.ljust(10)}  {field.cell}")
        requests.append(
            admin.AddAnchorRequest(
                cluster=cluster,
                kind=admin.ANCHOR_KIND_CA,
                certificate=certificate.raw,
                ek_type=ek_type,
                dry_run=dry_run,
            )
        )
    return requests


def _ca_fields(certificate: "Certificate") -> list[Field]:
    return [
        Field("subject", certificate.subject.text),
        Field("issuer", certificate.issuer.text),
        Field("valid from", absolute(certificate.not_before)),
        Field("valid to", absolute(certificate.not_after)),
        Field("SHA-256", certificate.fingerprint.hex()),
    ]


_COLUMNS: "list[Column[Anchor]]" = [
    Column("KIND", lambda anchor: word(anchor, "kind")),
    Column("SUBJECT", lambda anchor: anchor.subject),
    Column("CLUSTER", lambda anchor: anchor.cluster),
    Column("EXPIRES", lambda anchor: absolute(moment(anchor.expires_at))),
    Column("ID", lambda anchor: Marked(text=anchor.anchor_id, style=STRONG)),
    Column("ADDED", lambda anchor: absolute(moment(anchor.added_at)), wide=True),
    Column("BY", lambda anchor: anchor.added_by, wide=True),
]
