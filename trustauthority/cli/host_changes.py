# ruff: noqa: D417 - options is documented by its class
"""``ta host``: the commands that change what a host may do."""

from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.options import DEFAULTS, DryRun, Options
from trustauthority.cli.render import STRONG, Field, Marked
from trustauthority.cli.session import Session, session
from trustauthority.cli.text import absolute, count, moment

if TYPE_CHECKING:
    from trustauthority.v1.admin_pb2 import Host, RevokeHostResponse

Why = Annotated[str, Parameter(name="--why")]
Approval = Annotated[str, Parameter(name="--approval-sha256")]


def admit(
    host: str,
    /,
    *,
    host_class: Annotated[str, Parameter(name="--class")] = "",
    approval_sha256: Approval = "",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Make a waiting host one of ours: from then on it may hold keys. Or give a host another class.

    Args:
        host: Name or id of the host.
        host_class: What hardware it is; baselines of a class match hosts of that class only. It must attest anew.
        approval_sha256: The approval hash you compared on the machine; a host that changed is refused.
        dry_run: Only check.
    """
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import HostServiceStub

    with session(options) as ta:
        service = ta.authority.on(HostServiceStub)
        record = service.read(lambda s: s.GetHost, admin.GetHostRequest(host=host)).host
        approval = approval_sha256 or record.approval_sha256
        if not dry_run:
            _show_identity(ta, record)
            ta.confirm(f"Admit {record.name}: it may hold keys of encrypted VMs.")
        reply = service.write(
            lambda s: s.AdmitHost,
            admin.AdmitHostRequest(
                host=host, approval_sha256=approval, host_class=host_class, dry_run=dry_run
            ),
        )
        _changed(ta, reply.host, "would be admitted" if dry_run else "is admitted")
    return ExitCode.YES


def rebind(
    host: str,
    new_host_id: str,
    /,
    *,
    approval_sha256: Approval = "",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Give a host's name to a new TPM, after a mainboard swap or a TPM2_Clear.

    Args:
        host: The name that goes to the new TPM.
        new_host_id: Id of the waiting host that takes the name.
        approval_sha256: The new host's approval hash you compared on the machine.
        dry_run: Only check.
    """
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import HostServiceStub

    with session(options) as ta:
        service = ta.authority.on(HostServiceStub)
        record = service.read(lambda s: s.GetHost, admin.GetHostRequest(host=new_host_id)).host
        approval = approval_sha256 or record.approval_sha256
        if not dry_run:
            _show_identity(ta, record)
            ta.confirm(f"Give the name {host} to this TPM; the one before loses it and every key.")
        request = admin.RebindHostRequest(
            host=host, new_host_id=new_host_id, approval_sha256=approval, dry_run=dry_run
        )
        reply = service.write(lambda s: s.RebindHost, request)
        _changed(ta, reply.host, "would be re-bound" if dry_run else "is re-bound")
    return ExitCode.YES


def remove(host: str, /, *, dry_run: DryRun = False, options: Options = DEFAULTS) -> ExitCode:
    """Forget a host; its name is free again, and it must enrol anew.

    Args:
        host: Name or id of the host.
        dry_run: Only check.
    """
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import HostServiceStub

    with session(options) as ta:
        if not dry_run:
            ta.confirm(f"Remove {host}: it gets no key any more and must enrol anew.")
        service = ta.authority.on(HostServiceStub)
        service.write(lambda s: s.RemoveHost, admin.RemoveHostRequest(host=host, dry_run=dry_run))
        ta.done(f"{host} {'would be' if dry_run else 'is'} removed", {"host": host})
    return ExitCode.YES


def revoke(
    host: str = "",
    /,
    *,
    everyone: Annotated[bool, Parameter(name="--all", negative="")] = False,
    why: Why = "",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Stop a host, or all: once this returns, no key and no renewal goes out to it.

    Args:
        host: Name or id of the host.
        everyone: Every host: every verdict so far stops counting, at once.
        why: For the audit log.
        dry_run: Only check.
    """
    from trustauthority.errors import InvalidRequest
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import HostServiceStub

    if bool(host) == everyone:
        raise InvalidRequest("name one host, or say --all", field="host")
    with session(options) as ta:
        service = ta.authority.on(HostServiceStub)
        if everyone:
            if not dry_run:
                ta.confirm("Revoke ALL hosts: VMs must stop when their leases end.")
            everything = service.write(
                lambda s: s.RevokeAll, admin.RevokeAllRequest(why=why, dry_run=dry_run)
            )
            text = "every host would be revoked" if dry_run else "every host is revoked"
            ta.done(f"{text}; global epoch {everything.global_epoch}", everything)
        else:
            request = admin.RevokeHostRequest(host=host, why=why, dry_run=dry_run)
            reply = service.write(lambda s: s.RevokeHost, request)
            _revoked(ta, host, reply, dry_run=dry_run)
    return ExitCode.YES


def reinstate(
    host: str,
    /,
    *,
    why: Why = "",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Undo a revocation; the host must attest anew before it gets a key.

    Args:
        host: Name or id of the host.
        why: For the audit log.
        dry_run: Only check.
    """
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import HostServiceStub

    with session(options) as ta:
        if not dry_run:
            ta.confirm(f"Reinstate {host}: once it attests, it may hold keys again.")
        reply = ta.authority.on(HostServiceStub).write(
            lambda s: s.ReinstateHost,
            admin.ReinstateHostRequest(host=host, why=why, dry_run=dry_run),
        )
        _changed(ta, reply.host, "would be reinstated" if dry_run else "is reinstated")
    return ExitCode.YES


def _show_identity(ta: Session, host: "Host") -> None:
    """Show a person what is about to be approved: it must match what the machine says of itself."""
    for label, value in (
        ("host", host.name),
        ("id", host.host_id),
        ("cluster", host.cluster),
        ("TPM", host.tpm),
        ("EK SHA-256", host.ek_sha256),
        ("approval", host.approval_sha256),
    ):
        ta.screen.say(f"  {label.ljust(10)}  {value}")


def _changed(ta: Session, host: "Host", what: str) -> None:
    from trustauthority.cli.host import host_fields

    name = host.name or host.host_id
    title = Marked(text=f"{name} {what}", style=STRONG)
    ta.screen.record(title, host_fields(ta, host), name=name, data=host)


def _revoked(ta: Session, host: str, reply: "RevokeHostResponse", *, dry_run: bool) -> None:
    until = moment(reply.last_fence_until)
    running = count(len(reply.running_vms), "VM")
    ta.screen.record(
        Marked(text=f"{host} {'would be' if dry_run else 'is'} revoked", style=STRONG),
        [
            Field("trust epoch", str(reply.trust_epoch)),
            Field("still runs", f"{running}: {', '.join(reply.running_vms)}" if until else "no VM"),
            Field("for certain until", absolute(until) if until else ""),
        ],
        name=host,
        data=reply,
    )


def set_region(
    host: str, region: str, /, *, dry_run: DryRun = False, options: Options = DEFAULTS
) -> ExitCode:
    """Say in which region a host is, for release policies of VMs. It is your word: nothing measures it.

    Args:
        host: Name or id of the host.
        region: 1-63 of a-z 0-9 . _ -; empty for none.
        dry_run: Only show what would be sent.
    """
    from trustauthority.v1 import keyadmin_pb2 as admin
    from trustauthority.v1.keyadmin_pb2_grpc import KeyAdministrationServiceStub

    with session(options) as ta:
        request = admin.SetHostRegionRequest(host=host, region=region)
        if dry_run:
            ta.would_send(request)
            return ExitCode.YES
        service = ta.authority.on(KeyAdministrationServiceStub)
        service.write(lambda s: s.SetHostRegion, request)
        ta.done(f"{host} is in region {region}" if region else f"{host} has no region", request)
    return ExitCode.YES


def add_to(app: App) -> None:
    """Register these commands with ``ta host``."""
    app.command(
        set_region,
        name="set-region",
        help_epilogue=examples(
            "ta host set-region esx-a01 eu-west", "ta host set-region esx-a01 eu-west --dry-run"
        ),
    )
    app.command(
        admit,
        help_epilogue=examples("ta host admit esx-a04", "ta host admit esx-a04 --dry-run"),
    )
    app.command(
        rebind,
        help_epilogue=examples(
            "ta host rebind esx-a03 h-5f0c…", "ta host rebind esx-a03 h-5f0c… --dry-run"
        ),
    )
    app.command(
        remove, help_epilogue=examples("ta host remove esx-a09", "ta host remove esx-a09 --yes")
    )
    app.command(
        revoke,
        help_epilogue=examples(
            "ta host revoke esx-a03 --why 'stolen disk'", "ta host revoke --all --why 'KMS breach'"
        ),
    )
    app.command(
        reinstate,
        help_epilogue=examples(
            "ta host reinstate esx-a03", "ta host reinstate esx-a03 --why 'board replaced'"
        ),
    )
