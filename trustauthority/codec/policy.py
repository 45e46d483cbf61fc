"""Policy documents: TOML in, the frozen Policy out, every wrong key named at once.

Trusts nothing on entry. On exit: every key is known and of its type, and the policy does not contradict
itself. What it does not do: say whether the lengths of leases are safe (``services.policies``).
Format: docs/reference/policy.md.
"""

import re
import tomllib

from pydantic import ConfigDict, TypeAdapter, ValidationError

from trustauthority.errors import PolicyInvalid
from trustauthority.model import policy as nouns
from trustauthority.model.policy import Policy

MAX_DOCUMENT_BYTES = 256 * 1024
GROWING_PCRS = frozenset({10, 11, 12, 13, 15, 16, 23})
"""PCRs that change while a host runs, or that can be reset: never in a key's policy (design 6.4)."""

_SHA256 = re.compile(r"[0-9a-f]{64}")

_STRICT = ConfigDict(extra="forbid", strict=False)
for _kind in (
    nouns.EvidencePolicy,
    nouns.BootPolicy,
    nouns.RuntimePolicy,
    nouns.TpmPolicy,
    nouns.LeasePolicy,
    nouns.GrantPolicy,
    nouns.EndorsementPolicy,
    Policy,
):
    setattr(_kind, "__pydantic_config__", _STRICT)  # noqa: B010 - the model stays free of pydantic
_ADAPTER = TypeAdapter(Policy)


def decode_policy(document: str) -> Policy:
    """Read a policy document.

    Raises:
        PolicyInvalid: with every problem and its path.
    """
    if len(document) > MAX_DOCUMENT_BYTES:  # characters: a bound on the work, not on the bytes
        raise PolicyInvalid("the document has more than 256 KiB", fields="")
    try:
        values = tomllib.loads(document)
    except (ValueError, RecursionError) as error:  # ValueError: also numbers of 4,301 digits
        raise PolicyInvalid(f"not TOML: {error}", fields="") from error
    _fill_in_violations(values.get("runtime"))
    try:
        policy = _ADAPTER.validate_python(values)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}"
            for each in error.errors()
        ]
        raise PolicyInvalid("; ".join(problems), fields=", ".join(problems)) from error
    problems = _contradictions(policy)
    if problems:
        raise PolicyInvalid("; ".join(problems), fields=", ".join(problems))
    return policy


def _fill_in_violations(runtime: object) -> None:
    """Who asks for approved files asks for no violation either, unless they say otherwise (rule 52).

    A file that somebody keeps open for writing is measured with one content and may run with another.
    """
    if isinstance(runtime, dict) and runtime.get("files") == nouns.Requirement.REQUIRED:
        runtime.setdefault("violations", nouns.Requirement.REQUIRED)


def _rules_problems(runtime: nouns.RuntimePolicy) -> list[str]:
    """Files are judged by rules that the policy names, or not at all: neither goes alone."""
    wanted = runtime.files is not nouns.Requirement.OFF
    if wanted and not _SHA256.fullmatch(runtime.rules):
        return ["runtime.rules: the hash that ta policy runtime upload printed"]
    if not wanted and runtime.rules:
        return ["runtime.files: required or warn, or the rules judge nothing"]
    return []


def _class_problems(boot: nouns.BootPolicy) -> list[str]:
    """A class is told by the firmware's baseline: it says nothing where that is not looked at."""
    if boot.host_class is not nouns.Requirement.REQUIRED:
        return []
    problems = []
    if boot.baseline is not nouns.Requirement.REQUIRED:
        problems.append("boot.host_class: required only together with boot.baseline")
    if not set(boot.baseline_pcrs) & {0, 1, 2, 3}:
        problems.append("boot.host_class: boot.baseline_pcrs must show the firmware (PCR 0-3)")
    return problems


def _contradictions(policy: Policy) -> list[str]:
    """What no single field shows: sets that must contain each other, lengths that must be positive."""
    problems = []
    quoted = set(policy.evidence.pcrs)
    for name, pcrs in (
        ("evidence.replayed_pcrs", policy.evidence.replayed_pcrs),
        ("boot.baseline_pcrs", policy.boot.baseline_pcrs),
        ("grants.sealed_pcrs", policy.grants.sealed_pcrs),
    ):
        if not set(pcrs) <= quoted:
            problems.append(f"{name}: only PCRs of evidence.pcrs can be used")
    if not policy.grants.sealed_pcrs or set(policy.grants.sealed_pcrs) & GROWING_PCRS:
        problems.append("grants.sealed_pcrs: some stable PCRs, none that grows (10-13, 15, 16, 23)")
    if any(not 0 <= pcr <= 23 for pcr in quoted):
        problems.append("evidence.pcrs: PCRs are numbered 0 to 23")
    problems.extend(_class_problems(policy.boot))
    if policy.evidence.bank not in policy.evidence.quoted_banks:
        problems.append("evidence.quoted_banks: must contain evidence.bank")
    if policy.evidence.bank == "sha1":
        problems.append("evidence.bank: no claim may rest on SHA-1")
    lengths = {
        "evidence.max_age_ms": policy.evidence.max_age_ms,
        "evidence.attest_interval_ms": policy.evidence.attest_interval_ms,
        "leases.strict_ms": policy.leases.strict_ms,
        "leases.standard_ms": policy.leases.standard_ms,
        "grants.open_by_ms": policy.grants.open_by_ms,
    }
    problems.extend(f"{name}: must be positive" for name, value in lengths.items() if value <= 0)
    problems.extend(_rules_problems(policy.runtime))
    if not all(_SHA256.fullmatch(each) for each in policy.endorsement.denied):
        problems.append("endorsement.denied: SHA-256 hashes, 64 characters of 0-9 a-f each")
    return problems
