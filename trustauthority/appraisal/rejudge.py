"""A bundle in, its verdict out: evidence judged again, offline, by the functions of the authority.

Trusts nothing of the bundle on entry, but takes its word where the caller gives no policy or baselines:
``Judged`` says so. On exit: a verdict as the authority would record it. What a bundle can't show: that
its AK lives in the TPM of its EK was proven at enrolment, a host's own bundle answers a nonce of its
own, and evidence that continues a runtime log rests on the authority's word for what came before.
Format: docs/reference/evidence-bundle.md; pitfalls.md rule 67.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from trustauthority.appraisal.appraise import AppraisalContext, appraise, judge_runtime
from trustauthority.appraisal.baseline import decode_baseline
from trustauthority.appraisal.runtimestate import KnownRuntime, decode_runtime
from trustauthority.appraisal.tpm import TpmKnowledge
from trustauthority.codec.bundle import Bundle
from trustauthority.codec.evidence import decode_evidence
from trustauthority.codec.policy import decode_policy
from trustauthority.codec.tpm import decode_attest, decode_public
from trustauthority.errors import (
    InvalidRequest,
    MalformedEvidence,
    PcrSelectionRejected,
    PolicyInvalid,
)
from trustauthority.model.baseline import Baseline
from trustauthority.model.evidence import Evidence
from trustauthority.model.identifiers import ClusterId, HostId
from trustauthority.model.policy import Policy
from trustauthority.model.runtimerules import RuntimeRules
from trustauthority.model.tpm import ClockInfo, QuoteAttest
from trustauthority.model.verdict import Check, CheckState, Verdict
from trustauthority.verification.pipeline import (
    ExpectedEvidence,
    VerifiedEvidence,
    expect_evidence,
    verify_evidence,
)
from trustauthority.verification.quote import (
    authenticate_quote,
    check_pcr_digest,
    check_qualifying_data,
    check_signer,
    require_quote,
)
from trustauthority.verification.runtimelog import RuntimeProgress

PURPOSES = ("attest", "bundle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grounds:
    """What bundles are judged by; None where each bundle's own copy is taken."""

    policy: bytes | None = None
    baselines: tuple[Baseline, ...] | None = None
    rules: RuntimeRules | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The verdict on one bundle and what it rests on."""

    verdict: Verdict
    verified: VerifiedEvidence
    own_policy: bool
    own_baselines: bool


def authenticate_bundle(bundle: Bundle) -> QuoteAttest:
    """The quote of a bundle, signed by the bundle's AK under its EK, over its nonce and PCR values.

    Raises:
        MalformedEvidence: a part is missing or is not what it must be.
        EvidenceRejected: the quote is not genuine.
    """
    quote, signature = authenticate_quote(
        attest=bundle.part("quote.attest"),
        signature=bundle.part("quote.signature"),
        attestation_key=decode_public(bundle.part("ak.public")),
    )
    expected = _expected(bundle, None, None)
    check_signer(quote, expected.ak_qualified_name)
    check_qualifying_data(quote, expected.qualifying_data)
    check_pcr_digest(quote, bundle.part("pcr-values.bin"), signature.hash)
    return quote


def judge_bundle(bundle: Bundle, grounds: Grounds, now_ms: int) -> Judged:
    """Verify and appraise a bundle as the authority would.

    Args:
        bundle: the bundle.
        grounds: what it is judged by.
        now_ms: the time to judge at, milliseconds since the epoch.

    Raises:
        MalformedEvidence: a part is missing or is not what it must be.
        EvidenceRejected: its quote is not genuine.
        InvalidRequest, PolicyInvalid: there is no policy, or it names rules that were not given.
    """
    document = grounds.policy or bundle.parts.get("policy.toml")
    if document is None:
        raise InvalidRequest("the bundle holds no policy: give --policy", field="policy")
    policy = _policy(document)
    _require_rules(policy, grounds)
    evidence = _evidence(bundle)
    known = _known(bundle, policy, evidence.ima_offset)
    expected = _expected(
        bundle, _position_before(bundle), None if known is None else known.progress
    )
    verified = verify_evidence(
        evidence, expected, _as_quoted(policy, evidence.attest), grounds.rules
    )
    before = known.files if known is not None and verified.same_boot else None
    labels = _labels(bundle)
    context = AppraisalContext(
        host_id=HostId(labels.get("host_id", "")),
        cluster=ClusterId(labels.get("cluster", "")),
        endorsement="",
        policy_sha256=hashlib.sha256(document).hexdigest(),
        policy_epoch=0,
        issued_at_ms=now_ms,
        now_ms=now_ms,
        host_class=labels.get("host_class", ""),
        tpm=_tpm(bundle),
        files=judge_runtime(verified.runtime, grounds.rules, before),
    )
    baselines = _own_baselines(bundle) if grounds.baselines is None else grounds.baselines
    verdict = appraise(verified, policy, baselines, context)
    checks = tuple(_unshown(check) for check in verdict.checks)
    return Judged(
        verdict=replace(verdict, checks=checks),
        verified=verified,
        own_policy=grounds.policy is None,
        own_baselines=grounds.baselines is None,
    )


def _expected(
    bundle: Bundle, last_clock: ClockInfo | None, progress: RuntimeProgress | None
) -> ExpectedEvidence:
    return expect_evidence(
        ak_public=bundle.part("ak.public"),
        ek_public=bundle.part("ek.public"),
        tls_public=bundle.part("tls.public"),
        challenge=bundle.hex("nonce"),
        purpose=_purpose(bundle),
        last_clock=last_clock,
        progress=progress,
    )


def _unshown(check: Check) -> Check:
    """A check as it is, unless enrolment alone could make it: a bundle shows nothing of that."""
    how = {"endorsement": "ta evidence endorsement judges the EK certificate"}
    how["residency"] = "proven at enrolment, by the TPM's own answer to a challenge"
    if check.id not in how:
        return check
    detail = f"a bundle can't show it: {how[check.id]}"
    return replace(check, state=CheckState.SKIPPED, found="", detail=detail, children=())


def _evidence(bundle: Bundle) -> Evidence:
    return decode_evidence(
        challenge=bundle.hex("nonce"),
        attest=bundle.part("quote.attest"),
        signature=bundle.part("quote.signature"),
        pcr_values=bundle.part("pcr-values.bin"),
        boot_log=bundle.parts.get("boot.log", b""),
        ima_offset=bundle.number("ima_offset"),
        ima_log=bundle.parts.get("ima.log", b""),
        userspace_log=bundle.parts.get("userspace.log", b""),
    )


def _policy(document: bytes) -> Policy:
    try:
        return decode_policy(document.decode())
    except UnicodeDecodeError as error:
        raise PolicyInvalid("the policy is not UTF-8 text", fields="policy") from error


def _require_rules(policy: Policy, grounds: Grounds) -> None:
    wanted = policy.runtime.rules
    if wanted and (grounds.rules is None or grounds.rules.sha256 != wanted):
        raise PolicyInvalid(
            f"the policy names runtime rules {wanted}: give them with --rules",
            fields="runtime.rules",
        )


def _as_quoted(policy: Policy, attest: bytes) -> Policy:
    """The policy, asking for the PCRs that a host's own bundle quotes beyond those it must."""
    selection = require_quote(decode_attest(attest)).selection
    by_bank = {one.bank: one.indices for one in selection}
    pcrs = by_bank.get(policy.evidence.bank, ())
    missing = set(policy.evidence.pcrs) - set(pcrs)
    if missing or any(indices != pcrs for indices in by_bank.values()):
        raise PcrSelectionRejected(
            f"the quote must cover PCRs {sorted(policy.evidence.pcrs)} of {policy.evidence.bank}, and "
            "the same ones in each of its banks"
        )
    banks = tuple(dict.fromkeys((*by_bank, *policy.evidence.quoted_banks)))
    evidence = replace(policy.evidence, pcrs=pcrs, quoted_banks=banks)
    return replace(policy, evidence=evidence)


def _purpose(bundle: Bundle) -> str:
    purpose = bundle.text("purpose")
    if purpose not in PURPOSES:
        raise MalformedEvidence("a purpose that no bundle has", part="manifest.json", offset=0)
    return purpose


def _labels(bundle: Bundle) -> Mapping[str, str]:
    labels = bundle.manifest.get("labels")
    named: Iterable[tuple[Any, Any]] = labels.items() if isinstance(labels, dict) else ()
    return {key: value for key, value in named if isinstance(value, str)}


def _position_before(bundle: Bundle) -> ClockInfo | None:
    """Where the TPM's clock stood at the evidence before, by the authority's word."""
    if "tpm_position_before" not in bundle.manifest:
        return None
    position = bundle.hex("tpm_position_before")
    if len(position) != 16:
        raise MalformedEvidence("no position of a TPM", part="manifest.json", offset=0)
    return ClockInfo.from_bytes(clock=position[8:], counters=position[:8], safe=True)


def _tpm(bundle: Bundle) -> TpmKnowledge:
    """Who made the TPM and which firmware it had, by the authority's word."""
    manufacturer = bundle.manifest.get("tpm_manufacturer")
    before = bundle.hex("tpm_firmware_before") if "tpm_firmware_before" in bundle.manifest else b""
    return TpmKnowledge(
        manufacturer=manufacturer if isinstance(manufacturer, str) else "",
        firmware_before=int.from_bytes(before, "big") if before else None,
    )


def _known(bundle: Bundle, policy: Policy, offset: int) -> KnownRuntime | None:
    """What the bundle's IMA delta continues: the authority's word, where it is no whole log."""
    if not offset:
        return None
    try:
        known = decode_runtime(bundle.part("runtime-before.json"), "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MalformedEvidence(
            "not what it must be", part="runtime-before.json", offset=0
        ) from error
    judged_by = None if known is None or known.files is None else known.files.rules
    if policy.runtime.rules and judged_by != policy.runtime.rules:
        raise InvalidRequest(
            "this evidence continues a runtime log whose first part these rules never saw: let the host "
            "attest under the policy, and fetch its evidence again",
            field="policy",
        )
    return known


def _own_baselines(bundle: Bundle) -> tuple[Baseline, ...]:
    if "baselines.json" not in bundle.parts:
        return ()
    try:
        documents = json.loads(bundle.parts["baselines.json"])
        return tuple(decode_baseline(json.dumps(each)) for each in documents)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MalformedEvidence("not baselines", part="baselines.json", offset=0) from error
