"""Backup and restore: database, CAs, signing keys; encrypted; and what a rollback costs."""

import io
import os
import sqlite3
import tarfile
import tempfile
from pathlib import Path

import tomlkit
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from trustauthority.adapters.clock import SystemClock
from trustauthority.adapters.keyfiles import DATABASE, KeyFiles
from trustauthority.adapters.sql.store import open_store
from trustauthority.adapters.tombstones import TOMBSTONES, FileTombstones
from trustauthority.errors import AlreadyExists, ConfigurationInvalid, InsecureFile
from trustauthority.main.escrow import EXPORT, escrow_line, export_of
from trustauthority.model.audit import AuditEvent
from trustauthority.services.destruction import Destruction
from trustauthority.settings import Settings

MAGIC = b"TABACKUP1\n"
_SALT, _NONCE = 16, 12


def write_backup(settings: Settings, config: Path, out: Path, passphrase_file: Path) -> list[str]:
    """Write an encrypted backup; returns lines that say what it holds and what it does not.

    The database is copied by SQLite's own online backup, so it may be in use.

    Raises:
        AlreadyExists: the file is there. InsecureFile: the passphrase is open to others.
    """
    files = KeyFiles(settings.state_dir)
    if out.exists():
        raise AlreadyExists(f"{out} exists", kind="file", name=str(out))
    passphrase = _passphrase(passphrase_file)
    content = io.BytesIO()
    with tempfile.TemporaryDirectory(dir=settings.state_dir) as scratch:
        copy = Path(scratch) / DATABASE
        source, target = sqlite3.connect(files.database), sqlite3.connect(copy)
        with source, target:
            source.backup(target)
        source.close()
        target.close()
        with tarfile.open(fileobj=content, mode="w") as archive:
            archive.add(copy, DATABASE)
            archive.add(files.folder, "keys")
            archive.add(config, "authority.toml")
            escrow = export_of(copy, settings.origin)
            member = tarfile.TarInfo(EXPORT)
            member.size = len(escrow)
            archive.addfile(member, io.BytesIO(escrow))
            if (tombstones := settings.state_dir / TOMBSTONES).exists():
                archive.add(tombstones, TOMBSTONES)
    salt, nonce = os.urandom(_SALT), os.urandom(_NONCE)
    sealed = AESGCM(_key(passphrase, salt)).encrypt(nonce, content.getvalue(), MAGIC)
    try:
        files.write(out, MAGIC + salt + nonce + sealed, secret=True)
    except FileExistsError as error:
        raise AlreadyExists(f"{out} exists", kind="file", name=str(out)) from error
    return [
        f"wrote {out}, {out.stat().st_size} bytes, encrypted with the passphrase",
        "holds: the database, host, admin and server CAs, report, release, audit and challenge keys",
        "does not hold: the KEK (it stays in the KMS), the passphrase, client keys of people",
        escrow_line(settings, escrow),
        "a restored authority makes every host attest anew",
    ]


async def read_backup(
    source: Path,
    passphrase_file: Path,
    state: Path,
    config: Path,
    *,
    tombstones: Path | None = None,
) -> int:
    """Restore into an empty state folder and void every verdict.

    Args:
        source: the backup.
        passphrase_file: its passphrase.
        state: folder to restore into.
        config: configuration file to write.
        tombstones: the tombstones of the lost authority, where they could be saved: keys that were
            destroyed since the backup stay destroyed.

    Returns: how many keys of the backup were destroyed again.

    Raises:
        AlreadyExists: an authority is there. ConfigurationInvalid: not a backup, another passphrase,
            or tombstones of somebody else.
    """
    files = KeyFiles(state)
    saved, _ = (b"", 0) if tombstones is None else _read(tombstones)
    _extract(files, source, passphrase_file, config)
    if tombstones is not None:
        own = files.state_dir / TOMBSTONES
        older = own.read_bytes() if own.exists() else b""
        own.unlink(missing_ok=True)
        files.write(own, older + saved, secret=True)
    return await _void(files, operation="authority.restore")


def read_member(source: Path, passphrase_file: Path, name: str) -> bytes:
    """One file out of a backup.

    Raises:
        ConfigurationInvalid: not a backup, another passphrase, or without that file.
    """
    with tarfile.open(fileobj=io.BytesIO(_opened(source, passphrase_file))) as archive:
        for member in archive:
            reader = archive.extractfile(member) if member.name == name else None
            if reader is not None:
                return reader.read()
    raise ConfigurationInvalid(f"{source} holds no {name}", path=str(source))


def _opened(source: Path, passphrase_file: Path) -> bytes:
    """The archive in a backup, decrypted."""
    data, _ = _read(source)
    start = len(MAGIC)
    salt, nonce = data[start : start + _SALT], data[start + _SALT : start + _SALT + _NONCE]
    if not data.startswith(MAGIC) or len(nonce) != _NONCE:
        raise ConfigurationInvalid(f"{source} is no backup of an authority", path=str(source))
    try:
        return AESGCM(_key(_passphrase(passphrase_file), salt)).decrypt(
            nonce, data[start + _SALT + _NONCE :], MAGIC
        )
    except InvalidTag as error:
        raise ConfigurationInvalid(
            "the passphrase is wrong, or the backup was changed", path=str(source)
        ) from error


def _extract(files: KeyFiles, source: Path, passphrase_file: Path, config: Path) -> None:
    for path in (files.folder, files.database, config):
        if path.exists():
            raise AlreadyExists(f"{path} exists; restore into an empty folder", name=str(path))
    content = _opened(source, passphrase_file)
    files.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    _unpack(files, content)
    shipped = files.state_dir / "authority.toml"
    document = tomlkit.parse(shipped.read_text(encoding="utf-8"))
    document["state_dir"] = str(files.state_dir)
    shipped.unlink()
    config.parent.mkdir(parents=True, exist_ok=True)
    files.write(config, tomlkit.dumps(document).encode(), secret=True)


def _unpack(files: KeyFiles, content: bytes) -> None:
    """Write the members of a backup: plain files with expected names, secrets for the owner only."""
    files.folder.mkdir(mode=0o700)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            folder, _, name = member.name.rpartition("/")
            reader = archive.extractfile(member) if member.isfile() else None
            if reader is None or member.name == EXPORT:  # the database holds them, too
                continue
            own = (DATABASE, TOMBSTONES, "authority.toml")
            expected = folder == "keys" or (not folder and name in own)
            if not expected or name.startswith("."):
                raise ConfigurationInvalid(f"the backup holds {member.name}: not one of ours")
            path = files.state_dir / member.name
            files.write(path, reader.read(), secret=path.suffix not in (".crt", ".pub"))


async def accept_loss(settings: Settings) -> int:
    """Go on after a rollback was detected: decisions since are lost, and nothing stale is current.

    Returns: how many keys were destroyed again, because they have a tombstone.
    """
    return await _void(KeyFiles(settings.state_dir), operation="authority.accept-loss")


async def _void(files: KeyFiles, *, operation: str) -> int:
    """Jump the epochs, void verdicts, hold owners for the longest fence, allow releases again.

    Keys with a tombstone are destroyed first: if their file is not ours, nothing else happens.
    """
    tombstones = FileTombstones(files.state_dir / TOMBSTONES, files.audit_key())
    store = await open_store(files.database, SystemClock(), must_exist=True)
    try:
        destroyed = await Destruction(store, tombstones).replay()
        async with store.transaction() as tx:
            await tx.restart.jump()
            await tx.audit.append(
                AuditEvent(
                    actor="authority",
                    operation=operation,
                    subject="*",
                    decision="done",
                )
            )
    finally:
        await store.close()
    return destroyed


def _key(passphrase: bytes, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=2**17, r=8, p=1).derive(passphrase)


def _passphrase(path: Path) -> bytes:
    content, mode = _read(path)
    if mode & 0o077:
        raise InsecureFile(f"{path} is open to others; run: chmod 600 {path}", path=str(path))
    passphrase = content.splitlines()[:1]
    if not passphrase or len(passphrase[0]) < 12:
        raise ConfigurationInvalid(
            "the first line of the passphrase file has less than 12 characters", path=str(path)
        )
    return passphrase[0]


def _read(path: Path) -> tuple[bytes, int]:
    try:
        with path.open("rb") as file:
            return file.read(), os.fstat(file.fileno()).st_mode
    except OSError as error:
        raise ConfigurationInvalid(
            f"can't read {path}: {error.strerror}", path=str(path)
        ) from error
