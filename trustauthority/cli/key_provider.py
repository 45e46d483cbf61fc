# ruff: noqa: D417 - options is documented by its class
"""``ta key provider``: where KEKs are, how their KMS is, and which cluster uses which."""

from typing import TYPE_CHECKING

from cyclopts import App

from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.options import DEFAULTS, ClusterName, DryRun, Options
from trustauthority.cli.render import STRONG, Column, Field, Marked
from trustauthority.cli.session import Session, session
from trustauthority.cli.status import MARKS
from trustauthority.cli.text import absolute, count, left, moment
from trustauthority.client.plain import word

if TYPE_CHECKING:
    from trustauthority.v1.keyadmin_pb2 import KeyProvider

provider_app = App(name="provider", help="Key providers: names for KEKs in a KMS.")


@provider_app.command(
    name="list", help_epilogue=examples("ta key provider list", "ta key provider list -o json")
)
def list_providers(*, options: Options = DEFAULTS) -> ExitCode:
    """List key providers with the health of their KMS. Exits 1 when one does not work."""
    from trustauthority.v1 import keyadmin_pb2 as admin
    from trustauthority.v1.keyadmin_pb2_grpc import KeyAdministrationServiceStub

    with session(options) as ta:
        service = ta.authority.on(KeyAdministrationServiceStub)
        reply = service.read(lambda s: s.ListKeyProviders, admin.ListKeyProvidersRequest())
        ta.screen.listing(
            list(reply.providers),
            _COLUMNS,
            header=ta.scope(count(len(reply.providers), "key provider")),
            empty="No key provider is configured: see docs/reference/configuration.md",
            name=lambda provider: provider.name,
        )
    broken = any(word(each, "health") == "error" for each in reply.providers)
    return ExitCode.NO if broken else ExitCode.YES


@provider_app.command(
    help_epilogue=examples("ta key provider show default", "ta key provider show default -o json")
)
def show(name: str, /, *, options: Options = DEFAULTS) -> ExitCode:
    """Show a key provider: its KMS, and how many VM keys each version of its KEK wraps.

    A KEK that wraps no VM key any more may be destroyed in the KMS, when no backup needs it.

    Args:
        name: The provider.
    """
    from trustauthority.v1 import keyadmin_pb2 as admin
    from trustauthority.v1.keyadmin_pb2_grpc import KeyAdministrationServiceStub

    with session(options) as ta:
        service = ta.authority.on(KeyAdministrationServiceStub)
        request = admin.GetKeyProviderRequest(name=name)
        _show(ta, service.read(lambda s: s.GetKeyProvider, request).provider, name)
    return ExitCode.YES


@provider_app.command(
    help_epilogue=examples("ta key provider create bao", "ta key provider create bao --dry-run")
)
def create(name: str, /, *, dry_run: DryRun = False, options: Options = DEFAULTS) -> ExitCode:
    """Make the first KEK of a provider that is configured. Without this, the first VM key does.

    Args:
        name: The provider, as in the configuration of the key role.
        dry_run: Only show what would be sent.
    """
    from trustauthority.v1 import keyadmin_pb2 as admin
    from trustauthority.v1.keyadmin_pb2_grpc import KeyAdministrationServiceStub

    with session(options) as ta:
        request = admin.CreateKeyProviderRequest(name=name)
        if dry_run:
            ta.would_send(request)
            return ExitCode.YES
        service = ta.authority.on(KeyAdministrationServiceStub)
        reply = service.write(lambda s: s.CreateKeyProvider, request)
        _show(ta, reply.provider, f"key provider {name} has a KEK")
    return ExitCode.YES


@provider_app.command(
    name="set-default",
    help_epilogue=examples(
        "ta key provider set-default bao --cluster prod",
        "ta key provider set-default default -c lab --dry-run",
    ),
)
def set_default(
    name: str,
    /,
    *,
    cluster: ClusterName = "",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Choose the provider of a cluster's new keys. Keys that exist stay where they are: ta key rewrap.

    Args:
        name: The provider.
        cluster: The cluster.
        dry_run: Only show what would be sent.
    """
    from trustauthority.v1 import keyadmin_pb2 as admin
    from trustauthority.v1.keyadmin_pb2_grpc import KeyAdministrationServiceStub

    with session(options) as ta:
        chosen = ta.cluster(cluster)
        request = admin.SetDefaultKeyProviderRequest(cluster=chosen, provider=name)
        if dry_run:
            ta.would_send(request)
            return ExitCode.YES
        service = ta.authority.on(KeyAdministrationServiceStub)
        service.write(lambda s: s.SetDefaultKeyProvider, request)
        ta.done(f"new keys of cluster {chosen} are wrapped by {name}", request, name=name)
    return ExitCode.YES


def _show(ta: Session, provider: "KeyProvider", title: str) -> None:
    ends = moment(provider.credential_expires_at)
    fields = [
        Field("kind", provider.kind or "not configured"),
        Field("health", _health(provider)),
        Field("we accept the KMS", _yes_or_no(provider, "trusts_server")),
        Field("the KMS accepts us", _yes_or_no(provider, "trusted_by_server")),
        Field("credential until", f"{absolute(ends)} ({left(ends, ta.now)})" if ends else ""),
        Field("default of", ", ".join(provider.clusters)),
        *(
            Field(
                f"KEK version {each.version}",
                f"{each.kek_id}: {count(each.keys, 'VM key')}, "
                f"made {absolute(moment(each.created_at))} by {each.created_by}",
            )
            for each in provider.versions
        ),
    ]
    ta.screen.record(Marked(text=title, style=STRONG), fields, name=provider.name, data=provider)


def _health(provider: "KeyProvider") -> Marked:
    mark, style = MARKS.get(word(provider, "health"), ("?", ""))
    return Marked(text=f"{mark} {provider.detail}", style=style)


def _yes_or_no(provider: "KeyProvider", field: str) -> str:
    if not provider.HasField(field):  # type: ignore[arg-type]
        return ""
    return "yes" if getattr(provider, field) else "no"


_COLUMNS: "list[Column[KeyProvider]]" = [
    Column("PROVIDER", lambda provider: provider.name),
    Column("KIND", lambda provider: provider.kind),
    Column("KEK", lambda p: f"version {p.versions[0].version}" if p.versions else "none"),
    Column("VM KEYS", lambda p: str(sum(each.keys for each in p.versions))),
    Column("DEFAULT OF", lambda provider: ", ".join(provider.clusters)),
    Column("HEALTH", _health),
]
