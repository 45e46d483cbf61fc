"""Each check of a verdict, at its edges: what it finds, expects, names and advises (rules 17, 34, 40, N04)."""

from dataclasses import replace

import pytest
from support.bundle_parts import good_bundle, judged
from support.logbuilder import (
    APPLICATION,
    AUTHORITY,
    DRIVER_CONFIG,
    LogBuilder,
    good_log,
    ima_record,
    ng_data,
)
from support.small_bundle import (
    BANKS,
    BASELINES,
    CONTEXT,
    EXPECTED,
    GOOD,
    POLICY,
    RULES,
    failures,
    judge,
    verify_evidence,
)
from support.variants import proven

from trustauthority.appraisal.appraise import appraise, judge_runtime
from trustauthority.appraisal.boot import boot_log_checks, secure_boot_checks
from trustauthority.appraisal.runtime import runtime_checks
from trustauthority.appraisal.tpm import (
    TpmKnowledge,
    oldest_acceptable,
    tpm_checks,
    version_text,
)
from trustauthority.codec.eventlog import decode_boot_log
from trustauthority.codec.ima import decode_ima_binary
from trustauthority.errors import MalformedEvidence, PcrSelectionRejected
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.policy import BootPolicy, Requirement, RuntimePolicy, TpmPolicy
from trustauthority.model.verdict import CheckState
from trustauthority.verification.bootreplay import BankReplay
from trustauthority.verification.replay import ReplayDefect, ReplayFinding
from trustauthority.verification.runtime import MAX_FINDINGS, BootAggregate
from trustauthority.verification.runtimelog import RuntimeProgress, RuntimeReplay

VERIFIED = verify_evidence(GOOD, EXPECTED, POLICY, RULES)
SHA256 = HashAlgorithm.SHA256
LOG = VERIFIED.boot[SHA256].log
FLAWED = 0x0004_0021_0000_0000
"""4.33: the Infineon versions of CVE-2017-15361."""
DEFECT = ReplayFinding(defect=ReplayDefect.LOCALITY_LATE, event_number=9)
OFF, WARN, REQUIRED = Requirement.OFF, Requirement.WARN, Requirement.REQUIRED
STATES = {
    OFF: CheckState.SKIPPED,
    WARN: CheckState.WARNING,
    REQUIRED: CheckState.FAILED,
}


def quote(firmware: int):
    """The good quote, with another firmwareVersion."""
    return replace(VERIFIED.quote, firmware_version=firmware)


def by_id(checks):
    """Checks by their ids; no id twice."""
    found = {check.id: check for check in checks}
    assert len(found) == len(checks)
    return found


# --- the TPM's firmware --------------------------------------------------------------------------


@pytest.mark.parametrize("requirement", [WARN, REQUIRED])
def test_a_flaw_counts_as_the_policy_says(requirement):
    """A published flaw is named with its effect and a remedy, as strictly as the policy asks (rule 17)."""
    policy = TpmPolicy(firmware_flaws=requirement)
    checks = by_id(tpm_checks(quote(FLAWED), policy, TpmKnowledge(manufacturer="IFX")))
    check = checks["tpm-firmware.flaws"]
    assert check.state is STATES[requirement]
    assert "CVE-2017-15361" in check.detail
    assert check.found == "IFX 4.33.0.0"
    assert check.remedy


def test_firmware_without_a_flaw():
    """Nothing to say of it, and nothing to do."""
    known = TpmKnowledge(manufacturer="IFX")
    check = by_id(tpm_checks(quote(0x0007_0055 << 32), TpmPolicy(firmware_flaws=REQUIRED), known))
    found = check["tpm-firmware.flaws"]
    assert (found.state, found.detail, found.remedy) == (CheckState.PASSED, "", "")


@pytest.mark.parametrize(
    ("requirement", "state"),
    [(OFF, CheckState.SKIPPED), (WARN, CheckState.SKIPPED), (REQUIRED, CheckState.FAILED)],
)
def test_unknown_is_not_good(requirement, state):
    """Without a certificate nobody says whose versions these are: never passed (rule 17)."""
    policy = TpmPolicy(firmware_flaws=requirement)
    check = by_id(tpm_checks(quote(FLAWED), policy, TpmKnowledge()))["tpm-firmware.flaws"]
    assert check.state is state
    assert "no EK certificate" in check.detail
    assert check.found == "4.33.0.0"


@pytest.mark.parametrize(
    ("before", "now", "good"), [(None, 5, True), (5, 5, True), (5, 6, True), (6, 5, False)]
)
def test_firmware_goes_forward(before, now, good):
    """Older firmware than before may have been put back for a flaw (rule 17)."""
    policy = TpmPolicy(firmware_rollback=REQUIRED)
    known = TpmKnowledge(firmware_before=before)
    check = by_id(tpm_checks(quote(now), policy, known))["tpm-firmware.rollback"]
    assert check.state is (CheckState.PASSED if good else CheckState.FAILED)
    assert check.expected == ("" if before is None else f"{version_text(before)} or newer")
    assert check.found == version_text(now)
    assert bool(check.detail) is not good


@pytest.mark.parametrize(
    ("before", "now", "passed", "then"),
    [(None, 5, False, 5), (6, 5, True, 5), (6, 5, False, 6), (5, 6, False, 6), (5, 6, True, 6)],
)
def test_what_the_next_evidence_must_reach(before, now, passed, then):
    """A host that fails for old firmware goes on failing (rule 17)."""
    known = TpmKnowledge(firmware_before=before)
    assert oldest_acceptable(quote(now), known, passed=passed) == then


def test_versions_are_four_numbers():
    """As vendors write them."""
    assert version_text(0x0007_003E_0000_0C36) == "7.62.0.3126"


# --- the boot ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pcr", [0, 3, 7])
def test_a_register_without_measurements_could_be_anybodys(pcr):
    """No event in a firmware PCR that replays: refused, by its name (rules 34, 40)."""
    emptied = replace(LOG, events=tuple(event for event in LOG.events if event.pcr != pcr))
    checks = by_id(boot_log_checks(SHA256, BankReplay(log=emptied), claimed=True))
    measured = checks["boot-log.sha256.measured"]
    assert (measured.state, measured.pcr) == (CheckState.FAILED, pcr)
    assert measured.found == f"no event in PCR {pcr}"


def test_every_firmware_register_is_measured():
    """The good log: passed, without a register to name."""
    checks = by_id(boot_log_checks(SHA256, BankReplay(log=LOG), claimed=True))
    measured = checks["boot-log.sha256.measured"]
    assert (measured.state, measured.pcr, measured.found) == (CheckState.PASSED, -1, "all")
    whole = checks["boot-log.sha256"]
    assert whole.state is CheckState.PASSED
    assert whole.found == f"{len(LOG.events)} events reproduce {len(LOG.verified_pcrs)} PCRs"


def test_a_bank_that_claims_nothing_is_replayed_all_the_same():
    """An active bank must replay; nothing else is asked of it, and it says so (rule 40, N14)."""
    checks = boot_log_checks(HashAlgorithm.SHA1, VERIFIED.boot[HashAlgorithm.SHA1], claimed=False)
    assert [check.id for check in checks] == ["boot-log.sha1"]
    assert "no claim rests on it" in checks[0].title


def test_a_host_that_resumed_from_disk_passes_the_whole_way():
    """Its file has the boot before as well; baselines are held against the quoted one only (rule 47)."""
    before = good_log(BANKS).event(4, APPLICATION, b"other", hashed=b"other loader").bytes
    for log, boot, state in (
        (before + GOOD.boot_log, 2, CheckState.PASSED),
        (GOOD.boot_log + before, 1, CheckState.WARNING),
    ):
        verdict = judge(replace(GOOD, boot_log=log))
        assert verdict.passed
        groups = {check.id: check for check in verdict.checks}
        check = {each.id: each for each in groups["boot-log"].children}["boot-log.sha256"]
        assert (check.state, f"boot {boot} of the 2" in check.found) == (state, True)
    assert not judge(replace(GOOD, boot_log=before)).passed


def test_a_quote_of_an_earlier_boot_is_a_warning():
    """Of several boots in a file the check says which is quoted; an older one is no clean pass (rule 47)."""
    for boot, state in ((1, CheckState.WARNING), (2, CheckState.PASSED)):
        log = replace(LOG, boot=boot, of_boots=2)
        check = by_id(boot_log_checks(SHA256, BankReplay(log=log), claimed=True))["boot-log.sha256"]
        assert check.state is state
        assert check.found.endswith(f", boot {boot} of the 2 in the file")
    wrong = replace(LOG, boot=1, of_boots=2, defects=(DEFECT,))
    check = by_id(boot_log_checks(SHA256, BankReplay(log=wrong), claimed=True))["boot-log.sha256"]
    assert check.state is CheckState.FAILED


def test_without_a_log_nothing_is_known():
    """No log: the bank fails with its reason, Secure Boot fails, and a register is named (rule 34)."""
    (check,) = boot_log_checks(SHA256, BankReplay(log=None, problem="gone"), claimed=True)
    assert (check.state, check.detail) == (CheckState.FAILED, "gone")
    assert check.remedy
    (secure,) = secure_boot_checks(None, BootPolicy())
    assert (secure.state, secure.pcr) == (CheckState.FAILED, 7)


def test_defects_of_a_log_fail_it_without_a_difference():
    """Registers may replay and the log still hold what no firmware writes (rules 35, 36)."""
    defect = judge(replace(GOOD, boot_log=_with_late_locality())).checks
    assert any(check.id.startswith("boot-log") for check in failures(defect))


def _with_late_locality() -> bytes:
    from support.logbuilder import NO_ACTION, good_log

    builder = good_log()
    return builder.event(0, NO_ACTION, b"StartupLocality\0\x03").bytes


# --- the runtime log -----------------------------------------------------------------------------


def runtime(policy: RuntimePolicy, **progress):
    """The checks of a replay whose progress says something else."""
    fields = {"value": bytes(32), "count": 4, "aggregate": BootAggregate.PCRS_0_9} | progress
    replayed = RuntimeReplay(progress=RuntimeProgress(**fields))
    return by_id(runtime_checks(replayed, policy, None))


@pytest.mark.parametrize("requirement", [OFF, WARN, REQUIRED])
@pytest.mark.parametrize(
    ("check", "key", "progress"),
    [
        ("runtime.entries", "ima", {"defects": 1}),
        ("runtime.boot-aggregate", "boot_aggregate", {"aggregate": BootAggregate.MISSING}),
        ("runtime.boot-aggregate", "boot_aggregate", {"aggregate": BootAggregate.MISMATCH}),
        ("runtime.violations", "violations", {"violations": 1}),
    ],
)
def test_runtime_findings_count_as_the_policy_says(requirement, check, key, progress):
    """Defects, a foreign aggregate and violations: each by its own key (N22, rules 52, 56, 58)."""
    found = runtime(RuntimePolicy(**{key: requirement}), **progress)[check]
    assert found.state is STATES[requirement]
    assert found.pcr == 10


@pytest.mark.parametrize("aggregate", [BootAggregate.PCRS_0_7, BootAggregate.PCRS_0_9])
def test_a_runtime_log_without_findings(aggregate):
    """Old and new kernels tie their log to the boot in two ways (rule 56)."""
    strict = RuntimePolicy(boot_aggregate=REQUIRED, violations=REQUIRED)
    checks = runtime(strict, aggregate=aggregate)
    ours = [check for name, check in checks.items() if name != "runtime.files"]
    assert all(check.state is CheckState.PASSED for check in ours)
    assert checks["runtime.replay"].found == "4 entries"
    assert not checks["runtime.replay"].remedy


def test_a_log_that_is_not_proven_names_its_problem():
    """The words of the replay, and what to do."""
    replayed = replace(VERIFIED.runtime, problem="no prefix")
    check = by_id(runtime_checks(replayed, RuntimePolicy(), None))["runtime.replay"]
    assert (check.state, check.found, check.detail) == (CheckState.FAILED, "no prefix", "no prefix")
    assert check.remedy


# --- the verdict ---------------------------------------------------------------------------------


def verdict(policy=POLICY, baselines=BASELINES, **context):
    """The good evidence under other circumstances."""
    files = judge_runtime(VERIFIED.runtime, RULES, None)
    return appraise(VERIFIED, policy, baselines, replace(CONTEXT, files=files, **context))


def test_a_verdict_that_passed_counts_from_its_challenge():
    """S13: attested until the issue of the challenge and the longest age, no longer."""
    good = verdict()
    assert good.passed
    assert good.attested_until_ms == CONTEXT.issued_at_ms + POLICY.evidence.max_age_ms
    assert good.decided_at_ms == CONTEXT.now_ms
    assert (good.policy, good.policy_sha256, good.policy_epoch) == ("strict", "00", 1)


@pytest.mark.parametrize(
    ("context", "check"),
    [({"revoked": True}, "revocation"), ({"taken_back": "the CA was revoked"}, "endorsement")],
)
def test_trust_that_was_taken_away(context, check):
    """S1: no evidence gives it back; such a verdict ends at once, with a remedy."""
    bad = verdict(**context)
    assert not bad.passed
    assert bad.attested_until_ms == CONTEXT.now_ms
    (failed,) = failures(bad.checks)
    assert failed.id == check
    assert failed.remedy


def test_no_baseline_is_no_approval():
    """Required: failed; only warned of: a warning; off: skipped, and the others still count."""
    for requirement, state in STATES.items():
        policy = replace(POLICY, boot=replace(POLICY.boot, baseline=requirement))
        group = by_id(verdict(policy, ()).checks)["baseline"]
        assert group.state is state
        assert verdict(policy, ()).passed is (requirement is not REQUIRED)
        assert verdict(policy, ()).baseline == ""


def test_another_boot_under_a_policy_that_only_warns():
    """Warned of: every failed check of the baseline is a warning, down to the last (rule 37)."""
    digest = "ee" * 32
    changed = tuple(_with_first_digest(each, digest) for each in BASELINES)
    policy = replace(POLICY, boot=replace(POLICY.boot, baseline=WARN))
    assert not verdict(POLICY, changed).passed
    softened = verdict(policy, changed)
    assert softened.passed
    group = by_id(softened.checks)["baseline"]
    assert group.state is CheckState.WARNING
    assert not failures(group.children)


def _with_first_digest(baseline, digest):
    pcrs = {}
    for pcr, runs in baseline.pcrs.items():
        pcrs[pcr] = tuple(
            replace(run, events=(replace(run.events[0], digest=digest), *run.events[1:]))
            for run in runs
        )
    return replace(baseline, pcrs=pcrs)


def test_a_clock_that_is_not_safe_is_a_warning():
    """N18: a power cut without shutdown is told, and is no failure by itself."""
    clock = replace(VERIFIED.quote.clock_info, safe=False)
    unsafe = replace(VERIFIED, quote=replace(VERIFIED.quote, clock_info=clock))
    files = judge_runtime(VERIFIED.runtime, RULES, None)
    found = appraise(unsafe, POLICY, BASELINES, replace(CONTEXT, files=files))
    assert found.passed
    check = by_id(by_id(found.checks)["quote"].children)["quote.clock-safe"]
    assert (check.state, check.found) == (CheckState.WARNING, "not safe")
    assert check.detail


# --- bundles -------------------------------------------------------------------------------------


def test_a_bundle_must_show_what_the_policy_asks():
    """A policy that asks for a PCR that the bundle's quote leaves out refuses it (rule 4)."""
    bundle = good_bundle()
    text = bundle.parts["policy.toml"].decode()
    asks = text + "[evidence]\npcrs = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14, 22]\n"
    with pytest.raises(PcrSelectionRejected):
        judged(replace(bundle, parts={**bundle.parts, "policy.toml": asks.encode()}))


@pytest.mark.parametrize("position", ["", "00" * 15, "00" * 17])
def test_a_position_has_sixteen_bytes(position):
    """resetCount, restartCount and clock, or it is none (rule 16)."""
    bundle = good_bundle()
    with pytest.raises(MalformedEvidence, match="no position of a TPM"):
        judged(replace(bundle, manifest={**bundle.manifest, "tpm_position_before": position}))


# --- what a verdict says -------------------------------------------------------------------------


def test_claims_rest_on_the_bank_of_the_policy_alone():
    """Both banks replay; only the claimed one is asked whether firmware measured at all (rule 40)."""
    group = by_id(verdict().checks)["boot-log"]
    ids = {check.id for check in group.children}
    assert {"boot-log.sha1", "boot-log.sha256", "boot-log.sha256.measured"} <= ids
    assert "boot-log.sha1.measured" not in ids
    titles = {check.id: check.title for check in group.children}
    assert "no claim rests on it" in titles["boot-log.sha1"]
    assert "no claim rests on it" not in titles["boot-log.sha256"]


def secure_boot(log, policy=POLICY.boot):
    """What is said of Secure Boot, of a log that a TPM would prove."""
    found = by_id(secure_boot_checks(log, policy))["secure-boot.enforced"]
    return found.state, found.found, found.detail, bool(found.remedy)


def without(*kinds: int):
    """The good log without events of these types in PCR 7."""
    kept = tuple(e for e in LOG.events if not (e.pcr == 7 and int(e.type) in kinds))
    return replace(LOG, events=kept)


def test_secure_boot_in_words():
    """On, on but unproven, off and unknown are four answers, and only one of them passes (rules 41, 42)."""
    assert secure_boot(LOG) == (CheckState.PASSED, "on", "", False)
    unproven = "on, but not proven in force"
    assert secure_boot(without(AUTHORITY))[:2] == (CheckState.FAILED, unproven)
    assert secure_boot(without(AUTHORITY, DRIVER_CONFIG))[1:] == (
        "unknown",
        "Secure Boot is unknown",
        True,
    )
    off = proven(decode_boot_log(switched_off()))
    assert secure_boot(off) == (CheckState.FAILED, "off", "Secure Boot is off", True)


def switched_off() -> bytes:
    """The log of a machine whose firmware says that Secure Boot is off."""
    builder = LogBuilder().policy(b"\0").separators((7,))
    return builder.separators().bytes


# --- what the authority remembers of runtime files ------------------------------------------------


def test_a_log_that_is_not_proven_takes_no_judgement_back():
    """Rule 54: what was refused stays refused when the next log proves nothing."""
    before = judge_runtime(VERIFIED.runtime, RULES, None)
    assert before is not None
    refused = replace(before, refused=1)
    unproven = replace(VERIFIED.runtime, problem="no prefix")
    assert judge_runtime(unproven, RULES, refused) is refused


@pytest.mark.parametrize("count", [MAX_FINDINGS - 1, MAX_FINDINGS])
def test_a_full_list_of_defects_approves_nothing_behind_it(count):
    """Rule 58: the list is cut at its limit, so at the limit nothing after the last of it counts."""
    path, content = b"/usr/bin/ssh", b"ssh"
    log = b"".join(ima_record(ng_data(path, content)) for _ in range(MAX_FINDINGS + 1))
    entries = tuple(decode_ima_binary(log))
    replayed = RuntimeReplay(
        progress=VERIFIED.runtime.progress,
        rules=RULES.sha256,
        entries=entries,
        defective=frozenset(range(count)),
    )
    found = judge_runtime(replayed, RULES, None)
    assert found is not None
    assert found.by_digest == (len(entries) - count if count < MAX_FINDINGS else 0)
    assert found.refused == len(entries) - found.by_digest
