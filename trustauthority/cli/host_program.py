"""The ``hostagent`` program of this machine, for commands that a person runs on the host itself.

Authority and host agent share only the protocol: what the agent knows of definitions and disks is
asked of its program. No key is in what it prints.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

from trustauthority.errors import FailedPrecondition, InvalidRequest

PROGRAM = "hostagent"
PROFILE_S = 30.0
PROTECT_S = 4 * 3600.0
"""A large disk is encrypted in between."""
MAX_ANSWER = 1 << 20


def ask_host(*words: str | Path, limit_s: float) -> dict[str, Any]:
    """Run hostagent with ``--json`` and read its answer; what it narrates goes to this terminal.

    Raises:
        FailedPrecondition: there is none here, or it refused; InvalidRequest: it was asked wrongly.
    """
    command = (PROGRAM, *map(str, words), "--json")
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=limit_s, check=False
        )
    except FileNotFoundError as error:
        raise FailedPrecondition(
            "there is no hostagent on this machine: run this on the VM's host"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise FailedPrecondition(f"hostagent did not end within {limit_s:.0f} s") from error
    if done.returncode == 2:
        raise InvalidRequest("hostagent refused: see above", field="definition")
    if done.returncode != 0:
        raise FailedPrecondition(f"hostagent ended with status {done.returncode}: see above")
    try:
        answer = json.loads(done.stdout[:MAX_ANSWER])
    except ValueError as error:
        raise FailedPrecondition("hostagent printed no JSON") from error
    if not isinstance(answer, dict):
        raise FailedPrecondition("hostagent printed no object")
    return answer


def profile_of(definition: Path, *, vm: str) -> bytes:
    """The profile digest of a definition that is marked as this VM, or not marked.

    Raises:
        InvalidRequest: it is marked as another VM.
    """
    answer = ask_host("vm", "profile", definition, limit_s=PROFILE_S)
    marked = str(answer.get("vm") or "")
    if marked not in {"", vm}:
        raise InvalidRequest(f"{definition} is marked as VM {marked!r}", field="definition")
    return digest_in(answer)


def digest_in(answer: dict[str, Any]) -> bytes:
    """The profile digest of an answer."""
    try:
        digest = bytes.fromhex(str(answer.get("profile_sha256", "")))
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise FailedPrecondition("hostagent printed no profile digest")
    return digest
