"""AR4SI claims of a verdict: unknown is never affirming, a crash is no claim (rules 61-63, N04)."""

from dataclasses import replace

import pytest

from trustauthority.model.verdict import Check, CheckState
from trustauthority.report.vector import (
    Claim,
    Status,
    rejected_vector,
    status_of,
    trust_vector,
)

PASSED, FAILED, WARNING, SKIPPED = (
    CheckState.PASSED,
    CheckState.FAILED,
    CheckState.WARNING,
    CheckState.SKIPPED,
)
GOOD = {
    "endorsement": "endorsement.certificate",
    "residency": "",
    "tpm-firmware": "tpm-firmware.flaws",
    "boot-log": "boot-log.sha256",
    "secure-boot": "secure-boot.enforced",
    "baseline": "baseline.firmware",
    "runtime": "runtime.replay runtime.entries runtime.boot-aggregate runtime.violations runtime.files",
}
BEST = {
    "instance-identity": 2,
    "configuration": 2,
    "executables": 2,
    "file-system": 2,
    "hardware": 2,
    "runtime-opaque": 0,
    "storage-opaque": 0,
    "sourced-data": 0,
}


def tree(**states: CheckState) -> tuple[Check, ...]:
    """A tree in which everything passed but what is named (dots written as two underscores)."""
    wanted = {name.replace("__", ".").replace("_", "-"): state for name, state in states.items()}

    def check(name: str, children: tuple[Check, ...] = ()) -> Check:
        worst = {child.state for child in children}
        default = next((state for state in (FAILED, WARNING) if state in worst), PASSED)
        return Check(id=name, title=name, state=wanted.get(name, default), children=children)

    return tuple(
        check(group, tuple(check(leaf) for leaf in leaves.split()))
        for group, leaves in GOOD.items()
    )


def crashed(group: str) -> tuple[Check, ...]:
    """The good tree in which one group crashed, as ``appraise`` says it."""
    crash = Check(id=f"{group}.crashed", title=group, state=FAILED)
    return tuple(
        replace(each, state=FAILED, children=(crash,)) if each.id == group else each
        for each in tree()
    )


def test_everything_was_looked_at_and_is_good():
    """The one tree that affirms everything a TPM can show."""
    vector = trust_vector(tree())
    assert vector == BEST
    assert status_of(vector, passed=True) is Status.AFFIRMING


def test_nothing_looked_at_affirms_nothing():
    """«No claim» is never taken for a good one (rule 62)."""
    vector = trust_vector(())
    assert set(vector.values()) == {0}
    assert status_of(vector, passed=True) is Status.NONE


@pytest.mark.parametrize(
    ("states", "changed"),
    [
        ({"endorsement": FAILED}, {"instance-identity": 97, "hardware": 97}),
        ({"endorsement__certificate": SKIPPED}, {"hardware": 0}),
        ({"residency": SKIPPED}, {"instance-identity": 0, "hardware": 0}),
        ({"tpm_firmware__flaws": WARNING}, {"hardware": 32}),
        ({"tpm_firmware__flaws": FAILED}, {"hardware": 32}),
        ({"secure_boot__enforced": WARNING}, {"configuration": 32}),
        ({"secure_boot__enforced": FAILED}, {"configuration": 32}),
        ({"secure_boot__enforced": SKIPPED}, {"configuration": 0}),
        ({"boot_log__sha256": FAILED}, {"configuration": 36, "executables": 33}),
        ({"baseline__firmware": FAILED}, {"executables": 33}),
        ({"baseline__firmware": WARNING}, {"executables": 33}),
        ({"baseline": SKIPPED, "baseline__firmware": SKIPPED}, {"executables": 0}),
        ({"runtime__files": SKIPPED}, {"executables": 3, "file-system": 0}),
        ({"runtime__files": FAILED}, {"executables": 33, "file-system": 32}),
        ({"runtime__files": WARNING}, {"executables": 33, "file-system": 32}),
        ({"runtime__replay": WARNING}, {"executables": 33, "file-system": 32}),
        ({"runtime__entries": FAILED}, {"executables": 33, "file-system": 32}),
        ({"runtime__violations": WARNING}, {"executables": 33, "file-system": 32}),
        ({"runtime__replay": SKIPPED}, {"executables": 3, "file-system": 0}),
        ({"runtime__boot_aggregate": SKIPPED}, {"executables": 3, "file-system": 0}),
    ],
)
def test_each_claim_rests_on_its_checks(states, changed):
    """Software keys, flawed firmware, unknown boots and files each void their own claim (rules 52, 63)."""
    assert trust_vector(tree(**states)) == BEST | changed


def test_a_revoked_host_is_untrusted():
    """An administrator's word outweighs genuine evidence (rule 62)."""
    revocation = Check(id="revocation", title="", state=FAILED)
    assert trust_vector((*tree(), revocation))["instance-identity"] == 96


@pytest.mark.parametrize(
    ("group", "claims"),
    [
        ("tpm-firmware", {"hardware"}),
        ("boot-log", {"configuration", "executables"}),
        ("secure-boot", {"configuration"}),
        ("baseline", {"executables"}),
        ("runtime", {"executables", "file-system"}),
    ],
)
def test_a_check_that_crashed_is_a_malfunction_of_ours(group, claims):
    """-1 says that the verifier failed, not that the host is bad; it affirms nothing (N04, rule 62)."""
    vector = trust_vector(crashed(group))
    assert {claim for claim, value in vector.items() if value == -1} == claims
    assert status_of(vector, passed=False) is Status.CONTRAINDICATED
    assert status_of(vector, passed=True) is Status.NONE


def test_evidence_that_is_not_genuine_is_99_everywhere():
    """A quote that nobody's TPM signed proves nothing of anything (rule 63)."""
    vector = rejected_vector()
    assert set(vector) == set(Claim)
    assert set(vector.values()) == {99}
    assert status_of(vector, passed=True) is Status.CONTRAINDICATED


@pytest.mark.parametrize("value", [32, 33, 36])
def test_a_passed_verdict_with_a_warning_is_no_affirming_one(value):
    """The status is never better than the worst claim (draft-ietf-rats-ear)."""
    assert status_of(BEST | {"executables": value}, passed=True) is Status.WARNING


def test_a_failed_verdict_is_contraindicated_whatever_its_claims():
    """A policy may fail a host for what no claim speaks of (S12)."""
    assert status_of(BEST, passed=False) is Status.CONTRAINDICATED
