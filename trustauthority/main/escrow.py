"""``trustauthority init``, ``escrow-key`` and ``escrow-extract``: the offline key of an authority.

Trusts the configuration and the state folder: whoever can write there can have VM keys sealed to a
key of his own, which is why a change is in the audit log and in ``ta status``.
"""

import json
import sqlite3
from pathlib import Path

import tomlkit

from trustauthority.adapters.clock import SystemClock
from trustauthority.adapters.keyfiles import ESCROW_KEY, KeyFiles
from trustauthority.adapters.sql.store import open_store
from trustauthority.errors import AlreadyExists, ConfigurationInvalid
from trustauthority.keyrelease.escrow import decode_escrow_key, encode_escrow_key
from trustauthority.keyrelease.escrow_export import ExportedKey, decode_export, encode_export
from trustauthority.main.survival import NO_ESCROW
from trustauthority.model.audit import AuditEvent
from trustauthority.model.escrow import EscrowKey
from trustauthority.model.identifiers import VmId
from trustauthority.settings import Settings

EXPORT = "escrow.json"
"""Name of the export in a backup."""


def chosen_key(public: Path | None, *, none: bool) -> EscrowKey | None:
    """The offline key that somebody chose, or none if that was said in words.

    Raises:
        ConfigurationInvalid: neither was said, or both, or the file holds no public key.
    """
    if (public is None) == (not none):
        raise ConfigurationInvalid(
            "choose what survives the loss of the KMS: --escrow-public FILE (made offline by"
            " ta key escrow keygen), or --no-escrow",
            field="escrow",
        )
    if public is None:
        return None
    try:
        return decode_escrow_key(public.read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationInvalid(f"can't read {public}: {error}", path=str(public)) from error


async def replace_key(settings: Settings, config: Path, key: EscrowKey | None) -> None:
    """Use another offline key for VM keys that are made from now on; the key role must not run."""
    files = KeyFiles(settings.state_dir)
    key_id = NO_ESCROW if key is None else key.key_id.hex()
    store = await open_store(files.database, SystemClock(), must_exist=True)
    try:
        async with store.transaction() as tx:
            await tx.audit.append(
                AuditEvent(
                    actor="authority",
                    operation="authority.replace-escrow-key",
                    subject=settings.origin,
                    decision="done",
                    details={"key_id": key_id, "before": settings.key.escrow},
                )
            )
    finally:
        await store.close()
    _write(files, config, key, key_id)


def _write(files: KeyFiles, config: Path, key: EscrowKey | None, key_id: str) -> None:
    """First the file, then its name: in between the key role refuses to make keys."""
    path = files.path(ESCROW_KEY, "pub")
    path.unlink(missing_ok=True)
    if key is not None:
        files.write(path, encode_escrow_key(key).encode(), secret=False)
    document = tomlkit.parse(config.read_text(encoding="utf-8"))
    section = document.setdefault("key", tomlkit.table())
    section["escrow"] = key_id
    config.write_text(tomlkit.dumps(document), encoding="utf-8")


def export_of(database: Path, origin: str) -> bytes:
    """All escrowed keys of a copy of the database, as ``ta key escrow export`` writes them."""
    rows = sqlite3.connect(database)
    try:
        found = rows.execute(
            "SELECT vm_id, key_epoch, state, escrowed FROM vm_key"
            " WHERE length(escrowed) > 0 ORDER BY vm_id, key_epoch"
        ).fetchall()
    finally:
        rows.close()
    keys = [
        ExportedKey(vm_id=VmId(vm), key_epoch=epoch, state=state, blob=blob)
        for vm, epoch, state, blob in found
    ]
    return encode_export(origin, keys)


def extract(source: Path, out: Path, passphrase_file: Path) -> list[str]:
    """Write the escrowed keys of a backup to a file; returns lines that say what they are.

    Raises:
        AlreadyExists: the file is there. ConfigurationInvalid: not a backup, or another passphrase.
    """
    from trustauthority.main.backup import read_member

    content = read_member(source, passphrase_file, EXPORT)
    export = decode_export(content)
    try:
        KeyFiles(out.parent).write(out, content, secret=True)
    except FileExistsError as error:
        raise AlreadyExists(f"{out} exists", kind="file", name=str(out)) from error
    return [
        f"wrote {out}: {len(export.keys)} escrowed keys of {export.origin}",
        "open one offline: ta key recover VM --escrow FILE --private KEY --passphrase-file PASS",
    ]


def escrow_line(settings: Settings, content: bytes) -> str:
    """What a backup says of its escrowed keys."""
    if settings.key.escrow == NO_ESCROW:
        return "no VM key is escrowed: without the KMS this backup opens no VM"
    number = len(json.loads(content)["keys"])
    return (
        f"{number} VM keys are sealed to offline key {settings.key.escrow[:16]}: with it the VMs"
        " open without the KMS (trustauthority escrow-extract, ta key recover)"
    )
