"""Starts and live migrations of an encrypted VM between two real libvirt hosts."""

import threading

import pytest
from support.libvirt_hosts import migrate_words
from support.two_hosts import AT_ONCE_S, BAD_BOOT, NAMES, VM, TwoHosts, wait_until

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(300)]


class TestStart:
    def test_an_attested_host_starts_it(self, two: TwoHosts) -> None:
        """I-A: the guest reads its encrypted disk; libvirt keeps no key; the lease is there."""
        two.started()
        two.runs_on("host-a")
        assert two.secrets("host-a") == []
        assert b"tick of" not in two.disk.read_bytes()

    def test_a_host_that_failed_does_not(self, two: TwoHosts) -> None:
        """I-A: refused on an unattested host, with a sentence that the administrator sees in virsh."""
        two.reboot("host-b", BAD_BOOT)
        said = two.start_vm("host-b")
        assert said.code != 0
        assert f"trustauthority: VM {VM}: HOST_NOT_ATTESTED: the host's newest verdict" in said.err
        two.runs_nowhere()
        assert two.secrets("host-b") == []

    def test_a_host_does_not_start_what_runs_elsewhere(self, two: TwoHosts) -> None:
        """N48: one grant at a time; the other host is told."""
        two.started()
        said = two.start_vm("host-b")
        assert said.code != 0
        assert "GRANT_HELD_ELSEWHERE" in said.err
        two.runs_on("host-a")

    def test_both_hosts_at_once(self, two: TwoHosts) -> None:
        """N48: two hooks, two agents, one grant: one start works, the other is refused."""
        codes: dict[str, int] = {}

        def start(name: str) -> None:
            codes[name] = two.start_vm(name).code

        starts = [threading.Thread(target=start, args=(name,)) for name in NAMES]
        for each in starts:
            each.start()
        for each in starts:
            each.join(60)
        winners = [name for name in NAMES if codes[name] == 0]
        assert len(winners) == 1, codes
        two.runs_on(winners[0])

    def test_shut_down_is_given_back_at_once(self, two: TwoHosts) -> None:
        """The other host needs no fence when the VM ended here."""
        two.started()
        two.libvirt["host-a"].do("destroy", VM)
        wait_until(lambda: not two.owner(), AT_ONCE_S, "it is given back")
        two.started("host-b")
        two.runs_on("host-b")


class TestMove:
    def test_allowed(self, two: TwoHosts) -> None:
        """6.5: the source runs until the switch, the guest goes on, vTPM and right move along."""
        two.started()
        tpm = [two.libvirt[n].folder / "lib" / "swtpm" for n in ("host-a", "host-b")]
        assert any(tpm[0].rglob("tpm2-00.permall"))
        before = two.ticks()
        with two.slow_for("host-a", 2):
            done = two.move("host-a", "host-b")
        assert done.code == 0, done.said
        assert two.ticks() > before + 2, "it ran while its memory was copied"
        two.runs_on("host-b")
        assert not any(tpm[0].rglob("tpm2-00.permall"))
        assert any(tpm[1].rglob("tpm2-00.permall"))
        assert two.secrets("host-a") == two.secrets("host-b") == []

    def test_there_and_back(self, two: TwoHosts) -> None:
        """A move leaves nothing behind that stands in the way of the next."""
        two.started()
        for source, target in (("host-a", "host-b"), ("host-b", "host-a")):
            done = two.move(source, target)
            assert done.code == 0, done.said
            two.runs_on(target)

    def test_to_a_host_that_failed(self, two: TwoHosts) -> None:
        """The destination must be attested; the VM stays, untouched."""
        two.reboot("host-b", BAD_BOOT)
        two.started()
        done = two.move("host-a", "host-b")
        assert done.code == 1, done.said
        assert "HOST_NOT_ATTESTED" in done.said
        two.runs_on("host-a")

    def test_to_a_revoked_host(self, two: TwoHosts) -> None:
        """S7: after a revocation nothing moves there."""
        two.started()
        two.revoke("host-b")
        done = two.move("host-a", "host-b")
        assert done.code == 1, done.said
        assert "HOST_REVOKED" in done.said
        two.runs_on("host-a")

    def test_plain_virsh_is_refused(self, two: TwoHosts) -> None:
        """N74: the destination's hook takes no VM that nobody offered, whatever the flags."""
        two.started()
        there = two.libvirt["host-b"]
        for words in ((), ("--suspend",), ("--suspend", "--compressed")):
            said = two.libvirt["host-a"].virsh(*migrate_words(there, VM, *words))
            assert said.code != 0
            assert "MOVE_NOT_OFFERED: nobody offered it to this host" in said.err
        two.runs_on("host-a")

    @pytest.mark.parametrize("forged", ["x" * 32, "nonsense"])
    def test_a_forged_offer_is_refused(self, two: TwoHosts, forged: str) -> None:
        """N74: a move id in the metadata is not an offer."""
        two.started()
        two.marked_move("host-a", forged)
        said = two.libvirt["host-a"].virsh(*migrate_words(two.libvirt["host-b"], VM))
        assert said.code != 0
        assert "trustauthority: VM payroll" in said.err
        two.runs_on("host-a")

    def test_own_flags_are_the_weaker_order(self, two: TwoHosts) -> None:
        """ADR 0011: without --suspend the destination is paused until the switch is known."""
        two.started()
        two.offered("host-a", "host-b")
        said = two.libvirt["host-a"].virsh(*migrate_words(two.libvirt["host-b"], VM))
        assert said.code == 0, said.err
        two.runs_on("host-b")
