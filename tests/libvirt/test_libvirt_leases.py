"""A VM runs under a lease or not at all, whoever dies, stands still or is revoked (I-B, I-C)."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
from support.boots import extend
from support.lossy_line import Loses
from support.referee import TICK_S
from support.two_hosts import FENCE_S, GONE_S, LEASE_MS, TwoHosts, eventually, wait_until

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(300)]


@pytest.fixture
def two(brief: TwoHosts) -> TwoHosts:
    """Here leases end."""
    return brief


SLOW_S = 2.0
"""What a busy machine may take to notice that a time has come."""


def was_never_paused(two: TwoHosts, seen: int) -> bool:
    """Whether the referee saw nothing but a running VM since it had seen that much."""
    return {what for _, _, what in two.referee.seen[seen:]} <= {"running", ""}


def gone(two: TwoHosts, name: str = "host-a") -> bool:
    """Whether no QEMU lives on a host."""
    return not two.libvirt[name].qemu_pids()


def watchdogs(two: TwoHosts, name: str = "host-a") -> list[int]:
    """The watchdogs of a host's VMs."""
    state, found = str(two.stage.hosts[name].folder / "run" / "vms"), []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_text(errors="replace").split("\0")
            if words[0] == "ta-watchdog" and words[-2].startswith(state):
                found.append(int(entry.parent.name))
    return found


class TestRevoked:
    def test_while_it_runs(self, two: TwoHosts) -> None:
        """N25: paused at once by the push, gone within the lease, and the domain says why."""
        two.started()
        two.revoke("host-a")
        began = time.monotonic()
        paused = wait_until(lambda: two.states()[0] != "running", GONE_S, "it is paused")
        assert two.stands()
        wait_until(lambda: gone(two), GONE_S + SLOW_S, "it is gone", two.describe)
        assert time.monotonic() - began < GONE_S + SLOW_S
        assert paused < LEASE_MS / 1000, "the push came before the lease ended"
        said = two.libvirt["host-a"].do("metadata", two.vm, "urn:trustauthority:state:1")
        assert "HOST_REVOKED" in said
        assert two.secrets("host-a") == []
        assert two.libvirt["host-a"].virsh("start", two.vm).code != 0

    def test_without_the_push(self, two: TwoHosts) -> None:
        """S8: the lease is the guarantee; a host that hears nothing ends the VM by its own clock."""
        two.started()
        two.lines["host-a"].loses(Loses.ALL)
        two.revoke("host-a")
        began = time.monotonic()
        wait_until(lambda: gone(two), GONE_S + SLOW_S, "it is gone", two.describe)
        assert time.monotonic() - began < FENCE_S
        two.lines["host-a"].mend()


class TestLost:
    def test_a_failed_attestation(self, two: TwoHosts) -> None:
        """N55: the host measures something else; no renewal, paused by the end of the lease, audited."""
        two.started()
        extend(two.stage.hosts["host-a"].tpm.tcti, 4, {"sha256": b"\1" * 32, "sha1": b"\1" * 20})
        two.stage.hosts["host-a"].boot = "spoiled"
        began = time.monotonic()
        assert two.stage.agent("host-a", "attest").code == 1
        wait_until(lambda: two.states()[0] != "running", LEASE_MS / 1000 + SLOW_S, "it is paused")
        wait_until(lambda: gone(two), GONE_S, "it is gone", two.describe)
        assert time.monotonic() - began < GONE_S + SLOW_S
        wait_until(lambda: not two.owner(), FENCE_S, "it is given back", two.describe)
        said = two.libvirt["host-a"].do("metadata", two.vm, "urn:trustauthority:state:1")
        assert "HOST_NOT_ATTESTED" in said
        two.started("host-b")
        two.runs_on("host-b")

    def test_the_authority_is_away(self, two: TwoHosts) -> None:
        """N49: paused, then ended inside the fence; starts again when the authority is back."""
        two.started()
        for name in ("admin", "key", "attest"):
            two.stage.stop(name, signal.SIGKILL)
        began = time.monotonic()
        wait_until(lambda: two.states()[0] != "running", LEASE_MS / 1000 + SLOW_S, "it is paused")
        wait_until(lambda: gone(two), GONE_S, "it is gone", two.describe)
        assert time.monotonic() - began < FENCE_S
        for name in ("admin", "key", "attest"):
            two.serve(name)
        wait_until(lambda: not two.owner(), FENCE_S, "it is given back", two.describe)
        two.started("host-b")
        two.runs_on("host-b")

    def test_a_short_silence_costs_nothing(self, two: TwoHosts) -> None:
        """Renewals have time for retries: three seconds without an answer pause nothing."""
        two.started()
        seen = len(two.referee.seen)
        two.lines["host-a"].loses(Loses.ANSWERS)
        time.sleep(3)
        two.lines["host-a"].mend()
        before = two.ticks()
        time.sleep(LEASE_MS / 1000)
        assert two.ticks() > before + LEASE_MS / 1000
        two.runs_on("host-a")
        assert was_never_paused(two, seen)


class TestWatchdog:
    """N87: what ends the VM when the agent can't."""

    def test_the_agent_is_killed(self, two: TwoHosts) -> None:
        """Gone before the fence; then, and only then, another host gets it."""
        two.started()
        two.kill_agent("host-a")
        began = time.monotonic()
        assert two.start_vm("host-b").code != 0
        wait_until(lambda: gone(two), GONE_S + SLOW_S, "it is gone", two.describe)
        ended = time.monotonic() - began
        assert ended < FENCE_S
        wait_until(
            lambda: two.libvirt["host-b"].virsh("start", two.vm).code == 0,
            FENCE_S,
            "the fence passed",
        )
        assert time.monotonic() - began >= ended
        two.runs_on("host-b")

    def test_the_agent_stands_still(self, two: TwoHosts) -> None:
        """N52: gone before the fence; the agent that wakes up as a zombie is fenced."""
        two.started()
        two.signal_agent("host-a", signal.SIGSTOP)
        began = time.monotonic()
        two.libvirt["host-b"].do("define", two.definition())
        wait_until(lambda: gone(two), GONE_S + SLOW_S, "it is gone", lambda: str(two.states()))
        assert time.monotonic() - began < FENCE_S
        wait_until(
            lambda: two.libvirt["host-b"].virsh("start", two.vm).code == 0,
            FENCE_S,
            "the fence passed",
        )
        two.signal_agent("host-a", signal.SIGCONT)
        eventually(lambda: not two.lease("host-a"), "the zombie let go", two.describe)
        two.runs_on("host-b")

    def test_the_whole_host_stands_still(self, two: TwoHosts) -> None:
        """N34, N87: a host that wakes up after its fence ends the VM before the guest gets far."""
        two.started()
        host = two.libvirt["host-a"]
        pids = [*host.qemu_pids(), *watchdogs(two), host.process.pid]
        pids.append(two.stage.processes["agent-host-a"].pid)
        assert len(pids) == 4
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(FENCE_S)
            before = two.ticks()
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        wait_until(lambda: gone(two), 2, "it is gone", two.describe)
        assert two.ticks() <= before + 1
        eventually(lambda: not two.lease("host-a"), "it is given back", two.describe)

    def test_one_for_each_life(self, two: TwoHosts) -> None:
        """There is one watchdog while the VM runs, also after a move, and none afterwards."""
        two.started()
        assert len(watchdogs(two)) == 1
        assert two.move("host-a", "host-b").code == 0
        two.runs_on("host-b")
        eventually(lambda: not watchdogs(two), "none is left at the source")
        assert len(watchdogs(two, "host-b")) == 1


class TestAgentRestarts:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_the_vm_does_not_notice(self, two: TwoHosts, number: int) -> None:
        """An agent that is restarted in time takes its leases up; the guest never stops."""
        two.started()
        began, before, seen = time.monotonic(), two.ticks(), len(two.referee.seen)
        two.stage.stop("agent-host-a", number)
        two.start_agent("host-a")
        two.runs_on("host-a")
        took = time.monotonic() - began
        assert two.ticks() - before > took / TICK_S * 0.3
        time.sleep(LEASE_MS / 1000)
        two.runs_on("host-a")
        assert was_never_paused(two, seen)
