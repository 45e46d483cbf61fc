"""EFI executables: the Authenticode hash that firmware measures, and the sections of a unified kernel.

Any bytes in; a model or ``MalformedEvidence("PE image", offset)`` out. The image hash leaves out what
signing changes: the checksum, the entry of the certificate table, and the certificates at the end. So it is the
same before and after signing, and firmware extends it into PCR 4. No signature is looked at here.

Source: Microsoft PE Format, "Optional Header" and "Section Table"; Windows Authenticode Portable Executable
Signature Format 1.0, "Calculating the PE Image Hash"; TCG PC Client Platform Firmware Profile 1.06,
section 3.3.4.5; systemd systemd-stub(7) for the sections.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from trustauthority.errors import MalformedEvidence

PART = "PE image"
MAX_SECTIONS = 96
"""The most that the Windows loader takes; ours is no more lenient."""
_DOS_SIZE = 0x40
_COFF_SIZE = 20
_SECTION_SIZE = 40
_CHECKSUM = 64
_DIRECTORY_ENTRY = 8
_CERTIFICATES = 4
_HEADERS_SIZE = 60
_MAGICS = {0x10B: (92, 96), 0x20B: (108, 112)}
"""PE32 and PE32+: offsets of the number of directories, and of the directories."""


class Hasher(Protocol):
    """What ``hashlib`` returns."""

    def update(self, data: bytes, /) -> None:
        """Hash some more."""

    def digest(self) -> bytes:
        """The digest of everything so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeSection:
    """One section."""

    name: str
    start: int
    """Where its bytes start in the file."""
    file_size: int
    """Bytes in the file, padded to the file alignment."""
    memory_size: int
    """Bytes in memory: what systemd-stub measures, without the padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeImage:
    """Where the hashed parts of an image are."""

    data: bytes
    checksum: int
    """Offset of the checksum, four bytes that are not hashed."""
    certificate_entry: int
    """Offset of the entry of the certificate table, eight bytes not hashed; 0 without one."""
    headers_size: int
    certificates_size: int
    sections: tuple[PeSection, ...]
    """In the order of the section table."""

    def hashed_parts(self) -> Iterator[memoryview]:
        """What the Authenticode hash covers, in order."""
        view = memoryview(self.data)
        yield view[: self.checksum]
        after = self.checksum + 4
        if self.certificate_entry:
            yield view[after : self.certificate_entry]
            after = self.certificate_entry + _DIRECTORY_ENTRY
        yield view[after : self.headers_size]
        hashed = self.headers_size
        for section in self._with_data():
            yield view[section.start : section.start + section.file_size]
            hashed += section.file_size
        yield view[hashed : len(self.data) - self.certificates_size]

    def image_hash(self, hasher: Hasher) -> bytes:
        """The Authenticode hash with a fresh ``hasher``."""
        for part in self.hashed_parts():
            hasher.update(part)  # type: ignore[arg-type]
        return hasher.digest()

    def section(self, name: str) -> bytes | None:
        """The bytes of a section as they are in memory; None when there is none of this name.

        Memory beyond the bytes of the file is zero.
        """
        for each in self.sections:
            if each.name == name:
                size = min(each.file_size, each.memory_size)
                return self.data[each.start : each.start + size]
        return None

    def _with_data(self) -> list[PeSection]:
        return sorted(
            (section for section in self.sections if section.file_size),
            key=lambda section: section.start,
        )


def decode_pe(data: bytes) -> PeImage:
    """Find the parts of an EFI executable that are hashed.

    Raises:
        MalformedEvidence: it is none, or its parts overlap or lie outside of the file.
    """
    if len(data) < _DOS_SIZE or data[:2] != b"MZ":
        raise MalformedEvidence("not an EFI executable", part=PART, offset=0)
    header = _number(data, 0x3C, 4)
    if data[header : header + 4] != b"PE\0\0":
        raise MalformedEvidence("no PE header", part=PART, offset=header)
    coff = header + 4
    optional = coff + _COFF_SIZE
    magic = _number(data, optional, 2)
    if magic not in _MAGICS:
        raise MalformedEvidence("neither PE32 nor PE32+", part=PART, offset=optional)
    count_at, directories = (optional + offset for offset in _MAGICS[magic])
    table = optional + _number(data, coff + 16, 2)
    sections = _sections(data, table, _number(data, coff + 2, 2))
    headers_size = _number(data, optional + _HEADERS_SIZE, 4)
    if not table + _SECTION_SIZE * len(sections) <= headers_size <= len(data):
        raise MalformedEvidence(
            "the headers do not hold the section table", part=PART, offset=table
        )
    entry, certificates = _certificates(data, count_at, directories, table)
    image = PeImage(
        data=data,
        checksum=optional + _CHECKSUM,
        certificate_entry=entry,
        headers_size=headers_size,
        certificates_size=certificates,
        sections=sections,
    )
    _check_layout(image)
    return image


def _number(data: bytes, offset: int, size: int) -> int:
    if offset + size > len(data):
        raise MalformedEvidence("the file ends in its headers", part=PART, offset=len(data))
    return int.from_bytes(data[offset : offset + size], "little")


def _sections(data: bytes, table: int, count: int) -> tuple[PeSection, ...]:
    if count > MAX_SECTIONS:
        raise MalformedEvidence(f"{count} sections", part=PART, offset=table)
    found = []
    for offset in range(table, table + count * _SECTION_SIZE, _SECTION_SIZE):
        memory_size, size, start = (_number(data, offset + at, 4) for at in (8, 16, 20))
        if size and start + size > len(data):
            raise MalformedEvidence("a section ends behind the file", part=PART, offset=offset)
        found.append(
            PeSection(
                name=data[offset : offset + 8].rstrip(b"\0").decode("ascii", "backslashreplace"),
                start=start,
                file_size=size,
                memory_size=memory_size,
            )
        )
    return tuple(found)


def _certificates(data: bytes, count_at: int, directories: int, table: int) -> tuple[int, int]:
    """Where the entry of the certificate table is, and how many bytes of certificates there are."""
    if _number(data, count_at, 4) <= _CERTIFICATES:
        return 0, 0
    entry = directories + _CERTIFICATES * _DIRECTORY_ENTRY
    start, size = _number(data, entry, 4), _number(data, entry + 4, 4)
    if entry + _DIRECTORY_ENTRY > table:
        raise MalformedEvidence("directories behind the headers", part=PART, offset=entry)
    if size and start + size != len(data):
        raise MalformedEvidence("the certificates are not the end", part=PART, offset=entry)
    return entry, size


def _check_layout(image: PeImage) -> None:
    """Headers, sections and certificates follow each other; what overlaps has no one hash."""
    ends = image.headers_size
    for section in image._with_data():  # noqa: SLF001 - one module
        if section.start < ends:
            raise MalformedEvidence("sections overlap", part=PART, offset=section.start)
        ends = section.start + section.file_size
    if ends > len(image.data) - image.certificates_size:
        raise MalformedEvidence("certificates overlap a section", part=PART, offset=ends)
