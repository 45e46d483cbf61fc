"""The nine acts. Each states what it expects; the demo succeeds only if all of it held."""

import base64
import secrets
import shutil
import signal
import time
from pathlib import Path

from narrate import Narrator
from stage import Result, Stage
from support.swtpm import TpmMaker

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


def act_1(stage: Stage, tell: Narrator) -> None:
    """Set up, anchor, enrol."""
    tell.act(1, "An authority, a KMS and hosts with TPMs; who may join")
    _start_authority(stage, tell)
    makers = {name: TpmMaker(stage.folder / f"maker-{name}") for name in ("known", "unknown")}
    for name, boot, maker in (
        ("host-a", "good", "known"),
        ("host-b", "good-second-boot", "known"),
        ("host-c", "changed-cmdline", "known"),
        ("bench", "good", "known"),
        ("stranger", "good", "unknown"),
    ):
        stage.make_host(name, makers[maker], boot)
    tell.say("five machines: each a TPM into which a boot captured from a real guest is measured")
    _done(tell, "cluster lab exists", stage.ta("cluster", "create", "lab"))
    policy = stage.folder / "policy.toml"
    policy.write_text(POLICY)
    _done(tell, "its policy is applied", stage.ta("policy", "apply", policy, "-c", "lab", "--yes"))
    for certificate in (makers["known"].root_certificate, makers["known"].issuer_certificate):
        added = stage.ta("anchor", "add", certificate, "--cluster", "lab", "--yes")
        _done(tell, f"anchored: {certificate.name} of the TPM maker", added)
    for name in ("host-a", "host-b", "host-c"):
        digest = ek_sha256(stage, name)
        added = stage.ta(
            "inventory", "add", "--cluster", "lab", "--name", name, "--ek-sha256", digest, "--yes"
        )
        _done(tell, f"the inventory lists {name} by its EK", added)
    for name in ("host-a", "host-b", "host-c"):
        enrolled = stage.agent(name, "enrol")
        _done(tell, f"{name} proves its TPM and is admitted", enrolled)
    enrolled = stage.agent("bench", "enrol")
    _done(
        tell, "bench, a genuine TPM that is not in the inventory, enrols and waits (N76)", enrolled
    )
    refused = stage.agent("stranger", "enrol")
    tell.expect(
        "stranger, whose TPM is of an unknown CA, is refused",
        holds=refused.code == 4 and "ENDORSEMENT" in refused.said,
        said=refused.said,
        seconds=refused.seconds,
    )


def _start_authority(stage: Stage, tell: Narrator) -> None:
    kms = stage.folder / "kms"
    _done(
        tell,
        "kms-mock: a development KMS that speaks real KMIP",
        stage.run("kms-mock", "init", kms),
    )
    port = stage.address("kmip").rpartition(":")[2]
    stage.start("kms", "kms-mock", "serve", kms, "--port", port, ready="ready")
    secret = stage.folder / "escrow-passphrase"
    secret.touch(mode=0o600)
    secret.write_text(secrets.token_urlsafe(24) + "\n")
    words = ("--private", stage.folder / "escrow.key", "--public", stage.folder / "escrow.pub")
    made = stage.run("ta", "key", "escrow", "keygen", *words, "--passphrase-file", secret)
    _done(
        tell,
        "ta key escrow keygen: the offline key that survives us (kept here only for you)",
        made,
    )
    made = stage.run(
        "trustauthority",
        "init",
        *("--escrow-public", stage.folder / "escrow.pub"),
        "--state",
        stage.folder / "authority",
        "--config",
        stage.folder / "authority" / "authority.toml",
        *("--enrol", stage.address("enrol"), "--mutual", stage.address("mutual")),
        *("--key", stage.address("key"), "--admin-listener", stage.address("admin")),
        *("--kmip-host", "127.0.0.1", "--kmip-port", port),
        *("--kmip-ca", kms / "ca.pem"),
        *("--kmip-certificate", kms / "client.pem", "--kmip-key", kms / "client.key"),
    )
    _done(tell, "trustauthority init: CAs, keys, database, a first identity", made)
    seconds = serve(stage, "attest", "attest")
    serve(stage, "admin", "admin,placement")
    serve(stage, "key", "key")
    tell.expect("three processes serve: attest, admin+placement, key", holds=True, seconds=seconds)


def act_2(stage: Stage, tell: Narrator) -> None:
    """Baseline, verdicts, explain."""
    tell.act(2, "What a good boot is, and who does not have it")
    first = stage.agent("host-a", "attest")
    tell.expect(
        "before a baseline is approved nobody passes: host-a FAILED",
        holds=first.code == 1,
        said=first.said,
        seconds=first.seconds,
    )
    captured = stage.ta("baseline", "capture", "lab-2026", "--host", "host-a", "-c", "lab")
    _done(tell, "a baseline is captured from host-a's verified boot log", captured)
    approved = stage.ta("baseline", "approve", "lab-2026", "-c", "lab", "--yes")
    _done(tell, "and approved", approved)
    for name in ("host-a", "host-b"):
        attested = stage.agent(name, "attest")
        _done(tell, f"{name} attests: PASSED", attested)
    failed = stage.agent("host-c", "attest")
    tell.expect(
        "host-c, booted with a changed kernel command line: FAILED",
        holds=failed.code == 1,
        said=failed.said,
        seconds=failed.seconds,
    )
    why = stage.ta("host", "explain", "host-c")
    tell.show(why.said)
    tell.expect(
        "ta host explain names the event, what was expected and what was found",
        holds=why.code == 1 and "systemd.debug_shell" in why.out and "PCR 8" in why.out,
        said=why.said,
        seconds=why.seconds,
    )
    listed = stage.ta("host", "list", "-c", "lab")
    tell.show(listed.out)
    bench = stage.agent("bench", "attest")
    _done(
        tell,
        "bench attests and PASSED: it is a genuine TPM with a good boot, not one of ours",
        bench,
    )


def act_3(stage: Stage, tell: Narrator) -> None:
    """A key for one TPM."""
    tell.act(3, "A key that only one TPM opens")
    _done(
        tell,
        f"VM {VM} is protected",
        stage.ta("vm", "protect", VM, "--cluster", "lab", "--lease", "strict"),
    )
    _done(tell, "its key is made, wrapped by a KEK of the KMS", stage.ta("key", "create", VM))
    refused = _request(stage, "host-b")
    _refused(
        tell, "host-b asks without a reason and is refused (N73)", refused, "KEY_NOT_PERMITTED"
    )
    refused = _request(stage, "bench")
    _refused(
        tell,
        "bench asks: attested, but never a key without admission (N76)",
        refused,
        "HOST_NOT_ADMITTED",
    )
    _done(
        tell,
        "the scheduler writes an intent for host-a",
        stage.ta("placement", "intent", "--vm", VM, "--host", "host-a"),
    )
    grant = stage.folder / "grant-a"
    key_file = stage.folder / "host-a" / "run" / f"{VM}.key"
    opened = _request(
        stage, "host-a", "--save-grant", grant, "--out", key_file, "--request-id", REQUEST
    )
    _done(tell, "host-a gets the grant and opens the key in its TPM", opened)
    stage.secret = key_file.read_bytes()
    tell.show(opened.out)
    other = stage.agent("host-b", "key", "open", "--grant", grant)
    tell.expect(
        "the same grant on host-b does not open",
        holds=other.code == 1,
        said=other.said,
        seconds=other.seconds,
    )


def act_4(stage: Stage, tell: Narrator) -> None:
    """Placement and hand-over."""
    tell.act(4, "May this VM run there?")
    checked = stage.ta("placement", "check", "--vm", VM, "--host", "host-b")
    _done(tell, "placement check for host-b: yes", checked)
    given = stage.agent("host-a", "key", "give-back", VM)
    _done(tell, "host-a stops the VM, wipes the key and gives it back", given)
    key_file = stage.folder / "host-a" / "run" / f"{VM}.key"
    tell.expect("its key file is gone", holds=not key_file.exists())
    _done(
        tell,
        "an intent for host-b",
        stage.ta("placement", "intent", "--vm", VM, "--host", "host-b"),
    )
    opened = _request(stage, "host-b", "--save-grant", stage.folder / "grant-b", "--open")
    _done(tell, "host-b gets the next grant epoch", opened)
    shown = stage.ta("vm", "show", VM, "-o", "json")
    tell.expect(
        "the grant epoch is 2 now",
        holds=_grant_epoch(shown) == 2,
        said=shown.said,
        seconds=shown.seconds,
    )
    checked = stage.ta("placement", "check", "--vm", VM, "--host", "host-c")
    tell.show(checked.said)
    tell.expect(
        "placement check for host-c: no, and why",
        holds=checked.code == 1 and "HOST_NOT_ATTESTED" in checked.said,
        said=checked.said,
        seconds=checked.seconds,
    )
    refused = _request(stage, "host-c")
    _refused(tell, "host-c's own request is refused", refused, "HOST_NOT_ATTESTED")


def act_5(stage: Stage, tell: Narrator) -> None:
    """Reboot into a bad boot; revoke."""
    tell.act(5, "A host that held a key turns bad")
    stage.boot_host("host-b", "changed-cmdline")
    tell.say("host-b reboots with another kernel command line")
    opened = stage.agent("host-b", "key", "open", "--grant", stage.folder / "grant-b")
    tell.expect(
        "the old blob does not open: the TPM says no",
        holds=opened.code == 1,
        said=opened.said,
        seconds=opened.seconds,
    )
    failed = stage.agent("host-b", "attest")
    tell.expect(
        "its re-attestation FAILED",
        holds=failed.code == 1,
        said=failed.said,
        seconds=failed.seconds,
    )
    refused = _request(stage, "host-b")
    _refused(tell, "it gets no key any more", refused, "HOST_NOT_ATTESTED")
    revoked = stage.ta("host", "revoke", "host-b", "--why", "failed after reboot", "--yes")
    _done(tell, "host-b is revoked", revoked)
    stage.boot_host("host-b", "good-second-boot")
    again = stage.agent("host-b", "attest")
    tell.expect(
        "back in the good boot its evidence is good, and its verdict still FAILED: it is revoked",
        holds=again.code == 1 and "revocation" in again.said,
        said=again.said,
        seconds=again.seconds,
    )
    refused = _request(stage, "host-b")
    _refused(tell, "and nothing is released to it", refused, "HOST_REVOKED")


def act_6(stage: Stage, tell: Narrator) -> None:
    """Outages."""
    tell.act(6, "The KMS dies; the admin role stops")
    _done(
        tell,
        "an intent for host-a",
        stage.ta("placement", "intent", "--vm", VM, "--host", "host-a"),
    )
    tell.say("host-b's fence holds the VM until its lease, continue-for and skew are over")
    _wait_for_fence(stage, tell)
    shutil.copy2(stage.folder / "authority" / "authority.db", stage.folder / "yesterday.db")
    stage.stop("kms", signal.SIGKILL)
    broken = _request(stage, "host-a", "--request-id", "demo-request-0002")
    tell.expect(
        "without the KMS: a clear error, nothing leaves, nothing is lost",
        holds=broken.code == 5 and "KMS" in broken.said,
        said=broken.said,
        seconds=broken.seconds,
    )
    tell.show(broken.said.rstrip().splitlines()[-1])
    port = stage.address("kmip").rpartition(":")[2]
    stage.start("kms", "kms-mock", "serve", stage.folder / "kms", "--port", port, ready="ready")
    opened = _request(stage, "host-a", "--open", "--request-id", "demo-request-0002")
    _done(tell, "it is back: the same request id gets the key", opened)
    _done(tell, "given back", stage.agent("host-a", "key", "give-back", VM))
    stage.stop("admin")
    opened = _request(stage, "host-a", "--open")
    _done(tell, "with the admin role stopped an attested host still gets its key", opened)
    _done(tell, "given back", stage.agent("host-a", "key", "give-back", VM))
    serve(stage, "admin", "admin,placement")


def act_7(stage: Stage, tell: Narrator) -> None:
    """Rollback."""
    tell.act(7, "Yesterday's database is put back")
    database = stage.folder / "authority" / "authority.db"
    for name in ("attest", "admin", "key"):
        stage.stop(name)
    newest = stage.folder / "newest.db"
    shutil.copy2(database, newest)
    shutil.copy2(stage.folder / "yesterday.db", database)
    for name, roles in (("attest", "attest"), ("admin", "admin,placement"), ("key", "key")):
        serve(stage, name, roles)
    caught = stage.agent("host-a", "attest")
    tell.expect(
        "the first echoed checkpoint is ahead of the database: releases stop (N91)",
        holds=caught.code != 0 and "ROLLBACK_DETECTED" in caught.said,
        said=caught.said,
        seconds=caught.seconds,
    )
    status = stage.ta("status")
    tell.show(status.said, lines=14)
    for name in ("attest", "admin", "key"):
        stage.stop(name)
    shutil.copy2(newest, database)
    for name, roles in (("attest", "attest"), ("admin", "admin,placement"), ("key", "key")):
        serve(stage, name, roles)
    good = stage.agent("host-a", "attest")
    _done(tell, "with the right database back, everything goes on", good)


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
    _done(tell, "ta audit verify hashes every entry again, up to the signed checkpoint", verified)
    found = secret_seen(stage)
    tell.expect(
        "the VM key stands in no log, database, file, command line or environment (N69)",
        holds=len(stage.secret) > 16 and not found,
        said="\n".join(found),
    )


def act_9(stage: Stage, tell: Narrator) -> None:
    """Break-glass."""
    tell.act(9, "Three in the morning: a policy fails every host")
    broken = stage.folder / "broken.toml"
    broken.write_text('name = "broken"\n[boot]\nhost_class = "required"\n')
    applied = stage.ta("policy", "apply", broken, "-c", "lab", "--yes")
    _done(tell, "a policy that no host can meet is applied", applied)
    stage.agent("host-a", "attest")
    _refused(tell, "host-a fails and gets no key", _request(stage, "host-a"), "HOST_NOT_ATTESTED")
    words = (
        "--host",
        "host-a",
        "--for",
        "10m",
        "--why",
        "policy fails every host, INC-481",
        "--yes",
    )
    opened = stage.ta("key", "break-glass", "open", VM, *words)
    _done(tell, "somebody opens a break-glass for host-a and payroll, and says why", opened)
    status = stage.ta("status")
    tell.expect(
        "ta status warns of it", holds="INC-481" in status.out, said=status.said, seconds=0.0
    )
    got = _request(stage, "host-a", "--open")
    _done(tell, "host-a gets the key once, for its TPM and boot alone", got)
    _done(tell, "given back", stage.agent("host-a", "key", "give-back", VM))
    _refused(tell, "and not a second time", _request(stage, "host-a"), "HOST_NOT_ATTESTED")
    tell.show(stage.ta("key", "break-glass", "list").out)


def secret_seen(stage: Stage) -> list[str]:
    """Where the VM key is found: files of the stage, command lines and environments (N69)."""
    forms = (stage.secret, stage.secret.hex().encode(), base64.b64encode(stage.secret))
    places = [path for path in stage.folder.rglob("*") if path.is_file()]
    for process in stage.processes.values():
        places += [Path(f"/proc/{process.pid}/{name}") for name in ("environ", "cmdline")]
    return [str(path) for path in places if any(form in path.read_bytes() for form in forms)]


ACTS = (act_1, act_2, act_3, act_4, act_5, act_6, act_7, act_8, act_9)


def _wait_for_fence(stage: Stage, tell: Narrator) -> None:
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


def _request(stage: Stage, host: str, *more: str | Path) -> Result:
    return stage.agent(host, "key", "request", VM, *more)


def _done(tell: Narrator, what: str, result: Result) -> None:
    tell.expect(what, holds=result.code == 0, said=result.said, seconds=result.seconds)


def _refused(tell: Narrator, what: str, result: Result, reason: str) -> None:
    tell.expect(
        what,
        holds=result.code in (1, 4) and reason in result.said,
        said=f"exit {result.code}: {result.said}",
        seconds=result.seconds,
    )


def _grant_epoch(shown: Result) -> int:
    """The grant epoch in the answer of ta vm show -o json (proto JSON writes 64-bit numbers as text)."""
    answer = shown.json()
    return int(answer.get("grantEpoch", answer.get("grant_epoch", -1)))
