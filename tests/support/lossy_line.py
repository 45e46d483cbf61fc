"""A line between a host and the authority that loses what a test wants it to lose.

Stage: test support. Forwards TCP as it is (the TLS inside stays end to end). ``loses`` drops what
flows in one direction: «answers» is the worst, since the authority has decided and nobody knows.
Bytes lost from a TLS stream can't be made up for, so each connection that lost some is cut when
the line is mended.
"""

import asyncio
import threading
from enum import StrEnum


class Loses(StrEnum):
    """What does not arrive."""

    NOTHING = "nothing"
    ANSWERS = "answers"
    REQUESTS = "requests"
    ALL = "all"
    """The authority can't be reached at all: connections are refused."""


class LossyLine:
    """Forwards from ports of its own to addresses; runs in a thread."""

    def __init__(self, addresses: dict[str, str]) -> None:
        self._targets = addresses
        self._loses = Loses.NOTHING
        self.was_down = False
        """Whether connections were refused; whoever cares sets it back."""
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self.addresses: dict[str, str] = {}
        """Where to connect instead, by name."""
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        if not ready.wait(10):
            raise AssertionError("the line is not up")

    def loses(self, what: Loses) -> None:
        """From now on lose this."""
        self.was_down = self.was_down or what is Loses.ALL
        asyncio.run_coroutine_threadsafe(self._change(what), self._loop).result(5)

    def mend(self) -> None:
        """Lose nothing; connections that lost something are cut."""
        self.loses(Loses.NOTHING)

    def close(self) -> None:
        """End it."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    async def _change(self, what: Loses) -> None:
        if what in {Loses.NOTHING, Loses.ALL} and self._loses is not what:
            for writer in tuple(self._open):
                writer.transport.abort()
        self._loses = what

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        ready.set()
        self._loop.run_forever()
        for server in self._servers:
            server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _listen(self) -> None:
        self._servers = []
        for name, target in self._targets.items():
            host, _, port = target.rpartition(":")
            server = await asyncio.start_server(
                lambda r, w, host=host, port=port: self._converse(r, w, host, int(port)),
                "127.0.0.1",
                0,
            )
            self._servers.append(server)
            self.addresses[name] = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _converse(
        self, near: asyncio.StreamReader, near_out: asyncio.StreamWriter, host: str, port: int
    ) -> None:
        if self._loses is Loses.ALL:
            near_out.transport.abort()
            return
        try:
            far, far_out = await asyncio.open_connection(host, port)
        except OSError:
            near_out.transport.abort()
            return
        ends = {near_out, far_out}
        self._open |= ends
        try:
            await asyncio.gather(
                self._forward(near, far_out, Loses.REQUESTS),
                self._forward(far, near_out, Loses.ANSWERS),
            )
        except OSError:
            pass
        finally:
            self._open -= ends
            for end in ends:
                end.transport.abort()

    async def _forward(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, lost_when: Loses
    ) -> None:
        while part := await source.read(65536):
            if self._loses is not lost_when:
                target.write(part)
                await target.drain()
        target.write_eof()
