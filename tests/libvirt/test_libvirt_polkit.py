"""The shipped polkit rules, in force on a real libvirtd: what a workload administrator can and can't do.

dbus-daemon and polkitd run in the host's namespaces, with two users of their own; VMs are not protected
here, because the rules do not ask what a VM is.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.libvirt_hosts import DEPLOY, LibvirtHost

pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("polkit"),
    pytest.mark.long,
]
WORKLOADS, NOBODY, AGENT = 4242, 4243, 4244
GROUP = "trustauthority-workloads"
PRELUDE = """\
mount -t tmpfs tmpfs /run/dbus
mount --bind {folder}/passwd /etc/passwd
mount --bind {folder}/group /etc/group
mount --bind {folder}/rules /etc/polkit-1/rules.d
dbus-daemon --system --nofork --nopidfile >{folder}/dbus.log 2>&1 &
for i in $(seq 100); do [ -S /run/dbus/system_bus_socket ] && break; sleep 0.1; done
/usr/lib/polkit-1/polkitd --no-debug >{folder}/polkitd.log 2>&1 &
"""
DOMAIN = """\
<domain type='qemu'><name>web</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os><cpu mode='custom'><model>qemu64</model></cpu>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{disk}'/>
<target dev='vda' bus='virtio'/></disk><memballoon model='none'/></devices></domain>
"""


@pytest.fixture(scope="module")
def host() -> Iterator[LibvirtHost]:
    """A libvirtd with polkit and the shipped settings."""
    folder = Path(tempfile.mkdtemp(prefix="ta-pk-"))
    folder.chmod(0o755)
    people = {"ta-workloads": WORKLOADS, "ta-nobody": NOBODY, "trustauthority-hostagent": AGENT}
    for name, line in (("passwd", "{}:x:{}:{}::/nonexistent:/bin/sh"), ("group", "{}:x:{}:")):
        lines = [line.format(who, number, number) for who, number in people.items()]
        text = (Path("/etc") / name).read_text() + "\n".join(lines) + "\n"
        (folder / name).write_text(text)
    with (folder / "group").open("a") as file:
        file.write(f"{GROUP}:x:4300:ta-workloads\n")
    (folder / "rules").mkdir(mode=0o755)
    shutil.copy(DEPLOY / "50-trustauthority.rules", folder / "rules")
    made = LibvirtHost(
        name="host-p",
        folder=folder / "h",
        uuid="7c000000-0000-4000-8000-00000000000a",
        prelude=PRELUDE.format(folder=folder),
    )
    conf = folder / "h" / "etc" / "libvirtd.conf"
    kept = [line for line in conf.read_text().splitlines() if "auth_" not in line]
    kept = [line for line in kept if "perms" not in line]
    shipped = (DEPLOY / "libvirtd.conf").read_text()
    conf.write_text("\n".join(kept) + f'\nunix_sock_rw_perms = "0777"\n{shipped}')
    (folder / "h" / "run").chmod(0o755)
    try:
        made.start()
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", folder / "d", "1M"], check=True)
        (folder / "web.xml").write_text(DOMAIN.format(disk=folder / "d"))
        (folder / "web.xml").chmod(0o644)
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


def by(host: LibvirtHost, user: int, *words: str | Path) -> "subprocess.CompletedProcess[str]":
    """What virsh says to a user."""
    drop = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    command = [*drop, "virsh", "-q", "-c", host.uri, *map(str, words)]
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": "/nonexistent"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=env)


@pytest.fixture(scope="module")
def running(host: LibvirtHost) -> Iterator[LibvirtHost]:
    """The VM runs."""
    host.do("define", host.folder.parent / "web.xml")
    host.do("start", "web")
    yield host
    host.virsh("destroy", "web")
    host.virsh("undefine", "web", "--managed-save")


def test_workload_administrators_run_vms(running: LibvirtHost) -> None:
    """Look, reset, stop, start again: what the job needs works."""
    for words in (
        ("list", "--all"),
        ("domstate", "web"),
        ("dumpxml", "web"),
        ("reset", "web"),
        ("destroy", "web"),
        ("start", "web"),
    ):
        said = by(running, WORKLOADS, *words)
        assert said.returncode == 0, (words, said.stderr)


@pytest.mark.parametrize(
    "words",
    [
        ("save", "web", "/tmp/ta-never"),
        ("managedsave", "web"),
        ("dump", "web", "/tmp/ta-never", "--memory-only"),
        ("snapshot-create-as", "web", "s1"),
        ("snapshot-create-as", "web", "s1", "--disk-only", "--no-metadata"),
        ("snapshot-create-as", "web", "s1", "--memspec", "file=/tmp/ta-never"),
        ("blockcopy", "web", "vda", "/tmp/ta-never", "--transient-job"),
        ("attach-disk", "web", "/etc/hostname", "vdb"),
        ("qemu-monitor-command", "web", "--hmp", "info status"),
        ("suspend", "web"),
        ("screenshot", "web", "/tmp/ta-never"),
        ("metadata", "web", "urn:x", "--key", "x", "--set", "<x/>"),
        ("migrate", "--live", "--p2p", "web", "qemu+tcp://192.0.2.1/system"),
        ("dumpxml", "--security-info", "web"),
        ("secret-list",),
        ("define", "DEFINITION"),
        ("undefine", "web"),
        ("pool-define-as", "p", "dir", "--target", "/etc"),
    ],
    ids=lambda words: " ".join(w for w in words[:1]),
)
def test_but_see_no_memory_and_no_decrypted_disk(
    running: LibvirtHost, words: tuple[str, ...]
) -> None:
    """Each operation that libvirt calls no hook for is denied; the VM runs on."""
    definition = running.folder.parent / "web.xml"
    said = by(running, WORKLOADS, *(definition if w == "DEFINITION" else w for w in words))
    assert said.returncode != 0
    assert "access denied" in said.stderr or "authentication" in said.stderr, said.stderr
    assert running.state("web").startswith("running")


def test_the_agent_does_its_work_without_root(running: LibvirtHost) -> None:
    """The unit's user looks, lends a secret, pauses, tells why, resumes and ends, by the rules alone."""
    secret, uuid = running.folder.parent / "secret.xml", "7a000000-0000-4000-8000-00000000000c"
    secret.write_text(f"<secret ephemeral='yes' private='yes'><uuid>{uuid}</uuid></secret>")
    secret.chmod(0o644)
    for words in (
        ("uri",),
        ("dumpxml", "web"),
        ("secret-define", secret),
        ("secret-set-value", uuid, "--file", "/etc/hostname", "--plain"),
        ("secret-undefine", uuid),
        ("suspend", "web"),
        ("metadata", "web", "urn:x", "--key", "x", "--set", "<x/>", "--config"),
        ("resume", "web"),
        ("domjobinfo", "web"),
        ("destroy", "web"),
        ("start", "--force-boot", "web"),
    ):
        said = by(running, AGENT, *words)
        assert said.returncode == 0, (words, said.stderr)


@pytest.mark.parametrize("words", [("list",), ("start", "web"), ("dumpxml", "web")])
def test_others_do_not_even_connect(host: LibvirtHost, words: tuple[str, ...]) -> None:
    """Who is in no group gets nothing."""
    said = by(host, NOBODY, *words)
    assert said.returncode != 0
    assert "authentication" in said.stderr
