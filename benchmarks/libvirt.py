"""What protection costs on two real libvirt hosts: start, move, and how soon a revoked host stops.

Root; libvirt and QEMU by deploy/setup-libvirt.sh. ``python benchmarks/libvirt.py [--rounds N]``. Each
figure is median (min … max) in milliseconds; each pair is measured in turn, in the same minutes.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.libvirt_hosts import migrate_words
from support.two_hosts import DISK_SECRET, GONE_S, VM, VTPM_SECRET, TwoHosts, wait_until

BARE, PASSPHRASE = "bare", b"a passphrase that everybody knows"
HOOK = ROOT / "hostagent" / "hooks" / "qemu.py"


def told(what: str, seconds: list[float]) -> float:
    """Print one figure; returns the median in milliseconds."""
    each = sorted(1000 * s for s in seconds)
    median = statistics.median(each)
    print(f"  {what:<58}{median:8.0f} ms  ({each[0]:.0f} … {each[-1]:.0f})", flush=True)
    return median


def hook_alone(rounds: int, definition: bytes) -> None:
    """The hook's own process: for a VM without the mark, and with an agent that answers at once."""
    with tempfile.TemporaryDirectory(prefix="ta-hook-") as made:
        folder = Path(made)
        config, program = folder / "hook.json", folder / "hook"
        config.write_text(json.dumps({"run_dir": made}))
        text = HOOK.read_text().replace("/etc/libvirt/hooks/trustauthority.json", str(config))
        program.write_text(text)
        program.chmod(0o755)
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(folder / "hook.sock"))
        server.listen(8)
        threading.Thread(target=_answers, args=(server,), daemon=True).start()
        for what, given in (("without", _unmarked(definition)), ("with", definition)):
            seconds = []
            for _ in range(rounds):
                began = time.monotonic()
                words = [program, VM, "started", "begin", "-"]
                subprocess.run(words, input=given, check=True, timeout=30)
                seconds.append(time.monotonic() - began)
            told(f"the hook's process, VM {what} the mark", seconds)
        server.close()


def _answers(server: socket.socket) -> None:
    while True:
        try:
            caller, _ = server.accept()
        except OSError:
            return
        with caller, caller.makefile("rb") as lines:
            lines.readline()
            caller.sendall(b'{"ok": true}\n')


def _unmarked(definition: bytes) -> bytes:
    start, end = definition.index(b"<metadata>"), definition.index(b"</metadata>")
    return definition[:start] + definition[end + len(b"</metadata>") :]


def make_bare(two: TwoHosts) -> Path:
    """The same VM without protection: its secrets are set in libvirt by hand, on both hosts."""
    plain, disk = two.folder / "bare.img", two.folder / "bare.qcow2"
    plain.write_bytes(bytes(2 << 20))
    secret = two.folder / "bare.pass"
    secret.write_bytes(PASSPHRASE)
    options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=100"
    command = ["qemu-img", "convert", "-O", "qcow2", "-o", options]
    command += ["--object", f"secret,id=s,file={secret}", str(plain), str(disk)]
    for left in reversed(range(10)):  # a busy machine can't time one round of the key derivation
        if subprocess.run(command, check=not left).returncode == 0:
            break
        time.sleep(0.5)
    text = two.definition(name=BARE, number=7, marked=False).read_text()
    for old, new in ((DISK_SECRET, DISK_SECRET[:-1] + "a"), (VTPM_SECRET, VTPM_SECRET[:-1] + "b")):
        text = text.replace(old, new)
        usage = two.folder / "usage.xml"
        usage.write_text(f"<secret private='yes'><uuid>{new}</uuid></secret>")
        for host in two.libvirt.values():
            host.do("secret-define", usage)
            host.do("secret-set-value", new, "--file", secret, "--plain")
    text = text.replace(str(two.disk), str(disk)).replace(str(two.serial), "/dev/null")
    definition = two.folder / "bare.xml"
    definition.write_text(text)
    return definition


def hooks_logged(two: TwoHosts) -> list[dict]:
    """What the agent of host-a logged of hooks: each with the milliseconds that it went through."""
    lines = [line for line in two.agent_log("host-a").splitlines() if '"event": "hook"' in line]
    return [json.loads(line) for line in lines]


def starts(two: TwoHosts, bare: Path, rounds: int) -> None:
    """virsh start with and without protection, and what the agent says of the difference."""
    host = two.libvirt["host-a"]
    host.do("define", bare)
    host.do("define", two.definition())
    seconds: dict[str, list[float]] = {BARE: [], VM: []}
    before = len(hooks_logged(two))
    for _ in range(rounds):
        for name, found in seconds.items():
            said = host.virsh("start", name)
            assert said.code == 0, said.err
            found.append(said.seconds)
            host.do("destroy", name)
            wait_until(lambda: not two.lease("host-a"), 10, "given back")
    without = told("virsh start, without protection", seconds[BARE])
    protected = told("virsh start, protected (hook, agent, TPM, authority)", seconds[VM])
    print(f"  {'overhead of a start':<58}{protected - without:8.0f} ms")
    told_by_the_agent(hooks_logged(two)[before:], rounds)


def told_by_the_agent(logged: list[dict], rounds: int) -> None:
    """The parts of a start, as the agent's own clock has them, per start."""
    of_starts = [each for each in logged if each["action"] in {"prepare", "started"}]
    assert len(of_starts) == 2 * rounds, of_starts
    both = [
        {what: (one[what] + other[what]) / 1000 for what in ("ms", "tpm_ms", "authority_ms")}
        for one, other in zip(of_starts[::2], of_starts[1::2], strict=True)
    ]
    told("in the agent, from the hook's question to its answer", [each["ms"] for each in both])
    told("  of it in the TPM", [each["tpm_ms"] for each in both])
    told("  of it waiting for the key: authority and KMS", [each["authority_ms"] for each in both])
    own = [each["ms"] - each["tpm_ms"] - each["authority_ms"] for each in both]
    told("  the rest: libvirt's secrets, evidence, the watchdog", own)


def moves(two: TwoHosts, rounds: int) -> None:
    """A live migration with and without protection, there and back."""
    seconds: dict[str, list[float]] = {BARE: [], VM: []}
    names = ["host-a", "host-b"]
    for name in seconds:
        two.libvirt["host-a"].do("start", name)
    for _ in range(rounds):
        source, target = names
        there = two.libvirt[target]
        began = time.monotonic()
        said = two.libvirt[source].virsh(*migrate_words(there, BARE, "--suspend"))
        assert said.code == 0, said.err
        there.do("resume", BARE)
        seconds[BARE].append(time.monotonic() - began)
        moved = two.move(source, target)
        assert moved.code == 0, moved.said
        shown = moved.out.strip().rpartition("after ")[2]
        seconds[VM].append(float(shown.partition(" ")[0]))
        names.reverse()
    without = told("live migration, without protection", seconds[BARE])
    protected = told("hostagent vm migrate: offer, copy, switch, claim, resume", seconds[VM])
    print(f"  {'overhead of a move':<58}{protected - without:8.0f} ms")
    for name in seconds:
        two.libvirt[names[0]].do("destroy", name)


def revocation(two: TwoHosts) -> None:
    """From the answer of ta host revoke until the guest stands, and until QEMU is gone."""
    two.fresh()
    two.started("host-a")
    two.revoke("host-a")
    began = time.monotonic()
    wait_until(lambda: two.states()[0] != "running", 2 * GONE_S, "paused")
    told("revoked: until the guest stands", [time.monotonic() - began])
    wait_until(lambda: not two.libvirt["host-a"].qemu_pids(), 2 * GONE_S, "gone")
    told(f"revoked: until QEMU is gone (bound {1000 * GONE_S:.0f} ms)", [time.monotonic() - began])


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    two = TwoHosts()
    print(f"libvirt, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {rounds} rounds")
    try:
        two.set_up()
        hook_alone(4 * rounds, two.definition().read_bytes())
        bare = make_bare(two)
        starts(two, bare, rounds)
        moves(two, rounds)
        revocation(two)
    finally:
        two.close()


if __name__ == "__main__":
    main()
