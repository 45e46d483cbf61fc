"""A bounded big-endian reader and the TPM2B helpers of all TPM structures.

Stage: codec. Trusts nothing. Every read is checked against the bytes that are left, every failure
is ``MalformedEvidence`` with the name of the structure and the offset of the offending field.
Source: TCG TPM 2.0 Library, Part 2, sections 4.2 (byte order) and 10.4 (sized buffers).
"""

from typing import NoReturn

from trustauthority.errors import MalformedEvidence
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.tpm import TpmAlgorithm

MAX_SIZED = 4096
"""Bytes of the longest TPM2B read here: room for post-quantum keys, far below a memory risk."""

_ALGORITHMS = {int(algorithm): algorithm for algorithm in TpmAlgorithm}


class TpmReader:
    """Reads one structure from front to back; ``part`` names it in errors."""

    __slots__ = ("_data", "_end", "offset", "part")

    def __init__(self, data: bytes, part: str) -> None:
        self._data = data
        self._end = len(data)
        self.offset = 0
        self.part = part

    def fail(self, message: str, *, at: int | None = None) -> NoReturn:
        """Refuse the structure at byte ``at`` (default: here)."""
        raise MalformedEvidence(
            message, part=self.part, offset=self.offset if at is None else at
        ) from None

    def take(self, size: int, what: str) -> bytes:
        """The next ``size`` bytes."""
        start = self.offset
        end = start + size
        if end > self._end:
            self.fail(f"{what} needs {size} bytes, {self._end - start} are left")
        self.offset = end
        return self._data[start:end]

    def integer(self, size: int, what: str) -> int:
        """An unsigned big-endian integer of ``size`` bytes."""
        return int.from_bytes(self.take(size, what), "big")

    def sized(self, what: str, limit: int = MAX_SIZED) -> bytes:
        """A TPM2B: 16-bit length, then that many bytes, at most ``limit``."""
        start = self.offset + 2
        size = int.from_bytes(self._data[start - 2 : start], "big")
        end = start + size
        if size > limit or end > self._end:
            self._refuse_sized(what, limit)
        self.offset = end
        return self._data[start:end]

    def _refuse_sized(self, what: str, limit: int) -> NoReturn:
        """Say what is wrong with the TPM2B at this place."""
        size = self.integer(2, what)
        if size > limit:
            self.fail(f"{what} has {size} bytes, at most {limit} are allowed", at=self.offset - 2)
        self.fail(f"{what} needs {size} bytes, {self._end - self.offset} are left")

    def algorithm(self, what: str, allowed: frozenset[TpmAlgorithm]) -> TpmAlgorithm:
        """A TPM_ALG_ID out of ``allowed``."""
        number = int.from_bytes(self.take(2, what), "big")
        if number not in allowed:
            self.fail(f"{what} 0x{number:04x} is not one of this place", at=self.offset - 2)
        return _ALGORITHMS[number]

    def hash_algorithm(self, what: str) -> HashAlgorithm:
        """The TPM_ALG_ID of a hash we know."""
        number = int.from_bytes(self.take(2, what), "big")
        algorithm = HashAlgorithm.from_tpm_id(number)
        if algorithm is None:
            self.fail(f"{what} 0x{number:04x} is not a known hash", at=self.offset - 2)
        return algorithm

    def finish(self) -> None:
        """Refuse bytes after the structure."""
        if self.offset != self._end:
            self.fail(f"{self._end - self.offset} bytes after the end")


def encode_sized(data: bytes) -> bytes:
    """A TPM2B around ``data``. Raises ValueError beyond 65535 bytes."""
    if len(data) > 0xFFFF:
        raise ValueError("a TPM2B holds at most 65535 bytes")
    return len(data).to_bytes(2, "big") + data


def decode_sized(data: bytes, part: str) -> bytes:
    """The content of a TPM2B that fills ``data`` exactly."""
    reader = TpmReader(data, part)
    content = reader.sized(part, limit=0xFFFF)
    reader.finish()
    return content
