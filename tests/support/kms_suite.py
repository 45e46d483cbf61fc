"""The peers of the KMS contract, and how tests are run once per peer."""

from pathlib import Path

import pytest

from support.aws_peers import MiniStackPeer, MotoPeer
from support.kms_peers import KeyWrapPeer, KmipPeer, Peer, Pkcs11Peer
from support.transit_peer import TransitPeer

PEERS: tuple[type[Peer], ...] = (
    KmipPeer,
    Pkcs11Peer,
    KeyWrapPeer,
    TransitPeer,
    MotoPeer,
    MiniStackPeer,
)
WIRED = tuple(peer for peer in PEERS if peer.has_network)
CHECKS_WHO_ASKS = tuple(peer for peer in PEERS if peer is not MiniStackPeer)
"""MiniStack takes every credential, so what it would say to a bad one is not known here."""


def each_peer(peers: tuple[type[Peer], ...] = PEERS) -> pytest.MarkDecorator:
    """Run a test once per peer; all tests of one peer on one worker, so that it starts once."""
    return pytest.mark.parametrize(
        "peer",
        [
            pytest.param(
                peer, id=peer.name, marks=pytest.mark.xdist_group(f"kms-{peer.home or peer.name}")
            )
            for peer in peers
        ],
        indirect=True,
    )


class RunningPeers:
    """Peers that were started, until the end of the session."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._homes: dict[str, Path] = {}
        self._running: dict[type[Peer], Peer] = {}

    def get(self, kind: type[Peer]) -> Peer:
        """A peer of this kind, started if need be."""
        if kind not in self._running:
            home = kind.home or kind.name
            if home not in self._homes:
                self._homes[home] = self._folders.mktemp(home)
            peer = kind(self._homes[home])
            try:
                peer.start()
            except BaseException:
                peer.close()
                raise
            self._running[kind] = peer
        return self._running[kind]

    def close(self) -> None:
        for peer in self._running.values():
            peer.close()
