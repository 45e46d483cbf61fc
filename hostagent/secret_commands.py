"""``hostagent secret pipe``: a shared secret for the next program of a pipe."""

import socket
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from hostagent.secret_desk import SOCKET
from hostagent.settings import DEFAULT_CONFIG, load
from hostagent.terminal import narrate

Config = Annotated[Path, Parameter(name="--config", help="Configuration file (TOML).")]
_WAIT_S = 60.0

secret_app = App(name="secret", help="Shared secrets for programs of this host.")


@secret_app.command
def pipe(name: str, *, config: Config = DEFAULT_CONFIG) -> int:
    """Write a secret to standard output, for the program behind a pipe; never to a terminal.

    Args:
        name: Its section in the configuration.
        config: Configuration file (TOML).
    """
    if sys.stdout.isatty():
        narrate("a secret is not shown: pipe it into the program that needs it")
        return 2
    path = load(config).paths.run_dir / SOCKET
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_WAIT_S)
        try:
            connection.connect(str(path))
            connection.sendall(name.encode() + b"\n")
            secret = connection.makefile("rb").read()
        except OSError as failure:
            narrate(f"no agent serves secrets on {path}: {failure}")
            return 5
    if not secret:
        narrate(f"refused: the agent's log says why {name} is not handed out")
        return 1
    sys.stdout.buffer.write(secret)
    return 0
