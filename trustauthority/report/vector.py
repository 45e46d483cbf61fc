"""From a check tree to an AR4SI trustworthiness vector: what relying parties read instead of the tree.

What it trusts: the checks of a Verdict, by their stable ids. What it guarantees: a claim is affirming only
when each check that it rests on was made and passed; what was not looked at is 0, what nobody could look at
because a check crashed is -1, and evidence that is not genuine is 99 in every claim (rules 62, 63).
Spec: draft-ietf-rats-ar4si-09, section 2.3; draft-ietf-rats-ear-04, section 3.2 (status).
"""

from collections.abc import Iterable, Mapping
from enum import IntEnum, StrEnum

from trustauthority.model.verdict import Check, CheckState


class Claim(StrEnum):
    """The trustworthiness claims."""

    INSTANCE_IDENTITY = "instance-identity"
    CONFIGURATION = "configuration"
    EXECUTABLES = "executables"
    FILE_SYSTEM = "file-system"
    HARDWARE = "hardware"
    RUNTIME_OPAQUE = "runtime-opaque"
    STORAGE_OPAQUE = "storage-opaque"
    SOURCED_DATA = "sourced-data"


class _Value(IntEnum):
    """Claim values by their meaning in section 2.3; a number may mean several things."""

    MALFUNCTION = -1
    NONE = 0
    APPROVED = 2
    APPROVED_BOOT = 3
    UNSAFE = 32
    UNRECOGNISED_EXECUTABLES = 33
    UNAVAILABLE_CONFIGURATION = 36
    UNTRUSTED = 96
    UNRECOGNISED_INSTANCE = 97
    CRYPTO_FAILED = 99


class Status(StrEnum):
    """``ear.status``."""

    NONE = "none"
    AFFIRMING = "affirming"
    WARNING = "warning"
    CONTRAINDICATED = "contraindicated"


_WARNING_FROM, _CONTRAINDICATED_FROM = 32, 96
CRASHED = ".crashed"
"""End of the id of the check that says that another one crashed."""


def trust_vector(checks: Iterable[Check]) -> dict[str, int]:
    """The vector of a verdict's checks."""
    found = {check.id: check for check in _all(checks)}
    boot, system = _boot(found), _file_system(found)
    return {
        Claim.INSTANCE_IDENTITY: _instance(found),
        Claim.CONFIGURATION: _configuration(found),
        Claim.EXECUTABLES: _executables(boot, system),
        Claim.FILE_SYSTEM: system,
        Claim.HARDWARE: _hardware(found),
        # A TPM shows nothing about who can read memory and disks, or where data comes from.
        Claim.RUNTIME_OPAQUE: _Value.NONE,
        Claim.STORAGE_OPAQUE: _Value.NONE,
        Claim.SOURCED_DATA: _Value.NONE,
    }


def rejected_vector() -> dict[str, int]:
    """The vector of evidence whose signature, challenge or digest is wrong: it proves nothing at all."""
    return dict.fromkeys(map(str, Claim), int(_Value.CRYPTO_FAILED))


def status_of(vector: Mapping[str, int], *, passed: bool) -> Status:
    """``ear.status``: never better than the worst claim, and never affirming for a failed verdict."""
    worst = max(vector.values(), default=0)
    if not passed or worst >= _CONTRAINDICATED_FROM:
        return Status.CONTRAINDICATED
    if worst >= _WARNING_FROM:
        return Status.WARNING
    unknown = not any(vector[claim] for claim in (Claim.CONFIGURATION, Claim.EXECUTABLES))
    return Status.NONE if unknown or min(vector.values()) < 0 else Status.AFFIRMING


def _state(found: Mapping[str, Check], name: str) -> CheckState | None:
    check = found.get(name)
    return None if check is None else check.state


def _crashed(found: Mapping[str, Check], *groups: str) -> bool:
    return any(f"{group}{CRASHED}" in found for group in groups)


def _bad(found: Mapping[str, Check], name: str) -> bool:
    return _state(found, name) in {CheckState.FAILED, CheckState.WARNING}


def _good(found: Mapping[str, Check], name: str) -> bool:
    return _state(found, name) is CheckState.PASSED


def _instance(found: Mapping[str, Check]) -> int:
    if _bad(found, "revocation"):
        return _Value.UNTRUSTED
    if _bad(found, "endorsement"):
        return _Value.UNRECOGNISED_INSTANCE
    known = _good(found, "endorsement") and _good(found, "residency")
    return _Value.APPROVED if known else _Value.NONE


def _hardware(found: Mapping[str, Check]) -> int:
    """Genuine only where a vendor's certificate says so; a person who named a key vouches for no chip."""
    if _bad(found, "endorsement"):
        return _Value.UNRECOGNISED_INSTANCE
    if _crashed(found, "tpm-firmware"):
        return _Value.MALFUNCTION
    if _bad(found, "tpm-firmware"):
        return _Value.UNSAFE
    certified = _good(found, "endorsement.certificate") and _good(found, "residency")
    return _Value.APPROVED if certified else _Value.NONE


def _configuration(found: Mapping[str, Check]) -> int:
    if _crashed(found, "secure-boot", "boot-log"):
        return _Value.MALFUNCTION
    if _bad(found, "secure-boot.log") or _bad(found, "boot-log"):
        return _Value.UNAVAILABLE_CONFIGURATION
    if _bad(found, "secure-boot"):
        return _Value.UNSAFE
    return _Value.APPROVED if _good(found, "secure-boot.enforced") else _Value.NONE


def _boot(found: Mapping[str, Check]) -> int:
    """Executables of the boot: recognised only in a log that the PCRs prove."""
    if _crashed(found, "baseline", "boot-log"):
        return _Value.MALFUNCTION
    if _bad(found, "baseline") or _bad(found, "boot-log"):
        return _Value.UNRECOGNISED_EXECUTABLES
    known = _good(found, "baseline") and _good(found, "boot-log")
    return _Value.APPROVED_BOOT if known else _Value.NONE


def _file_system(found: Mapping[str, Check]) -> int:
    """Files that ran or were read since: recognised only when each entry was proven and approved."""
    if _crashed(found, "runtime"):
        return _Value.MALFUNCTION
    if _state(found, "runtime.files") in {None, CheckState.SKIPPED}:
        return _Value.NONE
    proven = ("runtime.replay", "runtime.entries", "runtime.violations", "runtime.files")
    if any(_bad(found, name) for name in proven):
        return _Value.UNSAFE  # 32 means "unrecognised files" here
    tied = _good(found, "runtime.replay") and _good(found, "runtime.boot-aggregate")
    return _Value.APPROVED if tied else _Value.NONE


def _executables(boot: int, system: int) -> int:
    if _Value.MALFUNCTION in (boot, system):
        return _Value.MALFUNCTION
    if system == _Value.UNSAFE:
        return _Value.UNRECOGNISED_EXECUTABLES
    if boot == _Value.APPROVED_BOOT and system == _Value.APPROVED:
        return _Value.APPROVED
    return boot


def _all(checks: Iterable[Check]) -> list[Check]:
    return [each for check in checks for each in (check, *_all(check.children))]
