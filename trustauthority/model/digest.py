"""Hash algorithms of the TPM world and digests of a known length.

Source: TCG Algorithm Registry 1.34, table 3 (identifiers); FIPS 180-4, GB/T 32905 (sizes).
"""

from dataclasses import dataclass
from enum import StrEnum


class HashAlgorithm(StrEnum):
    """A PCR bank or digest algorithm, by the name that users type."""

    SHA1 = "sha1"
    SHA256 = "sha256"
    SHA384 = "sha384"
    SHA512 = "sha512"
    SM3_256 = "sm3_256"

    @property
    def size(self) -> int:
        """Digest length in bytes."""
        return _SIZES[self]

    @property
    def tpm_id(self) -> int:
        """TPM_ALG_ID."""
        return _TPM_IDS[self]

    @classmethod
    def from_tpm_id(cls, tpm_id: int) -> "HashAlgorithm | None":
        """The algorithm of a TPM_ALG_ID, or None when it is not a hash we know."""
        return _BY_TPM_ID.get(tpm_id)


_SIZES = {
    HashAlgorithm.SHA1: 20,
    HashAlgorithm.SHA256: 32,
    HashAlgorithm.SHA384: 48,
    HashAlgorithm.SHA512: 64,
    HashAlgorithm.SM3_256: 32,
}
_TPM_IDS = {
    HashAlgorithm.SHA1: 0x0004,
    HashAlgorithm.SHA256: 0x000B,
    HashAlgorithm.SHA384: 0x000C,
    HashAlgorithm.SHA512: 0x000D,
    HashAlgorithm.SM3_256: 0x0012,
}
_BY_TPM_ID = {tpm_id: algorithm for algorithm, tpm_id in _TPM_IDS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """A hash value that knows its algorithm."""

    algorithm: HashAlgorithm
    value: bytes

    def __post_init__(self) -> None:
        if len(self.value) != self.algorithm.size:
            raise ValueError(
                f"{self.algorithm} digests have {self.algorithm.size} bytes, not {len(self.value)}"
            )

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.value.hex()}"
