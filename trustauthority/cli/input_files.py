"""Reads one file that the caller named; whatever it is, the answer comes at once and is no traceback.

Trusts nothing: only regular files are read (a pipe could keep us waiting for ever, a device never end),
and never more than the limit. Kernel files under /sys are regular files whose size is not known before.
"""

import os
import stat
from pathlib import Path

from trustauthority.codec.efi_text import printable
from trustauthority.errors import InvalidRequest, TrustAuthorityError


def read_input(path: Path, limit: int, *, name: str, field: str) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Args:
        path: the file.
        limit: bytes.
        name: what the caller knows it by, for the message.
        field: metadata of the error.

    Raises:
        InvalidRequest: it can't be read, is no regular file, or is longer.
    """
    shown = printable(name)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            size = _size_of_regular(descriptor, shown, field)
            data = b"" if size > limit else _read(descriptor, limit + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise InvalidRequest(f"{shown}: {error.strerror}", field=field) from None
    except ValueError:  # a zero byte in the name
        raise InvalidRequest(f"{shown}: not the name of a file", field=field) from None
    if size > limit or len(data) > limit:
        raise InvalidRequest(f"{shown}: longer than {limit} bytes", field=field)
    return data


def _size_of_regular(descriptor: int, shown: str, field: str) -> int:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise InvalidRequest(f"{shown}: is {kind}", field=field)
    return status.st_size


def _read(descriptor: int, limit: int) -> bytes:
    with os.fdopen(descriptor, "rb", closefd=False) as stream:
        return stream.read(limit)


def not_judged(crash: Exception) -> TrustAuthorityError:
    """The refusal to give when judging a file failed by a defect of ours."""
    return TrustAuthorityError(f"it could not be judged: {type(crash).__name__}")
