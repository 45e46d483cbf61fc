"""The authority, two hosts with TPMs and agents, and a libvirt on each: all real, on one machine.

``payroll`` is an encrypted VM with a vTPM that writes a line to its serial line six times a second, read
from its disk each time. Hosts a and b can be attested; their agents run as users start them. Needs
root. Used by the tests marked ``libvirt`` and by ``make demo-libvirt``.
"""

import asyncio
import io
import json
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "deploy" / "demo"))

from stage import Result, Stage

from hostagent.control import NoDaemon, ask
from support.libvirt_hosts import LibvirtHost, Said, certified, guest_image
from support.lossy_line import LossyLine
from support.referee import TICK_S, Referee
from support.swtpm import TpmMaker
from trustauthority.cli.app import run as ta_command
from trustauthority.cli.session import World

VM, BRIEF = "payroll", "cashier"
"""The VM of the demo and of most tests; another one for tests in which a lease has to end."""
LEASE_MS, LONG_LEASE_MS, SKEW_MS = 8_000, 30_000, 6_000
EVENTUALLY_S = 60.0
"""The limit of a wait for what has no bound of its own: a machine may have much else to do."""
AT_ONCE_S = 15.0
"""Far before a lease of LONG_LEASE_MS ends: what was given back by then was not just over."""
DISK_SECRET = "7a000000-0000-4000-8000-000000000001"
VTPM_SECRET = "7a000000-0000-4000-8000-000000000002"
UUID = "7b000000-0000-4000-8000-00000000000{number}"
NUMBERS = {VM: 1, BRIEF: 9}
NAMES = ("host-a", "host-b")
BOOTS = dict(zip(NAMES, ("good", "good-second-boot"), strict=True))
BAD_BOOT = "changed-cmdline"
ADDRESSES_OF_AUTHORITY = ("kmip", "enrol", "mutual", "key", "admin")
ROLES = {"attest": "attest", "admin": "admin,placement", "key": "key"}
FENCE_S = (LEASE_MS + SKEW_MS) / 1000
"""From the authority's decision until somebody else may have the VM."""
GONE_S = (LEASE_MS + SKEW_MS / 2) / 1000
"""From the first send until the host has ended the VM."""
_POLICY = f"""\
name = "lab"

[leases]
strict_ms = {LEASE_MS}
standard_ms = {LONG_LEASE_MS}
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

    def __init__(self, lease: str = "strict") -> None:
        """``lease`` is the class of VM payroll: strict (LEASE_MS) or standard (LONG_LEASE_MS)."""
        # unix sockets have short names, so not below pytest's folder
        self.folder = Path(tempfile.mkdtemp(prefix="ta-two-"))
        self.stage = Stage(folder=self.folder)
        self.libvirt: dict[str, LibvirtHost] = {}
        self.lines: dict[str, LossyLine] = {}
        self.revoked: set[str] = set()
        self.vm, self._lease = VM, lease
        self.referee: Referee | None = None
        """Whoever watches now."""
        self._protected: set[str] = set()
        self._adrift: set[str] = set()
        """Hosts whose connections to the authority may wait for seconds before they are tried again."""

    # --- life --------------------------------------------------------------------------------

    def set_up(self, said: Callable[[str], None] = lambda _: None) -> None:
        """Start everything, up to two attested hosts and an encrypted disk."""
        for number, name in enumerate(NAMES, start=1):
            self.libvirt[name] = LibvirtHost(
                name=name,
                folder=self.folder / f"libvirt-{name}",
                uuid=f"7c000000-0000-4000-8000-00000000000{number}",
            )
        certified(self.libvirt, self.folder / "migration-ca")
        for each in ADDRESSES_OF_AUTHORITY:
            self.stage.address(each)
        with ThreadPoolExecutor() as at_once:
            libvirts = [at_once.submit(self._start_libvirt, name) for name in NAMES]
            authority = at_once.submit(self._start_authority)
            maker = self._make_hosts()  # here: a TPM ends with the thread that started it
            authority.result()
            said("an authority and a development KMS serve")
            self._enrol_hosts(maker, at_once)
            said("host-a and host-b have TPMs, booted well, and are enrolled by inventory")
            for each in libvirts:
                each.result()
            said("a libvirt runs on each, with the hook of hostagent")
            list(at_once.map(self.start_agent, NAMES))
        self._adrift.clear()
        self.protect(VM, self._lease)
        said(f"VM {VM} is protected, its disk encrypted on host-a with a key from the authority")

    def protect(self, vm: str, lease: str) -> None:
        """Make an encrypted VM of this name, unless there is one."""
        if vm in self._protected:
            return
        self._protected.add(vm)
        self.ta("vm", "protect", vm, "--cluster", "lab", "--lease", lease, "--any-host")
        self.ta("key", "create", vm)
        plain = self.folder / "plain.img"
        plain.write_bytes(guest_image(f"tick of {vm}"))
        words = ("--disk", plain, "--out", self.folder / f"{vm}.qcow2")
        self._must(self.stage.agent("host-a", "vm", "encrypt", vm, *words))
        plain.unlink()

    def close(self) -> None:
        """End everything that was started, and remove the folder."""
        for host in self.libvirt.values():
            host.close()
        self.stage.close()
        for line in self.lines.values():
            line.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start_libvirt(self, name: str) -> None:
        host = self.libvirt[name]
        hooks = host.folder / "etc" / "hooks" / "qemu.d"
        hooks.mkdir()
        shutil.copy(ROOT / "hostagent" / "hooks" / "qemu.py", hooks / "trustauthority")
        settings = {"run_dir": str(self.folder / name / "run"), "deadline_s": 14}
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
                *("--config", config, "--no-escrow"),
                *(w if w.startswith("-") else stage.address(w) for w in listeners),
                *("--admin-listener", stage.address("admin")),
                *("--kmip-host", "127.0.0.1", "--kmip-port", port, "--kmip-ca", kms / "ca.pem"),
                *("--kmip-certificate", kms / "client.pem", "--kmip-key", kms / "client.key"),
            )
        )
        self.serve(next(iter(ROLES)))  # the first one makes the tables
        with ThreadPoolExecutor() as at_once:
            list(at_once.map(self.serve, list(ROLES)[1:]))

    def serve(self, name: str) -> None:
        """Start one process of the authority."""
        roles = ROLES[name]
        config = self.folder / "authority" / "authority.toml"
        words = ("trustauthority", "serve", "--config", config, "--roles", roles)
        self._adrift.update(NAMES)
        self.stage.start(name, *words, ready='"event": "serving"')

    def _make_hosts(self) -> TpmMaker:
        stage, maker = self.stage, TpmMaker(self.folder / "maker")
        for name, boot in BOOTS.items():
            host = stage.make_host(name, maker, boot)
            line = LossyLine({each: stage.address(each) for each in ("mutual", "key", "admin")})
            self.lines[name] = line
            # an answer may take as long as gRPC waits before it connects again (10 s)
            text = host.config.read_text().replace(
                "answer_timeout_ms = 6000", "answer_timeout_ms = 11000"
            )
            for each, address in line.addresses.items():
                text = text.replace(f'"{stage.address(each)}"', f'"{address}"')
            limits = "backoff_first_ms = 100\nbackoff_cap_ms = 500\ncall_timeout_ms = 2000\n"
            peer = self.uri("{host}")
            libvirt = f'\n[libvirt]\nuri = "{self.uri(name)}"\npatience_ms = 3000\n'
            libvirt += f'peer_uri = "{peer}"\npeer_tls = false\npeer_unsafe = true\n'
            libvirt += f'disk_folders = ["{self.folder}"]\n'
            libvirt += f'peer_migrate_uri = "unix://{self.folder}/libvirt-{{host}}/m.sock"\n'
            host.config.write_text(text + limits + libvirt)
        return maker

    def _enrol_hosts(self, maker: TpmMaker, at_once: ThreadPoolExecutor) -> None:
        endorsements = [
            at_once.submit(self.stage.agent, name, "endorsement", "--json") for name in NAMES
        ]
        self.ta("cluster", "create", "lab")
        policy = self.folder / "policy.toml"
        policy.write_text(_POLICY)
        self.ta("policy", "apply", policy, "-c", "lab", "--yes")
        for certificate in (maker.root_certificate, maker.issuer_certificate):
            self.ta("anchor", "add", certificate, "--cluster", "lab", "--yes")
        for name, endorsement in zip(NAMES, endorsements, strict=True):
            digest = str(endorsement.result().json()["ek_sha256"])
            words = ("--cluster", "lab", "--name", name, "--ek-sha256", digest, "--yes")
            self.ta("inventory", "add", *words)
        for enrolled in at_once.map(lambda name: self.stage.agent(name, "enrol"), NAMES):
            self._must(enrolled)
        self.stage.agent("host-a", "attest")
        self.ta("baseline", "capture", "lab-1", "--host", "host-a", "-c", "lab")
        self.ta("baseline", "approve", "lab-1", "-c", "lab", "--yes")

    # --- parts -------------------------------------------------------------------------------

    @property
    def disk(self) -> Path:
        """The encrypted disk, which both hosts see."""
        return self.folder / f"{self.vm}.qcow2"

    @property
    def serial(self) -> Path:
        """What the guest wrote."""
        return self.folder / "serial.log"

    def uri(self, name: str) -> str:
        """A host's libvirt."""
        return f"qemu+unix:///system?socket={self.folder}/libvirt-{name}/run/libvirt-sock"

    def definition(
        self, *, name: str = "", vm: str = "", number: int = 0, marked: bool = True
    ) -> Path:
        """A file with the definition of the VM, or of one that differs where a test says."""
        name, vm, number = name or self.vm, vm or self.vm, number or NUMBERS[self.vm]
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

    def ta(self, *words: str | Path) -> Result:
        """Run ta; it has to work. Who is revoked by it is reinstated by ``fresh``."""
        if words[:2] == ("host", "revoke"):
            self.revoked.add(str(words[2]))
        return self._must(self.told(*words))

    def told(self, *words: str | Path) -> Result:
        """Run ta's command in this process: the same code and calls, without an interpreter's start."""
        out, err = io.StringIO(), io.StringIO()
        world = World(
            out=out, err=err, keyboard=io.StringIO(), environment=self.stage.environment()
        )
        began = time.monotonic()
        code = ta_command([str(word) for word in words], world)
        return Result(int(code), out.getvalue(), err.getvalue(), time.monotonic() - began)

    def _must(self, result: Result) -> Result:
        if result.code != 0:
            raise AssertionError(f"exit {result.code}: {result.said}")
        return result

    # --- doing -------------------------------------------------------------------------------

    def start_agent(self, name: str, ready: str = '"now": "passed"') -> None:
        """Start a host's agent and wait until it is attested."""
        config = self.stage.hosts[name].config
        self.stage.start(f"agent-{name}", "hostagent", "run", "--config", config, ready=ready)

    def signal_agent(self, name: str, number: int) -> None:
        """Send a signal to a host's agent."""
        self.stage.processes[f"agent-{name}"].send_signal(number)

    def kill_agent(self, name: str) -> None:
        """End a host's agent at once."""
        self.stage.stop(f"agent-{name}", signal.SIGKILL)

    def start_vm(self, name: str = "host-a", **differs: object) -> Said:
        """Define the VM on a host and start it."""
        host = self.libvirt[name]
        host.do("define", self.definition(**differs))
        return host.virsh("start", str(differs.get("name", self.vm)))

    def started(self, name: str = "host-a") -> None:
        """Start the VM on a host; it has to run."""
        said = self.start_vm(name)
        assert said.code == 0, said.err
        assert self.runs(), self.states()

    def move(self, source: str, target: str, *words: str) -> Result:
        """Move the VM as a person on its host does."""
        there = self.libvirt[target]
        options = ("--migrate-uri", f"unix://{there.folder}/m.sock", "--no-tls", "--unsafe")
        words = words or options
        return self.stage.agent(source, "vm", "migrate", self.vm, target, there.uri, *words)

    def offered(self, source: str, target: str) -> str:
        """Offer the VM and mark its domain, as «hostagent vm migrate» does; the move's id."""
        answer = self.ask(source, {"do": "move-offer", "vm": self.vm, "destination": target})
        assert answer["ok"], answer
        self.marked_move(source, answer["move_id"])
        return answer["move_id"]

    def marked_move(self, name: str, move_id: str) -> None:
        """Write a move's id into the domain's metadata."""
        words = ("urn:trustauthority:move:1", "--key", "ta", "--live")
        self.libvirt[name].do("metadata", self.vm, *words, "--set", f"<move id='{move_id}'/>")

    def slow_copies(self, name: str) -> None:
        """Have a migration away from a host go on until ``fast_copies``: the guest is faster."""
        self.libvirt[name].do("migrate-setspeed", self.vm, "1")

    @contextmanager
    def slow_for(self, name: str, seconds: float) -> Iterator[None]:
        """Have a migration away from a host take so long."""
        self.slow_copies(name)
        ends = threading.Timer(seconds, self.fast_copies, (name,))
        ends.start()
        try:
            yield
        finally:
            ends.cancel()
            ends.join()

    def fast_copies(self, name: str) -> None:
        """Have it end soon, also one that is under way; if there is one."""
        self.libvirt[name].virsh("migrate-setspeed", self.vm, "1000")

    def revoke(self, name: str) -> None:
        """Revoke a host; once this returns, nothing goes out to it."""
        self.ta("host", "revoke", name, "--why", "test", "--yes")

    def reboot(self, name: str, boot: str) -> None:
        """Power a host off and on with another captured boot; its agent comes up and attests."""
        self.kill_agent(name)
        self.stage.boot_host(name, boot)
        ready = '"now": "passed"' if boot != BAD_BOOT else '"now": "failed"'
        self.start_agent(name, ready)

    def fresh(self) -> None:
        """As after set-up, whatever happened before."""
        for name, line in self.lines.items():
            if line.was_down:
                self._adrift.add(name)
                line.was_down = False
            line.mend()
        for role in ROLES:
            if not _lives(self.stage.processes.get(role)):
                self.stage.stop(role)
                self.serve(role)
        for host in self.libvirt.values():
            if host.process is None:
                host.start()
        for name in NAMES:
            self._wake(name)
        for name in NAMES:
            self._end_vms(name)
        eventually(self._is_clean, "a clean start", self.describe)
        for name in NAMES:
            self._make_trusted(name)
        for vm in sorted(self._protected):
            self._give_back(vm)
        self.serial.unlink(missing_ok=True)

    def _wake(self, name: str) -> None:
        process = self.stage.processes.get(f"agent-{name}")
        if _lives(process) and name not in self._adrift:
            process.send_signal(signal.SIGCONT)
            return
        self.kill_agent(name)
        if not self.stage.hosts[name].tpm.pid:
            self.stage.boot_host(name, BOOTS[name])
        self.start_agent(name, '"event": "hooks-served"')
        self._adrift.discard(name)

    def _end_vms(self, name: str) -> None:
        host = self.libvirt[name]
        for vm in host.do("list", "--all", "--name").split():
            host.virsh("destroy", vm)
            host.virsh("undefine", vm, "--managed-save", "--snapshots-metadata")
        for vm in self.status(name)["vms"]:  # of a start that its hook gave up
            self.ask(name, {"do": "key-give-back", "vm": vm["vm"]})

    def _make_trusted(self, name: str) -> None:
        doubtful = name in self.revoked
        if doubtful:
            self.told("host", "reinstate", name, "--yes")  # unless the test did it itself
            self.revoked.discard(name)
        if self.stage.hosts[name].boot != BOOTS[name]:
            self.reboot(name, BOOTS[name])
        if doubtful or self.status(name)["phase"] != "passed":
            eventually(lambda: self.passes(name), f"{name} passes", self.describe)

    def _give_back(self, vm: str) -> None:
        """Nobody owns a VM whose host lost power: it is asked for after its fence, and given back."""
        eventually(lambda: self._is_free(vm), f"the fence of {vm}", self.describe)
        if self.owner(vm):
            self.ask("host-a", {"do": "key-request", "vm": vm})
            self.ask("host-a", {"do": "key-give-back", "vm": vm})
            eventually(lambda: not self.owner(vm), f"{vm} is given back", self.describe)

    def _is_free(self, vm: str) -> bool:
        """Whether any host may have the VM: nobody owns it, or its fence has passed."""
        until = self.ta("vm", "show", vm, "-o", "json").json().get("fenceUntil")
        return until is None or datetime.fromisoformat(until) <= datetime.now(UTC)

    def _is_clean(self) -> bool:
        return not any(self.status(name)["vms"] or self.libvirt[name].qemu_pids() for name in NAMES)

    # --- looking -----------------------------------------------------------------------------

    def ticks(self) -> int:
        """How many lines the guest wrote; a line that is none shows a disk that was misread."""
        if not self.serial.exists():
            return 0
        lines = self.serial.read_text().splitlines()
        assert set(lines[:-1]) <= {f"tick of {self.vm}"}, lines[-3:]
        return len(lines)

    def runs(self, within_s: float = EVENTUALLY_S / 3) -> bool:
        """Whether the guest makes progress."""
        before, deadline = self.ticks(), time.monotonic() + within_s
        while self.ticks() < before + 2:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def stands(self, for_s: float = 5 * TICK_S) -> bool:
        """Whether the guest does nothing for a while."""
        time.sleep(0.3)  # what it wrote may still be on its way to the file
        before = self.ticks()
        time.sleep(for_s)
        return self.ticks() == before

    def states(self) -> tuple[str, str]:
        """The VM on host-a and host-b, as virsh says it, without the reason."""
        found = (self.libvirt[name].state(self.vm).partition(" (")[0] for name in NAMES)
        return tuple("absent" if s == "shut off" else s for s in found)

    def owner(self, vm: str = "") -> str:
        """Which host the authority says may run the VM."""
        shown = self.ta("vm", "show", vm or self.vm, "-o", "json").json()
        return shown.get("ownerHostName", "")

    def runs_on(self, name: str) -> None:
        """The VM runs on this host, with the right to, and nowhere else; or AssertionError."""
        wanted = tuple("running" if each == name else "absent" for each in NAMES)
        eventually(lambda: self.states() == wanted, f"it runs on {name}", self.describe)
        assert self.runs(), self.describe()
        assert self.owner() == name, self.describe()
        assert self.lease(name).get("phase") == "running", self.describe()
        other = NAMES[1 - NAMES.index(name)]
        assert not self.libvirt[other].qemu_pids(), self.describe()

    def runs_nowhere(self) -> None:
        """No QEMU lives, on neither host; or AssertionError."""
        assert not any(self.libvirt[name].qemu_pids() for name in NAMES), self.describe()
        assert self.stands(), self.describe()

    def ask(self, name: str, request: dict) -> dict:
        """Ask a host's agent over its socket."""
        return asyncio.run(ask(self.stage.hosts[name].folder / "run", request, 20))

    def passes(self, name: str) -> bool:
        """Have a host attest now; whether it passed."""
        return bool(self.ask(name, {"do": "attest"}).get("passed"))

    def status(self, name: str) -> dict:
        """What a host's agent says; phase «none» when there is none."""
        try:
            return self.ask(name, {"do": "status"})
        except (NoDaemon, OSError, TimeoutError):
            return {"phase": "none", "vms": []}

    def lease(self, name: str) -> dict:
        """What a host's agent says of the VM; empty when it has nothing to do with it."""
        return next((vm for vm in self.status(name)["vms"] if vm["vm"] == self.vm), {})

    def secrets(self, name: str) -> list[str]:
        """What libvirt of a host holds."""
        return self.libvirt[name].do("secret-list").split()

    def agent_log(self, name: str) -> str:
        """Everything that a host's agent said."""
        return (self.folder / "logs" / f"agent-{name}.log").read_text()

    def describe(self) -> str:
        """Where everything is, for whoever reads a failure."""
        leases = {name: self.lease(name) for name in NAMES}
        return f"{self.states()} owner {self.owner()!r} {leases} ticks {self.ticks()}"


def _lives(process: object) -> bool:
    return process is not None and process.poll() is None


def eventually(
    holds: Callable[[], object], what: str, described: Callable[[], str] = lambda: ""
) -> float:
    """Wait for something that other processes do, when no bound of it is promised."""
    return wait_until(holds, EVENTUALLY_S, what, described)


def wait_until(
    holds: Callable[[], object],
    limit_s: float,
    what: str,
    described: Callable[[], str] = lambda: "",
) -> float:
    """Wait for something that other processes do within a bound; returns how long it took."""
    began = looked = time.monotonic()
    while not holds():
        if time.monotonic() - began > limit_s:
            raise AssertionError(f"not within {limit_s} s: {what}: {described()}")
        time.sleep(max(0.05, time.monotonic() - looked))  # a look may cost more than its result
        looked = time.monotonic()
    return time.monotonic() - began
