"""The text form of a Linux IMA log to the same ``ImaEntry`` that the binary form gives.

Trusts nothing on entry. On exit each line became one entry whose template data is rebuilt byte by byte;
where the text does not say it unambiguously (names with spaces, escapes), the logged template digest
decides, and it only. Prefer the binary form: a name with a newline has no text form.

Source: Linux security/integrity/ima/ima_template_lib.c (how fields are shown). Pitfalls 53.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from struct import pack

from trustauthority.codec.ima import (
    MAX_ENTRY_BYTES,
    MAX_TEMPLATE_NAME,
    OLD_NAME_BYTES,
    OLD_TEMPLATE,
    PART,
    template_fields,
)
from trustauthority.errors import AlgorithmUnsupported, MalformedEvidence
from trustauthority.model.ima import ImaEntry

MAX_LINE_BYTES = 3 * MAX_ENTRY_BYTES
_HIGHEST_PCR = 23
_HASHES = {20: ("sha1",), 32: ("sha256", "sm3"), 48: ("sha384",), 64: ("sha512",)}
_NG_HEAD = b"\x28\0\0\0sha256:\0"
"""How a ``d-ng`` field with a SHA-256 digest begins."""
_ESCAPE = re.compile(rb"\\x([0-9a-fA-F]{2})")
_NUMBER_SIZES = {"iuid": 4, "igid": 4, "imode": 2}


def decode_ima_ascii(data: bytes) -> tuple[ImaEntry, ...]:
    """Decode a whole text log.

    A line whose template we do not know keeps its text as data: it stays in the log, unverifiable.

    Raises:
        MalformedEvidence: with the offset of the line that makes no sense.
    """
    entries: list[ImaEntry] = []
    offset = 0
    for line in data.split(b"\n"):
        usual = _usual_line(line, offset, len(entries))
        if usual is not None:
            entries.append(usual)
        elif line.strip():
            entries.append(_line(line, offset, len(entries)))
        offset += len(line) + 1
    return tuple(entries)


def _usual_line(line: bytes, offset: int, index: int) -> ImaEntry | None:
    """What nearly all lines are, at a quarter of the cost; None leaves it to the general way.

    PCR 10, a SHA-1 template digest, ``ima-ng`` with a SHA-256 digest, and a name that has one reading only:
    no blank, no escape. A test shows that both ways always agree.
    """
    parts = line.split(b" ")
    if len(parts) != 5 or len(line) > MAX_LINE_BYTES:
        return None
    register, digest_text, template, file_text, name = parts
    if register != b"10" or template != b"ima-ng" or file_text[:7] != b"sha256:" or b"\\x" in name:
        return None
    try:
        digest = bytes.fromhex(digest_text.decode("latin-1"))
        content = bytes.fromhex(file_text[7:].decode("latin-1"))
    except ValueError:
        return None
    # sizes of both texts: fromhex would skip blanks
    if len(digest) != 20 or len(digest_text) != 40 or len(content) != 32 or len(file_text) != 71:
        return None
    rest = b"".join((_NG_HEAD, content, pack("<I", len(name) + 1), name, b"\0"))
    return ImaEntry(index, offset, 10, digest, "ima-ng", rest)


def _line(line: bytes, offset: int, index: int) -> ImaEntry:
    def malformed(message: str) -> MalformedEvidence:
        return MalformedEvidence(f"entry {index}: {message}", part=PART, offset=offset)

    if len(line) > MAX_LINE_BYTES:
        raise malformed(f"a line of {len(line)} bytes")
    parts = line.lstrip(b" ").split(b" ", 3)
    if len(parts) != 4:
        raise malformed("a line has a register, a digest, a template and data")
    register, digest_text, template_text, rest = parts
    if not register.isdigit() or len(register) > 2 or int(register) > _HIGHEST_PCR:
        raise malformed("the register is no PCR")
    digest = _hex(digest_text)
    if digest is None or len(digest) not in _HASHES:
        raise malformed("the template digest is not the hex form of a hash")
    if not 1 <= len(template_text) <= MAX_TEMPLATE_NAME or not template_text.isascii():
        raise malformed("the template has no usable name")
    template = template_text.decode("ascii")
    content = _content(template, rest, digest)
    if content is None:
        raise malformed(f"the data does not have the fields of {template}")
    return ImaEntry(index, offset, int(register), digest, template, content)


def _hex(text: bytes) -> bytes | None:
    """Strict hex: even, no blanks, no prefix."""
    if len(text) % 2 or not re.fullmatch(rb"[0-9a-fA-F]*", text):
        return None
    return bytes.fromhex(text.decode("ascii"))


def _content(template: str, rest: bytes, digest: bytes) -> bytes | None:
    """The template data: of several readings of a line the one that the digest proves, else the plain one."""
    try:
        names = ("d", "n") if template == OLD_TEMPLATE else template_fields(template)
    except AlgorithmUnsupported:
        return rest
    contents = [_rebuild(names, reading) for reading in _readings(names, rest)]
    proven = (content for content in contents if content is not None and _proves(digest, content))
    return next(proven, contents[0] if contents else None)


def _proves(digest: bytes, content: bytes) -> bool:
    return any(
        hashlib.new(name, content, usedforsecurity=False).digest() == digest
        for name in _HASHES[len(digest)]
        if name in hashlib.algorithms_available
    )


def _readings(names: tuple[str, ...], rest: bytes) -> list[list[bytes]]:
    """How the blanks of a line may fall: the name may hold some, and an editor strips the last ones."""
    position = next(at for at, name in enumerate(names) if name in {"n", "n-ng"})
    after = len(names) - position - 1
    words = rest.split(b" ")
    readings = []
    for missing in range(after + 1):
        padded = words + [b""] * missing
        extra = len(padded) - len(names)
        if extra < 0:
            continue
        name = b" ".join(padded[position : position + extra + 1])
        tail = padded[position + extra + 1 :]
        readings.append([*padded[:position], name, *tail])
        if b"\\x" in name:
            plain = _ESCAPE.sub(lambda match: bytes((int(match[1], 16),)), name)
            readings.append([*padded[:position], plain, *tail])
    return readings


def _rebuild(names: tuple[str, ...], values: list[bytes]) -> bytes | None:
    parts: list[bytes] = []
    for name, text in zip(names, values, strict=True):
        raw = _number(name, text) if name in _NUMBER_SIZES else _SHOWN.get(name, _hex)(text)
        if raw is None:
            return None
        parts.append(raw if name in {"d", "n"} else pack("<I", len(raw)) + raw)
    return b"".join(parts)


def _number(name: str, text: bytes) -> bytes | None:
    size = _NUMBER_SIZES[name]
    if not text:
        return b""
    if not text.isdigit() or len(text) > 10 or int(text) >= 1 << (8 * size):
        return None
    return int(text).to_bytes(size, "little")


def _digest(text: bytes) -> bytes | None:
    if not text:
        return b""
    algorithm, colon, value = text.rpartition(b":")
    digest = _hex(value)
    return algorithm + b":\0" + digest if colon and digest is not None else None


def _old_digest(text: bytes) -> bytes | None:
    digest = _hex(text)
    return digest if digest is not None and len(digest) == 20 else None


def _old_name(text: bytes) -> bytes | None:
    return text.ljust(OLD_NAME_BYTES, b"\0") if len(text) < OLD_NAME_BYTES else None


_SHOWN: Mapping[str, Callable[[bytes], bytes | None]] = {
    "d": _old_digest,
    "n": _old_name,
    "d-ng": _digest,
    "d-ngv2": _digest,
    "d-modsig": _digest,
    "n-ng": lambda text: text + b"\0",
    "xattrnames": lambda text: text + b"\0" if text else b"",
}
