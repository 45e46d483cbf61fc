"""``ta evidence eventlog``: what a measured-boot log says, and which PCR values follow from it.

Works offline on files and trusts none of them. Without a quote nothing is proven: the facts are what
would hold if a TPM signed exactly these PCR values (docs/reference/evidence-eventlog.schema.json).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter

from trustauthority.appraisal.bootfacts import boot_facts
from trustauthority.cli.evidence_files import (
    EXIT_REFUSED,
    EXIT_YES,
    Answer,
    Output,
    judge_files,
    print_answers,
)
from trustauthority.codec.efi import decode_image_load
from trustauthority.codec.eventlog import MAX_LOG_BYTES, decode_boot_log
from trustauthority.errors import AlgorithmUnsupported, MalformedEvidence
from trustauthority.model.bootfacts import BootFacts, BootFinding, SecureBootFacts, Severity
from trustauthority.model.bootlog import BootEvent, BootLog, RegisterKind
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.quirk import Quirk
from trustauthority.verification.meaning import describe
from trustauthority.verification.replay import Replay, replay, verify_boot_log

_STRENGTH = (
    HashAlgorithm.SHA512,
    HashAlgorithm.SHA384,
    HashAlgorithm.SHA256,
    HashAlgorithm.SM3_256,
    HashAlgorithm.SHA1,
)


def judge_boot_log(
    data: bytes,
    *,
    quirks: frozenset[Quirk] = frozenset(),
    bank: HashAlgorithm | None = None,
    events: bool = False,
) -> Answer:
    """Decode, replay every bank, and say what the log shows.

    Raises:
        MalformedEvidence: the bytes are no event log.
        AlgorithmUnsupported: ``bank`` is not in the log.
    """
    log = decode_boot_log(data)
    *earlier, newest = [_judge_boot(boot, quirks, bank) for boot in log.boots()]
    chosen, facts = newest.bank, newest.facts
    found_in_boots = dict.fromkeys(found for each in (*earlier, newest) for found in each.findings)
    findings = [*_several(log, newest.log.of_boots), *found_in_boots]
    refusal = next((found for found in findings if found.severity is Severity.REFUSE), None)
    secure_boot = describe_secure_boot(None if facts is None else facts.secure_boot)
    secure_boot["enforced"] &= refusal is None
    document = _describe_log(log, newest.replays) | {
        "bank": chosen,
        "secureBoot": secure_boot,
        "boot": None if facts is None else _describe_boot(facts, log.events),
        "findings": [describe_finding(finding) for finding in findings],
    }
    if earlier:
        document["earlierBoots"] = [
            {"events": len(each.log.events), "pcrs": _describe_registers(each.replays)}
            for each in earlier
        ]
    if events and chosen is not None:
        document["eventList"] = _describe_events(log, chosen, quirks)
    return Answer(
        exit_code=EXIT_YES if refusal is None else EXIT_REFUSED,
        reason=None if refusal is None else refusal.id.upper().replace("-", "_"),
        message=None if refusal is None else refusal.message,
        document=document,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _JudgedBoot:
    """One boot of a file, which holds several after a resume (pitfalls 47)."""

    log: BootLog
    replays: dict[HashAlgorithm, Replay]
    bank: HashAlgorithm | None
    """What the facts rest on."""
    facts: BootFacts | None
    findings: tuple[BootFinding, ...]


def _judge_boot(log: BootLog, quirks: frozenset[Quirk], bank: HashAlgorithm | None) -> _JudgedBoot:
    replays, findings = _replay_all(log)
    if bank is not None and bank not in replays:
        raise AlgorithmUnsupported(f"the log has no {bank} bank", algorithm=bank)
    chosen = bank or _facts_bank(replays)
    facts = None if chosen is None else _facts(log, replays[chosen], quirks)
    if facts is not None:
        findings += facts.findings
    return _JudgedBoot(log=log, replays=replays, bank=chosen, facts=facts, findings=tuple(findings))


def _several(log: BootLog, boots: int) -> list[BootFinding]:
    if len(log.starts) < 2:
        return []
    of = "of one boot" if boots == 1 else f"of {boots} boots; the registers are those of the newest"
    message = f"{len(log.starts)} logs follow each other, {of}"
    return [_finding("several-logs", Severity.INFO, message, event=log.starts[1])]


def _replay_all(log: BootLog) -> tuple[dict[HashAlgorithm, Replay], list[BootFinding]]:
    findings: list[BootFinding] = []
    if not log.events:
        findings.append(_finding("no-event-log", Severity.REFUSE, "the log holds no event"))
    replays: dict[HashAlgorithm, Replay] = {}
    for bank in log.banks:
        try:
            if bank.algorithm is None:
                raise AlgorithmUnsupported(f"{bank.name} is unknown", algorithm=bank.name)
            replays[bank.algorithm] = replay(log, bank.algorithm)
        except AlgorithmUnsupported as error:
            findings.append(_finding("bank-not-computable", Severity.WARNING, error.message))
    for algorithm, replayed in replays.items():
        for pcr, event in replayed.incomplete.items():
            message = f"an event has no {algorithm} digest: that bank proves nothing from here on"
            findings.append(
                _finding("bank-incomplete", Severity.WARNING, message, pcr=pcr, event=event)
            )
    if log.events and not any(replayed.complete for replayed in replays.values()):
        findings.append(
            _finding("no-complete-bank", Severity.REFUSE, "no bank can be replayed completely")
        )
    return replays, findings


def _finding(
    name: str, severity: Severity, message: str, *, pcr: int = -1, event: int = -1
) -> BootFinding:
    return BootFinding(id=name, severity=severity, message=message, pcr=pcr, event=event)


def _facts_bank(replays: dict[HashAlgorithm, Replay]) -> HashAlgorithm | None:
    """The strongest bank that every event has a digest in."""
    complete = [bank for bank in _STRENGTH if bank in replays and replays[bank].complete]
    return complete[0] if complete else None


def _facts(log: BootLog, replayed: Replay, quirks: frozenset[Quirk]) -> BootFacts:
    """What would hold if a TPM signed exactly the replayed values."""
    verified = verify_boot_log(
        log,
        replayed.values,
        bank=replayed.bank,
        pcrs=replayed.values,
        registers=log.registers,
    )
    return boot_facts(verified, quirks=quirks)


# --- output ----------------------------------------------------------------------------------


def _describe_registers(replays: dict[HashAlgorithm, Replay]) -> dict[str, dict[str, str]]:
    return {
        str(bank): {str(pcr): replayed.values[pcr].hex() for pcr in sorted(replayed.values)}
        for bank, replayed in replays.items()
    }


def _describe_log(log: BootLog, replays: dict[HashAlgorithm, Replay]) -> dict[str, Any]:
    values = _describe_registers(replays)
    document: dict[str, Any] = {
        "format": log.format,
        "specification": log.specification or None,
        "registers": log.registers,
        "algorithms": [bank.name for bank in log.banks],
        "events": len(log.events),
        "logs": len(log.starts),
        "size": log.size,
        "padding": log.padding,
        "pcrs": values,
    }
    if log.registers is RegisterKind.RTMR:
        # ``pcrs`` keeps the indices of the log; index 0 of a CCEL is MRTD, 1-4 are RTMR 0-3.
        document["rtmrs"] = {
            bank: {str(int(index) - 1): value for index, value in found.items() if index != "0"}
            for bank, found in values.items()
        }
    return document


def describe_secure_boot(facts: SecureBootFacts | None) -> dict[str, Any]:
    """The JSON form of Secure Boot facts; ``enabled`` is null when nothing can be said."""
    if facts is None:
        return {"enabled": None, "enforced": False}
    return {
        "enabled": facts.enabled,
        "enforced": facts.enforced,
        "setupMode": facts.setup_mode,
        "auditMode": facts.audit_mode,
        "deployedMode": facts.deployed_mode,
        "databases": {
            name: {"sha256": found.sha256, "bytes": found.size, "entries": found.entries}
            for name, found in facts.databases.items()
        },
        "authorities": [
            {
                "variable": used.variable,
                "guid": used.guid,
                "sha256": used.sha256,
                "beforeSeparator": used.before_separator,
                "event": used.event,
            }
            for used in facts.authorities
        ],
    }


def _device_path(data: bytes) -> str:
    """Where an image came from, as the event says; empty when it says nothing readable."""
    try:
        return decode_image_load(data).device_path
    except MalformedEvidence:
        return ""


def _describe_boot(facts: BootFacts, events: Sequence[BootEvent]) -> dict[str, Any]:
    return {
        "images": [
            {
                "pcr": image.pcr,
                "digest": image.digest,
                "path": _device_path(events[image.event].data),
                "event": image.event,
            }
            for image in facts.images
        ],
        "optionRoms": facts.option_roms,
        "commandLines": list(facts.command_lines),
        "files": [
            {"pcr": file.pcr, "digest": file.digest, "name": file.name, "event": file.event}
            for file in facts.files
        ],
        "sbatLevel": facts.sbat_level,
        "ukiProfile": facts.uki_profile,
        "uefiDebug": facts.uefi_debug,
        "dmaProtectionDisabled": facts.dma_protection_disabled,
        "unrecognised": {str(pcr): list(found) for pcr, found in facts.unrecognised.items()},
    }


def describe_finding(finding: BootFinding) -> dict[str, Any]:
    """The JSON form of a finding; ``pcr`` and ``event`` are null where they make no sense."""
    return {
        "id": finding.id,
        "severity": finding.severity,
        "message": finding.message,
        "pcr": None if finding.pcr < 0 else finding.pcr,
        "event": None if finding.event < 0 else finding.event,
    }


def _describe_events(
    log: BootLog, bank: HashAlgorithm, quirks: frozenset[Quirk]
) -> list[dict[str, Any]]:
    shown = []
    for event in log.events:
        digest = log.digest(event, bank)
        meaning = describe(event, digest or b"", bank, quirks=quirks)
        shown.append(
            {
                "event": event.number,
                "offset": event.offset,
                "pcr": event.pcr,
                "type": event.type_name,
                "digest": None if digest is None else digest.hex(),
                "meaning": meaning.text,
                "proof": meaning.proof,
                "proven": meaning.proven,
            }
        )
    return shown


def _table(document: dict[str, Any]) -> Iterable[str]:
    banks = ", ".join(document["algorithms"]) or "no bank"
    yield f"{document['format']}, {document['events']} events, {banks}"
    secure_boot = document["secureBoot"]
    words = {True: "on", False: "off", None: "unknown"}[secure_boot["enabled"]]
    yield f"Secure Boot {words}" + (", enforced" if secure_boot["enforced"] else "")
    for bank, values in document["pcrs"].items():
        for index, value in values.items():
            yield f"{document['registers']} {bank}:{index:<2} {value}"
    for event in document.get("eventList", ()):
        mark = "proven" if event["proven"] else "hint  "
        yield f"#{event['event']:<3} {event['pcr']:>2} {mark} {event['type']} {event['meaning']}"
    for finding in document["findings"]:
        where = "" if finding["event"] is None else f" (event {finding['event']})"
        yield f"{finding['severity']:8}{finding['id']}: {finding['message']}{where}"


def eventlog(
    *files: Path,
    quirk: tuple[Quirk, ...] = (),
    bank: HashAlgorithm | None = None,
    events: Annotated[bool, Parameter(negative="")] = False,
    output: Output = "table",
) -> int:
    """Decode and replay measured-boot logs: legacy, crypto-agile, Windows (WBCL) and TDX (CCEL).

    Exit status: 0 a well-formed log, 1 refused with a reason code, 2 malformed with part and offset;
    of several files the worst.

    Args:
        files: Logs, such as /sys/kernel/security/tpm0/binary_bios_measurements.
        quirk: Known deviation of a firmware that is acceptable; may be repeated.
        bank: Bank that the facts rest on; default is the strongest complete one.
        events: List every event with its meaning, and whether its digest proves it.
        output: Format of the answer.
    """
    allowed = frozenset(quirk)
    answers = judge_files(
        files,
        lambda data: judge_boot_log(data, quirks=allowed, bank=bank, events=events),
        limit=MAX_LOG_BYTES,
    )
    return print_answers(answers, output, _table)


def register(app: cyclopts.App) -> None:
    """Add ``eventlog`` to the commands of ``ta evidence``."""
    app.command(eventlog, name="eventlog")
