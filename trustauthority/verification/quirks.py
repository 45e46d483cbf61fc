"""Known deviations of firmware and boot loaders, each named, each opt-in by policy (pitfalls 43).

Trusts nothing by itself: a quirk applies only where policy names it, and only where the quoted value
then fits exactly. There is no search over combinations: each quirk is one fixed change to one register.

A quirk that adds events to a replay says: "the log lacks these records, the TPM was extended with
them". That reveals nothing about what else ran, so it is safe for a register that no claim rests on.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.quirk import Quirk
from trustauthority.verification.banks import hash_constructor


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingEvents:
    """Records that a register holds and the log lacks, at its end."""

    pcr: int
    data: tuple[bytes, ...]
    """What was hashed, in order."""


_INVOCATION = b"Exit Boot Services Invocation"
_SUCCESS = b"Exit Boot Services Returned with Success"
_FAILURE = b"Exit Boot Services Returned with Failure"

MISSING_EVENTS: Mapping[Quirk, MissingEvents] = {
    Quirk.EXIT_BOOT_SERVICES_MISSING: MissingEvents(pcr=5, data=(_INVOCATION, _SUCCESS)),
    Quirk.EXIT_BOOT_SERVICES_INVOCATION_ONLY: MissingEvents(pcr=5, data=(_INVOCATION,)),
    Quirk.EXIT_BOOT_SERVICES_FAILED_ONCE: MissingEvents(
        pcr=5, data=(_INVOCATION, _FAILURE, _INVOCATION, _SUCCESS)
    ),
}


def explain_with_quirk(
    replayed: Mapping[int, bytes],
    quoted: Mapping[int, bytes],
    bank: HashAlgorithm,
    allowed: frozenset[Quirk],
) -> Mapping[int, Quirk]:
    """Which registers an allowed quirk explains exactly: register → the quirk.

    Args:
        replayed: values of the registers that have events, each complete.
        quoted: values that a verified quote covers.
        bank: of both.
        allowed: the quirks that policy names.
    """
    explained: dict[int, Quirk] = {}
    for quirk, missing in MISSING_EVENTS.items():
        value = replayed.get(missing.pcr)
        if quirk not in allowed or value is None:
            continue
        if _extend_all(value, missing.data, bank) == quoted.get(missing.pcr):
            explained[missing.pcr] = quirk
    return explained


def _extend_all(value: bytes, data: tuple[bytes, ...], bank: HashAlgorithm) -> bytes:
    digest_of = hash_constructor(bank)
    for content in data:
        value = digest_of(value + digest_of(content).digest()).digest()
    return value


def shim_measured(data: bytes, digest: bytes, bank: HashAlgorithm) -> bool:
    """Say whether ``digest`` is that of ``data`` without its last byte (SHIM_TRAILING_BYTES)."""
    return bool(data) and hash_constructor(bank)(data[:-1]).digest() == digest
