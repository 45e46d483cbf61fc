"""hostagent.protection: what a definition becomes, and what can't be protected (N75)."""

import pytest

from hostagent.domain import DefinitionInvalid, read_domain
from hostagent.protection import DiskState, protect_definition, secret_uuid

UUID = "7b000000-0000-4000-8000-000000000001"
PLAIN = f"""\
<domain type='kvm'>
  <name>web</name><uuid>{UUID}</uuid>
  <metadata><other xmlns='urn:other'>kept</other></metadata>
  <memory unit='MiB'>64</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><boot dev='hd'/></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='/vm/web.img'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'><source file='/vm/x.iso'/><target dev='sda'/></disk>
    <tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm>
  </devices>
</domain>
"""
LUKS = (
    "<source file='/vm/web.img'><encryption format='luks'>"
    "<secret type='passphrase' uuid='7a000000-0000-4000-8000-000000000009'/></encryption></source>"
)


def changed(*pairs: tuple[str, str]) -> bytes:
    text = PLAIN
    for old, new in pairs:
        assert text.count(old) >= 1, old
        text = text.replace(old, new, 1)
    return text.encode()


def luks() -> bytes:
    return changed(("<source file='/vm/web.img'/>", LUKS), ("type='raw'", "type='qcow2'"))


def test_a_plain_domain_becomes_a_marked_encrypted_one() -> None:
    """Mark, secrets of disk and vTPM, qcow2 beside the old file; what else stands there is kept."""
    plan = protect_definition(PLAIN.encode(), "web")
    after = read_domain(plan.definition)
    assert (after.vm_id, after.name, after.uuid) == ("web", "web", UUID)
    assert after.secrets == (secret_uuid("web", "disk"), secret_uuid("web", "vtpm"))
    assert after.profile_sha256 == plan.profile_sha256
    (disk,) = plan.disks
    assert (disk.source, disk.encrypted) == ("/vm/web.img", "/vm/web.ta.qcow2")
    assert (disk.state, disk.format, plan.vtpm_new) == (DiskState.PLAIN, "raw", True)
    text = plan.definition.decode()
    assert "kept" in text
    assert "/vm/x.iso" in text
    assert "/vm/web.img" not in text


def test_a_second_time_changes_nothing() -> None:
    """Repeated after a failure at the very end, it has nothing left to encrypt."""
    first = protect_definition(PLAIN.encode(), "web")
    second = protect_definition(first.definition, "web")
    assert second.profile_sha256 == first.profile_sha256
    assert [disk.state for disk in second.disks] == [DiskState.DONE]
    assert not second.vtpm_new


def test_a_luks_disk_keeps_its_file() -> None:
    """Its passphrase becomes ours; nothing is written again."""
    plan = protect_definition(luks(), "web")
    assert [(d.state, d.encrypted) for d in plan.disks] == [(DiskState.LUKS, "/vm/web.img")]
    assert read_domain(plan.definition).disk_secrets == (secret_uuid("web", "disk"),)


def test_the_format_is_that_of_the_definition() -> None:
    """A guest that writes a qcow2 header to its raw disk does not get a file of the host copied in."""
    for words, kind in (
        ("<driver name='qemu' type='raw'/>", "raw"),
        ("<driver name='qemu' type='qcow2'/>", "qcow2"),
        ("<driver name='qemu'/>", "raw"),
        ("", "raw"),
    ):
        plan = protect_definition(changed(("<driver name='qemu' type='raw'/>", words)), "web")
        assert [disk.format for disk in plan.disks] == [kind]


def test_secrets_are_of_one_vm() -> None:
    """Two VMs never share a secret, and a VM has the same on each host."""
    assert secret_uuid("web", "disk") == secret_uuid("web", "disk")
    assert len({secret_uuid(vm, what) for vm in ("a", "b") for what in ("disk", "vtpm")}) == 4


MARK = "<metadata><ta:vm xmlns:ta='urn:trustauthority:vm:1' id='other'/>"


@pytest.mark.parametrize(
    ("definition", "says"),
    [
        (changed(("<metadata>", MARK)), "marked as VM other"),
        (
            changed(("type='file' device='disk'", "type='block' device='disk'")),
            "only disks in files",
        ),
        (changed(("file='/vm/web.img'", "dev='/dev/sdb'")), "only disks in files"),
        (changed(("file='/vm/web.img'", "file='web.img'")), "only disks in files"),
        (changed(("<source file='/vm/web.img'/>", "<source file='/vm/a'/><shareable/>")), "share"),
        (changed(("device='disk'", "device='lun'")), "no disk"),
        (changed(("type='raw'", "type='vmdk'")), "only raw and qcow2"),
        (changed(("type='emulator'", "type='passthrough'")), "has to be emulated"),
        (luks().replace(b"format='luks'", b"format='qcow'"), "not LUKS"),
        (luks().replace(b"type='qcow2'", b"type='raw'"), "has to be qcow2"),
        (
            changed(
                (
                    "<backend type='emulator' version='2.0'/>",
                    "<backend type='emulator'><encryption secret='7a000000-0000-4000-8000-000000000002'/></backend>",
                ),
            ),
            "another secret",
        ),
        (b"<domain/>", "no usable name"),
        (b"x" * (2 << 20), "larger than"),
        (b"<!DOCTYPE x []><domain/>", "document type"),
    ],
)
def test_what_can_not_be_protected_is_refused(definition: bytes, says: str) -> None:
    """Nothing is left half in the clear without a word."""
    with pytest.raises(DefinitionInvalid, match=says):
        protect_definition(definition, "web")
