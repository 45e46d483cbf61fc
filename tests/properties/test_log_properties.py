"""Properties of the log decoders and replays, over arbitrary bytes and over every event."""

import hashlib
import tracemalloc
from pathlib import Path
from time import process_time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.corpus import CORPUS
from support.log_vectors import event_log_vectors, ima_vectors
from support.logbuilder import LogBuilder, good_log, ima_record, ng_data

from trustauthority.appraisal.bootfacts import boot_facts
from trustauthority.cli.evidence_eventlog import judge_boot_log
from trustauthority.cli.evidence_ima import judge_ima_log
from trustauthority.codec import eventlog, ima_ascii
from trustauthority.codec.efi import (
    count_signatures,
    decode_image_load,
    decode_partition_table,
    decode_signature_lists,
    decode_variable,
)
from trustauthority.codec.eventlog import MAX_LOG_BYTES, MAX_LOGS, decode_boot_log
from trustauthority.codec.ima import ImaStream, decode_ima_fields, path_and_digest
from trustauthority.codec.ima_log import decode_ima_log
from trustauthority.errors import AlgorithmUnsupported, MalformedEvidence
from trustauthority.model.bootlog import BootLog
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.ima import ImaEntry
from trustauthority.verification.bootreplay import quoted_boot
from trustauthority.verification.replay import compare, replay, verify_boot_log

BANK = HashAlgorithm.SHA256
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
GOOD = good_log().bytes
SEEDS = [vector.raw for vector in event_log_vectors() if len(vector.raw) < 5000]
IMA_SEEDS = [vector.raw for vector in ima_vectors()]


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A vector with some bytes exchanged, cut or repeated."""
    raw = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        if raw:
            raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    start = draw(st.integers(0, len(raw)))
    end = draw(st.integers(start, len(raw)))
    kind = draw(st.sampled_from(["keep", "cut", "drop", "double"]))
    middle = {
        "keep": raw[start:end],
        "cut": raw[start:end],
        "drop": b"",
        "double": raw[start:end] * 2,
    }
    if kind == "cut":
        return bytes(raw[:end])
    return bytes(raw[:start] + middle[kind] + raw[end:])


def check_place(error: MalformedEvidence, data: bytes) -> None:
    """An error points into the bytes."""
    assert 0 <= error.offset <= len(data)


def long_way(entry: ImaEntry) -> tuple[str, str, bytes]:
    """Path and digest out of all fields."""
    fields = decode_ima_fields(entry)
    return fields.path, fields.algorithm, fields.digest


@QUICK
@given(st.one_of(st.binary(max_size=400), mutated(SEEDS)))
@example(b"")
def test_any_bytes_are_a_boot_log_or_malformed(data):
    """Decode, replay and facts end in a model or MalformedEvidence, whatever the bytes (rule 45, N45)."""
    try:
        answer = judge_boot_log(data, events=True)
    except MalformedEvidence as error:
        check_place(error, data)
        return
    assert answer.document["events"] == len(decode_boot_log(data).events)


@QUICK
@given(st.one_of(st.binary(max_size=300), mutated(IMA_SEEDS)))
@example(b"10 ")
def test_any_bytes_are_a_runtime_log_or_malformed(data):
    """Decode, replay and checks end in a model or MalformedEvidence, whatever the bytes (N45)."""
    try:
        answer = judge_ima_log(data, quoted=bytes(32))
    except MalformedEvidence as error:
        check_place(error, data)
        return
    assert answer.document["entries"] == len(decode_ima_log(data).entries)


@QUICK
@given(st.binary(max_size=300))
def test_any_bytes_are_an_efi_structure_or_malformed(data):
    """Each structure inside event data is bounded by that data (rule 45)."""
    for decode in (
        decode_variable,
        decode_signature_lists,
        count_signatures,
        decode_image_load,
        decode_partition_table,
    ):
        try:
            decode(data)
        except MalformedEvidence as error:
            check_place(error, data)


@QUICK
@given(
    st.sampled_from(["ima-ng", "ima-sig", "ima-ngv2", "ima-modsig", "evm-sig", "ima-buf", "ima"]),
    st.binary(max_size=120),
)
def test_the_short_way_to_path_and_digest_is_the_long_way(template, data):
    """The fast reading of an entry gives what the full one gives, or the same refusal (rule 53)."""
    if template == "ima":
        data = data.ljust(276, b"\0")
    entry = ImaEntry(0, 0, 10, bytes(20), template, data)
    assert outcome(path_and_digest, entry) == outcome(long_way, entry)


@QUICK
@given(
    st.sampled_from([b"", b"/a", b"/x y", b"\xff\0", b"\0"]), st.binary(max_size=6), st.booleans()
)
def test_the_short_way_agrees_near_the_common_shape(path, tail, signed):
    """The same, on data that is nearly what nearly all entries are (rule 53)."""
    entry = ImaEntry(0, 0, 10, bytes(20), "ima-sig" if signed else "ima-ng", ng_data(path) + tail)
    assert outcome(path_and_digest, entry) == outcome(long_way, entry)


def outcome(function, value):
    """What a function returns, or the class of its refusal."""
    try:
        return function(value)
    except (MalformedEvidence, AlgorithmUnsupported) as error:
        return type(error)


@pytest.mark.parametrize("size", range(0, len(GOOD), 7))
def test_truncation_never_passes_as_the_whole_log(size):
    """A log cut anywhere is malformed, or one whose registers differ from the quote (rule 45, N13)."""
    whole = replay(decode_boot_log(GOOD), BANK)
    try:
        log = decode_boot_log(GOOD[:size])
    except MalformedEvidence:
        return
    checked = verify_boot_log(log, whole.values, bank=BANK, pcrs=whole.values)
    assert checked.differences


def edited(log: BootLog, events) -> BootLog:
    """The same log with other events."""
    return BootLog(format=log.format, banks=log.banks, events=tuple(events), starts=log.starts)


LOG = decode_boot_log(GOOD)
WHOLE = replay(LOG, BANK)
MEASURED = [event.number for event in LOG.events if event.extends]


@pytest.mark.parametrize("number", MEASURED)
def test_a_dropped_or_doubled_event_changes_exactly_its_register(number):
    """Every event counts, and a refusal names the right PCR (N13)."""
    events = list(LOG.events)
    pcr = events[number].pcr
    dropped = edited(LOG, events[:number] + events[number + 1 :])
    doubled = edited(LOG, events[: number + 1] + events[number:])
    for changed in (dropped, doubled):
        differences = compare(replay(changed, BANK), WHOLE.values, WHOLE.values)
        assert [difference.pcr for difference in differences] == [pcr]


@pytest.mark.parametrize("number", MEASURED)
def test_a_moved_event_changes_exactly_its_register(number):
    """The order within a register counts; the order between registers does not (N13)."""
    events = list(LOG.events)
    pcr = events[number].pcr
    later = [event for event in events[number + 1 :] if event.pcr == pcr and event.extends]
    others = [event for event in later if event.digests != events[number].digests]
    moved = edited(LOG, [*events[:number], *events[number + 1 :], events[number]])
    differences = compare(replay(moved, BANK), WHOLE.values, WHOLE.values)
    assert [difference.pcr for difference in differences] == ([pcr] if others else [])


@pytest.mark.parametrize("number", MEASURED)
def test_a_changed_digest_bit_changes_exactly_its_register(number):
    """Each bit of a digest counts (N13)."""
    events = list(LOG.events)
    event = events[number]
    position = LOG.position(BANK)
    flipped = bytes((event.digests[position][0] ^ 1,)) + event.digests[position][1:]
    digests = tuple(flipped if at == position else value for at, value in enumerate(event.digests))
    events[number] = event._replace(digests=digests)
    differences = compare(replay(edited(LOG, events), BANK), WHOLE.values, WHOLE.values)
    assert [difference.pcr for difference in differences] == [event.pcr]


def test_changed_event_data_never_becomes_a_claim():
    """Data and types that the digests do not cover change no claim for the better (rules 37, 38)."""
    facts = boot_facts(verify_boot_log(LOG, WHOLE.values, bank=BANK, pcrs=WHOLE.values))
    assert facts.secure_boot.enforced
    for number in MEASURED:
        for change in ({"data": LOG.events[number].data + b"x"}, {"type": 0x2}):
            events = list(LOG.events)
            events[number] = events[number]._replace(**change)
            changed = edited(LOG, events)
            verified = verify_boot_log(changed, WHOLE.values, bank=BANK, pcrs=WHOLE.values)
            found = boot_facts(verified)
            if LOG.events[number].pcr == 7:
                assert not found.secure_boot.enforced
            assert set(found.command_lines) <= set(facts.command_lines)


@QUICK
@given(st.lists(st.integers(1, 200), min_size=1, max_size=8))
def test_a_stream_in_pieces_is_the_whole_log(cuts):
    """Deltas give the entries and the offset of the whole (rule 55)."""
    items = [ng_data(f"/file{number}".encode()) for number in range(5)]
    raw = b"".join(ima_record(item) for item in items)
    stream = ImaStream()
    entries = []
    position = 0
    for cut in cuts:
        entries += stream.feed(raw[position : position + cut])
        position += cut
    entries += stream.feed(raw[position:])
    stream.finish()
    assert tuple(entries) == decode_ima_log(raw).entries
    assert (stream.offset, stream.index) == (len(raw), 5)


def test_hostile_sizes_cost_no_memory():
    """Huge counts and sizes are compared before anything is allocated (N21)."""
    hostile = [vector for vector in event_log_vectors() if "4_gi" in vector.name]
    assert len(hostile) >= 3
    tracemalloc.start()
    for vector in hostile:
        with pytest.raises(MalformedEvidence):
            decode_boot_log(vector.raw)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_size_and_event_limits():
    """A log has at most 4 MiB and 65,536 events (rule 45)."""
    with pytest.raises(MalformedEvidence):
        decode_boot_log(bytes(MAX_LOG_BYTES + 1))
    record = LogBuilder(banks=("sha256",)).event(4, 0xD, b"x")
    body = record.bytes[record.offsets[1] :]
    header = record.bytes[: record.offsets[1]]
    assert len(decode_boot_log(header + body * 40_000).events) == 40_001
    with pytest.raises(MalformedEvidence):
        decode_boot_log(header + body * 65_536)
    legacy = LogBuilder(legacy=True).event(4, 0xD, b"x").bytes
    with pytest.raises(MalformedEvidence):
        decode_boot_log(legacy * 65_537)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_has_at_most_1024_logs(legacy):
    """Each may be a boot, which costs a replay in each bank to be told from the others (rules 45, 47)."""
    banks = ("sha1",) if legacy else ("sha256",)
    one = LogBuilder(banks=banks, legacy=legacy)
    raw = (one.header() if legacy else one).event(0, 8, b"1").bytes
    log = decode_boot_log(raw * MAX_LOGS)
    boots = log.boots()
    assert len(boots) == len(log.starts) == MAX_LOGS
    assert boots[7].boots() == (boots[7],)
    quoted = {bank: {0: bytes(bank.size)} for bank in log.algorithms}
    begin = process_time()
    assert quoted_boot(log, quoted, frozenset(range(24))).boot == MAX_LOGS
    assert process_time() - begin < 2
    with pytest.raises(MalformedEvidence, match="1024 logs") as caught:
        decode_boot_log(raw * (MAX_LOGS + 1))
    assert caught.value.offset == len(raw) * MAX_LOGS


def test_padding_is_looked_at_once():
    """Records that look like the start of padding don't make decoding quadratic (rule 45)."""
    record = b"\0" * 12 + b"\0" * 4
    header = LogBuilder(banks=("sha256",)).bytes
    with pytest.raises(MalformedEvidence):
        decode_boot_log(header + record * 100_000 + b"\x01")


TEXT_NAMES = st.one_of(
    st.sampled_from([b"", b"/bin/ls", b"/a b", b"a\\x20b", b"\\", b"\xff", b"/t\tb", b"/r\r"]),
    st.binary(max_size=8).filter(lambda name: b"\n" not in name),
)
TEXT_DIGESTS = st.sampled_from(
    ["aB" * 20, "ab" * 32, "ab" * 19, "0\t" + "ab" * 19, "ab" * 19 + "zz", "\u0661" * 40, "", " "]
)
TEXT_FILES = st.sampled_from(
    [
        "sha256:" + "cd" * 32,
        "sha256:" + "cd" * 31,
        "sha256:" + "cd" * 31 + "\tc",
        "sha256:" + "cd" * 32 + "\t\t",
        "sha256::" + "cd" * 32,
        "sha1:" + "cd" * 20,
        "sha256:",
        "cd" * 32,
    ]
)


@QUICK
@given(
    register=st.sampled_from(["10", " 10", "010", "1", "11", "24", ""]),
    logged=TEXT_DIGESTS,
    template=st.sampled_from(["ima-ng", "ima-sig", "ima"]),
    content=TEXT_FILES,
    name=TEXT_NAMES,
    tail=st.sampled_from([b"", b" ", b"\r", b" x"]),
)
@example("10", "ab" * 20, "ima-ng", "sha256:" + "cd" * 32, b"/bin/ls", b"")
@example("10", "ab" * 20, "ima-ng", "sha256:" + "cd" * 32, b"a\\x20b", b"")
def test_the_short_way_through_a_text_line_is_the_long_way(
    register, logged, template, content, name, tail
):
    """A usual line gives the very entry that the general reading gives, or is left to it (rule 53)."""
    head = f"{register} {logged} {template} {content} ".encode()
    line = head + name + tail
    usual = ima_ascii._usual_line(line, 7, 3)
    if usual is not None:
        assert usual == ima_ascii._line(line, 7, 3)
        assert type(usual) is ImaEntry


def test_the_usual_line_is_usual():
    """The short way is taken for what kernels write, not only never wrong."""
    data = ng_data(b"/bin/ls")
    logged = hashlib.sha1(data, usedforsecurity=False).hexdigest()
    line = f"10 {logged} ima-ng sha256:{data[12:44].hex()} /bin/ls".encode()
    assert ima_ascii._usual_line(line, 0, 0).data == data


def decode_without_shortcut(data):
    """A crypto-agile log record by record, each by the general way."""
    header, offset = eventlog._legacy_record(data, 0, 0)
    banks, _ = eventlog._decode_spec_id(header)
    end = eventlog._content_end(data)
    events, starts = [eventlog._header_event(header, banks)], [0]
    while offset < end:
        index = len(events)
        if eventlog._is_spec_id(data, offset):
            starts.append(index)
            event, offset = eventlog._repeated_header(data, offset, index, banks)
        else:
            event, offset = eventlog._agile_record(data, offset, index, banks)
        events.append(event)
    return tuple(events), tuple(starts), max(0, len(data) - offset)


def check_both_ways(data):
    """The same records, or a refusal by both."""
    try:
        log = decode_boot_log(data)
    except MalformedEvidence:
        with pytest.raises(MalformedEvidence):
            decode_without_shortcut(data)
        return
    if log.specification:
        assert decode_without_shortcut(data) == (log.events, log.starts, log.padding)


AGILE_SEEDS = [
    seed for seed in SEEDS if seed[32:48] == eventlog.SPEC_ID_AGILE and seed[4:8] == b"\x03\0\0\0"
]


@QUICK
@given(mutated(AGILE_SEEDS))
def test_the_short_way_through_a_boot_record_is_the_long_way(data):
    """Records of the usual shape are read as the general way reads them, or refused by both (rule 45)."""
    if data[32:48] == eventlog.SPEC_ID_AGILE and data[4:8] == b"\x03\0\0\0":
        check_both_ways(data)


def test_both_ways_agree_on_real_logs():
    """The same for every log of the project's captures, and of the corpus where it is present."""
    boots = Path(__file__).parents[1] / "vectors" / "boots"
    paths = [*boots.glob("*/eventlog.bin"), *(CORPUS / "eventlogs").glob("*")]
    assert len(paths) >= 5
    for path in paths:
        check_both_ways(path.read_bytes())
