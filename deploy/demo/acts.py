"""The first five acts. Each states what it expects; the demo succeeds only if all of it held."""

import secrets

from narrate import Narrator
from stage import Stage
from steps import (
    POLICY,
    REQUEST,
    VM,
    ek_sha256,
    grant_epoch,
    must_refuse,
    must_work,
    request_key,
    serve,
)
from support.swtpm import TpmMaker


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
    must_work(tell, "cluster lab exists", stage.ta("cluster", "create", "lab"))
    policy = stage.folder / "policy.toml"
    policy.write_text(POLICY)
    must_work(
        tell, "its policy is applied", stage.ta("policy", "apply", policy, "-c", "lab", "--yes")
    )
    for certificate in (makers["known"].root_certificate, makers["known"].issuer_certificate):
        added = stage.ta("anchor", "add", certificate, "--cluster", "lab", "--yes")
        must_work(tell, f"anchored: {certificate.name} of the TPM maker", added)
    for name in ("host-a", "host-b", "host-c"):
        digest = ek_sha256(stage, name)
        added = stage.ta(
            "inventory", "add", "--cluster", "lab", "--name", name, "--ek-sha256", digest, "--yes"
        )
        must_work(tell, f"the inventory lists {name} by its EK", added)
    for name in ("host-a", "host-b", "host-c"):
        enrolled = stage.agent(name, "enrol")
        must_work(tell, f"{name} proves its TPM and is admitted", enrolled)
    enrolled = stage.agent("bench", "enrol")
    must_work(
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
    must_work(
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
    must_work(
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
    must_work(tell, "trustauthority init: CAs, keys, database, a first identity", made)
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
    must_work(tell, "a baseline is captured from host-a's verified boot log", captured)
    approved = stage.ta("baseline", "approve", "lab-2026", "-c", "lab", "--yes")
    must_work(tell, "and approved", approved)
    for name in ("host-a", "host-b"):
        attested = stage.agent(name, "attest")
        must_work(tell, f"{name} attests: PASSED", attested)
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
    must_work(
        tell,
        "bench attests and PASSED: it is a genuine TPM with a good boot, not one of ours",
        bench,
    )


def act_3(stage: Stage, tell: Narrator) -> None:
    """A key for one TPM."""
    tell.act(3, "A key that only one TPM opens")
    must_work(
        tell,
        f"VM {VM} is protected",
        stage.ta("vm", "protect", VM, "--cluster", "lab", "--lease", "strict"),
    )
    must_work(tell, "its key is made, wrapped by a KEK of the KMS", stage.ta("key", "create", VM))
    refused = request_key(stage, "host-b")
    must_refuse(
        tell, "host-b asks without a reason and is refused (N73)", refused, "KEY_NOT_PERMITTED"
    )
    refused = request_key(stage, "bench")
    must_refuse(
        tell,
        "bench asks: attested, but never a key without admission (N76)",
        refused,
        "HOST_NOT_ADMITTED",
    )
    must_work(
        tell,
        "the scheduler writes an intent for host-a",
        stage.ta("placement", "intent", "--vm", VM, "--host", "host-a"),
    )
    grant = stage.folder / "grant-a"
    key_file = stage.folder / "host-a" / "run" / f"{VM}.key"
    opened = request_key(
        stage, "host-a", "--save-grant", grant, "--out", key_file, "--request-id", REQUEST
    )
    must_work(tell, "host-a gets the grant and opens the key in its TPM", opened)
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
    must_work(tell, "placement check for host-b: yes", checked)
    given = stage.agent("host-a", "key", "give-back", VM)
    must_work(tell, "host-a stops the VM, wipes the key and gives it back", given)
    key_file = stage.folder / "host-a" / "run" / f"{VM}.key"
    tell.expect("its key file is gone", holds=not key_file.exists())
    must_work(
        tell,
        "an intent for host-b",
        stage.ta("placement", "intent", "--vm", VM, "--host", "host-b"),
    )
    opened = request_key(stage, "host-b", "--save-grant", stage.folder / "grant-b", "--open")
    must_work(tell, "host-b gets the next grant epoch", opened)
    shown = stage.ta("vm", "show", VM, "-o", "json")
    tell.expect(
        "the grant epoch is 2 now",
        holds=grant_epoch(shown) == 2,
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
    refused = request_key(stage, "host-c")
    must_refuse(tell, "host-c's own request is refused", refused, "HOST_NOT_ATTESTED")


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
    refused = request_key(stage, "host-b")
    must_refuse(tell, "it gets no key any more", refused, "HOST_NOT_ATTESTED")
    revoked = stage.ta("host", "revoke", "host-b", "--why", "failed after reboot", "--yes")
    must_work(tell, "host-b is revoked", revoked)
    stage.boot_host("host-b", "good-second-boot")
    again = stage.agent("host-b", "attest")
    tell.expect(
        "back in the good boot its evidence is good, and its verdict still FAILED: it is revoked",
        holds=again.code == 1 and "revocation" in again.said,
        said=again.said,
        seconds=again.seconds,
    )
    refused = request_key(stage, "host-b")
    must_refuse(tell, "and nothing is released to it", refused, "HOST_REVOKED")
