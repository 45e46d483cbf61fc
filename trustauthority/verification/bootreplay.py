"""A boot log against every quoted bank, and a memory of the logs that were replayed before.

Trusts on entry: register values that a verified quote covers. Guarantees on exit: as
``verify_boot_log``, per bank; a log that can't be read or does not have the bank proves nothing and
says why. What is remembered is the answer to the very same question: it is looked up by the hash of
the log's bytes together with everything else that the answer follows from, and never changes.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from types import MappingProxyType

from trustauthority.codec.cel import decode_userspace_log
from trustauthority.codec.eventlog import decode_boot_log
from trustauthority.errors import AlgorithmUnsupported, TrustAuthorityError
from trustauthority.model.bootlog import BootLog, UserspaceRecord
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.quirk import Quirk
from trustauthority.verification.banks import hash_constructor
from trustauthority.verification.quote import PcrValues
from trustauthority.verification.replay import VerifiedBootLog, compare, replay, verify_boot_log

MAX_KNOWN = 1024
"""Boots that are remembered: a fleet has a few kinds of them, and a kind per machine at worst."""
MAX_KNOWN_BYTES = 64 * 1024 * 1024
"""What they may take, estimated: a log of 120 events and 40 KiB counts as 100 KiB."""
_HIDDEN = (
    "firmware measured into the {bank} bank, which the policy asks for and the quote leaves out"
)
_RECORD_BYTES = 320
"""What a decoded record takes beyond its bytes and without its digests: its tuples and numbers."""
_DIGEST_BYTES = 48
"""What a decoded digest takes beyond its bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BankReplay:
    """The boot log against one bank's quoted PCRs."""

    log: VerifiedBootLog | None
    problem: str = ""
    """Why there is nothing to replay, in words; empty when there is."""


Records = tuple[UserspaceRecord, ...]
FIRST_USERSPACE_PCR = 8
"""PCRs below belong to the firmware, which has its own log."""
BootReplay = Mapping[HashAlgorithm, BankReplay]
"""The answer of each quoted bank."""


def replay_boot(
    data: bytes,
    quoted: PcrValues,
    *,
    pcrs: Iterable[int],
    quirks: frozenset[Quirk],
    banks: Iterable[HashAlgorithm] = (),
    userspace: bytes = b"",
) -> BootReplay:
    """Replay a log in each quoted bank.

    Args:
        data: bytes of the log; empty when the host sent none.
        quoted: values that a verified quote covers.
        pcrs: the registers that must be explained.
        quirks: known deviations that policy allows by name.
        banks: those that policy asks for; one that the log has and the quote leaves out is a problem of its
            own, since whoever filled the quoted one may hide what firmware measured (rule 40).
        userspace: bytes of the log that user space keeps of what it measured afterwards (rule 49).
    """
    try:
        whole = decode_boot_log(data)
        records = records_of_userspace(userspace)
    except TrustAuthorityError as error:
        nothing = BankReplay(log=None, problem=error.message)
        return MappingProxyType(dict.fromkeys(quoted, nothing))
    asked = frozenset(pcrs)
    log = quoted_boot(whole, quoted, asked)
    hidden = frozenset(banks).intersection(log.algorithms) - quoted.keys()
    return MappingProxyType(
        {
            bank: _replay_bank(log, records, bank, values, asked, quirks)
            for bank, values in quoted.items()
        }
        | {bank: BankReplay(log=None, problem=_HIDDEN.format(bank=bank)) for bank in sorted(hidden)}
    )


def _replay_bank(
    log: BootLog,
    records: Records,
    bank: HashAlgorithm,
    values: Mapping[int, bytes],
    pcrs: frozenset[int],
    quirks: frozenset[Quirk],
) -> BankReplay:
    if not log.events:
        return BankReplay(log=None, problem="the host sent no boot log")
    try:
        whole = with_proven_userspace(log, records, values, bank=bank, pcrs=pcrs)
        return BankReplay(log=verify_boot_log(whole, values, bank=bank, pcrs=pcrs, quirks=quirks))
    except TrustAuthorityError as error:
        return BankReplay(log=None, problem=error.message)


def quoted_boot(log: BootLog, quoted: PcrValues, pcrs: frozenset[int]) -> BootLog:
    """The one boot of a file that a quote is about (pitfalls 47).

    The quote's counters can't say which: no log states resetCount, and a TPM offsets it for each AK. Its
    registers can, since they were reset before each boot: it is the boot that leaves the fewest quoted
    values unexplained, the newest of equals. One for all banks together, so that no two boots are mixed.
    Nothing is proven by being chosen.
    """
    boots = log.boots()
    if len(boots) == 1:
        return log
    return min(reversed(boots), key=lambda boot: _unexplained(boot, quoted, pcrs))


def _unexplained(boot: BootLog, quoted: PcrValues, pcrs: frozenset[int]) -> int:
    """How many quoted values of all banks do not follow from a boot."""
    count = 0
    for bank, values in quoted.items():
        with suppress(AlgorithmUnsupported):  # in all boots of the file alike
            count += len(compare(replay(boot, bank), values, pcrs))
    return count


def records_of_userspace(data: bytes) -> Records:
    """Records of the second log that can count: user space has no business in the firmware's registers.

    One that names such a register is left out, so that what was extended there stays unexplained.

    Raises:
        MalformedEvidence: the bytes are no log of user space.
    """
    return tuple(
        record for record in decode_userspace_log(data) if record.pcr >= FIRST_USERSPACE_PCR
    )


def with_proven_userspace(
    log: BootLog,
    records: Records,
    quoted: Mapping[int, bytes],
    *,
    bank: HashAlgorithm,
    pcrs: frozenset[int],
) -> BootLog:
    """The log, and as many records behind it as the quoted registers hold: the log may be ahead of the quote.

    All of them when no number fits; which register differs then shows in ``verify_boot_log``.

    Raises:
        AlgorithmUnsupported: the log has no such bank.
    """
    asked = {record.pcr for record in records} & pcrs
    if not asked:
        return log
    replayed, digest_of, name = replay(log, bank), hash_constructor(bank), str(bank)
    wanted = {pcr: quoted.get(pcr) for pcr in asked}
    found = {pcr: replayed.value(pcr) for pcr in asked}
    for count, record in enumerate(records):
        if found == wanted:
            return log.with_userspace(records[:count])
        if record.pcr in found:
            before, digest = found[record.pcr], record.digests.get(name)
            if before is None or digest is None:
                break  # that register can't be replayed any more
            found[record.pcr] = digest_of(before + digest).digest()
    return log.with_userspace(records)


class KnownBoots:
    """Answers of ``replay_boot``, the newest used ones, within a number and a size.

    Safe to share between threads. A host can push others' boots out and make us replay them again; it
    can't change what they are.
    """

    def __init__(self, *, most: int = MAX_KNOWN, most_bytes: int = MAX_KNOWN_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._bytes = 0
        self._known: OrderedDict[object, tuple[BootReplay, int]] = OrderedDict()
        self._lock = Lock()

    def replay(
        self,
        data: bytes,
        quoted: PcrValues,
        *,
        pcrs: Iterable[int],
        quirks: frozenset[Quirk],
        banks: Iterable[HashAlgorithm] = (),
        userspace: bytes = b"",
    ) -> BootReplay:
        """What ``replay_boot`` says."""
        asked, wanted = frozenset(pcrs), frozenset(banks)
        # Only what is asked for goes in, so that the answer can follow from nothing else.
        values = {
            bank: {pcr: value for pcr, value in registers.items() if pcr in asked}
            for bank, registers in quoted.items()
        }
        parts = tuple((bank, *registers.items()) for bank, registers in values.items())
        logs = tuple(hashlib.sha256(log).digest() for log in (data, userspace))
        question = (logs, parts, asked, quirks, wanted)
        with self._lock:
            found = self._known.get(question)
            if found is not None:
                self._known.move_to_end(question)
                return found[0]
        answer = replay_boot(
            data, values, pcrs=asked, quirks=quirks, banks=wanted, userspace=userspace
        )
        self._remember(question, answer, _size(data + userspace, answer))
        return answer

    def _remember(self, question: object, answer: BootReplay, size: int) -> None:
        with self._lock:
            if size > self._most_bytes or question in self._known:
                return
            self._known[question] = (answer, size)
            self._bytes += size
            while len(self._known) > self._most or self._bytes > self._most_bytes:
                _, (_, freed) = self._known.popitem(last=False)
                self._bytes -= freed


def _size(data: bytes, answer: BootReplay) -> int:
    """What an answer takes, estimated from above: its banks share the records."""
    logs = [each.log for each in answer.values() if each.log is not None]
    records = max((log.events for log in logs), key=len, default=())
    digests = len(records[0].digests) if records else 0
    return len(data) + (_RECORD_BYTES + _DIGEST_BYTES * digests) * (len(records) + 24 * len(answer))
