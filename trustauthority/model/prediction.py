"""An announced update, and what it will measure. Predicted in ``appraisal.predict`` only."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from trustauthority.model.baseline import Baseline


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdatedFile:
    """A file of an update, as digests in the policy's bank: the file itself need not travel."""

    role: str
    """``kernel``, ``initrd``, ``boot-loader``, ``shim``, or the path by which GRUB reads it."""
    digest: str
    """Hex, of the whole file."""
    image_digest: str = ""
    """Hex, the Authenticode hash; empty for what is no EFI executable."""
    sections: Mapping[str, str] = field(default_factory=dict)
    """Section name → hex digest, of an EFI executable."""
    load_options: str = ""
    """Hex digest of the section ``.cmdline`` as the kernel gets it; empty without that section."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What an update will measure."""

    bank: str
    variants: tuple[Baseline, ...]
    """Components that change."""
    registers: Mapping[int, str]
    """Hex values of the PCRs that change."""
