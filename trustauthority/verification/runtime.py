"""Replay of an IMA log: the prefix that a quoted PCR proves, and what is wrong with its entries.

Trusts on entry: decoded entries (any bytes of the host) and a PCR value that a verified quote covers.
Guarantees on exit: ``match_prefix`` names the number of entries that the quoted value proves; entries
after it are unverified and must not be appraised (pitfalls 54). It does not judge files.

Source: Linux security/integrity/ima/ima_queue.c (extend), ima_crypto.c (template digest, boot
aggregate). Pitfalls 51-56, 58.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from trustauthority.codec.ima import path_and_digest
from trustauthority.errors import AlgorithmUnsupported, MalformedEvidence
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.ima import (
    BOOT_AGGREGATE,
    IMA_PCR,
    ImaEntry,
    ImaReplayState,
)
from trustauthority.verification.banks import hash_constructor

MAX_FINDINGS = 100
_SHA1_SIZE = HashAlgorithm.SHA1.size
_AGGREGATE_HASHES = {
    **{str(algorithm): algorithm for algorithm in HashAlgorithm},
    "sm3": HashAlgorithm.SM3_256,
    "sm3-256": HashAlgorithm.SM3_256,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixMatch:
    """A quoted PCR value equals the replay of a prefix of the new entries."""

    matched: int
    """How many of the new entries the quote proves: 0 is "nothing new", not "nothing"."""
    state: ImaReplayState
    """Where the next delta goes on."""


class EntryDefect(StrEnum):
    """What makes an entry one that can't be believed. Stable ids, shown to users."""

    REGISTER = "entry-of-another-pcr"
    TEMPLATE_DIGEST = "template-digest-mismatch"
    TEMPLATE_UNKNOWN = "template-or-hash-unknown"
    FIELDS = "template-data-malformed"


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryFinding:
    """A defect of one entry."""

    defect: EntryDefect
    index: int
    detail: str


def initial_state(bank: HashAlgorithm) -> ImaReplayState:
    """The state at boot: PCR 10 is zero and no entry was made."""
    return ImaReplayState(value=b"\0" * bank.size, count=0)


def extend_entries(
    entries: Iterable[ImaEntry],
    bank: HashAlgorithm,
    *,
    state: ImaReplayState | None = None,
    padded: bool = False,
    pcr: int = IMA_PCR,
) -> ImaReplayState:
    """Replay entries in one bank.

    Args:
        entries: in the order of the log.
        bank: each bank has the hash of the template data in that hash (Linux 5.8 and later).
        state: where an earlier replay stopped.
        padded: older kernels extend every bank with the SHA-1 digest padded with zeros. A property of
            the kernel: decided for a whole log, never per entry (pitfalls 51).
        pcr: the register IMA extends; entries of others do not count here and are a defect.
    """
    begin = state or initial_state(bank)
    return extend_until(entries, None, bank, begin, padded=padded, pcr=pcr)[0]


def match_prefix(
    entries: Sequence[ImaEntry],
    quoted: bytes,
    bank: HashAlgorithm,
    *,
    state: ImaReplayState | None = None,
    padded: bool = False,
    pcr: int = IMA_PCR,
) -> PrefixMatch | None:
    """Find the prefix of ``entries`` after which the register has the quoted value, or None.

    The log is read after the quote and grows meanwhile, so any prefix may be the right one, the empty
    one included (pitfalls 54).
    """
    begin = state or initial_state(bank)
    if begin.value == quoted:
        return PrefixMatch(matched=0, state=begin)
    end, found = extend_until(entries, quoted, bank, begin, padded=padded, pcr=pcr)
    return PrefixMatch(matched=end.count - begin.count, state=end) if found else None


def extend_until(
    entries: Iterable[ImaEntry],
    quoted: bytes | None,
    bank: HashAlgorithm,
    begin: ImaReplayState,
    *,
    padded: bool = False,
    pcr: int = IMA_PCR,
) -> tuple[ImaReplayState, bool]:
    """Replay entries up to the one after which the register has the quoted value, if there is one.

    Returns the state there, or after the last entry, and whether the value was met.
    """
    digest_of = hash_constructor(bank)
    size = bank.size
    ones = b"\xff" * size
    zero = b""
    value, count, found = begin.value, begin.count, False
    as_logged = padded or bank is HashAlgorithm.SHA1
    for _, _, register, logged, _, data in entries:
        count += 1
        if register == pcr:
            if len(zero) != len(logged):
                zero = bytes(len(logged))
            if logged == zero:
                extended = ones
            elif as_logged and len(logged) == _SHA1_SIZE:
                # The kernel extended the digest that it logged; entry_findings compares it with the data.
                extended = logged.ljust(size, b"\0")
            else:
                extended = digest_of(data).digest()
            value = digest_of(value + extended).digest()
        if value == quoted:
            found = True
            break
    return ImaReplayState(value=value, count=count), found


# --- entries ---------------------------------------------------------------------------------


def entry_findings(
    entries: Iterable[ImaEntry], *, pcr: int = IMA_PCR, limit: int = MAX_FINDINGS
) -> tuple[EntryFinding, ...]:
    """What is wrong with each entry, whatever the register says (pitfalls 51, 53, 58).

    At most ``limit`` findings: one is enough to refuse a log.
    """
    found: list[EntryFinding] = []
    for entry in entries:
        finding = entry_finding(entry, pcr)
        if finding is not None:
            found.append(finding)
            if len(found) >= limit:
                break
    return tuple(found)


def entry_finding(entry: ImaEntry, pcr: int = IMA_PCR) -> EntryFinding | None:
    """What is wrong with one entry, or None."""
    if entry.pcr != pcr:
        return EntryFinding(
            defect=EntryDefect.REGISTER, index=entry.number, detail=f"PCR {entry.pcr}, not {pcr}"
        )
    if not template_digest_matches(entry):
        return EntryFinding(
            defect=EntryDefect.TEMPLATE_DIGEST,
            index=entry.number,
            detail="the logged digest is not the hash of the template data",
        )
    try:
        path_and_digest(entry)
    except AlgorithmUnsupported as error:
        return EntryFinding(
            defect=EntryDefect.TEMPLATE_UNKNOWN, index=entry.number, detail=error.message
        )
    except MalformedEvidence as error:
        return EntryFinding(defect=EntryDefect.FIELDS, index=entry.number, detail=error.message)
    return None


def template_digest_matches(entry: ImaEntry) -> bool:
    """Say whether the logged digest is that of the data; a violation has none and is fine here."""
    logged = entry.template_digest
    if logged == bytes(len(logged)):
        return True
    if len(logged) == _SHA1_SIZE:
        return hashlib.sha1(entry.data, usedforsecurity=False).digest() == logged
    return any(
        hash_constructor(algorithm)(entry.data).digest() == logged
        for algorithm in HashAlgorithm
        if algorithm.size == len(logged)
    )


# --- boot aggregate --------------------------------------------------------------------------


class BootAggregate(StrEnum):
    """How the first entry ties the runtime log to the boot."""

    PCRS_0_7 = "pcrs-0-7"
    PCRS_0_9 = "pcrs-0-9"
    ZERO = "zero"
    """The kernel had no TPM when it started: nothing ties the log to the boot."""
    MISSING = "missing"
    MISMATCH = "mismatch"


TIED = frozenset({BootAggregate.PCRS_0_7, BootAggregate.PCRS_0_9})
"""Outcomes that tie the runtime log to the boot."""
BOOT_AGGREGATE_FIELD = BOOT_AGGREGATE.encode() + b"\0"
"""What the template data of a ``boot_aggregate`` entry contains, in every template."""


def check_boot_aggregate(
    first: ImaEntry | None, pcrs: Mapping[HashAlgorithm, Mapping[int, bytes]]
) -> BootAggregate:
    """Compare ``boot_aggregate`` with quoted PCRs of any bank (pitfalls 56).

    Args:
        first: the first entry of the log, or the last ``boot_aggregate`` after a kexec.
        pcrs: quoted values, bank → index → value.
    """
    try:
        path, algorithm, digest = path_and_digest(first) if first else ("", "", b"")
    except (AlgorithmUnsupported, MalformedEvidence):
        path, algorithm, digest = "", "", b""
    if path != BOOT_AGGREGATE:
        return BootAggregate.MISSING
    if not any(digest):
        return BootAggregate.ZERO
    if algorithm not in _AGGREGATE_HASHES:
        return BootAggregate.MISMATCH
    try:
        digest_of = hash_constructor(_AGGREGATE_HASHES[algorithm])
    except AlgorithmUnsupported:  # an OpenSSL without SM3: what can't be compared does not fit
        return BootAggregate.MISMATCH
    for values in pcrs.values():
        for last, outcome in ((7, BootAggregate.PCRS_0_7), (9, BootAggregate.PCRS_0_9)):
            if all(pcr in values for pcr in range(last + 1)):
                joined = b"".join(values[pcr] for pcr in range(last + 1))
                if digest_of(joined).digest() == digest:
                    return outcome
    return BootAggregate.MISMATCH
