"""A bundle's parts may say anything: judging it again ends in a verdict or a refusal, never in a crash."""

import hashlib
import json
from dataclasses import replace

import pytest
from support.bundle_parts import (
    DOCUMENT,
    ENDORSEMENT,
    PARTS,
    TLS_AREA,
    good_bundle,
    judged,
    with_part,
)
from support.logbuilder import good_log, userspace_record
from support.small_bundle import BANKS, GOOD, KEY, NONCE, POLICY, RULES
from support.tpm_structures import make_quote, name_of, qualified

from hostagent.collect import qualifying_data
from trustauthority.appraisal.rejudge import Grounds, judge_bundle
from trustauthority.codec.policy import decode_policy
from trustauthority.errors import (
    InvalidRequest,
    LogRejected,
    MalformedEvidence,
    PcrSelectionRejected,
    PolicyInvalid,
    TpmClockRolledBack,
)
from trustauthority.model.verdict import CheckState

KNOWN = json.loads(good_bundle().parts["runtime-before.json"])
NAMED = {"number": 1, "path": "/x", "digest": "sha256:00", "why": "unknown"}


def exchanged(part: str, content: bytes):
    """The verdict with one part exchanged."""
    return with_part(bytes((PARTS.index(part),)) + content).verdict


def test_the_good_bundle_passes():
    """What the refusals below are measured against (rule 67)."""
    assert judged(good_bundle()).verdict.passed


@pytest.mark.parametrize("depth", [b"[" * 100_000, b'{"progress":' * 50_000])
@pytest.mark.parametrize("part", ["runtime-before.json", "baselines.json"])
def test_deep_documents_are_malformed(part, depth):
    """Nesting that no parser follows is malformed, with the part's name (rules 45, 65)."""
    with pytest.raises(MalformedEvidence) as caught:
        exchanged(part, depth)
    assert caught.value.part == part


@pytest.mark.parametrize("value", ["1", None, -1, 1.0, True, [], "digits"])
@pytest.mark.parametrize("name", ["count", "offset", "violations", "defects"])
def test_a_count_is_a_count(name, value):
    """A number below zero would cancel what a later delta counts; other types would crash it (N04)."""
    text = json.dumps(KNOWN | {"progress": KNOWN["progress"] | {name: value}})
    text = text.replace('"digits"', "9" * 5000)
    with pytest.raises(MalformedEvidence):
        exchanged("runtime-before.json", text.encode())


@pytest.mark.parametrize("value", ["1", None, -1, 1.5, [], {}])
@pytest.mark.parametrize("name", ["by_digest", "by_signature", "excluded", "violations", "refused"])
def test_a_count_of_files_is_a_count(name, value):
    """The same of what was judged of the files."""
    changed = KNOWN | {"files": KNOWN["files"] | {name: value}}
    with pytest.raises(MalformedEvidence):
        exchanged("runtime-before.json", json.dumps(changed).encode())


@pytest.mark.parametrize(
    "named",
    [5, ["a"], [{}], [NAMED | {"number": -1}], [NAMED | {"path": 5}], [NAMED | {"more": 1}]],
)
def test_named_entries_are_entries(named):
    """What is shown of a refused file has the types that are shown."""
    changed = KNOWN | {"files": KNOWN["files"] | {"named": named}}
    with pytest.raises(MalformedEvidence):
        exchanged("runtime-before.json", json.dumps(changed).encode())


def test_refused_files_stay_refused():
    """What the authority refused before counts in the verdict on the delta (rule 55)."""
    files = KNOWN["files"] | {"refused": 1, "named": [NAMED]}
    assert not exchanged(
        "runtime-before.json", json.dumps(KNOWN | {"files": files}).encode()
    ).passed


@pytest.mark.parametrize("value", [None, 5, [], {}, [{}]])
@pytest.mark.parametrize("name", ["name", "cluster", "host_class", "bank", "component"])
def test_names_of_baselines_are_texts(name, value):
    """A baseline whose name is no text is none (rule 65)."""
    documents = json.loads(good_bundle().parts["baselines.json"])
    documents[0][name] = value
    with pytest.raises(MalformedEvidence):
        exchanged("baselines.json", json.dumps(documents).encode())


@pytest.mark.parametrize("version", [None, 0, 1, 3, "2", [2]])
def test_a_baseline_of_another_version_is_none(version):
    """What another version would mean by a field nobody here knows (rule 65)."""
    documents = json.loads(good_bundle().parts["baselines.json"])
    documents[0]["version"] = version
    if version is None:
        del documents[0]["version"]
    with pytest.raises(MalformedEvidence):
        exchanged("baselines.json", json.dumps(documents).encode())


@pytest.mark.parametrize(
    ("log", "good"),
    [
        (b"garbage", False),
        (userspace_record("phase", pcr=14), True),
        (userspace_record("phase", pcr=11), True),
    ],
)
def test_a_log_of_user_space_in_a_bundle_is_replayed(log, good):
    """Rule 49: one that can't be read fails the boot log; one that is ahead of the quote adds nothing."""
    bundle = good_bundle()
    verdict = judged(replace(bundle, parts={**bundle.parts, "userspace.log": log})).verdict
    assert checks_of(verdict)["boot-log"].state is (
        CheckState.PASSED if good else CheckState.FAILED
    )


@pytest.mark.parametrize(
    "document",
    [
        "a = " + "[" * 100_000,
        "a = " + "{a = " * 50_000,
        'name = "x"\n[evidence]\nmax_age_ms = ' + "9" * 5000,
        "\udc80",
        "x" * (256 * 1024 + 1),
    ],
    ids=["deep list", "deep table", "5,000 digits", "surrogate", "long"],
)
def test_a_policy_that_no_reader_survives_is_invalid(document):
    """TOML may nest and count beyond what its reader does: refused in terms of ours (rule 65)."""
    with pytest.raises(PolicyInvalid):
        decode_policy(document)


@pytest.mark.parametrize("files", [None, KNOWN["files"] | {"rules": "00" * 32}])
def test_a_log_whose_first_part_these_rules_never_saw(files):
    """Evidence that continues a log can't be judged by other rules than its beginning was (rule 55)."""
    with pytest.raises(InvalidRequest, match="never saw"):
        exchanged("runtime-before.json", json.dumps(KNOWN | {"files": files}).encode())


def test_evidence_of_a_first_log_needs_no_word_of_the_authority():
    """From its beginning the log speaks for itself: nothing known is asked for, and it passes."""
    bundle = good_bundle()
    parts = {name: body for name, body in bundle.parts.items() if name != "runtime-before.json"}
    with pytest.raises(MalformedEvidence, match=r"no runtime-before\.json"):
        judged(replace(bundle, parts=parts))
    manifest = {
        key: value
        for key, value in bundle.manifest.items()
        if key not in {"ima_offset", "tpm_position_before"}
    }
    parts["ima.log"] = GOOD.ima_log
    whole = judged(replace(bundle, parts=parts, manifest=manifest))
    assert whole.verdict.passed
    assert whole.own_policy
    assert whole.own_baselines


# --- what the authority's word in the manifest does, and what it does not ------------------------


def with_manifest(**fields):
    """The good bundle, of which the authority said something else."""
    bundle = good_bundle()
    return replace(bundle, manifest={**bundle.manifest, **fields})


def with_policy(bundle, text: str):
    """A bundle judged by the good policy with more in it."""
    document = bundle.parts["policy.toml"] + text.encode()
    return judged(replace(bundle, parts={**bundle.parts, "policy.toml": document})).verdict


def checks_of(verdict):
    """Every check by its id."""
    found = {}
    waiting = [*verdict.checks]
    for check in waiting:
        found[check.id] = check
        waiting.extend(check.children)
    return found


def test_a_bundle_claims_nothing_of_enrolment():
    """Rule 67: what only enrolment proves is skipped with a reason, never passed."""
    found = checks_of(judged(good_bundle()).verdict)
    for name, reason in (
        ("endorsement", "ta evidence endorsement judges the EK certificate"),
        ("residency", "proven at enrolment, by the TPM's own answer to a challenge"),
    ):
        check = found[name]
        assert (check.state, check.found) == (CheckState.SKIPPED, "")
        assert check.detail == f"a bundle can't show it: {reason}"
        assert not check.children
    assert found["quote"].state is CheckState.PASSED


def test_a_verdict_on_a_bundle_names_host_policy_and_time():
    """The labels are the authority's; the policy is named by the hash of the bytes that were used."""
    verdict = judged(good_bundle()).verdict
    assert (verdict.host_id, verdict.cluster) == ("h-1", "prod")
    assert verdict.policy_sha256 == hashlib.sha256(DOCUMENT.encode()).hexdigest()
    assert verdict.policy_epoch == 0
    assert verdict.decided_at_ms == 1_000
    assert verdict.attested_until_ms > 1_000


@pytest.mark.parametrize("left_out", [0, 10, 14])
def test_banks_that_quote_different_registers_are_refused(left_out):
    """Rule 4: a register that one of the banks leaves out is not covered there, whatever the other says."""
    bundle = good_bundle()
    log, ek = good_log(BANKS), bundle.parts["ek.public"]
    banks = {
        bank: {
            pcr: log.registers[bank].get(pcr, bytes(size))
            for pcr in POLICY.evidence.pcrs
            if pcr != left_out or bank == "sha256"
        }
        for bank, size in (("sha1", 20), ("sha256", 32))
    }
    quote = make_quote(
        KEY,
        pcrs=banks,
        extra_data=qualifying_data(NONCE, name_of(TLS_AREA)),
        signer=qualified(qualified(ENDORSEMENT, name_of(ek)), name_of(KEY.public)),
        clock=(1_010, 5, 2, 1),
    )
    parts = {
        "quote.attest": quote.attest,
        "quote.signature": quote.signature,
        "pcr-values.bin": quote.pcr_values,
    }
    with pytest.raises(PcrSelectionRejected, match="the same ones in each of its banks"):
        judged(replace(bundle, parts={**bundle.parts, **parts}))


@pytest.mark.parametrize("labels", [None, [], "host", {"host_id": 5, "cluster": None}])
def test_labels_that_are_no_texts_name_nobody(labels):
    """Labels are for people: whatever they hold, they decide nothing (rule 65)."""
    verdict = judged(with_manifest(labels=labels)).verdict
    assert (verdict.host_id, verdict.cluster, verdict.passed) == ("", "", True)


def test_a_class_that_nobody_says_is_none():
    """A policy that asks for a class fails a bundle whose authority named none, and one of another class."""
    asks = '[boot]\nhost_class = "required"\n'
    labels = good_bundle().manifest["labels"]
    documents = json.loads(good_bundle().parts["baselines.json"])
    of_class = json.dumps([each | {"host_class": "r650"} for each in documents]).encode()
    for host_class, good in (("r650", True), ("edge", False), (None, False)):
        named = {} if host_class is None else {"host_class": host_class}
        bundle = with_manifest(labels=labels | named)
        bundle = replace(bundle, parts={**bundle.parts, "baselines.json": of_class})
        assert with_policy(bundle, asks).passed is good


@pytest.mark.parametrize("manufacturer", [None, 5, ["IBM"], ""])
def test_a_manufacturer_that_nobody_names_is_unknown(manufacturer):
    """Rule 17: whose versions these are nobody says; a policy that asks is not met."""
    asks = '[tpm]\nfirmware_flaws = "required"\n'
    assert with_policy(good_bundle(), asks).passed
    verdict = with_policy(with_manifest(tpm_manufacturer=manufacturer), asks)
    assert checks_of(verdict)["tpm-firmware.flaws"].state is CheckState.FAILED


def test_firmware_that_went_back_is_seen_in_a_bundle_too():
    """Rule 17: older than the authority saw before; the good bundle's TPM has 0x2024_0000_0001."""
    asks = '[tpm]\nfirmware_rollback = "required"\n'
    for before, good in (("0000202400000001", True), ("0000202400000002", False), ("", True)):
        verdict = with_policy(with_manifest(tpm_firmware_before=before), asks)
        assert verdict.passed is good, before
        check = checks_of(verdict)["tpm-firmware.rollback"]
        assert check.state is (CheckState.PASSED if good else CheckState.FAILED)


@pytest.mark.parametrize(
    ("field", "step"), [(slice(0, 4), 1), (slice(4, 8), 1), (slice(8, 16), 10)]
)
def test_evidence_that_is_not_newer_than_before_is_refused(field, step):
    """Rule 16: resetCount, restartCount and clock each; the authority's word places the quote in time."""
    position = bytearray.fromhex(good_bundle().manifest["tpm_position_before"])
    value = int.from_bytes(position[field], "big") + step
    position[field] = value.to_bytes(field.stop - field.start, "big")
    with pytest.raises(TpmClockRolledBack):
        judged(with_manifest(tpm_position_before=position.hex()))


def test_a_bundle_without_boot_log_shows_no_boot():
    """Rule 34: a part that is left out is a log that the host did not send, and it is said."""
    bundle = good_bundle()
    parts = {name: part for name, part in bundle.parts.items() if name != "boot.log"}
    found = checks_of(judged(replace(bundle, parts=parts)).verdict)
    assert found["boot-log.sha256"].detail == "the host sent no boot log"
    parts = {name: part for name, part in bundle.parts.items() if name != "ima.log"}
    assert judged(replace(bundle, parts=parts)).verdict.passed


def test_what_was_judged_of_another_boot_counts_for_nothing():
    """Rule 55: after a reset a log begins anew; one that goes on with the boot before is refused."""
    position = bytearray.fromhex(good_bundle().manifest["tpm_position_before"])
    position[:4] = (int.from_bytes(position[:4], "big") - 1).to_bytes(4, "big")
    with pytest.raises(LogRejected, match="continues at byte 0"):
        judged(with_manifest(tpm_position_before=position.hex()))


def test_a_whole_log_of_the_same_boot_needs_no_word_of_the_authority():
    """A host may send its log from the first entry again: it is read from there (rule 55)."""
    bundle = good_bundle()
    manifest = {key: value for key, value in bundle.manifest.items() if key != "ima_offset"}
    parts = {**bundle.parts, "ima.log": GOOD.ima_log}
    assert judged(replace(bundle, manifest=manifest, parts=parts)).verdict.passed


def test_grounds_that_are_given_count_instead_of_the_bundles_own():
    """``Judged`` says whose policy and baselines the verdict rests on (rule 67)."""
    bundle = good_bundle()
    given = Grounds(policy=DOCUMENT.encode(), baselines=(), rules=RULES)
    found = judge_bundle(bundle, given, 1_000)
    assert (found.own_policy, found.own_baselines) == (False, False)
    assert not found.verdict.passed
    without = {name: part for name, part in bundle.parts.items() if name != "policy.toml"}
    with pytest.raises(InvalidRequest, match="holds no policy"):
        judged(replace(bundle, parts=without))
    with pytest.raises(PolicyInvalid, match=RULES.sha256):
        judge_bundle(bundle, Grounds(), 1_000)
    without = {name: part for name, part in bundle.parts.items() if name != "baselines.json"}
    verdict = judged(replace(bundle, parts=without)).verdict
    assert not verdict.passed
    assert checks_of(verdict)["baseline.exists"].detail == "no baseline is approved in this cluster"
