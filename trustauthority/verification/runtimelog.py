"""The runtime log of one piece of evidence: how far a quoted PCR 10 proves it, a window at a time.

Trusts on entry: a PCR value that a verified quote covers, and what is known of this boot before.
Guarantees on exit: counts and entries are those of the proven prefix only; nothing of the rest is
reachable but how long it is (rule 54). Holds a window of entries, never the list of them. It
judges no file: what it counts as approved is in a list of the caller's, byte by byte.

Source: as ``verification.runtime``. Pitfalls 51, 52, 54-56, 58.
"""

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from trustauthority.codec.ima import ImaStream, digest_and_path, ima_windows
from trustauthority.errors import TrustAuthorityError
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.ima import IMA_PCR, ImaEntry, ImaReplayState
from trustauthority.model.runtimerules import RuntimeRules
from trustauthority.verification.runtime import (
    BOOT_AGGREGATE_FIELD,
    MAX_FINDINGS,
    TIED,
    BootAggregate,
    EntryFinding,
    check_boot_aggregate,
    entry_finding,
    extend_until,
    initial_state,
    template_digest_matches,
)

_NOTHING: Mapping[bytes, bytes] = MappingProxyType({})
_NO_PREFIX = "no prefix of the IMA log reproduces PCR 10"
_PADDED = (
    "PCR 10 holds SHA-1 digests padded to this bank, as kernels before 5.8 extend them: no claim rests "
    "on SHA-1"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeProgress:
    """What is known of one boot's IMA log; stored per host, so that only news travels."""

    value: bytes
    """PCR 10 after the verified entries."""
    count: int = 0
    offset: int = 0
    """Bytes of the binary log that are verified."""
    violations: int = 0
    defects: int = 0
    aggregate: BootAggregate = BootAggregate.MISSING


def no_progress(bank: HashAlgorithm) -> RuntimeProgress:
    """What is known at boot: nothing."""
    return RuntimeProgress(value=initial_state(bank).value)


class ProvenEntries:
    """Entries that a quoted register proves, decoded from the log again each time they are asked for.

    Constructed in this module only. Holds places in the log, three numbers for each run of entries.
    """

    __slots__ = ("_base", "_digest_size", "_log", "_runs")

    def __init__(self, log: bytes, base: int, digest_size: int | None, runs: "array[int]") -> None:
        self._log = log
        self._base = base
        self._digest_size = digest_size
        self._runs = runs

    def __iter__(self) -> Iterator[ImaEntry]:
        numbers = iter(self._runs)
        for number, start, end in zip(numbers, numbers, numbers, strict=True):
            part = self._log[start - self._base : end - self._base]
            stream = ImaStream(index=number, offset=start, digest_size=self._digest_size)
            for window in ima_windows(part, stream):
                yield from window


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeReplay:
    """The IMA log against quoted PCR 10."""

    progress: RuntimeProgress
    rules: str = ""
    """Hash of the rules whose list of files ``approved`` counts by; empty for none."""
    approved: int = 0
    """New entries that the quote proves, without a defect, whose digest and path that list holds."""
    entries: Iterable[ImaEntry] = ()
    """The others that the quote proves; later ones are unverified and unreachable (rule 54)."""
    defective: frozenset[int] = frozenset()
    """Numbers of entries whose digest or form is wrong; at most ``MAX_FINDINGS`` (rule 58)."""
    unproven: int = 0
    """Entries that came with the evidence and that the quote does not reach yet."""
    problem: str = ""


def replay_runtime_log(
    log: bytes,
    start: RuntimeProgress,
    pcrs: Mapping[HashAlgorithm, Mapping[int, bytes]],
    *,
    bank: HashAlgorithm,
    rules: RuntimeRules | None = None,
) -> RuntimeReplay:
    """Find the prefix of a log that the quote proves, and what is wrong with its entries.

    Args:
        log: bytes of the binary log from ``start.offset`` on.
        start: what was proven of this boot before.
        pcrs: quoted values, bank → index → value.
        bank: the one that counts.
        rules: the rules in force; entries that their list of files approves are only counted.
    """
    quoted = pcrs[bank].get(IMA_PCR)
    stream = ImaStream(index=start.count, offset=start.offset)
    walk = _Walk(start, pcrs, bank, _NOTHING if rules is None else rules.approved)
    try:
        for window in ima_windows(log, stream):
            walk.take(window, stream.offset)
    except TrustAuthorityError as error:
        return RuntimeReplay(progress=start, problem=error.message)
    if quoted is None:
        return RuntimeReplay(progress=start, problem="the policy does not quote PCR 10")
    if not walk.found:
        return RuntimeReplay(
            progress=start,
            unproven=stream.index - start.count,
            problem=_PADDED if _is_padded(log, start, quoted, bank) else _NO_PREFIX,
        )
    return RuntimeReplay(
        progress=RuntimeProgress(
            value=walk.state.value,
            count=walk.state.count,
            offset=walk.offset,
            violations=start.violations + walk.violations,
            defects=start.defects + len(walk.defects),
            aggregate=walk.aggregate,
        ),
        rules="" if rules is None else rules.sha256,
        approved=walk.approved,
        entries=ProvenEntries(log, start.offset, stream.digest_size, walk.runs),
        defective=frozenset(each.index for each in walk.defects),
        unproven=walk.unproven,
    )


def _is_padded(log: bytes, start: RuntimeProgress, quoted: bytes, bank: HashAlgorithm) -> bool:
    """Whether the log would match if the kernel padded SHA-1 digests: to say why it is refused (rule 51)."""
    state = ImaReplayState(value=start.value, count=start.count)
    for window in ima_windows(log, ImaStream(index=start.count, offset=start.offset)):
        state, found = extend_until(window, quoted, bank, state, padded=True)
        if found:
            return True
    return False


class _Walk:
    """Counts along the log. They mean nothing until the quoted value was found."""

    def __init__(
        self,
        start: RuntimeProgress,
        pcrs: Mapping[HashAlgorithm, Mapping[int, bytes]],
        bank: HashAlgorithm,
        approved: Mapping[bytes, bytes],
    ) -> None:
        quoted = pcrs[bank].get(IMA_PCR)
        self.state = ImaReplayState(value=start.value, count=start.count)
        self.offset = start.offset
        self.found = start.value == quoted
        self.aggregate = start.aggregate
        self.violations = 0
        self.approved = 0
        self.unproven = 0
        self.defects: list[EntryFinding] = []
        self.runs = array("Q")
        self._pcrs = pcrs
        self._quoted = quoted
        self._bank = bank
        self._approved = approved

    def take(self, window: list[ImaEntry], end: int) -> None:
        """Go on with the next entries; ``end`` is where the log continues after them."""
        if self.found or self._quoted is None:
            self.unproven += len(window)
            return
        before = self.state.count
        self.state, self.found = extend_until(window, self._quoted, self._bank, self.state)
        proven = self.state.count - before
        if proven < len(window):
            self.unproven += len(window) - proven
            end = window[proven].offset
            del window[proven:]
        self._sort(window, end)
        self.offset = end

    def _sort(self, window: list[ImaEntry], end: int) -> None:
        """Count what the list approves; of the others keep the places and what is wrong with them."""
        if window and not window[0].number:
            self.aggregate = check_boot_aggregate(window[0], self._pcrs)
        runs, approved, defects, count = self.runs, self._approved.get, self.defects, 0
        inside = bool(runs and window) and runs[-1] == window[0].offset
        if inside:
            runs.pop()  # the run goes on in this window
        for entry in window:
            number, offset, register, logged, template, data = entry
            plain = template == "ima-ng"
            listed = approved(data if plain else digest_and_path(entry))
            if (
                listed is not None
                and register == IMA_PCR
                and ((plain and logged == listed) or _logged_right(entry))
                and len(defects) < MAX_FINDINGS
            ):
                count += 1
                if inside:
                    runs.append(offset)
                    inside = False
                continue
            if not inside:
                runs.extend((number, offset))
                inside = True
            self._look_at(entry)
        if inside:
            runs.append(end)
        self.approved += count

    def _look_at(self, entry: ImaEntry) -> None:
        self.violations += entry.violation
        if BOOT_AGGREGATE_FIELD in entry.data and entry.number and self.aggregate in TIED:
            # kexec adds one (rule 56); it can only make it worse, as a process may give a file that name
            again = check_boot_aggregate(entry, self._pcrs)
            if again is not BootAggregate.MISSING:
                self.aggregate = again
        if len(self.defects) < MAX_FINDINGS:
            finding = entry_finding(entry)
            if finding is not None:
                self.defects.append(finding)


def _logged_right(entry: ImaEntry) -> bool:
    """Whether the logged digest is that of the data, and the entry no violation."""
    return not entry.violation and template_digest_matches(entry)
