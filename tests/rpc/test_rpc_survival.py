"""What survives: the loss of the authority by its backup, the loss of the KMS too by the offline key."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.authority import (
    ALL_ROLES,
    Authority,
    RecordingJournal,
    call,
    generous_limits,
    initialised,
    named,
    real_time_clock,
)
from support.escrow import OTHER_PRIVATE, PRIVATE, public
from support.keyroom_orders import STORAGE, binding, release_order
from support.kms_process import running_kms

from hostagent.grant import GrantRequest, open_key_grant
from trustauthority.errors import AlreadyExists, ConfigurationInvalid
from trustauthority.keyrelease.escrow import drill_answer, open_escrowed
from trustauthority.keyrelease.escrow_export import decode_export
from trustauthority.main.backup import read_backup, write_backup
from trustauthority.main.compose import Surroundings, running
from trustauthority.main.escrow import chosen_key, extract, replace_key
from trustauthority.model.identifiers import VmId
from trustauthority.services.escrow import stored_key
from trustauthority.settings import load_settings

VM = "vm-1"


@pytest.fixture(scope="module")
def kms(tmp_path_factory):
    with running_kms(tmp_path_factory.mktemp("kms") / "kms") as started:
        yield started


@pytest.fixture
def passphrase(tmp_path):
    file = tmp_path / "passphrase"
    file.touch(mode=0o600)
    file.write_bytes(b"correct horse battery staple\n")
    return file


async def set_up(folder: Path, kms: Any) -> Path:
    """``trustauthority init`` with an offline key, in front of a real KMIP server."""
    default = {"kind": "kmip", "host": "127.0.0.1", "port": kms.port}
    names = {"ca": "ca.pem", "certificate": "client.pem", "key": "client.key"}
    default |= {name: str(kms.folder / file) for name, file in names.items()}
    key = {"providers": {"default": default}, "escrow": public().key_id.hex(), "timeout_s": 60}
    return await initialised(folder, escrow=public(), key=key)


@asynccontextmanager
async def serving(folder: Path, config: Path) -> AsyncIterator[Authority]:
    """All roles, with real children of a real key room."""
    around = Surroundings(
        clock=real_time_clock(), journal=RecordingJournal(), limits=generous_limits(), drain_s=0.2
    )
    async with running(load_settings(config), ALL_ROLES, around) as process:
        authority = Authority(
            folder=folder,
            process=process,
            clock=around.clock,
            journal=around.journal,
            room=process.room,
        )
        try:
            yield authority
        finally:
            for channel in authority.channels:
                await channel.close()


async def ask(authority: Authority, rpc_name: str, /, **fields: Any) -> Any:
    rpc = named(rpc_name)
    channel = authority.channel(authority.admin)
    return (await call(channel, rpc, rpc.request(**fields), timeout_s=60)).reply


async def released_key(authority: Authority) -> bytes:
    """The VM's key as the key room releases it to a host."""
    async with authority.store.snapshot() as tx:
        key = await tx.keys.current(VmId(VM))
    assert key is not None
    stored = stored_key(key)
    order = release_order(stored.kek_id, stored.wrapped, aad=stored.aad)
    wire = await authority.room.release(order)
    made = binding()
    asked = GrantRequest(
        vm_id=made.vm_id,
        host_id=made.host_id,
        storage_name=made.storage_name,
        request_id=made.request_id,
        purpose=str(made.purpose),
    )
    return bytes(
        open_key_grant(
            wire,
            asked=asked,
            release_keys=[authority.files.release_public()],
            tpm=STORAGE,
            storage=STORAGE.key,
        )
    )


async def drilled(authority: Authority, private: bytes = PRIVATE) -> bool:
    asked = await ask(authority, "BeginDrill", vm_id=VM)
    bound = binding_of(asked)
    key = open_escrowed(asked.blob, private, expected=bound)
    answer = drill_answer(key, bound, asked.challenge)
    values = {"vm_id": VM, "key_epoch": asked.key_epoch, "challenge": asked.challenge}
    return (await ask(authority, "RecordDrill", **values, answer=answer)).passed


def binding_of(asked: Any) -> Any:
    from support.escrow import binding as escrow_binding

    return escrow_binding(VM, asked.key_epoch, asked.origin)


@pytest.mark.timeout(300)
async def test_everything_is_lost(tmp_path, kms, passphrase):
    """Survival: with the backup the VM's key is released again; with the KMS lost too, it is recovered.

    Real children, a real KMIP server; the authority's folder is deleted, then the KMS.
    """
    config = await set_up(tmp_path, kms)
    backup, escrow = tmp_path / "backup", tmp_path / "escrow.json"
    async with serving(tmp_path, config) as authority:
        await ask(authority, "CreateCluster", name="lab")
        await ask(authority, "ProtectVm", vm_id=VM, cluster="lab")
        await ask(authority, "CreateKey", vm_id=VM)
        key = await released_key(authority)
        assert await drilled(authority)
        status = await ask(authority, "GetStatus")
        (item,) = [each for each in status.items if each.name == "escrow"]
        assert public().key_id.hex()[:16] in item.detail
        lines = write_backup(load_settings(config), config, backup, passphrase)
    assert any("1 VM keys are sealed to offline key" in line for line in lines)
    # (1) the authority is gone
    shutil.rmtree(tmp_path / "authority")
    config.unlink()
    await read_backup(backup, passphrase, tmp_path / "restored", config)
    async with serving(tmp_path, config) as authority:
        assert await released_key(authority) == key
        assert await drilled(authority)
        entries = await ask(authority, "ListAudit", limit=1000)
        assert sum(b"key.record-drill" in each.content for each in entries.entries) == 2
    # (2) and so is the KMS
    shutil.rmtree(tmp_path / "restored")
    lines = extract(backup, escrow, passphrase)
    assert "1 escrowed keys" in lines[0]
    assert escrow.stat().st_mode & 0o777 == 0o600
    export = decode_export(escrow.read_bytes())
    found = export.find(VM)
    assert open_escrowed(found.blob, PRIVATE, expected=export.binding(found)) == key
    with pytest.raises(AlreadyExists):
        extract(backup, escrow, passphrase)
    passphrase.write_bytes(b"another passphrase, wrong\n")
    with pytest.raises(ConfigurationInvalid, match="passphrase"):
        extract(backup, tmp_path / "other.json", passphrase)


@pytest.mark.timeout(300)
async def test_the_offline_key_is_replaced(tmp_path, kms):
    """Replacing the escrow key: said in status, done by reseal, recorded, and the old key is out."""
    config = await set_up(tmp_path, kms)
    async with serving(tmp_path, config) as authority:
        await ask(authority, "CreateCluster", name="lab")
        await ask(authority, "ProtectVm", vm_id=VM, cluster="lab")
        await ask(authority, "CreateKey", vm_id=VM)
    await replace_key(load_settings(config), config, public(OTHER_PRIVATE))
    async with serving(tmp_path, config) as authority:
        status = await ask(authority, "GetStatus")
        (item,) = [each for each in status.items if each.name == "escrow"]
        assert "without the keys of 1 VMs: ta key escrow reseal" in item.detail
        assert await drilled(authority)  # the old key still opens it
        done = await ask(authority, "ResealEscrow")
        assert (done.resealed, done.current, list(done.failed)) == (1, 0, [])
        assert await drilled(authority, OTHER_PRIVATE)
        pages = await ask(authority, "ExportEscrow")
        assert [key.vm_id for key in pages.keys] == [VM]
        entries = (await ask(authority, "ListAudit", limit=1000)).entries
        for operation in (b"authority.replace-escrow-key", b"authority.use-escrow-key"):
            assert any(operation in each.content for each in entries), operation


@pytest.mark.parametrize("none", [True, False])
def test_the_choice_is_made_in_words(tmp_path, none):
    """Nobody ends up without escrow by leaving something out, nor with two answers."""
    file = tmp_path / "escrow.pub"
    file.write_text("rubbish")
    with pytest.raises(ConfigurationInvalid, match="choose"):
        chosen_key(file if none else None, none=none)
    with pytest.raises(ConfigurationInvalid):
        chosen_key(tmp_path / "absent", none=False)
    assert chosen_key(None, none=True) is None
