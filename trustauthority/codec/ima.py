"""Bytes of a Linux IMA log to ``ImaEntry``: the binary file, whole or in pieces.

Trusts nothing on entry. On exit: every entry lies inside the bytes that were read, its template data is
exactly what the kernel hashed, and its fields (``decode_ima_fields``) fill that data to the last byte.
It computes no digest and believes none (``verification.runtime``). The text form is in
``codec.ima_ascii``.

Source: Linux security/integrity/ima/ima_fs.c (layout), ima_template_lib.c (fields). Pitfalls 51-55.
"""

from collections.abc import Callable, Iterator, Mapping
from struct import Struct
from typing import Any

from trustauthority.codec.reader import Reader
from trustauthority.errors import AlgorithmUnsupported, MalformedEvidence
from trustauthority.model.ima import FILE_HASH_SIZES, TEMPLATES, ImaEntry, ImaFields

PART = "IMA log"
MAX_ENTRY_BYTES = 1 << 20
"""Template data of one entry. An appended module signature or a measured key has some KiB."""
MAX_TEMPLATE_NAME = 256
OLD_TEMPLATE = "ima"
OLD_NAME_BYTES = 256
"""The first template hashes the file name padded to this size (IMA_EVENT_NAME_LEN_MAX + 1)."""
WINDOW_BYTES = 1 << 16
"""A log is decoded in pieces of this size: some 500 entries are held at a time."""
_BIG_ENDIAN = ": a big-endian kernel writes so, unless it is started with ima_canonical_fmt"
_OLD_DIGEST = 20
_U32 = Struct("<I")
_TEMPLATE_DIGEST_SIZES = (20, 32, 48, 64)
_ENOUGH = 4 + 64 + 4 + MAX_TEMPLATE_NAME
"""Bytes that show the template name of the first entry for every size of digest."""


class ImaStream:
    """Entries from a log that arrives in pieces; holds at most one unfinished entry.

    Feed the bytes in order, then call ``finish``. Not for the text form.
    """

    __slots__ = ("_digest_size", "_index", "_layouts", "_names", "_offset", "_pending")

    def __init__(self, *, index: int = 0, offset: int = 0, digest_size: int | None = None) -> None:
        """Start at entry ``index`` and byte ``offset`` of this boot's log."""
        self._index = index
        self._offset = offset
        self._digest_size = digest_size
        self._pending = b""
        self._layouts: dict[int, Struct] = {}
        self._names: dict[bytes, str] = {}

    @property
    def offset(self) -> int:
        """Bytes of complete entries since boot: where the next delta must start (rule 55)."""
        return self._offset

    @property
    def index(self) -> int:
        """Entries read since boot."""
        return self._index

    @property
    def digest_size(self) -> int | None:
        """Bytes of each template digest; None before the first entry."""
        return self._digest_size

    def feed(self, chunk: bytes) -> list[ImaEntry]:
        """The entries that are complete now.

        Raises:
            MalformedEvidence: an entry that no further bytes could make right.
        """
        data = self._pending + chunk if self._pending else chunk
        if self._digest_size is None:
            self._digest_size = _template_digest_size(data)
            if self._digest_size is None:
                self._pending = data
                return []
        entries, end = self._entries(data, self._digest_size)
        self._pending = data[end:]
        self._offset += end
        self._index += len(entries)
        return entries

    def finish(self) -> None:
        """Refuse a last entry that is cut off.

        Raises:
            MalformedEvidence: bytes are left that are no whole entry.
        """
        if self._pending:
            raise self._malformed(f"entry {self._index} is cut off", 0)

    def _malformed(self, message: str, at: int) -> MalformedEvidence:
        return MalformedEvidence(message, part=PART, offset=self._offset + at)

    def _layout(self, name_size: int, digest_size: int, at: int, index: int) -> Struct:
        if not 1 <= name_size <= MAX_TEMPLATE_NAME:
            hint = _BIG_ENDIAN if name_size and not name_size & 0xFFFFFF else ""
            message = f"entry {index} has a template name of {name_size} bytes{hint}"
            raise self._malformed(message, at)
        layout = self._layouts.get(name_size)
        if layout is None:
            layout = Struct(f"<I{digest_size}sI{name_size}sI")
            self._layouts[name_size] = layout
        return layout

    def _name(self, raw: bytes, at: int) -> str:
        """Remember a template name; an unprintable one is refused."""
        name = raw.decode("latin-1")
        if not name.isascii() or not name.isprintable():
            raise self._malformed("a template name is not printable", at)
        self._names[raw] = name
        return name

    def _entries(self, data: bytes, digest_size: int) -> tuple[list[ImaEntry], int]:
        """The complete entries of ``data`` and the offset after them."""
        entries: list[ImaEntry] = []
        append, new, size, names = entries.append, tuple.__new__, len(data), self._names
        offset, name_size, head = 0, 0, 8 + digest_size
        layout = Struct("")
        index, base, fixed, last = self._index, self._offset, 0, -1
        while size - offset >= head:
            fields = layout.unpack_from(data, offset) if offset <= last else ()
            if not fields or fields[2] != name_size:
                name_size = _U32.unpack_from(data, offset + 4 + digest_size)[0]
                layout = self._layout(name_size, digest_size, offset, index)
                fixed = layout.size
                last = size - fixed
                if offset > last:
                    break
                fields = layout.unpack_from(data, offset)
            pcr, digest, _, raw, length = fields
            name = names.get(raw) or self._name(raw, offset)
            start = offset + fixed
            if name == OLD_TEMPLATE:
                found = _old_template(data, start - 4)
                if found is None:
                    break
                content, end = found
            else:
                end = start + length
                if length > MAX_ENTRY_BYTES:
                    raise self._malformed(f"entry {index} says {length} bytes of data", start - 4)
                if end > size:
                    break
                content = data[start:end]
            append(new(ImaEntry, (index, base + offset, pcr, digest, name, content)))
            index += 1
            offset = end
        return entries, offset


def decode_ima_binary(data: bytes) -> tuple[ImaEntry, ...]:
    """Decode a whole binary log.

    Raises:
        MalformedEvidence: with the offset of the entry that makes no sense or is cut off.
    """
    stream = ImaStream()
    entries = stream.feed(data)
    stream.finish()
    return tuple(entries)


def ima_windows(data: bytes, stream: ImaStream) -> Iterator[list[ImaEntry]]:
    """The entries of the rest of a binary log, a window at a time.

    Raises:
        MalformedEvidence: at the window where the log makes no sense, or at its end when it is cut off.
    """
    for start in range(0, len(data), WINDOW_BYTES):
        yield stream.feed(data[start : start + WINDOW_BYTES])
    stream.finish()


def _old_template(data: bytes, start: int) -> tuple[bytes, int] | None:
    """``ima`` entries have no data length: 20 bytes of digest, then the name with its length."""
    if len(data) - start < _OLD_DIGEST + 4:
        return None
    length = _U32.unpack_from(data, start + _OLD_DIGEST)[0]
    if length >= OLD_NAME_BYTES:
        raise MalformedEvidence(
            f"a file name of {length} bytes in an ima entry", part=PART, offset=start + _OLD_DIGEST
        )
    begin = start + _OLD_DIGEST + 4
    end = begin + length
    if end > len(data):
        return None
    name = data[begin:end].ljust(OLD_NAME_BYTES, b"\0")
    return data[start : start + _OLD_DIGEST] + name, end


def _template_digest_size(data: bytes) -> int | None:
    """20 bytes as ever, or the size of the hash after which a new kernel named the file.

    Decided once per file by the first entry: only one size puts a template name behind the digest.
    None while the first entry is too short to say.
    """
    names = {size: _name_after(data, size) for size in _TEMPLATE_DIGEST_SIZES}
    for size, name in names.items():
        if name in TEMPLATES:
            return size
    if names[_TEMPLATE_DIGEST_SIZES[0]] or len(data) >= _ENOUGH:
        return _TEMPLATE_DIGEST_SIZES[0]
    return None


def _name_after(data: bytes, digest_size: int) -> str:
    """The template name behind a digest of that size; empty when there is none."""
    at = 4 + digest_size
    if len(data) < at + 4:
        return ""
    length = _U32.unpack_from(data, at)[0]
    raw = data[at + 4 : at + 4 + length] if length <= MAX_TEMPLATE_NAME else b""
    name = raw.decode("latin-1")
    return name if len(raw) == length and name.isascii() and name.isprintable() else ""


# --- fields ----------------------------------------------------------------------------------

_SHA256_PREFIX = b"\x28\0\0\0sha256:\0"
_VIOLATION_DIGEST = bytes(20)
"""What some kernels wrote for the file of a violation, whichever hash they named (mended in 2022)."""
_NAME_SIZE_AT = 44
_NAME_AT = 48


def decode_ima_fields(entry: ImaEntry) -> ImaFields:
    """What the template data of one entry says.

    Raises:
        AlgorithmUnsupported: an unknown template or hash name: the entry can't be verified (rule 53).
        MalformedEvidence: the fields do not fill the template data.
    """
    if entry.template == OLD_TEMPLATE:
        return _decode_old(entry)
    names = template_fields(entry.template)
    reader = Reader(entry.data, part=f"IMA entry {entry.number}", base=entry.offset)
    values: dict[str, Any] = {}
    for name in names:
        raw = reader.take(reader.u32(f"size of {name}"), name)
        _FIELDS[name](reader, raw, values)
    reader.expect_end()
    return ImaFields(**values)


def template_fields(template: str) -> tuple[str, ...]:
    """The fields of a named template, or of one that the kernel command line spelt out.

    Raises:
        AlgorithmUnsupported: a template or field we do not know.
    """
    known = TEMPLATES.get(template)
    if known is not None:
        return known
    fields = tuple(template.split("|"))
    spelt_out = len(fields) > 1 and len(set(fields)) == len(fields)
    digested = "d-ng" in fields or "d-ngv2" in fields
    if spelt_out and digested and "n-ng" in fields and _FIELDS.keys() >= set(fields):
        return fields
    raise AlgorithmUnsupported(f"unknown IMA template {template!r}", algorithm=template)


def path_and_digest(entry: ImaEntry) -> tuple[str, str, bytes]:
    """Path, hash name and file digest of one entry: the three that a policy looks up.

    The same as ``decode_ima_fields``, several times as fast for what nearly all entries are.

    Raises:
        AlgorithmUnsupported: as ``decode_ima_fields``.
        MalformedEvidence: as ``decode_ima_fields``.
    """
    data = entry.data
    if data[:12] == _SHA256_PREFIX and len(data) > _NAME_AT:
        end = _NAME_AT + _U32.unpack_from(data, _NAME_SIZE_AT)[0]
        template = entry.template
        if template == "ima-ng":
            filled = end == len(data)
        elif template == "ima-sig":
            signed = end + 4
            filled = signed <= len(data) and signed + _U32.unpack_from(data, end)[0] == len(data)
        else:
            filled = False
        if filled and data.find(b"\0", _NAME_AT, end) == end - 1:
            path = data[_NAME_AT : end - 1].decode("utf-8", "surrogateescape")
            return path, "sha256", data[12:_NAME_SIZE_AT]
    fields = decode_ima_fields(entry)
    return fields.path, fields.algorithm, fields.digest


def unsigned_part(entry: ImaEntry) -> bytes:
    """An ``ima-sig`` entry without its signature: fields ``d-ng`` and ``n-ng``, as ``ima-ng`` has them.

    What a set of approved entries is asked for: an entry with the fields of a well-formed one is
    well-formed. Empty for other templates, other hashes, and a signature that does not fill the rest.
    """
    data = entry.data
    if entry.template != "ima-sig" or data[:12] != _SHA256_PREFIX or len(data) < _NAME_AT:
        return b""
    end = _NAME_AT + _U32.unpack_from(data, _NAME_SIZE_AT)[0]
    if end + 4 > len(data) or end + 4 + _U32.unpack_from(data, end)[0] != len(data):
        return b""
    return data[:end]


def encode_digest_and_path(path: bytes, algorithm: str, digest: bytes) -> bytes:
    """The fields ``d-ng`` and ``n-ng`` as a kernel writes them."""
    first = algorithm.encode("ascii") + b":\0" + digest
    return _U32.pack(len(first)) + first + _U32.pack(len(path) + 1) + path + b"\0"


def _decode_old(entry: ImaEntry) -> ImaFields:
    path = entry.data[_OLD_DIGEST:].rstrip(b"\0")
    return ImaFields(
        path=path.decode("utf-8", "surrogateescape"),
        algorithm="sha1",
        digest=entry.data[:_OLD_DIGEST],
    )


def _hashed(reader: Reader, raw: bytes, name: str) -> tuple[str, bytes]:
    """``algorithm:`` NUL digest; the NUL is what keeps a hash name from eating a digest (rule 53)."""
    algorithm, separator, digest = raw.partition(b":\0")
    if not separator:
        raise reader.malformed(f"{name} has no hash name")
    text = algorithm.decode("latin-1")
    size = FILE_HASH_SIZES.get(text)
    if size is None:
        raise AlgorithmUnsupported(f"unknown hash name {text!r} in an IMA entry", algorithm=text)
    if len(digest) != size and digest != _VIOLATION_DIGEST:
        raise reader.malformed(f"{name}: a {text} digest of {len(digest)} bytes")
    return text, digest


def _digest(reader: Reader, raw: bytes, values: dict[str, Any]) -> None:
    values["algorithm"], values["digest"] = _hashed(reader, raw, "d-ng")


def _digest_v2(reader: Reader, raw: bytes, values: dict[str, Any]) -> None:
    kind, separator, rest = raw.partition(b":")
    if not separator or kind not in {b"ima", b"verity"}:
        raise reader.malformed("d-ngv2 has no digest type")
    values["digest_type"] = kind.decode()
    values["algorithm"], values["digest"] = _hashed(reader, rest, "d-ngv2")


def _path(reader: Reader, raw: bytes, values: dict[str, Any]) -> None:
    if raw[-1:] != b"\0" or raw.find(b"\0") != len(raw) - 1:
        raise reader.malformed("n-ng is not a NUL-terminated name")
    values["path"] = raw[:-1].decode("utf-8", "surrogateescape")


def _module_digest(reader: Reader, raw: bytes, values: dict[str, Any]) -> None:
    if raw:
        values["module_algorithm"], values["module_digest"] = _hashed(reader, raw, "d-modsig")


def _bytes(key: str) -> Callable[[Reader, bytes, dict[str, Any]], None]:
    def store(_: Reader, raw: bytes, values: dict[str, Any]) -> None:
        values[key] = raw

    return store


def _attribute(position: int) -> Callable[[Reader, bytes, dict[str, Any]], None]:
    def store(_: Reader, raw: bytes, values: dict[str, Any]) -> None:
        held = list(values.get("extended_attributes", (b"", b"", b"")))
        held[position] = raw
        values["extended_attributes"] = tuple(held)

    return store


def _number(key: str) -> Callable[[Reader, bytes, dict[str, Any]], None]:
    def store(reader: Reader, raw: bytes, values: dict[str, Any]) -> None:
        if len(raw) not in {0, 1, 2, 4, 8}:
            raise reader.malformed(f"{key} of {len(raw)} bytes")
        values[key] = int.from_bytes(raw, "little") if raw else None

    return store


_FIELDS: Mapping[str, Callable[[Reader, bytes, dict[str, Any]], None]] = {
    "d-ng": _digest,
    "d-ngv2": _digest_v2,
    "n-ng": _path,
    "sig": _bytes("signature"),
    "evmsig": _bytes("signature"),
    "buf": _bytes("buffer"),
    "d-modsig": _module_digest,
    "modsig": _bytes("module_signature"),
    "xattrnames": _attribute(0),
    "xattrlengths": _attribute(1),
    "xattrvalues": _attribute(2),
    "iuid": _number("uid"),
    "igid": _number("gid"),
    "imode": _number("mode"),
}
