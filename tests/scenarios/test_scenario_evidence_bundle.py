"""``ta evidence show`` and ``check`` on bundles of an authority: outsiders can judge it (rule 67)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.json_schema import violations

from trustauthority.appraisal.baseline import decode_baseline, encode_baseline
from trustauthority.cli.evidence import evidence_app, main
from trustauthority.codec.bundle import decode_bundle, encode_bundle
from trustauthority.services.bundles import evidence_bundle

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
LABELLED_BY_US = ("files", "format", "version")


@pytest.fixture
async def bundle(authority):
    """The bundle of a host that passed twice: its evidence is a part of the runtime log."""
    (host,) = await authority.trusted("esx-1")
    host.measure_file("/usr/bin/new", b"new")
    await authority.attest(host)
    return await evidence_bundle(authority.store, "esx-1")


@pytest.fixture
def ask(tmp_path, capsys):
    """Run ``ta evidence`` on a bundle: status and answer."""

    def ask(command, data, *words):
        path = tmp_path / "host.bundle"
        path.write_bytes(data)
        status = evidence_app(
            [command, str(path), *words, "-o", "json"], exit_on_error=False, print_error=False
        )
        answer = json.loads(capsys.readouterr().out)
        schema = json.loads((REFERENCE / f"evidence-{command}.schema.json").read_text())
        assert violations(answer, schema, schema) == []
        return status, answer

    return ask


def changed(data, *, fields=None, parts=None, without=()):
    """The same bundle with other fields and parts, its manifest made to fit."""
    bundle = decode_bundle(data)
    manifest = {key: value for key, value in bundle.manifest.items() if key not in LABELLED_BY_US}
    kept = {name: body for name, body in bundle.parts.items() if name not in without}
    return encode_bundle(manifest | (fields or {}), kept | (parts or {}), made_at_s=0)


def flipped(data, name, place=-1):
    """The same bundle with one bit of a part flipped and the manifest made to fit."""
    body = bytearray(decode_bundle(data).part(name))
    body[place] ^= 1
    return changed(data, parts={name: bytes(body)})


class TestShow:
    async def test_what_stands_behind_a_verdict(self, bundle, ask):
        """Who, when, which PCRs, which verdict: without asking the authority."""
        status, answer = ask("show", bundle)
        assert (status, answer["result"], answer["source"]) == (0, "accepted", "authority")
        assert answer["labels"]["host"] == "esx-1"
        assert answer["quote"]["banks"]["sha256"]
        assert answer["imaOffset"] > 0
        assert answer["verdict"]["passed"] is True
        assert answer["parts"]["boot.log"] == len(decode_bundle(bundle).part("boot.log"))

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda data: flipped(data, "quote.signature"), "QUOTE_SIGNATURE_INVALID"),
            (lambda data: flipped(data, "quote.attest"), "QUOTE_SIGNATURE_INVALID"),
            (lambda data: flipped(data, "pcr-values.bin"), "PCR_DIGEST_MISMATCH"),
            (lambda data: changed(data, fields={"nonce": "00" * 32}), "CHALLENGE_MISMATCH"),
            (lambda data: changed(data, fields={"purpose": "bundle"}), "CHALLENGE_MISMATCH"),
        ],
    )
    async def test_a_quote_that_is_not_genuine(self, bundle, ask, change, reason):
        """N12, N13: a manifest made to fit does not make a quote genuine."""
        status, answer = ask("show", change(bundle))
        assert (status, answer["result"], answer["reason"]) == (1, "refused", reason)

    @pytest.mark.parametrize(
        ("change", "part"),
        [
            (lambda data: data[:-1024], "bundle"),
            (lambda data: data[:1000], "bundle"),
            (lambda data: changed(data, without=["ak.public"]), "bundle"),
            (lambda data: changed(data, parts={"ak.public": b"\0"}), "TPMT_PUBLIC"),
            (lambda data: changed(data, fields={"purpose": "other"}), "manifest.json"),
            (lambda data: changed(data, fields={"nonce": 5}), "manifest.json"),
            (lambda data: changed(data, parts={"verdict.json": b"{"}), "verdict.json"),
            (lambda data: b"not a bundle", "bundle"),
        ],
    )
    async def test_what_is_no_bundle(self, bundle, ask, change, part):
        """Malformed is another answer than refused, with the part that is wrong."""
        data = change(bundle)
        if data == bundle[:-1024]:
            data = data[:-1]
        status, answer = ask("show", data)
        assert (status, answer["result"], answer["part"]) == (2, "malformed", part)


class TestCheck:
    async def test_judged_again_it_passes(self, bundle, ask):
        """On its own grounds a bundle gives the authority's verdict."""
        status, answer = ask("check", bundle)
        assert (status, answer["passed"], answer["ownPolicy"]) == (0, True, True)
        assert answer["atTheAuthority"] == {"passed": True, "reason": ""}
        states = {check["id"]: check["state"] for check in answer["checks"]}
        assert {states.pop("endorsement"), states.pop("residency")} == {"skipped"}
        assert set(states.values()) == {"passed"}

    async def test_a_stricter_policy_fails_it(self, bundle, ask, tmp_path):
        """What-if: another policy over the same evidence, with the reason in the tree."""
        policy = tmp_path / "strict.toml"
        policy.write_text('name = "strict"\n[boot]\nhost_class = "required"\n')
        status, answer = ask("check", bundle, "--policy", str(policy))
        assert (status, answer["policy"], answer["ownPolicy"]) == (1, "strict", False)
        assert answer["reason"] == "VERDICT_FAILED"
        assert "class" in answer["message"]

    async def test_a_golden_machine_of_somebody_else_fails_it(self, bundle, ask, tmp_path):
        """Approved variants that are given replace the bundle's own."""
        own = json.loads(decode_bundle(bundle).part("baselines.json"))
        other = json.dumps(own[0]).replace(_a_digest(own[0]), "ee" * 32)
        path = tmp_path / "other.json"
        path.write_text(encode_baseline(decode_baseline(other)))
        status, answer = ask("check", bundle, "--baseline", str(path))
        assert (status, answer["passed"], answer["reason"]) == (1, False, "VERDICT_FAILED")
        assert answer["atTheAuthority"]["passed"] is True

    async def test_variants_can_be_given_as_a_bundle_holds_them(self, bundle, ask, tmp_path):
        """Grounds that were taken out of one bundle and read judge the next one."""
        path = tmp_path / "baselines.json"
        path.write_bytes(decode_bundle(bundle).part("baselines.json"))
        status, answer = ask("check", changed(bundle, without=["baselines.json"]))
        assert (status, answer["reason"]) == (1, "VERDICT_FAILED")
        bare = changed(bundle, without=["baselines.json"])
        status, answer = ask("check", bare, "--baseline", str(path))
        assert (status, answer["ownBaselines"]) == (0, False)

    @pytest.mark.parametrize("part", ["boot.log", "ima.log"])
    async def test_a_log_that_was_touched_fails_it(self, bundle, ask, part):
        """N13: the quote does not explain the changed log; no other bank or prefix hides it."""
        body = decode_bundle(bundle).part(part)
        at = body.rindex(b"new") if part == "ima.log" else 80
        status, answer = ask("check", flipped(bundle, part, at))
        assert status != 0
        assert answer["result"] != "accepted"

    @pytest.mark.parametrize(
        ("change", "status", "reason"),
        [
            (lambda data: changed(data, without=["policy.toml"]), 2, "INVALID_REQUEST"),
            (lambda data: changed(data, parts={"policy.toml": b"\xff"}), 2, "POLICY_INVALID"),
            (lambda data: changed(data, parts={"policy.toml": b"x = 1"}), 2, "POLICY_INVALID"),
            (lambda data: changed(data, without=["runtime-before.json"]), 2, "EVIDENCE_MALFORMED"),
            (
                lambda data: changed(data, parts={"runtime-before.json": b"[]"}),
                2,
                "EVIDENCE_MALFORMED",
            ),
            (lambda data: changed(data, parts={"baselines.json": b"[1]"}), 2, "EVIDENCE_MALFORMED"),
            (lambda data: changed(data, parts={"baselines.json": b"{"}), 2, "EVIDENCE_MALFORMED"),
            (lambda data: changed(data, fields={"ima_offset": -1}), 2, "EVIDENCE_MALFORMED"),
            (lambda data: changed(data, fields={"ima_offset": 7}), 1, "LOG_REJECTED"),
            (
                lambda data: changed(data, fields={"tpm_position_before": "00"}),
                2,
                "EVIDENCE_MALFORMED",
            ),
            (
                lambda data: changed(data, fields={"tpm_position_before": "ff" * 16}),
                1,
                "TPM_CLOCK_ROLLED_BACK",
            ),
            (lambda data: flipped(data, "quote.signature"), 1, "QUOTE_SIGNATURE_INVALID"),
        ],
    )
    async def test_bad_input_is_an_answer(self, bundle, ask, change, status, reason):
        """Each defect has a status and a reason; never a traceback."""
        code, answer = ask("check", change(bundle))
        assert (code, answer["reason"]) == (status, reason)

    @pytest.mark.parametrize("option", ["--policy", "--baseline", "--rules"])
    @pytest.mark.parametrize("content", [b"\xff\x00", b"{}", None])
    async def test_grounds_that_are_none(self, bundle, ask, tmp_path, option, content):
        """A file that is given and can't be used is never passed over for the bundle's own."""
        path = tmp_path / "grounds"
        if content is not None:
            path.write_bytes(content)
        status, answer = ask("check", bundle, option, str(path))
        assert (status, answer["result"]) == (2, "malformed")

    async def test_rules_that_the_policy_names_must_be_given(self, bundle, ask, tmp_path):
        """Without the rules there is no verdict under a policy that names them."""
        policy = tmp_path / "rules.toml"
        policy.write_text(f'name = "r"\n[runtime]\nfiles = "required"\nrules = "{"ab" * 32}"\n')
        status, answer = ask("check", bundle, "--policy", str(policy))
        assert (status, answer["reason"]) == (2, "POLICY_INVALID")

    def test_the_tree_is_shown_to_people(self, bundle, tmp_path):
        """By itself, without ta and without an authority, as an auditor runs it."""
        path = tmp_path / "host.bundle"
        path.write_bytes(bundle)
        asked = subprocess.run(
            [sys.executable, "-m", "trustauthority.cli.evidence", "check", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (asked.returncode, asked.stderr) == (0, "")
        assert "at the authority: passed" in asked.stdout
        assert "✔" in asked.stdout

    async def test_people_see_why_it_was_refused(self, bundle, tmp_path, capsys):
        """A refusal in the table form is a line with its reason, not a half-empty tree."""
        path = tmp_path / "host.bundle"
        path.write_bytes(flipped(bundle, "quote.signature"))
        for command in ("show", "check"):
            assert main([command, str(path)]) == 1
            assert "QUOTE_SIGNATURE_INVALID" in capsys.readouterr().out


def _a_digest(document):
    """Some digest that the variant asks for."""
    return next(part for part in json.dumps(document).split('"') if len(part) == 64)
