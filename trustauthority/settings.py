"""The authority's configuration: one frozen model, read once from a TOML file.

Unknown keys are errors, all problems are reported at once. Secrets are files that it names, never
values in it; a configuration that others can change, or a secret that they can read, is refused (N60).
"""

import os
import stat
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trustauthority.errors import ConfigurationInvalid, InsecureFile
from trustauthority.model.retention import Retention

Address = Annotated[str, Field(pattern=r"^(?:\[[0-9A-Fa-f:.]+\]|[^\s:/]+):\d{1,5}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?$")]
DEFAULT_CONFIG = Path("/etc/trustauthority/authority.toml")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ListenSettings(_Section):
    """Addresses of the listeners."""

    enrol: Address = "127.0.0.1:7441"
    """Server-authenticated TLS; only the enrolment calls answer there."""
    mutual: Address = "127.0.0.1:7442"
    """Mutual TLS of a process with the attest role, and of whatever other roles it has."""
    key: Address = "127.0.0.1:7443"
    """Mutual TLS of a process with the key role alone."""
    admin: Address = "127.0.0.1:7444"
    """Mutual TLS of a process with the admin or placement role, but not the attest role."""

    def mutual_for(self, roles: frozenset[str]) -> str:
        """Where a process with these roles listens."""
        if "attest" in roles:
            return self.mutual
        return self.key if roles == {"key"} else self.admin


class KmipProvider(_Section):
    """A KMS that speaks KMIP over mutual TLS."""

    kind: Literal["kmip"]
    host: str
    port: int = 5696
    ca: Path
    certificate: Path
    key: Path
    timeout_s: float = 5.0


Provider = KmipProvider
"""A key provider of any kind; ``kind`` says which."""


class KeyRoleSettings(_Section):
    """The key role."""

    batch: int = 64
    """Releases that one child process handles before it exits."""
    timeout_s: float = 10.0
    destroy_delay_s: int = Field(default=7 * 24 * 3600, ge=0)
    """How long the destruction of a VM key can be taken back."""
    escrow: Annotated[str, Field(pattern=r"^(?:none|[0-9a-f]{64})$")] = "none"
    """Key id of the offline key to which every VM key is sealed besides, or ``none``."""
    providers: dict[Name, Provider] = Field(default_factory=dict)


DAY_MS = 24 * 3_600 * 1_000
_MIB = 1 << 20


class EvidenceSettings(_Section):
    """How long verdicts and their evidence are kept."""

    keep_passed_days: int = Field(default=30, ge=0, le=36_500)
    """Verdicts that passed, with their evidence. A host's newest one always stays."""
    keep_failed_days: int = Field(default=365, ge=0, le=36_500)
    """Verdicts that failed, with their evidence."""
    max_mib: int = Field(default=8_192, ge=1)
    """Above this the oldest go before their time, those that passed first."""

    @property
    def retention(self) -> Retention:
        """The same in units of the core."""
        return Retention(
            keep_passed_ms=self.keep_passed_days * DAY_MS,
            keep_failed_ms=self.keep_failed_days * DAY_MS,
            max_bytes=self.max_mib * _MIB,
        )


class Settings(_Section):
    """The whole configuration."""

    state_dir: Path
    node: Name
    origin: str
    """Name of this authority: issuer of reports and origin of the audit log."""
    listen: ListenSettings = ListenSettings()
    key: KeyRoleSettings = KeyRoleSettings()
    evidence: EvidenceSettings = EvidenceSettings()


def load_settings(path: Path) -> Settings:
    """Read and check a configuration file.

    Raises:
        ConfigurationInvalid: with every problem. InsecureFile: others can change it.
    """
    try:
        status = path.stat()
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationInvalid(
            f"can't read {path}: {error.strerror}; trustauthority init writes one", path=str(path)
        ) from error
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH | stat.S_IROTH):
        raise InsecureFile(f"{path} is open to others; run: chmod 640 {path}", path=str(path))
    if status.st_uid not in (0, os.getuid()):
        raise InsecureFile(f"{path} belongs to another user", path=str(path))
    try:
        return Settings.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationInvalid(f"{path}: not TOML: {error}", path=str(path)) from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}"
            for each in error.errors()
        )
        raise ConfigurationInvalid(f"{path}: {problems}", path=str(path)) from error
