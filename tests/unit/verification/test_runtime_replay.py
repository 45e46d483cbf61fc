"""Replay of IMA logs: prefixes, violations, deltas, boot aggregate (rules 51-56, 58; N22)."""

import hashlib
import struct

import pytest
from support.logbuilder import digest, ima_record, ima_register, ng_data, sized

from trustauthority.codec.ima import ImaStream, decode_ima_binary
from trustauthority.errors import AlgorithmUnsupported, MalformedEvidence
from trustauthority.model.digest import HashAlgorithm
from trustauthority.verification.runtime import (
    BootAggregate,
    EntryDefect,
    check_boot_aggregate,
    entry_finding,
    entry_findings,
    extend_entries,
    initial_state,
    match_prefix,
)
from trustauthority.verification.runtimelog import no_progress, replay_runtime_log

BANK = HashAlgorithm.SHA256
ITEMS = [ng_data(f"/file{number}".encode()) for number in range(6)]
ENTRIES = decode_ima_binary(b"".join(ima_record(item) for item in ITEMS))


@pytest.mark.parametrize("bank", list(HashAlgorithm))
@pytest.mark.parametrize("count", range(7))
def test_each_prefix_is_found_in_each_bank(bank, count):
    """The log may be ahead of the quote by any number of entries (rule 54)."""
    match = match_prefix(ENTRIES, ima_register(ITEMS[:count], str(bank)), bank)
    assert match is not None
    assert (match.matched, match.state.count) == (count, count)


@pytest.mark.parametrize("count", range(6))
def test_a_missing_or_doubled_or_moved_entry_matches_no_prefix(count):
    """Each entry counts, and so does its place (N13, N22: missing prefix)."""
    quoted = ima_register(ITEMS)
    rest = ENTRIES[:count] + ENTRIES[count + 1 :]
    assert match_prefix(rest, quoted, BANK) is None
    assert match_prefix((*rest, ENTRIES[count]), quoted, BANK) is None or count == 5
    assert (
        match_prefix((*ENTRIES[: count + 1], *ENTRIES[count:]), quoted, BANK) is None or count == 5
    )


def test_deltas_go_on_where_the_last_match_ended():
    """Only new entries travel; the state proves the same as the whole log (rules 54, 55)."""
    first = match_prefix(ENTRIES[:4], ima_register(ITEMS[:3]), BANK)
    second = match_prefix(ENTRIES[3:], ima_register(ITEMS), BANK, state=first.state)
    assert (first.matched, second.matched, second.state.count) == (3, 3, 6)
    nothing = match_prefix((), ima_register(ITEMS), BANK, state=second.state)
    assert (nothing.matched, nothing.state) == (0, second.state)
    assert match_prefix(ENTRIES[4:], ima_register(ITEMS), BANK, state=first.state) is None


def test_a_violation_extends_ones():
    """A zero digest stands for 0xff in the register; nothing is known of the file (rule 52)."""
    raw = ima_record(ITEMS[0]) + ima_record(ITEMS[1], value=bytes(20))
    entries = decode_ima_binary(raw)
    assert [entry.violation for entry in entries] == [False, True]
    for bank in (HashAlgorithm.SHA1, BANK):
        assert match_prefix(entries, ima_register([ITEMS[0], b""], str(bank)), bank).matched == 2
    assert match_prefix(entries, ima_register(ITEMS[:2]), BANK) is None


def test_padded_banks_are_a_mode_of_the_whole_log():
    """Old kernels extend the SHA-1 digest with zeros behind it; never decided per entry (rule 51)."""
    value = bytes(32)
    for item in ITEMS:
        value = digest(
            "sha256", value + hashlib.sha1(item, usedforsecurity=False).digest() + bytes(12)
        )
    assert match_prefix(ENTRIES, value, BANK) is None
    assert match_prefix(ENTRIES, value, BANK, padded=True).matched == 6
    mixed = digest(
        "sha256",
        ima_register(ITEMS[:1])
        + hashlib.sha1(ITEMS[1], usedforsecurity=False).digest()
        + bytes(12),
    )
    assert match_prefix(ENTRIES, mixed, BANK) is None
    assert match_prefix(ENTRIES, mixed, BANK, padded=True) is None


def test_entries_of_another_register_are_not_extended_and_are_findings():
    """IMA extends the configured register and no other (rule 51)."""
    entries = decode_ima_binary(ima_record(ITEMS[0]) + ima_record(ITEMS[1], pcr=11))
    assert extend_entries(entries, BANK).value == ima_register(ITEMS[:1])
    assert [(found.index, str(found.defect)) for found in entry_findings(entries)] == [
        (1, "entry-of-another-pcr")
    ]
    assert extend_entries(entries, BANK, pcr=11).value == ima_register(ITEMS[1:2])


def test_a_digest_that_does_not_match_its_data_is_caught_although_the_register_replays():
    """A SHA-1 register follows the logged digest: the data needs its own check (rule 58)."""
    logged = b"\x07" * 20
    entries = decode_ima_binary(ima_record(ITEMS[0], value=logged))
    quoted = digest("sha1", bytes(20) + logged)
    assert match_prefix(entries, quoted, HashAlgorithm.SHA1).matched == 1
    assert [str(found.defect) for found in entry_findings(entries)] == ["template-digest-mismatch"]


def test_findings_are_bounded():
    """One is enough to refuse; a hostile log can't fill the report (N21)."""
    entries = decode_ima_binary(ima_record(ITEMS[0], value=b"\x07" * 20) * 300)
    assert len(entry_findings(entries)) == 100


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha384", "sha512", "sm3_256"])
@pytest.mark.parametrize(
    ("last", "outcome"), [(7, BootAggregate.PCRS_0_7), (9, BootAggregate.PCRS_0_9)]
)
def test_boot_aggregate_of_any_bank(algorithm, last, outcome):
    """The first entry is the hash of PCR 0-7 or 0-9 in a bank (rule 56)."""
    bank = HashAlgorithm(algorithm)
    values = {pcr: bytes((pcr,)) * bank.size for pcr in range(24)}
    joined = b"".join(values[pcr] for pcr in range(last + 1))
    name = {"sm3_256": "sm3"}.get(algorithm, algorithm)
    data = sized(name.encode() + b":\0" + digest(algorithm, joined)) + sized(b"boot_aggregate\0")
    (first,) = decode_ima_binary(ima_record(data))
    assert check_boot_aggregate(first, {bank: values}) is outcome
    changed = values | {3: bytes(bank.size)}
    assert check_boot_aggregate(first, {bank: changed}) is BootAggregate.MISMATCH
    assert check_boot_aggregate(first, {bank: {0: values[0]}}) is BootAggregate.MISMATCH


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        (ng_data(b"/not/it"), BootAggregate.MISSING),
        (sized(b"sha256:\0" + bytes(32)) + sized(b"boot_aggregate\0"), BootAggregate.ZERO),
        (sized(b"md5:\0" + b"\x01" * 16) + sized(b"boot_aggregate\0"), BootAggregate.MISMATCH),
        (sized(b"new:\0" + bytes(32)) + sized(b"boot_aggregate\0"), BootAggregate.MISSING),
        (b"", BootAggregate.MISSING),
    ],
)
def test_a_boot_aggregate_that_ties_nothing(data, outcome):
    """Missing, zero or of an unknown hash is never a match (rule 56, N22)."""
    (first,) = decode_ima_binary(ima_record(data))
    assert check_boot_aggregate(first, {}) is outcome
    assert check_boot_aggregate(None, {}) is BootAggregate.MISSING


def test_a_hash_that_this_openssl_lacks_ties_nothing(monkeypatch):
    """What can't be compared does not fit, and never crashes a verdict (rule 56, N04)."""

    def lacks(_bank):
        raise AlgorithmUnsupported("no SM3 here", algorithm="sm3")

    monkeypatch.setattr("trustauthority.verification.runtime.hash_constructor", lacks)
    data = sized(b"sha256:\0" + b"\x01" * 32) + sized(b"boot_aggregate\0")
    first = decode_ima_binary(ima_record(data))[0]
    assert check_boot_aggregate(first, {}) is BootAggregate.MISMATCH


def test_the_state_at_boot():
    """A fresh boot begins at zero with no entry."""
    assert (initial_state(BANK).value, initial_state(BANK).count) == (bytes(32), 0)


def test_a_stream_of_old_entries_waits_for_the_rest():
    """The first template has no data length; its entries may be cut anywhere (rule 53)."""
    content = digest("sha1", b"x")
    raw = struct.pack("<I", 10) + bytes(20) + sized(b"ima") + content + sized(b"/bin/x")
    for cut in range(1, len(raw)):
        stream = ImaStream()
        assert stream.feed(raw[:cut]) == []
        with pytest.raises(MalformedEvidence):
            stream.finish()
        (entry,) = stream.feed(raw[cut:])
        assert entry.data == content + b"/bin/x".ljust(256, b"\0")


def test_a_stream_can_start_in_the_middle_of_a_boot():
    """Numbers and offsets go on where the last delta ended (rule 55)."""
    stream = ImaStream(index=40, offset=5000, digest_size=20)
    (entry,) = stream.feed(ima_record(ITEMS[0]))
    assert (entry.number, entry.offset) == (40, 5000)
    assert (stream.index, stream.offset) == (41, 5000 + len(ima_record(ITEMS[0])))
    assert stream.feed(b"") == []
    with pytest.raises(MalformedEvidence) as caught:
        stream.feed(struct.pack("<I", 10) + bytes(20) + b"\xff" * 8)
    assert caught.value.offset == stream.offset


@pytest.mark.parametrize(
    ("algorithm", "template"),
    [
        ("sha1", b"ima-ng"),
        ("sha1", b"d-ng|n-ng"),
        ("sha1", b"new"),
        ("sha256", b"ima-ng"),
        ("sha384", b"ima-ng"),
        ("sha512", b"ima-ng"),
    ],
)
def test_the_size_of_the_template_digest_shows_at_any_cut(algorithm, template):
    """However the first bytes arrive, the entries are those of the whole file (rule 51)."""
    raw = b"".join(ima_record(item, template, value=digest(algorithm, item)) for item in ITEMS)
    whole = decode_ima_binary(raw)
    assert [entry.data for entry in whole] == ITEMS
    assert not any(
        str(found.defect).startswith("template-digest") for found in entry_findings(whole)
    )
    for cut in range(1, 120):
        stream = ImaStream()
        entries = stream.feed(raw[:cut]) + stream.feed(raw[cut:])
        stream.finish()
        assert tuple(entries) == whole


# --- entries and aggregates along a log ----------------------------------------------------------

REGISTERS = {BANK: {pcr: bytes((pcr,)) * 32 for pcr in range(10)}}
RIGHT = sized(b"sha256:\0" + digest("sha256", b"".join(REGISTERS[BANK].values()))) + sized(
    b"boot_aggregate\0"
)
WRONG = sized(b"sha256:\0" + b"\1" * 32) + sized(b"boot_aggregate\0")
OTHER_FILE = sized(b"sha256:\0" + b"\1" * 32) + sized(b"/tmp/boot_aggregate\0")


@pytest.mark.parametrize(
    ("datas", "outcome"),
    [
        ([RIGHT], BootAggregate.PCRS_0_9),
        ([RIGHT, RIGHT], BootAggregate.PCRS_0_9),
        ([RIGHT, WRONG], BootAggregate.MISMATCH),
        ([RIGHT, WRONG, RIGHT], BootAggregate.MISMATCH),
        ([WRONG, RIGHT], BootAggregate.MISMATCH),
        ([OTHER_FILE, RIGHT], BootAggregate.MISSING),
        ([RIGHT, OTHER_FILE], BootAggregate.PCRS_0_9),
    ],
    ids=["right", "kexec", "kexec of another", "too late", "wrong first", "none first", "a file"],
)
def test_a_later_aggregate_can_only_make_it_worse(datas, outcome):
    """Rule 56: kexec adds one; a process may give a file that name, and must gain nothing by it."""
    log = b"".join(map(ima_record, datas))
    quoted = {BANK: REGISTERS[BANK] | {10: ima_register(datas)}}
    found = replay_runtime_log(log, no_progress(BANK), quoted, bank=BANK)
    assert (found.problem, found.progress.aggregate) == ("", outcome)
    assert (found.rules, found.approved) == ("", 0)


@pytest.mark.parametrize(
    ("data", "template", "defect"),
    [
        (RIGHT, b"ima-ng", None),
        (RIGHT[:-1], b"ima-ng", EntryDefect.FIELDS),
        (RIGHT + b"x", b"ima-ng", EntryDefect.FIELDS),
        (b"", b"ima-ng", EntryDefect.FIELDS),
        (RIGHT, b"ima-what", EntryDefect.TEMPLATE_UNKNOWN),
    ],
)
def test_what_is_wrong_with_an_entry_is_named(data, template, defect):
    """Rules 53, 58: fields that do not fill the data, and templates that nobody knows."""
    (entry,) = decode_ima_binary(ima_record(data, template))
    found = entry_finding(entry)
    assert (None if found is None else (found.defect, found.index)) == (
        None if defect is None else (defect, 0)
    )
