"""A disk is read in the format that somebody names: its guest wrote the first bytes of it."""

import subprocess
from pathlib import Path

import pytest

from hostagent.disk_desk import _checked_format
from hostagent.failure import CallFailed


def image(path: Path, *words: str) -> Path:
    subprocess.run(["qemu-img", "create", "-q", *words, str(path), "1M"], check=True)
    return path


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return image(tmp_path / "raw.img", "-f", "raw")


def test_a_raw_disk_needs_no_word(raw: Path) -> None:
    """What has no header of any format is raw."""
    assert _checked_format(raw, "") == "raw"
    assert _checked_format(raw, "raw") == "raw"


def test_a_header_alone_decides_nothing(tmp_path: Path) -> None:
    """T10: a guest that writes a qcow2 header into its raw disk gets no file of the host into it."""
    secret = tmp_path / "host-secret"
    secret.write_bytes(b"root:x:0:0")
    forged = image(tmp_path / "disk.img", "-f", "qcow2", "-b", str(secret), "-F", "raw")
    with pytest.raises(CallFailed, match="looks like qcow2: say --format"):
        _checked_format(forged, "")
    with pytest.raises(CallFailed, match="reads from another file"):
        _checked_format(forged, "qcow2")
    assert _checked_format(forged, "raw") == "raw"


def test_an_external_data_file_is_another_file(tmp_path: Path) -> None:
    """T10: qcow2 can keep its data elsewhere, by a name in its header."""
    options = f"data_file={tmp_path / 'elsewhere.raw'},data_file_raw=on"
    forged = image(tmp_path / "disk.qcow2", "-f", "qcow2", "-o", options)
    with pytest.raises(CallFailed, match="reads from another file"):
        _checked_format(forged, "qcow2")


def test_a_named_format_is_that_format(tmp_path: Path, raw: Path) -> None:
    """A wrong word is an error before anything is written."""
    assert _checked_format(image(tmp_path / "a.qcow2", "-f", "qcow2"), "qcow2") == "qcow2"
    for disk, form, said in (
        (raw, "qcow2", "not in qcow2 format"),
        (raw, "fat:/etc", "is not raw or qcow2"),
        (tmp_path / "absent", "", "No such file"),
    ):
        with pytest.raises(CallFailed, match=said):
            _checked_format(disk, form)
