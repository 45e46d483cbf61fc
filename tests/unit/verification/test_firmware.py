"""Known-bad firmware: by manufacturer and version of a verified quote (rule 17)."""

import pytest

from trustauthority.model.firmware import KNOWN_FLAWS, FirmwareFlaw
from trustauthority.verification.firmware import firmware_version, flaws_of

ROCA, TPM_FAIL = "CVE-2017-15361", "CVE-2019-16863"


def _version(major: int, minor: int) -> int:
    return major << 48 | minor << 32 | 0x1234


def test_a_version_is_the_upper_half_of_the_number() -> None:
    """Part 2: VERSION_1 holds major and minor, VERSION_2 is the vendor's own."""
    assert firmware_version(0x0007_003F_0011_2233) == (7, 63)


@pytest.mark.parametrize(
    ("manufacturer", "major", "minor", "expected"),
    [
        ("IFX", 7, 61, [ROCA]),
        ("IFX", 7, 62, []),
        ("IFX", 7, 0, [ROCA]),
        ("IFX", 5, 61, [ROCA]),
        ("IFX", 5, 62, []),
        ("IFX", 4, 33, [ROCA]),
        ("IFX", 4, 34, []),
        ("IFX", 4, 41, [ROCA]),
        ("IFX", 15, 23, []),
        ("STM", 73, 4, [TPM_FAIL]),
        ("STM", 73, 20, []),
        ("STM", 74, 16, [TPM_FAIL]),
        ("STM", 1, 258, []),
        ("NTC", 7, 2, []),
        ("STM", 7, 61, []),
    ],
)
def test_flaws_are_found_by_manufacturer_and_version(
    manufacturer: str, major: int, minor: int, expected: list[str]
) -> None:
    """Rule 17: both ends of a range count, and the neighbours don't."""
    found = flaws_of(manufacturer, _version(major, minor))
    assert [flaw.identifier for flaw in found] == expected


def test_an_operator_can_extend_the_list() -> None:
    """The table is a default, not the law."""
    own = FirmwareFlaw(
        manufacturer="NTC", first=(7, 0), last=(7, 2), identifier="OWN-1", effect="seen in the lab"
    )
    assert flaws_of("NTC", _version(7, 2), (*KNOWN_FLAWS, own)) == (own,)
