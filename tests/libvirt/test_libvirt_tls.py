"""Migration over a network between two hosts, its memory encrypted with the shipped settings."""

import shutil
import subprocess
from pathlib import Path

import pytest
from support.libvirt_hosts import DEPLOY, LibvirtHost, cabled
from support.two_hosts import VM, TwoHosts, eventually

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(300)]
PORT = 49152
"""The first of libvirt's ports for migration."""


@pytest.fixture
def cable(two: TwoHosts) -> tuple[str, str]:
    """The hosts' addresses on a network of their own."""
    one, other = two.libvirt.values()
    for host in (one, other):
        host.stop()
        host.start()
    return cabled(one, other)


LISTENER = """
import socket, sys
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
wire.bind(("ta0", 0))
print("listening", flush=True)
while True:
    sys.stdout.buffer.write(wire.recv(65535))
    sys.stdout.buffer.flush()
"""


def overheard(host: LibvirtHost, into: Path) -> "subprocess.Popen[bytes]":
    """A listener on a host's end of the cable; what it hears goes into a file."""
    words = ["nsenter", "-t", str(host.process.pid), "-n", "/usr/bin/python3", "-c", LISTENER]
    with into.open("wb") as out:
        listener = subprocess.Popen(words, stdout=out)
    eventually(into.read_bytes, "somebody listens")
    return listener


@pytest.mark.parametrize("tls", [True, False])
def test_over_the_network(two: TwoHosts, cable: tuple[str, str], tmp_path: Path, tls: bool) -> None:
    """With TLS a listener does not see the guest's memory; without it she does (so the test can see)."""
    two.started()
    listener = overheard(two.libvirt["host-b"], tmp_path / "heard")
    words = [
        "--migrate-uri",
        f"tcp://{cable[1]}:{PORT}",
        "--unsafe",
        *(() if tls else ("--no-tls",)),
    ]
    done = two.move("host-a", "host-b", *words)
    listener.kill()
    listener.wait(5)
    heard = (tmp_path / "heard").read_bytes()
    assert done.code == 0, done.said
    two.runs_on("host-b")
    assert len(heard) > 100_000
    assert (f"tick of {VM}".encode() in heard) is not tls


def test_a_certificate_of_another_authority_is_refused(
    two: TwoHosts, cable: tuple[str, str], tmp_path: Path
) -> None:
    """Whoever poses as the destination's QEMU gets no memory; the VM stays."""
    two.started()
    folder = two.libvirt["host-a"].folder / "etc" / "migrate"
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    script = DEPLOY / "migration-certificate.sh"
    subprocess.run([script, "ca", tmp_path / "other"], check=True)
    subprocess.run([script, "host", tmp_path / "other", "host-a", cable[0]], check=True)
    shutil.copytree(tmp_path / "other" / "host-a", folder, dirs_exist_ok=True)
    try:
        words = ("--migrate-uri", f"tcp://{cable[1]}:{PORT}", "--unsafe")
        done = two.move("host-a", "host-b", *words)
    finally:
        shutil.copytree(kept, folder, dirs_exist_ok=True)
    assert done.code == 1, done.said
    two.runs_on("host-a")
