"""``ta evidence quote`` on whole boots and on everything that is not what it should be."""

import json
import struct
from pathlib import Path

import cyclopts
import pytest
from support import tpm_structures as build

from trustauthority.cli import evidence_quote

TESTS = Path(__file__).resolve().parents[2]
BOOTS = TESTS / "vectors" / "boots"
SCHEMA = TESTS.parent / "docs" / "reference" / "evidence-quote.schema.json"
CAPTURES = ("good", "good-second-boot", "changed-cmdline", "other-kernel-build", "secureboot-off")
GOOD = BOOTS / "good"
PCRS = {"sha256": {0: b"\2" * 32, 10: b"\3" * 32}}
AK = build.SoftwareKey.ecdsa()
ED25519 = b"""-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----
"""


@pytest.fixture
def run(capsys):
    """Runs the command and gives its exit status and what it printed."""
    app = cyclopts.App(name="evidence")
    evidence_quote.register(app)

    def call(*arguments: object) -> tuple[int, str]:
        status = app(
            ["quote", *map(str, arguments)], exit_on_error=False, result_action="return_value"
        )
        return status, capsys.readouterr().out

    return call


@pytest.fixture
def run_json(run):
    """The same, with the JSON document."""

    def call(*arguments: object) -> tuple[int, dict]:
        status, text = run("-o", "json", *arguments)
        return status, json.loads(text)

    return call


def boot(folder: Path, **changes: object) -> list[object]:
    """Arguments for a captured boot, with options replaced (None drops one)."""
    options = {
        "attest": folder / "quote-both-banks.msg",
        "signature": folder / "quote-both-banks.sig",
        "ak": folder / "ak.pub",
        "pcrs": folder / "pcrs.json",
        "nonce": (folder / "nonce").read_text().strip(),
        "eventlog": folder / "eventlog.bin",
        "ima": folder / "ima.bin",
    } | changes
    pairs = [(f"--{name}", value) for name, value in options.items() if value is not None]
    return [word for pair in pairs for word in pair]


@pytest.fixture
def made(tmp_path):
    """Writes a quote of the software AK into files and gives the arguments."""

    def write(quote=None, **files: bytes | str) -> list[object]:
        quote = quote or build.make_quote(AK, pcrs=PCRS, extra_data=b"n" * 32)
        pcrs = {b: {str(i): v.hex() for i, v in values.items()} for b, values in quote.pcrs.items()}
        contents = {
            "attest": quote.attest,
            "signature": quote.signature,
            "ak": AK.public,
            "pcrs": json.dumps(pcrs),
        } | files
        arguments: list[object] = []
        for name, content in contents.items():
            path = tmp_path / name
            path.write_bytes(content.encode() if isinstance(content, str) else content)
            arguments += [f"--{name}", path]
        return arguments

    return write


class TestBoots:
    @pytest.mark.parametrize("name", CAPTURES)
    def test_captured_boot_is_explained_in_both_banks(self, name, run_json):
        """Quote, boot log and runtime log of a real boot agree (pitfalls 34, 40, 54, 56)."""
        status, document = run_json(*boot(BOOTS / name))

        assert (status, document["result"], document["reason"]) == (0, "genuine", None)
        assert set(document["checks"].values()) == {"passed"}
        assert document["bank"] == "sha256"
        assert set(range(10)) <= set(document["eventlog"]["verifiedPcrs"])
        assert document["ima"]["matchedPrefix"] == document["ima"]["entries"]
        assert document["eventlog"]["secureBoot"]["enabled"] is (name != "secureboot-off")

    def test_log_of_another_boot(self, run_json):
        """The log of another kernel command line does not explain the quote (pitfall 34)."""
        other = BOOTS / "changed-cmdline" / "eventlog.bin"
        status, document = run_json(*boot(GOOD, eventlog=other))

        assert (status, document["reason"]) == (1, "LOG_REJECTED")
        assert "PCR" in document["message"]
        assert document["checks"]["eventlog"] == "failed"

    def test_empty_boot_log(self, run_json, tmp_path):
        """No event log is a refusal with a reason, not a crash and not a pass (pitfall 34)."""
        (tmp_path / "empty").write_bytes(b"")
        status, document = run_json(*boot(GOOD, eventlog=tmp_path / "empty"))

        assert (status, document["reason"]) == (1, "LOG_REJECTED")
        assert "no event for it" in document["message"]

    def test_runtime_log_of_another_boot(self, run_json):
        """The runtime log of another boot has no prefix that gives PCR 10 (pitfall 54)."""
        other = BOOTS / "good-second-boot" / "ima.bin"
        status, document = run_json(*boot(GOOD, ima=other))

        assert (status, document["reason"]) == (1, "LOG_REJECTED")
        assert document["message"].startswith("runtime log: ")

    def test_logs_that_grew_after_the_quote(self, run_json, tmp_path):
        """Entries after the quote are said to be uncovered (pitfall 54)."""
        longer = tmp_path / "ima.bin"
        data = (GOOD / "ima.bin").read_bytes()
        longer.write_bytes(data + _first_ima_entry(data))
        status, document = run_json(*boot(GOOD, ima=longer))

        assert status == 0
        assert document["ima"]["unverifiedEntries"] == 1
        assert any("last 1 entries are not covered" in text for text in document["findings"])

    @pytest.mark.parametrize("option", ["eventlog", "ima"])
    def test_log_without_values(self, option, run_json):
        """A log explains PCR values; without them the question makes no sense."""
        other = {"eventlog": "ima", "ima": "eventlog"}[option]
        status, document = run_json(*boot(GOOD, pcrs=None, **{other: None}))

        assert (status, document["reason"]) == (2, "INVALID_REQUEST")
        assert document["checks"][option] == "failed"

    @pytest.mark.parametrize("option", ["eventlog", "ima"])
    def test_malformed_log(self, option, run_json, tmp_path):
        """Half a log is malformed, with part and offset (pitfall 45)."""
        half = tmp_path / "half"
        data = (GOOD / f"{option}.bin").read_bytes()
        half.write_bytes(data[: len(data) // 2])
        status, document = run_json(*boot(GOOD, **{option: half}))

        assert (status, document["reason"]) == (2, "EVIDENCE_MALFORMED")
        assert document["part"]
        assert document["offset"] > 0

    def test_runtime_log_needs_pcr_10(self, run_json, made, tmp_path):
        """A quote that does not cover PCR 10 proves no runtime log."""
        quote = build.make_quote(AK, pcrs={"sha256": {0: bytes(32)}}, extra_data=b"n")
        status, document = run_json(*made(quote), "--ima", GOOD / "ima.bin")

        assert (status, document["reason"]) == (1, "LOG_REJECTED")
        assert "PCR 10 of sha256 is not quoted" in document["message"]

    def test_bank_that_the_log_lacks(self, run_json, made):
        """A quoted bank that the log can't replay could hold anything (pitfall 40)."""
        quote = build.make_quote(AK, pcrs={"sha384": {0: bytes(48)}}, extra_data=b"n")
        status, document = run_json(*made(quote), "--eventlog", GOOD / "eventlog.bin")

        assert (status, document["reason"]) == (1, "LOG_REJECTED")
        assert "sha384" in document["message"]

    def test_untied_runtime_log_is_a_finding(self, run_json, made):
        """Without PCR 0-9 in the quote, boot_aggregate can't be compared, and that is said."""
        values = json.loads((GOOD / "pcrs.json").read_text())
        pcr10 = bytes.fromhex(values["sha256"]["10"])
        quote = build.make_quote(AK, pcrs={"sha256": {10: pcr10}}, extra_data=b"n")
        status, document = run_json(*made(quote), "--ima", GOOD / "ima.bin")

        assert status == 0
        assert any("boot_aggregate" in text for text in document["findings"])

    def test_runtime_log_tied_to_another_boot(self, run_json, made):
        """boot_aggregate of other PCRs 0-9 than the quoted ones is refused (N22, pitfall 56)."""
        values = json.loads((GOOD / "pcrs.json").read_text())["sha256"]
        pcrs = {index: bytes([index]) * 32 for index in range(10)}
        pcrs[10] = bytes.fromhex(values["10"])
        quote = build.make_quote(AK, pcrs={"sha256": pcrs}, extra_data=b"n")
        status, document = run_json(*made(quote), "--ima", GOOD / "ima.bin")

        assert (status, document["reason"]) == (1, "LOG_REJECTED")
        assert "another boot" in document["message"]


def _first_ima_entry(data: bytes) -> bytes:
    """Bytes of the first entry: PCR, digest, sized name, sized data."""
    name = 24 + 4 + struct.unpack_from("<I", data, 24)[0]
    return data[: name + 4 + struct.unpack_from("<I", data, name)[0]]


class TestKeys:
    @pytest.mark.parametrize("form", ["ak.pub", "ak.pem"])
    def test_forms_of_the_key(self, form, run_json):
        """TPM2B_PUBLIC and PEM are told apart by themselves."""
        status, document = run_json(*boot(GOOD, ak=GOOD / form, eventlog=None, ima=None))
        name = (GOOD / "ak.name").read_bytes().hex()

        assert status == 0
        assert document["attestationKey"]["name"] == (name if form == "ak.pub" else None)
        bare = any("bare key" in text for text in document["findings"])
        assert bare == (form == "ak.pem")

    @pytest.mark.parametrize(
        ("key", "reason"),
        [
            (b"", "EVIDENCE_MALFORMED"),
            (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "EVIDENCE_MALFORMED"),
            (build.sized(AK.public) + b"\0", "EVIDENCE_MALFORMED"),
            ((GOOD / "ak.pem").read_bytes() * 2, "EVIDENCE_MALFORMED"),
            (ED25519, "ALGORITHM_UNSUPPORTED"),
        ],
        ids=["empty", "bad PEM", "trailing byte", "two keys", "Ed25519"],
    )
    def test_what_is_no_key(self, key, reason, run_json, made):
        """A file that is no key of a kind we know is malformed, never a crash (pitfall 14)."""
        status, document = run_json(*made(ak=key))
        assert (status, document["reason"]) == (2, reason)


class TestInputs:
    @pytest.mark.parametrize(
        "pcrs",
        [
            "",
            "[]",
            '{"sha256": []}',
            '{"md5": {}}',
            '{"sha256": {"x": "00"}}',
            '{"sha256": {"01": "' + "00" * 32 + '"}}',
            '{"sha256": {"0": "00"}}',
            '{"sha256": {"0": 5}}',
            '{"sha256": {"0": "' + "0 " * 32 + '"}}',
            '{"sha256": {"0": "' + "00" * 32 + '", "0": "' + "11" * 32 + '"}}',
            '{"sha256": {}, "sha256": {}}',
            "[" * 100_000,
        ],
    )
    def test_pcrs_that_are_not_pcrs(self, pcrs, run_json, made):
        """JSON with doubled keys, other hex or other shapes is malformed (pitfall 65)."""
        status, document = run_json(*made(pcrs=pcrs))
        assert (status, document["part"]) == (2, "pcrs")

    @pytest.mark.parametrize("nonce", ["x", "0", "0x00", "00 00", "é"])
    def test_nonce_that_is_not_hex(self, nonce, run_json, made):
        """A nonce has one spelling."""
        status, document = run_json(*made(), "--nonce", nonce)
        assert (status, document["part"]) == (2, "nonce")

    def test_empty_nonce_where_the_quote_has_one(self, run_json, made):
        """An empty nonce does not match a quote that has one (pitfall 3)."""
        status, document = run_json(*made(), "--nonce", "")
        assert (status, document["reason"]) == (1, "CHALLENGE_MISMATCH")

    def test_nothing_but_the_quote(self, run_json, made):
        """What could not be checked is listed as skipped, never as passed."""
        arguments = made()[:6]
        status, document = run_json(*arguments)

        assert status == 0
        skipped = {name for name, found in document["checks"].items() if found == "skipped"}
        assert skipped == {"nonce", "pcrDigest"}
        assert len(document["findings"]) == 2

    def test_bank_that_was_not_quoted(self, run_json, made):
        """Claims can't rest on a bank that the quote does not have (pitfall 6)."""
        status, document = run_json(*made(), "--bank", "sha384")
        assert (status, document["reason"]) == (1, "PCR_SELECTION_REJECTED")

    def test_sha1_bank_beside_another(self, run_json):
        """A quoted SHA-1 bank is fine, a claim that rests on it is not (design, pitfall 6)."""
        assert run_json(*boot(GOOD))[0] == 0
        status, document = run_json(*boot(GOOD, bank="sha1"))
        assert (status, document["reason"]) == (1, "PCR_SELECTION_REJECTED")

    def test_file_that_is_not_there(self, run_json, made, tmp_path):
        """A missing file is an answer with status 2, not a traceback."""
        status, document = run_json(*made(), "--ima", tmp_path / "missing")
        assert (status, document["reason"]) == (2, "INVALID_REQUEST")

    def test_file_that_is_too_long(self, run_json, made, monkeypatch):
        """Files are capped before they are decoded (pitfall 65)."""
        monkeypatch.setattr("trustauthority.cli.quote_files.MAX_FILE_SIZE", 10)
        status, document = run_json(*made())
        assert (status, document["reason"]) == (2, "INVALID_REQUEST")

    def test_boot_log_that_is_too_long(self, run_json, monkeypatch):
        """A boot log has a limit of its own (pitfall 48)."""
        monkeypatch.setattr("trustauthority.cli.quote_logs.MAX_LOG_BYTES", 10)
        status, document = run_json(*boot(GOOD))
        assert (status, document["reason"]) == (2, "INVALID_REQUEST")


class TestOutput:
    def test_table_says_why(self, run, made):
        """People read the verdict, its reason and each check."""
        status, text = run(*made(), "--nonce", "00")

        assert status == 1
        assert text.startswith("refused (CHALLENGE_MISMATCH): ")
        assert "failed   nonce" in text

    def test_table_lists_notes(self, run, made):
        """Findings are shown with a genuine quote too."""
        status, text = run(*made())
        assert status == 0
        assert text.startswith("genuine\n")
        assert "note     no nonce was given" in text

    @pytest.mark.parametrize("nonce", [None, "00"])
    def test_json_has_the_documented_fields(self, nonce, run_json):
        """The schema in the reference names every field that is printed."""
        schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
        changes = {} if nonce is None else {"nonce": nonce}
        _, document = run_json(*boot(GOOD, **changes))

        assert set(schema["required"]) <= set(document) <= set(schema["properties"])
        fields = schema["properties"]["quote"]["properties"]
        assert set(document["quote"]) == set(fields)
        assert document["result"] in schema["properties"]["result"]["enum"]
        assert set(document["checks"]) <= set(
            schema["properties"]["checks"]["propertyNames"]["enum"]
        )
