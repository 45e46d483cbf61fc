"""Switch a host off and on, as far as one machine can show it."""

import signal
import time

from support.two_hosts import TwoHosts


def power_off(two: TwoHosts, name: str) -> None:
    """Everything of a host is gone at once: agent, libvirt, QEMU, vTPM, TPM."""
    two.kill_agent(name)
    two.libvirt[name].end(signal.SIGKILL)
    two.stage.hosts[name].tpm.stop()


def power_on(two: TwoHosts, name: str, *, attests: bool = True) -> float:
    """The host boots: /run is empty, the TPM was reset, agent and libvirt start.

    Returns how many seconds libvirtd took until it served.
    """
    two.libvirt[name].empty_run()
    two.stage.boot_host(name, two.stage.hosts[name].boot)
    two.start_agent(name, '"now": "passed"' if attests else '"event": "hooks-served"')
    began = time.monotonic()
    two.libvirt[name].start()
    return time.monotonic() - began
