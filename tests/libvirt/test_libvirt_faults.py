"""Whatever dies or gets lost during a move: the VM runs at one host in the end, and never at two."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from stage import Result
from support.lossy_line import Loses
from support.power import power_off, power_on
from support.two_hosts import AT_ONCE_S, FENCE_S, NAMES, TwoHosts, eventually, wait_until

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(300)]


@contextmanager
def moving(two: TwoHosts) -> Iterator[list[Result]]:
    """A move from host-a to host-b that is copying memory, slowly; its result is there at the end."""
    two.started()
    two.slow_copies("host-a")
    done: list[Result] = []
    mover = threading.Thread(target=lambda: done.append(two.move("host-a", "host-b")))
    mover.start()
    try:
        eventually(lambda: two.libvirt["host-a"].copies(two.vm), "memory is copied", two.describe)
        yield done
    finally:
        mover.join(60)


def left(two: TwoHosts) -> bool:
    """Whether QEMU is gone at the source."""
    return not two.libvirt["host-a"].qemu_pids()


class TestAnswersLost:
    """N88: the authority decided, and nobody heard it."""

    @pytest.mark.parametrize("name", NAMES)
    def test_to_the_offer_or_the_preparation(self, two: TwoHosts, name: str) -> None:
        """The same request id gets the same answer later; the move goes on."""
        two.started()
        two.lines[name].loses(Loses.ANSWERS)
        mended = threading.Timer(3, two.lines[name].mend)
        mended.start()
        done = two.move("host-a", "host-b")
        mended.join()
        assert done.code == 0, done.said
        two.runs_on("host-b")

    @pytest.mark.parametrize("what", [Loses.ANSWERS, Loses.REQUESTS])
    def test_to_the_switch(self, two: TwoHosts, what: Loses) -> None:
        """Whether the authority heard it or not: one host runs it, the one that owns it."""
        with moving(two):
            two.lines["host-a"].loses(what)
            two.fast_copies("host-a")
            eventually(lambda: left(two), "QEMU left")
            eventually(lambda: two.lease("host-a").get("phase") == "switching", "it switches")
            if what is Loses.ANSWERS:
                eventually(lambda: two.states()[1] == "running", "claimed", two.describe)
            else:
                assert two.stands(), two.describe()
            two.lines["host-a"].mend()
        two.runs_on("host-b")
        wait_until(lambda: not two.lease("host-a"), AT_ONCE_S, "the source knows")

    @pytest.mark.parametrize("what", [Loses.ANSWERS, Loses.REQUESTS])
    def test_to_the_claim(self, two: TwoHosts, what: Loses) -> None:
        """The destination resumes on an answer of its own, not before."""
        with moving(two):
            two.lines["host-b"].loses(what)
            two.fast_copies("host-a")
            eventually(lambda: two.owner() == "host-b", "it switched", two.describe)
            assert two.stands(), two.describe()
            two.lines["host-b"].mend()
        two.runs_on("host-b")

    def test_to_a_start(self, two: TwoHosts) -> None:
        """N85: refused within the hook's own deadline; asked again, the same host gets it."""
        two.lines["host-a"].loses(Loses.ANSWERS)
        said = two.start_vm("host-a")
        assert said.code != 0
        assert "trustauthority: VM payroll: " in said.err
        assert said.seconds < 18
        two.runs_nowhere()
        two.lines["host-a"].mend()
        two.started()
        two.runs_on("host-a")


class TestAgentsKilled:
    """N51: agents die at each step and come back."""

    @pytest.mark.parametrize("names", [("host-a",), ("host-b",), NAMES])
    def test_while_copying(self, two: TwoHosts, names: tuple[str, ...]) -> None:
        """The hand-over is read from what is there: QEMU gone here, arrived there."""
        with moving(two):
            for name in names:
                two.kill_agent(name)
            two.fast_copies("host-a")
            eventually(lambda: left(two), "QEMU left")
            assert two.stands(), two.describe()
            for name in names:
                two.start_agent(name)
        two.runs_on("host-b")

    def test_before_the_switch_is_known(self, two: TwoHosts) -> None:
        """A hand-over stays one over a restart: it is asked for until it is answered."""
        with moving(two):
            two.lines["host-a"].loses(Loses.REQUESTS)
            two.fast_copies("host-a")
            eventually(lambda: two.lease("host-a").get("phase") == "switching", "it switches")
            two.kill_agent("host-a")
            two.lines["host-a"].mend()
            two.start_agent("host-a")
        two.runs_on("host-b")

    @pytest.mark.long
    def test_between_preparation_and_copy(self, two: TwoHosts) -> None:
        """The destination's agent dies before QEMU started there: no copy, and nothing is in the way later."""
        two.started()
        done: list[Result] = []
        mover = threading.Thread(target=lambda: done.append(two.move("host-a", "host-b")))
        mover.start()
        eventually(lambda: two.lease("host-b").get("phase") == "prepared", "it is prepared")
        two.kill_agent("host-b")
        mover.join(60)
        two.start_agent("host-b")
        if done[0].code == 0:  # it was too late to matter
            two.runs_on("host-b")
            return
        two.runs_on("host-a")
        eventually(lambda: not two.lease("host-b"), "the preparation is dropped", two.describe)
        assert two.move("host-a", "host-b").code == 0
        two.runs_on("host-b")


class TestAuthorityKilled:
    @pytest.mark.parametrize("name", ["admin", "key", "attest"])
    def test_while_copying(self, two: TwoHosts, name: str) -> None:
        """N51: each process of the authority may die in the middle of a move."""
        with moving(two):
            two.stage.stop(name, signal.SIGKILL)
            two.fast_copies("host-a")
            eventually(lambda: left(two), "QEMU left")
            two.serve(name)
        two.runs_on("host-b")


class TestLibvirtKilled:
    def test_libvirtd_of_the_destination(self, two: TwoHosts) -> None:
        """The copy fails; the source never stopped."""
        with moving(two) as done:
            two.libvirt["host-b"].stop(signal.SIGKILL)
            two.fast_copies("host-a")
            eventually(lambda: done, "virsh gives up")
            assert two.runs()
            two.libvirt["host-b"].start()
        assert done[0].code == 1, done[0].said
        two.runs_on("host-a")

    def test_qemu_of_the_destination(self, two: TwoHosts) -> None:
        """The copy fails; the source never stopped."""
        with moving(two) as done:
            kill_all(two.libvirt["host-b"].qemu_pids())
        assert done[0].code == 1, done[0].said
        two.runs_on("host-a")

    def test_libvirtd_of_the_source(self, two: TwoHosts) -> None:
        """ADR 0011: both copies may stand; ending the source's hands over, and nobody ran twice."""
        with moving(two):
            two.fast_copies("host-a")
            two.libvirt["host-a"].stop(signal.SIGKILL)
            time.sleep(1)
            two.libvirt["host-a"].start()
        two.libvirt["host-a"].virsh("destroy", two.vm)
        wait_until(lambda: two.owner() != "host-a", AT_ONCE_S, "the source let go", two.describe)
        if two.owner():
            two.runs_on("host-b")
        else:
            two.runs_nowhere()
            two.started("host-b")

    def test_libvirtd_restarts_under_a_running_vm(self, two: TwoHosts) -> None:
        """N51: reconnect never ends a VM; the lease goes on; it can still move."""
        two.started()
        two.libvirt["host-a"].stop(signal.SIGKILL)
        assert two.runs()
        two.libvirt["host-a"].start()
        two.runs_on("host-a")
        done = two.move("host-a", "host-b")
        assert done.code == 0, done.said
        two.runs_on("host-b")


class TestPeople:
    def test_the_copy_is_cancelled(self, two: TwoHosts) -> None:
        """The offer ends with it, and the next move works."""
        with moving(two) as done:
            two.libvirt["host-a"].do("domjobabort", two.vm)
        assert done[0].code == 1, done[0].said
        two.runs_on("host-a")
        two.fast_copies("host-a")
        assert two.move("host-a", "host-b").code == 0
        two.runs_on("host-b")

    def test_nobody_resumes_the_copy_before_the_switch(self, two: TwoHosts) -> None:
        """ADR 0011: an administrator who resumes the arrived copy by hand gets it paused again."""
        with moving(two):
            two.lines["host-a"].loses(Loses.REQUESTS)
            two.fast_copies("host-a")
            eventually(lambda: two.lease("host-a").get("phase") == "switching", "it switches")
            two.libvirt["host-b"].virsh("resume", two.vm)
            eventually(lambda: two.states()[1] == "paused", "paused again", two.describe)
            two.lines["host-a"].mend()
        two.runs_on("host-b")


class TestPowerLost:
    @pytest.mark.long
    def test_of_the_source_while_copying(self, brief: TwoHosts) -> None:
        """N51: nobody gets in before the fence; then the VM starts from its disk elsewhere."""
        two = brief
        with moving(two):
            power_off(two, "host-a")
            off = time.monotonic()
        two.runs_nowhere()
        said = two.libvirt["host-b"].virsh("start", two.vm)
        assert said.code != 0
        started = start_until_allowed(two, "host-b")
        assert started - off > 2, "the fence held"
        power_on(two, "host-a")
        two.runs_on("host-b")

    def test_of_the_destination_while_copying(self, two: TwoHosts) -> None:
        """N51: the source goes on, and can offer again."""
        with moving(two) as done:
            power_off(two, "host-b")
            eventually(lambda: done, "virsh gives up")
            assert two.runs()
            power_on(two, "host-b")
        two.runs_on("host-a")


def start_until_allowed(two: TwoHosts, name: str) -> float:
    """Try to start the VM until the fence has passed; when it did."""
    two.libvirt[name].do("define", two.definition())
    wait_until(lambda: two.libvirt[name].virsh("start", two.vm).code == 0, 2 * FENCE_S, "the fence")
    return time.monotonic()


def kill_all(pids: list[int]) -> None:
    """End processes of a host."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
