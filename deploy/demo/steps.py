"""What several acts do: start a process, ask for a key, wait for a fence, say how it went."""

import time
from pathlib import Path

from narrate import Narrator
from stage import Result, Stage

VM = "payroll"
REQUEST = "demo-request-0001"
FENCE_LIMIT_S = 60
POLICY = """\
name = "lab"

[leases]
strict_ms = 20000    # 5 minutes unless a demo is in a hurry
standard_ms = 20000
skew_ms = 4100
"""
ROLES = {"attest": "attest", "admin": "admin,placement", "key": "key"}
MODULE_READY = '"event": "serving"'


def ek_sha256(stage: Stage, host: str) -> str:
    """What an inventory lists: the hash of the host's EK, as its agent says."""
    return str(stage.agent(host, "endorsement", "--json").json()["ek_sha256"])


def serve(stage: Stage, name: str, roles: str) -> float:
    """Start one process of the authority."""
    config = stage.folder / "authority" / "authority.toml"
    return stage.start(
        name, "trustauthority", "serve", "--config", config, "--roles", roles, ready=MODULE_READY
    )


def request_key(stage: Stage, host: str, *more: str | Path) -> Result:
    return stage.agent(host, "key", "request", VM, *more)


def must_work(tell: Narrator, what: str, result: Result) -> None:
    tell.expect(what, holds=result.code == 0, said=result.said, seconds=result.seconds)


def must_refuse(tell: Narrator, what: str, result: Result, reason: str) -> None:
    tell.expect(
        what,
        holds=result.code in (1, 4) and reason in result.said,
        said=f"exit {result.code}: {result.said}",
        seconds=result.seconds,
    )


def grant_epoch(shown: Result) -> int:
    """The grant epoch in the answer of ta vm show -o json (proto JSON writes 64-bit numbers as text)."""
    answer = shown.json()
    return int(answer.get("grantEpoch", answer.get("grant_epoch", -1)))


def wait_for_fence(stage: Stage, tell: Narrator) -> None:
    """Wait until no host can be running the VM any more: lease, continue-for and skew are over."""
    began, waited = time.monotonic(), 0.0
    while waited < FENCE_LIMIT_S:
        checked = stage.ta("placement", "check", "--vm", VM, "--host", "host-a", "-o", "json")
        waited = time.monotonic() - began
        if "fence" not in checked.out:
            break
        time.sleep(0.5)
    tell.expect(
        "no other host gets in before host-b's fence has passed; then it has",
        holds=waited < FENCE_LIMIT_S,
        seconds=waited,
    )
