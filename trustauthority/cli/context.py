# ruff: noqa: D417 - options is documented by its class
"""``ta context``: which authority, believed by which CA, as whom."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.options import DEFAULTS, DryRun, Options
from trustauthority.cli.render import CAUTION, STRONG, Cell, Column, Field, Marked
from trustauthority.cli.session import WORLD, screen_for
from trustauthority.cli.text import absolute, count, left

if TYPE_CHECKING:
    from trustauthority.client.contexts import AuditKey, Context

app = App(name="context", help="Contexts: which authority to ask, whom to believe, as whom.")


@app.command(
    help_epilogue=examples(
        "ta context add prod --server ta.example:8443 --ca ca.pem --cert me.pem --key me.key",
        "ta context add prod --server ta:8443 --key-server ta:8444 --ca ca.pem --cert me.pem "
        "--key me.key --audit-key audit.vkey --cluster prod",
    )
)
def add(
    name: str,
    /,
    *,
    key_server: str = "",
    ca: Path,
    cert: Path,
    key: Path,
    audit_key: Annotated[str, Parameter(name="--audit-key")] = "",
    cluster: str = "",
    use: Annotated[bool, Parameter(negative="")] = False,
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Add or replace a context; --server says where the authority is.

    Args:
        name: Its name: 1-63 of a-z 0-9 . _ -.
        key_server: HOST:PORT of the process with the key role, when it is another one.
        ca: The authority's CA certificate; nothing else is believed.
        cert: Your certificate.
        key: Your private key; nobody else may read it.
        audit_key: Key that signs the audit log (ORIGIN+ID+BASE64), or a file that holds it.
        cluster: Cluster that commands mean when none is given.
        use: Make it the current context.
        dry_run: Only check it.
    """
    from trustauthority.client.certificates import read_validity
    from trustauthority.client.contexts import Context, save_context
    from trustauthority.client.files import read_private
    from trustauthority.errors import InvalidRequest
    from trustauthority.model.identifiers import is_name

    address = options.server
    for text, field, good in ((name, "name", is_name(name)), (address, "server", ":" in address)):
        if not good:
            raise InvalidRequest(f"{text!r} can't be the {field} of a context", field=field)
    context = Context(
        name=name,
        server=address,
        key_server=key_server,
        ca=ca.absolute(),
        certificate=cert.absolute(),
        key=key.absolute(),
        audit_key=_audit_key(audit_key),
        cluster=cluster,
    )
    read_validity(context.ca)
    read_validity(context.certificate)
    read_private(context.key, "private key")
    if not dry_run:
        save_context(WORLD.get().environment, context, use=use)
    _record(options, context, f"context {name} {'would be' if dry_run else 'is'} added")
    return ExitCode.YES


@app.command(name="list", help_epilogue=examples("ta context list", "ta context list -o name"))
def list_contexts(*, options: Options = DEFAULTS) -> ExitCode:
    """List contexts; the current one is marked."""
    from trustauthority.client.contexts import load_contexts

    screen = screen_for(options)
    contexts = load_contexts(WORLD.get().environment)
    columns: list[Column[Context]] = [
        Column("", lambda context: "→" if context.name == contexts.current else " "),
        Column("CONTEXT", lambda context: context.name),
        Column("SERVER", lambda context: context.server),
        Column("KEY SERVER", lambda context: context.key_server),
        Column("CLUSTER", lambda context: context.cluster),
        Column("CERTIFICATE", lambda context: str(context.certificate), wide=True),
    ]
    screen.listing(
        [contexts.contexts[name] for name in sorted(contexts.contexts)],
        columns,
        header=f"{count(len(contexts.contexts), 'context')} in {contexts.path}",
        empty="There is no context. Add one: ta context add NAME --server HOST:PORT --ca CA.pem "
        "--cert CERT.pem --key KEY",
        name=lambda context: context.name,
        data=_data,
    )
    return ExitCode.YES


@app.command(help_epilogue=examples("ta context use prod", "ta context use lab"))
def use(name: str, /, *, options: Options = DEFAULTS) -> ExitCode:
    """Make a context the current one.

    Args:
        name: The context.
    """
    from trustauthority.client.contexts import use_context

    use_context(WORLD.get().environment, name)
    screen_for(options).say(f"context {name} is in use")
    return ExitCode.YES


@app.command(help_epilogue=examples("ta context show", "ta context show prod -o json"))
def show(name: str = "", /, *, options: Options = DEFAULTS) -> ExitCode:
    """Show a context, the current one unless named.

    Args:
        name: The context.
    """
    from trustauthority.client.contexts import load_contexts

    context = load_contexts(WORLD.get().environment).get(name or options.context)
    _record(options, context, context.name)
    return ExitCode.YES


@app.command(help_epilogue=examples("ta context remove lab", "ta context remove lab -q"))
def remove(name: str, /, *, options: Options = DEFAULTS) -> ExitCode:
    """Forget a context; its certificate and key stay where they are.

    Args:
        name: The context.
    """
    from trustauthority.client.contexts import remove_context

    remove_context(WORLD.get().environment, name)
    screen_for(options).say(f"context {name} is removed")
    return ExitCode.YES


def _audit_key(text: str) -> "AuditKey | None":
    from trustauthority.client.contexts import parse_audit_key
    from trustauthority.client.files import read_public

    if not text:
        return None
    if "+" not in text or Path(text).exists():
        text = read_public(Path(text), "audit key").decode("ascii", "replace")
    return parse_audit_key(text)


def _data(context: "Context") -> dict[str, Any]:
    return {
        "name": context.name,
        "server": context.server,
        "keyServer": context.key_server,
        "ca": str(context.ca),
        "certificate": str(context.certificate),
        "key": str(context.key),
        "auditKey": str(context.audit_key or ""),
        "cluster": context.cluster,
    }


def _record(options: Options, context: "Context", title: str) -> None:
    screen = screen_for(options)
    fields = [
        Field("server", context.server),
        Field("key server", context.key_server),
        Field("CA", str(context.ca)),
        Field("certificate", str(context.certificate)),
        Field("valid until", _validity(context, screen.now)),
        Field("key", str(context.key)),
        Field("audit key", str(context.audit_key or "! not pinned")),
        Field("cluster", context.cluster),
    ]
    data = _data(context)
    screen.record(Marked(text=title, style=STRONG), fields, name=context.name, data=data)


def _validity(context: "Context", now: Any) -> Cell:
    from trustauthority.client.certificates import read_validity
    from trustauthority.errors import ConfigurationInvalid

    try:
        validity = read_validity(context.certificate)
    except ConfigurationInvalid as error:
        return Marked(text=f"! {error.message}", style=CAUTION)
    text = f"{absolute(validity.not_after)} ({left(validity.not_after, now)})"
    return Marked(text=f"! {text}", style=CAUTION) if validity.is_near_its_end(now) else text
