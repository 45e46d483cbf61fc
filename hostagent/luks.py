"""Passphrases of an encrypted disk (qcow2 with LUKS): which slots it has, adding one, leaving only one.

Stage: edge of the agent; runs qemu-img and qemu-io of this host and trusts them. Guarantees that a
passphrase goes through a pipe, never into an argument or a file, that adding changes only a slot that
was free, and that nothing is erased before the passphrase that stays was seen to read the disk from a
slot that is not erased. Does not encrypt: the key of the data stays the same, also in every copy.
Source: LUKS1 on-disk format 1.2, section 2; QEMU's amend options of LUKS.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ITERATIONS = "iter-time=100"
"""256 random bits need no stretching, and each start of the VM would wait for it."""
_LIMIT_S = 4 * 3600.0
"""The longest that one run of qemu-img may take."""
_TOO_BUSY = "Unable to get accurate CPU usage"
"""qemu-img on a host so busy that it can't time one round of the key derivation."""
_TRIES = 20
_PAUSE_S = 0.5
_WRONG = "Invalid password"


class LuksFailed(Exception):
    """A program of QEMU did not do it, or the disk is not what it should be; the message says why."""


def active_slots(image: Path) -> frozenset[int]:
    """The numbers of the slots in use.

    Raises LuksFailed, also for a disk that is not qcow2 with LUKS or reads from another file.
    """
    said = run_qemu("qemu-img", "info", "--output", "json", "--image-opts", _image(image))
    found = json.loads(said)
    data = found.get("format-specific", {}).get("data", {})
    if data.get("encrypt", {}).get("format") != "luks":
        raise LuksFailed(f"{image} is not a qcow2 with LUKS")
    if "backing-filename" in found or "data-file" in data:
        raise LuksFailed(f"{image} reads from another file: flatten it first")
    return frozenset(n for n, slot in enumerate(data["encrypt"]["slots"]) if slot["active"])


def opens(image: Path, passphrase: bytes | bytearray) -> bool:
    """Whether a passphrase reads the first sector. Raises LuksFailed when that can't be said."""
    # qemu-img info would not ask for the key
    read = ("-c", "read -q 0 512", "--image-opts", luks_options(image))
    try:
        run_qemu("qemu-io", "-r", *read, new=passphrase)
    except LuksFailed as failure:
        if _WRONG in str(failure):
            return False
        raise
    return True


def add_passphrase(image: Path, old: bytes | bytearray, new: bytes | bytearray) -> None:
    """A free slot for ``new``; it has read a sector when this returns. Raises LuksFailed."""
    how = f"encrypt.state=active,encrypt.new-secret=new,encrypt.{ITERATIONS}"
    words = ("--image-opts", luks_options(image, "old"), "-o", how)
    run_qemu("qemu-img", "amend", *words, old=old, new=new)
    sync(image)
    if not opens(image, new):
        raise LuksFailed(f"{image} does not open with the passphrase that was added")


def leave_only(image: Path, passphrase: bytes | bytearray) -> int:
    """Erase all slots but one of ``passphrase``, which opens the disk; how many. Raises LuksFailed.

    Which slot is whose can't be seen, so it gets one more, known to be its own, and keeps that.
    """
    before = active_slots(image)
    if not opens(image, passphrase):
        raise LuksFailed(f"{image} does not open with the passphrase that should stay")
    if len(before) == 1:
        return 0
    add_passphrase(image, passphrase, passphrase)
    added = active_slots(image) - before
    if len(added) != 1:
        raise LuksFailed(f"{image} was changed by somebody else meanwhile")
    for slot in sorted(before):
        how = f"encrypt.state=inactive,encrypt.keyslot={slot}"
        words = ("--image-opts", luks_options(image), "-o", how)
        run_qemu("qemu-img", "amend", *words, new=passphrase)
    sync(image)
    if active_slots(image) != added or not opens(image, passphrase):
        raise LuksFailed(f"{image} was changed by somebody else meanwhile")
    return len(before)


def luks_options(image: Path, opened_by: str = "new") -> str:
    """How QEMU's programs are told to open an encrypted disk by a named secret."""
    return f"{_image(image)},encrypt.key-secret={opened_by}"


def escaped(path: str) -> str:
    """A path within a list of options."""
    return path.replace(",", ",,")


def sync(path: Path) -> None:
    """Have everything written on the medium. Raises OSError."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def run_qemu(program: str, first: str, *words: str, **secrets: bytes | bytearray) -> str:
    """Run a program of QEMU; passphrases go through pipes. Raises LuksFailed."""
    tries = 0
    while True:
        tries += 1
        try:
            return _run_once(program, first, *words, **secrets)
        except LuksFailed as failure:
            if _TOO_BUSY not in str(failure) or tries == _TRIES:
                raise
        time.sleep(_PAUSE_S)


def _run_once(program: str, first: str, *words: str, **secrets: bytes | bytearray) -> str:
    with _pipes(secrets) as ends:
        objects = [
            part
            for name, end in ends.items()
            for part in ("--object", f"secret,id={name},file=/dev/fd/{end}")
        ]
        try:
            done = subprocess.run(
                # qemu-img wants its command before its options
                (program, first, *objects, *words),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                pass_fds=tuple(ends.values()),
                timeout=_LIMIT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as failure:
            raise LuksFailed(f"{program} {first}: {failure}") from failure
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise LuksFailed(f"{program} {first}: {said}")
    return done.stdout.decode(errors="replace")


@contextmanager
def _pipes(secrets: dict[str, bytes | bytearray]) -> Iterator[dict[str, int]]:
    ends: dict[str, int] = {}
    try:
        for name, value in secrets.items():
            ends[name], writing = os.pipe()
            try:
                os.write(writing, value)
            finally:
                os.close(writing)
        yield ends
    finally:
        for end in ends.values():
            os.close(end)


def _image(path: Path) -> str:
    return f"driver=qcow2,file.filename={escaped(str(path))}"
