"""What the attest role signs about a verdict: a report for others, a seal for the key role.

What it trusts: its arguments, which one transaction is about to record. What it guarantees: seal and
report state the same verdict of the same evidence. What it does not do: record, or decide.
"""

from dataclasses import dataclass

from joserfc.jwk import ECKey

from trustauthority.codec.tpm import decode_public, object_name
from trustauthority.errors import FailedPrecondition
from trustauthority.model.host import HostRecord
from trustauthority.model.policy import Policy
from trustauthority.model.report import REPORT_TYPE, ReportContext, VerdictSeal
from trustauthority.model.verdict import Verdict
from trustauthority.report.issue import report_claims
from trustauthority.report.seal import sign_seal
from trustauthority.report.token import sign_token
from trustauthority.services.secrets import AuthoritySecrets
from trustauthority.verification.pipeline import VerifiedEvidence

AUDIENCE = "trustauthority"
VERIFIER_BUILD = "0.1.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A verdict and what it is about."""

    host: HostRecord
    verified: VerifiedEvidence
    verdict: Verdict
    verdict_id: str
    evidence_sha256: str
    challenge_sha256: str


def sign_verdict(
    stated: Statement, keys: AuthoritySecrets, global_epoch: int, policy: Policy
) -> str:
    """Sign the seal by which the key role trusts this verdict."""
    host, verdict = stated.host, stated.verdict
    quote, bank = stated.verified.quote, policy.evidence.bank
    seal = VerdictSeal(
        verdict_id=stated.verdict_id,
        host_id=host.host_id,
        cluster=host.cluster_id,
        passed=verdict.passed,
        warned=verdict.warned,
        policy_epoch=verdict.policy_epoch,
        trust_epoch=host.trust_epoch,
        global_epoch=global_epoch,
        attested_until_ms=verdict.attested_until_ms,
        quote_received_ms=verdict.decided_at_ms,
        clock_ms=quote.clock_info.clock,
        counters=quote.clock_info.counter_bytes,
        storage_public=host.storage_public,
        sealed_pcrs={bank: {pcr: quote.pcrs[bank][pcr] for pcr in policy.grants.sealed_pcrs}},
    )
    return sign_seal(seal, _report_key(keys))


def sign_report(stated: Statement, keys: AuthoritySecrets, *, node: str) -> str:
    """Sign the report that a relying party may read."""
    clock = stated.verified.quote.clock_info
    context = ReportContext(
        issuer=keys.origin,
        audience=AUDIENCE,
        node=node,
        verdict_id=stated.verdict_id,
        challenge_sha256=stated.challenge_sha256,
        evidence_sha256=stated.evidence_sha256,
        ak_name=object_name(decode_public(stated.host.ak_public)),
        tls_spki_sha256=stated.host.tls_spki_sha256,
        reset_count=clock.reset_count,
        restart_count=clock.restart_count,
        verifier_build=VERIFIER_BUILD,
    )
    claims = report_claims(stated.verdict, context)
    return sign_token(claims, token_type=REPORT_TYPE, key=_report_key(keys))


def _report_key(keys: AuthoritySecrets) -> ECKey:
    if keys.report_key is None:
        raise FailedPrecondition("this process does not hold the report key")
    return keys.report_key
