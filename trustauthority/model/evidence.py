"""Evidence: the bytes that a host claims, within their size limits, and nothing believed of them.

Constructed in ``codec.evidence`` only; ``verification.pipeline`` turns it into VerifiedEvidence.
"""

from dataclasses import dataclass

MAX_ATTEST_BYTES = 4096
"""A TPMS_ATTEST has some 150 bytes; post-quantum keys make names no longer (promises N41)."""
MAX_SIGNATURE_BYTES = 8192
"""An RSA-4096 signature has 518 bytes, ML-DSA-65 3,309."""
MAX_PCR_BYTES = 8192
"""24 PCRs of 5 banks have 4,320 bytes."""
MAX_BOOT_LOG_BYTES = 4 * 1024 * 1024
"""Real boot logs have 15-200 KiB."""
MAX_USERSPACE_LOG_BYTES = 4 * 1024 * 1024
"""systemd writes some 500 bytes per measurement, and a boot has a dozen."""
MAX_IMA_BYTES = 64 * 1024 * 1024
"""100,000 entries have about 14 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One quote, and the logs that were read after it."""

    challenge: bytes
    attest: bytes
    signature: bytes
    pcr_values: bytes
    """Joined in the order of the quote's selection."""
    boot_log: bytes
    ima_offset: int
    """Where ``ima_log`` starts in the binary log of this boot."""
    ima_log: bytes
    userspace_log: bytes = b""
    """What user space measured after the boot loader, as it logged it; empty where it keeps no log."""
