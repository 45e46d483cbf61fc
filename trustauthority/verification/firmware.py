"""Does the firmware that a TPM says it runs have a published flaw?

Stage: verification. Trusts that manufacturer and firmwareVersion come from verified structures: the EK
certificate and a quote by an AK of the endorsement hierarchy (for other keys the TPM obfuscates it).
Answers with the flaws, as a value: whether one is a refusal is policy. The version in the EK certificate
is the factory's and must not be used: firmware gets updated. Source: TCG TPM 2.0 Library, Part 2,
sections 6.13 (TPM_PT_FIRMWARE_VERSION_1) and 10.12.12; pitfall 17.
"""

from collections.abc import Iterable

from trustauthority.model.firmware import KNOWN_FLAWS, FirmwareFlaw, FirmwareVersion


def firmware_version(value: int) -> FirmwareVersion:
    """Major and minor of a TPMS_ATTEST firmwareVersion (64 bits: VERSION_1, then VERSION_2)."""
    return value >> 48 & 0xFFFF, value >> 32 & 0xFFFF


def flaws_of(
    manufacturer: str, firmware: int, flaws: Iterable[FirmwareFlaw] = KNOWN_FLAWS
) -> tuple[FirmwareFlaw, ...]:
    """The flaws of this firmware, in the order of the list; empty when none is published.

    Args:
        manufacturer: ``TpmIdentity.manufacturer_name``.
        firmware: firmwareVersion of a verified quote.
        flaws: the list to go by.
    """
    version = firmware_version(firmware)
    return tuple(
        flaw
        for flaw in flaws
        if flaw.manufacturer == manufacturer and flaw.first <= version <= flaw.last
    )
