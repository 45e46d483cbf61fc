"""The client talks TLS 1.3, and only to the pinned CA.

Each case runs ``ta`` as its own process, since gRPC reads its settings when it is first imported.
"""

import os
import socket
import ssl
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from support.client_certificates import CertificateAuthority, write_identity


@pytest.fixture
def ca(tmp_path: Path) -> CertificateAuthority:
    ca = CertificateAuthority("test")
    (tmp_path / "ca.pem").write_bytes(ca.pem)
    for name in ("server", "me"):
        write_identity(tmp_path, ca, name, left=timedelta(days=3_650))
    return ca


def handshake(folder: Path, version: ssl.TLSVersion) -> tuple[str, str]:
    """What a server that speaks at most ``version`` saw, and what ta said."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    seen: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)

        def serve() -> None:
            connection, _ = listener.accept()
            connection.settimeout(10)
            try:
                with connection, context.wrap_socket(connection, server_side=True) as secure:
                    seen.append(str(secure.version()))
            except OSError as error:
                seen.append(f"failed: {error}")

        thread = threading.Thread(target=serve)
        thread.start()
        port = listener.getsockname()[1]
        said = run_ta(folder, port)
        thread.join(40)
    return seen[0], said


def run_ta(folder: Path, port: int) -> str:
    """Run ``ta identity renew``, which is tried once, against a port of this machine."""
    contexts = folder / "contexts.toml"
    contexts.write_text(
        f'current = "t"\n[contexts.t]\nserver = "127.0.0.1:{port}"\nca = "ca.pem"\n'
        'certificate = "me.pem"\nkey = "me.key"\n'
    )
    contexts.chmod(0o600)
    done = subprocess.run(
        [sys.executable, "-m", "trustauthority.cli.app", "identity", "renew", "--timeout", "10s"],
        env={**os.environ, "TA_CONTEXTS_FILE": str(contexts)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in {4, 5}, done.stderr
    return done.stderr


def test_tls_13_is_spoken(tmp_path: Path, ca: CertificateAuthority) -> None:
    """Design 9: the handshake ends in TLS 1.3 (the server hangs up afterwards)."""
    version, said = handshake(tmp_path, ssl.TLSVersion.TLSv1_3)
    assert version == "TLSv1.3"
    assert "[UNAVAILABLE]" in said


def test_tls_12_is_not_spoken(tmp_path: Path, ca: CertificateAuthority) -> None:
    """Design 9: a server that offers no more than TLS 1.2 gets no connection."""
    version, said = handshake(tmp_path, ssl.TLSVersion.TLSv1_2)
    assert version.startswith("failed")
    assert "[UNAVAILABLE]" in said


def test_a_stranger_s_server_is_recognised(tmp_path: Path, ca: CertificateAuthority) -> None:
    """N02: the certificate of another CA ends the handshake, with a reason of its own."""
    write_identity(tmp_path, CertificateAuthority("x"), "server", left=timedelta(days=3_650))
    version, said = handshake(tmp_path, ssl.TLSVersion.TLSv1_3)
    assert version.startswith("failed")
    assert "[AUTHORITY_UNVERIFIED]" in said
