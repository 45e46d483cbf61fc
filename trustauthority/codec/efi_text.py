"""Text inside UEFI structures, made safe to show.

Trusts nothing on entry. On exit each string is printable: control characters, bidirectional marks and
lone surrogates are escaped, so that a log can't rewrite a terminal or a web page (N44).
"""

from functools import lru_cache
from struct import unpack


@lru_cache(maxsize=1024)
def format_guid(raw: bytes) -> str:
    """A 16-byte EFI GUID (mixed endian) in the usual lower-case form."""
    first, second, third = unpack("<IHH", raw[:8])
    return f"{first:08x}-{second:04x}-{third:04x}-{raw[8:10].hex()}-{raw[10:16].hex()}"


def printable(text: str) -> str:
    """``text`` with everything that a terminal might obey written as an escape."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def utf16_text(raw: bytes) -> str:
    """UTF-16LE up to the first NUL, made printable. An odd last byte is shown as an escape."""
    text = raw[: len(raw) & ~1].decode("utf-16-le", "surrogatepass")
    tail = f"\\x{raw[-1]:02x}" if len(raw) % 2 else ""
    return printable(text.split("\0", 1)[0]) + tail


def byte_text(raw: bytes) -> str:
    """UTF-8 up to the first NUL, made printable; bytes that are not UTF-8 are shown as escapes."""
    return printable(raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace"))


def looks_like_utf16(raw: bytes) -> bool:
    """Say whether ``raw`` is UTF-16LE text: an even length and mostly zero high bytes."""
    return len(raw) >= 2 and len(raw) % 2 == 0 and raw[1::2].count(0) * 4 >= len(raw) // 2 * 3
