"""The offline escrow key in a file: made, encrypted with a passphrase, read back.

Trusts nothing in a file. The private key is encrypted with AES-256-GCM under scrypt of the passphrase;
its file has mode 0600 and is never replaced. Source: docs/reference/escrow.md.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from trustauthority.client.files import read_private, write_private
from trustauthority.errors import (
    AlreadyExists,
    ConfigurationInvalid,
    EscrowRejected,
    InvalidRequest,
    MalformedEscrow,
)
from trustauthority.keyrelease.escrow import (
    ALGORITHMS,
    KEY_ID_SIZE,
    PRIVATE_SIZE,
    armour,
    public_of,
    unarmour,
)

MIN_PASSPHRASE = 12
MAX_EXPORT = 1 << 30
"""Bytes: about 300,000 keys."""
_ARMOUR = "TRUSTAUTHORITY ESCROW PRIVATE KEY"
_SALT, _NONCE = 16, 12


def new_private_key() -> bytes:
    """A fresh private key: both seeds are plain random bytes."""
    return os.urandom(PRIVATE_SIZE)


def encrypt_private_key(private: bytes, passphrase: bytes) -> str:
    """The text form of a private key."""
    salt, nonce = os.urandom(_SALT), os.urandom(_NONCE)
    head = ALGORITHMS + public_of(private).key_id
    sealed = AESGCM(_stretched(passphrase, salt)).encrypt(nonce, private, head)
    return armour(_ARMOUR, head + salt + nonce + sealed)


def decrypt_private_key(text: str, passphrase: bytes) -> bytearray:
    """The private key; the caller wipes it.

    Raises:
        MalformedEscrow: not such a file. EscrowRejected: another passphrase, or the file was changed.
    """
    content = unarmour(_ARMOUR, text)
    if not content.startswith(ALGORITHMS):
        raise MalformedEscrow("the escrow private key is of another version or algorithm")
    parts, start = [], 0
    for size in (len(ALGORITHMS) + KEY_ID_SIZE, _SALT, _NONCE):
        parts.append(content[start : start + size])
        start += size
    head, salt, nonce = parts
    private = bytearray(PRIVATE_SIZE)
    try:
        AESGCM(_stretched(passphrase, salt)).decrypt_into(nonce, content[start:], head, private)
    except (InvalidTag, ValueError):
        raise EscrowRejected(
            "the passphrase is wrong, or the file of the private key was changed"
        ) from None
    return private


@contextmanager
def private_key(path: Path, passphrase_file: Path) -> Iterator[bytearray]:
    """The private key of a file, wiped at the end of the block."""
    text = read_private(path, "escrow private key").decode("ascii", "replace")
    private = decrypt_private_key(text, read_passphrase(passphrase_file))
    try:
        yield private
    finally:
        private[:] = bytes(len(private))


def read_passphrase(path: Path) -> bytes:
    """The first line of a file that only its owner can read.

    Raises:
        InsecureFile: others can. ConfigurationInvalid: it is not there, or too short.
    """
    lines = read_private(path, "passphrase file").splitlines()[:1]
    if not lines or len(lines[0]) < MIN_PASSPHRASE:
        raise ConfigurationInvalid(
            f"the first line of {path} has less than {MIN_PASSPHRASE} characters", path=str(path)
        )
    return lines[0]


def read_large(path: Path, what: str) -> bytes:
    """The content of a public file, at most ``MAX_EXPORT`` bytes. Raises InvalidRequest."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_EXPORT + 1)
    except OSError as error:
        raise InvalidRequest(f"can't read {what} {path}: {error.strerror}", field=what) from error
    if len(content) > MAX_EXPORT:
        raise InvalidRequest(f"{what} {path} is longer than 1 GiB", field=what)
    return content


def write_new(path: Path, content: bytes) -> None:
    """Write a private file that is not there yet. Raises AlreadyExists."""
    try:
        write_private(path, content, replace=False)
    except FileExistsError as error:
        raise AlreadyExists(f"{path} exists", kind="file", name=str(path)) from error


def _stretched(passphrase: bytes, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=2**17, r=8, p=1).derive(passphrase)
