"""From the parts of an Attest stream to Evidence. Checks sizes; believes nothing.

What it is: the only constructor of ``Evidence``. What it trusts: nothing. What it does not do: read
TPM structures or logs, which ``verification.pipeline`` does after the signature was checked.
"""

from trustauthority.errors import InvalidRequest
from trustauthority.model.evidence import (
    MAX_ATTEST_BYTES,
    MAX_BOOT_LOG_BYTES,
    MAX_IMA_BYTES,
    MAX_PCR_BYTES,
    MAX_SIGNATURE_BYTES,
    MAX_USERSPACE_LOG_BYTES,
    Evidence,
)

_LIMITS = {
    "attest": MAX_ATTEST_BYTES,
    "signature": MAX_SIGNATURE_BYTES,
    "pcr_values": MAX_PCR_BYTES,
    "boot_log": MAX_BOOT_LOG_BYTES,
    "ima_log": MAX_IMA_BYTES,
    "userspace_log": MAX_USERSPACE_LOG_BYTES,
}


def decode_evidence(
    *,
    challenge: bytes,
    attest: bytes,
    signature: bytes,
    pcr_values: bytes,
    boot_log: bytes,
    ima_offset: int,
    ima_log: bytes,
    userspace_log: bytes = b"",
) -> Evidence:
    """Build Evidence from its parts.

    Raises:
        InvalidRequest: a part is empty that must not be, too long, or the offset is impossible.
    """
    parts = {
        "attest": attest,
        "signature": signature,
        "pcr_values": pcr_values,
        "boot_log": boot_log,
        "ima_log": ima_log,
        "userspace_log": userspace_log,
    }
    for name, part in parts.items():
        if len(part) > _LIMITS[name]:
            raise InvalidRequest(
                f"{name} has {len(part)} bytes, more than {_LIMITS[name]}", field=name
            )
    for name in ("attest", "signature", "pcr_values"):
        if not parts[name]:
            raise InvalidRequest(f"{name} is empty", field=name)
    if not 0 <= ima_offset <= 1 << 40:
        raise InvalidRequest("ima_offset is out of range", field="ima_offset")
    return Evidence(challenge=challenge, ima_offset=ima_offset, **parts)
