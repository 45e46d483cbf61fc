"""The second log: what user space extended after the boot loader, at every prefix (rules 49, 54)."""

import json

import pytest
from support.logbuilder import IPL, LogBuilder, good_log, userspace_record

from trustauthority.model.digest import HashAlgorithm
from trustauthority.verification.bootreplay import BankReplay, KnownBoots, replay_boot

SHA1, SHA256 = HashAlgorithm.SHA1, HashAlgorithm.SHA256
PHASES = [(11, "enter-initrd"), (15, "machine-id:1"), (11, "sysinit"), (11, "ready")]
LOG = b"".join(userspace_record(word, pcr) for pcr, word in PHASES)
ASKED = frozenset((*range(10), 11, 15))


def boot() -> LogBuilder:
    """A boot that measured a unified kernel image into PCR 11, and nothing into PCR 15."""
    return good_log().event(11, IPL, b"image")


def quoted(phases, builder: LogBuilder | None = None) -> dict[HashAlgorithm, dict[int, bytes]]:
    """What a quote says after these phases."""
    builder = builder or boot()
    for pcr, word in phases:
        builder.event(pcr, 0x5, word.encode())
    return {
        bank: {pcr: builder.registers[str(bank)].get(pcr, bytes(bank.size)) for pcr in ASKED}
        for bank in (SHA1, SHA256)
    }


def judge(values, userspace: bytes = LOG, **options) -> BankReplay:
    """The answer of the SHA-256 bank."""
    options = {"pcrs": ASKED, "quirks": frozenset()} | options
    return replay_boot(boot().bytes, values, userspace=userspace, **options)[SHA256]


def differing(answer: BankReplay) -> list[int]:
    """Registers that the logs do not explain."""
    assert answer.log is not None
    return [found.pcr for found in answer.log.differences]


@pytest.mark.parametrize("count", range(len(PHASES) + 1))
def test_the_log_may_be_ahead_of_the_quote(count):
    """Read after the quote it holds what came meanwhile; only what the quote proves is an event."""
    values = quoted(PHASES[:count])
    for answer in replay_boot(
        boot().bytes, values, pcrs=ASKED, quirks=frozenset(), userspace=LOG
    ).values():
        assert differing(answer) == []
        said = [event.data.decode() for event in answer.log.events if event.type == 0xFFFF0001]
        assert said == [word for _, word in PHASES[:count]]


@pytest.mark.parametrize("count", range(len(PHASES)))
def test_a_dropped_record_fails_its_register(count):
    """What was extended must be in the log (N13)."""
    rest = PHASES[:count] + PHASES[count + 1 :]
    userspace = b"".join(userspace_record(word, pcr) for pcr, word in rest)
    assert differing(judge(quoted(PHASES), userspace)) == [PHASES[count][0]]


def test_records_of_registers_that_nobody_asked_for_change_nothing():
    """The log holds all that user space measured; only quoted registers count (rule 49)."""
    other = userspace_record("volume-key", 12)
    parts = [userspace_record(word, pcr) for pcr, word in PHASES]
    answer = judge(quoted(PHASES), other.join(parts))
    assert differing(answer) == []


def test_without_the_second_log_its_registers_differ():
    """The boot log alone does not explain what came after it (rule 34)."""
    assert differing(judge(quoted(PHASES), b"")) == [11, 15]
    assert differing(judge(quoted(PHASES), b"", pcrs=range(10))) == []


def test_registers_must_fit_at_one_moment():
    """No mixing: one register as after the first record, the other as after the last."""
    mixed = quoted(PHASES)
    mixed[SHA256][11] = quoted(PHASES[:1])[SHA256][11]
    mixed[SHA256][15] = quoted(PHASES[:0])[SHA256][15]
    assert differing(judge(mixed)) == []  # as after the first record
    late = userspace_record("sysinit") + userspace_record("machine-id:1", 15)
    assert differing(judge(quoted([(15, "machine-id:1")]), late)) == [11]


@pytest.mark.parametrize("pcr", [8, 9, 14])
def test_user_space_explains_every_other_register(pcr):
    """From PCR 8 on the registers are the operating system's: its own log counts there (rule 49)."""
    pcrs = ASKED | {pcr}
    builder = boot().event(pcr, 0x5, b"ours")
    values = {
        bank: {each: builder.registers[str(bank)].get(each, bytes(bank.size)) for each in pcrs}
        for bank in (SHA1, SHA256)
    }
    assert differing(judge(values, userspace_record("ours", pcr), pcrs=pcrs)) == []
    assert differing(judge(values, b"", pcrs=pcrs)) == [pcr]


@pytest.mark.parametrize("pcr", range(8))
def test_user_space_explains_no_register_of_the_firmware(pcr):
    """Whoever is root may extend PCR 7 and log it; that explains nothing (rules 37, 49)."""
    forged = [(pcr, "evil")]
    userspace = userspace_record("evil", pcr)
    assert differing(judge(quoted(forged), userspace)) == [pcr]


def test_a_record_without_the_bank_explains_nothing():
    """No bank stands in for another one (rule 39)."""
    userspace = userspace_record("ready", banks=("sha1",))
    answer = judge(quoted([(11, "ready")]), userspace)
    assert differing(answer) == [11]


@pytest.mark.parametrize("userspace", [b"no json\n", b"{}\n", json.dumps([1]).encode()])
def test_a_log_that_is_none_is_a_problem(userspace):
    """Malformed logs are findings of that host, not errors (rule 65)."""
    answer = judge(quoted(PHASES), userspace)
    assert answer.log is None
    assert "userspace log at byte 0" in answer.problem


def test_memory_of_boots_tells_second_logs_apart():
    """What is remembered is the answer to the very same question, second log and banks included."""
    known = KnownBoots()
    values = quoted(PHASES)
    for userspace, expected in ((LOG, []), (b"", [11, 15]), (LOG, [])):
        answer = known.replay(
            boot().bytes, values, pcrs=ASKED, quirks=frozenset(), userspace=userspace
        )[SHA256]
        assert differing(answer) == expected
    only = {SHA256: values[SHA256]}
    for banks, hidden in ((), False), ((SHA1, SHA256), True), ((), False):
        answers = known.replay(
            boot().bytes, only, pcrs=ASKED, quirks=frozenset(), userspace=LOG, banks=banks
        )
        assert (SHA1 in answers) is hidden
