"""A TCP relay on the loopback that is late, cuts, truncates or lies, for the tests of KMS clients.

It passes bytes on as they are, or ends TLS on one or both sides, so that answers can be changed. One
thread per direction, but one for both where TLS ends here: a TLS connection is no thing that two threads
may use at a time. Nothing outlives ``close``.
"""

import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

_PIECE = 1 << 16
_IDLE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What the relay does to connections that are made from now on."""

    delay_s: float = 0.0
    """Before each piece of an answer."""
    refuse: bool = False
    """Reset each connection."""
    cut_after: int | None = None
    """Bytes of the answers of a connection, after which it ends."""
    rewrite: Callable[[bytes], bytes] | None = None
    """Applied to each piece of an answer."""


class Relay:
    """Listens on a port of its own and passes on to ``target``."""

    def __init__(
        self,
        target: tuple[str, int],
        *,
        serve: ssl.SSLContext | None = None,
        ask: ssl.SSLContext | None = None,
    ) -> None:
        self._target, self._serve, self._ask = target, serve, ask
        self.behaviour = Behaviour()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._connections: list[_Connection] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._listener.settimeout(0.1)
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    @contextmanager
    def behaving(self, **behaviour: object) -> Iterator[None]:
        """Misbehave for the time of a block."""
        self.behaviour = Behaviour(**behaviour)
        self._drop()
        try:
            yield
        finally:
            self.behaviour = Behaviour()
            self._drop()

    def close(self) -> None:
        self._stopping.set()
        self._drop()
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _drop(self) -> None:
        """End the connections that there are, and whatever waits in them."""
        with self._lock:
            connections, self._connections = self._connections, []
        for connection in connections:
            connection.end()

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                near, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            behaviour = self.behaviour
            if behaviour.refuse:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                near.close()
                continue
            self._start(self._relay, near, behaviour)

    def _relay(self, near: socket.socket, behaviour: Behaviour) -> None:
        near.settimeout(_IDLE_S)
        try:
            if self._serve is not None:
                near = self._serve.wrap_socket(near, server_side=True)
            far = socket.create_connection(self._target, timeout=_IDLE_S)
        except OSError:
            near.close()
            return
        try:
            if self._ask is not None:
                far = self._ask.wrap_socket(far, server_hostname="127.0.0.1")
        except OSError:
            near.close()
            return
        connection = _Connection(near, far, behaviour)
        with self._lock:
            self._connections.append(connection)
        connection.run()


class _Connection:
    """Two sockets and what goes between them."""

    def __init__(self, near: socket.socket, far: socket.socket, behaviour: Behaviour) -> None:
        self._near, self._far, self._behaviour = near, far, behaviour
        self._left = behaviour.cut_after
        self._ended = threading.Event()

    def end(self) -> None:
        self._ended.set()
        for each in (self._near, self._far):
            with suppress(OSError):
                # not the method of SSLSocket, which takes away what another thread is using
                socket.socket.shutdown(each, socket.SHUT_RDWR)

    def run(self) -> None:
        """Pass on until one side ends; both are closed then."""
        back: threading.Thread | None = None
        try:
            with suppress(OSError, ValueError):
                if any(isinstance(each, ssl.SSLSocket) for each in (self._near, self._far)):
                    self._alternate()
                    return
                back = threading.Thread(target=self._answers, daemon=True)
                back.start()
                while piece := self._near.recv(_PIECE):
                    self._far.sendall(piece)
        finally:
            self.end()
            if back is not None:
                back.join()
            self._near.close()
            self._far.close()

    def _alternate(self) -> None:
        """Both directions in one thread."""
        sides = (self._near, self._far)
        while True:
            waiting = [each for each in sides if isinstance(each, ssl.SSLSocket) and each.pending()]
            ready = waiting or select.select(sides, (), (), _IDLE_S)[0]
            if not ready:
                return
            for source in ready:
                piece = _receive_now(source)
                if piece == b"":
                    return
                if piece and source is self._near:
                    self._far.sendall(piece)
                elif piece and not self._answer(piece):
                    return

    def _answers(self) -> None:
        with suppress(OSError, ValueError):
            while (piece := self._far.recv(_PIECE)) and self._answer(piece):
                pass
        self.end()

    def _answer(self, piece: bytes) -> bool:
        """Pass a piece of an answer on, as the behaviour wants it; whether to go on."""
        behaviour = self._behaviour
        if behaviour.delay_s and self._ended.wait(behaviour.delay_s):
            return False
        if behaviour.rewrite is not None:
            piece = behaviour.rewrite(piece)
        if self._left is not None:
            piece, self._left = piece[: self._left], self._left - len(piece)
        self._near.sendall(piece)
        return self._left is None or self._left > 0


def _receive_now(source: socket.socket) -> bytes | None:
    """What is there; None when it was only something of TLS itself, such as a session ticket."""
    source.settimeout(0.0)
    try:
        return source.recv(_PIECE)
    except (BlockingIOError, ssl.SSLWantReadError):
        return None
    finally:
        source.settimeout(_IDLE_S)


def free_port() -> int:
    """A port that nobody had a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])
