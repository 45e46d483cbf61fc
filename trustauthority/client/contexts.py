"""Contexts: which authority, believed by which CA, as whom. One TOML file, edited in place.

Stage: client. Trusts the file because it belongs to the caller; refuses one that others can write,
since it names the CA that is believed. Guarantees on exit a ``Context`` with absolute paths and a
well-formed audit key. Does not open keys or connect.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import tomlkit
from tomlkit.exceptions import TOMLKitError

from trustauthority.client.files import read_public, write_private
from trustauthority.codec import tlog
from trustauthority.errors import ConfigurationInvalid, InsecureFile, NotFound
from trustauthority.model.identifiers import is_name

CONTEXTS_FILE_VARIABLE = "TA_CONTEXTS_FILE"
CONTEXT_VARIABLE = "TA_CONTEXT"
_ED25519 = b"\x01"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditKey:
    """The public key that signs audit checkpoints, and the log it speaks for."""

    origin: str
    public_key: bytes

    def __str__(self) -> str:
        """A C2SP verifier key: ``<origin>+<key id>+<base64(0x01 ‖ key)>``."""
        identifier = tlog.key_id(self.origin, self.public_key).hex()
        return f"{self.origin}+{identifier}+{base64.b64encode(_ED25519 + self.public_key).decode()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One way to reach one authority."""

    name: str
    server: str
    """``host:port`` of a process with the admin role."""
    key_server: str = ""
    """``host:port`` of a process with the key role, when it is another one."""
    ca: Path
    """PEM of the CA that the servers' certificates chain to; nothing else is believed."""
    certificate: Path
    key: Path
    audit_key: AuditKey | None = None
    cluster: str = ""
    """Cluster that commands mean when none is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contexts:
    """What the file holds."""

    path: Path
    current: str
    """Name of the context in use, or empty."""
    contexts: Mapping[str, Context]

    def get(self, name: str = "") -> Context:
        """The context ``name``, or the current one. Raises NotFound saying what to do."""
        wanted = name or self.current
        if not wanted:
            raise NotFound(
                f"no context is chosen in {self.path}; run ta context add NAME --server HOST:PORT …",
                kind="context",
                name="",
            )
        if wanted not in self.contexts:
            known = ", ".join(sorted(self.contexts)) or "none"
            raise NotFound(
                f"there is no context {wanted!r} in {self.path} (there is: {known}); see ta context list",
                kind="context",
                name=wanted,
            )
        return self.contexts[wanted]


def parse_audit_key(text: str) -> AuditKey:
    """Read a C2SP verifier key. Raises ConfigurationInvalid."""
    origin, _, rest = text.strip().partition("+")
    identifier, _, encoded = rest.partition("+")
    try:
        key = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigurationInvalid("the audit key is not base64", field="audit_key") from error
    if len(key) != 33 or key[0] != 1 or not origin:
        raise ConfigurationInvalid(
            "the audit key is not an Ed25519 verifier key (ORIGIN+ID+BASE64)", field="audit_key"
        )
    if tlog.key_id(origin, key[1:]).hex() != identifier:
        raise ConfigurationInvalid(
            "the audit key does not match its own id: it was mistyped or cut", field="audit_key"
        )
    return AuditKey(origin=origin, public_key=key[1:])


def contexts_path(environment: Mapping[str, str]) -> Path:
    """Where contexts live: TA_CONTEXTS_FILE, or below the configuration folder of the user."""
    explicit = environment.get(CONTEXTS_FILE_VARIABLE)
    if explicit:
        return Path(explicit)
    home = environment.get("XDG_CONFIG_HOME") or str(Path(environment.get("HOME", "~")) / ".config")
    return Path(home).expanduser() / "trustauthority" / "contexts.toml"


def load_contexts(environment: Mapping[str, str]) -> Contexts:
    """Read the file; a missing one has no contexts.

    Raises ConfigurationInvalid with every problem, or InsecureFile when others can write it.
    """
    path = contexts_path(environment)
    document = _document(path)
    problems: list[str] = []
    contexts: dict[str, Context] = {}
    table = document.get("contexts", {})
    for name, entry in table.items() if isinstance(table, dict) else ():
        context = _context(str(name), entry, path.parent, problems)
        if context is not None:
            contexts[context.name] = context
    unknown = sorted(set(document) - {"current", "contexts"})
    problems += [f"{key}: unknown key" for key in unknown]
    if problems:
        raise ConfigurationInvalid(f"{path}: " + "; ".join(problems), path=str(path))
    current = environment.get(CONTEXT_VARIABLE) or str(document.get("current", ""))
    return Contexts(path=path, current=current, contexts=contexts)


def save_context(environment: Mapping[str, str], context: Context, *, use: bool) -> None:
    """Add or replace one context; comments and the other contexts stay as they are."""
    path = contexts_path(environment)
    document = _document(path)
    table = document.setdefault("contexts", tomlkit.table(is_super_table=True))
    entry = tomlkit.table()
    for field in fields(context):
        value = getattr(context, field.name)
        if field.name != "name" and value not in {None, ""}:
            entry[field.name] = str(value)
    table[context.name] = entry
    if use or not document.get("current"):
        document["current"] = context.name
    write_private(path, tomlkit.dumps(document).encode())


def use_context(environment: Mapping[str, str], name: str) -> None:
    """Make ``name`` the current context. Raises NotFound."""
    contexts = load_contexts(environment)
    contexts.get(name)
    document = _document(contexts.path)
    document["current"] = name
    write_private(contexts.path, tomlkit.dumps(document).encode())


def remove_context(environment: Mapping[str, str], name: str) -> None:
    """Forget ``name``; its certificate and key stay where they are. Raises NotFound."""
    contexts = load_contexts(environment)
    contexts.get(name)
    document = _document(contexts.path)
    table = document["contexts"]
    if isinstance(table, dict):
        del table[name]
    if document.get("current") == name:
        document["current"] = ""
    write_private(contexts.path, tomlkit.dumps(document).encode())


def _document(path: Path) -> tomlkit.TOMLDocument:
    if not path.exists():
        return tomlkit.document()
    if path.stat().st_mode & 0o022:
        raise InsecureFile(
            f"{path} can be written by others, who could name another CA; run chmod 600 {path}",
            path=str(path),
        )
    try:
        return tomlkit.parse(read_public(path, "contexts file").decode())
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise ConfigurationInvalid(f"{path} is not TOML: {error}", path=str(path)) from error


_REQUIRED = ("server", "ca", "certificate", "key")
_OPTIONAL = ("key_server", "audit_key", "cluster")


def _context(name: str, entry: object, base: Path, problems: list[str]) -> Context | None:
    """One table of the file; what is wrong with it is added to ``problems``."""
    where = f"contexts.{name}"
    if not is_name(name):
        problems.append(f"{where!r}: not a name (1-63 of a-z 0-9 . _ -)")
        return None
    if not isinstance(entry, dict):
        problems.append(f"{where}: not a table")
        return None
    before = len(problems)
    problems += [f"{where}.{key}: missing" for key in _REQUIRED if not entry.get(key)]
    problems += [f"{where}.{key}: unknown key" for key in entry if key not in _REQUIRED + _OPTIONAL]
    problems += [f"{where}.{key}: not a text" for key in entry if not isinstance(entry[key], str)]
    audit_key: AuditKey | None = None
    if isinstance(entry.get("audit_key"), str):
        try:
            audit_key = parse_audit_key(str(entry["audit_key"]))
        except ConfigurationInvalid as error:
            problems.append(f"{where}.audit_key: {error.message}")
    if len(problems) > before:
        return None
    paths = {key: base / Path(str(entry[key])).expanduser() for key in ("ca", "certificate", "key")}
    return Context(
        name=name,
        server=str(entry["server"]),
        key_server=str(entry.get("key_server", "")),
        audit_key=audit_key,
        cluster=str(entry.get("cluster", "")),
        **paths,
    )
