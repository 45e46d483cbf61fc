"""How to reach a KMS. Apart from the clients, so that reading settings does not load one.

A provider's settings are data of one level: ``provider_to_json`` sends them to the key room's child,
``provider_from_json`` makes them from there and from the configuration file's model. Secrets are
never among them, only the paths of private files.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, get_args

from trustauthority.model.kms import ProviderKind

KMIP_VERSIONS = ("1.1", "1.2", "1.3", "1.4", "2.0")
DEFAULT_PORT = 5696
"""The KMIP port (IANA)."""
MAX_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class KmipSettings:
    """A KMS with one or more KMIP servers, and who we are to them."""

    kind: ClassVar[ProviderKind] = ProviderKind.KMIP

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
    more_servers: tuple[str, ...] = ()
    """HOST or HOST:PORT of servers with the same keys, asked when the one before does not answer."""
    transport_key_id: str = ""
    """Id of a KMS key under which the KMS wraps what it hands out; needs ``transport_key``."""
    transport_key: Path | None = None
    """The same key, 32 bytes, in a private file."""

    def __post_init__(self) -> None:
        for host, port in self.servers():
            _check_host(host)
            if not 0 < port < 1 << 16:
                raise ValueError("a KMS port is between 1 and 65535")
        _check_timeout(self.timeout_s)
        if self.version not in KMIP_VERSIONS:
            raise ValueError(f"KMIP versions are {', '.join(KMIP_VERSIONS)}")
        if bool(self.transport_key_id) != (self.transport_key is not None):
            raise ValueError("a KMS transport key has an id there and a file here, or neither")

    def servers(self) -> Sequence[tuple[str, int]]:
        """Host and port of each server, in the order in which they are asked."""
        return ((self.host, self.port), *(_host_and_port(text) for text in self.more_servers))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pkcs11Settings:
    """A token behind a PKCS#11 module."""

    kind: ClassVar[ProviderKind] = ProviderKind.PKCS11

    module: Path
    """The vendor's library."""
    token: str
    """Label of the token."""
    pin: Path
    """User PIN, one line, in a private file."""
    serial: str = ""
    """Serial number that the token must have; any, if empty."""
    mechanism: str = "aes-gcm"
    """How the token wraps: ``aes-gcm``, which binds the AAD in the token, or ``aes-key-wrap``."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that the library wants, such as the path of its configuration."""

    def __post_init__(self) -> None:
        if not self.module.is_absolute():
            raise ValueError("a PKCS#11 module is named by an absolute path")
        if not 0 < len(self.token.encode()) <= 32:
            raise ValueError("a PKCS#11 token has a label of 1 to 32 bytes")
        if self.mechanism not in PKCS11_MECHANISMS:
            raise ValueError(f"PKCS#11 mechanisms are {', '.join(PKCS11_MECHANISMS)}")
        for name in self.environment:
            if not re.fullmatch(r"[A-Z][A-Za-z0-9_]{0,63}", name) or name.startswith(_NO_VARIABLES):
                raise ValueError(f"PKCS#11 libraries get no variable {name!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransitSettings:
    """The transit engine of a Vault or OpenBao server, and who we are to it."""

    kind: ClassVar[ProviderKind] = ProviderKind.TRANSIT

    url: str
    """``https://HOST[:PORT]``; the server's certificate must carry the host."""
    ca: Path
    """Certificates (PEM) that may have issued the server's: the only ones that are trusted."""
    certificate: Path | None = None
    """Our client certificate (PEM), for login by certificate."""
    key: Path | None = None
    """Its private key (PEM), readable by its owner only."""
    role: str = ""
    """Role of the certificate login; the server chooses, if empty."""
    auth_mount: str = "cert"
    """Where the certificate login is mounted."""
    token: Path | None = None
    """A token in a private file, instead of a certificate."""
    mount: str = "transit"
    """Where the transit engine is mounted."""
    namespace: str = ""
    timeout_s: float = 5.0
    """Longest wait for a connection and for each answer; below the key room's own limit."""

    def __post_init__(self) -> None:
        _check_url(self.url)
        _check_timeout(self.timeout_s)
        for path in (self.mount, self.auth_mount):
            if not re.fullmatch(r"\w[\w.-]*(?:/\w[\w.-]*)*", path, re.ASCII):
                raise ValueError("a KMS mount is a path of letters, digits, '.', '_', '-'")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("a KMS client certificate and its key come together")
        if (self.certificate is None) == (self.token is None):
            raise ValueError("a KMS login is by certificate and key, or by token")


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsSettings:
    """AWS KMS in one region, and who we are to it."""

    kind: ClassVar[ProviderKind] = ProviderKind.AWS

    region: str
    credentials: Path
    """An AWS credentials file with one profile, private; read anew at each use, so it may rotate."""
    profile: str = "default"
    endpoint: str = ""
    """``https://HOST[:PORT]`` instead of the region's own."""
    ca: Path | None = None
    """Certificates (PEM) that may have issued the endpoint's; Amazon's usual ones, if absent."""
    timeout_s: float = 5.0
    """Longest wait for a connection and for each answer; below the key room's own limit."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z]{2}(?:-[a-z]+)+-\d", self.region):
            raise ValueError("a KMS region looks like eu-central-1")
        if self.endpoint:
            _check_url(self.endpoint)
        _check_timeout(self.timeout_s)


PKCS11_MECHANISMS = ("aes-gcm", "aes-key-wrap")
_NO_VARIABLES = ("LD_", "PYTHON", "PATH", "HOME", "GLIBC", "MALLOC")
"""What would change the process itself rather than tell a library where its files are."""

ProviderSettings = KmipSettings | Pkcs11Settings | TransitSettings | AwsSettings
"""The settings of a key provider of any kind."""

_CLASSES: Mapping[str, type[ProviderSettings]] = {
    KmipSettings.kind: KmipSettings,
    Pkcs11Settings.kind: Pkcs11Settings,
    TransitSettings.kind: TransitSettings,
    AwsSettings.kind: AwsSettings,
}


def provider_to_json(settings: ProviderSettings) -> dict[str, Any]:
    """Settings as JSON takes them, with their kind."""
    values = {each.name: getattr(settings, each.name) for each in fields(settings)}
    plain = {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}
    return {"kind": str(settings.kind), **plain}


def provider_from_json(values: Mapping[str, Any]) -> ProviderSettings:
    """The settings that ``provider_to_json`` wrote, or a configuration file's section.

    Raises ValueError, KeyError or TypeError when it is none.
    """
    made = dict(values)
    chosen = _CLASSES[made.pop("kind")]
    for each in fields(chosen):
        value = made.get(each.name)
        if value is not None and (each.type is Path or Path in get_args(each.type)):
            made[each.name] = Path(value)
        elif isinstance(value, list):
            made[each.name] = tuple(value)
    return chosen(**made)


def _check_host(host: str) -> None:
    if not host or not all(c.isascii() and (c.isalnum() or c in ".-") for c in host):
        raise ValueError("a KMS is named by one host name or IPv4 address")


def _host_and_port(text: str) -> tuple[str, int]:
    host, colon, port = text.partition(":")
    if colon and not (port.isascii() and port.isdigit()):
        raise ValueError("a KMS server is HOST or HOST:PORT")
    return host, int(port) if colon else DEFAULT_PORT


def _check_url(url: str) -> None:
    if not re.fullmatch(r"https://[A-Za-z0-9.-]+(?::\d{1,5})?", url):
        raise ValueError("a KMS url is https://HOST or https://HOST:PORT")


def _check_timeout(timeout_s: float) -> None:
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise ValueError(f"a KMS timeout is between 0 and {MAX_TIMEOUT_S} seconds")
