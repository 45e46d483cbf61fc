"""EFI executables made byte by byte, right or wrong on purpose."""

import struct
from dataclasses import dataclass

ALIGN = 512


@dataclass(frozen=True)
class Built:
    """An image in the making; the defaults are a good one."""

    plus: bool = True
    sections: tuple[tuple[bytes, bytes], ...] = ((b".text", b"code" * 40), (b".linux", b"kernel"))
    directories: int = 16
    checksum: int = 0x1234
    certificates: bytes = b""
    trailing: bytes = b""
    order: tuple[int, ...] = ()
    certificate_shift: int = 0

    @property
    def bytes(self) -> bytes:
        """The file."""
        dos = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
        magic, fixed = (0x20B, 112) if self.plus else (0x10B, 96)
        size = fixed + 8 * self.directories
        coff = struct.pack("<HHIIIHH", 0x8664, len(self.sections), 0, 0, 0, size, 0x22)
        table = 0x40 + 4 + 20 + size
        headers = -(-(table + 40 * len(self.sections)) // ALIGN) * ALIGN
        starts, at = {}, headers
        for index in self.order or range(len(self.sections)):
            starts[index] = at
            at += -(-len(self.sections[index][1]) // ALIGN) * ALIGN
        end = at + len(self.trailing)
        optional = bytearray(size)
        struct.pack_into("<H", optional, 0, magic)
        struct.pack_into("<I", optional, 60, headers)
        struct.pack_into("<I", optional, 64, self.checksum)
        struct.pack_into("<I", optional, fixed - 4, self.directories)
        if self.certificates:
            place = fixed + 8 * 4
            struct.pack_into(
                "<II", optional, place, end + self.certificate_shift, len(self.certificates)
            )
        out = dos + b"PE\0\0" + coff + bytes(optional)
        for index, (name, content) in enumerate(self.sections):
            padded = -(-len(content) // ALIGN) * ALIGN
            out += name.ljust(8, b"\0")
            out += struct.pack("<IIII", len(content), 0x1000, padded, starts[index])
            out += bytes(16)
        body = bytearray(at)
        body[: len(out)] = out
        for index, (_, content) in enumerate(self.sections):
            body[starts[index] : starts[index] + len(content)] = content
        return bytes(body) + self.trailing + self.certificates
