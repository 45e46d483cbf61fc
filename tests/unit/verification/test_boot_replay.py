"""What is remembered of boot logs: the same answer to the same question, and nothing to another one."""

import gc
import weakref
from dataclasses import FrozenInstanceError
from threading import Thread
from types import MappingProxyType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.corpus import CORPUS
from support.log_vectors import event_log_vectors
from support.logbuilder import APPLICATION, LogBuilder, digest, good_log, userspace_record

from trustauthority.appraisal import bootfacts
from trustauthority.appraisal.bootfacts import boot_facts
from trustauthority.codec.eventlog import decode_boot_log
from trustauthority.errors import TrustAuthorityError
from trustauthority.model.bootlog import RegisterKind
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.quirk import Quirk
from trustauthority.verification import bootreplay
from trustauthority.verification.banks import _CONSTRUCTORS
from trustauthority.verification.bootreplay import KnownBoots, replay_boot
from trustauthority.verification.replay import VerifiedBootLog, replay

SHA1, SHA256 = HashAlgorithm.SHA1, HashAlgorithm.SHA256
PCRS = frozenset(range(10))
NONE: frozenset[Quirk] = frozenset()
GOOD = good_log()


def registers(builder: LogBuilder, pcrs=PCRS):
    """Quoted values of a log, zero where it has no event."""
    return {
        bank: {pcr: builder.registers[str(bank)].get(pcr, bytes(bank.size)) for pcr in pcrs}
        for bank in (SHA1, SHA256)
    }


QUOTED = registers(GOOD)


def registers_of(builder: LogBuilder, bank: HashAlgorithm):
    """Quoted values of one bank."""
    return {pcr: builder.registers[str(bank)].get(pcr, bytes(bank.size)) for pcr in PCRS}


def flat(answer):
    """An answer as plain values: a verified log is equal to itself only."""
    return {
        bank: (
            each.problem,
            each.log
            and tuple(
                getattr(each.log, name) for name in VerifiedBootLog.__slots__ if name[0] != "_"
            ),
        )
        for bank, each in answer.items()
    }


def ask(known: KnownBoots, data: bytes = GOOD.bytes, quoted=None, pcrs=PCRS, quirks=NONE):
    return known.replay(data, QUOTED if quoted is None else quoted, pcrs=pcrs, quirks=quirks)


@pytest.fixture
def replays(monkeypatch) -> list[bytes]:
    """The logs that were really replayed."""
    made: list[bytes] = []

    def counted(data, *arguments, **options):
        made.append(data)
        return replay_boot(data, *arguments, **options)

    monkeypatch.setattr(bootreplay, "replay_boot", counted)
    return made


def test_a_known_log_is_not_replayed_again(replays):
    """The second host with this boot costs a hash; its facts are the first one's."""
    known = KnownBoots()
    first = ask(known)
    assert ask(known) is first
    assert len(replays) == 1
    assert first[SHA256].log.passed
    assert boot_facts(first[SHA256].log) is boot_facts(first[SHA256].log)


@pytest.mark.parametrize("pcr", sorted(PCRS))
@pytest.mark.parametrize("bank", [SHA1, SHA256])
def test_another_value_of_any_register_is_another_question(replays, pcr, bank):
    """A changed PCR never finds the answer of the good one (N13, S12)."""
    known = KnownBoots()
    ask(known)
    other = {each: dict(values) for each, values in QUOTED.items()}
    other[bank][pcr] = (
        bytes(reversed(other[bank][pcr])) if any(other[bank][pcr]) else b"\1" * bank.size
    )
    answer = ask(known, quoted=other)
    assert len(replays) == 2
    assert [each.pcr for each in answer[bank].log.differences] == [pcr]
    del other[bank][pcr]
    assert [each.pcr for each in ask(known, quoted=other)[bank].log.differences] == [pcr]


def test_a_register_that_is_not_asked_for_is_not_part_of_the_question(replays):
    """PCR 10 grows with each file: it must not make each boot a new one, nor enter the answer."""
    known = KnownBoots()
    for value in (b"\1", b"\2"):
        quoted = {bank: values | {10: value * bank.size} for bank, values in QUOTED.items()}
        assert 10 not in ask(known, quoted=quoted)[SHA256].log.values
    assert len(replays) == 1


def test_every_other_part_of_the_question_counts(replays):
    """Other bytes, registers, quirks, or banks are replayed by themselves, never taken over."""
    known = KnownBoots()
    ask(known)
    ask(known, data=GOOD.bytes + bytes(1))
    ask(known, data=b"")
    ask(known, pcrs=PCRS - {3})
    ask(known, quirks=frozenset({Quirk.EXIT_BOOT_SERVICES_MISSING}))
    assert list(ask(known, quoted={SHA256: QUOTED[SHA256]})) == [SHA256]
    ask(known, quoted={SHA1: QUOTED[SHA1]})
    swapped = {SHA1: QUOTED[SHA256], SHA256: QUOTED[SHA1]}
    assert not ask(known, quoted=swapped)[SHA256].log.passed
    assert len(replays) == 8
    for _ in range(2):
        ask(known)
    assert len(replays) == 8


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    asked=st.lists(
        st.tuples(
            st.one_of(
                st.sampled_from([vector.raw for vector in event_log_vectors()]),
                st.binary(max_size=80),
            ),
            st.sampled_from(
                [QUOTED, {SHA256: QUOTED[SHA256]}, {SHA1: dict.fromkeys(range(3), b"")}]
            ),
            st.sampled_from([PCRS, frozenset({0, 7}), frozenset()]),
            st.sampled_from([NONE, frozenset(Quirk)]),
        ),
        max_size=12,
    )
)
def test_it_says_what_a_replay_says(asked):
    """Whatever was asked before, the answer is the one of a replay without a memory (N13, N45)."""
    known = KnownBoots(most=3, most_bytes=20_000)
    for data, quoted, pcrs, quirks in asked * 2:
        remembered = known.replay(data, quoted, pcrs=pcrs, quirks=quirks)
        assert flat(remembered) == flat(replay_boot(data, quoted, pcrs=pcrs, quirks=quirks))


def test_the_corpus_twice():
    """Each real log is answered the second time as the first time, facts included."""
    if not CORPUS.is_dir():
        pytest.skip("the corpus is not beside the project")
    known, answered = KnownBoots(), 0
    for path in sorted((CORPUS / "eventlogs").iterdir()):
        data = path.read_bytes()
        try:
            log = decode_boot_log(data)
        except TrustAuthorityError:
            continue
        if log.registers is not RegisterKind.PCR:
            continue
        quoted = {bank: replay(log, bank).values for bank in log.algorithms}
        pcrs = frozenset().union(*quoted.values())
        first = known.replay(data, quoted, pcrs=pcrs, quirks=NONE)
        again = replay_boot(data, quoted, pcrs=pcrs, quirks=NONE)
        assert known.replay(data, quoted, pcrs=pcrs, quirks=NONE) is first
        assert flat(first) == flat(again)
        for bank in first:
            if first[bank].log is not None:
                assert boot_facts(first[bank].log) == boot_facts(again[bank].log)
                answered += 1
    assert answered > 30


def test_what_is_remembered_is_bounded_in_number(replays):
    """A host that sends ever new logs makes us forget others, not grow (pitfalls 45)."""
    known = KnownBoots(most=2)
    logs = [GOOD.bytes + bytes(n) for n in range(4)]
    for data in (logs[0], logs[1], logs[0], logs[2], logs[0], logs[2]):
        ask(known, data=data)
    assert len(replays) == 3
    ask(known, data=logs[1])
    assert len(replays) == 4
    assert len(known._known) == 2


def test_what_is_remembered_is_bounded_in_bytes(replays):
    """The sum of sizes stays below the bound, and one that is too large is not kept at all."""
    size = bootreplay._size(GOOD.bytes, ask(KnownBoots()))
    assert size > len(GOOD.bytes)
    known = KnownBoots(most_bytes=2 * size + 200)
    for n in (0, 1, 2, 3, 2, 3):
        ask(known, data=GOOD.bytes + bytes(n))
    assert known._bytes <= 2 * size + 200
    assert len(known._known) == 2
    assert len(replays) == 1 + 4
    small = KnownBoots(most_bytes=size - 1)
    ask(small), ask(small)
    assert len(replays) == 1 + 4 + 2
    assert (len(small._known), small._bytes) == (0, 0)
    exact = KnownBoots(most_bytes=size)
    ask(exact)
    assert (len(exact._known), exact._bytes) == (1, size)


def test_the_size_of_an_ordinary_boot():
    """120 events of two banks and 40 KiB count as about 100 KiB, as the bound's description says."""
    builder = LogBuilder()
    for _ in range(120):
        builder.event(4, 0x5, bytes(262))
    answer = ask(KnownBoots(), builder.bytes, registers(builder))
    assert 38 * 1024 < len(builder.bytes) < 42 * 1024
    assert 95 * 1024 < bootreplay._size(builder.bytes, answer) < 110 * 1024


def test_the_longer_of_two_banks_counts():
    """Banks share records: what one of them does not prove is in memory all the same."""
    other = {SHA1: QUOTED[SHA1] | {7: bytes(20)}, SHA256: QUOTED[SHA256]}
    answers = [ask(KnownBoots(), quoted=quoted) for quoted in (QUOTED, other)]
    assert len(answers[1][SHA1].log.events) < len(answers[1][SHA256].log.events)
    first, second = (bootreplay._size(GOOD.bytes, answer) for answer in answers)
    assert first == second


def test_sizes_are_estimated_from_above():
    """What a log of many small records takes in memory is not underestimated (pitfalls 45)."""
    import tracemalloc

    builder = LogBuilder(banks=("sha1", "sha256", "sha384"))
    for _ in range(3_000):
        builder.event(4, APPLICATION, b"x")
    quoted = {SHA256: {4: builder.registers["sha256"][4]}}
    data = builder.bytes
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        answer = replay_boot(data, quoted, pcrs=[4], quirks=NONE)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert held <= bootreplay._size(data, answer) <= 3 * held


def test_threads_share_it(replays):
    """Two threads that ask at once get answers to their own questions, and the sums hold."""
    known = KnownBoots(most=4)
    wrong: list[object] = []

    def work(start: int) -> None:
        for n in range(200):
            pcrs = frozenset(range((start + n) % 7))
            answer = ask(known, pcrs=pcrs)
            if answer[SHA256].log.verified_pcrs != pcrs:
                wrong.append(pcrs)

    threads = [Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not wrong
    assert len(known._known) <= 4
    assert known._bytes == sum(size for _, size in known._known.values())


def test_nobody_can_change_what_is_remembered():
    """Answers are shared by all hosts: none of their parts can be written to (S12)."""
    answer = ask(KnownBoots())
    assert isinstance(answer, MappingProxyType)
    log = answer[SHA256].log
    assert isinstance(log.values, MappingProxyType)
    assert isinstance(log.quirks, MappingProxyType)
    with pytest.raises(FrozenInstanceError):
        log.events = ()
    facts = boot_facts(log)
    assert isinstance(facts.unrecognised, MappingProxyType)
    with pytest.raises(FrozenInstanceError):
        facts.findings = ()


def test_facts_are_kept_by_log_and_quirks_and_go_with_the_log():
    """Facts under one set of quirks are never those of another, and no log is held for its facts."""
    early = LogBuilder().event(4, APPLICATION, bytes(32)).boot()
    quoted = registers(early)
    answer = replay_boot(early.bytes, quoted, pcrs=PCRS, quirks=NONE)
    log = answer[SHA256].log
    plain = boot_facts(log)
    lenient = boot_facts(log, quirks=[Quirk.APPLICATION_BEFORE_CALLING_EVENT])
    assert [each.id for each in plain.findings] != [each.id for each in lenient.findings]
    assert boot_facts(log, quirks=(Quirk.APPLICATION_BEFORE_CALLING_EVENT,)) is lenient
    gone = weakref.ref(log)
    before = len(bootfacts._KNOWN)
    del log, answer
    gc.collect()
    assert gone() is None
    assert len(bootfacts._KNOWN) < before


# --- several boots in one file (rule 47) -----------------------------------------------------


def other_boot(builder: LogBuilder) -> LogBuilder:
    """A further boot in the same file, with another boot loader."""
    return builder.restart().boot().event(4, APPLICATION, b"other", hashed=b"other loader")


def chosen(data: bytes, quoted, **options):
    """Which boot of the file answered, and whether it explains each bank."""
    answer = replay_boot(data, quoted, pcrs=PCRS, quirks=NONE, **options)
    logs = [answer[bank].log for bank in quoted]
    assert len({(log.boot, log.of_boots) for log in logs}) == 1
    return logs[0].boot, [log.passed for log in logs]


def test_a_quote_after_a_resume_is_held_against_the_newest_boot():
    """Together the logs give no value that any TPM ever had (rule 47)."""
    builder = other_boot(good_log())
    assert chosen(builder.bytes, registers(builder)) == (2, [True, True])
    answer = replay_boot(builder.bytes, registers(builder), pcrs=PCRS, quirks=NONE)
    first = len(good_log().offsets)
    assert min(event.number for event in answer[SHA256].log.events) > first


def test_a_quote_of_an_earlier_boot_is_told_from_the_newest():
    """It proves the boot that it is of, and says that another one follows."""
    builder = other_boot(good_log())
    assert chosen(builder.bytes, registers(good_log())) == (1, [True, True])
    log = replay_boot(builder.bytes, registers(good_log()), pcrs=PCRS, quirks=NONE)[SHA256].log
    assert not log.of_newest
    assert max(event.number for event in log.events) < len(good_log().offsets)


def test_equal_boots_are_the_newest():
    """The same boot twice: the newest, of which there is nothing to warn."""
    builder = good_log().restart().boot()
    assert chosen(builder.bytes, registers(builder)) == (2, [True, True])


def test_registers_of_all_logs_in_a_row_are_refused():
    """No reset between two boots: no platform does that, and PCRs so filled are forged."""
    builder = good_log()
    builder.header().boot()  # registers go on
    assert chosen(builder.bytes, registers(builder)) == (2, [False, False])


def test_banks_of_two_boots_are_not_mixed():
    """One bank as after the first boot and one as after the second is no state of any TPM (rule 47)."""
    builder = other_boot(good_log())
    mixed = {SHA1: registers(good_log())[SHA1], SHA256: registers(builder)[SHA256]}
    assert sorted(chosen(builder.bytes, mixed)[1]) == [False, True]


@pytest.mark.parametrize("pcr", sorted(PCRS))
def test_registers_of_two_boots_are_not_mixed(pcr):
    """Every register follows from the one boot; a false one is named."""
    builder = other_boot(good_log())
    quoted = registers(builder)
    quoted[SHA256][pcr] = b"\x55" * 32
    answer = replay_boot(builder.bytes, quoted, pcrs=PCRS, quirks=NONE)
    assert answer[SHA256].log.boot == 2
    assert [each.pcr for each in answer[SHA256].log.differences] == [pcr]


def test_a_boot_appended_to_a_log_proves_nothing():
    """A made-up end of the file: facts come from the boot that is quoted, and the end is said."""
    forged = good_log().restart().event(0, 8, b"made up").policy().separators()
    facts = replay_boot(forged.bytes, QUOTED, pcrs=PCRS, quirks=NONE)[SHA256].log
    assert (facts.boot, facts.passed, facts.of_newest) == (1, True, False)


def test_the_log_of_user_space_stands_behind_the_chosen_boot():
    """Records of user space follow the boot that is quoted, and keep numbers of their own (rule 49)."""
    builder = other_boot(good_log())
    quoted = {SHA256: dict(registers(builder)[SHA256])}
    measured = digest("sha256", b"ready")
    quoted[SHA256][11] = digest("sha256", bytes(32) + measured)
    answer = replay_boot(
        builder.bytes,
        quoted,
        pcrs=PCRS | {11},
        quirks=NONE,
        userspace=userspace_record("ready"),
    )[SHA256].log
    assert answer.passed
    assert answer.in_register(11)[0].number == len(builder.offsets)


def test_a_bank_that_cannot_be_computed_chooses_no_boot(monkeypatch):
    """SM3 without OpenSSL's SM3: the other bank says which boot, and SM3 is a problem (rule 6)."""
    builder = other_boot(good_log(("sha256", "sm3_256")))
    sm3 = HashAlgorithm.SM3_256
    quoted = {SHA256: registers_of(builder, SHA256), sm3: registers_of(builder, sm3)}
    monkeypatch.setitem(_CONSTRUCTORS, sm3, None)
    answer = replay_boot(builder.bytes, quoted, pcrs=PCRS, quirks=NONE)
    assert answer[SHA256].log.passed
    assert answer[sm3].log is None
