# ruff: noqa: D417 - options is documented by its class
"""``ta report``: signed statements of verdicts, and their check without an authority."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.options import DEFAULTS, Options
from trustauthority.cli.render import GOOD, STRONG, Field, Marked
from trustauthority.cli.report_token import check_token, read_keys, unverified_claims
from trustauthority.cli.session import screen_for, session
from trustauthority.cli.text import absolute, left
from trustauthority.client.plain import plain

app = App(name="report", help="Reports: signed statements of verdicts, for other systems.")


@app.command(
    help_epilogue=examples("ta report show esx-a03", "ta report show esx-a03 --raw > esx-a03.jwt")
)
def show(
    host: str,
    /,
    *,
    raw: Annotated[bool, Parameter(negative="")] = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Show a host's newest report, with the verdict it states.

    Args:
        host: Name or id of the host.
        raw: Print the signed token itself, for other systems.
    """
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import ReportServiceStub

    with session(options) as ta:
        service = ta.authority.on(ReportServiceStub)
        reply = service.read(lambda s: s.GetReport, admin.GetReportRequest(host=host))
        if raw:
            ta.screen.document(reply.report)
            return ExitCode.YES
        claims = unverified_claims(reply.report)
        if ta.screen.for_machines:
            data = {"claims": claims, "verdict": plain(reply.verdict), "report": reply.report}
            ta.screen.machine(data, names=[host])
            return ExitCode.YES
        from trustauthority.cli.checks import show_checks

        ta.screen.line(Marked(text=f"report of {host}", style=STRONG))
        ta.screen.fields(_fields(claims, ta.now))
        show_checks(ta.screen, reply.verdict.checks, everything=ta.screen.wide)
    return ExitCode.YES


@app.command(help_epilogue=examples("ta report keys > report-keys.json", "ta report keys -o yaml"))
def keys(*, options: Options = DEFAULTS) -> ExitCode:
    """Print the public keys that reports verify with, a JSON Web Key Set."""
    import json

    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import ReportServiceStub

    with session(options) as ta:
        service = ta.authority.on(ReportServiceStub)
        jwks = service.read(lambda s: s.GetReportKeys, admin.GetReportKeysRequest()).jwks
        found = read_keys(jwks.encode())
        if ta.screen.for_machines:
            ta.screen.machine(json.loads(jwks), names=sorted(found))
        else:
            ta.screen.document(jwks)
    return ExitCode.YES


@app.command(
    help_epilogue=examples(
        "ta report verify esx-a03.jwt --keys report-keys.json --issuer https://ta.example "
        "--audience vault",
        "ta report verify old.jwt --keys report-keys.json --issuer https://ta.example "
        "--audience vault --at 2026-11-20T09:00:00Z",
    )
)
def verify(
    token: Path,
    /,
    *,
    keys: Path,
    audience: str,
    issuer: str,
    at: datetime | None = None,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Check a report token without asking an authority: signature, issuer, audience, times.

    Exits 0 when it holds, 1 when it does not.

    Args:
        token: File with the token.
        keys: File with the authority's report keys, from ta report keys.
        audience: For whom the report must be.
        issuer: Who must have issued it.
        at: Check as of this time instead of now.
    """
    from trustauthority.client.files import read_public

    screen = screen_for(options)
    if at is not None:
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
    now = at or screen.now
    key_set = read_keys(read_public(keys, "key set"))
    text = read_public(token, "token").decode("ascii", "replace").strip()
    claims = check_token(text, keys=key_set, audience=audience, issuer=issuer, now=now)
    if screen.for_machines:
        screen.machine(claims, names=[str(claims.get("sub", ""))])
        return ExitCode.YES
    screen.line(Marked(text="✔", style=GOOD), " the report holds")
    screen.fields(_fields(claims, now))
    return ExitCode.YES


def _fields(claims: dict[str, Any], now: datetime) -> list[Field]:
    import json

    lines = []
    for name, value in claims.items():
        text = value if isinstance(value, str) else json.dumps(value)
        if name in {"exp", "iat", "nbf"} and isinstance(value, int) and abs(value) < 1 << 36:
            when = datetime.fromtimestamp(value, UTC)
            text = f"{absolute(when)} ({left(when, now)})" if name == "exp" else absolute(when)
        lines.append(Field(name, text))
    return lines
