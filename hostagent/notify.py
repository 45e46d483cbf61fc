"""Tell systemd how the service is (sd_notify(3)): a datagram to ``$NOTIFY_SOCKET``."""

import os
import socket


class Notifier:
    """Sends state lines; does nothing when systemd did not ask for them, never waits for it."""

    def __init__(self, address: str | None = None) -> None:
        given = os.environ.get("NOTIFY_SOCKET", "") if address is None else address
        self._address = "\0" + given[1:] if given.startswith("@") else given
        self._status = ""
        self._told_at_ms = 0

    def tell(self, *lines: str) -> None:
        """Send lines such as ``READY=1``; a systemd that does not listen is not our problem."""
        if not self._address:
            return
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with socket.socket(socket.AF_UNIX, kind) as sender:
            try:
                sender.sendto("\n".join(lines).encode(), self._address)
            except OSError:
                return

    def alive(self, status: str, now_ms: int) -> None:
        """Say that the loop turns: when the status changed, else at most once a second."""
        if status == self._status and now_ms - self._told_at_ms < 1000:
            return
        self._status, self._told_at_ms = status, now_ms
        self.tell("WATCHDOG=1", f"STATUS={status}")
