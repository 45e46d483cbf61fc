"""The gateway's configuration: one frozen model, read once from a TOML file that only its owner can use.

Stage: edge. Guarantees that unknown keys are errors, all problems are told at once, that what is not
loopback is served by TLS only, and that somebody is asked who they are (N60).
"""

import ipaddress
import tomllib
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trustauthority.client.contexts import AuditKey, Context, parse_audit_key
from trustauthority.client.files import read_private
from trustauthority.errors import ConfigurationInvalid

DEFAULT_CONFIG = Path("/etc/trustauthority/gateway.toml")
Port = Annotated[int, Field(ge=0, le=65_535)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TlsSettings(_Section):
    """TLS of the listener."""

    certificate: Path
    key: Path
    client_ca: Path | None = None
    """CA whose client certificates are accepted; without it callers show bearer tokens only."""


class ListenSettings(_Section):
    """Where callers come in."""

    address: str = "127.0.0.1"
    port: Port = 7450
    tls: TlsSettings | None = None


class AuthoritySettings(_Section):
    """The authority, and who the gateway is there."""

    server: str
    """``host:port`` of a process with the placement role."""
    key_server: str = ""
    """``host:port`` of a process that serves VMs, when it is another one."""
    ca: Path
    certificate: Path
    key: Path
    audit_key: str = ""
    """Verifier key of the audit log, as ``ta context show`` prints it."""
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 10.0


class LimitSettings(_Section):
    """What one caller may use up."""

    body_bytes: Annotated[int, Field(ge=1_024, le=1_048_576)] = 262_144
    """1,000 questions with the longest names have 150 KB."""
    calls_per_second: Annotated[int, Field(ge=1, le=10_000)] = 50
    streams: Annotated[int, Field(ge=1, le=16)] = 4
    """Event streams of one caller."""
    all_streams: Annotated[int, Field(ge=1, le=16)] = 12
    """Event streams of all callers: the authority lets one identity have 16."""
    connections: Annotated[int, Field(ge=1, le=10_000)] = 256


class GatewaySettings(_Section):
    """The whole configuration. ``load`` is the way to make one."""

    authority: AuthoritySettings
    callers: Path
    """File with the callers: names, hashed tokens, certificate keys. Mode 0600."""
    state_dir: Path
    """Folder for the highest audit checkpoint that was seen. Mode 0700."""
    listen: ListenSettings = ListenSettings()
    limits: LimitSettings = LimitSettings()

    @model_validator(mode="after")
    def _served_safely(self) -> Self:
        if self.listen.tls is None and not _is_loopback(self.listen.address):
            raise ValueError("listen.address: other than loopback needs [listen.tls]")
        return self

    @property
    def context(self) -> Context:
        """How the gateway reaches the authority. Raises ConfigurationInvalid."""
        authority = self.authority
        audit_key: AuditKey | None = None
        if authority.audit_key:
            audit_key = parse_audit_key(authority.audit_key)
        return Context(
            name="gateway",
            server=authority.server,
            key_server=authority.key_server,
            ca=authority.ca,
            certificate=authority.certificate,
            key=authority.key,
            audit_key=audit_key,
        )


def load(path: Path) -> GatewaySettings:
    """Read and check the configuration.

    Raises:
        ConfigurationInvalid: with every problem and its path; InsecureFile.
    """
    try:
        document = tomllib.loads(read_private(path, "configuration").decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationInvalid(f"{path}: not TOML: {error}", path=str(path)) from error
    try:
        return GatewaySettings.model_validate(document)
    except ValidationError as error:
        problems = "\n".join(
            f"{path}: {'.'.join(map(str, each['loc'])) or 'file'}: {each['msg']}"
            for each in error.errors(include_url=False, include_input=False)
        )
        raise ConfigurationInvalid(problems, path=str(path)) from error


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False  # a name may come to stand for something else
