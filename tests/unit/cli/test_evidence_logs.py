"""``ta evidence eventlog`` and ``ta evidence ima``: the right answer on every vector, never a traceback."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.json_schema import violations
from support.log_vectors import event_log_vectors, ima_vectors
from support.logbuilder import good_log, ima_record, ima_register, ng_data

from trustauthority.cli.evidence import evidence_app, main

VECTORS = Path(__file__).parents[2] / "vectors"
EXITS = {"accepted": 0, "refused": 1, "malformed": 2}


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, object]:
    """Run a command of ``ta evidence`` and return its status and JSON."""
    status = evidence_app([*words, "-o", "json"], exit_on_error=False, print_error=False)
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("vector", event_log_vectors(), ids=lambda vector: vector.name)
def test_boot_log_vector(vector, capsys):
    """Each defect has its answer: verdict, reason, place, registers, Secure Boot (N21, rules 34-47)."""
    status, answer = run(capsys, "eventlog", str(VECTORS / "eventlogs" / f"{vector.name}.bin"))
    assert (answer["result"], answer["reason"]) == (vector.expect, vector.reason)
    assert status == EXITS[vector.expect]
    if vector.expect == "malformed":
        assert (answer["part"], answer["offset"]) == (vector.part, vector.offset)
        return
    if vector.pcrs:
        assert answer["pcrs"] == vector.pcrs
    assert answer["secureBoot"]["enabled"] is vector.enabled
    assert answer["secureBoot"]["enforced"] is vector.enforced


@pytest.mark.parametrize("vector", ima_vectors(), ids=lambda vector: vector.name)
def test_runtime_log_vector(vector, capsys):
    """Each defect has its answer: verdict, reason, place, register (N22, rules 51-53, 58)."""
    status, answer = run(capsys, "ima", str(VECTORS / "imalogs" / f"{vector.name}.bin"))
    assert (answer["result"], answer["reason"]) == (vector.expect, vector.reason)
    assert status == EXITS[vector.expect]
    if vector.expect == "malformed":
        assert answer["offset"] == vector.offset
        return
    assert answer["entries"] == vector.entries
    assert answer["violations"] == vector.violations
    if vector.sha256 is not None:
        assert answer["pcr10"]["sha256"] == vector.sha256


@pytest.mark.parametrize(
    ("folder", "vectors"), [("eventlogs", event_log_vectors()), ("imalogs", ima_vectors())]
)
def test_vectors_rebuild_identically(folder, vectors):
    """The checked-in vectors are what the script makes: nobody edited one by hand."""
    index = json.loads((VECTORS / folder / "index.json").read_text())
    assert index == [vector.entry() for vector in vectors]
    files = {path.stem: path.read_bytes() for path in (VECTORS / folder).glob("*.bin")}
    assert files == {vector.name: vector.raw for vector in vectors}


def test_several_files_are_one_process_and_one_array(tmp_path, capsys):
    """A bad file does not hide a good one; the status is the worst of them (issue 3)."""
    good = tmp_path / "good.bin"
    good.write_bytes(good_log().bytes)
    bad = tmp_path / "bad.bin"
    bad.write_bytes(b"\x00")
    bad.write_bytes(b"no log at all, only text that goes on")
    status, answer = run(capsys, "eventlog", str(bad), str(good), str(tmp_path / "missing"))
    assert status == 2
    assert [found["result"] for found in answer] == ["malformed", "accepted", "malformed"]
    assert answer[2]["reason"] == "INVALID_REQUEST"


def test_a_file_beyond_the_limit_is_not_read(tmp_path, capsys):
    """A hostile file costs its limit in memory, never its size (N21, rule 45)."""
    huge = tmp_path / "huge.bin"
    with huge.open("wb") as stream:
        stream.truncate(1 << 40)
    status, answer = run(capsys, "eventlog", str(huge))
    assert status == 2
    assert "longer than" in answer["message"]


def test_no_file_is_a_usage_error(capsys):
    """Naming no file is a mistake, not an empty success."""
    assert evidence_app(["eventlog"], exit_on_error=False, print_error=False) == 2
    assert "FILE" in capsys.readouterr().err


def test_events_are_listed_with_their_proof(tmp_path, capsys):
    """Data counts only where its digest proves it; the listing says which is which (rule 38)."""
    path = tmp_path / "log.bin"
    path.write_bytes(good_log().bytes)
    status, answer = run(capsys, "eventlog", str(path), "--events")
    assert status == 0
    by_type = {event["type"]: event for event in answer["eventList"]}
    assert by_type["EV_EFI_VARIABLE_AUTHORITY"]["proof"] == "data"
    assert by_type["EV_NO_ACTION"]["proven"] is False
    lines = [event for event in answer["eventList"] if event["type"] == "EV_IPL"]
    assert [(line["proof"], line["proven"]) for line in lines] == [("value", True), ("none", False)]
    assert answer["boot"]["commandLines"] == ["console=ttyS0"]


def test_a_bank_can_be_chosen_and_must_exist(tmp_path, capsys):
    """The bank is chosen up front; an absent one is an error, never another bank (rule 39)."""
    path = tmp_path / "log.bin"
    path.write_bytes(good_log().bytes)
    assert run(capsys, "eventlog", str(path), "--bank", "sha1")[1]["bank"] == "sha1"
    status, answer = run(capsys, "eventlog", str(path), "--bank", "sha384")
    assert (status, answer["reason"]) == (2, "ALGORITHM_UNSUPPORTED")


def test_the_quoted_value_names_the_verified_prefix(tmp_path, capsys):
    """The log may be longer than the quote: the rest is unverified (rule 54)."""
    items = [ng_data(b"boot_aggregate"), ng_data(b"/one"), ng_data(b"/two")]
    path = tmp_path / "ima.bin"
    path.write_bytes(b"".join(ima_record(item) for item in items))
    for count in range(4):
        value = ima_register(items[:count]).hex()
        status, answer = run(capsys, "ima", str(path), "--pcr10", value)
        assert (status, answer["matchedPrefix"]) == (0, count)
        assert answer["unverifiedEntries"] == 3 - count
    status, answer = run(capsys, "ima", str(path), "--pcr10", "11" * 32, "--bank", "sha256")
    assert (status, answer["reason"]) == (1, "NO_PREFIX_MATCHES")
    assert answer["matchedPrefix"] is None
    sha1 = ima_register(items, "sha1").hex()
    assert run(capsys, "ima", str(path), "--pcr10", sha1)[1]["matchedBank"] == "sha1"
    assert run(capsys, "ima", str(path), "--pcr10", "00" * 20)[1]["matchedPrefix"] == 0


def test_padded_banks_of_old_kernels_are_found_for_the_whole_log(tmp_path, capsys):
    """Kernels before 5.8 pad the SHA-1 digest: one mode for the whole log (rule 51)."""
    item = ng_data(b"/one")
    path = tmp_path / "ima.bin"
    path.write_bytes(ima_record(item))
    padded = hashlib.sha1(item, usedforsecurity=False).digest() + bytes(12)
    value = hashlib.sha256(bytes(32) + padded).hexdigest()
    status, answer = run(capsys, "ima", str(path), "--pcr10", value)
    assert (status, answer["matchedPrefix"], answer["matchedPadded"]) == (0, 1, True)
    assert answer["pcr10"]["sha256pad"] == value


@pytest.mark.parametrize("value", ["xyz", "0", "", "00" * 31])
def test_a_wrong_pcr_value_is_a_usage_error(value, tmp_path, capsys):
    """A value that is no digest of the bank is refused before anything is compared."""
    path = tmp_path / "ima.bin"
    path.write_bytes(ima_record(ng_data(b"/one")))
    status, answer = run(capsys, "ima", str(path), "--pcr10", value)
    assert (status, answer["reason"]) == (2, "INVALID_REQUEST")


def test_tables_are_for_people(tmp_path, capsys):
    """Without -o json the answer is lines; names from a log can't steer the terminal (N44)."""
    log = tmp_path / "log.bin"
    log.write_bytes((VECTORS / "eventlogs" / "separator_twice.bin").read_bytes())
    ima = tmp_path / "ima.bin"
    ima.write_bytes(
        ima_record(ng_data(b"/one"))
        + ima_record(ng_data(b"/two"), b"\x1b[2J".replace(b"\x1b", b"x"))
    )
    assert evidence_app(["eventlog", str(log), "--events"], exit_on_error=False) == 1
    assert "SEPARATOR_TWICE" in capsys.readouterr().out
    value = ima_register([]).hex()
    assert evidence_app(["ima", str(ima), "--pcr10", value], exit_on_error=False) == 1
    shown = capsys.readouterr().out
    assert "0 entries, 2 are unverified" in shown
    assert "\x1b" not in shown
    assert evidence_app(["ima", str(tmp_path / "none")], exit_on_error=False) == 2
    assert "malformed" in capsys.readouterr().out


def test_an_ordinary_log_needs_no_quote(tmp_path, capsys):
    """Without --pcr10 there is nothing to match, and the table says nothing of it."""
    path = tmp_path / "ima.bin"
    path.write_bytes(ima_record(ng_data(b"/one")))
    assert evidence_app(["ima", str(path)], exit_on_error=False) == 0
    assert "proves" not in capsys.readouterr().out


def test_runs_by_itself(tmp_path):
    """``python -m trustauthority.cli.evidence`` answers with the exit status (issue 3)."""
    path = tmp_path / "log.bin"
    path.write_bytes(good_log().bytes[:-3])
    command = [sys.executable, "-m", "trustauthority.cli.evidence", "eventlog", str(path)]
    finished = subprocess.run([*command, "-o", "json"], capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (2, "")
    assert json.loads(finished.stdout)["reason"] == "EVIDENCE_MALFORMED"


def test_judging_a_log_loads_neither_policies_nor_the_wire(tmp_path):
    """A log is judged without gRPC, messages, policies or a database: start-up is most of its cost."""
    path = tmp_path / "log.bin"
    path.write_bytes(good_log().bytes)
    code = (
        "import sys\n"
        "from trustauthority.cli.evidence import main\n"
        "status = main(sys.argv[1:])\n"
        "heavy = {'grpc', 'google.protobuf', 'pydantic', 'sqlalchemy', 'asyncio', 'joserfc'}\n"
        "print(status, sorted(heavy & sys.modules.keys()), file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", code, "eventlog", str(path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert finished.stderr == "0 []\n"


REFERENCE = Path(__file__).parents[3] / "docs" / "reference"


@pytest.mark.parametrize(
    ("command", "folder", "options"),
    [
        ("eventlog", "eventlogs", ("--events",)),
        ("eventlog", "eventlogs", ()),
        ("ima", "imalogs", ()),
        ("ima", "imalogs", ("--pcr10", "00" * 32)),
    ],
)
def test_every_answer_fits_the_published_schema(command, folder, options, capsys):
    """The interface is stable: schema and output can't drift apart (issue 3, offline tools)."""
    schema = json.loads((REFERENCE / f"evidence-{command}.schema.json").read_text())
    files = sorted(str(path) for path in (VECTORS / folder).glob("*.bin"))
    _, answers = run(capsys, command, *files, *options)
    assert len(answers) == len(files)
    assert violations(answers, schema, schema) == []
    for answer in answers:
        assert violations(answer, schema, schema) == []
    assert violations(answers[0] | {"extra": 1}, schema, schema) != []


def test_main_returns_the_exit_status(capsys):
    """The program ends with the status of its command; help is a success."""
    assert main(["eventlog", str(VECTORS / "eventlogs" / "good_agile.bin")]) == 0
    assert main(["eventlog", str(VECTORS / "eventlogs" / "text.bin")]) == 2
    assert main(["--help"]) == 0
    assert "eventlog" in capsys.readouterr().out
