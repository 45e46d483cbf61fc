"""Hashes that people type."""

import re

from trustauthority.errors import InvalidRequest

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def sha256_argument(text: str, where: str) -> bytes:
    """The 32 bytes of a SHA-256 in hex. Raises InvalidRequest naming ``where`` it stood."""
    value = text.strip().removeprefix("sha256:")
    if not _SHA256.fullmatch(value):
        raise InvalidRequest(f"{where}: a SHA-256 is 64 hex digits, not {text!r}", field=where)
    return bytes.fromhex(value)
