"""A development KMS: real KMIP over mTLS, with faults on demand. It keeps no key safe.

Exit codes: 0 done, 1 the answer is no (there is a folder already, or none), 2 asked wrongly.
"""

import logging
import os
import signal
import sys
import tomllib
import warnings
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from kms_mock import pki
from kms_mock.faults import NO_FAULT, WORDS, parse_fault, write_fault

CONFIG = "kms-mock.toml"
DEFAULT_PORT = 15696
"""Not the KMIP port, 5696: that one is for a real KMS."""

app = App(name="kms-mock", help=__doc__.splitlines()[0], version="0.1.0")


@app.command
def init(folder: Path) -> int:
    """Make a CA, a server and a client certificate, and the configuration.

    Args:
        folder: A new folder; it gets ca.pem, server.pem/.key, client.pem/.key and kms-mock.toml.
    """
    try:
        pki.init(folder)
    except FileExistsError:
        return _no(f"{folder} has a KMS already")
    (folder / CONFIG).write_text(f"port = {DEFAULT_PORT}\n", encoding="ascii")
    write_fault(folder, NO_FAULT)
    _say(f"{folder} is ready; its keys are for development only")
    return 0


@app.command
def issue(folder: Path, name: str) -> int:
    """Certify another client. Clients do not see each other's keys.

    Args:
        folder: A folder that init made.
        name: Name of the client; also of its files.
    """
    try:
        pki.issue(folder, name)
    except FileNotFoundError:
        return _no(f"{folder} has no CA; run kms-mock init {folder}")
    except FileExistsError:
        return _no(f"{folder} has a {name}.key already")
    except ValueError as failure:
        return _no(str(failure), code=2)
    return 0


@app.command
def fault(folder: Path, what: str) -> int:
    """Set what goes wrong, while it runs.

    Args:
        folder: A folder that init made.
        what: none, down, slow:SECONDS, wrong-key, wrong-tenant, truncated, revoked, skew:SECONDS.
    """
    if not folder.is_dir():
        return _no(f"there is no {folder}")
    try:
        write_fault(folder, parse_fault(what))
    except ValueError as failure:
        return _no(str(failure), code=2)
    return 0


@app.command
def serve(
    folder: Path,
    *,
    port: int | None = None,
    fault: Annotated[str, Parameter(help=f"{WORDS}.")] = "none",
) -> int:
    """Serve until SIGTERM or SIGINT. Prints one line to stdout when ready.

    Args:
        folder: A folder that init made.
        port: Port of 127.0.0.1, instead of that of kms-mock.toml; 0 takes a free one.
        fault: What goes wrong from the start.
    """
    try:
        configured = tomllib.loads((folder / CONFIG).read_text(encoding="utf-8"))
        write_fault(folder, parse_fault(fault))
    except FileNotFoundError:
        return _no(f"{folder} has no KMS; run kms-mock init {folder}")
    except ValueError as failure:
        return _no(str(failure), code=2)
    return _serve(folder, int(configured["port"]) if port is None else port)


def _serve(folder: Path, port: int) -> int:
    os.umask(0o077)
    warnings.simplefilter("ignore")  # PyKMIP's own, about libraries
    logging.disable(logging.CRITICAL)  # its DEBUG lines have key bytes, its others tracebacks
    from kms_mock.server import MockKms  # a second of imports

    try:
        kms = MockKms(folder, port, _say)
    except OSError as failure:
        return _no(f"port {port} can't be had: {failure.strerror}")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: kms.stop())
    _say("*** THIS IS A MOCK FOR DEVELOPMENT. It keeps keys in the clear. Never use it. ***")
    sys.stdout.write(f"kms-mock ready on 127.0.0.1:{kms.port}\n")
    sys.stdout.flush()
    kms.serve()
    return 0


def _no(message: str, *, code: int = 1) -> int:
    _say(message)
    return code


def _say(line: str) -> None:
    sys.stderr.write(f"kms-mock: {line}\n")
    sys.stderr.flush()


def main() -> None:
    """Run the command line and exit."""
    try:
        code = app(sys.argv[1:], exit_on_error=False, result_action="return_value")
    except CycloptsError:  # it was printed
        code = 2
    sys.exit(code or 0)
