"""Where runtime rules come from: a host's runtime log, a root file system, Debian packages.

Trusts what the caller points at: whoever makes rules from a host says that the host is good. Reads
files only; nothing is executed but ``dpkg-deb``, which unpacks a package to a pipe.
"""

import hashlib
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from trustauthority.codec.ima import decode_ima_fields, path_and_digest, template_fields
from trustauthority.codec.ima_log import decode_ima_log
from trustauthority.errors import ConfigurationInvalid, InvalidRequest, PolicyInvalid
from trustauthority.model.ima import BOOT_AGGREGATE
from trustauthority.verification.runtime import entry_findings

MAX_LOG_BYTES = 256 << 20
DIGEST = "sha256"
_BLOCK = 1 << 20
_MERGED = ("/bin/", "/sbin/", "/lib/", "/lib32/", "/lib64/", "/libx32/")
"""Top folders that are links into /usr on a merged system: the kernel names the file behind them."""
_MEASURED_FOLDERS = ("lib/firmware", "lib/modules", "usr/lib/firmware", "usr/lib/modules")

Found = Iterator[tuple[str, str]]
"""Path or buffer name, and a digest such as ``sha256:…``."""


def from_log(data: bytes) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Files and measured buffers of a runtime log.

    Raises:
        MalformedEvidence: the bytes are no log.
        PolicyInvalid: an entry has a defect: such a log is no measure of anything.
    """
    entries = decode_ima_log(data).entries
    for defect in entry_findings(entries, limit=1):
        raise PolicyInvalid(
            f"entry {defect.index} of the log: {defect.detail}; take the log of a good host",
            fields="log",
        )
    files: dict[str, set[str]] = {}
    buffers: dict[str, set[str]] = {}
    for entry in entries:
        path, algorithm, digest = path_and_digest(entry)
        if entry.violation or path == BOOT_AGGREGATE:
            continue
        buffer = "buf" in template_fields(entry.template) and decode_ima_fields(entry).buffer
        if not buffer and not path.startswith("/"):
            continue  # a file without a full path can't be named by rules
        target = buffers if buffer else files
        target.setdefault(path, set()).add(f"{algorithm}:{digest.hex()}")
    return files, buffers


def from_root(root: Path, seen: Callable[[int], None]) -> Found:
    """Programs, libraries, modules and firmware below a root; links are not followed.

    Args:
        root: the mounted root file system.
        seen: told how many files were hashed so far.

    Raises:
        ConfigurationInvalid: it is no folder, or a file can't be read.
    """
    if not root.is_dir():
        raise ConfigurationInvalid(f"{root} is not a folder", path=str(root))
    count = 0
    for folder, names, files in os.walk(root, followlinks=False, onerror=_unreadable):
        names.sort()
        for name in sorted(files):
            path = Path(folder) / name
            relative = path.relative_to(root).as_posix()
            if _is_measured(path, relative):
                count += 1
                seen(count)
                yield f"/{relative}", f"{DIGEST}:{_hash(path)}"


def from_package(package: Path) -> Found:
    """Every file of a Debian package, where it is installed.

    Raises:
        ConfigurationInvalid: dpkg-deb is missing.
        InvalidRequest: the file is no package.
    """
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    try:
        unpacking = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except FileNotFoundError as error:
        raise ConfigurationInvalid(
            "dpkg-deb is not installed: apt install dpkg", path="dpkg-deb"
        ) from error
    with unpacking:
        try:
            with tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive:
                yield from _members(archive)
        except tarfile.TarError as error:
            raise InvalidRequest(f"{package.name} is no Debian package", field="package") from error
    if unpacking.returncode:
        raise InvalidRequest(f"{package.name} is no Debian package", field="package")


def _members(archive: tarfile.TarFile) -> Found:
    for member in archive:
        content = archive.extractfile(member) if member.isreg() else None
        if content is None:
            continue
        digest = hashlib.sha256()
        while block := content.read(_BLOCK):
            digest.update(block)
        path = "/" + member.name.removeprefix("./").lstrip("/")
        yield path, f"{DIGEST}:{digest.hexdigest()}"
        if path.startswith(_MERGED):
            yield f"/usr{path}", f"{DIGEST}:{digest.hexdigest()}"


def _is_measured(path: Path, relative: str) -> bool:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        return False
    executable = bool(status.st_mode & 0o111)
    return executable or ".so" in path.name or relative.startswith(_MEASURED_FOLDERS)


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, DIGEST).hexdigest()
    except OSError as error:
        raise ConfigurationInvalid(f"{path}: {error.strerror}", path=str(path)) from error


def _unreadable(error: OSError) -> None:
    raise ConfigurationInvalid(f"{error.filename}: {error.strerror}", path=str(error.filename))
