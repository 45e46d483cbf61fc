"""A bounded cursor over untrusted bytes, shared by the decoders of logs.

Trusts nothing on entry. Guarantees that no read passes the end of the buffer, that each failure is a
``MalformedEvidence`` naming the part and the absolute offset, and that nothing is allocated before
its length was compared with what is there (pitfalls 45). It gives no meaning to what it reads.
"""

from struct import Struct

from trustauthority.errors import MalformedEvidence

_U16 = Struct("<H")
_U32 = Struct("<I")
_U64 = Struct("<Q")


class Reader:
    """A little-endian cursor; ``part`` and ``base`` make its errors point into the whole file."""

    __slots__ = ("_base", "_data", "offset", "part")

    def __init__(self, data: bytes, *, part: str, offset: int = 0, base: int = 0) -> None:
        self._data = data
        self._base = base
        self.offset = offset
        self.part = part

    @property
    def remaining(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self.offset

    def malformed(self, message: str, *, at: int | None = None) -> MalformedEvidence:
        """The error to raise here, or at ``at`` (an offset in this buffer)."""
        offset = self.offset if at is None else at
        return MalformedEvidence(message, part=self.part, offset=self._base + offset)

    def take(self, size: int, what: str) -> bytes:
        """The next ``size`` bytes, called ``what`` in the error when they are not there."""
        end = self.offset + size
        if end > len(self._data):
            raise self.malformed(f"{what} needs {size} bytes, {self.remaining} are left")
        taken = self._data[self.offset : end]
        self.offset = end
        return taken

    def _number(self, layout: Struct, what: str) -> int:
        end = self.offset + layout.size
        if end > len(self._data):
            raise self.malformed(f"{what} needs {layout.size} bytes, {self.remaining} are left")
        value: int = layout.unpack_from(self._data, self.offset)[0]
        self.offset = end
        return value

    def u8(self, what: str) -> int:
        """One byte."""
        return self.take(1, what)[0]

    def u16(self, what: str) -> int:
        """Two bytes, little-endian."""
        return self._number(_U16, what)

    def u32(self, what: str) -> int:
        """Four bytes, little-endian."""
        return self._number(_U32, what)

    def u64(self, what: str) -> int:
        """Eight bytes, little-endian."""
        return self._number(_U64, what)

    def expect_end(self) -> None:
        """Refuse bytes after the structure (pitfalls 9)."""
        if self.remaining:
            raise self.malformed(f"{self.remaining} bytes after the end")
