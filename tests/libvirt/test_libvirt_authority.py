"""Promises of the authority, seen from real hosts on which a VM runs: N62 and N86."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import stepping_authority
from support.lossy_line import Loses
from support.referee import Referee
from support.two_hosts import FENCE_S, NAMES, ROLES, VM, TwoHosts, wait_until

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(300)]
HOUR_MS = 3_600_000

# --- N62 -----------------------------------------------------------------------------------------

DENIED = (
    ("host", "revoke", "host-a", "--yes"),
    ("host", "admit", "host-b", "--yes"),
    ("host", "drain", "host-a"),
    ("inventory", "list", "--cluster", "lab"),
    ("policy", "apply", "policy.toml", "-c", "lab", "--yes"),
    ("baseline", "approve", "lab-1", "-c", "lab", "--yes"),
    (
        "identity",
        "issue",
        "mallory",
        "--role",
        "keys",
        "--key",
        "m.key",
        "--cert",
        "m.pem",
        "--yes",
    ),
    ("vm", "protect", "mine", "--cluster", "lab"),
    ("vm", "reprofile", VM, "--profile-sha256", "00" * 32, "--yes"),
    ("vm", "retire", VM, "--yes"),
    ("key", "create", VM),
    ("key", "show", VM),
    ("key", "suspend", VM, "--yes"),
    ("key", "destroy", VM, "--yes"),
    ("key", "roll", VM),
    ("key", "who-held", "--host", "host-a"),
    ("key", "provider", "list"),
    ("audit", "tail"),
)
"""What a scheduler has no business with: hosts, policy, identities, VMs' definitions, keys, the log."""


@pytest.fixture
def scheduler(two: TwoHosts) -> tuple[str, str]:
    """Options of a command that runs as a scheduler: an identity with the role placement alone."""
    name = f"scheduler-{time.monotonic_ns()}"
    files = {each: two.folder / f"{name}.{each}" for each in ("key", "pem")}
    words = ("--key", files["key"], "--cert", files["pem"], "--add-context", name, "--yes")
    two.ta("identity", "issue", name, "--role", "placement", *words)
    return ("--context", name)


def alarms(two: TwoHosts, since: int) -> list[dict]:
    found = two.ta("audit", "tail", "-n", "200", "-o", "json").json()
    return [
        each
        for each in found
        if each["operation"] == "access.refused" and int(each["sequence"]) >= since
    ]


def test_a_scheduler_reaches_for_keys(two: TwoHosts, scheduler: tuple[str, str]) -> None:
    """N62: denied, each of them told in the audit log; the VM that runs does not notice."""
    two.started()
    epoch = two.lease("host-a")["grant_epoch"]
    since = int(two.ta("audit", "tail", "-n", "1", "-o", "json").json()[0]["sequence"])
    for words in DENIED:
        named = [
            two.folder / word if word.endswith((".key", ".pem", ".toml")) else word
            for word in words
        ]
        said = two.told(*named, *scheduler)
        assert said.code == 4, (words, said.said)
    told = alarms(two, since)
    assert {each["actor"] for each in told} == {f"identity:{scheduler[1]}"}
    assert len({each["details"]["call"] for each in told}) == len(DENIED), told
    two.runs_on("host-a")
    assert two.lease("host-a")["grant_epoch"] == epoch
    assert [vm for vm in two.ta("vm", "list", "-o", "name").said.split() if vm == "mine"] == []


def test_what_a_scheduler_may_is_no_alarm(two: TwoHosts, scheduler: tuple[str, str]) -> None:
    """N62: the alarm means something; the calls of its role work, and move a real VM."""
    two.started()
    since = int(two.ta("audit", "tail", "-n", "1", "-o", "json").json()[0]["sequence"])
    for words in (
        ("placement", "candidates", VM),
        ("placement", "check", "--vm", VM, "--host", "host-b"),
        ("placement", "orders"),
        ("vm", "show", VM),
        ("vm", "migrate", VM, "host-b"),
    ):
        said = two.told(*words, *scheduler)
        assert said.code == 0, (words, said.said)
    two.runs_on("host-b")
    assert alarms(two, since) == []


# --- N86 -----------------------------------------------------------------------------------------


class Stepping(TwoHosts):
    """Two hosts whose authority's wall clock is ahead by what ``step`` said last."""

    @property
    def ahead(self) -> Path:
        """The file with the step."""
        return self.folder / "ahead"

    def step(self, length_ms: int) -> float:
        """Step the clock of all three processes; when, by the monotonic clock."""
        self.ahead.write_text(str(length_ms))
        return time.monotonic()

    def serve(self, name: str) -> None:
        """Start one process of the authority."""
        if not self.ahead.exists():
            self.step(0)
        config = self.folder / "authority" / "authority.toml"
        words = ("serve", "--config", config, "--roles", ROLES[name])
        program = stepping_authority.__file__
        self.stage.start(name, "python", program, self.ahead, *words, ready='"event": "serving"')

    def attest_again(self, name: str) -> None:
        """After a step each report is over: the host is judged anew."""
        wait_until(lambda: self.stage.agent(name, "attest").code == 0, 60, f"{name} passes")


@pytest.fixture
def stepping() -> Iterator[Stepping]:
    """A world of its own: a clock that was stepped can't be put back (N33)."""
    made = Stepping()
    try:
        made.set_up()
        made.fresh()
        made.referee = Referee({name: made.uri(name) for name in NAMES}, VM, made.ticks)
        made.referee.begin()
        try:
            yield made
        finally:
            made.referee.verdict()
    finally:
        made.close()


@pytest.mark.long
def test_a_step_of_the_clock_moves_no_vm(stepping: Stepping) -> None:
    """N86: an hour forward while the owner can't be reached: nobody else gets the VM before the longest fence.

    By the new time its lease was over long ago, and its host still runs it. Afterwards, with the owner in
    reach, another step ends nothing: it renews and goes on.
    """
    two = stepping
    two.started("host-a")
    two.lines["host-a"].loses(Loses.ALL)
    stepped = two.step(HOUR_MS)
    two.attest_again("host-b")
    assert two.runs(), "the lease counts on the host, by another clock"
    refused = 0
    while time.monotonic() < stepped + FENCE_S - 2:
        said = two.start_vm("host-b")
        assert said.code != 0, "two hosts would have run it"
        assert "GRANT_HELD_ELSEWHERE" in said.err, said.err
        refused += 1
    assert refused > 0
    wait_until(
        lambda: two.start_vm("host-b").code == 0, 60, "it starts after the fence", two.describe
    )
    assert time.monotonic() - stepped >= FENCE_S
    two.runs_on("host-b")
    two.lines["host-a"].mend()
    epoch = two.lease("host-b")["grant_epoch"]
    two.step(2 * HOUR_MS)
    two.attest_again("host-b")
    time.sleep(FENCE_S)
    two.runs_on("host-b")
    assert two.lease("host-b")["grant_epoch"] == epoch
