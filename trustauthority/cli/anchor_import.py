"""What ``ta anchor import`` does: plan, show per vendor, ask, add one by one.

Roots and the CAs below them become anchors. One that is there already is no failure, so that an
import that broke off can be repeated.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from trustauthority.cli.certificate_files import files_below, read_bytes
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.render import Column
from trustauthority.cli.session import Session
from trustauthority.cli.text import count
from trustauthority.client.errors import ClientError
from trustauthority.errors import AlreadyExists, InvalidRequest

if TYPE_CHECKING:
    from trustauthority.model.certificate import Certificate
    from trustauthority.verification.anchor_import import AnchorImport, VendorImport

MAX_REFUSED_SHOWN = 10


def import_from(
    ta: Session, path: Path, cluster: str, *, ek_type: str, allow_test: bool, dry_run: bool
) -> ExitCode:
    """Import the CA certificates of a file or folder."""
    plan = _plan(ta, path, allow_test=allow_test)
    certificates = [
        certificate
        for vendor in plan.vendors
        for certificate in (*(one.certificate for one in vendor.anchors), *vendor.intermediates)
    ]
    _tell_refused(ta, plan)
    if not certificates:
        raise InvalidRequest(f"{path} holds no CA that may vouch for TPMs", field="path")
    where = ta.cluster(cluster)
    ta.screen.listing(
        plan.vendors,
        _COLUMNS,
        header=f"{count(len(certificates), 'anchor')} for cluster {where}: every TPM they vouch for",
        empty="",
        name=lambda vendor: vendor.vendor,
        data=lambda vendor: {
            "vendor": vendor.vendor,
            "roots": len(vendor.anchors),
            "below": len(vendor.intermediates),
        },
    )
    if dry_run:
        return ExitCode.YES
    ta.confirm(f"Accept {count(len(certificates), 'anchor')} for cluster {where}.")
    added = sum(_add(ta, each, where, ek_type) for each in certificates)
    ta.screen.say(f"{added} added, {len(certificates) - added} were there already")
    return ExitCode.YES


def _plan(ta: Session, path: Path, *, allow_test: bool) -> "AnchorImport":
    from trustauthority.model.endorsement import EndorsementPolicy
    from trustauthority.verification.anchor_import import plan_anchor_import

    files = files_below(path) if path.is_dir() else [path]
    base = path if path.is_dir() else path.parent
    return plan_anchor_import(
        ((file.relative_to(base).as_posix(), read_bytes(file)) for file in files),
        now=ta.now,
        policy=EndorsementPolicy(),
        allow_test_authorities=allow_test,
    )


def _tell_refused(ta: Session, plan: "AnchorImport") -> None:
    refused = plan.refused
    for candidate in refused[:MAX_REFUSED_SHOWN]:
        ta.screen.say(f"not taken: {candidate.file}: {candidate.why}")
    if len(refused) > MAX_REFUSED_SHOWN:
        ta.screen.say(f"not taken: {len(refused) - MAX_REFUSED_SHOWN} more")


def _add(ta: Session, certificate: "Certificate", cluster: str, ek_type: str) -> bool:
    """Add one anchor; False when the cluster has it already."""
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import ClusterServiceStub

    request = admin.AddAnchorRequest(
        cluster=cluster,
        kind=admin.ANCHOR_KIND_CA,
        certificate=certificate.raw,
        ek_type=ek_type,
    )
    try:
        ta.authority.on(ClusterServiceStub).write(lambda s: s.AddAnchor, request)
    except ClientError as error:
        if error.reason != AlreadyExists.reason:
            raise
        return False
    return True


_COLUMNS: "list[Column[VendorImport]]" = [
    Column("VENDOR", lambda vendor: vendor.vendor),
    Column("ROOTS", lambda vendor: str(len(vendor.anchors))),
    Column("BELOW", lambda vendor: str(len(vendor.intermediates))),
]
