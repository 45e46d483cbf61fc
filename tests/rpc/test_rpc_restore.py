"""Files of an authority and what follows from losing them: N60, N64, N91, S6."""

import asyncio
import contextlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from support.authority import Authority, call, halted, initialised, named, newest, note_of, served
from support.stores import FENCE_MS, VM, position, verdict, vm_entry, vm_key

from trustauthority.adapters.clock import SystemClock
from trustauthority.adapters.keyfiles import KeyFiles
from trustauthority.adapters.sql.restart import EPOCH_JUMP
from trustauthority.errors import (
    AlreadyExists,
    ConfigurationInvalid,
    InsecureFile,
    TrustAuthorityError,
)
from trustauthority.main.backup import accept_loss, read_backup, write_backup
from trustauthority.main.serve import keep_house, parse_roles, purging
from trustauthority.model.identifiers import ClusterId, HostId, VmId
from trustauthority.model.placement import KeyState
from trustauthority.settings import load_settings

Code = grpc.StatusCode
ECHO = "ta-checkpoint-bin"
PASSPHRASE = b"correct horse battery staple\n"


STATUS, CREATE = named("GetStatus"), named("CreateCluster")


async def populate(authority: Authority) -> None:
    """A cluster, an attested host, a VM with a key that the host may start."""
    channel = authority.channel(authority.admin)
    assert (await call(channel, CREATE, CREATE.request(name="lab"))).code is Code.OK
    await authority.host("h-1")
    async with authority.store.transaction() as tx:
        assert await tx.hosts.record_verdict(
            HostId("h-1"), position=position(), values=verdict(tx.now_ms)
        )
        entry = vm_entry(cluster_id=ClusterId("lab"), grant_epoch=7)
        assert await tx.vms.protect(entry, by="test")
        assert await tx.keys.put(vm_key())


async def standing(authority: Authority) -> int:
    get = named("GetHost")
    answer = await call(authority.channel(authority.admin), get, get.request(host="h-1"))
    return answer.reply.host.standing


@pytest.fixture
def passphrase(tmp_path):
    file = tmp_path / "passphrase"
    file.touch(mode=0o600)
    file.write_bytes(PASSPHRASE)
    return file


# --- N60: files that others can use -----------------------------------------------------------

SECRETS = (
    "host-ca",
    "admin-ca",
    "server-attest",
    "report-key",
    "audit-key",
    "challenge-key",
)


async def refused_to_start(folder: Path) -> TrustAuthorityError:
    with pytest.raises(TrustAuthorityError) as caught:
        async with served(folder):
            pass
    return caught.value


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602, 0o610], ids=oct)
async def test_a_key_that_others_can_use_is_refused(tmp_path, name, mode):
    """N60: each secret that a role reads; the message names the file and the remedy."""
    await initialised(tmp_path)
    path = tmp_path / "authority" / "keys" / f"{name}.key"
    path.chmod(mode)
    error = await refused_to_start(tmp_path)
    assert isinstance(error, InsecureFile)
    assert error.metadata == {"path": str(path)}
    assert f"chmod 600 {path}" in error.message


@pytest.mark.parametrize(
    ("what", "mode"),
    [
        ("authority/authority.db", 0o644),
        ("authority/authority.db", 0o660),
        ("authority/keys", 0o755),
        ("authority/keys", 0o730),
        ("authority.toml", 0o644),
        ("authority.toml", 0o660),
        ("authority.toml", 0o602),
    ],
)
async def test_a_file_or_folder_that_others_can_use_is_refused(tmp_path, what, mode):
    """N60: configuration, database, and the folder whose public parts decide what verifies."""
    await initialised(tmp_path)
    (tmp_path / what).chmod(mode)
    error = await refused_to_start(tmp_path)
    assert isinstance(error, InsecureFile), error
    assert error.metadata == {"path": str(tmp_path / what)}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to somebody else")
@pytest.mark.parametrize(
    "what",
    ["authority.toml", "authority/authority.db", "authority/keys", "authority/keys/host-ca.key"],
)
async def test_a_file_of_somebody_else_is_refused(tmp_path, what):
    """N60: wrong owner."""
    await initialised(tmp_path)
    os.chown(tmp_path / what, 65_534, 65_534)
    assert isinstance(await refused_to_start(tmp_path), InsecureFile)


@pytest.mark.parametrize(
    "what", ["authority/authority.db", "authority/keys", "authority/keys/host-ca.key"]
)
async def test_a_missing_file_is_told_and_not_made_anew(tmp_path, what):
    """N60, N64: an authority does not begin an empty database or a new CA by itself."""
    await initialised(tmp_path)
    path = tmp_path / what
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    error = await refused_to_start(tmp_path)
    assert isinstance(error, ConfigurationInvalid)
    assert str(path) in error.message
    assert not path.exists()


async def test_init_makes_files_for_its_owner_only(tmp_path):
    """N60: whatever the umask is, and never in place of what exists."""
    before = os.umask(0)
    try:
        await initialised(tmp_path)
    finally:
        os.umask(before)
    for path in (tmp_path / "authority").rglob("*"):
        if path.suffix not in (".crt", ".pub"):
            assert path.stat().st_mode & 0o077 == 0, path
    assert (tmp_path / "authority.toml").stat().st_mode & 0o077 == 0
    assert (tmp_path / "identity" / "admin.key").stat().st_mode & 0o077 == 0
    content = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(AlreadyExists):
        await initialised(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == content


@pytest.mark.parametrize("text", ["", "admin,", "admin,root", "ADMIN", "all", "attest key"])
def test_roles_that_do_not_exist(text):
    """N60: a mistyped role is an error, not a process with fewer of them."""
    if text == "admin,":
        assert parse_roles(text) == {"admin"}
        return
    with pytest.raises(ConfigurationInvalid):
        parse_roles(text)


# --- backup ----------------------------------------------------------------------------------


def secrets_of(folder: Path) -> list[bytes]:
    """What must not be found in a backup."""
    state = folder / "authority"
    found = [path.read_bytes() for path in (state / "keys").glob("*.key")]
    lines = [line for key in found for line in key.splitlines() if len(line) > 40]
    return [
        *found,
        *lines,
        b"SQLite format 3",
        b"PRIVATE KEY",
        b"CERTIFICATE",
        b"admin",
        PASSPHRASE[:20],
    ]


async def test_a_backup_shows_nothing(tmp_path, passphrase):
    """N69, N64: no key, no row, no name in the clear; readable by its owner only; made while in use."""
    out = tmp_path / "backup"
    async with served(tmp_path) as authority:
        await populate(authority)
        async with authority.store.snapshot():
            said = write_backup(
                load_settings(tmp_path / "authority.toml"),
                tmp_path / "authority.toml",
                out,
                passphrase,
            )
    content = out.read_bytes()
    assert out.stat().st_mode & 0o777 == 0o600
    for secret in secrets_of(tmp_path):
        assert secret not in content
    assert not any("battery" in line for line in said)
    assert [path.name for path in (tmp_path / "authority").iterdir() if path.is_dir()] == ["keys"]


async def test_a_backup_replaces_no_file(tmp_path, passphrase):
    """N64: yesterday's backup is not lost by a mistyped command."""
    config = await initialised(tmp_path)
    (tmp_path / "backup").write_bytes(b"yesterday")
    with pytest.raises(AlreadyExists):
        write_backup(load_settings(config), config, tmp_path / "backup", passphrase)
    assert (tmp_path / "backup").read_bytes() == b"yesterday"


@pytest.mark.parametrize("content", [b"", b"short", b"\nlong enough but in line two"])
async def test_a_weak_passphrase_is_refused(tmp_path, passphrase, content):
    """N69: an empty or short one, and a file without one, protect nothing."""
    config = await initialised(tmp_path)
    passphrase.write_bytes(content)
    with pytest.raises(ConfigurationInvalid):
        write_backup(load_settings(config), config, tmp_path / "backup", passphrase)
    assert not (tmp_path / "backup").exists()


async def test_a_passphrase_that_others_can_read_is_refused(tmp_path, passphrase):
    """N60: as every secret in a file; and one that is not there is told in one line."""
    config = await initialised(tmp_path)
    passphrase.chmod(0o640)
    with pytest.raises(InsecureFile):
        write_backup(load_settings(config), config, tmp_path / "backup", passphrase)
    passphrase.unlink()
    with pytest.raises(ConfigurationInvalid, match="passphrase"):
        write_backup(load_settings(config), config, tmp_path / "backup", passphrase)


# --- restore ---------------------------------------------------------------------------------


async def backed_up(tmp_path: Path, passphrase: Path) -> Path:
    """An authority with content, its backup, and the folder it lay in."""
    old = tmp_path / "old"
    old.mkdir()
    async with served(old) as authority:
        await populate(authority)
        config = old / "authority.toml"
        write_backup(load_settings(config), config, tmp_path / "backup", passphrase)
    return old


async def restored(tmp_path: Path, passphrase: Path) -> Path:
    """The folder of the restored authority."""
    new = tmp_path / "new"
    new.mkdir(exist_ok=True)
    before = os.umask(0o022)
    try:
        await read_backup(
            tmp_path / "backup", passphrase, new / "authority", new / "authority.toml"
        )
    finally:
        os.umask(before)
    return new


async def epochs(authority: Authority) -> dict[str, int]:
    async with authority.store.snapshot() as tx:
        (cluster,) = await tx.catalogue.clusters()
        host, vm = await tx.hosts.get("h-1"), await tx.vms.get(VM)
        return {
            "global": (await tx.placement.authority()).global_epoch,
            "policy": cluster.policy_epoch,
            "trust": host.trust_epoch,
            "grant": vm.grant_epoch,
            "key": vm.key_epoch,
        }


async def test_a_restored_authority_begins_anew(tmp_path, passphrase):
    """N64, S6: the same people may call, every verdict is void, every epoch jumped, and it is audited."""
    old = await backed_up(tmp_path, passphrase)
    async with served(old) as authority:
        assert await standing(authority) == 1  # PASSED
        before, seen = await epochs(authority), await newest(authority)
        identity = authority.admin
    restored_at_ms = SystemClock().now_ms()
    new = await restored(tmp_path, passphrase)
    shutil.copytree(old / "identity", new / "identity")
    async with served(new) as authority:
        after = await epochs(authority)
        assert {name: after[name] - before[name] for name in before} == {
            "global": EPOCH_JUMP,
            "policy": EPOCH_JUMP,
            "trust": EPOCH_JUMP,
            "grant": EPOCH_JUMP,
            "key": 0,
        }
        assert await standing(authority) != 1
        channel = authority.channel(identity)
        assert (await call(channel, STATUS, metadata=[(ECHO, seen)])).code is Code.OK
        entries, _ = await authority.process.audit.entries(start=-1, limit=1)
        assert b'"authority.restore"' in entries[0].content
        async with authority.store.snapshot() as tx:
            (state,) = await tx.placement.look([(VM, "h-1")])
        assert state.authority.hold_owners_until_ms >= restored_at_ms + FENCE_MS


SPOILED = {
    "a byte less": lambda content: content[:-1],
    "the head alone": lambda content: content[:40],
    "part of the head": lambda content: content[:9],
    "nothing": lambda content: b"",
    "the last bit": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "the salt": lambda content: content[:12] + bytes([content[12] ^ 1]) + content[13:],
    "the magic": lambda content: b"x" + content[1:],
}


async def test_a_damaged_backup_restores_nothing(tmp_path, passphrase):
    """N64: nothing is written until all of it was authenticated."""
    config = await initialised(tmp_path)
    write_backup(load_settings(config), config, tmp_path / "backup", passphrase)
    content = (tmp_path / "backup").read_bytes()
    for what, spoil in SPOILED.items():
        (tmp_path / "backup").write_bytes(spoil(content))
        with pytest.raises(ConfigurationInvalid):
            await restored(tmp_path, passphrase)
        assert list((tmp_path / "new").iterdir()) == [], what


async def test_another_passphrase_restores_nothing(tmp_path, passphrase):
    """N64: and says so without a hint."""
    config = await initialised(tmp_path)
    write_backup(load_settings(config), config, tmp_path / "backup", passphrase)
    passphrase.write_bytes(b"correct horse battery stapler\n")
    with pytest.raises(ConfigurationInvalid, match="passphrase is wrong"):
        await restored(tmp_path, passphrase)
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(ConfigurationInvalid):
        await read_backup(tmp_path / "nowhere", passphrase, tmp_path / "n", tmp_path / "n.toml")


async def test_restore_replaces_nothing(tmp_path, passphrase):
    """N64: an authority that is there, or a part of one, stays as it is."""
    config = await initialised(tmp_path)
    write_backup(load_settings(config), config, tmp_path / "backup", passphrase)
    for what in ("authority/keys/host-ca.key", "authority/authority.db", "authority.toml"):
        new = tmp_path / what.replace("/", "-").upper()
        (new / what).parent.mkdir(parents=True)
        (new / what).write_bytes(b"mine")
        with pytest.raises(AlreadyExists):
            await read_backup(
                tmp_path / "backup", passphrase, new / "authority", new / "authority.toml"
            )
        files = [each for each in new.rglob("*") if each.is_file()]
        assert [each.read_bytes() for each in files] == [b"mine"]


# --- a rollback, and its acceptance ------------------------------------------------------------


async def test_yesterdays_database_is_met_by_todays_checkpoint(tmp_path):
    """N91, N64: the first caller who saw more stops releases, until somebody accepts the loss.

    Then epochs jump, and callers who go on echoing what was lost are served again.
    """
    async with served(tmp_path) as authority:
        await populate(authority)
    database = tmp_path / "authority" / "authority.db"
    yesterday = database.read_bytes()
    async with served(tmp_path) as authority:
        channel = authority.channel(authority.admin)
        for number in range(5):
            await call(channel, CREATE, CREATE.request(name=f"lost-{number}"))
        seen = await newest(authority)
    database.write_bytes(yesterday)
    async with served(tmp_path) as authority:
        channel = authority.channel(authority.admin)
        assert (await call(channel, STATUS)).code is Code.OK  # who saw nothing can't know
        answer = await call(channel, STATUS, metadata=[(ECHO, seen)])
        assert answer.reason == "ROLLBACK_DETECTED"
        before = await epochs(authority)
    await accept_loss(load_settings(tmp_path / "authority.toml"))
    async with served(tmp_path) as authority:
        assert await halted(authority) == ""
        after = await epochs(authority)
        assert all(
            after[name] - before[name] == EPOCH_JUMP
            for name in ("global", "policy", "trust", "grant")
        )
        assert await standing(authority) != 1
        channel = authority.channel(authority.admin)
        assert (await call(channel, STATUS, metadata=[(ECHO, seen)])).code is Code.OK
        assert await halted(authority) == ""
        entries, _ = await authority.process.audit.entries(start=-1, limit=1)
        assert b'"authority.accept-loss"' in entries[0].content


async def test_an_accepted_loss_begins_an_era(tmp_path):
    """N91: checkpoints of the lost part halt nothing any more; forks within the new era do."""
    async with served(tmp_path) as authority:
        channel = authority.channel(authority.admin)
        lost = [note_of(authority, size=size, root=b"r" * 32) for size in (50, 90)]
        answer = await call(channel, STATUS, metadata=[(ECHO, lost[0])])
        assert answer.reason == "ROLLBACK_DETECTED"
    await accept_loss(load_settings(tmp_path / "authority.toml"))
    async with served(tmp_path) as authority:
        channel = authority.channel(authority.admin)
        for note in lost:
            assert (await call(channel, STATUS, metadata=[(ECHO, note)])).code is Code.OK
        async with authority.store.snapshot() as tx:
            era = await tx.audit.era()
        forged = note_of(authority, size=91, root=b"r" * 32, era=era)
        answer = await call(channel, STATUS, metadata=[(ECHO, forged)])
        assert answer.reason == "ROLLBACK_DETECTED"
        assert await halted(authority)


async def test_a_database_from_before_an_accepted_loss_is_a_rollback_too(tmp_path):
    """N91: a checkpoint of a later era than ours, however small, stops releases."""
    async with served(tmp_path) as authority:
        later = note_of(authority, size=1, root=b"r" * 32, era=9)
        answer = await call(authority.channel(authority.admin), STATUS, metadata=[(ECHO, later)])
        assert answer.reason == "ROLLBACK_DETECTED"
        assert await halted(authority)


async def test_housekeeping_survives_a_store_that_does_not_answer(tmp_path):
    """N35, N33: a full disk or a clock that stepped back does not end the process."""
    async with served(tmp_path) as authority:
        await keep_house(authority.process)
        authority.clock.step_ms(-3_600_000)
        await keep_house(authority.process)
        (failed,) = authority.journal.of("housekeeping_failed")
        assert failed["reason"] == "STORE_UNAVAILABLE"
        answer = await call(authority.channel(authority.admin), STATUS)
        assert answer.code is Code.OK  # reads go on
        create = await call(authority.channel(authority.admin), CREATE, CREATE.request(name="x"))
        assert (create.code, create.reason) == (Code.UNAVAILABLE, "STORE_UNAVAILABLE")


@pytest.mark.parametrize(("roles", "purges"), [({"attest"}, True), ({"placement"}, False)])
async def test_old_evidence_is_purged_by_the_attest_role(tmp_path, roles, purges):
    """Rule 67: again and again while the process runs, in one role only, and it ends with the process."""
    await initialised(tmp_path)
    async with served(tmp_path, roles=frozenset(roles)) as authority:
        stop = asyncio.Event()
        async with purging(authority.process, stop, every_s=0.01):
            for number in (1, 2):
                async with authority.store.transaction() as tx:
                    await tx.archive.put_verdict(str(number), old_verdict())
                await _until_gone(authority, str(number), limit_s=20 if purges else 0.2)
                async with authority.store.snapshot() as tx:
                    gone = await tx.archive.get_verdict(str(number)) is None
                assert gone is purges
        assert stop.is_set() is purges


def old_verdict() -> dict[str, object]:
    """A verdict of 1970, on a host that is not there any more."""
    texts = dict.fromkeys(("document", "seal", "report"), "x")
    hashes = {"evidence_sha256": "00", "boot_log_sha256": b"b", "ima_log_sha256": b"i"}
    return {"host_id": "h-gone", "passed": True, "decided_at_ms": 1, **texts, **hashes}


async def _until_gone(authority: Authority, verdict_id: str, *, limit_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            while True:
                async with authority.store.snapshot() as tx:
                    if await tx.archive.get_verdict(verdict_id) is None:
                        return
                await asyncio.sleep(0.01)


async def test_the_keys_of_other_roles_are_not_read(tmp_path):
    """N69, design 7: a process holds the keys of its roles and no others."""
    await initialised(tmp_path)
    keys = KeyFiles(tmp_path / "authority")
    for name, roles in (
        ("admin-ca", {"attest", "placement"}),
        ("host-ca", {"admin", "placement"}),
        ("report-key", {"placement"}),
        ("challenge-key", {"admin"}),
    ):
        keys.path(name).chmod(0o644)  # would be refused if it were read
        async with served(tmp_path, roles=frozenset(roles)) as authority:
            assert authority.process.keys.audit_key
        keys.path(name).chmod(0o600)


async def test_a_process_without_the_admin_ca_issues_nothing(tmp_path):
    """Design 7: the admin CA can live elsewhere; the call says so instead of failing later."""
    async with served(tmp_path, roles=frozenset({"attest", "placement"})) as authority:
        answer = await call(authority.channel(authority.admin), named("IssueIdentity"))
        assert answer.code is Code.UNIMPLEMENTED
        assert authority.process.keys.admin_ca is None


# --- destroyed keys stay destroyed -------------------------------------------------------------


async def _destroy(authority: Authority) -> None:
    """Compromise and destroy the VM's key by the calls of an administrator, and let the time pass."""
    channel = authority.channel(authority.admin)
    change, destroy = named("ChangeKeyState"), named("DestroyKey")
    changed = await call(channel, change, change.request(vm_id=VM, step=4, why="test"))
    assert changed.code is Code.OK
    assert (await call(channel, destroy, destroy.request(vm_id=VM, why="test"))).code is Code.OK
    async with authority.store.transaction() as tx:
        (key,) = await tx.keys.epochs(VmId(VM))
        assert await tx.keys.replace(key, replace(key, destroy_at_ms=1))
    await keep_house(authority.process)


async def _key_state(folder: Path) -> KeyState:
    async with served(folder) as authority, authority.store.snapshot() as tx:
        (key,) = await tx.keys.epochs(VmId(VM))
        return key.state


async def test_a_rollback_does_not_resurrect_a_key(tmp_path):
    """N64: the file of yesterday is put back; the key is destroyed again before anything is served."""
    async with served(tmp_path) as authority:
        await populate(authority)
    database = tmp_path / "authority" / "authority.db"
    yesterday = database.read_bytes()
    async with served(tmp_path) as authority:
        await _destroy(authority)
    database.write_bytes(yesterday)
    assert await _key_state(tmp_path) is KeyState.DESTROYED_COMPROMISED
    database.write_bytes(yesterday)
    assert await accept_loss(load_settings(tmp_path / "authority.toml")) == 1
    assert await _key_state(tmp_path) is KeyState.DESTROYED_COMPROMISED


async def test_a_backup_does_not_resurrect_a_key_where_tombstones_were_saved(tmp_path, passphrase):
    """N64: with the lost machine's tombstones the key stays destroyed; without, it is back and said so."""
    async with served(tmp_path) as authority:
        await populate(authority)
    config = tmp_path / "authority.toml"
    backup = tmp_path / "backup"
    write_backup(load_settings(config), config, backup, passphrase)
    async with served(tmp_path) as authority:
        await _destroy(authority)
    saved = tmp_path / "authority" / "tombstones"
    for name, tombstones in (("with", saved), ("without", None)):
        folder = tmp_path / name
        again = await read_backup(
            backup,
            passphrase,
            folder / "authority",
            folder / "authority.toml",
            tombstones=tombstones,
        )
        state = KeyState.DESTROYED_COMPROMISED if tombstones else KeyState.ACTIVE
        assert (again, await _key_state(folder)) == (int(tombstones is not None), state)
    forged = tmp_path / "forged"
    forged.write_bytes(saved.read_bytes().replace(b'"keyEpoch":1', b'"keyEpoch":2'))
    with pytest.raises(ConfigurationInvalid, match="no tombstone of this authority"):
        await read_backup(
            backup,
            passphrase,
            tmp_path / "f" / "authority",
            tmp_path / "f" / "authority.toml",
            tombstones=forged,
        )
    # a backup made after the destruction knows of it by itself
    later = tmp_path / "later"
    write_backup(load_settings(config), config, later, passphrase)
    await read_backup(
        later, passphrase, tmp_path / "l" / "authority", tmp_path / "l" / "authority.toml"
    )
    assert (tmp_path / "l" / "authority" / "tombstones").read_bytes() == saved.read_bytes()
