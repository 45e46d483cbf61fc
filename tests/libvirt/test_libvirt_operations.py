"""What libvirt can do with a protected VM besides start and move: each with a stated behaviour."""

import pytest
from support.two_hosts import AT_ONCE_S, DISK_SECRET, VM, TwoHosts, eventually, wait_until

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(300)]
STATE = "urn:trustauthority:state:1"
NOTICED_S = 20
"""The agent looks every 8 seconds."""


def told(two: TwoHosts, name: str = "host-a") -> str:
    """What the domain's metadata say of its state."""
    return two.libvirt[name].virsh("metadata", VM, STATE, "--config").out


def noticed(two: TwoHosts, what: str) -> None:
    """Wait until the agent tells what libvirt calls no hook for."""
    wait_until(lambda: what in told(two), NOTICED_S, what, lambda: told(two) + two.describe())


def renewed(two: TwoHosts, name: str = "host-a") -> None:
    """Wait until the lease was renewed once more."""
    last = two.lease(name)["lease_left_ms"]

    def grew() -> bool:
        nonlocal last
        before, last = last, two.lease(name)["lease_left_ms"]
        return last > before

    eventually(grew, "a renewal", two.describe)


class TestMemory:
    def test_save_and_restore(self, two: TwoHosts) -> None:
        """Saved memory holds the key: noticed, told, never restored; a fresh start works."""
        two.started()
        saved = two.folder / "saved"
        two.libvirt["host-a"].do("save", VM, saved)
        wait_until(lambda: not two.owner(), AT_ONCE_S, "it is given back")
        noticed(two, "its memory was saved")
        assert "memory-saved" in two.agent_log("host-a")
        for name in ("host-a", "host-b"):
            said = two.libvirt[name].virsh("restore", saved)
            assert said.code != 0
            assert "the saved memory of a protected VM is not restored" in said.err
        two.runs_nowhere()
        saved.unlink()
        two.started()

    def test_managed_save(self, two: TwoHosts) -> None:
        """The start after a managed save is refused with the way out in the sentence."""
        two.started()
        host = two.libvirt["host-a"]
        host.do("managedsave", VM)
        noticed(two, "managedsave-remove")
        said = host.virsh("start", VM)
        assert said.code != 0
        assert "virsh managedsave-remove" in said.err
        host.do("managedsave-remove", VM)
        two.started()
        two.runs_on("host-a")

    def test_a_managed_save_does_not_stop_autostart(self, two: TwoHosts) -> None:
        """A host that saved its guests when it went down starts them afresh by itself."""
        two.started()
        host = two.libvirt["host-a"]
        host.do("autostart", VM)
        host.do("managedsave", VM)
        wait_until(lambda: not two.owner(), AT_ONCE_S, "it is given back")
        two.kill_agent("host-a")
        (two.stage.hosts["host-a"].folder / "run" / "autostarted").unlink()
        two.start_agent("host-a")
        two.runs_on("host-a")


class TestDisks:
    def test_a_copy_in_the_clear_is_noticed(self, two: TwoHosts) -> None:
        """blockcopy writes the decrypted disk: libvirt calls no hook, the agent tells."""
        two.started()
        copy = two.folder / "copy.qcow2"
        two.libvirt["host-a"].do("blockcopy", VM, "vda", copy, "--transient-job")
        noticed(two, f"disk vda is copied in the clear to {copy}")
        assert "exposed" in two.agent_log("host-a")
        two.runs_on("host-a")

    def test_an_overlay_in_the_clear_is_noticed(self, two: TwoHosts) -> None:
        """A disk snapshot has the guest go on writing into a file that is not encrypted."""
        two.started()
        overlay = two.folder / "overlay.qcow2"
        words = ("--disk-only", "--no-metadata", "--diskspec", f"vda,file={overlay}")
        two.libvirt["host-a"].do("snapshot-create-as", VM, "s1", *words)
        noticed(two, f"disk vda is written in the clear to {overlay}")
        overlay.unlink()

    def test_or_ends_the_vm(self, two: TwoHosts) -> None:
        """on_exposure = destroy: the VM is ended as soon as the agent looks."""
        config = two.stage.hosts["host-a"].config
        before = config.read_text()
        config.write_text(before + 'on_exposure = "destroy"\n')
        two.stage.stop("agent-host-a")
        two.start_agent("host-a")
        try:
            two.started()
            copy = two.folder / "copy-2.qcow2"
            two.libvirt["host-a"].do("blockcopy", VM, "vda", copy, "--transient-job")
            wait_until(lambda: two.states() == ("absent", "absent"), NOTICED_S, "it is ended")
            assert "copied in the clear" in told(two)
            wait_until(lambda: not two.owner(), AT_ONCE_S, "it is given back")
        finally:
            config.write_text(before)
            two.stage.stop("agent-host-a")
            two.start_agent("host-a")

    def test_hot_plug(self, two: TwoHosts) -> None:
        """A plain disk can be plugged, and is noticed; an encrypted one gets no secret."""
        two.started()
        extra = two.folder / "extra.img"
        extra.write_bytes(bytes(1 << 20))
        host = two.libvirt["host-a"]
        encrypted = two.folder / "encrypted.xml"
        encrypted.write_text(
            "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
            f"<source file='{two.disk}'><encryption format='luks'>"
            f"<secret type='passphrase' uuid='{DISK_SECRET}'/></encryption></source>"
            "<target dev='sdb' bus='usb'/></disk>"
        )
        said = host.virsh("attach-device", VM, encrypted)
        assert said.code != 0
        assert "ecret not found" in said.err
        assert host.virsh("attach-disk", VM, extra, "vdb").code == 0
        noticed(two, "it runs with other devices")
        two.runs_on("host-a")


class TestGuest:
    def test_reboot(self, two: TwoHosts) -> None:
        """A reset is the same QEMU under the same lease: nothing is asked, nothing given back."""
        two.started()
        pids, epoch = two.libvirt["host-a"].qemu_pids(), two.lease("host-a")["grant_epoch"]
        two.libvirt["host-a"].do("reset", VM)
        two.runs_on("host-a")
        assert two.libvirt["host-a"].qemu_pids() == pids
        assert two.lease("host-a")["grant_epoch"] == epoch

    def test_somebody_pauses_it(self, brief: TwoHosts) -> None:
        """A pause of an administrator stays hers: renewals do not resume the VM."""
        two = brief
        two.started()
        two.libvirt["host-a"].do("suspend", two.vm)
        renewed(two)
        renewed(two)
        assert two.states()[0] == "paused"
        assert two.lease("host-a")["phase"] == "running"
        two.libvirt["host-a"].do("resume", two.vm)
        two.runs_on("host-a")

    def test_master_key_is_where_the_docs_say(self, two: TwoHosts) -> None:
        """What is not promised: root of the host reads QEMU's master key, and so the disk's."""
        two.started()
        found = two.libvirt["host-a"].master_key(VM)
        assert len(found.read_bytes()) == 32
        assert found.stat().st_mode & 0o077 == 0


def test_trust_that_comes_back_in_time(two: TwoHosts) -> None:
    """6.4 (5): paused by a revocation; renewed before its end, the same VM goes on, with the same grant."""
    two.started()
    pids, epoch = two.libvirt["host-a"].qemu_pids(), two.lease("host-a")["grant_epoch"]
    two.revoke("host-a")
    eventually(lambda: two.states()[0] == "paused", "it is paused", two.describe)
    assert two.stands()
    two.ta("host", "reinstate", "host-a", "--yes")
    eventually(lambda: two.passes("host-a"), "it passes again", two.describe)
    two.runs_on("host-a")
    assert two.libvirt["host-a"].qemu_pids() == pids
    assert two.lease("host-a")["grant_epoch"] == epoch
