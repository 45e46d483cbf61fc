"""Tell systemd how a process is (sd_notify).

Stage: edge. Does nothing where no systemd asked for it; a datagram, so that nothing waits for an answer.
"""

import os
import socket


def notify(state: str) -> None:
    """Tell systemd (sd_notify); nothing happens where there is none."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect(address)
        channel.sendall(state.encode())
