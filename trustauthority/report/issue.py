"""From a verdict to the claims of a signed report: EAR with an AR4SI trustworthiness vector.

What it trusts: the Verdict, by its type. What it does not do: authorise anything; a report is
advice (design.md 6.2). Spec: draft-ietf-rats-ear-04, draft-ietf-rats-ar4si-09, RFC 9711.
"""

from typing import Any

from trustauthority.model.report import EAT_PROFILE, ReportContext
from trustauthority.model.verdict import Check, CheckState, Verdict

_NONE, _AFFIRMING = 0, 2
_EXECUTABLES_BOOT = 3
_UNRECOGNISED_FILES = 32
_UNSAFE_CONFIGURATION, _UNRECOGNISED_EXECUTABLES, _CONTRAINDICATED = 36, 33, 96
_VECTOR_BY_CHECK = {
    "instance-identity": ("endorsement", _AFFIRMING, 97),
    "hardware": ("residency", _AFFIRMING, 97),
    "configuration": ("secure-boot", _AFFIRMING, _UNSAFE_CONFIGURATION),
    "executables": ("baseline", _EXECUTABLES_BOOT, _UNRECOGNISED_EXECUTABLES),
    "runtime-opaque": ("runtime", _NONE, _CONTRAINDICATED),
}
"""AR4SI claim: the check it rests on, its value when that passed, and when it failed."""


def report_claims(verdict: Verdict, context: ReportContext) -> dict[str, Any]:
    """Claims of the report on a verdict. Times are whole seconds, rounded against the bearer."""
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
                "ear.status": "affirming" if verdict.passed else "contraindicated",
                "ear.trustworthiness-vector": trust_vector(verdict.checks),
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


def trust_vector(checks: tuple[Check, ...]) -> dict[str, int]:
    """The AR4SI vector: a claim whose check was not made is 0, never affirming (rule 62)."""
    states = {check.id: check.state for check in checks}
    vector = {}
    for claim, (check_id, affirming, contra) in _VECTOR_BY_CHECK.items():
        match states.get(check_id):
            case CheckState.PASSED:
                vector[claim] = affirming
            case CheckState.FAILED:
                vector[claim] = contra
            case _:
                vector[claim] = _NONE
    return vector | _of_files(checks, vector["executables"])


def _of_files(checks: tuple[Check, ...], at_boot: int) -> dict[str, int]:
    """What judging the files that ran adds: programs and files are known, or some are not."""
    files = next((each for each in _all(checks) if each.id == "runtime.files"), None)
    if files is None or files.state is CheckState.SKIPPED:
        return {"file-system": _NONE}
    if files.state is CheckState.PASSED:
        known = at_boot == _EXECUTABLES_BOOT
        return {"file-system": _AFFIRMING, "executables": _AFFIRMING if known else at_boot}
    return {"file-system": _UNRECOGNISED_FILES, "executables": _UNRECOGNISED_EXECUTABLES}


def _all(checks: tuple[Check, ...]) -> list[Check]:
    return [each for check in checks for each in (check, *_all(check.children))]


def _leaves(checks: tuple[Check, ...]) -> list[Check]:
    found: list[Check] = []
    for check in checks:
        found.extend(_leaves(check.children) if check.children else [check])
    return found
