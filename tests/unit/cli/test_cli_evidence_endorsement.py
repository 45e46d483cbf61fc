"""``ta evidence endorsement``: a stable answer for people and machines, never a traceback."""

import json
from pathlib import Path

import cyclopts
import pytest
from support import ek_certificates as make

from trustauthority.cli import certificate_files
from trustauthority.cli.evidence_endorsement import register
from trustauthority.errors import InvalidRequest

ROOT = Path(__file__).resolve().parents[3]
VECTORS = ROOT / "tests" / "vectors" / "ekcerts"
SCHEMA = json.loads((ROOT / "docs" / "reference" / "evidence-endorsement.schema.json").read_text())
CHAIN = (
    "--anchors",
    str(VECTORS / "root.pem"),
    "--intermediates",
    str(VECTORS / "intermediate.pem"),
    "--at",
    "2026-06-01T00:00:00Z",
)


def _run(*arguments: str) -> int:
    app = cyclopts.App(name="evidence")
    register(app)
    code = app(["endorsement", *arguments], result_action="return_value")
    assert isinstance(code, int)
    return code


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, object]:
    code = _run(*arguments, "-o", "json")
    return code, json.loads(capsys.readouterr().out)


def test_one_genuine_file_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    """Issue 3: exit 0, with role, TPM, chain and anchor."""
    code, document = _json(capsys, str(VECTORS / "good-rsa.der"), *CHAIN)
    assert code == 0
    assert isinstance(document, dict)
    assert set(document) == set(SCHEMA["$defs"]["judgement"]["required"])
    assert (document["result"], document["role"], document["reason"]) == ("genuine", "ek", None)
    assert document["tpm"]["manufacturerName"] == "IFX"
    assert [link["subject"] for link in document["chain"]][1:] == [
        "CN=Vector TPM EK CA 001",
        "CN=Vector TPM Root CA",
    ]


def test_several_files_are_one_list_and_the_worst_is_the_exit_status(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Issue 3: many files in one process; refused is 1, malformed is 2."""
    good, refused, cut = (
        str(VECTORS / name) for name in ("good.pem", "expired.der", "truncated.bin")
    )
    code, documents = _json(capsys, good, refused, *CHAIN)
    assert isinstance(documents, list)
    assert (code, [one["result"] for one in documents]) == (1, ["genuine", "refused"])
    assert (documents[1]["reason"], documents[1]["rule"]) == ("ENDORSEMENT_REJECTED", "expired")
    code, documents = _json(capsys, good, refused, cut, "/nonexistent", *CHAIN)
    assert isinstance(documents, list)
    assert code == 2
    assert (documents[2]["part"], documents[2]["offset"]) == ("certificate", 0)
    assert documents[3]["reason"] == "INVALID_REQUEST"
    properties = set(SCHEMA["$defs"]["judgement"]["properties"])
    assert all(set(one) <= properties for one in documents)


@pytest.mark.parametrize(
    "name", sorted(one.name for one in VECTORS.iterdir() if one.suffix in {".der", ".bin", ".pem"})
)
def test_every_vector_gets_an_answer_for_people(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Never a traceback: a word, and why when it is not genuine."""
    code = _run(str(VECTORS / name), *CHAIN)
    output = capsys.readouterr().out
    assert output.split()[0] == ("genuine", "refused", "malformed")[code]
    assert ("why" in output) == (code != 0)


def test_folders_are_read_and_what_is_skipped_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A vendor's folder holds more than CAs; skipping leads to less trust, never to more."""
    below = tmp_path / "vendor" / "RootCA"
    below.mkdir(parents=True)
    (below / "root.cer").write_bytes(make.root())
    (below / "ca.cer").write_bytes(make.intermediate())
    (tmp_path / "README").write_text("hello")
    (tmp_path / "ek.der").write_bytes(make.endorsement())
    code = _run(str(VECTORS / "good-rsa.der"), "--anchors", str(tmp_path))
    captured = capsys.readouterr()
    assert code == 0
    assert "README: skipped" in captured.err
    assert "ek.der: skipped, not a CA certificate" in captured.err


def test_grounds_that_can_not_be_read_are_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A named file must decode; a CRL is never skipped, as it would be a revocation missed."""
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\n")
    good = str(VECTORS / "good-rsa.der")
    cases = (
        (good, "--anchors", str(broken)),
        (good, "--anchors", str(tmp_path / "nothing")),
        (good, "--anchors", str(VECTORS / "good.pem")),
        (good, *CHAIN, "--crl", str(tmp_path)),
        CHAIN,
    )
    for arguments in cases:
        code, document = _json(capsys, *arguments)
        assert isinstance(document, dict)
        assert (code, document["result"]) == (2, "malformed")


def test_a_crl_and_the_knobs_reach_the_verifier(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each option has an effect, and only that."""
    crl = tmp_path / "ca.crl"
    crl.write_bytes(make.build_crl(make.ca_key(), make.CA_NAME, [4711]))
    code, document = _json(capsys, str(VECTORS / "good-rsa.der"), *CHAIN, "--crl", str(crl))
    assert isinstance(document, dict)
    assert (code, document["reason"]) == (1, "ENDORSEMENT_REVOKED")
    old = str(VECTORS / "expired.der")
    assert _json(capsys, old, *CHAIN)[0] == 1
    assert _json(capsys, old, *CHAIN, "--allow", "expired-ca", "--allow", "sha1")[0] == 1
    assert _json(capsys, old, *CHAIN, "--allow", "expired-ek")[0] == 0
    weak = str(VECTORS / "signed-with-sha1.der")
    assert _json(capsys, weak, *CHAIN, "--allow", "sha1", "--allow", "expired-ek")[0] == 1
    assert _json(capsys, weak, *CHAIN, "--allow", "sha1-ek")[0] == 0


def test_reading_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 65: a huge file or folder is refused before it is read whole."""
    monkeypatch.setattr(certificate_files, "MAX_BUNDLE", 10)
    monkeypatch.setattr(certificate_files, "MAX_FILES", 1)
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(bytes(11))
    with pytest.raises(InvalidRequest, match="longer than 10"):
        certificate_files.read_bytes(tmp_path / "a")
    with pytest.raises(InvalidRequest, match="more than 1 files"):
        certificate_files.read_authorities([tmp_path], [])
