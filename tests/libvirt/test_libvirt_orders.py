"""Moves that are ordered at the authority and carried out by the agent, on two real libvirt hosts."""

import time

import pytest
from support.two_hosts import (
    AT_ONCE_S,
    BAD_BOOT,
    NAMES,
    VM,
    TwoHosts,
    eventually,
    wait_until,
)

pytestmark = pytest.mark.libvirt
ENDED = {"done", "failed", "cancelled", "expired"}


def orders(two: TwoHosts) -> list[dict]:
    return two.ta("placement", "orders", "--everything", "--vm", VM, "-o", "json").json()


def audited(two: TwoHosts, order: str) -> list[dict]:
    found = two.ta("audit", "tail", "-n", "60", "-o", "json").json()
    return [each for each in found if each.get("details", {}).get("order") == order]


def connected(two: TwoHosts) -> None:
    """Start the attest role again; both agents find it."""
    two.serve("attest")
    settled(two)


def settled(two: TwoHosts) -> None:
    for name in NAMES:
        eventually(lambda name=name: two.passes(name), f"{name} passes")


class TestMigrate:
    def test_ordered_carried_out_and_shown(self, two: TwoHosts) -> None:
        """ta vm migrate: the source's agent moves it; each step is told; the guest goes on."""
        two.started()
        before = two.ticks()
        with two.slow_for("host-a", 3):
            done = two.stage.ta("vm", "migrate", VM, "host-b")
        assert done.code == 0, done.said
        for step in ("waits for the source's agent", "copy", "switch", "resume ✔"):
            assert step in done.said, step
        assert two.ticks() > before + 2
        two.runs_on("host-b")
        assert orders(two)[0]["state"] == "done"

    def test_no_wait(self, two: TwoHosts) -> None:
        """The order stands without anybody who watches."""
        two.started()
        order = two.ta("vm", "migrate", VM, "host-b", "--no-wait", "-o", "name").said.strip()
        eventually(lambda: two.owner() == "host-b", "it moved")
        two.runs_on("host-b")
        eventually(lambda: orders(two)[0]["state"] == "done", "the outcome is told")
        assert orders(two)[0]["orderId"] == order.splitlines()[-1]

    def test_refused_before_it_is_ordered(self, two: TwoHosts) -> None:
        """A host that failed is no destination: exit 1, with the reason, and no order."""
        two.reboot("host-b", BAD_BOOT)
        two.started()
        known = len(orders(two))
        done = two.stage.ta("vm", "migrate", VM, "host-b")
        assert done.code == 1, done.said
        assert "MOVE_REFUSED" in done.said
        assert len(orders(two)) == known
        two.runs_on("host-a")

    def test_revoked_after_it_was_ordered(self, two: TwoHosts) -> None:
        """N47 of moves: the check said yes, then the destination was revoked: it stays, and why."""
        two.started()
        two.stage.stop("attest")  # no watch stream, so no hint; leases go on
        order = two.ta("vm", "migrate", VM, "host-b", "--no-wait", "-o", "name").said.split()[-1]
        two.revoke("host-b")
        two.serve("attest")  # host-b is not to pass meanwhile
        eventually(lambda: orders(two)[0]["state"] == "failed", "the order failed")
        assert orders(two)[0]["orderId"] == order
        assert "HOST_REVOKED" in orders(two)[0]["detail"]
        two.runs_on("host-a")
        two.stage.agent("host-b", "attest")  # it knows by now, so that it is healed

    def test_ordered_while_nobody_can_be_told(self, two: TwoHosts) -> None:
        """The hint is lost: the agent asks for its orders when it is connected again."""
        two.started()
        two.stage.stop("attest")  # no watch stream, so no hint; leases go on
        two.ta("vm", "migrate", VM, "host-b", "--no-wait")
        time.sleep(1)
        assert two.owner() == "host-a"
        connected(two)
        eventually(lambda: two.owner() == "host-b", "it moved")
        two.runs_on("host-b")

    def test_cancelled_before_it_began(self, two: TwoHosts) -> None:
        """An order that was taken back is not carried out."""
        two.started()
        two.stage.stop("attest")  # no watch stream, so no hint; leases go on
        order = two.ta("vm", "migrate", VM, "host-b", "--no-wait", "-o", "name").said.split()[-1]
        two.ta("placement", "cancel", order)
        connected(two)
        time.sleep(2)
        two.runs_on("host-a")
        assert orders(two)[0]["state"] == "cancelled"


class TestCancelWhileItRuns:
    def order(self, two: TwoHosts) -> str:
        """An order whose copy is under way, and would never end."""
        two.started()
        two.slow_copies("host-a")
        order = two.ta("vm", "migrate", VM, "host-b", "--no-wait", "-o", "name").said.split()[-1]
        host = two.libvirt["host-a"]
        wait_until(lambda: "Outgoing" in host.virsh("domjobinfo", VM).out, 30, "memory is copied")
        wait_until(lambda: orders(two)[0].get("phase") == "copy", 10, "it is told")
        return order

    def test_the_vm_stays(self, two: TwoHosts) -> None:
        """libvirt's job is aborted; the VM never stops, keeps its grant, and may move afterwards."""
        order = self.order(two)
        epoch, before = two.lease("host-a")["grant_epoch"], two.ticks()
        done = two.stage.ta("placement", "cancel", order)
        assert done.code == 0, done.said
        assert "is cancelled" in done.said
        two.runs_on("host-a")
        assert two.ticks() > before
        assert two.lease("host-a")["grant_epoch"] == epoch
        assert "completed" not in two.libvirt["host-a"].do("domjobinfo", VM)
        wait_until(lambda: not two.lease("host-b"), 20, "host-b lets go of it", two.describe)
        assert two.secrets("host-b") == []
        operations = [each["operation"] for each in audited(two, order)]
        assert operations.count("order.cancel") == operations.count("order.cancelled") == 1
        two.libvirt["host-a"].do("migrate-setspeed", VM, "1000")
        again = two.stage.ta("vm", "migrate", VM, "host-b")
        assert again.code == 0, again.said
        two.runs_on("host-b")

    def test_without_a_hint(self, two: TwoHosts) -> None:
        """The watch stream is down: the source hears of it by the answer to its next report."""
        order = self.order(two)
        two.stage.stop("attest")
        done = two.stage.ta("placement", "cancel", order)
        assert done.code == 0, done.said
        two.runs_on("host-a")
        two.serve("attest")
        settled(two)

    def test_too_late(self, two: TwoHosts) -> None:
        """At any moment of a quick move: it is cancelled, or refused and finished; never both, never two."""
        two.started()
        where = "host-a"
        for pause_s in (0.3, 0.9, 1.5, 2.1, 2.7):
            target = NAMES[1 - NAMES.index(where)]
            order = two.ta("vm", "migrate", VM, target, "--no-wait", "-o", "name").said.split()[-1]
            time.sleep(pause_s)
            done = two.stage.ta("placement", "cancel", order)
            wait_until(lambda: orders(two)[0]["state"] in ENDED, 40, "it ended", two.describe)
            moved = orders(two)[0]["state"] == "done"
            assert (done.code == 0) is not moved, (done.said, orders(two)[0])
            where = target if moved else where
            two.runs_on(where)

    def test_the_agent_dies(self, two: TwoHosts) -> None:
        """Whether libvirt ends or finishes the copy without it: the VM runs on one host, with the right to."""
        order = self.order(two)
        two.kill_agent("host-a")
        asked = two.stage.ta("placement", "cancel", order, "--no-wait")
        assert asked.code in {0, 1}, asked.said
        two.start_agent("host-a")
        wait_until(lambda: orders(two)[0]["state"] in ENDED, 60, "it ended", two.describe)
        wait_until(lambda: two.owner() and two.states().count("running") == 1, 30, "it runs")
        two.runs_on(two.owner())


class TestDrain:
    def test_empties_a_host(self, two: TwoHosts) -> None:
        """ta host drain: its VMs move away, nothing starts there until ta host undrain."""
        two.started()
        try:
            done = two.stage.ta("host", "drain", "host-a", "--why", "test")
            assert done.code == 0, done.said
            two.runs_on("host-b")
            two.libvirt["host-b"].do("destroy", VM)
            wait_until(lambda: not two.owner(), AT_ONCE_S, "it is given back")
            said = two.start_vm("host-a")
            assert said.code != 0
            assert "being drained" in said.err
        finally:
            two.ta("host", "undrain", "host-a")
        two.started("host-a")

    def test_says_what_stays_and_why(self, two: TwoHosts) -> None:
        """No other host may take it: exit 1, the reason, and the VM runs on."""
        two.reboot("host-b", BAD_BOOT)
        two.started()
        try:
            done = two.stage.ta("host", "drain", "host-a")
            assert done.code == 1, done.said
            assert "host-b: the host's newest verdict is FAILED" in done.said
            two.runs_on("host-a")
        finally:
            two.ta("host", "undrain", "host-a")
