"""A good bundle changed anywhere: refused by name, or claiming nothing that the good one did not."""

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import CodeType, FrameType

import pytest
from support.logslices import event_slices
from support.small_bundle import (
    BANKS,
    EXPECTED,
    GOOD,
    KEY,
    NONCE,
    POLICY,
    QUALIFIED_NAME,
    boot_log_places,
    failures,
    judge,
)
from support.tpm_structures import make_quote

from trustauthority.codec.ima_log import decode_ima_log
from trustauthority.errors import EvidenceRejected, MalformedEvidence
from trustauthority.model.evidence import Evidence
from trustauthority.model.verdict import Verdict
from trustauthority.verification.keystrength import strong_public_key

BEST = judge(GOOD)
PLACES = boot_log_places(GOOD.boot_log)
HEADER, EVENTS = event_slices(GOOD.boot_log)
OWN = ("/trustauthority/codec/", "/trustauthority/verification/", "/trustauthority/appraisal/")


def flips(data: bytes, bit: int, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """The data with this bit of one byte flipped, for each byte in turn."""
    for place in range(start, len(data) if end is None else end):
        changed = bytearray(data)
        changed[place] ^= 1 << bit
        yield bytes(changed)


def named_pcrs(verdict: Verdict) -> set[int]:
    """PCRs that failed checks name."""
    return {check.pcr for check in failures(verdict.checks) if check.pcr >= 0}


def log_pcrs(verdict: Verdict, bank: str) -> set[int]:
    """PCRs that the log does not reproduce in a bank."""
    prefix = f"boot-log.{bank}.pcr-"
    ids = [check.id for check in failures(verdict.checks)]
    return {int(each.removeprefix(prefix)) for each in ids if each.startswith(prefix)}


def claims_nothing_new(verdict: Verdict) -> bool:
    """The same variants, and no check that passes beyond those of the good bundle."""
    found = {(check.id, check.state) for check in verdict.checks}
    good = {(check.id, check.state) for check in BEST.checks}
    return found == good and verdict.variants == BEST.variants


def test_the_good_bundle_passes():
    """What every refusal below is measured against."""
    assert BEST.passed
    assert BEST.baseline == "golden"


# --- every bit -----------------------------------------------------------------------------------

each_bit = pytest.mark.parametrize("bit", range(8))


@each_bit
@pytest.mark.parametrize("part", ["attest", "signature", "pcr_values"])
def test_every_bit_of_the_quote_counts(part, bit):
    """A flipped bit of attest, signature or PCR values is no evidence at all (N12, N13, N15)."""
    for changed in flips(getattr(GOOD, part), bit):
        with pytest.raises((EvidenceRejected, MalformedEvidence)):
            judge(replace(GOOD, **{part: changed}))


@each_bit
@pytest.mark.parametrize("bank", BANKS)
def test_every_bit_of_a_logged_digest_names_its_register(bank, bit):
    """The bank and the PCR, and no other PCR (N13)."""
    for place in PLACES:
        if place.what != bank:
            continue
        for changed in flips(GOOD.boot_log, bit, place.start, place.end):
            verdict = judge(replace(GOOD, boot_log=changed))
            assert not verdict.passed
            assert log_pcrs(verdict, bank) == {place.pcr}
            assert all(not log_pcrs(verdict, other) for other in BANKS if other != bank)


@each_bit
@pytest.mark.parametrize("what", ["pcr", "count", "algorithm", "size"])
def test_every_bit_of_the_structure_counts(what, bit):
    """An event moved to another PCR fails both; a broken frame is no log, and no claim (rule 45)."""
    moved = 0
    for place in PLACES:
        if place.what != what:
            continue
        for changed in flips(GOOD.boot_log, bit, place.start, place.end):
            verdict = judge(replace(GOOD, boot_log=changed))
            assert not verdict.passed
            assert named_pcrs(verdict)
            moved += place.pcr in log_pcrs(verdict, "sha256")
    assert moved or what != "pcr" or bit > 4


@each_bit
@pytest.mark.parametrize("what", ["type", "data", "header"])
def test_bits_that_no_digest_covers_claim_nothing_new(what, bit):
    """Types and hints may be wrong without being found out; they never prove anything (rules 37, 38)."""
    refused = 0
    for place in PLACES:
        if place.what != what:
            continue
        for changed in flips(GOOD.boot_log, bit, place.start, place.end):
            verdict = judge(replace(GOOD, boot_log=changed))
            assert claims_nothing_new(verdict) if verdict.passed else failures(verdict.checks)
            refused += not verdict.passed
    assert refused > 50


@each_bit
def test_every_bit_of_the_runtime_log_counts(bit):
    """Template digest, name, data or frame: PCR 10 fails (N22, rules 51-58)."""
    for changed in flips(GOOD.ima_log, bit):
        verdict = judge(replace(GOOD, ima_log=changed))
        assert not verdict.passed
        assert 10 in named_pcrs(verdict)


# --- every event ---------------------------------------------------------------------------------


def with_events(events: list[bytes]) -> Verdict:
    """The verdict on a log of these events."""
    return judge(replace(GOOD, boot_log=HEADER + b"".join(events)))


def register_of(event: bytes) -> int:
    """The PCR of an event."""
    return int.from_bytes(event[:4], "little")


@pytest.mark.parametrize("number", range(len(EVENTS)))
def test_a_dropped_or_doubled_event_is_refused(number):
    """By the verdict, in both banks, naming the one PCR (N13)."""
    pcr = register_of(EVENTS[number])
    dropped = with_events([*EVENTS[:number], *EVENTS[number + 1 :]])
    doubled = with_events([*EVENTS[: number + 1], *EVENTS[number:]])
    for verdict in (dropped, doubled):
        assert not verdict.passed
        assert [log_pcrs(verdict, bank) for bank in BANKS] == [{pcr}, {pcr}]


@pytest.mark.parametrize("number", range(len(EVENTS)))
def test_exchanged_events_are_refused(number):
    """Two events of one PCR in the wrong order fail it; of two PCRs, the log says the same (N13)."""
    for other in range(number + 1, len(EVENTS)):
        events = list(EVENTS)
        events[number], events[other] = events[other], events[number]
        verdict = with_events(events)
        pcr = register_of(EVENTS[number])
        between = {register_of(each) for each in EVENTS[number + 1 : other]}
        if register_of(EVENTS[other]) == pcr:
            assert [log_pcrs(verdict, bank) for bank in BANKS] == [{pcr}, {pcr}]
            assert not verdict.passed
        elif not between & {pcr, register_of(EVENTS[other])}:
            assert not any(log_pcrs(verdict, bank) for bank in BANKS)
            assert claims_nothing_new(verdict) or not verdict.passed
        else:
            assert not verdict.passed


def ima_entries() -> list[bytes]:
    """The bytes of each entry of the runtime log."""
    entries = decode_ima_log(GOOD.ima_log).entries
    ends = [entry.offset for entry in entries[1:]] + [len(GOOD.ima_log)]
    return [GOOD.ima_log[entry.offset : end] for entry, end in zip(entries, ends, strict=True)]


@pytest.mark.parametrize("number", range(len(ima_entries())))
def test_a_dropped_doubled_or_moved_entry_is_refused(number):
    """The runtime log as well; what comes after the quote is unproven, not refused (N22, rule 54)."""
    entries = ima_entries()
    dropped = [*entries[:number], *entries[number + 1 :]]
    doubled = [*entries[: number + 1], *entries[number:]]
    moved = [*dropped, entries[number]]
    for changed in (dropped, doubled, moved):
        last = number == len(entries) - 1
        verdict = judge(replace(GOOD, ima_log=b"".join(changed)))
        if changed is not dropped and last:
            assert verdict.passed  # the same log, or one entry more than the quote proves
            continue
        assert not verdict.passed
        assert 10 in named_pcrs(verdict)


# --- every register ------------------------------------------------------------------------------


@pytest.mark.parametrize("pcr", POLICY.evidence.pcrs)
@pytest.mark.parametrize("bank", BANKS)
def test_another_value_in_a_register_is_refused_by_its_name(bank, pcr):
    """The TPM quotes, truly, a register into which something else was extended (N13)."""
    verdict = judge(evidence_with(bank, pcr))
    if pcr == 10 and bank == "sha1":
        assert (
            verdict.passed
        )  # no claim rests on SHA-1, and the runtime log is replayed where one does
        return
    assert not verdict.passed
    assert pcr in named_pcrs(verdict)
    if pcr != 10:
        assert log_pcrs(verdict, bank) == {pcr}


def evidence_with(bank: str, pcr: int) -> Evidence:
    """A genuine quote over other values."""
    sizes = {"sha1": 20, "sha256": 32}
    values, at = {}, 0
    for each in BANKS:
        values[each] = {}
        for index in POLICY.evidence.pcrs:
            values[each][index] = GOOD.pcr_values[at : at + sizes[each]]
            at += sizes[each]
    values[bank][pcr] = b"\x5a" * sizes[bank]
    quote = make_quote(KEY, pcrs=values, extra_data=NONCE, signer=QUALIFIED_NAME)
    return replace(
        GOOD, attest=quote.attest, signature=quote.signature, pcr_values=quote.pcr_values
    )


# --- every step ----------------------------------------------------------------------------------


class Fault(Exception):
    """What a step raises."""


Site = tuple[CodeType, int, CodeType]
"""Caller, the instruction it is at, and what it calls."""


def own_call(frame: FrameType, event: str) -> Site | None:
    """A call of one of our functions, by where it comes from."""
    code, caller = frame.f_code, frame.f_back
    if event != "call" or caller is None or not any(part in code.co_filename for part in OWN):
        return None
    return caller.f_code, caller.f_lasti, code


def traced(profile: Callable[[FrameType, str, object], None]) -> Verdict:
    """A verdict on the good bundle, with each call reported."""
    strong_public_key.cache_clear()
    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        return judge(GOOD, EXPECTED)
    finally:
        sys.setprofile(before)


def sites() -> list[Site]:
    """Every call site of our code that a verdict passes."""
    found: dict[Site, None] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        site = own_call(frame, event)
        if site is not None:
            found[site] = None

    assert traced(note).passed
    return list(found)


def test_a_fault_at_any_call_never_passes(monkeypatch):
    """Each call site of verification, appraisal and codec raises once: refused, or FAILED (N04, S12)."""
    closed: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", closed.append)
    all_sites = sites()
    names = {site[2].co_name for site in all_sites}
    assert {"verify_quote", "check_signature", "verify_boot_log", "replay_runtime_log"} <= names
    assert {"runtime_checks", "judge_boot", "secure_boot_checks", "judge_files"} <= names
    assert len(all_sites) > 200
    for site in all_sites:
        hits: list[Site] = []

        def raise_there(
            frame: FrameType, event: str, _: object, wanted: Site = site, hits: list[Site] = hits
        ) -> None:
            if not hits and own_call(frame, event) == wanted:
                hits.append(wanted)
                raise Fault

        try:
            verdict = traced(raise_there)
        except (Fault, EvidenceRejected, MalformedEvidence):
            assert hits
            continue
        where = f"{site[0].co_qualname} calls {site[2].co_qualname}"
        assert hits, where
        if closed:  # a generator that nobody asks any more was closed: its end decides nothing
            assert site[2].co_flags & inspect.CO_GENERATOR, where
            closed.clear()
            continue
        assert not verdict.passed, where
