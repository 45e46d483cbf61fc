"""Every quote vector and every quote of the corpus gets the verdict that is right for it."""

import json
from pathlib import Path

import cyclopts
import pytest
from support.corpus import quote_cases
from support.quote_vectors import QuoteVector, quote_vectors

from trustauthority.cli import evidence_quote
from trustauthority.codec.tpm import decode_public
from trustauthority.errors import EvidenceRejected, MalformedEvidence
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.tpm import PcrSelection
from trustauthority.verification.quote import QuoteExpectation, verify_quote

FOLDER = Path(__file__).resolve().parents[2] / "vectors" / "quotes"
VECTORS = quote_vectors()
EXIT_CODES = {"genuine": 0, "refused": 1, "malformed": 2}


@pytest.fixture
def run(capsys):
    """Runs ``ta evidence quote`` and gives its exit status and JSON document."""
    app = cyclopts.App(name="evidence")
    evidence_quote.register(app)

    def call(*arguments: str):
        status = app(
            ["quote", "-o", "json", *arguments], exit_on_error=False, result_action="return_value"
        )
        return status, json.loads(capsys.readouterr().out)

    return call


def test_vectors_are_what_the_script_makes():
    """Rebuilding changes nothing: each file is its name and nothing else."""
    index = json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))
    assert index == [vector.entry() for vector in VECTORS]
    for vector in VECTORS:
        for name, content in vector.files().items():
            assert (FOLDER / vector.name / name).read_bytes() == content, (vector.name, name)


def test_vectors_have_distinct_names_and_folders():
    """No vector hides another, and no folder is left over."""
    folders = {path.name for path in FOLDER.iterdir() if path.is_dir()}
    assert folders == {vector.name for vector in VECTORS}
    assert len(folders) == len(VECTORS)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_tool_judges_the_vector(vector: QuoteVector, run):
    """The offline tool says genuine, refused or malformed, with the reason code (N12-N15)."""
    folder = FOLDER / vector.name
    status, document = run(
        *("--attest", str(folder / "attest.bin"), "--signature", str(folder / "sig.tpmt")),
        *("--ak", str(folder / "ak.tpmt"), "--pcrs", str(folder / "pcrs.json")),
        *("--nonce", vector.nonce.hex(), *(("--allow", "sha1") if vector.allow_sha1 else ())),
    )
    assert (document["result"], document["reason"]) == (vector.expect, vector.reason)
    assert status == EXIT_CODES[vector.expect]
    for words in vector.findings:
        assert any(words in finding for finding in document["findings"])
    if vector.expect == "malformed":
        assert document["part"].startswith("TPM")
        assert document["offset"] >= 0


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_core_judges_the_vector(vector: QuoteVector):
    """``verify_quote`` refuses what the tool refuses, for the same reason (N12-N15, pitfalls 1-16)."""

    def judge():
        shown = {
            HashAlgorithm(bank): {int(index): bytes.fromhex(v) for index, v in values.items()}
            for bank, values in vector.pcrs.items()
        }
        return verify_quote(
            attest=vector.attest,
            signature=vector.signature,
            pcr_values=b"".join(v for bank in shown.values() for v in bank.values()),
            expectation=QuoteExpectation(
                attestation_key=decode_public(vector.key),
                qualified_name=None,
                qualifying_data=vector.nonce,
                selection=tuple(
                    PcrSelection(bank=bank, indices=tuple(values)) for bank, values in shown.items()
                ),
                last_clock=None,
                allow_sha1=vector.allow_sha1,
            ),
        )

    if vector.expect == "genuine":
        verified = judge()
        assert {str(bank) for bank in verified.pcrs} == set(vector.pcrs)
        return
    with pytest.raises((EvidenceRejected, MalformedEvidence)) as caught:
        judge()
    assert caught.value.reason == vector.reason


def _expected(case: Path) -> tuple[str, dict]:
    meta = json.loads((case / "meta.json").read_text(encoding="utf-8"))
    text = meta["expect"].lower()
    refused = text.startswith(("refuse", "must be refused")) or "must be refused as a quote" in text
    return ("refused" if refused else "genuine"), meta


@pytest.mark.parametrize("case", quote_cases(), ids=lambda case: case.name)
def test_tool_judges_the_corpus(case: Path, run):
    """Real quotes are accepted and every forgery is refused (corpus/quotes, corpus/negative)."""
    expected, meta = _expected(case)
    key = case / "ak.pem"
    if not key.exists():
        # This machine's AK is unknown; that it selects nothing is refused before any key matters.
        status, document = run(
            *("--attest", str(case / "attest.bin"), "--signature", str(case / "sig.tpmt")),
            *("--ak", str(FOLDER / "good_ecdsa_p256" / "ak.tpmt")),
        )
        assert status == 1
        return
    arguments = ["--attest", case / "attest.bin", "--signature", case / "sig.tpmt", "--ak", key]
    if (case / "pcrs.json").exists():
        arguments += ["--pcrs", case / "pcrs.json"]
    if meta.get("nonce") is not None:
        arguments += ["--nonce", meta["nonce"]]
    windows = case.name.startswith(("goattest_windows", "webauthn"))
    arguments += ["--allow", "sha1"] if windows else []

    status, document = run(*map(str, arguments))

    assert (status == 0) == (expected == "genuine"), document["message"]
    assert (document["reason"] is None) == (expected == "genuine")
    if meta["expect"] == "flag":
        assert any("safe is NO" in finding for finding in document["findings"])
    if case.name.startswith(("goattest_windows_gcp_creation", "webauthn", "05_", "07_")):
        assert document["reason"] == "NOT_A_QUOTE"


SHA1_CASES = [
    case for case in quote_cases() if case.name in {"goattest_windows_gcp", "17_sha1_signature"}
]


@pytest.mark.parametrize("case", SHA1_CASES, ids=lambda case: case.name)
def test_real_sha1_quotes_need_the_named_policy(case: Path, run):
    """What Windows AKs sign with SHA-1 is refused unless SHA-1 is allowed (pitfall 12)."""
    arguments = ("--attest", str(case / "attest.bin"), "--signature", str(case / "sig.tpmt"))
    arguments += ("--ak", str(case / "ak.pem"))

    assert run(*arguments)[1]["reason"] == "QUOTE_SIGNATURE_INVALID"
    assert run(*arguments, "--allow", "sha1")[0] == 0
