"""A rack is powered on: hosts, hooks and autostart come up before the authority does."""

import signal
import time

import pytest
from support.power import power_off, power_on
from support.two_hosts import ROLES, VM, TwoHosts

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(300)]


class TestRack:
    def test_the_authority_comes_up_last(self, two: TwoHosts) -> None:
        """Agent, libvirt and autostart are there first; the VM starts when the authority is, by itself."""
        host = two.libvirt["host-a"]
        host.do("define", two.definition())
        host.do("autostart", VM)
        for name in ROLES:
            two.stage.stop(name, signal.SIGKILL)
        power_off(two, "host-a")
        took = power_on(two, "host-a", attests=False)
        assert took < 10, "libvirtd does not wait for an authority that is away"
        assert two.states() == ("absent", "absent")
        for name in ROLES:
            two.serve(name)
        two.runs_on("host-a")

    def test_once_a_boot(self, two: TwoHosts) -> None:
        """What somebody stopped later stays stopped when the agent is restarted."""
        host = two.libvirt["host-a"]
        host.do("define", two.definition())
        host.do("autostart", VM)
        two.kill_agent("host-a")
        two.start_agent("host-a")
        time.sleep(3)
        two.runs_nowhere()
