"""``ta evidence`` on files that are no evidence: an answer at once, per file, and never a traceback."""

import json
import os
from pathlib import Path

import pytest

from trustauthority.cli import bundle_answers, evidence_endorsement, evidence_files, evidence_quote
from trustauthority.cli.evidence import evidence_app
from trustauthority.cli.input_files import read_input
from trustauthority.errors import InvalidRequest

VECTORS = Path(__file__).parents[2] / "vectors"
ANCHORS = str(VECTORS / "ekcerts" / "root.pem")
KINDS = ("directory", "missing", "empty", "sparse", "fifo", "loop", "device", "unreadable", "text")
COMMANDS = ("eventlog", "ima", "show", "check", "endorsement", "quote")


@pytest.fixture
def odd(tmp_path):
    """Files of every kind that a caller may name by mistake or on purpose."""
    files = {kind: tmp_path / kind for kind in KINDS}
    files["directory"].mkdir()
    files["empty"].write_bytes(b"")
    with files["sparse"].open("wb") as stream:
        stream.truncate(4 << 30)
    os.mkfifo(files["fifo"])
    files["device"] = Path("/dev/zero")
    files["text"].write_bytes(b"hello\n")
    files["unreadable"].write_bytes(b"x")
    files["unreadable"].chmod(0)
    files["loop"].symlink_to(files["loop"])
    return files


def words_for(command: str, path: Path) -> list[str]:
    if command == "quote":
        return [command, "--attest", str(path), "--signature", str(path), "--ak", str(path)]
    extra = ["--anchors", ANCHORS] if command == "endorsement" else []
    return [command, str(path), *extra]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", COMMANDS)
def test_any_kind_of_file_gets_an_answer(odd, command, kind, capsys):
    """Exit 1 or 2 with a reason, whatever the file is; nothing waits, nothing is read for ever (rule 65)."""
    status = evidence_app([*words_for(command, odd[kind]), "-o", "json"])
    answer = json.loads(capsys.readouterr().out)
    assert status in ({1, 2} if kind in {"empty", "text"} else {2})
    assert answer["result"] == ("refused" if status == 1 else "malformed")
    assert answer["reason"]


@pytest.mark.parametrize("command", COMMANDS)
def test_people_get_an_answer_too(odd, command, capsys):
    """A name is shown as text, whatever it holds (N44)."""
    path = odd["text"].with_name("a\x1b[31m\udcff\nb")
    path.write_bytes(b"x")
    status = evidence_app(words_for(command, path))
    shown = capsys.readouterr().out
    assert status == 2
    assert "\x1b" not in shown
    assert "malformed" in shown


def test_a_name_that_no_file_can_have():
    """A zero byte in a name is a mistake of the caller, not a crash."""
    with pytest.raises(InvalidRequest, match="not the name of a file"):
        read_input(Path("a\0b"), 10, name="a", field="FILE")


def test_a_file_that_grows_while_it_is_read(tmp_path, monkeypatch):
    """The size that the kernel says is not believed: files of /sys say 0 or one page."""
    path = tmp_path / "log"
    path.write_bytes(b"12345678")
    monkeypatch.setattr("trustauthority.cli.input_files._size_of_regular", lambda *_: 0)
    assert read_input(path, 8, name="log", field="FILE") == b"12345678"
    with pytest.raises(InvalidRequest, match="longer than 7 bytes"):
        read_input(path, 7, name="log", field="FILE")


@pytest.mark.parametrize(
    ("module", "function", "words"),
    [
        (bundle_answers, "decode_bundle", ["show"]),
        (evidence_endorsement, "decode_certificate", ["endorsement"]),
        (evidence_quote, "decode_attest", ["quote"]),
    ],
)
def test_a_defect_of_ours_is_a_refusal(module, function, words, tmp_path, monkeypatch, capsys):
    """Whatever crashes while a file is judged refuses that file (N04, rule 65)."""
    path = tmp_path / "file"
    path.write_bytes(b"x")
    monkeypatch.setattr(module, function, lambda *_: 1 // 0)
    status = evidence_app([*words_for(words[0], path), "-o", "json"])
    answer = json.loads(capsys.readouterr().out)
    assert (status, answer["result"], answer["reason"]) == (1, "refused", "INTERNAL")
    assert "ZeroDivisionError" in answer["message"]


def test_good_and_bad_files_in_one_call(odd, capsys):
    """Each file has its own answer, in order; the status is the worst one."""
    good = VECTORS / "eventlogs" / "good_agile.bin"
    files = [good, odd["fifo"], good, odd["empty"], odd["directory"]]
    status = evidence_app(["eventlog", *map(str, files), "-o", "json"])
    answers = json.loads(capsys.readouterr().out)
    assert [answer["file"] for answer in answers] == [str(path) for path in files]
    assert [answer["result"] for answer in answers] == [
        "accepted",
        "malformed",
        "accepted",
        "refused",
        "malformed",
    ]
    assert status == evidence_files.EXIT_MALFORMED
