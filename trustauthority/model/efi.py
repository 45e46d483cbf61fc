"""What UEFI structures inside event data say. Claims of a host until a digest proves the event.

Source: UEFI Specification 2.10; TCG PC Client Platform Firmware Profile 1.06, section 10.2.6.
"""

from dataclasses import dataclass

GLOBAL_VARIABLE = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
IMAGE_SECURITY_DATABASE = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
SHIM_LOCK = "605dab50-e046-4300-abb6-3dd810dd8b23"

CERT_X509 = "a5c059a1-94e4-4aa7-87b5-ab155c2bf072"
CERT_SHA256 = "c1c41626-504c-4092-aca9-41f936934328"


@dataclass(frozen=True, slots=True, kw_only=True)
class EfiVariable:
    """UEFI_VARIABLE_DATA: a variable as it was measured."""

    name: str
    guid: str
    """Lower-case vendor GUID."""
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EfiSignatureList:
    """One EFI_SIGNATURE_LIST of a key database."""

    type_guid: str
    entries: tuple[tuple[str, bytes], ...]
    """Owner GUID and data (a certificate or a digest) of each entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLoad:
    """UEFI_IMAGE_LOAD_EVENT: an image that firmware loaded. Only its digest is a claim."""

    address: int
    size: int
    """Bytes in memory, not in the file."""
    link_time_address: int
    device_path: str
    """Where it was read from, in the words of the UEFI specification; empty when it had no path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GptPartition:
    """A used entry of a partition table."""

    type_guid: str
    unique_guid: str
    first_block: int
    last_block: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionTable:
    """UEFI_GPT_DATA: the table of the boot disk."""

    disk_guid: str
    partitions: tuple[GptPartition, ...]
