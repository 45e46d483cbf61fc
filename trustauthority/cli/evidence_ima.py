"""``ta evidence ima``: what a runtime log of Linux IMA says, and which prefix a PCR value proves.

Works offline on files and trusts none of them (docs/reference/evidence-ima.schema.json).
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter

from trustauthority.cli.evidence_files import (
    EXIT_REFUSED,
    EXIT_YES,
    Answer,
    Output,
    judge_files,
    print_answers,
)
from trustauthority.codec.ima import path_and_digest
from trustauthority.codec.ima_log import decode_ima_log
from trustauthority.errors import AlgorithmUnsupported, InvalidRequest, MalformedEvidence
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.ima import BOOT_AGGREGATE, IMA_PCR, ImaEntry
from trustauthority.verification.runtime import (
    EntryDefect,
    EntryFinding,
    PrefixMatch,
    entry_findings,
    extend_entries,
    match_prefix,
)

MAX_FILE_BYTES = 256 << 20
"""Two million entries. The authority itself streams; a support tool reads the file."""
_MAX_LISTED = 100
_SHOWN_BANKS = (
    HashAlgorithm.SHA1,
    HashAlgorithm.SHA256,
    HashAlgorithm.SHA384,
    HashAlgorithm.SHA512,
)
_PADDED_BANKS = (HashAlgorithm.SHA256, HashAlgorithm.SHA384)
_BANK_BY_SIZE = {bank.size: bank for bank in _SHOWN_BANKS}
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})+")


def judge_ima_log(
    data: bytes,
    *,
    quoted: bytes | None = None,
    bank: HashAlgorithm = HashAlgorithm.SHA256,
    pcr: int = IMA_PCR,
) -> Answer:
    """Decode, check each entry, replay, and find the prefix that a PCR value proves.

    Raises:
        MalformedEvidence: the bytes are no IMA log.
    """
    log = decode_ima_log(data)
    entries = log.entries
    found = entry_findings(entries, pcr=pcr, limit=len(entries) + 1)
    counts = Counter(str(finding.defect) for finding in found)
    match, padded = _match(entries, quoted, bank, pcr)
    reason, message = _refusal(entries, found, quoted, match)
    values = {
        str(shown): extend_entries(entries, shown, pcr=pcr).value.hex()
        for shown in dict.fromkeys((*_SHOWN_BANKS, bank))
    } | {
        f"{shown}pad": extend_entries(entries, shown, pcr=pcr, padded=True).value.hex()
        for shown in _PADDED_BANKS
    }
    document: dict[str, Any] = {
        "encoding": log.encoding,
        "entries": len(entries),
        "templates": dict(Counter(entry.template for entry in entries)),
        "violations": sum(entry.violation for entry in entries),
        "badTemplateDigests": counts[EntryDefect.TEMPLATE_DIGEST],
        "pcr10": values,
        "bootAggregate": _boot_aggregate(entries),
        "matchedPrefix": None if match is None else match.matched,
        "matchedBank": None if match is None else bank,
        "matchedPadded": padded,
        "unverifiedEntries": None if match is None else len(entries) - match.matched,
        "defects": dict(counts),
        "findings": [
            {
                "id": finding.defect,
                "severity": "refuse",
                "message": finding.detail,
                "entry": finding.index,
            }
            for finding in found[:_MAX_LISTED]
        ],
    }
    return Answer(
        exit_code=EXIT_YES if reason is None else EXIT_REFUSED,
        reason=reason,
        message=message,
        document=document,
    )


def _match(
    entries: Sequence[ImaEntry], quoted: bytes | None, bank: HashAlgorithm, pcr: int
) -> tuple[PrefixMatch | None, bool]:
    """The prefix, and whether the kernel pads SHA-1 digests: one or the other for the whole log."""
    if quoted is None:
        return None, False
    match = match_prefix(entries, quoted, bank, pcr=pcr)
    if match is not None or bank is HashAlgorithm.SHA1:
        return match, False
    match = match_prefix(entries, quoted, bank, pcr=pcr, padded=True)
    return match, match is not None


def _refusal(
    entries: Sequence[ImaEntry],
    found: Sequence[EntryFinding],
    quoted: bytes | None,
    match: PrefixMatch | None,
) -> tuple[str | None, str | None]:
    if not entries:
        return "NO_RUNTIME_LOG", "the log holds no entry"
    if found:
        reason = found[0].defect.upper().replace("-", "_")
        return reason, f"entry {found[0].index}: {found[0].detail}"
    if quoted is not None and match is None:
        return "NO_PREFIX_MATCHES", "the PCR has the quoted value after no prefix of the log"
    return None, None


def _boot_aggregate(entries: Sequence[ImaEntry]) -> dict[str, Any] | None:
    """The first entry, when it ties the log to the boot."""
    if not entries:
        return None
    try:
        path, algorithm, digest = path_and_digest(entries[0])
    except (AlgorithmUnsupported, MalformedEvidence):
        return None
    if path != BOOT_AGGREGATE:
        return None
    return {"algorithm": algorithm, "digest": digest.hex(), "zero": not any(digest)}


def _table(document: dict[str, Any]) -> Iterable[str]:
    templates = ", ".join(f"{count} {name}" for name, count in document["templates"].items())
    yield f"{document['encoding']}, {document['entries']} entries ({templates or 'none'})"
    yield f"{document['violations']} violations"
    for bank, value in document["pcr10"].items():
        yield f"{bank:9} {value}"
    if document["matchedPrefix"] is not None:
        yield (
            f"the PCR value proves {document['matchedPrefix']} entries, "
            f"{document['unverifiedEntries']} are unverified"
        )
    for finding in document["findings"]:
        yield f"{finding['severity']:8}{finding['id']}: entry {finding['entry']}: {finding['message']}"


def ima(
    *files: Path,
    pcr10: str | None = None,
    bank: HashAlgorithm | None = None,
    pcr: Annotated[int, Parameter(validator=cyclopts.validators.Number(gte=0, lte=23))] = IMA_PCR,
    output: Output = "table",
) -> int:
    """Decode and replay runtime logs of Linux IMA, binary or text.

    Exit status: 0 a log whose entries hold (and, with --pcr10, of which a prefix matches), 1 refused
    with a reason code, 2 malformed with part and offset; of several files the worst.

    Args:
        files: Logs, such as /sys/kernel/security/ima/binary_runtime_measurements.
        pcr10: Hex of the quoted register, to find the prefix of the log that it proves.
        bank: Bank of --pcr10; default follows from its length.
        pcr: Register that this kernel extends.
        output: Format of the answer.
    """

    def judge(data: bytes) -> Answer:
        quoted = None if pcr10 is None else _quoted(pcr10)
        chosen = bank or _BANK_BY_SIZE.get(len(quoted or b""), HashAlgorithm.SHA256)
        if quoted is not None and len(quoted) != chosen.size:
            raise InvalidRequest(f"--pcr10 has no {chosen} value", field="pcr10")
        return judge_ima_log(data, quoted=quoted, bank=chosen, pcr=pcr)

    return print_answers(judge_files(files, judge, limit=MAX_FILE_BYTES), output, _table)


def _quoted(text: str) -> bytes:
    if not _HEX.fullmatch(text):
        raise InvalidRequest("--pcr10 is not hex", field="pcr10")
    return bytes.fromhex(text)


def register(app: cyclopts.App) -> None:
    """Add ``ima`` to the commands of ``ta evidence``."""
    app.command(ima, name="ima")
