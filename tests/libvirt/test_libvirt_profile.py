"""A definition with a victim's VM id: what the profile digest and the hook refuse (N75)."""

import json
import signal
from pathlib import Path

import pytest
from support.two_hosts import DISK_SECRET, UUID, TwoHosts

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(300)]
LEDGER = "ledger"
DISK = """<disk type='file' device='disk'><driver name='qemu' type='raw'/>
<source file='{file}'/><target dev='{dev}' bus='virtio'/></disk>"""


@pytest.fixture(scope="session")
def ledger(hosts: TwoHosts) -> str:
    """A second VM, protected with the digest of its definition; the definition as libvirt has it."""
    hosts.fresh()
    definition, host = hosts.definition(name=LEDGER, vm=LEDGER, number=2), hosts.libvirt["host-a"]
    text = definition.read_text().replace(str(hosts.disk), str(hosts.folder / "ledger.qcow2"))
    definition.write_text(text)
    host.do("define", definition)
    definition.write_text(host.do("dumpxml", "--inactive", LEDGER))
    shown = hosts.stage.run("hostagent", "vm", "profile", definition, "--json").json()
    words = ("--cluster", "lab", "--any-host", "--lease", "strict")
    hosts.ta("vm", "protect", LEDGER, *words, "--profile-sha256", shown["profile_sha256"])
    hosts.ta("key", "create", LEDGER)
    plain = hosts.folder / "ledger.img"
    plain.write_bytes(b"nothing to boot".ljust(1 << 20))
    words = ("--disk", plain, "--out", hosts.folder / "ledger.qcow2")
    made = hosts.stage.agent("host-a", "vm", "encrypt", LEDGER, *words)
    assert made.code == 0, made.said
    return definition.read_text()


def evil(two: TwoHosts) -> Path:
    """A disk of the workload administrator's own."""
    path = two.folder / "evil.img"
    path.write_bytes(bytes(1 << 20))
    return path


def variants(two: TwoHosts, text: str) -> dict[str, str]:
    """Definitions under the victim's VM id that would run other code with its key."""
    own = DISK.format(file=evil(two), dev="vdb")
    kernel = "<kernel>/boot/evil</kernel><cmdline>init=/bin/sh</cmdline>"
    victim_second = text.replace("dev='vda'", "dev='vdb'").replace(
        "<tpm ", DISK.format(file=evil(two), dev="vda") + "<tpm ", 1
    )
    return {
        "her disk first, the victim's second": victim_second,
        "a disk added": text.replace("<tpm ", own + "<tpm ", 1),
        "another kernel": text.replace("<boot dev='hd'/>", "<boot dev='hd'/>" + kernel),
        "another boot order": text.replace("<boot dev='hd'/>", "<boot dev='cdrom'/>"),
        "no vTPM": text[: text.index("<tpm ")] + text[text.index("</tpm>") + len("</tpm>") :],
        "raw arguments": text.replace(
            "<domain type='qemu'",
            "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'",
        ).replace(
            "</domain>",
            "<qemu:commandline><qemu:arg value='-no-hpet'/></qemu:commandline></domain>",
        ),
    }


class TestProfile:
    def test_its_own_definition_starts(self, two: TwoHosts, ledger: str) -> None:
        """What was protected starts: libvirt's additions are no other profile."""
        path = two.folder / "own.xml"
        path.write_text(ledger)
        two.libvirt["host-a"].do("define", path)
        said = two.libvirt["host-a"].virsh("start", LEDGER)
        assert said.code == 0, said.err

    def test_others_do_not(self, two: TwoHosts, ledger: str) -> None:
        """N75: refused with a sentence, no secret is ever set, the grant goes back."""
        host, path = two.libvirt["host-a"], two.folder / "variant.xml"
        for what, text in variants(two, ledger).items():
            assert text != ledger, what
            path.write_text(text)
            host.do("define", path)
            said = host.virsh("start", LEDGER)
            assert said.code != 0, what
            assert "PROFILE" in said.err, f"{what}: {said.err}"
            assert two.secrets("host-a") == [], what
            assert not host.qemu_pids(), what
            host.do("undefine", LEDGER)

    def test_an_unmarked_vm_gets_nothing(self, two: TwoHosts) -> None:
        """A definition without the mark, with the victim's disk: no key, so no start."""
        two.libvirt["host-a"].do("define", two.definition(name="thief", number=3, marked=False))
        said = two.libvirt["host-a"].virsh("start", "thief")
        assert said.code != 0
        assert "ecret not found" in said.err

    def test_no_other_domain_borrows_the_secret(self, two: TwoHosts) -> None:
        """While libvirt is lent a key, another domain that names the same secret is refused."""
        lent = two.stage.hosts["host-a"].folder / "run" / "lent" / DISK_SECRET
        two.libvirt["host-a"].do("define", two.definition(name="thief", number=3, marked=False))
        lent.touch(mode=0o600)
        try:
            said = two.libvirt["host-a"].virsh("start", "thief")
        finally:
            lent.unlink()
        assert said.code != 0
        assert f"uses secret {DISK_SECRET} of a VM that is" in said.err

    def test_encrypted_disks_may_have_to_be_protected(self, two: TwoHosts) -> None:
        """marks_required: a VM with an encrypted disk and no mark does not start."""
        settings = two.libvirt["host-a"].folder / "etc" / "hooks" / "trustauthority.json"
        before = settings.read_text()
        two.libvirt["host-a"].do("define", two.definition(name="thief", number=3, marked=False))
        settings.write_text(json.dumps({**json.loads(before), "marks_required": True}))
        try:
            said = two.libvirt["host-a"].virsh("start", "thief")
        finally:
            settings.write_text(before)
        assert said.code != 0
        assert "only if they are protected" in said.err

    def test_one_vm_id_is_one_domain(self, two: TwoHosts) -> None:
        """A second domain under the id of a VM that runs here is refused, and disturbs nothing."""
        two.started()
        two.libvirt["host-a"].do("define", two.definition(name="twin", number=4))
        said = two.libvirt["host-a"].virsh("start", "twin")
        assert said.code != 0
        assert "trustauthority: VM twin: NOT_NOW" in said.err
        assert UUID.format(number=4) in two.libvirt["host-a"].do("domuuid", "twin")
        two.runs_on("host-a")


@pytest.mark.parametrize("stopped", [True, False])
def test_the_hook_has_a_deadline_of_its_own(two: TwoHosts, stopped: bool) -> None:
    """An agent that hangs or is not there: refused in time, and other VMs start meanwhile."""
    host = two.libvirt["host-a"]
    settings = host.folder / "etc" / "hooks" / "trustauthority.json"
    before = settings.read_text()
    settings.write_text(json.dumps({**json.loads(before), "deadline_s": 3}))
    plain = two.definition(name="plain", number=5, marked=False).read_text()
    plain = plain[: plain.index("<disk")] + plain[plain.index("</disk>") + len("</disk>") :]
    plain = plain[: plain.index("<tpm")] + plain[plain.index("</tpm>") + len("</tpm>") :]
    (two.folder / "plain.xml").write_text(plain)
    host.do("define", two.folder / "plain.xml")
    if stopped:
        two.signal_agent("host-a", signal.SIGSTOP)
    else:
        two.kill_agent("host-a")
    try:
        assert host.virsh("start", "plain").code == 0
        said = two.start_vm("host-a")
    finally:
        settings.write_text(before)
    assert said.code != 0
    assert ("HOST_AGENT_SILENT" if stopped else "HOST_AGENT_DOWN") in said.err
    assert said.seconds < 12, "the deadlines of prepare and release"
    assert two.states()[0] == "absent"
