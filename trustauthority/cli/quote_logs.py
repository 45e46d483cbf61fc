"""The logs of ``ta evidence quote``: do the quoted PCR values follow from them?

Trusts on entry: PCR values whose digest a genuine quote signed. Trusts no byte of a log. Without a
policy the registers that firmware, boot loader and shim extend must be explained; those that user
space extends without a log of its own (11-13, 15) give a finding. Every quoted bank must replay, or
one that firmware left alone could hold anything (TPM Carte Blanche, pitfall 40).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trustauthority.appraisal.bootfacts import boot_facts
from trustauthority.cli.evidence_eventlog import describe_finding, describe_secure_boot
from trustauthority.cli.evidence_ima import judge_ima_log
from trustauthority.codec.eventlog import MAX_LOG_BYTES, decode_boot_log
from trustauthority.codec.ima import path_and_digest
from trustauthority.codec.ima_log import decode_ima_log
from trustauthority.errors import (
    AlgorithmUnsupported,
    InvalidRequest,
    LogRejected,
    MalformedEvidence,
)
from trustauthority.model.bootfacts import Severity
from trustauthority.model.bootlog import BootLog
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.ima import IMA_PCR, ImaEntry
from trustauthority.verification.bootreplay import (
    Records,
    quoted_boot,
    records_of_userspace,
    with_proven_userspace,
)
from trustauthority.verification.quote import PcrValues
from trustauthority.verification.replay import VerifiedBootLog, verify_boot_log
from trustauthority.verification.runtime import BootAggregate, check_boot_aggregate

_BOOT_PCRS = frozenset((*range(10), 14))
"""Extended before user space runs, each with an event."""
_USER_SPACE_PCRS = frozenset({11, 12, 13, 15})
"""Extended by boot loader stubs with events, and by user space without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogJudgement:
    """What a log adds to the answer."""

    document: Mapping[str, Any]
    findings: tuple[str, ...]


def judge_boot(
    data: bytes, pcrs: PcrValues, bank: HashAlgorithm, *, userspace: bytes = b""
) -> LogJudgement:
    """Explain the quoted values by a boot log, and by the log of user space behind it.

    Raises:
        MalformedEvidence: the bytes are no event log, or no log of user space.
        InvalidRequest: longer than any event log.
        LogRejected: naming the PCR that the log does not explain, or the defect of the log.
    """
    if len(data) > MAX_LOG_BYTES:
        raise InvalidRequest(f"--eventlog: longer than {MAX_LOG_BYTES} bytes", field="eventlog")
    asked = _BOOT_PCRS | _USER_SPACE_PCRS
    log = quoted_boot(decode_boot_log(data), pcrs, asked)
    records = records_of_userspace(userspace)
    verified = {quoted: _explain(log, records, pcrs, quoted) for quoted in pcrs}
    chosen = verified[bank]
    facts = boot_facts(chosen)
    for finding in facts.findings:
        if finding.severity is Severity.REFUSE:
            raise LogRejected(f"boot log: {finding.message}", finding=finding.id)
    return LogJudgement(
        document={
            "bank": bank,
            "events": len(log.events),
            "boot": log.boot,
            "boots": log.of_boots,
            "verifiedPcrs": sorted(chosen.verified_pcrs),
            "secureBoot": describe_secure_boot(facts.secure_boot),
            "findings": [describe_finding(finding) for finding in facts.findings],
        },
        findings=(
            *_not_newest(log),
            *(
                f"boot log, bank {name}: {difference}"
                for name, found in verified.items()
                for difference in found.differences
            ),
        ),
    )


def _not_newest(log: BootLog) -> tuple[str, ...]:
    if log.boot == log.of_boots:
        return ()
    return (f"boot log: the quote is of boot {log.boot} of {log.of_boots}, not of the newest",)


def _explain(
    log: BootLog, records: Records, pcrs: PcrValues, bank: HashAlgorithm
) -> VerifiedBootLog:
    quoted = pcrs[bank]
    asked = (_BOOT_PCRS | _USER_SPACE_PCRS) & quoted.keys()
    try:
        whole = with_proven_userspace(log, records, quoted, bank=bank, pcrs=asked)
        verified = verify_boot_log(whole, quoted, bank=bank, pcrs=asked)
    except AlgorithmUnsupported as error:
        raise LogRejected(
            f"boot log: bank {bank} is quoted and can't be replayed: {error.message}", bank=bank
        ) from None
    for defect in verified.defects:
        raise LogRejected(
            f"boot log: {defect.defect} at event {defect.event_number}",
            finding=defect.defect,
            event=defect.event_number,
        )
    for difference in verified.differences:
        if difference.pcr in _BOOT_PCRS:
            raise LogRejected(f"boot log, bank {bank}: {difference}", pcr=difference.pcr, bank=bank)
    return verified


def judge_runtime(data: bytes, pcrs: PcrValues, bank: HashAlgorithm) -> LogJudgement:
    """Find the prefix of an IMA log that the quoted PCR 10 proves, and tie it to the boot.

    Raises:
        MalformedEvidence: the bytes are no IMA log.
        LogRejected: PCR 10 is not quoted, no prefix matches, an entry contradicts itself, or the log
            belongs to another boot.
    """
    quoted = pcrs[bank].get(IMA_PCR)
    if quoted is None:
        raise LogRejected(f"runtime log: PCR {IMA_PCR} of {bank} is not quoted", pcr=IMA_PCR)
    answer = judge_ima_log(data, quoted=quoted, bank=bank)
    if answer.reason is not None:
        raise LogRejected(f"runtime log: {answer.message}", finding=answer.reason)
    entries = decode_ima_log(data).entries
    findings = [] if entries and _tied_to_boot(entries[0], pcrs) else [_UNTIED]
    unverified = answer.document["unverifiedEntries"]
    if unverified:
        findings.append(f"runtime log: the last {unverified} entries are not covered by the quote")
    if answer.document["violations"]:
        findings.append(f"runtime log: {answer.document['violations']} violations")
    return LogJudgement(document=answer.document, findings=tuple(findings))


_UNTIED = "runtime log: boot_aggregate does not tie it to this boot: its PCRs are not all quoted"


def _tied_to_boot(first: ImaEntry, pcrs: PcrValues) -> bool:
    """Whether boot_aggregate is shown to be of this boot; False when it can't be compared."""
    outcome = check_boot_aggregate(first, pcrs)
    if outcome in {BootAggregate.PCRS_0_7, BootAggregate.PCRS_0_9}:
        return True
    if outcome is BootAggregate.MISMATCH and _comparable(first, pcrs):
        raise LogRejected("runtime log: boot_aggregate is of another boot", finding=outcome)
    return False


def _comparable(first: ImaEntry, pcrs: PcrValues) -> bool:
    """Whether the bank that boot_aggregate names is quoted with all of its PCRs, 0-9."""
    try:
        _, algorithm, _ = path_and_digest(first)
    except (AlgorithmUnsupported, MalformedEvidence):  # pragma: no cover  # not a MISMATCH then
        return False
    values: Mapping[int, bytes] = next(
        (found for bank, found in pcrs.items() if bank == algorithm), {}
    )
    return all(index in values for index in range(10))
