"""Two libvirt hosts on one machine: each a libvirtd in mount, UTS and network namespaces of its own.

What it makes real: libvirtd, its hooks, QEMU (TCG), LUKS disks, swtpm as vTPM, live migration over a
unix socket or, with TLS, a veth pair. What it does not: separate kernels, so a process of one host is visible to the other.
Needs root. Each host ends with its VMs when the context is left; only processes started here are
ended, by id.
"""

import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from support.foster import Foster, Fostered
from support.witness import Witness

READY_S = 30
ADDRESSES = ("10.99.0.1", "10.99.0.2")
_BINDS = {
    "etc": "/etc/libvirt",
    "lib": "/var/lib/libvirt",
    "run": "/run/libvirt",
    "log": "/var/log/libvirt",
    "cache": "/var/cache/libvirt",
    "swtpm": "/var/log/swtpm",
}
_UNSHARE = ("unshare", "--mount", "--uts", "--net", "--propagation", "private")
_LIBVIRTD = """\
host_uuid = "{uuid}"
unix_sock_group = "root"
unix_sock_ro_perms = "0700"
unix_sock_rw_perms = "0700"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "2:file:/var/log/libvirt/libvirtd.log"
"""
_QEMU = """\
security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
namespaces = [ ]
cgroup_controllers = [ ]
stdio_handler = "file"
swtpm_user = "root"
swtpm_group = "root"
"""
DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "libvirt"
CERTIFICATES = "/etc/libvirt/migrate"
"""Where a host finds its certificates of migration; in deployments it is /etc/pki/libvirt-migrate."""
BOOT_SECTOR = bytes.fromhex(
    "ea057c000031c08ed88ec08ed0bc007c8816007efb8b1e6c04f4b900108ec126ff060000fec580fd9072f231c98ec1a16c0429d883f80372e0b80102b90200b6008a16007ebb0080cd13be00807303be697cac84c074be88c1bafd03eca82074fb88c8baf803eeebe9450a00"
)
"""A guest in 108 bytes: six times a second it reads sector 2 of its disk and writes it to the serial line.

Real mode, INT 13h and the BIOS tick counter. So each line that the test sees is guest code that runs
*now*, reading its encrypted disk; «E» is a failed read. At each tick it writes into 128 pages: at 1 MiB/s
its memory is never copied within QEMU's 300 ms of downtime, so a slow copy goes on until it is made fast.
"""


class LibvirtFailed(AssertionError):
    """A command that had to work did not."""


@dataclass(slots=True)
class Said:
    """What a command said."""

    code: int
    out: str
    err: str
    seconds: float


@dataclass(slots=True)
class LibvirtHost:
    """One libvirtd with its folders."""

    name: str
    folder: Path
    uuid: str
    process: Fostered | None = None
    """libvirtd, while it was not stopped."""
    prelude: str = ""
    """Shell lines that run in the host's namespaces before libvirtd."""
    _foster: Foster = field(init=False)
    _witness: Witness = field(init=False)

    def __post_init__(self) -> None:
        self._foster, self._witness = Foster(), Witness(self.uri)
        for name in (
            *_BINDS,
            "etc/hooks",
            "etc/migrate",
            "etc/qemu",
            "lib/qemu",
            "lib/swtpm",
            "lib/secrets",
        ):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        shutil.copytree("/etc/libvirt/nwfilter", self.folder / "etc/nwfilter", dirs_exist_ok=True)
        (self.folder / "etc" / "libvirtd.conf").write_text(_LIBVIRTD.format(uuid=self.uuid))
        shipped = (DEPLOY / "qemu.conf").read_text()
        shipped = shipped.replace("/etc/pki/libvirt-migrate", CERTIFICATES)
        (self.folder / "etc" / "qemu.conf").write_text(_QEMU + shipped)

    # --- life --------------------------------------------------------------------------------

    @property
    def uri(self) -> str:
        """How anybody on this machine reaches this host's libvirt."""
        return f"qemu+unix:///system?socket={self.folder}/run/libvirt-sock"

    def start(self) -> None:
        """Start libvirtd and wait until it answers."""
        binds = "\n".join(
            f"mkdir -p {there}; mount --bind {self.folder / here} {there}"
            for here, there in _BINDS.items()
        )
        script = f"set -e\nhostname {self.name}\n{binds}\n{self.prelude}\nexec /usr/sbin/libvirtd --pid-file {self.folder}/libvirtd.pid"
        out = self.folder / "libvirtd.out"
        self.process = self._foster.start([*_UNSHARE, "bash", "-c", script], out)
        deadline = time.monotonic() + READY_S
        while self.virsh("version").code != 0:
            if self.process.ended() or time.monotonic() > deadline:
                raise LibvirtFailed(out.read_text()[-2000:])
            time.sleep(0.1)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End libvirtd; its VMs run on."""
        if self.process is None:
            return
        self.process.send_signal(number)
        if not self.process.ended(within_s=10):
            self.process.send_signal(signal.SIGKILL)
            self.process.ended(within_s=5)
        self.process = None

    def close(self) -> None:
        """End everything for good."""
        self.end()
        self._witness.close()
        self._foster.close()

    def end(self, number: int = signal.SIGTERM) -> None:
        """End libvirtd and everything that it or its hooks started."""
        self.stop(number)
        self._foster.end_all()

    def empty_run(self) -> None:
        """What a reboot does to /run; libvirtd must not live."""
        shutil.rmtree(self.folder / "run")
        (self.folder / "run").mkdir()

    # --- asking ------------------------------------------------------------------------------

    def virsh(self, *words: str | Path, timeout: float = 60) -> Said:
        """Run virsh against this host."""
        began = time.monotonic()
        done = subprocess.run(
            ["virsh", "-q", "-c", self.uri, *map(str, words)],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return Said(done.returncode, done.stdout, done.stderr, time.monotonic() - began)

    def do(self, *words: str | Path) -> str:
        """Run virsh; it has to work."""
        said = self.virsh(*words)
        if said.code != 0:
            raise LibvirtFailed(f"{self.name}: virsh {words}: {said.err}")
        return said.out

    def state(self, vm: str) -> str:
        """State and reason as virsh shows them, «absent» when there is no such domain."""
        seen = self._witness.state(vm)
        if seen:
            return seen
        said = self.virsh("domstate", "--reason", vm)
        return said.out.strip() if said.code == 0 else "absent"

    def copies(self, vm: str) -> bool:
        """Whether the VM's memory is on its way to another host."""
        return any("Memory total" in line for line in self._witness.said(f"domjobinfo {vm}"))

    def master_key(self, vm: str) -> Path:
        """The key that encrypts what libvirt hands to a VM's QEMU, in this life of it."""
        life = self.do("domid", vm).strip()  # a life that ended by a crash has left its own
        return self.folder / "lib" / "qemu" / f"domain-{life}-{vm}" / "master-key.aes"

    def qemu_pids(self) -> list[int]:
        """The QEMU processes of this host that live."""
        files = (self.folder / "run" / "qemu").glob("*.pid")
        pids = [int(file.read_text()) for file in files if file.name != "driver.pid"]
        return [pid for pid in pids if _is_qemu(pid)]


def cabled(one: LibvirtHost, other: LibvirtHost) -> tuple[str, str]:
    """Join the networks of two hosts by a veth pair; their addresses. Gone with either libvirtd."""
    pids = [one.process.pid, other.process.pid]
    words = ("ip", "link", "add", "ta0", "netns", str(pids[0]), "type", "veth")
    subprocess.run([*words, "peer", "name", "ta0", "netns", str(pids[1])], check=True)
    for pid, address in zip(pids, ADDRESSES, strict=True):
        for command in (f"ip addr add {address}/24 dev ta0", "ip link set ta0 up"):
            subprocess.run(["nsenter", "-t", str(pid), "-n", *command.split()], check=True)
    return ADDRESSES


def certified(hosts: dict[str, LibvirtHost], folder: Path) -> None:
    """Give each host a certificate of migration, as the how-to says."""
    script = DEPLOY / "migration-certificate.sh"
    subprocess.run([script, "ca", folder], check=True)
    for (name, host), address in zip(hosts.items(), ADDRESSES, strict=True):
        subprocess.run([script, "host", folder, name, address], check=True)
        target = host.folder / "etc" / "migrate"
        shutil.copytree(folder / name, target, dirs_exist_ok=True)


def migrate_words(target: LibvirtHost, vm: str, *more: str) -> tuple[str, ...]:
    """The words of a live migration to ``target`` over a unix socket."""
    socket = target.folder / "m.sock"
    # --unsafe: what both hosts see is one folder, which libvirt does not take for shared storage
    words = ("migrate", "--live", "--unsafe", "--persistent", "--undefinesource", *more)
    return (*words, vm, target.uri, "--migrateuri", f"unix://{socket}")


def guest_image(line: str) -> bytes:
    """A raw disk whose guest writes ``line`` to its serial line six times a second."""
    text = (line + "\n\0").encode().ljust(512, b"\0")
    return BOOT_SECTOR.ljust(510, b"\0") + b"\x55\xaa" + text + bytes(1 << 20)


def _is_qemu(pid: int) -> bool:
    """Whether a pid that a file names is still QEMU's; a zombie has no command line."""
    try:
        return b"qemu-system" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
