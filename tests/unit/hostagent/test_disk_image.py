"""Disks that root is asked to encrypt: nothing of the host gets into them by what a guest wrote."""

import json
import subprocess
from pathlib import Path

import pytest

from hostagent import disk_desk, disk_image
from hostagent.disk_image import DiskNotAlone, require_alone, unfinished
from hostagent.failure import CallFailed

SECRET = b"root:$y$j9T$secret-of-the-host:19000::::::\n" * 2000


def qemu_img(*words: str | Path) -> None:
    subprocess.run(("qemu-img", *map(str, words)), check=True, capture_output=True, timeout=60)


@pytest.fixture
def shadow(tmp_path: Path) -> Path:
    """A file of the host that only root can read."""
    made = tmp_path / "shadow"
    made.write_bytes(SECRET)
    return made


def disk(folder: Path, kind: str, shadow: Path) -> Path:
    """A disk as a guest or a tenant may have left it."""
    made = folder / "disk.img"
    match kind:
        case "backing":
            qemu_img("create", "-q", "-f", "qcow2", "-b", shadow, "-F", "raw", made, "1M")
        case "data":
            options = f"data_file={shadow},data_file_raw=on"
            qemu_img("create", "-q", "-f", "qcow2", "-o", options, made, "1M")
            shadow.write_bytes(SECRET)
        case "vmdk":
            extent = f'# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 160 FLAT "{shadow}" 0\n'
            made.write_text(extent)
        case plain:
            qemu_img("create", "-q", "-f", plain, made, "1M")
    return made


@pytest.mark.parametrize("kind", ["backing", "data", "vmdk"])
def test_a_disk_that_names_a_file_of_the_host(tmp_path: Path, shadow: Path, kind: str) -> None:
    """T10: root writes no file of the host into a disk that a guest reads afterwards."""
    target = tmp_path / "encrypted.qcow2"
    with pytest.raises(CallFailed, match=r"besides|vmdk"):
        disk_desk._encrypt(b"p" * 64, disk(tmp_path, kind, shadow), target)
    assert not target.exists()


@pytest.mark.parametrize("kind", ["backing", "data"])
def test_the_format_of_a_definition(tmp_path: Path, shadow: Path, kind: str) -> None:
    """T10: a definition that says qcow2 says nothing about what stands behind it."""
    with pytest.raises(DiskNotAlone, match="shadow"):
        require_alone(disk(tmp_path, kind, shadow), "qcow2")


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_disk_that_stands_alone(tmp_path: Path, shadow: Path, kind: str) -> None:
    """It is encrypted, as what it is."""
    source, target = disk(tmp_path, kind, shadow), tmp_path / "encrypted.qcow2"
    assert require_alone(source) == require_alone(source, kind) == kind
    disk_desk._encrypt(b"p" * 64, source, target)
    assert target.exists()


def test_what_a_definition_calls_raw_is_raw(tmp_path: Path, shadow: Path) -> None:
    """A raw disk names nothing, whatever a guest wrote to its beginning."""
    assert require_alone(disk(tmp_path, "backing", shadow), "raw") == "raw"


@pytest.mark.parametrize("said", ["[]", "{}", "{", json.dumps({"format": "vdi"})])
def test_an_answer_that_says_nothing(tmp_path: Path, monkeypatch, said: str) -> None:
    """Doubt is a refusal."""
    answer = subprocess.CompletedProcess((), 0, stdout=said.encode(), stderr=b"")
    monkeypatch.setattr(disk_image.subprocess, "run", lambda *_a, **_k: answer)
    with pytest.raises(DiskNotAlone):
        require_alone(tmp_path / "disk")


def test_a_disk_that_is_not_there(tmp_path: Path) -> None:
    """Nothing is made of nothing."""
    with pytest.raises(DiskNotAlone):
        require_alone(tmp_path / "absent")


def test_what_is_being_written_can_not_be_redirected(tmp_path: Path) -> None:
    """T10: the place has a name that nobody guesses, in a folder that nobody else can write; nothing stays."""
    target = tmp_path / "disk.qcow2"
    with unfinished(target) as first, unfinished(target) as second:
        assert first.parent != second.parent
        assert first.parent.parent == tmp_path
        assert first.parent.stat().st_mode & 0o777 == 0o700
        first.write_bytes(b"written")
        first.rename(target)
    assert [each.name for each in tmp_path.iterdir()] == ["disk.qcow2"]
