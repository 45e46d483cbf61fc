"""Whether a disk stands alone, asked before root reads it.

Stage: I/O of the agent. Trusts qemu-img of this host, nothing in an image: who wrote it may have named
files of the host in it (a backing file, a data file), or made a raw disk look like a format that can.
QEMU runs as a user who can't read those, the agent as root. Guarantees that what is written again
holds what is in the image's own file, and goes where nobody else can put a link first.
"""

import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FORMATS = frozenset({"raw", "qcow2"})
_LIMIT_S = 60.0
_LOCK = ".lock"


class DiskNotAlone(ValueError):
    """The image needs other files, is of another format, or can't be read; the message says which."""


def require_alone(path: Path, known_format: str = "") -> str:
    """The format of a disk that is one file; ``known_format`` is that which its definition tells.

    Raises:
        DiskNotAlone: see there.
    """
    if known_format == "raw":
        return known_format  # there is nothing in it to name a file with
    asked = ("-f", known_format) if known_format else ()
    try:
        done = subprocess.run(
            ("qemu-img", "info", "--output=json", *asked, str(path)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LIMIT_S,
            check=False,
        )
        info = json.loads(done.stdout) if done.returncode == 0 else {}
    except (OSError, subprocess.TimeoutExpired, ValueError) as failure:
        raise DiskNotAlone(f"{path}: {failure}") from failure
    if done.returncode != 0 or not isinstance(info, dict):
        raise DiskNotAlone(f"{path}: {done.stderr.decode(errors='replace').strip()}")
    return _checked(info, path)


def _checked(info: dict[str, object], path: Path) -> str:
    found = info.get("format")
    if found not in _FORMATS:
        raise DiskNotAlone(f"{path} is {found}: convert it to raw or qcow2 first")
    specific = info.get("format-specific")
    inner = specific.get("data") if isinstance(specific, dict) else None
    needs = info.get("full-backing-filename") or info.get("backing-filename")
    if isinstance(inner, dict):
        needs = needs or inner.get("data-file")
    if needs:
        raise DiskNotAlone(f"{path} needs {needs!r} besides: make one file of it first")
    return str(found)


@contextmanager
def unfinished(target: Path) -> Iterator[Path]:
    """Where to write what becomes ``target``: beside it, in a folder that only we can change.

    What a killed process left of an earlier try is removed. Raises OSError.
    """
    _sweep(target)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with (folder / _LOCK).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield folder / target.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(written: Path, target: Path) -> None:
    """Give what was written its name, whole, and only if nothing has it. Raises OSError."""
    os.link(written, target)  # unlike a rename it replaces nothing
    written.unlink()
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _sweep(target: Path) -> None:
    """Remove folders of ``unfinished`` whose process is gone: nobody holds their lock."""
    known = re.compile(re.escape(f".{target.name}.") + r"[a-z0-9_]{8}")
    for folder in target.parent.iterdir():
        if not known.fullmatch(folder.name) or folder.is_symlink():
            continue
        with suppress(OSError):
            if folder.stat().st_uid != os.geteuid():
                continue
            with (folder / _LOCK).open("rb+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
