"""Who calls the gateway: names with the hash of a bearer token, or of a client certificate's key.

Stage: edge. Trusts the file of callers, which only its owner can use. Guarantees that a token is
known by its hash only and compared in constant time with every one there is, that a certificate
counts by its key (its issuer was checked by TLS), and that nobody is a caller twice. What it does not
do: say what a caller may ask; all of them may what the gateway's identity may.
"""

import hashlib
import hmac
import secrets
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trustauthority.client.files import read_private
from trustauthority.errors import ConfigurationInvalid

TOKEN_PREFIX = "tag_"  # noqa: S105 - what every token begins with, not one
TOKEN_BYTES = 32
MAX_TOKEN = 128
MAX_CALLERS = 1_000
_NAME = r"^[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?$"
_SHA256 = r"^([0-9a-f]{64})?$"


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=_NAME)
    token_sha256: str = Field(default="", pattern=_SHA256)
    certificate_key_sha256: str = Field(default="", pattern=_SHA256)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    caller: list[_Entry] = Field(min_length=1, max_length=MAX_CALLERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Somebody who may call."""

    name: str


@dataclass(frozen=True, slots=True)
class Callers:
    """Everybody who may call."""

    entries: Sequence[_Entry]

    def by_token(self, authorization: str) -> Caller | None:
        """The caller of an ``Authorization`` header."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not 0 < len(token) <= MAX_TOKEN:
            return None
        shown = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
        found = None
        for entry in self.entries:  # each is compared, so that time tells nothing
            if hmac.compare_digest(entry.token_sha256.encode(), shown.encode()):
                found = Caller(name=entry.name)
        return found

    def by_certificate(self, certificate: bytes) -> Caller | None:
        """The caller of a client certificate (DER) that TLS accepted."""
        try:
            key = x509.load_der_x509_certificate(certificate).public_key()
            spki = key.public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        except ValueError:
            return None
        shown = hashlib.sha256(spki).hexdigest()
        for entry in self.entries:
            if entry.certificate_key_sha256 == shown:
                return Caller(name=entry.name)
        return None


def load_callers(path: Path) -> Callers:
    """Read the file of callers.

    Raises:
        ConfigurationInvalid: with every problem; InsecureFile: others can use it.
    """
    try:
        document = tomllib.loads(read_private(path, "file of callers").decode())
        entries = _File.model_validate(document).caller
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationInvalid(f"{path}: not TOML: {error}", path=str(path)) from error
    except ValidationError as error:
        problems = "\n".join(
            f"{path}: {'.'.join(map(str, each['loc']))}: {each['msg']}"
            for each in error.errors(include_url=False, include_input=False)
        )
        raise ConfigurationInvalid(problems, path=str(path)) from error
    for what in ("name", "token_sha256", "certificate_key_sha256"):
        values = [value for entry in entries if (value := getattr(entry, what))]
        if len(set(values)) != len(values):
            raise ConfigurationInvalid(f"{path}: a {what} stands there twice", path=str(path))
    if not all(bool(e.token_sha256) != bool(e.certificate_key_sha256) for e in entries):
        raise ConfigurationInvalid(
            f"{path}: each caller has token_sha256 or certificate_key_sha256", path=str(path)
        )
    return Callers(entries)


def new_token() -> tuple[str, str]:
    """A fresh token and its SHA-256: the one for the caller, the other for the file."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    return token, hashlib.sha256(token.encode()).hexdigest()
