# ruff: noqa: D417 - options is documented by its class
"""``ta anchor``: whose TPMs are accepted."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.hexes import sha256_argument
from trustauthority.cli.options import DEFAULTS, ClusterName, DryRun, Options
from trustauthority.cli.plain import word
from trustauthority.cli.render import STRONG, Column, Field, Marked
from trustauthority.cli.session import Session, session
from trustauthority.cli.text import absolute, count, moment

if TYPE_CHECKING:
    from cryptography import x509

    from trustauthority.v1.admin_pb2 import AddAnchorRequest, Anchor

app = App(name="anchor", help="Anchors: the TPM makers' CAs, or single TPMs, that are accepted.")


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
    from cryptography.hazmat.primitives.serialization import Encoding

    from trustauthority.v1 import admin_pb2 as admin

    requests = []
    for certificate in read_certificates(path):
        der = certificate.public_bytes(Encoding.DER)
        ta.screen.say(f"This accepts for cluster {cluster} every TPM that this CA vouches for:")
        for field in _ca_fields(certificate, der):
            ta.screen.say(f"  {field.label.ljust(10)}  {field.cell}")
        requests.append(
            admin.AddAnchorRequest(
                cluster=cluster,
                kind=admin.ANCHOR_KIND_CA,
                certificate=der,
                ek_type=ek_type,
                dry_run=dry_run,
            )
        )
    return requests


def read_certificates(path: Path) -> "list[x509.Certificate]":
    """Certificates of a PEM or DER file. Raises ConfigurationInvalid."""
    from cryptography import x509

    from trustauthority.client.files import read_public
    from trustauthority.errors import ConfigurationInvalid

    content = read_public(path, "certificate file")
    try:
        if b"-----BEGIN" in content:
            return x509.load_pem_x509_certificates(content)
        return [x509.load_der_x509_certificate(content)]
    except ValueError as error:
        raise ConfigurationInvalid(
            f"{path} holds no certificate that can be read: {error}", path=str(path)
        ) from error


def _ca_fields(certificate: "x509.Certificate", der: bytes) -> list[Field]:
    return [
        Field("subject", certificate.subject.rfc4514_string()),
        Field("issuer", certificate.issuer.rfc4514_string()),
        Field("valid from", absolute(certificate.not_valid_before_utc)),
        Field("valid to", absolute(certificate.not_valid_after_utc)),
        Field("SHA-256", hashlib.sha256(der).hexdigest()),
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
