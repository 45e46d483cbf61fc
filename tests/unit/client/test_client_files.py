"""Secrets on disk: read only when nobody else can, written so that nobody else ever could (N60)."""

import os
from pathlib import Path

import pytest

from trustauthority.client import files
from trustauthority.client.files import read_private, read_public, write_private
from trustauthority.errors import ConfigurationInvalid, InsecureFile


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(b"s")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_private_file_is_read(secret: Path, mode: int) -> None:
    """The owner alone may have any right."""
    secret.chmod(mode)
    assert read_private(secret, "key") == b"s"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o777])
def test_any_right_of_others_is_refused(secret: Path, mode: int) -> None:
    """N60: group and others have no right at all, and the message says what to run."""
    secret.chmod(mode)
    with pytest.raises(InsecureFile, match=f"mode {mode:04o}.*chmod 600"):
        read_private(secret, "key")


def test_a_link_is_judged_by_what_it_points_to(secret: Path, tmp_path: Path) -> None:
    """N60: the file that is opened is the one that is checked."""
    link = tmp_path / "link"
    link.symlink_to(secret)
    assert read_private(link, "key") == b"s"
    secret.chmod(0o644)
    with pytest.raises(InsecureFile):
        read_private(link, "key")


def test_a_file_of_another_user_is_refused(secret: Path) -> None:
    """N60: a key that somebody else owns is his to change; root's may be lent."""
    mine = list(secret.stat())
    for owner, refused in ((os.geteuid(), False), (0, False), (os.geteuid() + 12_345, True)):
        mine[4] = owner
        status = os.stat_result(mine)
        if not refused:
            files._require_private(status, secret, "key")
            continue
        with pytest.raises(InsecureFile, match="another user"):
            files._require_private(status, secret, "key")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The message says what was wanted, and where."""
    for read in (read_private, read_public):
        with pytest.raises(ConfigurationInvalid, match=r"can't read the key .*/nothing: No such"):
            read(tmp_path / "nothing", "key")


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch) -> None:
    """A wrong path must not fill the memory."""
    monkeypatch.setattr(files, "MAX_FILE_SIZE", 10)
    path = tmp_path / "huge"
    path.write_bytes(b"x" * 11)
    with pytest.raises(ConfigurationInvalid, match="larger"):
        read_public(path, "certificate")


def test_a_written_file_is_private_and_whole(tmp_path: Path) -> None:
    """Nothing of it was ever readable by others, and no temporary file stays."""
    path = tmp_path / "new" / "key"
    write_private(path, b"secret")
    assert path.read_bytes() == b"secret"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o077 == 0
    assert list(path.parent.iterdir()) == [path]


def test_replacing_keeps_it_private(secret: Path) -> None:
    """A file that was too open is not open any more."""
    secret.chmod(0o644)
    write_private(secret, b"new")
    assert secret.stat().st_mode & 0o777 == 0o600


def test_not_replacing_wins_a_race(secret: Path) -> None:
    """A key that somebody made meanwhile is not overwritten."""
    with pytest.raises(FileExistsError):
        write_private(secret, b"new", replace=False)
    assert secret.read_bytes() == b"s"
    assert list(secret.parent.iterdir()) == [secret]
