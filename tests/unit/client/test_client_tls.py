"""The client talks TLS 1.3, and only to the pinned CA."""

import socket
import ssl
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from support.client_certificates import CertificateAuthority, write_identity

from trustauthority.client.channel import Authority
from trustauthority.client.checkpoints import CheckpointKeeper
from trustauthority.client.contexts import Context
from trustauthority.client.errors import ClientError
from trustauthority.client.reasons import AUTHORITY_UNVERIFIED
from trustauthority.v1 import admin_pb2 as admin
from trustauthority.v1.admin_pb2_grpc import StatusServiceStub


def handshakes(folder: Path, ca: CertificateAuthority, version: ssl.TLSVersion) -> list[str]:
    """What a server that speaks at most ``version`` saw: a negotiated version, or the failure."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    seen: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        port = listener.getsockname()[1]

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(5)
                try:
                    with context.wrap_socket(connection, server_side=True) as secure:
                        seen.append(str(secure.version()))
                except (ssl.SSLError, OSError) as error:
                    seen.append(f"failed: {type(error).__name__}")

        thread = threading.Thread(target=serve)
        thread.start()
        keeper = CheckpointKeeper(path=folder / "kept", audit_key=None)
        me = Context(
            name="t",
            server=f"127.0.0.1:{port}",
            ca=folder / "ca.pem",
            certificate=folder / "me.pem",
            key=folder / "me.key",
        )
        with Authority(me, keeper=keeper, timeout_s=3) as authority:
            service = authority.on(StatusServiceStub)
            with pytest.raises(ClientError) as caught:
                service.write(lambda s: s.GetStatus, admin.GetStatusRequest())
        thread.join(10)
    seen.append(caught.value.reason)
    return seen


@pytest.fixture
def ca(tmp_path: Path) -> CertificateAuthority:
    ca = CertificateAuthority("test")
    (tmp_path / "ca.pem").write_bytes(ca.pem)
    for name in ("server", "me"):
        write_identity(tmp_path, ca, name, left=timedelta(days=3_650))
    return ca


def test_tls_13_is_spoken(tmp_path: Path, ca: CertificateAuthority) -> None:
    """Design 9: the handshake ends in TLS 1.3 (the server hangs up afterwards)."""
    assert handshakes(tmp_path, ca, ssl.TLSVersion.TLSv1_3)[0] == "TLSv1.3"


def test_tls_12_is_not_spoken(tmp_path: Path, ca: CertificateAuthority) -> None:
    """Design 9: a server that offers no more than TLS 1.2 gets no connection."""
    assert handshakes(tmp_path, ca, ssl.TLSVersion.TLSv1_2)[0].startswith("failed")


def test_a_stranger_s_server_is_recognised(tmp_path: Path, ca: CertificateAuthority) -> None:
    """N02: the certificate of another CA ends the handshake, with a reason of its own."""
    write_identity(tmp_path, CertificateAuthority("x"), "server", left=timedelta(days=3_650))
    seen = handshakes(tmp_path, ca, ssl.TLSVersion.TLSv1_3)
    assert seen[-1] == AUTHORITY_UNVERIFIED
