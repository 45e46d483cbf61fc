"""Runtime measurements of Linux IMA as the log says them, before any quote proves them.

Source: Linux Documentation/security/IMA-templates.rst; security/integrity/ima/ima_template*.c.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

IMA_PCR = 10
"""The register IMA extends unless the kernel was built otherwise (CONFIG_IMA_MEASURE_PCR_IDX)."""
BOOT_AGGREGATE = "boot_aggregate"

TEMPLATES: dict[str, tuple[str, ...]] = {
    "ima": ("d", "n"),
    "ima-ng": ("d-ng", "n-ng"),
    "ima-ngv2": ("d-ngv2", "n-ng"),
    "ima-sig": ("d-ng", "n-ng", "sig"),
    "ima-sigv2": ("d-ngv2", "n-ng", "sig"),
    "ima-buf": ("d-ng", "n-ng", "buf"),
    "ima-modsig": ("d-ng", "n-ng", "sig", "d-modsig", "modsig"),
    "evm-sig": (
        "d-ng",
        "n-ng",
        "evmsig",
        "xattrnames",
        "xattrlengths",
        "xattrvalues",
        "iuid",
        "igid",
        "imode",
    ),
}
"""The templates that a kernel names; each is a list of fields."""

FILE_HASH_SIZES = {
    "md5": 16,
    "sha1": 20,
    "rmd160": 20,
    "sha224": 28,
    "sha256": 32,
    "sha384": 48,
    "sha512": 64,
    "sm3": 32,
    "sm3-256": 32,
    "sm3_256": 32,
    "streebog256": 32,
    "streebog512": 64,
    "sha3-256": 32,
    "sha3-384": 48,
    "sha3-512": 64,
}
"""Hash names a kernel may write before a file digest, and their sizes in bytes."""


class ImaEncoding(StrEnum):
    """Which of the two files of securityfs a log was."""

    BINARY = "binary"
    ASCII = "ascii"


class ImaEntry(NamedTuple):
    """One measurement. A named tuple and not a dataclass: a host has 100,000 of them."""

    number: int
    """Number of the entry since boot, from 0."""
    offset: int
    """Where it starts in the file, in bytes."""
    pcr: int
    template_digest: bytes
    """As logged; all zero marks a violation. SHA-1, or the hash of the file's name on new kernels."""
    template: str
    data: bytes
    """The template data exactly as the kernel hashes it."""

    @property
    def violation(self) -> bool:
        """Whether the kernel recorded a violation: 0xff was extended, nothing is known (rule 52)."""
        return not any(self.template_digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImaFields:
    """What the template data of one entry says."""

    path: str
    """File name, or the name of a measured buffer; bytes that are not UTF-8 stay as surrogates."""
    algorithm: str
    digest: bytes
    digest_type: str = ""
    """``ima`` or ``verity`` in the v2 templates."""
    signature: bytes = b""
    """security.ima or the portable EVM signature, header included."""
    buffer: bytes = b""
    """A measured buffer: a key, the kexec command line, a policy."""
    module_algorithm: str = ""
    module_digest: bytes = b""
    """Digest that an appended signature covers (ima-modsig)."""
    module_signature: bytes = b""
    extended_attributes: tuple[bytes, bytes, bytes] = (b"", b"", b"")
    """Names, lengths and values of the attributes that EVM protects (evm-sig)."""
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImaLog:
    """A decoded runtime log."""

    encoding: ImaEncoding
    entries: tuple[ImaEntry, ...]
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImaReplayState:
    """Where a replay stopped; kept per host and boot, so that only new entries travel (rule 54)."""

    value: bytes
    """The running value of the register."""
    count: int
    """Entries that led to it since boot."""
