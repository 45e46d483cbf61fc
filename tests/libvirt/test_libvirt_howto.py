"""Pages of docs/how-to, typed line by line into a shell, against two real hosts."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.howto import DOCS, Shell, Typed, blocks, commands
from support.two_hosts import VM, TwoHosts, eventually

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(300)]
PROJECT = DOCS.parents[1]


@pytest.fixture
def shells(two: TwoHosts) -> Iterator[Callable[..., Shell]]:
    """Makes shells in folders of their own, with the programs on the path; ends them."""
    made: list[Shell] = []

    def shell(**names: str) -> Shell:
        folder = two.folder / f"typed-{len(list(two.folder.glob('typed-*')))}"
        folder.mkdir()
        environment = two.stage.environment()
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        found = {name.replace("_", "-"): ours for name, ours in names.items()}
        made.append(Shell(folder, environment, found))
        return made[-1]

    yield shell
    for each in made:
        each.close()


def slow_order(two: TwoHosts) -> str:
    """An order of the VM to host-b whose copy is under way and would never end."""
    host = two.libvirt["host-a"]
    order = two.ta("vm", "migrate", VM, "host-b", "--no-wait", "-o", "name").said.split()[-1]
    eventually(lambda: "Outgoing" in host.virsh("domjobinfo", VM).out, "memory is copied")
    return order


def lines(said: Typed, *says: str, code: int = 0) -> None:
    """It ended so, and said that."""
    assert said.code == code, said
    for each in says:
        assert each in said.out + said.err, said


def test_empty_a_host(two: TwoHosts, shells: Callable[..., Shell]) -> None:
    """docs/how-to/empty-a-host.md does what it says; esx-a02 is host-a, esx-a03 host-b."""
    shell = shells(esx_a02="host-a", esx_a03="host-b")
    left = commands("empty-a-host.md")

    def typed(line: str) -> Typed:
        left.remove(line)
        return shell.run(line)

    two.started("host-a")
    lines(typed("ta host drain esx-a02 --dry-run"), VM, "host-b", "would move")
    two.runs_on("host-a")
    lines(typed("ta host drain esx-a02 --why 'memory replaced'"), "moved")
    two.runs_on("host-b")
    assert VM not in typed("ta vm list --host esx-a02").out
    two.ta("host", "undrain", "host-a")
    two.ta("vm", "migrate", VM, "host-a")
    two.slow_copies("host-a")
    order = slow_order(two)
    lines(typed("ta placement orders --host esx-a02"), order, "copy")
    left.remove("ta placement cancel ORDER")
    lines(shell.run(f"ta placement cancel {order}"), "is cancelled")
    two.runs_on("host-a")
    two.fast_copies("host-a")
    lines(typed("ta placement candidates payroll"), "host-b")
    lines(typed("ta vm migrate payroll esx-a03"), "runs on host-b")
    two.runs_on("host-b")
    two.ta("host", "drain", "host-a")
    lines(typed("ta host undrain esx-a02"), "takes VMs again")
    assert left == [], "each line of the page is run"


NOT_RUN = {
    "/opt/trustauthority/bin/pip install '.[gateway]'": "the tests run in an environment that has it",
    "systemctl daemon-reload": "there is no systemd",
    "systemctl enable --now trustauthority-gateway": "there is no systemd",
}
"""Lines of ask-from-a-scheduler.md that this machine can't run, and why."""


def test_ask_from_a_scheduler(two: TwoHosts, shells: Callable[..., Shell]) -> None:
    """docs/how-to/ask-from-a-scheduler.md, from the identity to the event stream; esx-a02 is host-b."""
    page = "ask-from-a-scheduler.md"
    shell = shells(esx_a02="host-b")
    folder, port = shell.folder, two.stage.address("gateway").rpartition(":")[2]
    shell.names = {
        **shell.names,
        "/etc/trustauthority/": f"{folder}/",
        "/var/lib/trustauthority-gateway": f"{folder}/state",
        "127.0.0.1:7450": f"127.0.0.1:{port}",
        "port = 7450": f"port = {port}",
        "127.0.0.1:7442": two.stage.address("admin"),
    }
    left = commands(page)

    def taken(part: str) -> str:
        """The one line of the page that has this in it."""
        (line,) = [each for each in left if part in each]
        left.remove(line)
        return line

    for line in NOT_RUN:
        left.remove(line)
    installs = [line for line in left if line.startswith("install ")]
    for line in installs:  # they write to /etc, for a user that is not there
        left.remove(line)
    assert all(
        (PROJECT / each).exists() for line in installs for each in re.findall(r"deploy/\S+", line)
    )

    # an identity, the gateway
    for part in (
        "umask",
        "mkdir gw",
        "ta identity issue gateway",
        "gateway token nova",
        "mkdir -p",
    ):
        lines(shell.run(taken(part)))
    (toml,) = blocks(page, "toml")
    known = two.ta("context", "show", "-o", "json").json()
    toml = re.sub(r'audit_key = ".*"', f'audit_key = "{known["auditKey"]}"', shell.here(toml))
    (folder / "gw" / "gateway.toml").write_text(toml)
    (folder / "gw" / "gateway.toml").chmod(0o600)
    (folder / "gw" / "authority-ca.crt").write_bytes(Path(known["ca"]).read_bytes())
    lines(shell.run(taken("gateway check")), "1 callers")
    shell.start(taken("gateway serve"), '"event": "serving"')

    # where, why
    two.started("host-a")
    lines(shell.run(taken('H="Authorization')))
    checked = json.loads(shell.run(taken("placement/check")).out)
    assert checked["answers"][0]["host"] == "host-b"
    assert set(checked["answers"][0]) >= {"allowed", "steps", "unmet"}
    ranked = json.loads(shell.run(taken("/candidates")).out)
    assert {each["hostName"] for each in ranked["candidates"]} == {"host-a", "host-b"}
    lines(shell.run(taken("ta placement candidates")), "host-b")
    intent = json.loads(shell.run(taken("/v1/intents")).out)
    assert intent["vmId"] == VM, intent

    # hear, move, take back
    heard = shell.start(taken("/v1/events"), "id: ")
    watched = shell.start(taken("ta placement watch"), "{")
    two.slow_copies("host-a")
    order = json.loads(shell.run(taken('-d \'{"vm":"payroll","destination"')).out)
    assert order["state"] == "ordered", order
    shell.names = {**shell.names, "ORDER": order["orderId"]}
    host = two.libvirt["host-a"]
    eventually(lambda: "Outgoing" in host.virsh("domjobinfo", VM).out, "memory is copied")
    delete = taken("-X DELETE")
    assert json.loads(shell.run(taken("/v1/orders/ORDER")).out)["state"] == "running"
    assert json.loads(shell.run(delete).out)["state"] == "cancelling"
    eventually(lambda: "order.cancelled" in heard.read_text(), "the event stream tells it")
    eventually(lambda: "order.cancelled" in watched.read_text(), "so does ta placement watch")
    two.runs_on("host-a")
    assert left == [], "each line of the page is run"
