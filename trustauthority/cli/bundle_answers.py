"""What ``ta evidence show`` and ``check`` answer: what a bundle holds, and the verdict it deserves.

Works offline on bundles of ``ta host evidence`` and ``hostagent collect`` and trusts none of them. The
functions that judge are those of the authority. What a bundle can't show is said: that its AK lives in
the TPM of its EK was proven at enrolment, and a host's own bundle answers a nonce of its own.
Schemas: docs/reference/evidence-show.schema.json, evidence-check.schema.json; format: docs/reference/evidence-bundle.md.
"""

import datetime as dt
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from trustauthority.appraisal.baseline import decode_baseline
from trustauthority.appraisal.rejudge import Grounds, authenticate_bundle, judge_bundle
from trustauthority.cli.checks import show_checks
from trustauthority.cli.evidence_files import (
    EXIT_REFUSED,
    EXIT_YES,
    Answer,
    read_log,
)
from trustauthority.cli.options import DEFAULTS
from trustauthority.cli.session import screen_for
from trustauthority.codec.bundle import MANIFEST, Bundle, decode_bundle
from trustauthority.codec.efi_text import printable
from trustauthority.codec.policy import MAX_DOCUMENT_BYTES as MAX_POLICY_BYTES
from trustauthority.codec.runtimerules import MAX_DOCUMENT_BYTES as MAX_RULES_BYTES
from trustauthority.codec.runtimerules import decode_runtime_rules
from trustauthority.codec.tpm import decode_public, object_name
from trustauthority.errors import (
    EvidenceRejected,
    InvalidRequest,
    MalformedEvidence,
)
from trustauthority.model.baseline import Baseline
from trustauthority.report.vector import rejected_vector, status_of, trust_vector

MAX_BASELINE_BYTES = 4 << 20


# --- show --------------------------------------------------------------------------------------


def describe_bundle(data: bytes) -> Answer:
    """What a bundle says, and whether its quote is what its AK signed.

    Raises:
        MalformedEvidence: it is no bundle.
        EvidenceRejected: its quote is not genuine.
    """
    bundle = decode_bundle(data)
    quote = authenticate_bundle(bundle)
    clock = quote.clock_info
    labels = bundle.manifest.get("labels")
    document: dict[str, Any] = {
        "source": _source(bundle),
        "createdAt": bundle.text("created_at"),
        "labels": _said(labels),
        "purpose": bundle.text("purpose"),
        "quote": {
            "banks": {str(one.bank): list(one.indices) for one in quote.selection},
            "akName": object_name(decode_public(bundle.part("ak.public"))).hex(),
            "ekSha256": hashlib.sha256(bundle.part("ek.public")).hexdigest(),
            "resetCount": clock.reset_count,
            "restartCount": clock.restart_count,
            "clockMs": clock.clock,
            "clockSafe": clock.safe,
        },
        "imaOffset": bundle.number("ima_offset"),
        "parts": {name: len(content) for name, content in sorted(bundle.parts.items())},
        "verdict": _stored_verdict(bundle),
    }
    return Answer(exit_code=EXIT_YES, reason=None, message=None, document=document)


def _source(bundle: Bundle) -> str:
    """Who wrote it; a host does not say so."""
    source = bundle.manifest.get("source", "host")
    if source not in ("authority", "host"):
        raise MalformedEvidence("source is neither authority nor host", part=MANIFEST, offset=0)
    return str(source)


def _said(labels: Any) -> dict[str, str]:
    named = labels.items() if isinstance(labels, dict) else ()
    return {key: value for key, value in named if isinstance(value, str) and value}


def shown(document: Mapping[str, Any]) -> Iterator[str]:
    """What a bundle holds, in lines."""
    if "quote" not in document:
        return
    quote = document["quote"]
    labels = ", ".join(f"{key} {value}" for key, value in sorted(document["labels"].items()))
    yield f"made {document['createdAt']} by the {document['source']} ({labels or 'no labels'})"
    for bank, indices in quote["banks"].items():
        yield f"the quote is genuine under AK {quote['akName'][:20]}…: {bank} {indices}"
    yield f"resets {quote['resetCount']}, restarts {quote['restartCount']}"
    verdict = document["verdict"]
    if verdict is not None:
        word = "passed" if verdict["passed"] else f"failed: {verdict['reason']}"
        yield f"the authority's verdict: {word} (unverified here; ta evidence check judges again)"
    for name, size in document["parts"].items():
        yield f"{size:>9}  {name}"


# --- check -------------------------------------------------------------------------------------


def judge_by(data: bytes, grounds: Grounds) -> Answer:
    """The verdict that a bundle deserves, judged by ``grounds``.

    Raises:
        MalformedEvidence: it is no bundle.
    """
    bundle = decode_bundle(data)
    now_ms = int(dt.datetime.now(dt.UTC).timestamp() * 1000)
    try:
        judged = judge_bundle(bundle, grounds, now_ms)
    except EvidenceRejected as error:
        rejected = rejected_vector()
        return Answer(
            exit_code=EXIT_REFUSED,
            reason=error.reason,
            message=printable(error.message),
            document={
                "earStatus": status_of(rejected, passed=False),
                "trustworthinessVector": rejected,
            },
        )
    verdict = judged.verdict
    vector = trust_vector(verdict.checks)
    document = {
        "passed": verdict.passed,
        "policy": verdict.policy,
        "policySha256": verdict.policy_sha256,
        "ownPolicy": judged.own_policy,
        "ownBaselines": judged.own_baselines,
        "baseline": verdict.baseline,
        "atTheAuthority": _stored_verdict(bundle),
        "earStatus": status_of(vector, passed=verdict.passed),
        "trustworthinessVector": vector,
        "checks": [asdict(check) for check in verdict.checks],
    }
    return Answer(
        exit_code=EXIT_YES if verdict.passed else EXIT_REFUSED,
        reason=None if verdict.passed else "VERDICT_FAILED",
        message=verdict.reason or None,
        document=document,
    )


def _stored_verdict(bundle: Bundle) -> dict[str, Any] | None:
    document = _json(bundle, "verdict.json", None)
    if not isinstance(document, dict):
        return None
    return {"passed": document.get("passed"), "reason": _first_reason(document.get("checks"))}


def _first_reason(checks: Any, depth: int = 0) -> str:
    for check in checks if isinstance(checks, list) and depth < 8 else ():
        if isinstance(check, dict) and check.get("state") == "failed":
            return _first_reason(check.get("children"), depth + 1) or str(check.get("title", ""))
    return ""


def _json(bundle: Bundle, name: str, missing: Any) -> Any:
    if name not in bundle.parts:
        return missing
    try:
        return json.loads(bundle.parts[name])
    except (ValueError, RecursionError) as error:
        raise MalformedEvidence("not JSON", part=name, offset=0) from error


# --- check: what it is judged by, and how it is shown ------------------------------------------


def read_grounds(policy: Path | None, baseline: list[Path] | None, rules: Path | None) -> Grounds:
    """What bundles are judged by, from files.

    Raises:
        InvalidRequest, PolicyInvalid: a file is not what it must be.
    """
    return Grounds(
        policy=None if policy is None else read_log(policy, MAX_POLICY_BYTES),
        baselines=None
        if baseline is None
        else tuple(chain.from_iterable(map(_baselines, baseline))),
        rules=None if rules is None else decode_runtime_rules(read_log(rules, MAX_RULES_BYTES)),
    )


def _baselines(path: Path) -> list[Baseline]:
    """The variants of one file: a document, or a list of them as in a bundle's baselines.json."""
    try:
        documents = json.loads(read_log(path, MAX_BASELINE_BYTES))
        listed = documents if isinstance(documents, list) else [documents]
        return [decode_baseline(json.dumps(each)) for each in listed]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidRequest(f"{path.name} is no baseline", field="baseline") from error


def explained(document: Mapping[str, Any]) -> Iterator[str]:
    """What a verdict rests on, in lines."""
    if "checks" not in document:
        return
    policy, baselines = (
        "the bundle's own" if document[key] else "given" for key in ("ownPolicy", "ownBaselines")
    )
    yield f"policy {document['policy']} ({document['policySha256'][:16]}…, {policy})"
    yield f"baselines: {baselines}"
    stored = document["atTheAuthority"]
    if stored is not None:
        yield f"at the authority: {'passed' if stored['passed'] else 'failed'}"


def show_tree(name: str, checks: list[dict[str, Any]]) -> None:
    """Print the check tree of one bundle."""
    from trustauthority.v1 import common_pb2

    states = {
        "passed": common_pb2.CHECK_STATE_PASSED,
        "warning": common_pb2.CHECK_STATE_WARNING,
        "skipped": common_pb2.CHECK_STATE_SKIPPED,
    }

    def message(check: dict[str, Any]) -> common_pb2.Check:
        plain = {key: check[key] for key in check.keys() - {"state", "children"}}
        return common_pb2.Check(
            **plain,
            state=states.get(str(check["state"]), common_pb2.CHECK_STATE_FAILED),
            children=[message(child) for child in check["children"]],
        )

    screen = screen_for(DEFAULTS)
    screen.line("")
    screen.line(name)
    show_checks(screen, [message(each) for each in checks])
