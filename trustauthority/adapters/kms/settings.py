"""How to reach a KMS. Apart from the client, so that reading settings does not load one."""

from dataclasses import dataclass
from pathlib import Path

KMIP_VERSIONS = ("1.2", "1.3", "1.4")
DEFAULT_PORT = 5696
"""The KMIP port (IANA)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KmipSettings:
    """One KMIP server and who we are to it."""

    host: str
    """Name or IPv4 address; the server's certificate must carry it."""
    port: int = DEFAULT_PORT
    ca: Path
    """Certificates (PEM) that may have issued the server's: the only ones that are trusted."""
    certificate: Path
    """Our client certificate (PEM)."""
    key: Path
    """Its private key (PEM), readable by its owner only."""
    timeout_s: float = 5.0
    """Longest wait for a connection and for each answer; below the key room's own limit."""
    version: str = "1.4"
    """KMIP version of our requests."""

    def __post_init__(self) -> None:
        if not self.host or not all(c.isalnum() or c in ".-" for c in self.host):
            raise ValueError("a KMS is named by one host name or IPv4 address")
        if not 0 < self.port < 1 << 16:
            raise ValueError("a KMS port is between 1 and 65535")
        if not 0 < self.timeout_s <= 300:
            raise ValueError("a KMS timeout is between 0 and 300 seconds")
        if self.version not in KMIP_VERSIONS:
            raise ValueError(f"KMIP versions are {', '.join(KMIP_VERSIONS)}")
