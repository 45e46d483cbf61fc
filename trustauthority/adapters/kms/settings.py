"""How to reach a KMS. Apart from the clients, so that reading settings does not load one.

A provider's settings are data of one level: ``provider_to_json`` sends them to the key room's child,
``provider_from_json`` makes them from there and from the configuration file's model. Secrets are
never among them, only the paths of private files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, get_args

from trustauthority.model.kms import ProviderKind

KMIP_VERSIONS = ("1.2", "1.3", "1.4")
DEFAULT_PORT = 5696
"""The KMIP port (IANA)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KmipSettings:
    """One KMIP server and who we are to it."""

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

    def __post_init__(self) -> None:
        if not self.host or not all(c.isalnum() or c in ".-" for c in self.host):
            raise ValueError("a KMS is named by one host name or IPv4 address")
        if not 0 < self.port < 1 << 16:
            raise ValueError("a KMS port is between 1 and 65535")
        if not 0 < self.timeout_s <= 300:
            raise ValueError("a KMS timeout is between 0 and 300 seconds")
        if self.version not in KMIP_VERSIONS:
            raise ValueError(f"KMIP versions are {', '.join(KMIP_VERSIONS)}")


ProviderSettings = KmipSettings
"""The settings of a key provider of any kind."""

_CLASSES: Mapping[str, type[ProviderSettings]] = {KmipSettings.kind: KmipSettings}


def provider_to_json(settings: ProviderSettings) -> dict[str, Any]:
    """Settings as JSON takes them, with their kind."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    plain = {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}
    return {"kind": str(settings.kind), **plain}


def provider_from_json(values: Mapping[str, Any]) -> ProviderSettings:
    """The settings that ``provider_to_json`` wrote, or a configuration file's section.

    Raises ValueError, KeyError or TypeError when it is none.
    """
    made = dict(values)
    chosen = _CLASSES[made.pop("kind")]
    for field in fields(chosen):
        value = made.get(field.name)
        if value is not None and (field.type is Path or Path in get_args(field.type)):
            made[field.name] = Path(value)
        elif isinstance(value, list):
            made[field.name] = tuple(value)
    return chosen(**made)
