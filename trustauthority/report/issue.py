"""From a verdict to the claims of a signed report: EAR with an AR4SI trustworthiness vector.

What it trusts: the Verdict, by its type. What it does not do: authorise anything; a report is
advice (design.md 6.2). Spec: draft-ietf-rats-ear-04, draft-ietf-rats-ar4si-09, RFC 9711.
"""

from typing import Any

from trustauthority.model.report import EAT_PROFILE, ReportContext
from trustauthority.model.verdict import Check, CheckState, Verdict
from trustauthority.report.vector import status_of, trust_vector


def report_claims(verdict: Verdict, context: ReportContext) -> dict[str, Any]:
    """Claims of the report on a verdict. Times are whole seconds, rounded against the bearer."""
    vector = trust_vector(verdict.checks)
    issued_s = verdict.decided_at_ms // 1000
    lifetime_ms = verdict.attested_until_ms if verdict.passed else verdict.decided_at_ms + 60_000
    return {
        "iss": context.issuer,
        "aud": context.audience,
        "sub": verdict.host_id,
        "iat": issued_s,
        "nbf": issued_s,
        "exp": max(lifetime_ms // 1000, issued_s + 1),
        "jti": context.verdict_id,
        "eat_profile": EAT_PROFILE,
        "eat_nonce": context.challenge_sha256,
        "cnf": {"x5t#spki-sha256": context.tls_spki_sha256},
        "ear.verifier-id": {"developer": "trustauthority", "build": context.verifier_build},
        "submods": {
            "host": {
                "ear.status": str(status_of(vector, passed=verdict.passed)),
                "ear.trustworthiness-vector": vector,
                "ear.appraisal-policy-id": f"{verdict.policy}@{verdict.policy_sha256}",
            }
        },
        "ta": {
            "standing": "passed" if verdict.passed else "failed",
            "cluster": verdict.cluster,
            "policyEpoch": verdict.policy_epoch,
            "baseline": verdict.baseline,
            "node": context.node,
            "akName": context.ak_name.hex(),
            "resetCount": context.reset_count,
            "restartCount": context.restart_count,
            "evidenceSha256": context.evidence_sha256,
            "deviations": [
                {"id": check.id, "state": str(check.state), "found": check.found}
                for check in _leaves(verdict.checks)
                if check.state in (CheckState.FAILED, CheckState.WARNING)
            ],
        },
    }


def _leaves(checks: tuple[Check, ...]) -> list[Check]:
    found: list[Check] = []
    for check in checks:
        found.extend(_leaves(check.children) if check.children else [check])
    return found
