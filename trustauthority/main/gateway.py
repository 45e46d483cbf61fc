"""``trustauthority gateway``: serve HTTP/JSON, and make tokens for its callers."""

import sys
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from trustauthority.errors import ConfigurationInvalid

DEFAULT_CONFIG = Path("/etc/trustauthority/gateway.toml")
Config = Annotated[Path, Parameter(name="--config", help="Configuration file.")]

gateway_app = cyclopts.App(
    name="gateway", help="HTTP/JSON for schedulers: a client of the authority."
)


@gateway_app.command(name="serve")
def serve_gateway(*, config: Config = DEFAULT_CONFIG) -> None:
    """Serve until a signal comes.

    Parameters
    ----------
    config: Configuration file (mode 600).
    """
    _require_packages()
    from trustauthority.gateway.serve import serve
    from trustauthority.gateway.settings import load
    from trustauthority.main.notify import notify
    from trustauthority.telemetry.journal import configure_logging

    configure_logging()
    serve(load(config), tell=notify)


@gateway_app.command
def check(*, config: Config = DEFAULT_CONFIG) -> None:
    """Read the configuration and the file of callers, and say what they hold.

    Parameters
    ----------
    config: Configuration file (mode 600).
    """
    from trustauthority.gateway.callers import load_callers
    from trustauthority.gateway.settings import load

    settings = load(config)
    callers = load_callers(settings.callers)
    listen = settings.listen
    tls = "TLS" if listen.tls is not None else "no TLS"
    sys.stdout.write(f"{listen.address}:{listen.port}, {tls}, {len(callers.entries)} callers\n")


@gateway_app.command
def token(name: str) -> None:
    """Make a bearer token: it goes to standard output, its entry for the file of callers beside it.

    Parameters
    ----------
    name: Name of the caller.
    """
    from trustauthority.gateway.callers import new_token

    secret, digest = new_token()
    sys.stderr.write(f'[[caller]]\nname = "{name}"\ntoken_sha256 = "{digest}"\n')
    sys.stdout.write(secret + "\n")


def _require_packages() -> None:
    """The gateway's packages are optional: say so instead of a traceback."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigurationInvalid(
            f"the gateway needs more packages ({error.name}): install it with its extra [gateway]",
            field="gateway",
        ) from error
