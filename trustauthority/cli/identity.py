# ruff: noqa: D417 - options is documented by its class
"""``ta identity``: people and programs that may call, by their registered keys."""

from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.options import DEFAULTS, DryRun, Duration, Options
from trustauthority.cli.render import BAD, CAUTION, STRONG, Cell, Column, Field, Marked
from trustauthority.cli.session import WORLD, Session, session
from trustauthority.cli.text import absolute, count, left, moment
from trustauthority.client.plain import enum_word

if TYPE_CHECKING:
    from trustauthority.v1.admin_pb2 import Identity

app = App(name="identity", help="Identities: people and programs that may call, and their roles.")


class RoleName(StrEnum):
    """What an identity may do."""

    POLICY = "policy"
    HOSTS = "hosts"
    KEYS = "keys"
    AUDITOR = "auditor"
    APPROVER = "approver"
    OPERATOR = "operator"
    PLACEMENT = "placement"
    IDENTITY = "identity"
    BREAK_GLASS = "break-glass"


@app.command(
    help_epilogue=examples(
        "ta identity issue alice --role policy --key alice.key --cert alice.pem",
        "ta identity issue nova --role placement --key nova.key --cert nova.pem --ttl 90d",
    )
)
def issue(
    name: str,
    /,
    *,
    role: list[RoleName],
    key: Path,
    cert: Path,
    ttl: Duration = timedelta(0),
    add_context: Annotated[str, Parameter(name="--add-context")] = "",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Make a key here and have it certified and registered with roles. The key never leaves.

    Args:
        name: Who or what it is: 1-63 of a-z 0-9 . _ -.
        role: What it may do; may be given several times.
        key: File for the new private key (P-256, readable by you alone); must not exist.
        cert: File for the certificate; must not exist.
        ttl: How long the certificate counts (30d unless given, at most 365d).
        add_context: Also add a context of this name that uses them.
        dry_run: Only show what would be sent.
    """
    from trustauthority.client.files import write_private
    from trustauthority.client.identity_keys import new_key, request_for
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import IdentityServiceStub

    with session(options) as ta:
        _require_free(key, cert)
        pem, private = new_key()
        roles = [admin.Role.Value(f"ROLE_{one.name}") for one in role]
        request = admin.IssueIdentityRequest(
            name=name,
            roles=roles,
            certificate_request=request_for(private, name),
            ttl_ms=ttl // timedelta(milliseconds=1),
        )
        if dry_run:
            ta.would_send(request)
            return ExitCode.YES
        ta.confirm(f"Register {name} as {', '.join(role)}.")
        write_private(key, pem, replace=False)
        try:
            reply = ta.authority.on(IdentityServiceStub).write(lambda s: s.IssueIdentity, request)
        except Exception:
            # Nobody certified it as far as we know: a key without a use is not left behind.
            key.unlink(missing_ok=True)
            raise
        write_private(cert, reply.certificate_chain, replace=False)
        for warning in reply.warnings:
            ta.screen.warn(warning)
        if add_context:
            _add_context(ta, add_context, key, cert)
        fields = [*_fields(ta, reply.identity), Field("key", str(key)), Field("cert", str(cert))]
        title = Marked(text=f"{name} is registered", style=STRONG)
        ta.screen.record(title, fields, name=name, data=reply.identity)
    return ExitCode.YES


@app.command(help_epilogue=examples("ta identity renew", "ta identity renew --ttl 90d"))
def renew(
    *, ttl: Duration = timedelta(0), dry_run: DryRun = False, options: Options = DEFAULTS
) -> ExitCode:
    """Get a new certificate for your own registered key, in place of the context's.

    Args:
        ttl: How long the certificate counts (30d unless given, at most 365d).
        dry_run: Only show what would be sent.
    """
    from trustauthority.client.files import write_private
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import IdentityServiceStub

    with session(options) as ta:
        request = admin.RenewIdentityRequest(ttl_ms=ttl // timedelta(milliseconds=1))
        if dry_run:
            ta.would_send(request)
            return ExitCode.YES
        reply = ta.authority.on(IdentityServiceStub).write(lambda s: s.RenewIdentity, request)
        write_private(ta.context.certificate, reply.certificate_chain)
        ta.screen.record(
            Marked(text=f"{reply.identity.name} has a new certificate", style=STRONG),
            [*_fields(ta, reply.identity), Field("cert", str(ta.context.certificate))],
            name=reply.identity.name,
            data=reply.identity,
        )
    return ExitCode.YES


@app.command(help_epilogue=examples("ta identity revoke bob", "ta identity revoke bob --yes"))
def revoke(name: str, /, *, dry_run: DryRun = False, options: Options = DEFAULTS) -> ExitCode:
    """Stop a registered key from calling, at once.

    Args:
        name: The identity.
        dry_run: Only show what would be sent.
    """
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import IdentityServiceStub

    with session(options) as ta:
        request = admin.RevokeIdentityRequest(name=name)
        if dry_run:
            ta.would_send(request)
            return ExitCode.YES
        ta.confirm(f"Revoke identity {name}: its key may not call any more.")
        ta.authority.on(IdentityServiceStub).write(lambda s: s.RevokeIdentity, request)
        ta.done(f"identity {name} is revoked", {"name": name}, name=name)
    return ExitCode.YES


@app.command(name="list", help_epilogue=examples("ta identity list", "ta identity list -o wide"))
def list_identities(*, options: Options = DEFAULTS) -> ExitCode:
    """List registered keys and their roles."""
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import IdentityServiceStub

    with session(options) as ta:
        service = ta.authority.on(IdentityServiceStub)
        request = admin.ListIdentitiesRequest()
        rows = list(service.read(lambda s: s.ListIdentities, request).identities)
        ta.screen.listing(
            rows,
            _columns(ta),
            header=ta.scope(count(len(rows), "identity", "identities")),
            empty="No identity is registered: ta identity issue NAME --role ROLE --key K --cert C",
            name=lambda identity: identity.name,
        )
    return ExitCode.YES


def _require_free(*paths: Path) -> None:
    from trustauthority.errors import AlreadyExists

    for path in paths:
        if path.exists():
            raise AlreadyExists(
                f"{path} exists and is not replaced; choose another name",
                kind="file",
                name=str(path),
            )


def _add_context(ta: Session, name: str, key: Path, cert: Path) -> None:
    from dataclasses import replace

    from trustauthority.client.contexts import save_context

    context = replace(ta.context, name=name, certificate=cert.resolve(), key=key.resolve())
    save_context(WORLD.get().environment, context, use=False)
    ta.screen.say(f"context {name} is added: ta context use {name}")


def _roles(identity: "Identity") -> str:
    field = identity.DESCRIPTOR.fields_by_name["roles"]
    return ", ".join(enum_word(field, role) for role in identity.roles)


def _state(identity: "Identity") -> Cell:
    return Marked(text="✖ revoked", style=BAD) if identity.revoked else "active"


def _fields(ta: Session, identity: "Identity") -> list[Field]:
    end = moment(identity.certificate_expires_at)
    return [
        Field("roles", _roles(identity)),
        Field("certificate until", f"{absolute(end)} ({left(end, ta.now)})" if end else ""),
        Field("key SHA-256", identity.key_sha256),
        Field("issued by", identity.issued_by),
    ]


def _columns(ta: Session) -> "list[Column[Identity]]":
    def until(identity: "Identity") -> Cell:
        end = moment(identity.certificate_expires_at)
        if ta.screen.wide:
            return absolute(end)
        soon = end is not None and end - ta.now < timedelta(days=7)
        return Marked(text=left(end, ta.now), style=CAUTION if soon else "")

    return [
        Column("IDENTITY", lambda identity: identity.name),
        Column("ROLES", _roles),
        Column("STATE", _state),
        Column("CERTIFICATE", until),
        Column("ISSUED BY", lambda identity: identity.issued_by),
        Column("KEY SHA-256", lambda identity: identity.key_sha256, wide=True),
    ]
