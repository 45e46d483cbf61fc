"""Builds TCG event logs and IMA logs byte by byte, right or wrong on purpose.

Written apart from trustauthority.codec: it keeps its own register values while it writes, so that tests
hold the project's replay against another one. Standard library only.

Formats: TCG PC Client Platform Firmware Profile 1.06, section 10; Linux ima_fs.c.
"""

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

ALGORITHMS = {"sha1": 0x04, "sha256": 0x0B, "sha384": 0x0C, "sha512": 0x0D, "sm3_256": 0x12}
NO_ACTION, SEPARATOR, ACTION_EFI = 0x3, 0x4, 0x80000007
DRIVER_CONFIG, VARIABLE_BOOT, AUTHORITY = 0x80000001, 0x80000002, 0x800000E0
APPLICATION, HCRTM, VERSION, IPL = 0x80000003, 0x80000010, 0x8, 0xD
GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
DATABASE = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
SHA256_LIST = "c1c41626-504c-4092-aca9-41f936934328"


def digest(bank: str, data: bytes) -> bytes:
    """Hash of ``data`` in a bank, by the bank's name in this project."""
    return hashlib.new("sm3" if bank == "sm3_256" else bank, data).digest()


def guid(text: str) -> bytes:
    """An EFI GUID in its mixed-endian bytes."""
    first, second, third, fourth, fifth = text.split("-")
    head = struct.pack("<IHH", int(first, 16), int(second, 16), int(third, 16))
    return head + bytes.fromhex(fourth + fifth)


def variable(name: str, value: bytes, owner: str = GLOBAL) -> bytes:
    """UEFI_VARIABLE_DATA."""
    return (
        guid(owner) + struct.pack("<QQ", len(name), len(value)) + name.encode("utf-16-le") + value
    )


def signature_list(entries: Sequence[bytes], kind: str = SHA256_LIST) -> bytes:
    """EFI_SIGNATURE_LIST with one owner for all entries."""
    size = 16 + len(entries[0])
    body = b"".join(guid(GLOBAL) + entry for entry in entries)
    return guid(kind) + struct.pack("<III", 28 + len(body), 0, size) + body


def spec_id(
    banks: Sequence[tuple[int, int]],
    *,
    count: int | None = None,
    vendor: bytes = b"",
    vendor_size: int | None = None,
    trailing: bytes = b"",
) -> bytes:
    """TCG_EfiSpecIdEvent; ``count`` and ``vendor_size`` may lie."""
    return (
        b"Spec ID Event03\0"
        + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(banks) if count is None else count)
        + b"".join(struct.pack("<HH", *bank) for bank in banks)
        + bytes((len(vendor) if vendor_size is None else vendor_size,))
        + vendor
        + trailing
    )


def legacy_record(pcr: int, kind: int, value: bytes, data: bytes, size: int | None = None) -> bytes:
    """TCG_PCR_EVENT; ``size`` may lie."""
    return struct.pack("<II20sI", pcr, kind, value, len(data) if size is None else size) + data


@dataclass
class LogBuilder:
    """A crypto-agile log (or a legacy one, when ``legacy``) and the registers that follow from it."""

    banks: tuple[str, ...] = ("sha1", "sha256")
    legacy: bool = False
    header_pcr: int = 0
    raw: bytearray = field(default_factory=bytearray)
    registers: dict[str, dict[int, bytes]] = field(default_factory=dict)
    offsets: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.legacy:
            self.banks = ("sha1",)
        else:
            self.header()
        self.registers = {bank: {} for bank in self.banks}

    def header(self) -> "LogBuilder":
        """Write the Spec ID record: a log begins."""
        self.offsets.append(len(self.raw))
        if self.legacy:
            data = b"Spec ID Event00\0" + struct.pack("<IBBBBB", 0, 2, 1, 0, 2, 0)
            self.raw += legacy_record(self.header_pcr, NO_ACTION, bytes(20), data)
            return self
        pairs = [(ALGORITHMS[bank], len(digest(bank, b""))) for bank in self.banks]
        self.raw += legacy_record(self.header_pcr, NO_ACTION, bytes(20), spec_id(pairs))
        return self

    def restart(self) -> "LogBuilder":
        """Reset the registers, as a reboot or a resume from disk does, and begin a log of its own."""
        self.registers = {bank: {} for bank in self.banks}
        return self.header()

    def start(self, pcr: int, last_byte: int) -> "LogBuilder":
        """Set where a register begins, as locality and H-CRTM do."""
        for bank in self.banks:
            size = len(digest(bank, b""))
            self.registers[bank][pcr] = bytes(size - 1) + bytes((last_byte,))
        return self

    def event(
        self,
        pcr: int,
        kind: int,
        data: bytes,
        *,
        hashed: bytes | None = None,
        banks: Sequence[str] | None = None,
        zero: bool | None = None,
    ) -> "LogBuilder":
        """Write a record and extend the registers, unless it is EV_NO_ACTION."""
        present = self.banks if banks is None else tuple(banks)
        zero = kind == NO_ACTION if zero is None else zero
        values = {
            bank: bytes(len(digest(bank, b"")))
            if zero
            else digest(bank, data if hashed is None else hashed)
            for bank in present
        }
        self.offsets.append(len(self.raw))
        if self.legacy:
            self.raw += legacy_record(pcr, kind, values["sha1"], data)
        else:
            self.raw += struct.pack("<III", pcr, kind, len(present))
            for bank in present:
                self.raw += struct.pack("<H", ALGORITHMS[bank]) + values[bank]
            self.raw += struct.pack("<I", len(data)) + data
        if kind != NO_ACTION:
            for bank in present:
                before = self.registers[bank].get(pcr, bytes(len(values[bank])))
                self.registers[bank][pcr] = digest(bank, before + values[bank])
        return self

    def variable(self, name: str, value: bytes, owner: str = GLOBAL) -> "LogBuilder":
        """Measure a variable of the Secure Boot policy into PCR 7."""
        return self.event(7, DRIVER_CONFIG, variable(name, value, owner))

    def policy(self, enabled: bytes = b"\x01") -> "LogBuilder":
        """SecureBoot, PK, KEK, db and dbx, as every firmware measures them."""
        keys = signature_list([bytes(32)])
        self.variable("SecureBoot", enabled)
        self.variable("PK", keys).variable("KEK", keys)
        self.variable("db", keys, DATABASE)
        return self.variable("dbx", signature_list([b"\x01" * 32, b"\x02" * 32]), DATABASE)

    def separators(self, pcrs: Sequence[int] = range(7), data: bytes = bytes(4)) -> "LogBuilder":
        """One separator per register."""
        for pcr in pcrs:
            self.event(pcr, SEPARATOR, data)
        return self

    def boot(self) -> "LogBuilder":
        """The rest of an ordinary boot with Secure Boot on: firmware, policy, boot loader."""
        self.event(0, VERSION, "1.0".encode("utf-16-le"))
        self.policy().separators((7,))
        self.event(4, ACTION_EFI, b"Calling EFI Application from Boot Option")
        self.separators()
        self.event(7, AUTHORITY, variable("db", guid(GLOBAL) + bytes(32), DATABASE))
        self.event(4, APPLICATION, bytes(32), hashed=b"boot loader")
        command = b"console=ttyS0"
        self.event(8, IPL, b"kernel_cmdline: " + command + b"\0", hashed=command)
        return self.event(9, IPL, b"/initrd\0", hashed=b"content of the initrd")

    @property
    def bytes(self) -> bytes:
        """The log so far."""
        return bytes(self.raw)


def good_log(banks: tuple[str, ...] = ("sha1", "sha256")) -> LogBuilder:
    """A boot in which nothing is wrong."""
    return LogBuilder(banks=banks).boot()


# --- IMA -------------------------------------------------------------------------------------


def sized(data: bytes) -> bytes:
    """A field with its length."""
    return struct.pack("<I", len(data)) + data


def ng_data(path: bytes, content: bytes = b"content", algorithm: str = "sha256") -> bytes:
    """Template data of ``ima-ng``."""
    value = digest(algorithm, content)
    return sized(algorithm.encode() + b":\0" + value) + sized(path + b"\0")


def ima_record(
    data: bytes,
    template: bytes = b"ima-ng",
    *,
    pcr: int = 10,
    value: bytes | None = None,
) -> bytes:
    """A record of binary_runtime_measurements; ``value`` is the logged template digest."""
    logged = digest("sha1", data) if value is None else value
    return struct.pack("<I", pcr) + logged + sized(template) + sized(data)


def ima_register(records: Sequence[bytes], bank: str = "sha256") -> bytes:
    """PCR 10 after template data; an empty item stands for a violation."""
    value = bytes(len(digest(bank, b"")))
    for data in records:
        value = digest(bank, value + (digest(bank, data) if data else b"\xff" * len(value)))
    return value


# --- user space ------------------------------------------------------------------------------


def userspace_record(word: str, pcr: int = 11, banks: Sequence[str] = ("sha1", "sha256")) -> bytes:
    """A record of the CEL JSON log that systemd keeps of a word it measured."""
    digests = [{"hashAlg": bank, "digest": digest(bank, word.encode()).hex()} for bank in banks]
    content = {"eventType": "phase", "string": word}
    record = {"pcr": pcr, "digests": digests, "content_type": "systemd", "content": content}
    return b"\x1e" + json.dumps(record).encode() + b"\n"
