"""``ta evidence quote``: is this a genuine quote, and if not, why not?

Works offline on files and trusts none of them. A bare PEM key does not say how its TPM signs, so
the scheme of the signature is taken at its word there; what was not given (nonce, PCR values) is
listed as skipped, never as passed. Exit status: 0 genuine, 1 refused, 2 malformed or unreadable.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import cyclopts
from cyclopts import Parameter
from rich.console import Console

from trustauthority.cli.input_files import not_judged
from trustauthority.cli.quote_files import read_attestation_key, read_file, read_nonce, read_pcrs
from trustauthority.cli.quote_logs import LogJudgement, judge_boot, judge_runtime
from trustauthority.codec.tpm import decode_attest, decode_signature, object_name
from trustauthority.errors import (
    InvalidRequest,
    MalformedEvidence,
    PcrSelectionRejected,
    TrustAuthorityError,
)
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.tpm import PcrSelection, QuoteAttest, Signature, TpmPublic
from trustauthority.verification.quote import (
    PcrValues,
    check_pcr_digest,
    check_qualifying_data,
    check_selection_form,
    check_selection_matches,
    require_quote,
)
from trustauthority.verification.signature import check_attestation_key, check_signature

Step = TypeVar("Step")

EXIT_GENUINE = 0
EXIT_REFUSED = 1
EXIT_MALFORMED = 2

_UNPROVEN_RESIDENCY = (
    "the AK is a bare key: that it is a restricted key of a TPM, and how it signs, was not shown"
)
_NO_NONCE = "no nonce was given: the quote may be old"
_EMPTY_NONCE = "the nonce is empty: the quote may be old"
_NO_PCRS = "no PCR values were given: pcrDigest was not compared with anything"
_CLOCK_NOT_SAFE = "clockInfo.safe is NO: the clock of the TPM may have gone back after a power cut"
_SHA1_SIGNATURE = "the signature uses SHA-1, which was allowed"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteFiles:
    """Contents of the files and options of one call."""

    attest: bytes
    signature: bytes
    attestation_key: bytes
    pcrs: bytes | None
    nonce: str | None
    eventlog: bytes | None
    userspace: bytes
    ima: bytes | None
    bank: HashAlgorithm | None
    allow_sha1: bool


@dataclass(slots=True)
class QuoteJudgement:
    """What was found, step by step; the JSON output is made of its fields."""

    checks: dict[str, str] = field(default_factory=dict)
    """passed, failed or skipped, by check."""
    findings: list[str] = field(default_factory=list)
    quote: QuoteAttest | None = None
    signature: Signature | None = None
    attestation_key: TpmPublic | None = None
    pcrs: PcrValues | None = None
    bank: HashAlgorithm | None = None
    logs: dict[str, LogJudgement] = field(default_factory=dict)
    error: TrustAuthorityError | None = None

    @property
    def exit_code(self) -> int:
        """0 genuine, 1 refused, 2 malformed."""
        if self.error is None:
            return EXIT_GENUINE
        return EXIT_MALFORMED if isinstance(self.error, InvalidRequest) else EXIT_REFUSED

    def run(self, name: str, step: Callable[[], Step]) -> Step:
        """Run one check and note how it ended."""
        self.checks[name] = "failed"
        outcome = step()
        self.checks[name] = "passed"
        return outcome

    def skip(self, name: str, why: str) -> None:
        """Note that a check could not be made."""
        self.checks[name] = "skipped"
        self.findings.append(why)


def judge_quote(files: QuoteFiles) -> QuoteJudgement:
    """Judge the files; what refuses them is in ``error``, never raised."""
    judgement = QuoteJudgement()
    try:
        _judge(judgement, files)
    except TrustAuthorityError as error:
        judgement.error = error
    except Exception as error:  # noqa: BLE001 - a defect of ours is a refusal, never a traceback
        judgement.error = not_judged(error)
    return judgement


def _judge(judgement: QuoteJudgement, files: QuoteFiles) -> None:
    # (1) Structures.
    attest = judgement.run("structure", lambda: decode_attest(files.attest))
    quote = judgement.run("type", lambda: require_quote(attest))
    judgement.quote = quote
    signature = judgement.run("signature", lambda: decode_signature(files.signature))
    judgement.signature = signature
    # (2) The AK signed these bytes.
    public, bare = judgement.run(
        "attestationKey", lambda: read_attestation_key(files.attestation_key, signature)
    )
    judgement.attestation_key = public
    judgement.run("attestationKey", lambda: check_attestation_key(public))
    judgement.run(
        "signature",
        lambda: check_signature(public, quote.raw, signature, allow_sha1=files.allow_sha1),
    )
    if bare:
        judgement.findings.append(_UNPROVEN_RESIDENCY)
    if signature.hash == HashAlgorithm.SHA1:
        judgement.findings.append(_SHA1_SIGNATURE)
    # (3) The nonce.
    _judge_nonce(judgement, files, quote)
    # (4) The selection, in itself and against the bank to judge by.
    judgement.run(
        "selection",
        lambda: check_selection_form(quote.selection, allow_sha1=files.allow_sha1),
    )
    judgement.bank = judgement.run(
        "selection", lambda: _judging_bank(quote, files.bank, allow_sha1=files.allow_sha1)
    )
    # (5) The PCR values.
    _judge_pcrs(judgement, files, quote, signature)
    # (6) The logs from which the PCR values follow.
    _judge_logs(judgement, files)
    if not quote.clock_info.safe:
        judgement.findings.append(_CLOCK_NOT_SAFE)


def _judge_nonce(judgement: QuoteJudgement, files: QuoteFiles, quote: QuoteAttest) -> None:
    if files.nonce is None:
        judgement.skip("nonce", _NO_NONCE)
        return
    expected = judgement.run("nonce", lambda: read_nonce(files.nonce or ""))
    if not expected and not quote.extra_data:
        judgement.skip("nonce", _EMPTY_NONCE)
        return
    judgement.run("nonce", lambda: check_qualifying_data(quote, expected))


def _judge_pcrs(
    judgement: QuoteJudgement, files: QuoteFiles, quote: QuoteAttest, signature: Signature
) -> None:
    if files.pcrs is None:
        judgement.skip("pcrDigest", _NO_PCRS)
        return
    document = files.pcrs
    claimed = judgement.run("pcrValues", lambda: read_pcrs(document))
    judgement.run("selection", lambda: _compare_claimed(quote, claimed))
    values = b"".join(
        claimed[entry.bank][index] for entry in quote.selection for index in entry.indices
    )
    judgement.run("pcrDigest", lambda: check_pcr_digest(quote, values, signature.hash))
    judgement.pcrs = claimed


def _judge_logs(judgement: QuoteJudgement, files: QuoteFiles) -> None:
    boot = partial(judge_boot, userspace=files.userspace)
    judges = (("eventlog", files.eventlog, boot), ("ima", files.ima, judge_runtime))
    for name, data, judge in judges:
        if data is not None:
            found = judgement.run(name, partial(_judge_log, judgement, name, data, judge))
            judgement.logs[name] = found
            judgement.findings += found.findings


def _judge_log(
    judgement: QuoteJudgement,
    name: str,
    data: bytes,
    judge: Callable[[bytes, PcrValues, HashAlgorithm], LogJudgement],
) -> LogJudgement:
    if judgement.pcrs is None or judgement.bank is None:
        raise InvalidRequest(f"--{name} needs --pcrs: a log explains PCR values", field=name)
    return judge(data, judgement.pcrs, judgement.bank)


def _compare_claimed(quote: QuoteAttest, claimed: PcrValues) -> None:
    check_selection_matches(
        quote.selection,
        [PcrSelection(bank=bank, indices=tuple(sorted(claimed[bank]))) for bank in claimed],
    )


def _judging_bank(
    quote: QuoteAttest, wanted: HashAlgorithm | None, *, allow_sha1: bool
) -> HashAlgorithm:
    """The bank on which claims may rest: the one asked for, or the longest digest quoted."""
    quoted = [entry.bank for entry in quote.selection]
    bank = wanted or max(quoted, key=lambda algorithm: algorithm.size)
    if bank not in quoted:
        raise PcrSelectionRejected(f"bank {bank} is not quoted", bank=bank)
    if bank == HashAlgorithm.SHA1 and not allow_sha1:
        raise PcrSelectionRejected("no claim may rest on the SHA-1 bank", bank=bank)
    return bank


# --- output ------------------------------------------------------------------------------------


def describe(judgement: QuoteJudgement) -> dict[str, Any]:
    """The JSON document of a judgement (docs/reference/evidence-quote.schema.json)."""
    error = judgement.error
    result = ("genuine", "refused", "malformed")[judgement.exit_code]
    document: dict[str, Any] = {
        "result": result,
        "reason": error.reason if error else None,
        "message": error.message if error else None,
    }
    if isinstance(error, MalformedEvidence):
        document |= {"part": error.part, "offset": error.offset}
    return (
        document
        | {
            "checks": judgement.checks,
            "findings": judgement.findings,
            "quote": _describe_quote(judgement.quote, judgement.signature),
            "attestationKey": _describe_key(judgement.attestation_key),
            "bank": judgement.bank,
        }
        | {name: dict(found.document) for name, found in judgement.logs.items()}
    )


def _describe_quote(
    quote: QuoteAttest | None, signature: Signature | None
) -> dict[str, Any] | None:
    if quote is None:
        return None
    clock = quote.clock_info
    return {
        "selection": [
            {"bank": entry.bank, "pcrs": list(entry.indices)} for entry in quote.selection
        ],
        "pcrDigest": quote.pcr_digest.hex(),
        "extraData": quote.extra_data.hex(),
        "qualifiedSigner": quote.qualified_signer.hex(),
        "clock": clock.clock,
        "resetCount": clock.reset_count,
        "restartCount": clock.restart_count,
        "safe": clock.safe,
        "firmwareVersion": f"{quote.firmware_version:016x}",
        "scheme": signature.scheme.name.lower() if signature else None,
        "hash": signature.hash if signature else None,
    }


def _describe_key(public: TpmPublic | None) -> dict[str, Any] | None:
    if public is None:
        return None
    named = bool(public.raw) and public.name_alg is not None
    return {"type": public.type.name.lower(), "name": object_name(public).hex() if named else None}


def _print_table(judgement: QuoteJudgement, console: Console) -> None:
    document = describe(judgement)
    reason = f" ({document['reason']}): {document['message']}" if judgement.error else ""
    console.print(f"{document['result']}{reason}", markup=False, highlight=False)
    for name, outcome in judgement.checks.items():
        console.print(f"  {outcome:8} {name}", markup=False, highlight=False)
    for finding in judgement.findings:
        console.print(f"  note     {finding}", markup=False, highlight=False)


def quote(
    *,
    attest: Path,
    signature: Path,
    ak: Path,
    pcrs: Path | None = None,
    nonce: str | None = None,
    eventlog: Path | None = None,
    userspace: Path | None = None,
    ima: Path | None = None,
    bank: HashAlgorithm | None = None,
    allow: tuple[Literal["sha1"], ...] = (),
    output: Annotated[Literal["table", "json"], Parameter(name=["--output", "-o"])] = "table",
) -> int:
    """Judge a TPM quote from files.

    Exit status: 0 genuine, 1 refused with a reason code, 2 malformed with part and offset.

    Args:
        attest: TPMS_ATTEST as the TPM made it.
        signature: TPMT_SIGNATURE over it.
        ak: Attestation key: TPM2B_PUBLIC, TPMT_PUBLIC, or a PEM public key.
        pcrs: JSON file, bank to index to hex, with exactly the quoted PCRs.
        nonce: Hex of the qualifying data that was asked for.
        eventlog: Measured-boot log that must explain the PCR values; needs --pcrs.
        userspace: Log of what user space measured afterwards (CEL JSON, as systemd keeps it).
        ima: Runtime log of which a prefix must explain PCR 10; needs --pcrs.
        bank: PCR bank that claims may rest on; default is the strongest one quoted.
        allow: What is refused by default: sha1 accepts SHA-1 signatures and a SHA-1 bank alone.
        output: Format of the answer.
    """
    try:
        files = QuoteFiles(
            attest=read_file(attest, "attest"),
            signature=read_file(signature, "signature"),
            attestation_key=read_file(ak, "ak"),
            pcrs=None if pcrs is None else read_file(pcrs, "pcrs"),
            nonce=nonce,
            eventlog=None if eventlog is None else read_file(eventlog, "eventlog"),
            userspace=b"" if userspace is None else read_file(userspace, "userspace"),
            ima=None if ima is None else read_file(ima, "ima"),
            bank=bank,
            allow_sha1="sha1" in allow,
        )
    except TrustAuthorityError as error:
        judgement = QuoteJudgement(error=error)
    else:
        judgement = judge_quote(files)
    console = Console(soft_wrap=True)
    if output == "json":
        console.out(json.dumps(describe(judgement), indent=2), highlight=False)
    else:
        _print_table(judgement, console)
    return judgement.exit_code


def register(app: cyclopts.App) -> None:
    """Add ``quote`` to the commands of ``ta evidence``."""
    app.command(quote, name="quote")
