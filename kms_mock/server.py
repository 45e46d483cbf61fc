"""Serve real KMIP over mTLS on 127.0.0.1, with PyKMIP's engine, and misbehave when told to.

Stage: development only. PyKMIP parses, executes and encodes every message; here are the listener
(PyKMIP's own takes 10 s to stop, starts another process and reads its signals), the faults, and the
words that say what this is. Guarantees: loopback only; TLS 1.2 or 1.3 with a client certificate; stops
within 2 s; key bytes never in a log. Does NOT keep keys safe: they lie in the clear in ``kms.db``.
"""

import copy
import secrets
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kmip
from kmip.core import exceptions, policy
from kmip.core.messages import contents
from kmip.services.server.engine import KmipEngine
from kmip.services.server.session import KmipSession

from kms_mock import pki
from kms_mock.faults import Fault, FaultKind, read_fault

ADDRESS = "127.0.0.1"
VENDOR = f"kms-mock: DEVELOPMENT MOCK, NOT A KMS, keys in the clear (PyKMIP {kmip.__version__})"
DATABASE = "kms.db"
_CIPHERS = "ECDHE+AESGCM"
_POLL_S = 0.2
_IDLE_S = 60.0
_MAX_REQUEST = 1 << 20


class MockKms:
    """A listener and its sessions."""

    def __init__(self, folder: Path, port: int, tell: Callable[[str], None]) -> None:
        """Bind to a port of the loopback; 0 takes a free one."""
        self._folder = folder
        self._tell = tell
        self._context = _tls(folder)
        self._stopping = threading.Event()
        self._engine = _Engine(folder / DATABASE, self.fault)
        self._listener = socket.create_server((ADDRESS, port), backlog=64)
        self._listener.settimeout(_POLL_S)
        self._sessions = 0

    @property
    def port(self) -> int:
        """The port that was bound."""
        return int(self._listener.getsockname()[1])

    def fault(self) -> Fault:
        """The fault of this moment; a control file that can't be read means down."""
        try:
            return read_fault(self._folder)
        except (ValueError, OSError) as failure:
            self._tell(f"the fault file is unusable, so I am down: {failure}")
            return Fault(kind=FaultKind.DOWN)

    def stop(self) -> None:
        """End ``serve`` and all delays."""
        self._stopping.set()

    def serve(self) -> None:
        """Accept connections until ``stop``."""
        with self._listener:
            while not self._stopping.is_set():
                try:
                    connection, address = self._listener.accept()
                except TimeoutError:
                    continue
                self._start(connection, address)

    def _start(self, connection: socket.socket, address: tuple[str, int]) -> None:
        if self.fault().kind is FaultKind.DOWN:
            _reset(connection)
            return
        connection.settimeout(_IDLE_S)
        context = self._context
        if self.fault().kind is FaultKind.REVOKED:
            context = _tls(self._folder, revoked=pki.revoke_all(self._folder))
        try:
            secure = context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        except OSError:  # gone already
            connection.close()
            return
        self._sessions += 1
        session = _Session(
            self._engine, secure, address, str(self._sessions), self.fault, self._stopping
        )
        session.start()


class _Engine(KmipEngine):  # type: ignore[misc]  # PyKMIP has no types
    """PyKMIP's engine, which introduces itself and may answer with another key."""

    def __init__(self, database: Path, fault: Callable[[], Fault]) -> None:
        super().__init__(policies=copy.deepcopy(policy.policies), database_path=str(database))
        self._fault = fault

    def _process_query(self, payload: Any) -> Any:
        response = super()._process_query(payload)
        if response.vendor_identification is not None:
            response.vendor_identification = VENDOR
        return response

    def _get_object_with_access_controls(self, uid: str, operation: Any) -> Any:
        if self._fault().kind is FaultKind.WRONG_TENANT:
            raise exceptions.PermissionDenied("Could not locate object")
        return super()._get_object_with_access_controls(uid, operation)

    def _build_response(self, version: Any, batch_items: Any) -> Any:
        response = super()._build_response(version, batch_items)
        fault = self._fault()
        if fault.kind is FaultKind.SKEW:
            stamp = contents.TimeStamp(int(time.time() + fault.seconds))
            response.response_header.time_stamp = stamp
        return response

    def _process_get(self, payload: Any) -> Any:
        response = super()._process_get(payload)
        if self._fault().kind is FaultKind.WRONG_KEY:
            material = response.secret.key_block.key_value.key_material
            material.value = secrets.token_bytes(len(material.value))
        return response


class _Session(KmipSession):  # type: ignore[misc]  # PyKMIP has no types
    """PyKMIP's session with an end when the peer is gone, and the faults of answers."""

    def __init__(
        self,
        engine: KmipEngine,
        connection: ssl.SSLSocket,
        address: tuple[str, int],
        name: str,
        fault: Callable[[], Fault],
        stopping: threading.Event,
    ) -> None:
        super().__init__(engine, connection, address, name=name)
        self.daemon = True
        self._fault = fault
        self._stopping = stopping

    def run(self) -> None:
        try:
            super().run()
        except OSError:  # the peer left while PyKMIP said goodbye
            self._connection.close()

    def _receive_request(self) -> Any:
        try:
            return super()._receive_request()
        except (OSError, ValueError):  # PyKMIP would ask the dead connection again, for ever
            raise exceptions.ConnectionClosed from None

    def _receive_bytes(self, message_size: int) -> bytes:
        if message_size > _MAX_REQUEST:
            raise exceptions.ConnectionClosed
        return bytes(super()._receive_bytes(message_size))

    def _send_response(self, data: bytes) -> None:
        fault = self._fault()
        try:
            match fault.kind:
                case FaultKind.DOWN:
                    _reset(self._connection)
                    raise exceptions.ConnectionClosed
                case FaultKind.SLOW:
                    self._stopping.wait(fault.seconds)
                case FaultKind.TRUNCATED:
                    self._connection.sendall(bytes(data)[: len(data) // 2])
                    raise exceptions.ConnectionClosed
                case _:  # the others are in the engine or in TLS
                    pass
            self._connection.sendall(bytes(data))
        except OSError:
            raise exceptions.ConnectionClosed from None


def _tls(folder: Path, *, revoked: Path | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(folder / "ca.pem")
    if revoked is not None:
        context.load_verify_locations(revoked)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    return context


def _reset(connection: socket.socket) -> None:
    """Close with a TCP reset, as the machine of a dead process does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
