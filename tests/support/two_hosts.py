"""The authority, two hosts with TPMs and agents, and a libvirt on each: all real, on one machine.

``payroll`` is an encrypted VM with a vTPM that writes a line to its serial line twice a second, read
from its disk each time. Hosts a and b can be attested; their agents run as users start them. Needs
root. Used by the tests marked ``libvirt`` and by ``make demo-libvirt``.
"""

import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "deploy" / "demo"))

from stage import Result, Stage

from support.libvirt_hosts import LibvirtHost, guest_image
from support.swtpm import TpmMaker

VM = "payroll"
LEASE_MS, SKEW_MS = 8_000, 4_200
DISK_SECRET = "7a000000-0000-4000-8000-000000000001"
VTPM_SECRET = "7a000000-0000-4000-8000-000000000002"
UUID = "7b000000-0000-4000-8000-00000000000{number}"
NAMES = ("host-a", "host-b")
_POLICY = f"""\
name = "lab"

[leases]
strict_ms = {LEASE_MS}
standard_ms = {LEASE_MS}
skew_ms = {SKEW_MS}
"""
_DOMAIN = """\
<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <metadata>{mark}</metadata>
  <memory unit='MiB'>64</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><boot dev='hd'/></os>
  <cpu mode='custom'><model>qemu64</model></cpu>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none'/>
      <source file='{disk}'>
        <encryption format='luks'><secret type='passphrase' uuid='{secret}'/></encryption>
      </source>
      <target dev='vda' bus='virtio'/>
    </disk>
    <tpm model='tpm-tis'>
      <backend type='emulator' version='2.0'><encryption secret='{vtpm}'/></backend>
    </tpm>
    <serial type='file'><source path='{serial}' append='on'/><target port='0'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
"""
MARK = "<ta:vm xmlns:ta='urn:trustauthority:vm:1' id='{vm}'/>"


class TwoHosts:
    """Everything below one folder; ``close`` ends it all."""

    def __init__(self) -> None:
        # unix sockets have short names, so not below pytest's folder
        self.folder = Path(tempfile.mkdtemp(prefix="ta-two-"))
        self.stage = Stage(folder=self.folder)
        self.libvirt: dict[str, LibvirtHost] = {}

    # --- life --------------------------------------------------------------------------------

    def set_up(self, said: Callable[[str], None] = lambda _: None) -> None:
        """Start everything, up to two attested hosts and an encrypted disk."""
        starts = [threading.Thread(target=self._start_libvirt, args=(name,)) for name in NAMES]
        for each in starts:
            each.start()
        self._start_authority()
        said("an authority and a development KMS serve")
        self._make_hosts()
        said("host-a and host-b have TPMs, booted well, and are enrolled by inventory")
        for each in starts:
            each.join()
        said("a libvirt runs on each, with the hook of hostagent")
        for name in NAMES:
            self.start_agent(name)
        self.ta("vm", "protect", VM, "--cluster", "lab", "--lease", "strict", "--any-host")
        self.ta("key", "create", VM)
        self._encrypt()
        said(f"VM {VM} is protected, its disk encrypted on host-a with a key from the authority")

    def close(self) -> None:
        """End everything that was started, and remove the folder."""
        for host in self.libvirt.values():
            host.close()
        self.stage.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start_libvirt(self, name: str) -> None:
        number = NAMES.index(name) + 1
        host = LibvirtHost(
            name=name,
            folder=self.folder / f"libvirt-{name}",
            uuid=f"7c000000-0000-4000-8000-00000000000{number}",
        )
        self.libvirt[name] = host
        hooks = host.folder / "etc" / "hooks" / "qemu.d"
        hooks.mkdir()
        shutil.copy(ROOT / "hostagent" / "hooks" / "qemu.py", hooks / "trustauthority")
        settings = {"run_dir": str(self.folder / name / "run"), "deadline_s": 12}
        (hooks.parent / "trustauthority.json").write_text(json.dumps(settings))
        host.start()

    def _start_authority(self) -> None:
        stage, kms = self.stage, self.folder / "kms"
        self._must(stage.run("kms-mock", "init", kms))
        port = stage.address("kmip").rpartition(":")[2]
        stage.start("kms", "kms-mock", "serve", kms, "--port", port, ready="ready")
        config = self.folder / "authority" / "authority.toml"
        listeners = ("--enrol", "enrol", "--mutual", "mutual", "--key", "key")
        self._must(
            stage.run(
                *("trustauthority", "init", "--state", self.folder / "authority"),
                *("--config", config),
                *(w if w.startswith("-") else stage.address(w) for w in listeners),
                *("--admin-listener", stage.address("admin")),
                *("--kmip-host", "127.0.0.1", "--kmip-port", port, "--kmip-ca", kms / "ca.pem"),
                *("--kmip-certificate", kms / "client.pem", "--kmip-key", kms / "client.key"),
            )
        )
        for name, roles in (("attest", "attest"), ("admin", "admin,placement"), ("key", "key")):
            self.serve(name, roles)

    def serve(self, name: str, roles: str) -> None:
        """Start one process of the authority."""
        config = self.folder / "authority" / "authority.toml"
        words = ("trustauthority", "serve", "--config", config, "--roles", roles)
        self.stage.start(name, *words, ready='"event": "serving"')

    def _make_hosts(self) -> None:
        stage, maker = self.stage, TpmMaker(self.folder / "maker")
        for name, boot in zip(NAMES, ("good", "good-second-boot"), strict=True):
            host = stage.make_host(name, maker, boot)
            uri = self.uri(name)
            limits = "backoff_first_ms = 200\nbackoff_cap_ms = 1000\n"
            libvirt = f'\n[libvirt]\nuri = "{uri}"\npatience_ms = 3000\n'
            host.config.write_text(host.config.read_text() + limits + libvirt)
        self.ta("cluster", "create", "lab")
        policy = self.folder / "policy.toml"
        policy.write_text(_POLICY)
        self.ta("policy", "apply", policy, "-c", "lab", "--yes")
        for certificate in (maker.root_certificate, maker.issuer_certificate):
            self.ta("anchor", "add", certificate, "--cluster", "lab", "--yes")
        for name in NAMES:
            digest = str(stage.agent(name, "endorsement", "--json").json()["ek_sha256"])
            words = ("--cluster", "lab", "--name", name, "--ek-sha256", digest, "--yes")
            self.ta("inventory", "add", *words)
            self._must(stage.agent(name, "enrol"))
        stage.agent("host-a", "attest")
        self.ta("baseline", "capture", "lab-1", "--host", "host-a", "-c", "lab")
        self.ta("baseline", "approve", "lab-1", "-c", "lab", "--yes")

    def _encrypt(self) -> None:
        plain = self.folder / "plain.img"
        plain.write_bytes(guest_image(f"tick of {VM}"))
        self._must(
            self.stage.agent("host-a", "vm", "encrypt", VM, "--disk", plain, "--out", self.disk)
        )
        plain.unlink()

    # --- parts -------------------------------------------------------------------------------

    @property
    def disk(self) -> Path:
        """The encrypted disk, which both hosts see."""
        return self.folder / f"{VM}.qcow2"

    @property
    def serial(self) -> Path:
        """What the guest wrote."""
        return self.folder / "serial.log"

    def uri(self, name: str) -> str:
        """A host's libvirt."""
        return f"qemu+unix:///system?socket={self.folder}/libvirt-{name}/run/libvirt-sock"

    def definition(
        self, *, name: str = VM, vm: str = VM, number: int = 1, marked: bool = True
    ) -> Path:
        """A file with the definition of the VM, or of one that differs where a test says."""
        path = self.folder / f"{name}.xml"
        path.write_text(
            _DOMAIN.format(
                name=name,
                uuid=UUID.format(number=number),
                mark=MARK.format(vm=vm) if marked else "",
                disk=self.disk,
                secret=DISK_SECRET,
                vtpm=VTPM_SECRET,
                serial=self.serial,
            )
        )
        return path

    def start_agent(self, name: str) -> None:
        """Start a host's agent and wait until it is attested."""
        config = self.stage.hosts[name].config
        words = ("hostagent", "run", "--config", config)
        self.stage.start(f"agent-{name}", *words, ready='"now": "passed"')

    def ta(self, *words: str | Path) -> Result:
        """Run ta; it has to work."""
        return self._must(self.stage.ta(*words))

    def _must(self, result: Result) -> Result:
        if result.code != 0:
            raise AssertionError(f"exit {result.code}: {result.said}")
        return result

    # --- looking -----------------------------------------------------------------------------

    def ticks(self) -> int:
        """How many lines the guest wrote; a line that is none shows a disk that was misread."""
        if not self.serial.exists():
            return 0
        lines = self.serial.read_text().splitlines()
        assert set(lines[:-1]) <= {f"tick of {VM}"}, lines[-3:]
        return len(lines)

    def runs(self, within_s: float = 5) -> bool:
        """Whether the guest makes progress."""
        before, deadline = self.ticks(), time.monotonic() + within_s
        while self.ticks() < before + 2:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def states(self) -> tuple[str, str]:
        """The VM on host-a and host-b, as virsh says it, without the reason."""
        found = (self.libvirt[name].state(VM).partition(" (")[0] for name in NAMES)
        return tuple("absent" if s == "shut off" else s for s in found)

    def owner(self) -> str:
        """Which host the authority says may run the VM."""
        shown = self.ta("vm", "show", VM, "-o", "json").json()
        return shown.get("ownerHostName") or shown.get("owner_host_name") or ""

    def lease(self, name: str) -> dict:
        """What a host's agent says of the VM; empty when it has nothing to do with it."""
        shown = self.stage.agent(name, "status", "--json").json()
        return next((vm for vm in shown["vms"] if vm["vm"] == VM), {})

    def secrets(self, name: str) -> list[str]:
        """What libvirt of a host holds."""
        return self.libvirt[name].do("secret-list").split()


def wait_until(holds: Callable[[], object], limit_s: float, what: str) -> float:
    """Wait for something that other processes do; returns how long it took."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > limit_s:
            raise AssertionError(f"not within {limit_s} s: {what}")
        time.sleep(0.05)
    return time.monotonic() - began
