"""The kms-mock command as people and the demo use it."""

import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.kms_process import running_kms

from trustauthority.adapters.kms.kmip import KmipKms
from trustauthority.errors import KmsUnavailable
from trustauthority.model.kms import HealthState


@pytest.fixture(scope="module")
def kms(tmp_path_factory):
    with running_kms(tmp_path_factory.mktemp("kms") / "kms") as running:
        yield running


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-c", "from kms_mock.main import main; main()", *map(str, arguments)],
        capture_output=True,
        timeout=60,
        check=False,
    )


class TestServe:
    def test_it_says_loudly_that_it_is_a_mock(self, kms):
        """Nobody runs it by mistake."""
        assert "*** THIS IS A MOCK" in kms.stderr

    def test_it_listens_on_the_loopback_only(self, kms):
        """A mock that keeps keys in the clear is no service for others."""
        wanted = f"{kms.port:04X}"
        sockets = [
            line.split()[1]
            for table in ("tcp", "tcp6")
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
            if line.split()[1].endswith(f":{wanted}") and line.split()[3] == "0A"
        ]
        assert sockets == [f"0100007F:{wanted}"]

    def test_its_files_are_private(self, kms):
        """The database has keys in the clear: at least nobody else reads it."""
        KmipKms(kms.settings()).create_kek("kek")
        assert (kms.folder / "kms.db").stat().st_mode & 0o077 == 0

    def test_a_key_is_in_no_log(self, kms):
        """N69: PyKMIP writes key bytes at DEBUG; nothing of it reaches stderr."""
        kek = KmipKms(kms.settings()).get_kek(KmipKms(kms.settings()).create_kek("kek"))
        assert kek.hex() not in kms.stderr
        assert repr(bytes(kek)) not in kms.stderr

    def test_a_fault_file_with_nonsense_means_down(self, kms):
        """A typing error never looks like a KMS in good order."""
        with kms.fault("none"):
            (kms.folder / "fault").write_text("bogus")
            with pytest.raises(KmsUnavailable):
                KmipKms(kms.settings()).get_kek("1")
        assert "fault file is unusable" in kms.stderr

    def test_many_clients_at_once_get_their_own_answers(self, kms):
        """Sessions share an engine, not their answers."""
        uid = [KmipKms(kms.settings()).create_kek(f"k{i}") for i in range(4)]
        keks = {u: KmipKms(kms.settings()).get_kek(u) for u in uid}
        found = []

        def fetch(u):
            found.extend((u, KmipKms(kms.settings()).get_kek(u)) for _ in range(5))

        threads = [threading.Thread(target=fetch, args=(u,)) for u in uid]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(found) == 20
        assert all(keks[u] == kek for u, kek in found)

    def test_it_outlives_peers_that_leave(self, kms):
        """A peer that hangs up in the middle of TLS or of a request stops nothing."""
        context = ssl.create_default_context(cafile=kms.folder / "ca.pem")
        context.load_cert_chain(kms.folder / "client.pem", kms.folder / "client.key")
        for sent in (b"", b"\x42\x00\x78\x01\x00\x00\x00\x40half", b"\xff" * 16):
            raw = socket.create_connection(("127.0.0.1", kms.port), 5)
            with context.wrap_socket(raw, server_hostname="localhost") as connection:
                connection.sendall(sent)
        with socket.create_connection(("127.0.0.1", kms.port), 5) as raw:
            raw.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert KmipKms(kms.settings()).health().state is HealthState.OK

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_it_stops_within_two_seconds(self, tmp_path, number):
        """Even while an answer is being delayed."""
        with running_kms(tmp_path / "kms") as mortal:
            with mortal.fault("slow:60"):
                asking = threading.Thread(
                    target=KmipKms(mortal.settings(timeout_s=5)).health, daemon=True
                )
                asking.start()
                started = time.monotonic()
                assert mortal.kill(number) == 0
                assert time.monotonic() - started < 2
            asking.join(10)


class TestExitCodes:
    def test_a_new_folder_is_made_once(self, tmp_path):
        """Init never replaces a KMS."""
        assert command("init", tmp_path / "kms").returncode == 0
        again = command("init", tmp_path / "kms")
        assert again.returncode == 1
        assert b"already" in again.stderr

    def test_faults_are_set_from_the_command_line(self, kms):
        """The demo kills and revives the KMS without touching its process."""
        assert command("fault", kms.folder, "slow:3").returncode == 0
        assert (kms.folder / "fault").read_text() == "slow:3\n"
        assert command("fault", kms.folder, "none").returncode == 0

    @pytest.mark.parametrize(
        ("arguments", "code"),
        [
            (("fault", "FOLDER", "bogus"), 2),
            (("fault", "/nonexistent/folder", "down"), 1),
            (("serve", "/nonexistent/folder"), 1),
            (("serve", "FOLDER", "--fault", "bogus"), 2),
            (("serve", "FOLDER", "--port", "x"), 2),
            (("issue", "FOLDER", "../up"), 2),
            (("issue", "FOLDER", "client"), 1),
            (("issue", "/nonexistent/folder", "x"), 1),
        ],
    )
    def test_wrong_calls_end_with_a_code_and_a_sentence(self, kms, arguments, code):
        """No traceback for a typing error."""
        given = [kms.folder if argument == "FOLDER" else argument for argument in arguments]
        done = command(*given)
        assert done.returncode == code
        assert b"Traceback" not in done.stderr + done.stdout

    def test_a_taken_port_is_told(self, kms, tmp_path):
        """Two mocks on one port: the second says so."""
        assert command("init", tmp_path / "kms").returncode == 0
        done = command("serve", tmp_path / "kms", "--port", kms.port)
        assert done.returncode == 1
        assert b"can't be had" in done.stderr
