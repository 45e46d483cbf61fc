"""``trustauthority init``: CAs, keys, database, configuration, and the first identity."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tomlkit
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from trustauthority.adapters.clock import SystemClock
from trustauthority.adapters.keyfiles import (
    ADMIN_CA,
    AUDIT_KEY,
    CHALLENGE_KEY,
    ESCROW_KEY,
    HOST_CA,
    IMPORT_KEY,
    RELEASE_KEY,
    REPORT_KEY,
    SERVER_CA,
    KeyFiles,
    private_pem,
    public_pem,
)
from trustauthority.adapters.sql.store import open_store
from trustauthority.client.contexts import AuditKey, Context, save_context
from trustauthority.errors import AlreadyExists
from trustauthority.keyrelease.escrow import encode_escrow_key
from trustauthority.main.certificates import SERVER_NAMES, SERVER_TTL_MS
from trustauthority.model.audit import AuditEvent
from trustauthority.model.catalogue import IdentityEntry, Role
from trustauthority.model.escrow import EscrowKey
from trustauthority.services.certificates import new_authority
from trustauthority.services.identities import DEFAULT_TTL_MS, key_sha256
from trustauthority.settings import Settings

YEAR_MS = 365 * 24 * 3_600_000
CA_TTL_MS = 10 * YEAR_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class InitPlan:
    """What to set up."""

    settings: Settings
    config: Path
    server_names: Sequence[str]
    admin: str
    identity_dir: Path
    """Where the first identity's key, certificate and context go."""
    server: str
    """Address of the admin role, for that context."""
    escrow: EscrowKey | None = None
    """The offline key to which VM keys are sealed besides; its id is in ``settings``."""


async def initialise(plan: InitPlan) -> None:
    """Make a new authority. Nothing that exists is replaced.

    Raises:
        AlreadyExists: the state folder or the configuration is there already.
    """
    files = KeyFiles(plan.settings.state_dir)
    for path in (files.folder, plan.config):
        if path.exists():
            raise AlreadyExists(
                f"{path} exists; an authority is set up there", kind="file", name=str(path)
            )
    clock = SystemClock()
    now_ms = clock.now_ms()
    files.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    files.state_dir.chmod(0o700)
    files.folder.mkdir(mode=0o700)
    _write_authorities(files, plan, now_ms)
    _write_keys(files)
    if plan.escrow is not None:
        content = encode_escrow_key(plan.escrow).encode()
        files.write(files.path(ESCROW_KEY, "pub"), content, secret=False)
    chain, key = _first_identity(files, plan.admin, now_ms)
    store = await open_store(files.database, clock)
    try:
        async with store.transaction() as tx:
            await tx.identities.put(
                IdentityEntry(
                    key_sha256=key_sha256(key.public_key()),
                    name=plan.admin,
                    roles=frozenset(Role),
                    revoked=False,
                    certificate_expires_ms=now_ms + DEFAULT_TTL_MS,
                    issued_by="init",
                )
            )
            await tx.audit.append(
                AuditEvent(
                    actor="authority",
                    operation="authority.init",
                    subject=plan.settings.origin,
                    decision="done",
                    details={
                        "first_identity": plan.admin,
                        "escrow_key": plan.settings.key.escrow,
                    },
                )
            )
    finally:
        await store.close()
    _write_identity(files, plan, chain, key)
    _write_config(plan)


def _write_authorities(files: KeyFiles, plan: InitPlan, now_ms: int) -> None:
    origin = plan.settings.origin
    for name in (HOST_CA, ADMIN_CA):
        files.write_authority(
            name, new_authority(f"{origin} {name}", now_ms=now_ms, ttl_ms=CA_TTL_MS)
        )
    server_ca = new_authority(f"{origin} {SERVER_CA}", now_ms=now_ms, ttl_ms=CA_TTL_MS)
    files.write_authority(SERVER_CA, server_ca)
    for name in SERVER_NAMES:
        key = ec.generate_private_key(ec.SECP256R1())
        chain = server_ca.issue_server(
            key.public_key(), names=plan.server_names, now_ms=now_ms, ttl_ms=SERVER_TTL_MS
        )
        files.write(files.path(name, "crt"), chain, secret=False)
        files.write(files.path(name), private_pem(key), secret=True)


def _write_keys(files: KeyFiles) -> None:
    for name in (REPORT_KEY, RELEASE_KEY):
        key = ec.generate_private_key(ec.SECP256R1())
        files.write(files.path(name), private_pem(key), secret=True)
        files.write(files.path(name, "pub"), public_pem(key.public_key()), secret=False)
    files.write(files.path(AUDIT_KEY), private_pem(Ed25519PrivateKey.generate()), secret=True)
    opener = X25519PrivateKey.generate()
    files.write(files.path(IMPORT_KEY), private_pem(opener), secret=True)
    files.write(files.path(IMPORT_KEY, "pub"), public_pem(opener.public_key()), secret=False)
    files.write(files.path(CHALLENGE_KEY), secrets.token_bytes(32), secret=True)


def _first_identity(
    files: KeyFiles, name: str, now_ms: int
) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    chain = files.authority(ADMIN_CA).issue_client(
        key.public_key(), path=f"/identity/{name}", now_ms=now_ms, ttl_ms=DEFAULT_TTL_MS
    )
    return chain, key


def _write_identity(
    files: KeyFiles, plan: InitPlan, chain: bytes, key: ec.EllipticCurvePrivateKey
) -> None:
    """The first identity's files, and a context by which ta finds this authority."""
    folder = plan.identity_dir
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    certificate, key_file, anchor = (
        folder / f"{plan.admin}.crt",
        folder / f"{plan.admin}.key",
        folder / "authority-ca.crt",
    )
    files.write(certificate, chain, secret=False)
    files.write(key_file, private_pem(key), secret=True)
    files.write(anchor, files.path(SERVER_CA, "crt").read_bytes(), secret=False)
    audit_public = (
        files.audit_key()
        .public_key()
        .public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    )
    save_context(
        {"TA_CONTEXTS_FILE": str(folder / "contexts.toml")},
        Context(
            name="default",
            server=plan.server,
            key_server=plan.settings.listen.key,
            ca=anchor,
            certificate=certificate,
            key=key_file,
            audit_key=AuditKey(origin=plan.settings.origin, public_key=audit_public),
        ),
        use=True,
    )


def _write_config(plan: InitPlan) -> None:
    document = tomlkit.document()
    document.add(
        tomlkit.comment("Written by trustauthority init; see docs/reference/configuration.md")
    )
    for name, value in plan.settings.model_dump(mode="json", exclude_none=True).items():
        document[name] = value
    plan.config.parent.mkdir(parents=True, exist_ok=True)
    KeyFiles(plan.settings.state_dir).write(
        plan.config, tomlkit.dumps(document).encode(), secret=True
    )
