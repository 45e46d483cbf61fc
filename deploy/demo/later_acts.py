"""Acts six to nine: what is lost, put back, proven and broken."""

import base64
import shutil
import signal
from pathlib import Path

from narrate import Narrator
from stage import Stage
from steps import (
    ROLES,
    VM,
    must_refuse,
    must_work,
    request_key,
    serve,
    wait_for_fence,
)


def act_6(stage: Stage, tell: Narrator) -> None:
    """Outages."""
    tell.act(6, "The KMS dies; the admin role stops")
    must_work(
        tell,
        "an intent for host-a",
        stage.ta("placement", "intent", "--vm", VM, "--host", "host-a"),
    )
    tell.say("host-b's fence holds the VM until its lease, continue-for and skew are over")
    wait_for_fence(stage, tell)
    shutil.copy2(stage.folder / "authority" / "authority.db", stage.folder / "yesterday.db")
    stage.stop("kms", signal.SIGKILL)
    broken = request_key(stage, "host-a", "--request-id", "demo-request-0002")
    tell.expect(
        "without the KMS: a clear error, nothing leaves, nothing is lost",
        holds=broken.code == 5 and "KMS" in broken.said,
        said=broken.said,
        seconds=broken.seconds,
    )
    tell.show(broken.said.rstrip().splitlines()[-1])
    port = stage.address("kmip").rpartition(":")[2]
    stage.start("kms", "kms-mock", "serve", stage.folder / "kms", "--port", port, ready="ready")
    opened = request_key(stage, "host-a", "--open", "--request-id", "demo-request-0002")
    must_work(tell, "it is back: the same request id gets the key", opened)
    must_work(tell, "given back", stage.agent("host-a", "key", "give-back", VM))
    stage.stop("admin")
    opened = request_key(stage, "host-a", "--open")
    must_work(tell, "with the admin role stopped an attested host still gets its key", opened)
    must_work(tell, "given back", stage.agent("host-a", "key", "give-back", VM))
    serve(stage, "admin", "admin,placement")


def act_7(stage: Stage, tell: Narrator) -> None:
    """Rollback."""
    tell.act(7, "Yesterday's database is put back")
    database = stage.folder / "authority" / "authority.db"
    newest = stage.folder / "newest.db"
    _serve_anew(stage, {database: newest, stage.folder / "yesterday.db": database})
    caught = stage.agent("host-a", "attest")
    tell.expect(
        "the first echoed checkpoint is ahead of the database: releases stop (N91)",
        holds=caught.code != 0 and "ROLLBACK_DETECTED" in caught.said,
        said=caught.said,
        seconds=caught.seconds,
    )
    status = stage.ta("status")
    tell.show(status.said, lines=14)
    _serve_anew(stage, {newest: database})
    good = stage.agent("host-a", "attest")
    must_work(tell, "with the right database back, everything goes on", good)


def _serve_anew(stage: Stage, copies: dict[Path, Path]) -> None:
    """Stop the authority, copy files, start it again."""
    for name in ROLES:
        stage.stop(name)
    for source, target in copies.items():
        shutil.copy2(source, target)
    for name, roles in ROLES.items():
        serve(stage, name, roles)


def act_8(stage: Stage, tell: Narrator) -> None:
    """The audit log."""
    tell.act(8, "Who got which key when")
    tail = stage.ta("audit", "tail", "-n", "400")
    released = [
        line for line in tail.out.splitlines() if "key.release" in line and "allowed" in line
    ]
    tell.show("\n".join(released))
    tell.expect(
        "the audit log lists each release with host and time, and verifies",
        holds=tail.code == 0 and len(released) == 4,
        said=tail.said,
        seconds=tail.seconds,
    )
    verified = stage.ta("audit", "verify")
    must_work(
        tell, "ta audit verify hashes every entry again, up to the signed checkpoint", verified
    )
    found = secret_seen(stage)
    tell.expect(
        "the VM key stands in no log, database, file, command line or environment (N69)",
        holds=len(stage.secret) > 16 and not found,
        said="\n".join(found),
    )


def secret_seen(stage: Stage) -> list[str]:
    """Where the VM key is found: files of the stage, command lines and environments (N69)."""
    forms = (stage.secret, stage.secret.hex().encode(), base64.b64encode(stage.secret))
    places = [path for path in stage.folder.rglob("*") if path.is_file()]
    for process in stage.processes.values():
        places += [Path(f"/proc/{process.pid}/{name}") for name in ("environ", "cmdline")]
    return [str(path) for path in places if any(form in path.read_bytes() for form in forms)]


def act_9(stage: Stage, tell: Narrator) -> None:
    """Break-glass."""
    tell.act(9, "Three in the morning: a policy fails every host")
    broken = stage.folder / "broken.toml"
    broken.write_text('name = "broken"\n[boot]\nhost_class = "required"\n')
    applied = stage.ta("policy", "apply", broken, "-c", "lab", "--yes")
    must_work(tell, "a policy that no host can meet is applied", applied)
    stage.agent("host-a", "attest")
    must_refuse(
        tell, "host-a fails and gets no key", request_key(stage, "host-a"), "HOST_NOT_ATTESTED"
    )
    words = ("--host", "host-a", "--for", "10m", "--why", "policy fails every host, INC-481")
    opened = stage.ta("key", "break-glass", "open", VM, *words, "--yes")
    must_work(tell, "somebody opens a break-glass for host-a and payroll, and says why", opened)
    status = stage.ta("status")
    tell.expect(
        "ta status warns of it", holds="INC-481" in status.out, said=status.said, seconds=0.0
    )
    got = request_key(stage, "host-a", "--open")
    must_work(tell, "host-a gets the key once, for its TPM and boot alone", got)
    must_work(tell, "given back", stage.agent("host-a", "key", "give-back", VM))
    must_refuse(tell, "and not a second time", request_key(stage, "host-a"), "HOST_NOT_ATTESTED")
    tell.show(stage.ta("key", "break-glass", "list").out)
