"""An encrypted VM starts, moves, and is refused, on two real libvirt hosts; watched as a person would.

python deploy/demo-libvirt     (root; libvirt and QEMU by deploy/setup-libvirt.sh)
"""

import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT / "deploy" / "demo", ROOT / "tests"):
    sys.path.insert(0, str(folder))

from narrate import Narrator
from stage import DemoFailed
from support.libvirt_hosts import migrate_words
from support.referee import Referee
from support.two_hosts import BAD_BOOT, FENCE_S, GONE_S, LEASE_MS, NAMES, VM, TwoHosts, wait_until

SLOW_S = 3.0
"""What a busy machine may take to notice that a time has come."""


def act_1(two: TwoHosts, tell: Narrator) -> None:
    """Start."""
    tell.act(1, "An encrypted VM starts on a host that is trusted now")
    host = two.libvirt["host-a"]
    tell.expect(
        "its disk on shared storage is encrypted: what the guest writes is not found in it",
        holds=b"tick of" not in two.disk.read_bytes(),
    )
    host.do("define", two.definition())
    started = host.virsh("start", VM)
    tell.expect(
        "host-a: virsh start: the hook got the key from the authority, by the host's TPM",
        holds=started.code == 0,
        said=started.err,
        seconds=started.seconds,
    )
    tell.expect(
        "the guest runs: it reads its disk and writes a line, six times a second", holds=two.runs()
    )
    tell.show(two.serial.read_text(), lines=2)
    tell.expect("libvirt keeps no key: virsh secret-list is empty", holds=not two.secrets("host-a"))
    tell.show(two.stage.agent("host-a", "status").out)


def act_2(two: TwoHosts, tell: Narrator) -> None:
    """Who may not."""
    tell.act(2, "Nobody else may run it, and nothing else runs with its key")
    _refused(tell, "host-b may not start it too", two.start_vm("host-b"), "GRANT_HELD_ELSEWHERE")
    two.libvirt["host-a"].do("define", two.definition(name="thief", number=3, marked=False))
    said = two.libvirt["host-a"].virsh("start", "thief")
    _refused(tell, "a VM without the mark gets no key for that disk", said, "ecret not found")
    two.libvirt["host-a"].do("define", two.definition(name="twin", number=4))
    said = two.libvirt["host-a"].virsh("start", "twin")
    _refused(tell, "another domain under the same VM id neither", said, "NOT_NOW")
    tell.expect("and the VM runs on, undisturbed", holds=two.runs())


def act_3(two: TwoHosts, tell: Narrator) -> None:
    """Move."""
    tell.act(3, "It moves, live, and only as a move that was offered")
    said = two.libvirt["host-a"].virsh(*migrate_words(two.libvirt["host-b"], VM))
    _refused(tell, "virsh migrate: refused by the destination", said, "MOVE_NOT_OFFERED")
    before = two.ticks()
    with two.slow_for("host-a", 3):
        moved = two.move("host-a", "host-b")
    tell.show(moved.err)
    tell.expect(
        "hostagent vm migrate payroll host-b",
        holds=moved.code == 0,
        said=moved.said,
        seconds=moved.seconds,
    )
    tell.expect(
        f"the guest wrote {two.ticks() - before} lines meanwhile, and writes on over there",
        holds=two.ticks() > before + 2 and two.runs(),
    )
    tell.expect(
        "one host has it: host-b runs it, host-a has neither QEMU nor vTPM nor key left",
        holds=two.states() == ("absent", "running")
        and not any((two.libvirt["host-a"].folder / "lib" / "swtpm").rglob("*.permall")),
        said=two.describe(),
    )
    tell.expect("the authority says the same", holds=two.owner() == "host-b", said=two.describe())


def act_4(two: TwoHosts, tell: Narrator) -> None:
    """A host that changed."""
    tell.act(4, "host-a reboots with another kernel command line")
    two.reboot("host-a", BAD_BOOT)
    explained = two.stage.ta("host", "explain", "host-a")
    tell.show("\n".join(line for line in explained.out.splitlines() if "✖" in line), lines=4)
    refused = two.move("host-b", "host-a")
    tell.expect(
        "moving the VM back is refused",
        holds=refused.code == 1 and "HOST_NOT_ATTESTED" in refused.said,
        said=refused.said,
    )
    tell.show(refused.err)
    _refused(tell, "starting it there too", two.start_vm("host-a"), "HOST_NOT_ATTESTED")
    tell.expect("host-b runs it, untouched", holds=two.runs() and two.states()[1] == "running")


def act_5(two: TwoHosts, tell: Narrator) -> None:
    """Revoked."""
    tell.act(5, f"host-b is revoked while the VM runs there (leases of {LEASE_MS // 1000} s)")
    two.revoke("host-b")
    began = time.monotonic()
    wait_until(lambda: two.states()[1] != "running", GONE_S + SLOW_S, "paused", two.describe)
    tell.expect("the VM is paused", holds=True, seconds=time.monotonic() - began)
    wait_until(lambda: not two.libvirt["host-b"].qemu_pids(), GONE_S + SLOW_S, "gone", two.describe)
    took = time.monotonic() - began
    tell.expect(
        f"QEMU is gone within lease and half of the skew ({GONE_S:.1f} s)",
        holds=took < GONE_S + SLOW_S,
        seconds=took,
    )
    why = two.libvirt["host-b"].virsh("metadata", VM, "urn:trustauthority:state:1").out
    tell.expect("the domain says why", holds="HOST_REVOKED" in why, said=why)
    tell.show(why)
    wait_until(lambda: not two.lease("host-b"), SLOW_S, "its grant is given back", two.describe)
    _refused(tell, "and it does not start there", two.start_vm("host-b"), "HOST_REVOKED")


def act_6(two: TwoHosts, tell: Narrator) -> None:
    """Watchdog and fence."""
    tell.act(6, "The agent of the VM's host dies; then another host takes over")
    two.reboot("host-a", "good")
    two.ta("host", "reinstate", "host-b", "--yes")
    wait_until(lambda: two.stage.agent("host-b", "attest").code == 0, 20, "host-b passes")
    two.revoked.clear()
    said = two.start_vm("host-a")
    tell.expect("host-a booted well again, and starts it", holds=said.code == 0, said=said.err)
    two.kill_agent("host-a")
    began = time.monotonic()
    _refused(tell, "host-b may not have it yet", two.start_vm("host-b"), "GRANT_HELD_ELSEWHERE")
    wait_until(lambda: not two.libvirt["host-a"].qemu_pids(), GONE_S + SLOW_S, "gone", two.describe)
    ended = time.monotonic() - began
    tell.expect(
        "the watchdog, outside of the agent, ends the VM", holds=ended < FENCE_S, seconds=ended
    )
    wait_until(lambda: two.libvirt["host-b"].virsh("start", VM).code == 0, 2 * FENCE_S, "the fence")
    took = time.monotonic() - began
    tell.expect(
        "host-b gets it after the fence, not before",
        holds=took > ended and two.runs(),
        seconds=took,
    )


def _refused(tell: Narrator, what: str, said: object, reason: str) -> None:
    holds = said.code != 0 and reason in said.err
    tell.expect(what, holds=holds, said=said.err, seconds=said.seconds)
    sentence = said.err.strip().splitlines()[-1]
    tell.show(
        sentence[sentence.find("trustauthority:") :] if "trustauthority:" in sentence else sentence
    )


def main() -> int:
    """Play all acts; 0 only if every expectation held, and never two ran."""
    tell, two = Narrator(), TwoHosts()
    try:
        tell.act(0, "Two hosts with TPMs and libvirt, an authority, a KMS, one VM")
        two.set_up(tell.say)
        referee = Referee({name: two.uri(name) for name in NAMES}, VM, two.ticks)
        referee.begin()
        for act in (act_1, act_2, act_3, act_4, act_5, act_6):
            act(two, tell)
        referee.verdict()
        tell.expect(
            f"the referee looked {referee.looks} times and never saw two that ran", holds=True
        )
        tell.end()
    except (DemoFailed, AssertionError) as error:
        sys.stderr.write(f"\nThe demo failed.\n{error}\n")
        return 1
    finally:
        two.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
