"""A bundle's parts may say anything: judging it again ends in a verdict or a refusal, never in a crash."""

import json
from dataclasses import replace

import pytest
from support.bundle_parts import PARTS, good_bundle, judged, with_part
from support.small_bundle import GOOD

from trustauthority.codec.policy import decode_policy
from trustauthority.errors import InvalidRequest, MalformedEvidence, PolicyInvalid

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
