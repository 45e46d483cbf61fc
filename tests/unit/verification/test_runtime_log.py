"""The runtime log of one piece of evidence: a window at a time, and the same answer as all at once."""

import dataclasses
import hashlib
import json
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.corpus import CORPUS
from support.log_vectors import ima_vectors
from support.logbuilder import ima_record, ima_register, ng_data, sized

from trustauthority.appraisal.appraise import judge_runtime
from trustauthority.appraisal.runtimefiles import judge_files
from trustauthority.codec import ima
from trustauthority.codec.ima import ImaStream, decode_ima_binary
from trustauthority.codec.runtimerules import decode_runtime_rules
from trustauthority.errors import TrustAuthorityError
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.ima import ImaReplayState
from trustauthority.verification.runtime import (
    MAX_FINDINGS,
    BootAggregate,
    EntryDefect,
    entry_findings,
    extend_entries,
    match_prefix,
)
from trustauthority.verification.runtimelog import (
    RuntimeProgress,
    no_progress,
    replay_runtime_log,
)

BANK = HashAlgorithm.SHA256
PATHS = ("/bin/a", "/bin/b", "/usr/lib/ünï", "/bin/\udcff")
"""The last one has a byte that is not UTF-8."""


def content_digest(path: str) -> str:
    return hashlib.sha256(name(path)).hexdigest()


def name(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def rules(**changes):
    """Rules that know each of ``PATHS`` by the digest of its own name."""
    files = {path: [f"sha256:{content_digest(path)}"] for path in PATHS}
    document = {"version": 1, "files": files, "excluded": ["/var/*"]} | changes
    return decode_runtime_rules(json.dumps(document).encode())


RULES = rules()
BLIND = dataclasses.replace(RULES, approved={})
"""The same rules without their fast form: every entry goes the general way."""


def known(path: str = PATHS[0], *, tail: bytes = b"") -> bytes:
    """Template data of a file that the rules know."""
    return ng_data(name(path), name(path)) + tail


def record(data: bytes, template: bytes = b"ima-ng", **options) -> bytes:
    return ima_record(data, template, **options)


def all_at_once(log: bytes, start: RuntimeProgress, quoted: bytes, under):
    """The plain way, written apart: decode everything, match, check and judge the proven entries."""
    stream = ImaStream(index=start.count, offset=start.offset)
    try:
        entries = stream.feed(log)
        stream.finish()
    except TrustAuthorityError:
        return "malformed"
    state = ImaReplayState(value=start.value, count=start.count)
    match = match_prefix(entries, quoted, BANK, state=state)
    if match is None:
        return "no prefix", len(entries)
    proven = entries[: match.matched]
    end = entries[match.matched].offset if match.matched < len(entries) else stream.offset
    defects = entry_findings(proven)
    defective = frozenset(each.index for each in defects)
    judged = judge_files(
        proven, under, defective=defective, defects_cut=len(defective) >= MAX_FINDINGS
    )
    return (
        match.state,
        end,
        sum(entry.violation for entry in proven),
        len(defects),
        defective,
        len(entries) - match.matched,
        judged,
    )


def in_windows(log: bytes, start: RuntimeProgress, quoted: bytes, under):
    """The same facts by the project's way."""
    found = replay_runtime_log(log, start, {BANK: {10: quoted}}, bank=BANK, rules=under)
    if found.problem:
        assert found.progress == start
        assert not list(found.entries)
        assert not found.approved
        return (
            ("no prefix", found.unproven) if found.problem.startswith("no prefix") else "malformed"
        )
    progress = found.progress
    return (
        ImaReplayState(value=progress.value, count=progress.count),
        progress.offset,
        progress.violations - start.violations,
        progress.defects - start.defects,
        found.defective,
        found.unproven,
        judge_runtime(found, under, None),
    )


def start_at(count: int = 0, offset: int = 0, value: bytes = bytes(32)) -> RuntimeProgress:
    return RuntimeProgress(value=value, count=count, offset=offset, violations=3, defects=1)


GOOD = [record(known(path)) for path in PATHS]
SHA256_LOGGED = record(known(), value=hashlib.sha256(known()).digest())
ODD = [
    record(ng_data(b"/bin/unknown")),
    record(ng_data(b"/var/log/x")),
    record(ng_data(name(PATHS[0]), b"another content")),
    record(ng_data(b"boot_aggregate")),
    record(known(), value=bytes(20)),  # a violation at a known file
    record(known(), value=b"\x01" * 20),  # logged digest is not that of the data
    record(known(), pcr=11),
    record(known(tail=b"\0")),  # fields do not fill the data
    record(known(), b"ima-ngv2"),
    record(known(), b"ima-nope"),
    record(known(tail=sized(b"")), b"ima-sig"),
    record(known(tail=sized(b"\x03\x02signature")), b"ima-sig"),
    record(known(tail=sized(b"cut")[:-1]), b"ima-sig"),
    record(known(), b"ima-sig"),
    record(known()[:-1] + b"x", b"ima-sig"),
    record(b"", b"ima-sig"),
    record(known(tail=sized(b"buffer")), b"ima-buf"),
    record(sized(b"sha1:\0" + bytes(20)) + sized(b"/bin/a\0")),
    record(sized(b"sha256:\0" + bytes(31)) + sized(b"/bin/a\0")),
    SHA256_LOGGED,  # 32 bytes of digest between others: the form of the log breaks
]
CASES = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(params=[1, 100, 333, 1 << 16])
def window(request, monkeypatch):
    """Entries that lie across windows, and windows that hold the whole log."""
    monkeypatch.setattr(ima, "WINDOW_BYTES", request.param)


def register_after(log: bytes, count: int, value: bytes = bytes(32)) -> bytes:
    """What the register holds after some entries of a log, or a wild value for none."""
    stream = ImaStream()
    try:
        entries = stream.feed(log)
    except TrustAuthorityError:
        return bytes(32)
    return extend_entries(entries[:count], BANK, state=ImaReplayState(value=value, count=0)).value


@pytest.mark.parametrize("size", [1, 97, 1 << 16])
@given(
    records=st.lists(st.sampled_from(GOOD * 4 + ODD), max_size=14),
    reached=st.integers(0, 15),
    begun=st.booleans(),
    broken=st.sampled_from([b"", b"", b"", b"\0", GOOD[0][:-1], b"\xff" * 40]),
)
@CASES
def test_windows_give_what_the_whole_log_gives(size, records, reached, begun, broken):
    """Counts, defects, verdict on files and offset are those of the plain way (rules 51-54, 58; N13)."""
    before = ima.WINDOW_BYTES
    ima.WINDOW_BYTES = size
    try:
        value = b"\x07" * 32 if begun else bytes(32)
        start = start_at(40, 5000, value) if begun else start_at()
        log = b"".join(records)
        quoted = register_after(log, reached, value)
        for under in (RULES, BLIND):
            assert in_windows(log + broken, start, quoted, under) == all_at_once(
                log + broken, start, quoted, BLIND
            )
    finally:
        ima.WINDOW_BYTES = before


@pytest.mark.parametrize("vector", ima_vectors(), ids=lambda vector: vector.name)
def test_the_vectors_one_by_one(vector, window):
    """Each vector of the project gives in windows what it gives at once (rule 53)."""
    quoted = register_after(vector.raw, 1000)
    start = no_progress(BANK)
    assert in_windows(vector.raw, start, quoted, RULES) == all_at_once(
        vector.raw, start, quoted, BLIND
    )


def test_real_logs_give_in_windows_what_they_give_at_once(window):
    """Each binary log of the corpus, at its end and half way (rules 51-54)."""
    if not CORPUS.is_dir():
        pytest.skip("the corpus is not beside the project")
    looked_at = 0
    for path in sorted((CORPUS / "ima").iterdir()):
        log = path.read_bytes()
        if log[:2] == b"10":
            continue  # the text form
        for count in (3, 100_000):
            quoted, start = register_after(log, count), no_progress(BANK)
            assert in_windows(log, start, quoted, RULES) == all_at_once(log, start, quoted, BLIND)
            looked_at += 1
    assert looked_at >= 10


@pytest.mark.parametrize("good", [0, 1, 60])
def test_after_too_many_defects_nothing_is_approved(good, window):
    """Behind the last defect that is listed no entry counts, known file or not (rule 58)."""
    bad = record(known(), value=b"\x01" * 20)
    log = b"".join([*GOOD[:1] * good, *[bad] * (MAX_FINDINGS + 5), *GOOD])
    quoted = register_after(log, 10_000)
    start = no_progress(BANK)
    found = replay_runtime_log(log, start, {BANK: {10: quoted}}, bank=BANK, rules=RULES)
    judged = judge_runtime(found, RULES, None)
    assert (judged.by_digest, judged.refused) == (good, MAX_FINDINGS + 5 + len(GOOD))
    assert in_windows(log, start, quoted, RULES) == all_at_once(log, start, quoted, BLIND)


def test_what_other_rules_approved_counts_for_nothing():
    """Approvals under one document are no approvals under another: nothing is judged then (N04)."""
    log = b"".join(GOOD)
    quoted = register_after(log, 99)
    other = rules(excluded=[])
    start = no_progress(BANK)
    for made, judging in ((RULES, other), (None, RULES), (other, RULES)):
        found = replay_runtime_log(log, start, {BANK: {10: quoted}}, bank=BANK, rules=made)
        assert judge_runtime(found, judging, None) is None
    assert judge_runtime(found, other, None).by_digest == len(GOOD)


def test_entries_after_the_proven_ones_are_out_of_reach():
    """An entry that the quote does not reach is not yielded, not approved and ties nothing (rule 54)."""
    boot = record(ng_data(b"boot_aggregate"))
    log = b"".join([*GOOD, boot, ODD[0]])
    for count in range(5):
        quoted = register_after(log, count)
        found = replay_runtime_log(
            log, no_progress(BANK), {BANK: {10: quoted}}, bank=BANK, rules=RULES
        )
        assert (found.approved, list(found.entries)) == (count, [])
        assert found.unproven == 6 - count
        assert found.progress.aggregate is BootAggregate.MISSING
    late = register_after(log, 6)
    found = replay_runtime_log(log, no_progress(BANK), {BANK: {10: late}}, bank=BANK, rules=RULES)
    assert [entry.number for entry in found.entries] == [4, 5]
    assert list(found.entries) == list(decode_ima_binary(log)[4:])


def test_a_delta_is_counted_and_read_from_where_it_begins():
    """What continues a log is numbered on, and its bytes are those of the delta (rule 55)."""
    first, rest = b"".join(GOOD), b"".join([ODD[0], *GOOD, ODD[0]])
    begun = RuntimeProgress(
        value=register_after(first, len(GOOD)), count=len(GOOD), offset=len(first)
    )
    whole = register_after(first + rest, 2 * len(GOOD) + 2)
    found = replay_runtime_log(rest, begun, {BANK: {10: whole}}, bank=BANK, rules=RULES)
    assert found.problem == ""
    assert (found.progress.count, found.progress.offset) == (
        2 * len(GOOD) + 2,
        len(first) + len(rest),
    )
    expected = decode_ima_binary(first + rest)
    assert list(found.entries) == [expected[len(GOOD)], expected[-1]]
    other = replay_runtime_log(rest, begun, {BANK: {10: bytes(32)}}, bank=BANK, rules=RULES)
    assert (other.unproven, other.progress) == (len(GOOD) + 2, begun)
    assert other.problem.startswith("no prefix")


def test_an_unquoted_register_proves_nothing():
    """Without PCR 10 in the quote there is a problem, and no entry (rule 54)."""
    found = replay_runtime_log(
        b"".join(GOOD), no_progress(BANK), {BANK: {0: bytes(32)}}, bank=BANK, rules=RULES
    )
    assert found.problem == "the policy does not quote PCR 10"
    assert not found.approved
    assert not list(found.entries)


def test_a_log_of_long_digests_is_approved_too():
    """New kernels log the digest by SHA-256: such entries are known files as well, or defects."""
    log = SHA256_LOGGED * 3 + record(known(), value=b"\x05" * 32)
    found = replay_runtime_log(
        log,
        no_progress(BANK),
        {BANK: {10: register_after(log, 4)}},
        bank=BANK,
        rules=RULES,
    )
    assert found.approved == 3
    assert found.defective == {3}


def test_the_fast_form_of_the_rules_knows_no_more_than_the_rules():
    """A path that no bytes decode to, or a hash that does not count, is in no fast form."""
    digest = content_digest("x")
    twice = "/\udcc3\udca9"  # encodes to the bytes of é, which decode to another path
    assert (
        decode_runtime_rules(
            json.dumps(
                {"version": 1, "files": {twice: [f"sha256:{digest}"], "/\ud800": []}}
            ).encode()
        ).approved
        == {}
    )
    for fields, logged in RULES.approved.items():
        assert hashlib.sha1(fields, usedforsecurity=False).digest() == logged
    weak = {"version": 1, "files": {"/a": ["sha1:" + "00" * 20, f"sha256:{digest}"]}}
    assert len(decode_runtime_rules(json.dumps(weak).encode()).approved) == 1


def test_memory_does_not_grow_with_the_log():
    """A hundred times the entries take no more memory than one window of them (pitfalls 45, N45)."""
    peaks = []
    for under in (RULES, BLIND, None):
        log = b"".join(GOOD) * 3_000
        quoted = ima_register([known(path) for path in PATHS] * 3_000)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            found = replay_runtime_log(
                log, no_progress(BANK), {BANK: {10: quoted}}, bank=BANK, rules=under
            )
            judged = judge_runtime(found, under, None)
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
        finally:
            tracemalloc.stop()
        assert found.progress.count == 12_000
        assert judged is None if under is None else judged.by_digest == 12_000
    assert max(peaks) < 1 << 20, peaks


def test_defect_names_are_those_of_the_general_way():
    """A wrong register and a wrong digest are found although a known file carries them (rules 51, 58)."""
    log = ODD[6] + ODD[5]
    entries = decode_ima_binary(log)
    assert [finding.defect for finding in entry_findings(entries)] == [
        EntryDefect.REGISTER,
        EntryDefect.TEMPLATE_DIGEST,
    ]
    found = replay_runtime_log(
        log, no_progress(BANK), {BANK: {10: register_after(log, 2)}}, bank=BANK, rules=RULES
    )
    assert found.defective == {0, 1}
    assert found.approved == 0
