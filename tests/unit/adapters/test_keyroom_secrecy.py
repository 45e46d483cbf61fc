"""N69: plaintext keys are in the child only: not in the parent's memory, a core, a log, /proc."""

import base64
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from support.keyroom_orders import AAD, RELEASE, open_grant, write_release_key
from support.keyroom_watch import PATIENCE_S, Parent, current_children, found_in_memory, proc
from support.kms_process import running_kms

from trustauthority.adapters.keyroom.child import Room
from trustauthority.adapters.kms.kmip import KmipKms


@pytest.fixture(scope="module")
def kms(tmp_path_factory):
    with running_kms(tmp_path_factory.mktemp("kms") / "kms") as running:
        write_release_key(running.folder / "release.key")
        yield running


@pytest.fixture(scope="module")
def parent(kms):
    made = Parent(kms.settings(), kms.folder)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def secrets(kms, parent):
    """Every form of the two keys that could lie about, known to this test only."""
    provider, kek_id = KmipKms(kms.settings()), parent.news["kek_id"]
    kek = bytes(provider.get_kek(kek_id))
    vm_key = bytes(provider.unwrap(kek_id, bytes.fromhex(parent.news["wrapped"]), AAD))
    assert open_grant(bytes.fromhex(parent.news["grant"])) == vm_key
    release = RELEASE.private_numbers().private_value.to_bytes(32, "big")
    plain = {
        "VM key": vm_key,
        "its entropy": base64.urlsafe_b64decode(vm_key + b"="),
        "KEK": kek,
    }
    # the release key is a constant of the tests here: its PEM file is what may not be read
    assert release not in plain.values()
    return {
        f"{name}, {form}": value
        for name, secret in plain.items()
        for form, value in {
            "raw": secret,
            "hex": secret.hex().encode(),
            "base64": base64.b64encode(secret).rstrip(b"="),
        }.items()
    }


class TestParent:
    def test_no_key_is_in_its_memory_while_it_releases(self, parent, secrets):
        """N69: five looks during hundreds of releases; the canary shows that the search works."""
        canary = bytes(byte ^ 0xFF for byte in parent.news["canary"])
        for _ in range(5):
            assert parent.process.poll() is None, parent.log.read_text()
            assert found_in_memory(parent.process.pid, secrets | {"canary": canary}) == {"canary"}
            time.sleep(0.1)  # another moment of another release

    def test_the_release_keys_file_is_not_in_its_memory(self, kms, parent):
        """Only the child reads the release key."""
        pem = (kms.folder / "release.key").read_bytes()
        body = b"".join(pem.splitlines()[1:-1])[:60]
        assert found_in_memory(parent.process.pid, {"PEM": body}) == set()

    def test_no_key_is_in_its_output_or_its_environment(self, kms, parent, secrets):
        """N69: log, argv and environ of parent and children, and the files around."""
        news = json.dumps(parent.news).encode()
        texts = [news, parent.log.read_bytes(), (kms.folder / "stderr.log").read_bytes()]
        for pid in [parent.process.pid, *current_children(parent.process.pid)]:
            texts.append(proc(pid, "cmdline"))
            texts.append(proc(pid, "environ"))
        assert not [name for name, needle in secrets.items() if any(needle in t for t in texts)]


class TestChild:
    def test_it_can_write_no_core_and_gain_nothing(self, parent):
        """Limits hold in the kernel, for the hard limit too."""
        confined = [wait_until_confined(pid) for pid in current_children(parent.process.pid)]
        assert any(confined)

    def test_its_command_line_and_environment_say_nothing(self, parent):
        """Settings go through the pipe; no variable changes what it loads."""
        for pid in current_children(parent.process.pid):
            arguments = proc(pid, "cmdline").split(b"\0")[1:-1]
            if arguments:
                assert arguments == [
                    b"-I",
                    b"-X",
                    b"utf8",
                    b"-m",
                    b"trustauthority.adapters.keyroom.child",
                ]
            assert proc(pid, "environ") == b""

    def test_its_memory_is_closed_to_its_own_user(self):
        """PR_SET_DUMPABLE: a stolen account of the service does not read keys out of /proc."""
        program = (
            "import os\n"
            "from trustauthority.adapters.keyroom.confine import confine\n"
            "if os.geteuid() == 0:\n"
            "    os.setgid(65534); os.setuid(65534)\n"
            "import ctypes; ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n"
            "open('/proc/self/mem', 'rb').close()\n"
            "print('open')\n"
            "confine()\n"
            "try:\n"
            "    open('/proc/self/mem', 'rb').close()\n"
            "except PermissionError:\n"
            "    print('closed')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stdout.split() == ["open", "closed"]

    def test_a_crash_leaves_no_core(self, tmp_path):
        """N69: even where cores are wanted."""
        program = (
            "import os, resource, sys\n"
            "from trustauthority.adapters.keyroom.confine import confine\n"
            "hard = resource.getrlimit(resource.RLIMIT_CORE)[1]\n"
            "resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))\n"
            "confine()\n"
            "os.kill(os.getpid(), 6)\n"
        )
        child = os.fork()
        if child == 0:
            os.chdir(tmp_path)
            os.execv(sys.executable, [sys.executable, "-c", program])  # noqa: S606
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGABRT
        assert not os.WCOREDUMP(status)
        assert list(tmp_path.iterdir()) == []

    def test_it_ends_when_its_parent_is_killed(self, kms):
        """No orphan keeps keys: the pipe ends, and the kernel's alarm is behind that."""
        mortal = Parent(kms.settings(), kms.folder)
        try:
            children = current_children(mortal.process.pid)
            assert children
        finally:
            mortal.stop()
        deadline = time.monotonic() + PATIENCE_S
        while any(proc(pid, "cmdline") for pid in children):
            assert time.monotonic() < deadline, "a child outlived its parent"
            time.sleep(0.05)

    @pytest.mark.parametrize(
        "message",
        [
            {},
            {"order": "__class__"},
            {"order": "release"},
            {"order": "create_key", "provider": "canary-secret"},
            {"order": "release", "release": {"binding": "canary-secret"}},
            {"order": "health", "provider": ["canary-secret"]},
        ],
    )
    def test_its_errors_quote_nothing(self, kms, message):
        """An exception of a library may hold what it choked on: only its type gets out."""
        room = Room(
            {
                "release_key": str(kms.folder / "release.key"),
                "kill_after_s": 60,
                "providers": {},
                "warm": [],
                "escrow": None,
            }
        )
        try:
            answer = room.answer(message)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert list(answer) == ["error"]
        assert "canary" not in answer["error"]


def wait_until_confined(pid):
    """True once it has its limits; False when it ended first (its batch was full)."""
    deadline = time.monotonic() + PATIENCE_S
    while limits := proc(pid, "limits").decode():
        core = next((x for x in limits.splitlines() if x.startswith("Max core file size")), "")
        if core.split()[4:6] == ["0", "0"] and b"NoNewPrivs:\t1" in proc(pid, "status"):
            return True
        assert time.monotonic() < deadline, "a child never confined itself"
        time.sleep(0.02)
    return False
