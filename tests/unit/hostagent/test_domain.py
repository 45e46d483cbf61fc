"""hostagent.domain: what a libvirt definition says, and which changes of it are another VM (N75)."""

import pytest

from hostagent.domain import DefinitionInvalid, read_domain
from hostagent.libvirt_vms import disk_passphrase, vtpm_passphrase

UUID = "7b000000-0000-4000-8000-000000000001"
SECRET = "7a000000-0000-4000-8000-000000000001"
VTPM = "7a000000-0000-4000-8000-000000000002"
DEFINITION = f"""\
<domain type='kvm'>
  <name>web</name><uuid>{UUID}</uuid>
  <metadata><ta:vm xmlns:ta='urn:trustauthority:vm:1' id='web'/></metadata>
  <memory unit='MiB'>64</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>
    <boot dev='hd'/></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/vm/web.qcow2'>
        <encryption format='luks'><secret type='passphrase' uuid='{SECRET}'/></encryption>
      </source>
      <target dev='vda' bus='virtio'/>
    </disk>
    <interface type='network'><source network='default'/></interface>
    <tpm model='tpm-tis'>
      <backend type='emulator' version='2.0'><encryption secret='{VTPM}'/></backend>
    </tpm>
  </devices>
</domain>
"""
RAW_ARGUMENTS = (
    "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>"
    "<q:arg value='-gdb'/></q:commandline>"
)
SECOND_DISK = (
    "<disk type='file' device='disk'><source file='/vm/mine.qcow2'/><target dev='vdb'/></disk>"
)


def changed(old: str, new: str) -> bytes:
    assert DEFINITION.count(old) >= 1, old
    return DEFINITION.replace(old, new, 1).encode()


@pytest.fixture
def domain():
    return read_domain(DEFINITION.encode())


def test_says_who_it_is_and_what_it_uses(domain):
    """Mark, uuid, and the secrets of disk and vTPM."""
    assert (domain.name, domain.uuid, domain.vm_id, domain.move_id) == ("web", UUID, "web", "")
    assert domain.secrets == (SECRET, VTPM)


def test_a_move_rides_in_the_metadata():
    """The destination's hook learns from it which offer is taken."""
    mark = "<m:move xmlns:m='urn:trustauthority:move:1' id='offer-1'/></metadata>"
    assert read_domain(changed("</metadata>", mark)).move_id == "offer-1"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("/vm/web.qcow2", "/vm/mine.qcow2"),
        ("</disk>", "</disk>" + SECOND_DISK),
        ("<boot dev='hd'/>", "<boot dev='cdrom'/><boot dev='hd'/>"),
        ("<boot dev='hd'/>", "<boot dev='hd'/><kernel>/tmp/k</kernel>"),
        ("<boot dev='hd'/>", "<boot dev='hd'/><cmdline>init=/bin/sh</cmdline>"),
        ("<boot dev='hd'/>", "<boot dev='hd'/><initrd>/tmp/i</initrd>"),
        ("OVMF_CODE.fd", "OVMF_CODE.mine.fd"),
        ("<source network='default'/>", "<source network='default'/><boot order='1'/>"),
        ("bus='virtio'/>", "bus='virtio'/><boot order='1'/>"),
        (SECRET, "7a000000-0000-4000-8000-000000000009"),
        (VTPM, "7a000000-0000-4000-8000-000000000009"),
        ("</devices>", "<hostdev mode='subsystem' type='usb'/></devices>"),
        ("</devices>", "<filesystem type='mount'><source dir='/'/></filesystem></devices>"),
        ("/usr/bin/qemu-system-x86_64", "/tmp/qemu"),
        (
            "</domain>",
            RAW_ARGUMENTS + "</domain>",
        ),
    ],
)
def test_another_boot_or_disk_or_device_is_another_profile(domain, old, new):
    """N75: a workload admin can't boot her own disk with the victim's disk beside it."""
    assert read_domain(changed(old, new)).profile_sha256 != domain.profile_sha256


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<memory unit='MiB'>64", "<memory unit='MiB'>128"),
        ("<vcpu>1", "<vcpu>4"),
        ("network='default'", "network='other'"),
        ("bus='virtio'/>", "bus='virtio'/><alias name='virtio-disk0'/><address type='pci'/>"),
        ("file='/vm/web.qcow2'", "file='/vm/web.qcow2' index='1'"),
        ("<boot dev='hd'/>", "<boot dev='hd'/><nvram>/var/lib/libvirt/qemu/nvram/web.fd</nvram>"),
        ("</metadata>", "<x:y xmlns:x='urn:x'/></metadata>"),
    ],
)
def test_what_libvirt_adds_or_does_not_decide_what_runs_is_not_in_it(domain, old, new):
    """The digest of a stored definition is that of the running domain."""
    assert read_domain(changed(old, new)).profile_sha256 == domain.profile_sha256


@pytest.mark.parametrize(
    "definition",
    [
        b"",
        b"<domain/>",
        b"<network><name>web</name></network>",
        b"<!DOCTYPE x><domain/>",
        b"<!DOCTYPE x [<!ENTITY a '" + b"b" * 1000 + b"'>]>" + DEFINITION.encode(),
        changed(UUID, "not-a-uuid"),
        changed("<name>web</name>", ""),
        changed("<name>web</name>", "<name>../../etc</name>"),
        changed(SECRET, "../secret"),
        changed("</metadata>", "<t:vm xmlns:t='urn:trustauthority:vm:1' id='two'/></metadata>"),
        b" " * (1 << 20) + DEFINITION.encode(),
    ],
)
def test_anything_else_is_one_error(definition):
    """Bad input is DefinitionInvalid, never a crash and never a guess."""
    with pytest.raises(DefinitionInvalid):
        read_domain(definition)


def test_passphrases_differ_by_use_and_vm():
    """One VM key serves disk and vTPM; neither passphrase tells the other, and QEMU takes hex."""
    key = bytes(range(32))
    found = {f(key, vm) for f in (disk_passphrase, vtpm_passphrase) for vm in ("web", "db")}
    assert len(found) == 4
    assert all(len(p) == 64 and int(p, 16) for p in found)
    # computed once with Python's hmac by hand: the disks of users depend on it
    expected = "911af0a008d78f9630325b70ab4f926b9292a191822fa5b525bc911352b0a1ad"
    assert disk_passphrase(key, "web").decode() == expected


OVERLAY = f"""<source file='/tmp/over'/><backingStore type='file'><source file='/vm/web.qcow2'>
<encryption format='luks'><secret type='passphrase' uuid='{SECRET}'/></encryption></source></backingStore>"""
ENCRYPTED = f"<encryption format='luks'><secret type='passphrase' uuid='{SECRET}'/></encryption>"


class TestExposures:
    """What a running domain's definition tells of a decrypted disk on its way out."""

    @pytest.mark.parametrize(
        ("source", "told"),
        [
            ("<source file='/tmp/copy'/>", "disk vda is copied in the clear to /tmp/copy"),
            ("<source dev='/dev/sdz'/>", "disk vda is copied in the clear to /dev/sdz"),
            ("<source protocol='nbd'/>", "disk vda is copied in the clear to somewhere"),
            ("", "disk vda is copied in the clear to somewhere"),
        ],
    )
    def test_a_block_copy(self, source, told):
        """libvirt calls no hook for it."""
        mirror = f"<mirror job='copy'>{source}</mirror><target dev='vda'"
        assert read_domain(changed("<target dev='vda'", mirror)).exposures == (told,)

    def test_an_overlay(self):
        """A snapshot has the guest write elsewhere from now on."""
        old = DEFINITION[
            DEFINITION.index("<source file='/vm") : DEFINITION.index("<target dev='vda'")
        ]
        found = read_domain(changed(old, OVERLAY))
        assert found.exposures == ("disk vda is written in the clear to /tmp/over",)

    @pytest.mark.parametrize(
        "disk",
        [
            f"<mirror><source file='/tmp/c'>{ENCRYPTED}</source></mirror><target dev='vda'",
            f"<backingStore><source file='/b'>{ENCRYPTED}</source></backingStore><target dev='vda'",
            "<backingStore/><target dev='vda'",
        ],
    )
    def test_what_stays_encrypted_is_none(self, disk):
        """An encrypted copy, and an encrypted overlay on an encrypted base, tell nothing."""
        assert read_domain(changed("<target dev='vda'", disk)).exposures == ()

    def test_a_plain_disk_of_its_own_is_none(self):
        """A disk that never was encrypted is the owner's choice, and part of the profile."""
        assert read_domain(changed("</disk>", "</disk>" + SECOND_DISK)).exposures == ()


def test_a_default_that_libvirt_writes_is_no_change(domain):
    """libvirt 8.1 and later name the engine that decrypts; any other than QEMU is a change (N75)."""
    named = changed("<encryption format='luks'>", "<encryption format='luks' engine='qemu'>")
    other = changed("<encryption format='luks'>", "<encryption format='luks' engine='librbd'>")
    assert read_domain(named).profile_sha256 == domain.profile_sha256
    assert read_domain(other).profile_sha256 != domain.profile_sha256
