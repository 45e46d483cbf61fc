"""Files with secrets are read only when nobody else can, and written so that nobody else ever could.

Stage: client. Guarantees: ``read_private`` refuses a file that others can read or write or that
belongs to another user (N60); ``write_private`` never leaves a half-written or readable file.
"""

import os
import stat
import tempfile
from pathlib import Path

from trustauthority.errors import ConfigurationInvalid, InsecureFile

MAX_FILE_SIZE = 1_048_576
"""Bytes; certificates, keys and contexts are a few kilobytes."""


def read_public(path: Path, what: str) -> bytes:
    """Read a small file such as a certificate. Raises ConfigurationInvalid naming ``what`` it is."""
    try:
        with path.open("rb") as file:
            return _read(file.fileno(), path, what)
    except OSError as error:
        raise ConfigurationInvalid(
            f"can't read the {what} {path}: {error.strerror}", path=str(path)
        ) from error


def read_private(path: Path, what: str) -> bytes:
    """Read a small file with a secret.

    Raises InsecureFile when others may read or write it or another user owns it, and
    ConfigurationInvalid when it can't be read.
    """
    try:
        with path.open("rb") as file:
            _require_private(os.fstat(file.fileno()), path, what)
            return _read(file.fileno(), path, what)
    except OSError as error:
        raise ConfigurationInvalid(
            f"can't read the {what} {path}: {error.strerror}", path=str(path)
        ) from error


def write_private(path: Path, content: bytes, *, replace: bool = True) -> None:
    """Write a file that only its owner can read, whole or not at all.

    Raises FileExistsError when it exists and ``replace`` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            os.link(temporary, path)  # fails when the name is taken, unlike a rename
    finally:
        temporary.unlink(missing_ok=True)


def _read(descriptor: int, path: Path, what: str) -> bytes:
    content = b""
    while block := os.read(descriptor, 65_536):
        content += block
        if len(content) > MAX_FILE_SIZE:
            raise ConfigurationInvalid(f"the {what} {path} is larger than 1 MiB", path=str(path))
    return content


def _require_private(status: os.stat_result, path: Path, what: str) -> None:
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InsecureFile(
            f"the {what} {path} can be used by others (mode {stat.S_IMODE(status.st_mode):04o}); "
            f"run chmod 600 {path}, and issue a new one if others had access",
            path=str(path),
        )
    if status.st_uid not in {os.geteuid(), 0}:
        raise InsecureFile(f"the {what} {path} belongs to another user", path=str(path))
