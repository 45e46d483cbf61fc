"""Evidence bundles: bytes of an uncompressed tar to named parts, and back.

Trusts nothing on entry. On exit: the format and version are ours, every part is named in the manifest
with its size and hash and has them, no part is missing, doubled or extra, and no byte is left over.
What it does not do: verify anything a part says. Format: docs/reference/evidence-bundle.md; POSIX
IEEE 1003.1 ustar.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trustauthority.errors import MalformedEvidence

FORMAT = "trustauthority-evidence-bundle"
VERSION = 1
MANIFEST = "manifest.json"
PART = "bundle"
MAX_BUNDLE_BYTES = 256 << 20
MAX_PARTS = 64
MAX_MANIFEST_BYTES = 1 << 20
MAX_NAME = 99
_BLOCK = 512
_CHECKSUM = slice(148, 156)
_MAGIC = b"ustar\x0000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What a bundle holds."""

    manifest: Mapping[str, Any]
    parts: Mapping[str, bytes]
    """Without the manifest."""

    def part(self, name: str) -> bytes:
        """A part that must be there.

        Raises:
            MalformedEvidence: it is not.
        """
        found = self.parts.get(name)
        if found is None:
            raise MalformedEvidence(f"the bundle has no {name}", part=PART, offset=0)
        return found

    def text(self, key: str) -> str:
        """A text of the manifest. Raises MalformedEvidence."""
        found = self.manifest.get(key)
        if not isinstance(found, str):
            raise MalformedEvidence(f"{key} is not a text", part=MANIFEST, offset=0)
        return found

    def hex(self, key: str) -> bytes:
        """Bytes that the manifest holds in hex. Raises MalformedEvidence."""
        text = self.text(key)
        try:
            found = bytes.fromhex(text)
        except ValueError:
            found = b""
        if found.hex() != text:
            raise MalformedEvidence(f"{key} is not hex", part=MANIFEST, offset=0)
        return found

    def number(self, key: str) -> int:
        """A count of the manifest; 0 where it says nothing. Raises MalformedEvidence."""
        found = self.manifest.get(key, 0)
        if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found <= 1 << 40:
            raise MalformedEvidence(f"{key} is not a number", part=MANIFEST, offset=0)
        return found


def decode_bundle(data: bytes) -> Bundle:
    """Read a bundle.

    Raises:
        MalformedEvidence: with the part and the byte.
    """
    if len(data) > MAX_BUNDLE_BYTES:
        raise MalformedEvidence("longer than 256 MiB", part=PART, offset=MAX_BUNDLE_BYTES)
    parts: dict[str, bytes] = {}
    offset = 0
    while any(data[offset : offset + _BLOCK]):
        name, size = _header(data, offset)
        start = offset + _BLOCK
        end = start + size
        padded = end + -size % _BLOCK
        if padded > len(data):
            raise MalformedEvidence(f"{name} is cut off", part=PART, offset=start)
        if name in parts or len(parts) > MAX_PARTS:
            raise MalformedEvidence(f"{name} stands twice, or too many", part=PART, offset=offset)
        if any(data[end:padded]):
            raise MalformedEvidence("padding that is not zero", part=PART, offset=end)
        parts[name] = data[start:end]
        offset = padded
    if any(data[offset:]) or len(data) % _BLOCK:
        raise MalformedEvidence("bytes after the last part", part=PART, offset=offset)
    manifest = _manifest(parts.pop(MANIFEST, b""))
    _check_parts(manifest, parts)
    return Bundle(manifest=manifest, parts=parts)


def encode_bundle(
    manifest: Mapping[str, Any], parts: Mapping[str, bytes], *, made_at_s: int
) -> bytes:
    """Write a bundle; empty parts are left out.

    Args:
        manifest: what is said besides format, version and the list of parts.
        parts: names and contents.
        made_at_s: seconds since the epoch, for the entries of the tar.
    """
    kept = {name: content for name, content in parts.items() if content}
    whole = {"format": FORMAT, "version": VERSION} | dict(manifest) | {"files": _listed(kept)}
    text = json.dumps(whole, indent=1, sort_keys=True).encode() + b"\n"
    entries = {MANIFEST: text} | kept
    body = b"".join(_entry(name, content, made_at_s) for name, content in entries.items())
    return body + bytes(2 * _BLOCK)


def _listed(parts: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    return {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in parts.items()
    }


def _entry(name: str, content: bytes, made_at_s: int) -> bytes:
    fields = (
        name.encode("ascii").ljust(100, b"\0"),
        b"0000600\0" + b"0000000\0" * 2,
        f"{len(content):011o}\0{made_at_s:011o}\0".encode(),
        b" " * 8 + b"0" + bytes(100) + _MAGIC,
    )
    header = bytearray(b"".join(fields).ljust(_BLOCK, b"\0"))
    header[_CHECKSUM] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + content + bytes(-len(content) % _BLOCK)


def _header(data: bytes, offset: int) -> tuple[str, int]:
    header = data[offset : offset + _BLOCK]
    blanked = header[:148] + b" " * 8 + header[156:]
    if (
        len(header) < _BLOCK
        or header[257:265] != _MAGIC
        or header[156:157] not in {b"0", b"\0"}
        or _octal(header[_CHECKSUM]) != sum(blanked)
    ):
        raise MalformedEvidence("no header of a plain file", part=PART, offset=offset)
    raw, _, rest = header[:100].partition(b"\0")
    name = raw.decode("latin-1")
    plain = name.isascii() and name.isprintable() and len(name) <= MAX_NAME
    if not plain or not name or any(rest) or "/" in name or any(header[345:500]):
        raise MalformedEvidence("a name that no part has", part=PART, offset=offset)
    size = _octal(header[124:136])
    if size is None:
        raise MalformedEvidence("a size that is none", part=PART, offset=offset + 124)
    return name, size


def _octal(field: bytes) -> int | None:
    digits = field.rstrip(b" \0")
    return int(digits, 8) if digits and all(48 <= each <= 55 for each in digits) else None


def _manifest(content: bytes) -> dict[str, Any]:
    if not content or len(content) > MAX_MANIFEST_BYTES:
        raise MalformedEvidence("no manifest, or one of over 1 MiB", part=MANIFEST, offset=0)
    try:
        manifest = json.loads(content.decode("utf-8"), object_pairs_hook=_once)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise MalformedEvidence("not JSON", part=MANIFEST, offset=0) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise MalformedEvidence(f"not a {FORMAT}", part=MANIFEST, offset=0)
    if repr(manifest.get("version")) != str(VERSION):  # true and 1.0 are other documents
        raise MalformedEvidence(f"this program reads version {VERSION}", part=MANIFEST, offset=0)
    return manifest


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def _check_parts(manifest: Mapping[str, Any], parts: Mapping[str, bytes]) -> None:
    """Every part is the one that the manifest lists, and none is missing."""
    if manifest.get("files") != _listed(parts):
        raise MalformedEvidence(
            "the parts are not those of the manifest, by name, size and hash",
            part=MANIFEST,
            offset=0,
        )
