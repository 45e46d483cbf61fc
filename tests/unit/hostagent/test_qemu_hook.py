"""hostagent/hooks/qemu.py as libvirt runs it: the executable itself, against agents of all tempers."""

import contextlib
import json
import os
import re
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from hostagent.hooks import qemu

SOURCE = Path(qemu.__file__)
MARK = '<ta:vm xmlns:ta="urn:trustauthority:vm:1" id="web"/>'
SECRET = "7a000000-0000-4000-8000-000000000001"
OPERATIONS = (
    "prepare",
    "start",
    "started",
    "stopped",
    "release",
    "migrate",
    "restore",
    "reconnect",
)


def definition(mark: str = MARK, more: str = "") -> bytes:
    disk = (
        f'<disk><source><encryption><secret uuid="{SECRET.upper()}"/></encryption></source></disk>'
    )
    return (
        f"<domain><name>web</name><metadata>{mark}</metadata>"
        f"<devices>{disk}{more}</devices></domain>"
    ).encode()


class Host:
    """A host with the hook installed, and perhaps an agent."""

    def __init__(self, root: Path) -> None:
        self.run, self.asked = root / "run", []
        for name in ("run", "run/vms", "run/lent", "pids"):
            (root / name).mkdir()
        self.config = root / "trustauthority.json"
        self.settings = {"run_dir": str(self.run), "pid_dir": str(root / "pids"), "deadline_s": 0.4}
        self.configure()
        self.program = root / "hook"
        text = SOURCE.read_text().replace(qemu.CONFIG, str(self.config))
        assert text.startswith("#!/usr/bin/python3 -IS\n")
        self.program.write_text(text)
        self.program.chmod(0o755)

    def configure(self, **settings: object) -> None:
        self.settings |= {"release_deadline_s": 0.4, **settings}
        self.config.write_text(json.dumps(self.settings))

    def call(self, operation: str, given: bytes, name: str = "web", **environment: str):
        return subprocess.run(
            [str(self.program), name, operation, "begin", "-"],
            input=given,
            capture_output=True,
            timeout=30,
            check=False,
            env={"PATH": os.environ["PATH"], **environment},
        )

    @contextmanager
    def agent(self, answer: bytes, *, after_s: float = 0, hangs: bool = False):
        """An agent that says ``answer`` to each hook, or nothing at all."""
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(self.run / "hook.sock"))
        server.listen(8)
        held: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    caller, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=converse, args=(caller,)).start()

        def converse(caller: socket.socket) -> None:
            with caller.makefile("rb") as lines:
                line = lines.readline()
                if not line:  # the hook gave up
                    caller.close()
                    return
                self.asked.append(json.loads(line))
                if hangs:
                    held.append(caller)
                    return
                time.sleep(after_s)
                with contextlib.suppress(BrokenPipeError):  # it gave up, or has read enough
                    caller.sendall(answer)
            caller.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            server.close()
            thread.join(5)
            for each in held:
                each.close()
            (self.run / "hook.sock").unlink()


YES = b'{"ok": true}\n'
NO = b'{"ok": false, "reason": "HOST_REVOKED", "detail": "the host is revoked"}\n'


@pytest.fixture
def host(tmp_path_factory):
    return Host(tmp_path_factory.mktemp("h"))


class TestMarkedVms:
    def test_starts_when_the_agent_says_so(self, host):
        """The agent gets the definition as libvirt gave it; stdout stays empty."""
        with host.agent(YES):
            done = host.call("prepare", definition())
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert host.asked[0]["operation"] == "prepare"
        assert host.asked[0]["definition"].encode() == definition()

    @pytest.mark.parametrize("operation", ["prepare", "migrate", "started"])
    def test_a_refusal_is_a_sentence_that_virsh_shows(self, host, operation):
        """Exit status 1, and the agent's reason on stderr, which libvirt passes on."""
        with host.agent(NO):
            done = host.call(operation, definition())
        assert done.returncode == 1
        assert done.stdout == b""
        assert done.stderr == b"trustauthority: VM web: HOST_REVOKED: the host is revoked\n"

    @pytest.mark.parametrize("operation", ["prepare", "migrate"])
    def test_without_an_agent_it_is_refused(self, host, operation):
        """Fail closed: no agent, no start, and the admin reads why."""
        done = host.call(operation, definition())
        assert done.returncode == 1
        assert b"HOST_AGENT_DOWN" in done.stderr

    def test_an_agent_that_comes_up_late_is_waited_for(self, host):
        """Rack power-on: libvirt starts its VMs before the agent listens."""
        host.configure(deadline_s=10)
        result = {}
        caller = threading.Thread(
            target=lambda: result.update(x=host.call("prepare", definition()))
        )
        caller.start()
        time.sleep(0.3)  # the order of two processes, not a time that is tested
        with host.agent(YES):
            caller.join(20)
        assert result["x"].returncode == 0

    def test_a_silent_agent_is_given_up_at_the_deadline(self, host):
        """libvirt has no limit of its own: the hook has."""
        began = time.monotonic()
        with host.agent(b"", hangs=True):
            done = host.call("prepare", definition())
        assert done.returncode == 1
        assert b"did not answer within 0.4 s" in done.stderr
        assert 0.4 <= time.monotonic() - began < 5

    @pytest.mark.parametrize(
        "answer",
        [b"", b"\n", b"yes\n", b"[]\n", b'{"ok": 1}\n', b'{"ok": "true"}\n', b"{}\n", b"x" * 99999],
    )
    def test_any_other_answer_is_a_refusal(self, host, answer):
        """Only ``{"ok": true}`` is yes."""
        with host.agent(answer):
            assert host.call("prepare", definition()).returncode == 1

    def test_two_hooks_at_once_do_not_wait_for_each_other(self, host):
        """libvirt calls hooks of different VMs at the same time."""
        host.configure(deadline_s=10)
        codes = []
        with host.agent(YES, after_s=0.3):
            callers = [
                threading.Thread(
                    target=lambda: codes.append(host.call("prepare", definition()).returncode)
                )
                for _ in range(4)
            ]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join(20)
        assert codes == [0] * 4

    def test_saved_memory_is_not_restored(self, host):
        """Guest RAM in a file holds the disk's key: restoring is refused, whatever the agent says."""
        with host.agent(YES):
            done = host.call("restore", definition())
        assert done.returncode == 1
        assert b"saved memory" in done.stderr
        assert host.asked == []

    def test_a_definition_of_more_than_1_mib_is_refused(self, host):
        """The agent reads at most 1 MiB."""
        with host.agent(YES):
            done = host.call("prepare", definition(more="<x/>" * 300_000))
        assert done.returncode == 1
        assert b"larger than 1 MiB" in done.stderr
        assert host.asked == []


class TestNeverFails:
    @pytest.mark.parametrize("given", [definition(), b"", b"<garbage", b"\0" * 100])
    def test_reconnect_never_fails(self, host, given):
        """libvirtd kills the running VM if it does (tried): agent down, garbage, anything."""
        with host.agent(NO):
            done = host.call("reconnect", given)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert host.asked == []

    @pytest.mark.parametrize("given", [definition(), b"<garbage"])
    def test_release_tells_the_agent_and_never_fails(self, host, given):
        """There is nothing left to refuse."""
        assert host.call("release", given).returncode == 0

    def test_without_arguments(self, host):
        """A person who tries it does no harm."""
        assert subprocess.run([str(host.program)], input=b"", check=False).returncode == 0


class TestOtherVms:
    @pytest.mark.parametrize("operation", OPERATIONS)
    def test_are_none_of_its_business(self, host, operation):
        """Open for unmarked VMs, with the agent down, in no time."""
        done = host.call(operation, definition(mark=""))
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")

    def test_10_mb_of_definition_are_read(self, host):
        """Size alone is no reason to refuse somebody else's VM."""
        large = definition(mark="", more="<x>" + "y" * 10_000_000 + "</x>")
        assert host.call("prepare", large).returncode == 0

    @pytest.mark.parametrize("operation", ["prepare", "migrate", "restore"])
    def test_may_not_use_the_secret_of_a_protected_vm(self, host, operation):
        """A key that stands in libvirt for a moment serves the VM it was lent for (N75)."""
        (host.run / "lent" / SECRET).touch()
        done = host.call(operation, definition(mark=""))
        assert done.returncode == 1
        assert b"of a VM that is" in done.stderr

    @pytest.mark.parametrize("operation", ["prepare", "migrate", "restore"])
    def test_may_not_name_it_by_its_usage_either(self, host, operation):
        """N75: libvirt finds a secret by its usage as well as by its uuid."""
        given = definition(mark="").replace(
            f'uuid="{SECRET.upper()}"'.encode(), b'usage="ta:web:0"'
        )
        done = host.call(operation, given)
        assert done.returncode == 1
        assert b"of a VM that is" in done.stderr

    def test_encrypted_vms_are_those_that_name_a_secret_by_its_usage_too(self, host):
        """N75: a host that wants no key outside means any key."""
        given = definition(mark="").replace(f'uuid="{SECRET.upper()}"'.encode(), b'usage="mine"')
        assert host.call("prepare", given).returncode == 0
        host.configure(marks_required=True)
        assert host.call("prepare", given).returncode == 1

    def test_a_host_may_require_that_encrypted_vms_are_protected(self, host):
        """A setting of the host, for those who want no key outside."""
        host.configure(marks_required=True)
        assert host.call("prepare", definition(mark="")).returncode == 1
        assert host.call("prepare", b"<domain/>").returncode == 0

    @pytest.mark.parametrize(
        "elsewhere",
        [
            "<description>urn:trustauthority:vm:1</description>",
            '<vm id="web"/>',
            '<ta:vm xmlns:ta="urn:other" id="web"/>',
            "<!-- " + MARK + " -->",
        ],
    )
    def test_what_only_looks_like_the_mark_is_not_it(self, host, elsewhere):
        """The mark is an element of our namespace below metadata, nothing else."""
        assert host.call("prepare", definition(mark=elsewhere)).returncode == 0


class TestDoubt:
    @pytest.mark.parametrize(
        "given",
        [
            b"",
            b"not xml",
            b"<domain>",
            b"\xff\xfe\x00",
            b"<!DOCTYPE d [<!ENTITY a 'b'>]><domain>&a;</domain>",
            b"<domain>" * 50_000,
        ],
    )
    @pytest.mark.parametrize("operation", ["prepare", "migrate"])
    def test_what_cannot_be_read_is_refused(self, host, operation, given):
        """Whether it is marked can't be seen, so it does not start."""
        done = host.call(operation, given)
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.startswith(b"trustauthority: VM web: ")

    def test_settings_that_others_can_change_are_refused(self, host):
        """N60: whoever may write them chooses the agent."""
        host.config.chmod(0o666)
        done = host.call("prepare", definition())
        assert done.returncode == 1
        assert b"can be changed by others" in done.stderr

    @pytest.mark.parametrize("content", ["[]", "{", '{"run-dir": "/tmp"}'])
    def test_settings_that_are_wrong_are_refused(self, host, content):
        """A typing mistake must not open the host."""
        host.config.write_text(content)
        assert host.call("prepare", definition()).returncode == 1

    def test_the_environment_changes_nothing(self, host, tmp_path):
        """-I -S: no PYTHON variable, no site-packages, no folder of the caller."""
        (tmp_path / "json.py").write_text("raise SystemExit(0)")
        done = host.call("prepare", definition(), PYTHONPATH=str(tmp_path), PYTHONSTARTUP="x")
        assert done.returncode == 1


class TestWatchdog:
    """N87: outside the agent; the VM here is a process that carries its uuid."""

    UUID = "7b000000-0000-4000-8000-000000000001"

    @pytest.fixture
    def vm(self, host):
        # the uuid stands in its command line, as in QEMU's
        process = subprocess.Popen(_sleeper(self.UUID))
        (Path(host.settings["pid_dir"]) / "web.pid").write_text(str(process.pid))
        yield process
        process.kill()
        process.wait(5)

    def arm(self, host, in_ms: int) -> None:
        at_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000 + in_ms
        text = json.dumps({"name": "web", "uuid": self.UUID, "at_ms": at_ms, "more": 1})
        new = host.run / "vms" / "new"
        new.write_text(text)
        new.replace(host.run / "vms" / "web.json")

    def start(self, host) -> None:
        """As a start does: the agent's yes names what to watch."""
        with host.agent(b'{"ok": true, "watch": "web.json"}\n'):
            assert host.call("prepare", definition()).returncode == 0

    def test_ends_a_vm_whose_lease_nobody_renews(self, host, vm):
        """The hook started it, nobody waits for it, the agent is gone."""
        self.arm(host, 700)
        began = time.monotonic()
        self.start(host)
        assert vm.wait(10) == -9
        assert time.monotonic() - began > 0.5

    def test_a_renewal_counts(self, host, vm):
        """Re-armed before the end: the VM lives on until the new end."""
        self.arm(host, 1000)
        self.start(host)
        self.arm(host, 3000)
        with pytest.raises(subprocess.TimeoutExpired):
            vm.wait(2)
        assert vm.wait(10) == -9

    def test_a_removed_file_is_no_renewal(self, host, vm):
        """Whoever removes the file while QEMU lives gains nothing: the last deadline holds."""
        self.arm(host, 1500)
        self.start(host)
        time.sleep(0.7)  # until it was read once
        (host.run / "vms" / "web.json").unlink()
        assert vm.wait(10) == -9

    @pytest.mark.parametrize("uuid", ["7b000000-0000-4000-8000-000000000009", "00", ""])
    def test_another_process_under_that_pid_is_left_alone(self, host, uuid, tmp_path):
        """A process id is used again; the uuid in the command line says who it is."""
        process = subprocess.Popen(_sleeper(uuid))
        try:
            (Path(host.settings["pid_dir"]) / "web.pid").write_text(str(process.pid))
            self.arm(host, -1000)
            done = subprocess.run(
                [str(host.program), "--watchdog", str(host.run / "vms" / "web.json")],
                timeout=10,
                check=False,
            )
            assert done.returncode == 0
            assert process.poll() is None
        finally:
            process.kill()
            process.wait(5)


def _sleeper(uuid: str) -> list[str]:
    return ["/bin/sh", "-c", "while :; do sleep 0.2; done", "qemu", "-uuid", uuid]


def test_only_the_standard_library_is_imported():
    """It runs with -S: what is not in the standard library is not there."""
    imported = re.findall(r"^\s*(?:import|from) (\w+)", SOURCE.read_text(), re.MULTILINE)
    allowed = {"os", "sys", "time", "json", "socket", "stat", "xml", "fcntl", "signal", "syslog"}
    assert set(imported) <= allowed | {"__future__", "typing"}
