"""Real logs: the project's own captures, and the shared corpus where it is present."""

import json
from pathlib import Path

import pytest

from trustauthority.appraisal.bootfacts import boot_facts
from trustauthority.cli.evidence_eventlog import judge_boot_log
from trustauthority.cli.evidence_ima import judge_ima_log
from trustauthority.codec.eventlog import decode_boot_log
from trustauthority.codec.ima import decode_ima_binary
from trustauthority.codec.ima_log import decode_ima_log
from trustauthority.errors import MalformedEvidence
from trustauthority.model.digest import HashAlgorithm
from trustauthority.verification.meaning import Proof, describe
from trustauthority.verification.replay import replay, verify_boot_log
from trustauthority.verification.runtime import (
    BootAggregate,
    check_boot_aggregate,
    entry_findings,
    match_prefix,
)

ROOT = Path(__file__).parents[3]
BOOTS = ROOT / "tests" / "vectors" / "boots"
SHARED = ROOT.parent / "shared"
CORPUS = SHARED / "corpus"
CAPTURES = SHARED / "captures"
SECURE_BOOT = {"00": False, "01": True}
BANK = HashAlgorithm.SHA256

needs_corpus = pytest.mark.skipif(
    not CORPUS.is_dir(), reason="the shared corpus is not beside this checkout"
)
needs_captures = pytest.mark.skipif(
    not CAPTURES.is_dir(), reason="the shared captures are not beside this checkout"
)


def expectations(name: str) -> dict[str, dict]:
    """Expected answers of the corpus, or nothing where it is absent."""
    path = CORPUS / name
    return json.loads(path.read_text()) if path.is_file() else {}


LOGS = expectations("expected_eventlogs.json")
RUNTIME = expectations("expected_ima.json")


def own_boots() -> list[Path]:
    """Captures that belong to the project."""
    return [folder for folder in sorted(BOOTS.iterdir()) if (folder / "eventlog.bin").is_file()]


def own_pcrs(folder: Path) -> dict[HashAlgorithm, dict[int, bytes]]:
    """Register values as the guest read them."""
    banks = json.loads((folder / "pcrs.json").read_text())
    return {
        HashAlgorithm(bank): {int(pcr): bytes.fromhex(value) for pcr, value in values.items()}
        for bank, values in banks.items()
    }


@pytest.mark.parametrize("folder", own_boots(), ids=lambda folder: folder.name)
def test_own_capture_replays_in_every_bank(folder):
    """A booted guest's logs reproduce its registers, both banks, boot and runtime (rules 34, 40)."""
    pcrs = own_pcrs(folder)
    log = decode_boot_log((folder / "eventlog.bin").read_bytes())
    entries = decode_ima_binary((folder / "ima.bin").read_bytes())
    for bank, values in pcrs.items():
        asked = [pcr for pcr in values if pcr != 10]
        assert verify_boot_log(log, values, bank=bank, pcrs=asked).passed
        match = match_prefix(entries, values[10], bank)
        assert match is not None
        assert 0 < match.matched <= len(entries)
    assert not entry_findings(entries)
    assert check_boot_aggregate(entries[0], pcrs) is BootAggregate.PCRS_0_9


@pytest.mark.parametrize("folder", own_boots(), ids=lambda folder: folder.name)
def test_own_capture_secure_boot(folder):
    """Secure Boot is what PCR 7 proves, and enforced only with an authority (rules 41, 42)."""
    values = own_pcrs(folder)[BANK]
    log = decode_boot_log((folder / "eventlog.bin").read_bytes())
    asked = [pcr for pcr in values if pcr != 10]
    facts = boot_facts(verify_boot_log(log, values, bank=BANK, pcrs=asked))
    on = folder.name != "secureboot-off"
    assert (facts.secure_boot.enabled, facts.secure_boot.enforced) == (on, on)
    assert not facts.refused
    # GRUB measures no command line for a kernel that it chain-loads as an EFI program.
    assert any("root=" in line for line in facts.command_lines) is on


def test_each_dropped_event_of_a_real_boot_names_its_register():
    """N13 on a real log: dropping any event is refused by exactly its PCR."""
    folder = BOOTS / "good"
    values = own_pcrs(folder)[BANK]
    log = decode_boot_log((folder / "eventlog.bin").read_bytes())
    asked = [pcr for pcr in values if pcr != 10]
    for number, event in enumerate(log.events):
        if not event.extends:
            continue
        rest = type(log)(
            format=log.format,
            banks=log.banks,
            events=log.events[:number] + log.events[number + 1 :],
        )
        checked = verify_boot_log(rest, values, bank=BANK, pcrs=asked)
        assert [found.pcr for found in checked.differences] == [event.pcr]


@needs_corpus
@pytest.mark.parametrize("name", sorted(LOGS))
def test_corpus_boot_log(name):
    """Every register of every bank, the banks, the count and Secure Boot of a real log (rules 34-47)."""
    expected = LOGS[name]
    answer = judge_boot_log((CORPUS / name).read_bytes())
    document = answer.document
    assert answer.exit_code == 0
    assert document["algorithms"] == expected["algs"]
    assert document["events"] == expected["events"]
    for bank, values in expected["pcrs"].items():
        assert document["pcrs"][bank] == values
    measured = expected["secureboot"]
    value = SECURE_BOOT.get(measured[0]) if measured else None
    assert document["secureBoot"]["enabled"] is value


@needs_corpus
@pytest.mark.parametrize("name", sorted(LOGS))
def test_corpus_events_have_a_meaning(name):
    """No event of a real log is malformed in words, and separators are always proven (rule 38)."""
    log = decode_boot_log((CORPUS / name).read_bytes())
    bank = next((bank for bank in log.algorithms if replay(log, bank).complete), None)
    assert bank is not None
    for event in log.events:
        digest = log.digest(event, bank)
        meaning = describe(event, digest or b"", bank)
        assert meaning.text
        assert "malformed" not in meaning.text
        if event.type == 4 and event.pcr <= 7:
            assert meaning.proof is Proof.DATA


@needs_corpus
@pytest.mark.parametrize("name", sorted(RUNTIME))
def test_corpus_runtime_log(name):
    """Entries, templates, violations and PCR 10 of a real log, padded banks included (rule 51)."""
    expected = RUNTIME[name]
    document = judge_ima_log((CORPUS / name).read_bytes()).document
    assert document["entries"] == expected["entries"]
    assert document["templates"] == expected["templates"]
    assert document["violations"] == expected["violations"]
    assert document["badTemplateDigests"] == expected["bad_template_digest"]
    for bank, value in expected["pcr10"].items():
        assert document["pcr10"][bank] == value


@needs_corpus
def test_corpus_runtime_logs_have_an_answer():
    """Each file is accepted, refused with a reason, or malformed with a place (rules 52, 53)."""
    answers = {}
    for path in sorted((CORPUS / "ima").iterdir()):
        try:
            answers[path.name] = judge_ima_log(path.read_bytes()).reason
        except MalformedEvidence as error:
            answers[path.name] = f"cut at {error.offset}"
    refused = {name: reason for name, reason in answers.items() if reason is not None}
    assert refused == {
        "keylime__test__data__create-runtime-policy__ima-log-unknown": "TEMPLATE_OR_HASH_UNKNOWN",
        "tpm2-tss__test__data__fapi__eventlog__sml-ima-ng-sha1-invalidated.bin": "cut at 0",
        "tpm2-tss__test__data__fapi__eventlog__sml-ima-ng-sha1.bin": "cut at 558",
        "tpm2-tss__test__data__fapi__eventlog__sml-ima-sha1.bin": "cut at 916",
        "tpm2-tss__test__data__fapi__eventlog__sml-ima-sig-sha256.bin": "cut at 987",
    }


def captured_pcrs(folder: Path) -> dict[HashAlgorithm, dict[int, bytes]]:
    """Register values out of tpm2_pcrread's text."""
    found: dict[HashAlgorithm, dict[int, bytes]] = {}
    bank = BANK
    for line in (folder / "pcrs.txt").read_text().splitlines():
        key, _, value = line.strip().partition(":")
        if key.strip() in {"sha1", "sha256"}:
            bank = HashAlgorithm(key.strip())
        elif "0x" in value:
            found.setdefault(bank, {})[int(key)] = bytes.fromhex(value.strip()[2:])
    return found


@needs_captures
@pytest.mark.parametrize(
    "name", ["good-boot1", "good-boot2", "good-busybox", "bad-cmdline", "uki-snakeoil-secureboot"]
)
def test_shared_capture_replays(name):
    """Logs agree with the registers of the captured host; userspace extends PCR 11 of a UKI later."""
    folder = CAPTURES / name
    log = decode_boot_log((folder / "eventlog.bin").read_bytes())
    runtime = decode_ima_log((folder / "ima.bin").read_bytes()).entries
    for bank, values in captured_pcrs(folder).items():
        checked = verify_boot_log(log, values, bank=bank, pcrs=[*range(10), 11, 14])
        wrong = [found.pcr for found in checked.differences]
        assert wrong == ([11] if name.startswith("uki") else [])
        match = match_prefix(runtime, values[10], bank)
        assert match is not None
        assert match.matched == len(runtime)
        assert boot_facts(checked).secure_boot.enforced


@needs_captures
def test_shared_capture_without_a_boot_log_is_a_clean_refusal():
    """An empty file beside extended registers is "no event log", not a crash (rule 34)."""
    folder = CAPTURES / "bad-secureboot-off-no-eventlog"
    raw = (folder / "eventlog.bin").read_bytes()
    assert judge_boot_log(raw).reason == "NO_EVENT_LOG"
    values = captured_pcrs(folder)[BANK]
    checked = verify_boot_log(decode_boot_log(raw), values, bank=BANK, pcrs=range(8))
    assert [found.pcr for found in checked.differences] == list(range(8))


@needs_captures
@pytest.mark.parametrize("name", ["good-boot1", "bad-cmdline", "good-busybox"])
def test_shared_capture_in_both_forms(name):
    """The text form of a log is the same log."""
    folder = CAPTURES / name
    binary = decode_ima_log((folder / "ima.bin").read_bytes()).entries
    text = decode_ima_log((folder / "ima.ascii").read_bytes()).entries
    assert [entry[2:] for entry in text] == [entry[2:] for entry in binary]
