"""TPM firmware with published flaws.

Stage: model. The table is a default that an operator's own list can replace or extend; it holds what the
vendors' advisories say, no more. Source: pitfall 17; CVE-2017-15361; CVE-2019-16863.
"""

from dataclasses import dataclass
from typing import TypeAlias

FirmwareVersion: TypeAlias = tuple[int, int]
"""Major and minor, as in TPM_PT_FIRMWARE_VERSION_1: two 16-bit halves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareFlaw:
    """One published flaw and the versions of one manufacturer that have it, both ends included."""

    manufacturer: str
    """As ``TpmIdentity.manufacturer_name`` gives it: ``IFX``, ``STM`` …"""
    first: FirmwareVersion
    last: FirmwareVersion
    identifier: str
    """CVE or advisory."""
    effect: str
    """What an attacker gains, in words for an operator."""


_ROCA = "RSA keys that this firmware generated can be factored; the EK of the factory may be one"
_TPM_FAIL = "private keys that sign with ECDSA leak through timing; RSA keys do not"


def _flaws(
    manufacturer: str,
    identifier: str,
    effect: str,
    *ranges: tuple[FirmwareVersion, FirmwareVersion],
) -> tuple[FirmwareFlaw, ...]:
    return tuple(
        FirmwareFlaw(
            manufacturer=manufacturer, first=first, last=last, identifier=identifier, effect=effect
        )
        for first, last in ranges
    )


KNOWN_FLAWS = (
    *_flaws(
        "IFX",
        "CVE-2017-15361",
        _ROCA,
        ((0, 0), (4, 33)),
        ((4, 40), (4, 42)),
        ((5, 0), (5, 61)),
        ((6, 0), (6, 42)),
        ((7, 0), (7, 61)),
    ),
    *_flaws(
        "STM",
        "CVE-2019-16863",
        _TPM_FAIL,
        *(
            ((major, minor), (major, minor))
            for major, minors in (
                (71, (0, 4, 12)),
                (73, (0, 4, 5, 8, 9)),
                (74, (0, 4, 5, 8, 9, 16)),
            )
            for minor in minors
        ),
    ),
)
"""By the advisories of Infineon and STMicroelectronics."""
