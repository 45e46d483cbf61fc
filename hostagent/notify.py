"""Tell systemd how the service is (sd_notify(3)): a datagram to ``$NOTIFY_SOCKET``."""

import os
import socket


class Notifier:
    """Sends state lines; does nothing when systemd did not ask for them."""

    def __init__(self, address: str | None = None) -> None:
        given = os.environ.get("NOTIFY_SOCKET", "") if address is None else address
        self._address = "\0" + given[1:] if given.startswith("@") else given

    def tell(self, *lines: str) -> None:
        """Send lines such as ``READY=1``; a systemd that does not listen is not our problem."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            try:
                sender.sendto("\n".join(lines).encode(), self._address)
            except OSError:
                return


def watchdog_interval_s() -> float | None:
    """Half of ``$WATCHDOG_USEC``, when it is meant for this process."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(usec) / 2_000_000 if mine and usec.isdigit() and int(usec) > 0 else None
