"""The whole corpus of real data through the command line: the expected answers, in the published form.

Other tests judge the same files through the core; this one is what an outsider sees (issue 3, offline tools).
"""

import json
from collections import Counter
from pathlib import Path

import pytest
from support.corpus import corpus_folder
from support.json_schema import violations

from trustauthority.cli.evidence import evidence_app

ROOT = Path(__file__).resolve().parents[3]
SHA1_BY_POLICY = {"goattest_windows_gcp"}
"""Accepted only where a policy names SHA-1 (rule 12)."""
CA_SUFFIXES = {".cer", ".crt", ".der", ".pem"}
EDITED = "tpm2-tss__test__data__fapi__eventlog__sml-ima-"
"""Logs that somebody's editor ended with a line feed or cut: no kernel wrote them."""


def run(capsys, command: str, *words: object) -> tuple[int, list[dict]]:
    """Exit status and answers, each of which fits its schema."""
    status = evidence_app([command, *map(str, words), "-o", "json"])
    printed = json.loads(capsys.readouterr().out)
    name = f"evidence-{command}.schema.json"
    schema = json.loads((ROOT / "docs" / "reference" / name).read_text("utf-8"))
    assert violations(printed, schema, schema) == []
    return status, printed if isinstance(printed, list) else [printed]


def test_boot_logs(capsys):
    """Every register of every bank, the number of events and SecureBoot (rules 34-47)."""
    corpus = corpus_folder("eventlogs").parent
    expected = json.loads((corpus / "expected_eventlogs.json").read_text())
    status, answers = run(capsys, "eventlog", "--events", *(corpus / name for name in expected))
    assert status == 0
    for answer, wanted in zip(answers, expected.values(), strict=True):
        assert answer["events"] == wanted["events"], answer["file"]
        for bank, registers in wanted["pcrs"].items():
            assert answer["pcrs"][bank] == registers, (answer["file"], bank)
        said = wanted["secureboot"]
        enabled = {"00": False, "01": True}.get(said[0]) if said else None
        assert answer["secureBoot"]["enabled"] is enabled, answer["file"]


def test_runtime_logs(capsys):
    """Entries, violations and PCR 10 where a replay is known; an answer for every file (rules 51-53)."""
    corpus = corpus_folder("ima").parent
    expected = json.loads((corpus / "expected_ima.json").read_text())
    files = sorted((corpus / "ima").iterdir())
    _, answers = run(capsys, "ima", *files)
    for file, answer in zip(files, answers, strict=True):
        wanted = expected.get(f"ima/{file.name}")
        if wanted is not None:
            assert answer["result"] == "accepted"
            assert (answer["entries"], answer["violations"]) == (
                wanted["entries"],
                wanted["violations"],
            )
            assert wanted["pcr10"].items() <= answer["pcr10"].items()
        elif file.name.endswith("unknown"):
            assert answer["reason"] == "TEMPLATE_OR_HASH_UNKNOWN"
        else:
            assert answer["result"] == "accepted" or file.name.startswith(EDITED)


def quote_words(case: Path, nonce: object) -> list[object]:
    """Options for one folder of the corpus."""
    words: list[object] = ["--attest", case / "attest.bin", "--signature", case / "sig.tpmt"]
    keys = ("ak.tpmt_public", "ak.tpm2b_public", "ak.pem")
    words += ["--ak", next((case / key for key in keys if (case / key).exists()), case / "ak.pem")]
    for option, name in (("--pcrs", "pcrs.json"), ("--eventlog", "eventlog.bin")):
        if (case / name).exists():
            words += [option, case / name]
    return words if nonce is None else [*words, "--nonce", nonce]


@pytest.mark.parametrize("folder", ["quotes", "negative"])
def test_quotes(folder, capsys):
    """Genuine quotes of chips and clouds pass, everything else is refused (rules 1-18)."""
    path = corpus_folder(folder)
    outcomes: Counter[int] = Counter()
    for case in json.loads((path / "index.json").read_text()):
        name, words = case["name"], quote_words(path / case["name"], case.get("nonce"))
        status, (answer,) = run(capsys, "quote", *words)
        refused = "refuse" in case["expect"].lower() or name in SHA1_BY_POLICY
        without_key = not any((path / name).glob("ak.*"))
        outcomes[status] += 1
        assert (status != 0) == (refused or without_key), (name, answer["message"])
        if name in SHA1_BY_POLICY:
            assert run(capsys, "quote", *words, "--allow", "sha1")[0] == 0
        if case["expect"] == "flag":
            assert any("safe is NO" in finding for finding in answer["findings"])
    assert outcomes[0] >= 5
    assert outcomes[1] >= 3


def test_certificates_and_vendor_authorities(capsys):
    """Each certificate has an answer; nearly all vendor CAs chain to a root (rules 24-28)."""
    corpus = corpus_folder("certs").parent
    pool = corpus / "ca-pool"
    anchors = ("--anchors", pool / "roots.pem", "--intermediates", pool)
    leaves = sorted((corpus / "certs").glob("*.der"))
    status, answers = run(capsys, "endorsement", *leaves, *anchors)
    assert status == 1
    assert Counter(answer["result"] for answer in answers).keys() == {"genuine", "refused"}
    authorities = sorted(file for file in pool.iterdir() if file.suffix in CA_SUFFIXES - {".pem"})
    relaxed = ("--allow", "expired-ca", "--allow", "sha1")
    _, answers = run(capsys, "endorsement", *authorities, *anchors, *relaxed)
    found = Counter((answer["result"], answer["rule"]) for answer in answers)
    assert found.keys() == {("genuine", None), ("refused", "issuer-unknown")}
    assert found["genuine", None] > 10 * found["refused", "issuer-unknown"]
