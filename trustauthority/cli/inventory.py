# ruff: noqa: D417 - options is documented by its class
"""``ta inventory``: the machines that are ours, by the endorsement keys of their TPMs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.hexes import sha256_argument
from trustauthority.cli.options import DEFAULTS, ClusterName, DryRun, Options
from trustauthority.cli.render import Column
from trustauthority.cli.session import session
from trustauthority.cli.text import absolute, count, moment
from trustauthority.errors import InvalidRequest

if TYPE_CHECKING:
    from trustauthority.v1.admin_pb2 import InventoryEntry

app = App(
    name="inventory", help="Inventory: machines that are ours and are admitted by themselves."
)

EkSha256 = Annotated[str, Parameter(name="--ek-sha256")]


@app.command(
    help_epilogue=examples(
        "ta inventory add --cluster prod --name esx-a03 --ek-sha256 5f0c…e1",
        "ta inventory add machines.txt --cluster prod --dry-run",
    )
)
def add(
    file: Path | None = None,
    /,
    *,
    cluster: ClusterName = "",
    ek_sha256: EkSha256 = "",
    name: str = "",
    host_class: Annotated[str, Parameter(name="--class")] = "",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Register machines that are ours: hosts with these TPMs may hold keys once they attest.

    A file has a line per machine: the SHA-256 of its EK public key in hex, and optionally the name
    it may take. Empty lines and lines that start with # are skipped. All of them get the class.

    Args:
        file: File of machines.
        cluster: The cluster they belong to.
        ek_sha256: Instead of a file: SHA-256 of one machine's EK public key.
        name: The name that machine may take.
        host_class: What hardware they are; baselines of a class match hosts of that class only.
        dry_run: Only check.
    """
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import ClusterServiceStub

    if (file is None) == (not ek_sha256):
        raise InvalidRequest("give a file of machines, or --ek-sha256", field="file")
    machines = (
        [(sha256_argument(ek_sha256, "--ek-sha256").hex(), name)]
        if file is None
        else read_machines(file)
    )
    with session(options) as ta:
        where = ta.cluster(cluster)
        if not dry_run:
            ta.confirm(f"Register {count(len(machines), 'machine')} in cluster {where}.")
        entries = [
            admin.InventoryEntry(cluster=where, ek_sha256=key, name=label, host_class=host_class)
            for key, label in machines
        ]
        request = admin.AddInventoryRequest(entries=entries, dry_run=dry_run)
        reply = ta.authority.on(ClusterServiceStub).write(lambda s: s.AddInventory, request)
        verb = "would be" if dry_run else "is" if reply.added == 1 else "are"
        known = len(entries) - reply.added
        ta.done(
            f"{count(reply.added, 'machine')} {verb} registered in cluster {where}"
            + (f", {known} were known" if known else ""),
            reply,
        )
    return ExitCode.YES


@app.command(
    name="list", help_epilogue=examples("ta inventory list", "ta inventory list -c prod -o json")
)
def list_inventory(*, cluster: ClusterName = "", options: Options = DEFAULTS) -> ExitCode:
    """List registered machines.

    Args:
        cluster: Only machines of this cluster.
    """
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import ClusterServiceStub

    with session(options) as ta:
        request = admin.ListInventoryRequest(cluster=cluster)
        service = ta.authority.on(ClusterServiceStub)
        entries = list(service.read(lambda s: s.ListInventory, request).entries)
        ta.screen.listing(
            entries,
            _COLUMNS,
            header=ta.scope(count(len(entries), "machine")),
            empty="No machine is registered: each host waits for ta host admit. "
            "Register some: ta inventory add FILE",
            name=lambda entry: entry.ek_sha256,
        )
    return ExitCode.YES


@app.command(
    help_epilogue=examples(
        "ta inventory remove --ek-sha256 5f0c…e1 -c prod",
        "ta inventory remove --ek-sha256 5f0c…e1 --dry-run",
    )
)
def remove(
    *,
    ek_sha256: EkSha256,
    cluster: ClusterName = "",
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Strike a machine off the inventory.

    Args:
        ek_sha256: SHA-256 of its EK public key.
        cluster: The cluster it belongs to.
        dry_run: Only show what would be sent.
    """
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import ClusterServiceStub

    key = sha256_argument(ek_sha256, "--ek-sha256").hex()
    with session(options) as ta:
        request = admin.RemoveInventoryRequest(cluster=ta.cluster(cluster), ek_sha256=key)
        if dry_run:
            ta.would_send(request)
            return ExitCode.YES
        ta.confirm(f"Strike the machine with EK {key[:12]}… off cluster {request.cluster}.")
        ta.authority.on(ClusterServiceStub).write(lambda s: s.RemoveInventory, request)
        ta.done(f"machine {key} is struck off", {"ekSha256": key}, name=key)
    return ExitCode.YES


def read_machines(path: Path) -> list[tuple[str, str]]:
    """Read a file of machines. Raises InvalidRequest naming every bad line."""
    from trustauthority.client.files import read_public
    from trustauthority.model.identifiers import is_name

    machines: list[tuple[str, str]] = []
    problems: list[str] = []
    text = read_public(path, "file of machines").decode("utf-8", "replace")
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or line.lstrip().startswith("#"):
            continue
        label = words[1] if len(words) > 1 else ""
        try:
            key = sha256_argument(words[0], f"line {number}").hex()
        except InvalidRequest as error:
            problems.append(error.message)
            continue
        if len(words) > 2 or (label and not is_name(label)):
            problems.append(f"line {number}: after the hash comes at most a name (a-z 0-9 . _ -)")
        machines.append((key, label))
    if not machines and not problems:
        problems.append("no machine in it")
    if problems:
        raise InvalidRequest(f"{path}: " + "; ".join(problems[:10]), field="file")
    return machines


_COLUMNS: "list[Column[InventoryEntry]]" = [
    Column("NAME", lambda entry: entry.name or "(any)"),
    Column("CLUSTER", lambda entry: entry.cluster),
    Column("CLASS", lambda entry: entry.host_class or "–"),
    Column("EK SHA-256", lambda entry: entry.ek_sha256),
    Column("ADDED", lambda entry: absolute(moment(entry.added_at)), wide=True),
    Column("BY", lambda entry: entry.added_by, wide=True),
]
