"""Read files with private keys only when nobody else could have read or written them (N60)."""

import os
import stat
from pathlib import Path

from trustauthority.errors import InsecureFile

_MAX_BYTES = 1 << 16


def read_secret(path: Path) -> bytes:
    """Read a private file; its mode is checked on the open descriptor.

    Raises:
        InsecureFile: a link, not a regular file, another owner than root or us, open to others, or
            larger than 64 KiB.
        OSError: it can't be opened or read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InsecureFile(f"{path} is not a regular file", path=str(path))
        if status.st_uid not in {0, os.geteuid()}:
            raise InsecureFile(f"{path} belongs to user {status.st_uid}", path=str(path))
        if status.st_mode & 0o077:
            raise InsecureFile(f"{path} is open to others: chmod 0600 {path}", path=str(path))
        if status.st_size > _MAX_BYTES:
            raise InsecureFile(f"{path} has more than {_MAX_BYTES} bytes", path=str(path))
        return file.read()
