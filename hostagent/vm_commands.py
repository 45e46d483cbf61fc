"""``hostagent key`` and ``hostagent move``: what hooks and people do with one VM on this host.

Stage: edge. A key is never printed: its length and SHA-256 are, and ``--out`` writes it to a file of
mode 0600 that is wiped with the lease. Exit status as in ``hostagent.main``.
"""

import asyncio
import base64
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from hostagent.control import Json
from hostagent.direct import ask_or_do
from hostagent.files import write_private
from hostagent.settings import DEFAULT_CONFIG, load
from hostagent.terminal import narrate, refused, say

Config = Annotated[Path, Parameter(name="--config", help="Configuration file (TOML).")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON.")]
Flag = Annotated[bool, Parameter(negative="")]

key_app = App(name="key", help="Ask for VM keys, open grants, give keys back.")
move_app = App(name="move", help="Steps of a migration, for the host on either side.")


@key_app.command(name="request")
def request_key(
    vm: str,
    *,
    config: Config = DEFAULT_CONFIG,
    open_key: Annotated[bool, Parameter(name="--open", negative="")] = False,
    purpose: Literal["start", "migrate"] = "start",
    move_id: str = "",
    request_id: str = "",
    save_grant: Path | None = None,
    out: Path | None = None,
    as_json: AsJson = False,
) -> int:
    """Ask for the grant of a VM.

    Args:
        vm: The VM.
        config: Configuration file (TOML).
        open_key: Open the grant in the TPM and print length and SHA-256 of the key.
        purpose: start, or migrate for the destination of a move.
        move_id: The offer that is taken, for purpose migrate.
        request_id: Repeat an earlier request: the same grant again, its lease counted from its first send.
        save_grant: Write the grant to a file.
        out: Write the opened key to a file, mode 0600; implies --open. Best on tmpfs.
        as_json: Print JSON.
    """
    asked: Json = {
        "do": "key-request",
        "vm": vm,
        "purpose": purpose,
        "move_id": move_id,
        "request_id": request_id,
        "open": open_key or out is not None,
        "want_grant": save_grant is not None,
        "out": str(out.absolute()) if out is not None else "",
    }
    answer, kept = _ask(config, asked)
    grant = answer.pop("grant", "")
    if save_grant is not None and grant:
        write_private(save_grant, base64.b64decode(grant))
    if answer["ok"] and not kept:
        narrate("no agent runs: nobody renews this lease until one is started")
    return _print(answer, as_json=as_json)


@key_app.command(name="open")
def open_grant(*, grant: Path, config: Config = DEFAULT_CONFIG, as_json: AsJson = False) -> int:
    """Open a saved grant in the TPM; exit status 1 means that the TPM or the agent refuses.

    Args:
        grant: File written by --save-grant.
        config: Configuration file (TOML).
        as_json: Print JSON.
    """
    saved = base64.b64encode(grant.read_bytes()).decode()
    answer, _ = _ask(config, {"do": "key-open", "grant": saved})
    return _print(answer, as_json=as_json)


@key_app.command(name="give-back")
def give_back(vm: str, *, config: Config = DEFAULT_CONFIG, as_json: AsJson = False) -> int:
    """Stop the VM, wipe its key file, give the grant back."""
    answer, _ = _ask(config, {"do": "key-give-back", "vm": vm})
    return _print(answer, as_json=as_json)


@move_app.command(name="offer")
def offer(
    vm: str, destination: str, *, config: Config = DEFAULT_CONFIG, as_json: AsJson = False
) -> int:
    """Source: offer the VM to a host; prints the move id."""
    answer, _ = _ask(config, {"do": "move-offer", "vm": vm, "destination": destination})
    return _print(answer, as_json=as_json)


@move_app.command(name="prepare")
def prepare(
    vm: str,
    *,
    move_id: str,
    config: Config = DEFAULT_CONFIG,
    out: Path | None = None,
    as_json: AsJson = False,
) -> int:
    """Destination: take the offer and open the key; the VM must not run yet."""
    asked: Json = {"do": "key-request", "vm": vm, "purpose": "migrate", "move_id": move_id}
    asked |= {"open": True, "out": str(out.absolute()) if out is not None else ""}
    answer, _ = _ask(config, asked)
    return _print(answer, as_json=as_json)


@move_app.command(name="switch")
def switch(vm: str, *, config: Config = DEFAULT_CONFIG, as_json: AsJson = False) -> int:
    """Source: pause the VM and hand the right to run over."""
    answer, _ = _ask(config, {"do": "move-switch", "vm": vm})
    return _print(answer, as_json=as_json)


@move_app.command(name="claim")
def claim(vm: str, *, config: Config = DEFAULT_CONFIG, as_json: AsJson = False) -> int:
    """Destination: ask whether the switch happened; on yes the VM runs here."""
    answer, _ = _ask(config, {"do": "move-claim", "vm": vm})
    return _print(answer, as_json=as_json)


@move_app.command(name="abort")
def abort(vm: str, *, config: Config = DEFAULT_CONFIG, as_json: AsJson = False) -> int:
    """Source: keep the VM."""
    answer, _ = _ask(config, {"do": "move-abort", "vm": vm})
    return _print(answer, as_json=as_json)


def _ask(config: Path, request: Json) -> tuple[Json, bool]:
    return asyncio.run(ask_or_do(load(config), request))


def _print(answer: Json, *, as_json: bool) -> int:
    if as_json:
        say(json.dumps(answer, indent=1))
    elif answer["ok"]:
        for name, value in _flat(answer).items():
            say(f"{name:14} {value}")
    return 0 if answer["ok"] else refused(answer)


def _flat(answer: Json) -> dict[str, Any]:
    shown = {name: value for name, value in answer.items() if name not in {"ok", "key"}}
    key = {f"key {name}": value for name, value in answer.get("key", {}).items()}
    return {name: v for name, v in {**shown, **key}.items() if v not in {None, ""}}
