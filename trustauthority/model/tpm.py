"""Nouns of the TPM 2.0 structures that hosts send: publics, signatures, attestations, clocks.

Stage: model. The classes carry no trust: a ``QuoteAttest`` is what some bytes say, whoever wrote
them. Only ``verification.quote`` turns one into a ``VerifiedQuote``.
Source: TCG TPM 2.0 Library, Part 2 (Structures), revision 1.59; section numbers below are Part 2's.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from trustauthority.model.digest import HashAlgorithm

HANDLE_OWNER = 0x40000001
"""TPM_RH_OWNER: the hierarchy whose seed TPM2_Clear replaces."""
HANDLE_ENDORSEMENT = 0x4000000B
"""TPM_RH_ENDORSEMENT: the hierarchy of the EK."""
ATTEST_MAGIC = 0xFF544347
"""TPM_GENERATED_VALUE: a restricted key signs outside data only when it does not start so."""


class TpmAlgorithm(IntEnum):
    """TPM_ALG_ID values that are not hashes (TCG Algorithm Registry 1.34, table 3)."""

    RSA = 0x0001
    TDES = 0x0003
    HMAC = 0x0005
    AES = 0x0006
    MGF1 = 0x0007
    KEYEDHASH = 0x0008
    XOR = 0x000A
    NULL = 0x0010
    SM4 = 0x0013
    RSASSA = 0x0014
    RSAES = 0x0015
    RSAPSS = 0x0016
    OAEP = 0x0017
    ECDSA = 0x0018
    ECDH = 0x0019
    ECDAA = 0x001A
    SM2 = 0x001B
    ECSCHNORR = 0x001C
    KDF1_SP800_56A = 0x0020
    KDF2 = 0x0021
    KDF1_SP800_108 = 0x0022
    ECC = 0x0023
    SYMCIPHER = 0x0025
    CAMELLIA = 0x0026
    CTR = 0x0040
    OFB = 0x0041
    CBC = 0x0042
    CFB = 0x0043
    ECB = 0x0044


class EccCurve(IntEnum):
    """TPM_ECC_CURVE (section 6.4). Being listed says that it decodes, not that it is accepted."""

    NIST_P192 = 0x0001
    NIST_P224 = 0x0002
    NIST_P256 = 0x0003
    NIST_P384 = 0x0004
    NIST_P521 = 0x0005
    BN_P256 = 0x0010
    BN_P638 = 0x0011
    SM2_P256 = 0x0020

    @property
    def coordinate_size(self) -> int:
        """Length in bytes of a coordinate, and of an ECDSA r or s."""
        return _COORDINATE_SIZES[self]


_COORDINATE_SIZES = {
    EccCurve.NIST_P192: 24,
    EccCurve.NIST_P224: 28,
    EccCurve.NIST_P256: 32,
    EccCurve.NIST_P384: 48,
    EccCurve.NIST_P521: 66,
    EccCurve.BN_P256: 32,
    EccCurve.BN_P638: 80,
    EccCurve.SM2_P256: 32,
}


class ObjectAttributes(IntFlag):
    """TPMA_OBJECT (section 8.3, with the additions of revision 1.83)."""

    FIXED_TPM = 1 << 1
    ST_CLEAR = 1 << 2
    FIXED_PARENT = 1 << 4
    SENSITIVE_DATA_ORIGIN = 1 << 5
    USER_WITH_AUTH = 1 << 6
    ADMIN_WITH_POLICY = 1 << 7
    FIRMWARE_LIMITED = 1 << 8
    SVN_LIMITED = 1 << 9
    NO_DA = 1 << 10
    ENCRYPTED_DUPLICATION = 1 << 11
    RESTRICTED = 1 << 16
    DECRYPT = 1 << 17
    SIGN = 1 << 18
    X509_SIGN = 1 << 19


@dataclass(frozen=True, slots=True, kw_only=True)
class SymmetricDefinition:
    """TPMT_SYM_DEF_OBJECT: the cipher with which a storage key protects its children."""

    algorithm: TpmAlgorithm
    key_bits: int
    mode: TpmAlgorithm
    """``NULL`` for a symmetric key that leaves its mode open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """A signing, encryption, key exchange or key derivation scheme with its hash."""

    algorithm: TpmAlgorithm
    hash: HashAlgorithm | None = None
    """None only for schemes that have no hash of their own (RSAES)."""
    kdf: TpmAlgorithm | None = None
    """Key derivation function of the XOR scheme of a keyed hash."""
    count: int | None = None
    """Commit counter of ECDAA."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RsaParameters:
    """TPMS_RSA_PARMS."""

    symmetric: SymmetricDefinition | None
    scheme: Scheme | None
    key_bits: int
    exponent: int
    """As on the wire: 0 stands for 65537."""

    @property
    def public_exponent(self) -> int:
        """The exponent itself."""
        return self.exponent or 65537


@dataclass(frozen=True, slots=True, kw_only=True)
class EccParameters:
    """TPMS_ECC_PARMS."""

    symmetric: SymmetricDefinition | None
    scheme: Scheme | None
    curve: EccCurve
    kdf: Scheme | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyedHashParameters:
    """TPMS_KEYEDHASH_PARMS: a sealed object has no scheme."""

    scheme: Scheme | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SymmetricCipherParameters:
    """TPMS_SYMCIPHER_PARMS."""

    symmetric: SymmetricDefinition | None


PublicParameters = RsaParameters | EccParameters | KeyedHashParameters | SymmetricCipherParameters


@dataclass(frozen=True, slots=True, kw_only=True)
class EccPoint:
    """TPMS_ECC_POINT, coordinates as on the wire."""

    x: bytes
    y: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmPublic:
    """TPMT_PUBLIC (section 12.2.4)."""

    type: TpmAlgorithm
    """RSA, ECC, KEYEDHASH or SYMCIPHER; fixes the class of ``parameters``."""
    name_alg: HashAlgorithm | None
    """None for TPM_ALG_NULL: an object without a name, which nothing here accepts."""
    attributes: ObjectAttributes
    auth_policy: bytes
    parameters: PublicParameters
    unique: bytes | EccPoint
    """RSA modulus, ECC point, or digest."""
    raw: bytes = b""
    """The TPMT_PUBLIC as received; empty for one that was built here."""

    @property
    def symmetric(self) -> SymmetricDefinition | None:
        """The cipher for children; None for TPM_ALG_NULL or a type that has none."""
        parameters = self.parameters
        return None if isinstance(parameters, KeyedHashParameters) else parameters.symmetric

    @property
    def scheme(self) -> Scheme | None:
        """The fixed scheme of the key; None when it leaves the scheme to each command."""
        parameters = self.parameters
        return None if isinstance(parameters, SymmetricCipherParameters) else parameters.scheme


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """TPMT_SIGNATURE (section 11.3.4)."""

    scheme: TpmAlgorithm
    hash: HashAlgorithm
    values: tuple[bytes, ...]
    """One block for RSA, (r, s) for the elliptic-curve schemes, one MAC for HMAC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PcrSelection:
    """TPMS_PCR_SELECTION: PCRs of one bank, ascending."""

    bank: HashAlgorithm
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockInfo:
    """TPMS_CLOCK_INFO (section 10.11.1).

    SQL integers and JSON numbers can't carry every 64-bit value, so stores keep ``clock_bytes`` and
    ``counter_bytes``: big-endian blobs, whose byte order is also their numeric order.
    """

    clock: int
    """Milliseconds in which the TPM was powered since TPM2_Clear; may run 33 % off."""
    reset_count: int
    """TPM resets (boots) since TPM2_Clear."""
    restart_count: int
    """TPM restarts (resumes) since the reset."""
    safe: bool
    """False when the clock may have been set back by a power cut. A finding, not a refusal."""

    def __post_init__(self) -> None:
        if self.clock >> 64 or self.reset_count >> 32 or self.restart_count >> 32:
            raise ValueError("clock is a 64-bit value, resetCount and restartCount are 32-bit ones")

    @property
    def position(self) -> tuple[int, int, int]:
        """(resetCount, restartCount, clock): what must move forward, compared as a tuple (N17)."""
        return (self.reset_count, self.restart_count, self.clock)

    @property
    def clock_bytes(self) -> bytes:
        """``clock`` as 8 big-endian bytes, as at offset 8 of TPMS_TIME_INFO."""
        return self.clock.to_bytes(8, "big")

    @property
    def counter_bytes(self) -> bytes:
        """The 8 bytes resetCount ‖ restartCount, as at offset 16 of TPMS_TIME_INFO."""
        return struct.pack(">II", self.reset_count, self.restart_count)

    @classmethod
    def from_bytes(cls, *, clock: bytes, counters: bytes, safe: bool) -> "ClockInfo":
        """Build from the two 8-byte blobs that ``clock_bytes`` and ``counter_bytes`` give.

        Raises ValueError when one has another length.
        """
        if len(clock) != 8 or len(counters) != 8:
            raise ValueError("clock and counters are blobs of 8 bytes")
        reset_count, restart_count = struct.unpack(">II", counters)
        return cls(
            clock=int.from_bytes(clock, "big"),
            reset_count=reset_count,
            restart_count=restart_count,
            safe=safe,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteAttest:
    """TPMS_ATTEST of type TPM_ST_ATTEST_QUOTE (section 10.12.12)."""

    qualified_signer: bytes
    extra_data: bytes
    clock_info: ClockInfo
    firmware_version: int
    selection: tuple[PcrSelection, ...]
    """As on the wire: banks may repeat, be empty, or name PCRs that do not exist."""
    pcr_digest: bytes
    raw: bytes
    """The bytes that were signed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifyAttest:
    """TPMS_ATTEST of type TPM_ST_ATTEST_CERTIFY."""

    qualified_signer: bytes
    extra_data: bytes
    clock_info: ClockInfo
    firmware_version: int
    name: bytes
    qualified_name: bytes
    raw: bytes
    """The bytes that were signed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherAttest:
    """A structure that is neither a quote nor a certification, or that no TPM made (wrong magic)."""

    magic: int
    type: int
    raw: bytes


Attest = QuoteAttest | CertifyAttest | OtherAttest
