"""Read and write the agent's files so that only their owner can have touched or seen them.

Stage: I/O of the host agent. Trusts nothing about a path. Guarantees that what ``read_private``
returns was owned by root or this user and closed to everybody else at the moment of the read (the
checks are on the open descriptor), and that ``write_private`` leaves either the old or the new
contents after a power cut. Does not encrypt and does not interpret contents.
"""

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_FILE = 1 << 20
"""Bytes: configuration, certificates and state are far below."""


class InsecureFile(Exception):
    """A file or folder that others can read or write, or that belongs to somebody else (N60)."""


class BrokenState(Exception):
    """A state file that does not decode; the message says which and what to do."""


def read_private(path: Path, *, others_may_read: bool = False) -> bytes:
    """Read a file that nobody else can write, nor read unless ``others_may_read``.

    Raises:
        InsecureFile: wrong owner or mode, a symbolic link, or not a regular file.
        OSError: it can't be opened or read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InsecureFile(f"{path} is not a regular file")
        _check_owner_and_mode(path, status, 0o022 if others_may_read else 0o077)
        content = file.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise InsecureFile(f"{path} has more than {MAX_FILE} bytes")
    return content


def check_folder(path: Path) -> None:
    """Refuse a state folder that others may enter.

    Raises InsecureFile, or OSError when it is absent.
    """
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise InsecureFile(f"{path} is not a folder")
    _check_owner_and_mode(path, status, 0o077)


def write_private(path: Path, content: bytes | bytearray) -> None:
    """Replace a file atomically, mode 0600, synced to disk before it takes its name.

    Raises OSError; the old contents are then still there.
    """
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as file:  # no buffer keeps a copy of a key
        rest = memoryview(content)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(descriptor)
    temporary.replace(path)
    _sync_folder(path.parent)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with ``write_private``."""
    write_private(path, json.dumps(value, indent=1, sort_keys=True).encode() + b"\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object with ``read_private``; None when the file does not exist.

    Raises BrokenState when it holds anything else than one JSON object, and as ``read_private``.
    """
    try:
        content = read_private(path)
    except FileNotFoundError:
        return None
    try:
        value = json.loads(content)
    except ValueError as failure:
        raise BrokenState(f"{path} is not JSON: {failure}") from failure
    if not isinstance(value, dict):
        raise BrokenState(f"{path} is not a JSON object")
    return value


def overwrite_and_remove(path: Path) -> None:
    """Overwrite a key file with zeroes, then remove it; absent is fine.

    On a journalling or copy-on-write disk the zeroes may land elsewhere: hand out keys on tmpfs.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    with os.fdopen(descriptor, "r+b", buffering=0, closefd=True) as file:
        file.write(bytes(os.fstat(descriptor).st_size))
        os.fsync(descriptor)
    path.unlink(missing_ok=True)


def _check_owner_and_mode(path: Path, status: os.stat_result, forbidden: int) -> None:
    if status.st_uid not in {0, os.geteuid()}:
        raise InsecureFile(f"{path} belongs to user {status.st_uid}: chown it to root")
    found = stat.S_IMODE(status.st_mode)
    if found & forbidden:
        wanted = found & ~forbidden
        raise InsecureFile(f"{path} has mode {found:04o}: chmod {wanted:04o} {path}")


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
