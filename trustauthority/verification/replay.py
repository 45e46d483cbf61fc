"""Replay of a boot log: which register values follow from it, and which events a quote proves.

Trusts on entry: a decoded ``BootLog`` (any bytes of the host) and, for ``verify_boot_log``, register
values that a verified quote covers. Guarantees on exit: a ``VerifiedBootLog`` yields events of those
registers only whose whole replay equals the quoted value; everything else in the log stays out of
reach. It says nothing about what the events mean (``verification.meaning``, ``appraisal``).

Source: TCG PC Client Platform Firmware Profile 1.06, sections 3.3.2 (initial values), 10.4 (log);
TCG PC Client Platform TPM Profile 1.07, table 5 (PCR attributes). Pitfalls 34-36, 39, 40, 46.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from trustauthority.errors import AlgorithmUnsupported, LogRejected
from trustauthority.model.bootlog import (
    NO_REGISTER,
    BootEvent,
    BootLog,
    EventType,
    LogFormat,
    RegisterKind,
)
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.quirk import Quirk
from trustauthority.verification.banks import hash_constructor
from trustauthority.verification.quirks import explain_with_quirk

STARTUP_LOCALITY = b"StartupLocality\0"
_LOCALITIES = frozenset({0, 3, 4})
_DYNAMIC_PCRS = range(17, 23)
_NO_ACTION = int(EventType.NO_ACTION)
_HCRTM = int(EventType.EFI_HCRTM_EVENT)


class ReplayDefect(StrEnum):
    """What makes a log one that no genuine firmware wrote. Stable ids, shown to users."""

    NO_ACTION_EXTENDED = "no-action-with-digest"
    LOCALITY_LATE = "startup-locality-not-first"
    LOCALITY_TWICE = "startup-locality-twice"
    LOCALITY_INVALID = "startup-locality-invalid"
    LOCALITY_CONTRADICTS = "startup-locality-contradicts-hcrtm"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayFinding:
    """A defect and the record that shows it."""

    defect: ReplayDefect
    event_number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Register values of one bank that follow from a log."""

    bank: HashAlgorithm
    registers: RegisterKind
    values: Mapping[int, bytes]
    """Registers with at least one event, each of which has a digest of this bank."""
    events: Mapping[int, tuple[int, ...]]
    """Which records were extended into each register, in order."""
    initial: Mapping[int, bytes]
    """The value before the first event, where it is not zero."""
    incomplete: Mapping[int, int]
    """Registers that can't be replayed: the first record that lacks a digest of this bank."""
    defects: tuple[ReplayFinding, ...]

    @property
    def complete(self) -> bool:
        """Whether each event of the log has a digest of this bank (pitfalls 39)."""
        return not self.incomplete

    def value(self, pcr: int) -> bytes | None:
        """The value of a register after the log, or None when it can't be known."""
        if pcr in self.incomplete:
            return None
        found = self.values.get(pcr)
        return found if found is not None else self.start(pcr)

    def start(self, pcr: int) -> bytes:
        """The value of a register before its first event."""
        found = self.initial.get(pcr)
        if found is not None:
            return found
        untouched = self.registers is RegisterKind.PCR and pcr in _DYNAMIC_PCRS
        return (b"\xff" if untouched and pcr not in self.events else b"\0") * self.bank.size


@dataclass(frozen=True, slots=True, kw_only=True)
class PcrDifference:
    """One register that the log does not explain."""

    pcr: int
    quoted: bytes
    replayed: bytes | None
    """None when an event lacks a digest of the bank."""
    events: tuple[int, ...]
    """The records the log has for it; none means that they are missing (pitfalls 34)."""

    def __str__(self) -> str:
        if self.replayed is None:
            return f"PCR {self.pcr}: an event has no digest in this bank"
        if not self.events:
            return f"PCR {self.pcr}: quoted {self.quoted.hex()}, the log has no event for it"
        return f"PCR {self.pcr}: quoted {self.quoted.hex()}, the log gives {self.replayed.hex()}"


def replay(log: BootLog, bank: HashAlgorithm) -> Replay:
    """Extend the events of a log in one bank.

    Raises:
        AlgorithmUnsupported: the log has no such bank, or it can't be computed.
    """
    position = log.position(bank)
    if position is None:
        raise AlgorithmUnsupported(f"the log has no {bank} bank", algorithm=bank)
    digest_of = hash_constructor(bank)
    initial, defects = _initial(log, bank)
    values: dict[int, bytes] = {}
    events: dict[int, list[int]] = {}
    incomplete: dict[int, int] = {}
    zero = b"\0" * bank.size
    for event in log.events:
        index, _, pcr, event_type, digests, _ = event
        if event_type == _NO_ACTION:
            continue
        digest = digests[position]
        if digest is None:
            incomplete.setdefault(pcr, index)
            continue
        value = values.get(pcr)
        if value is None:
            value = initial.get(pcr, zero)
            events[pcr] = [index]
        else:
            events[pcr].append(index)
        values[pcr] = digest_of(value + digest).digest()
    for pcr in incomplete:
        values.pop(pcr, None)
    return Replay(
        bank=bank,
        registers=log.registers,
        values=MappingProxyType(values),
        events=MappingProxyType({pcr: tuple(found) for pcr, found in events.items()}),
        initial=MappingProxyType(initial),
        incomplete=MappingProxyType(incomplete),
        defects=defects,
    )


def _initial(
    log: BootLog, bank: HashAlgorithm
) -> tuple[dict[int, bytes], tuple[ReplayFinding, ...]]:
    """PCR 0 starts at the locality of TPM2_Startup, or at 4 after an H-CRTM (pitfalls 35)."""
    informational = [event for event in log.events if event.type == _NO_ACTION]
    spoofed = _no_action_defects(log, informational)
    if log.registers is RegisterKind.RTMR:
        return {}, spoofed
    first = next(
        (event for event in log.events if event.pcr == 0 and event.type != _NO_ACTION), None
    )
    locality: int | None = None
    found: list[ReplayFinding] = []
    for event in informational:
        if event.pcr != 0 or not event.data.startswith(STARTUP_LOCALITY):
            continue
        late = first is not None and first.number < event.number
        defect = _locality_defect(event, locality, late=late)
        if defect is None:
            locality = event.data[-1]
        else:
            found.append(ReplayFinding(defect=defect, event_number=event.number))
    hcrtm = first is not None and first.type == _HCRTM
    if first is not None and hcrtm and locality not in {None, 4}:
        contradiction = ReplayDefect.LOCALITY_CONTRADICTS
        found.append(ReplayFinding(defect=contradiction, event_number=first.number))
    start = 4 if hcrtm else locality or 0
    initial = {0: b"\0" * (bank.size - 1) + bytes((start,))} if start else {}
    return initial, (*found, *spoofed)


def _locality_defect(event: BootEvent, locality: int | None, *, late: bool) -> ReplayDefect | None:
    if locality is not None:
        return ReplayDefect.LOCALITY_TWICE
    if late:
        return ReplayDefect.LOCALITY_LATE
    if len(event.data) != len(STARTUP_LOCALITY) + 1 or event.data[-1] not in _LOCALITIES:
        return ReplayDefect.LOCALITY_INVALID
    return None


def _no_action_defects(
    log: BootLog, informational: Iterable[BootEvent]
) -> tuple[ReplayFinding, ...]:
    """EV_NO_ACTION never extends, so a digest in it is a claim without a register (pitfalls 36).

    WBCL trust points belong to no register and do carry the hash of their data; so may legacy logs,
    whose specification does not ask for zeros.
    """
    return tuple(
        ReplayFinding(defect=ReplayDefect.NO_ACTION_EXTENDED, event_number=event.number)
        for event in informational
        if event.pcr != NO_REGISTER
        and any(digest and any(digest) for digest in event.digests)
        and not _legacy_hash(log, event)
    )


def _legacy_hash(log: BootLog, event: BootEvent) -> bool:
    return (
        log.format is LogFormat.LEGACY
        and hashlib.sha1(event.data, usedforsecurity=False).digest() == event.digests[0]
    )


# --- against a quote -------------------------------------------------------------------------


def compare(
    replayed: Replay, quoted: Mapping[int, bytes], pcrs: Iterable[int]
) -> tuple[PcrDifference, ...]:
    """Explain which of ``pcrs`` the log does not reproduce.

    A register without events must still have its initial value (pitfalls 34); one that was not quoted
    counts as different.
    """
    differences = []
    for pcr in sorted(set(pcrs)):
        value = quoted.get(pcr, b"")
        expected = replayed.value(pcr)
        if expected is None or expected != value:
            differences.append(
                PcrDifference(
                    pcr=pcr,
                    quoted=value,
                    replayed=expected,
                    events=replayed.events.get(pcr, ()),
                )
            )
    return tuple(differences)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class VerifiedBootLog:
    """The part of a log that quoted register values prove. Constructed in ``verify_boot_log`` only.

    One is equal to itself only, so that what follows from it can be remembered beside it.
    """

    bank: HashAlgorithm
    position: int
    """Index of the bank in ``BootEvent.digests``."""
    format: LogFormat
    registers: RegisterKind
    verified_pcrs: frozenset[int]
    differences: tuple[PcrDifference, ...]
    """Registers that were asked for and do not replay; their events are not in ``events``."""
    defects: tuple[ReplayFinding, ...]
    events: tuple[BootEvent, ...]
    """Events of the verified registers. EV_NO_ACTION is never among them."""
    values: Mapping[int, bytes]
    quirks: Mapping[int, Quirk] = field(default_factory=lambda: MappingProxyType({}))
    """Registers that only a quirk explains which policy allows: what the log lacks is known."""
    boot: int = 1
    """Which boot of the file this is, from 1 (``BootLog.boots``)."""
    of_boots: int = 1

    @property
    def of_newest(self) -> bool:
        """Whether no later boot follows in the file: the quote is old, or the end of the file is false."""
        return self.boot == self.of_boots

    @property
    def passed(self) -> bool:
        """Whether every register that was asked for is explained, and the log is well-formed."""
        return not self.differences and not self.defects

    def digest(self, event: BootEvent) -> bytes:
        """The proven digest of one event."""
        digest = event.digests[self.position]
        if digest is None:
            raise LogRejected("an event of a verified register has no digest")
        return digest

    def in_register(self, pcr: int) -> tuple[BootEvent, ...]:
        """The verified events of one register, in order."""
        return tuple(event for event in self.events if event.pcr == pcr)


def verify_boot_log(
    log: BootLog,
    quoted: Mapping[int, bytes],
    *,
    bank: HashAlgorithm,
    pcrs: Iterable[int],
    registers: RegisterKind = RegisterKind.PCR,
    quirks: frozenset[Quirk] = frozenset(),
) -> VerifiedBootLog:
    """Keep what the quoted values of one bank prove.

    Args:
        log: the decoded log.
        quoted: register values that a verified quote covers, of ``bank``.
        bank: the one bank chosen up front by policy; others are never tried (pitfalls 39).
        pcrs: the registers that must be explained.
        registers: what ``quoted`` counts; a CCEL never explains PCRs (pitfalls 46).
        quirks: known deviations that policy allows by name (pitfalls 43).

    Raises:
        LogRejected: the log counts other registers than the quote.
        AlgorithmUnsupported: the log has no such bank.
    """
    if log.events and log.registers is not registers:
        raise LogRejected(f"a log of {log.registers}s can't explain {registers}s")
    replayed = replay(log, bank) if log.events else _empty_replay(bank, registers)
    asked = frozenset(pcrs)
    differences = compare(replayed, quoted, asked)
    differing = frozenset(difference.pcr for difference in differences)
    explained = {
        pcr: quirk
        for pcr, quirk in explain_with_quirk(replayed.values, quoted, bank, quirks).items()
        if pcr in differing
    }
    differences = tuple(found for found in differences if found.pcr not in explained)
    verified = asked - {difference.pcr for difference in differences}
    position = log.position(bank)
    return VerifiedBootLog(
        bank=bank,
        position=position or 0,
        format=log.format,
        registers=registers,
        verified_pcrs=verified,
        differences=differences,
        defects=replayed.defects,
        events=tuple(
            [event for event in log.events if event.pcr in verified and event.type != _NO_ACTION]
        ),
        values=MappingProxyType({pcr: quoted[pcr] for pcr in verified}),
        quirks=MappingProxyType(explained),
        boot=log.boot,
        of_boots=log.of_boots,
    )


def _empty_replay(bank: HashAlgorithm, registers: RegisterKind) -> Replay:
    nothing: Mapping[int, Any] = MappingProxyType({})
    return Replay(
        bank=bank,
        registers=registers,
        values=nothing,
        events=nothing,
        initial=nothing,
        incomplete=nothing,
        defects=(),
    )
