"""A rack is powered on: hosts, hooks and autostart come up before the authority does."""

import base64
import json
import re
import signal
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from support.libvirt_hosts import DEPLOY
from support.power import power_off, power_on
from support.two_hosts import ROLES, VM, TwoHosts, eventually

from hostagent.luks import opens

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
        host, mark = two.libvirt["host-a"], two.stage.hosts["host-a"].folder / "run" / "autostarted"
        eventually(mark.exists, "this boot's autostart is through", two.describe)
        host.do("define", two.definition())
        host.do("autostart", VM)
        two.kill_agent("host-a")
        two.start_agent("host-a")
        time.sleep(3)
        two.runs_nowhere()


class TestStolen:
    """T8: somebody takes the disk of a host that lost power, long after the lease."""

    @pytest.mark.parametrize("shipped", [False, True])
    def test_what_a_power_cut_leaves(self, brief: TwoHosts, shipped: bool) -> None:
        """The disk's passphrase, as the docs say; with QEMU's logs in memory, as shipped, it is gone."""
        two, host = brief, brief.libvirt["host-a"]
        if shipped:
            host.prelude = (
                f"mkdir -p /var/log/libvirt/qemu; mount -T {DEPLOY}/fstab /var/log/libvirt/qemu"
            )
            host.stop()
            host.start()
        try:
            two.started()
            lent, key = lent_to_qemu(host.qemu_pids()[0]), host.master_key(two.vm)
            power_off(two, "host-a")
            host.empty_run()
        finally:
            host.prelude = ""
        assert opens(two.disk, decrypted(lent, key.read_bytes())), "libvirt could not remove it"
        left = [path for path in sorted(host.folder.rglob("*")) if path.is_file()]
        holds_it = [path for path in left if lent["data"].encode() in path.read_bytes()]
        assert holds_it == ([] if shipped else [host.folder / "log" / "qemu" / f"{two.vm}.log"])


def lent_to_qemu(pid: int) -> dict[str, str]:
    """The disk's passphrase as libvirt hands it to QEMU: encrypted with the domain's master key."""
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    secrets = [json.loads(word) for word in words if re.match(r'\{"qom-type":"secret"', word)]
    (lent,) = (secret for secret in secrets if "data" in secret)
    return lent


def decrypted(lent: dict[str, str], key: bytes) -> bytes:
    """AES-256-CBC with PKCS #7 padding, as QEMU decrypts it."""
    cipher = Cipher(algorithms.AES(key), modes.CBC(base64.b64decode(lent["iv"]))).decryptor()
    plain = cipher.update(base64.b64decode(lent["data"])) + cipher.finalize()
    return plain[: -plain[-1]]
