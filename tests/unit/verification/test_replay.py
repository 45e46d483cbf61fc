"""Replay of boot logs against quoted values (rules 34-36, 39, 43, 46; N13)."""

import pytest
from support.logbuilder import HCRTM, IPL, NO_ACTION, LogBuilder, digest, good_log

from trustauthority.codec.eventlog import decode_boot_log
from trustauthority.errors import AlgorithmUnsupported, LogRejected
from trustauthority.model.bootlog import RegisterKind
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.quirk import Quirk
from trustauthority.verification.banks import _CONSTRUCTORS, hash_constructor
from trustauthority.verification.replay import ReplayDefect, replay, verify_boot_log

BANK = HashAlgorithm.SHA256
PCRS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14)


def quoted_of(builder: LogBuilder, bank: str = "sha256") -> dict[int, bytes]:
    """All 24 registers as a TPM would show them after this boot."""
    size = len(digest(bank, b""))
    start = {pcr: (b"\xff" if 17 <= pcr <= 22 else b"\0") * size for pcr in range(24)}
    return start | builder.registers[bank]


def verify(builder: LogBuilder, quoted: dict[int, bytes], **options):
    """Verify the builder's log in SHA-256."""
    log = decode_boot_log(builder.bytes)
    return verify_boot_log(log, quoted, bank=BANK, pcrs=PCRS, **options)


def test_a_good_log_explains_each_register_and_yields_its_events():
    """Registers without events must still be at reset, and then need none (rule 34)."""
    builder = good_log()
    checked = verify(builder, quoted_of(builder))
    assert checked.passed
    assert checked.verified_pcrs == frozenset(PCRS)
    assert [event.number for event in checked.in_register(9)] == [len(builder.offsets) - 1]
    assert checked.digest(checked.in_register(9)[0]) == digest("sha256", b"content of the initrd")


def test_a_register_without_events_is_a_failure_not_a_pass():
    """Strip all events of PCR 4: the quoted value is then unexplained (rule 34)."""
    builder = good_log()
    log = decode_boot_log(builder.bytes)
    stripped = type(log)(
        format=log.format,
        banks=log.banks,
        events=tuple(event for event in log.events if event.pcr != 4),
    )
    checked = verify_boot_log(stripped, quoted_of(builder), bank=BANK, pcrs=PCRS)
    assert [found.pcr for found in checked.differences] == [4]
    assert "the log has no event for it" in str(checked.differences[0])
    assert 4 not in checked.verified_pcrs
    assert not checked.in_register(4)


def test_an_empty_log_explains_only_registers_at_reset():
    """An empty log never passes for a boot that measured something (rule 34)."""
    builder = good_log()
    log = decode_boot_log(b"")
    checked = verify_boot_log(log, quoted_of(builder), bank=BANK, pcrs=PCRS)
    assert {found.pcr for found in checked.differences} == set(PCRS) - {14}
    assert not checked.events


def test_a_difference_names_the_records_that_do_not_add_up():
    """Which events were extended into a register that differs, each of them, in order (rule 34)."""
    builder = good_log()
    quoted = quoted_of(builder) | {7: b"\1" * 32}
    (found,) = verify(builder, quoted).differences
    log = decode_boot_log(builder.bytes)
    assert found.events == tuple(event.number for event in log.events if event.pcr == 7)
    assert len(found.events) > 3


def test_a_differing_register_keeps_its_events_out_of_reach():
    """Events of a register that does not replay can't become facts (rule 38)."""
    builder = good_log()
    quoted = quoted_of(builder) | {7: bytes(32)}
    checked = verify(builder, quoted)
    assert [found.pcr for found in checked.differences] == [7]
    assert "the log gives" in str(checked.differences[0])
    assert all(event.pcr != 7 for event in checked.events)
    assert not checked.passed


def test_a_register_that_was_not_quoted_is_different():
    """What policy asks for and the quote does not cover is not verified (rule 4)."""
    builder = good_log()
    quoted = quoted_of(builder)
    del quoted[5]
    assert [found.pcr for found in verify(builder, quoted).differences] == [5]


def test_an_event_without_the_digest_makes_its_register_unverifiable():
    """The bank is chosen up front; another bank that replays does not help (rule 39)."""
    builder = good_log()
    builder.event(9, IPL, b"late", banks=("sha1",))
    checked = verify(builder, quoted_of(builder))
    assert [found.pcr for found in checked.differences] == [9]
    assert "no digest in this bank" in str(checked.differences[0])
    replayed = replay(decode_boot_log(builder.bytes), BANK)
    assert replayed.complete is False
    assert replay(decode_boot_log(good_log().bytes), BANK).complete is True
    assert replayed.value(9) is None


@pytest.mark.parametrize("locality", [0, 1, 2, 3, 4, 5, 0x83, 255])
def test_localities_from_which_a_tpm_is_started(locality):
    """Rule 35: 0, 3 and 4; PCR 0 begins at that number, and any other one is no firmware's."""
    builder = LogBuilder()
    builder.event(0, 3, b"StartupLocality\0" + bytes((locality,)))
    if locality in {3, 4}:
        builder.start(0, locality)
    replayed = replay(decode_boot_log(builder.event(0, 8, b"version").bytes), BANK)
    good = locality in {0, 3, 4}
    assert [found.defect for found in replayed.defects] == (
        [] if good else [ReplayDefect.LOCALITY_INVALID]
    )
    assert (replayed.value(0) == builder.registers["sha256"][0]) or not good


@pytest.mark.parametrize(("locality", "good"), [(None, True), (4, True), (0, False), (3, False)])
def test_an_hcrtm_is_measured_from_locality_4(locality, good):
    """Rule 35: with an H-CRTM PCR 0 begins at 4, and a log that says another locality contradicts itself."""
    builder = LogBuilder()
    if locality is not None:
        builder.event(0, 3, b"StartupLocality\0" + bytes((locality,)))
    builder.start(0, 4).event(0, HCRTM, b"HCRTM")
    replayed = replay(decode_boot_log(builder.bytes), BANK)
    assert replayed.value(0) == builder.registers["sha256"][0]
    assert [found.defect for found in replayed.defects] == (
        [] if good else [ReplayDefect.LOCALITY_CONTRADICTS]
    )


def test_dynamic_registers_begin_at_ones_unless_the_log_extends_them():
    """PCR 17-22 are all ones until a dynamic launch resets them to zero (rule 35)."""
    builder = good_log().event(17, 0x402, b"SINIT")
    replayed = replay(decode_boot_log(builder.bytes), BANK)
    assert replayed.value(17) == digest("sha256", bytes(32) + digest("sha256", b"SINIT"))
    assert replayed.value(18) == b"\xff" * 32
    assert replayed.value(16) == bytes(32)


def test_initial_value_of_pcr_0_without_an_event():
    """The locality shows in PCR 0 even when nothing was measured into it (rule 35)."""
    builder = LogBuilder().event(0, 0x3, b"StartupLocality\0\x03").event(4, IPL, b"x")
    replayed = replay(decode_boot_log(builder.bytes), BANK)
    assert replayed.value(0) == bytes(31) + b"\x03"


def test_a_ccel_never_explains_pcrs():
    """Registers of a confidential VM are not those of a TPM (rule 46)."""
    builder = LogBuilder(banks=("sha384",), header_pcr=1).event(1, 0x4, bytes(4))
    log = decode_boot_log(builder.bytes)
    with pytest.raises(LogRejected):
        verify_boot_log(log, builder.registers["sha384"], bank=HashAlgorithm.SHA384, pcrs=[1])
    checked = verify_boot_log(
        log,
        builder.registers["sha384"],
        bank=HashAlgorithm.SHA384,
        pcrs=[1],
        registers=RegisterKind.RTMR,
    )
    assert checked.passed


@pytest.mark.parametrize(
    ("header_pcr", "events", "kind"),
    [
        (1, [], RegisterKind.RTMR),
        (0, [], RegisterKind.PCR),
        (0, [1, 2], RegisterKind.RTMR),
        (0, [4], RegisterKind.RTMR),
        (0, [0, 7], RegisterKind.PCR),
        (0, [5], RegisterKind.PCR),
        (0, [1, 7], RegisterKind.PCR),
    ],
)
def test_which_registers_a_sha384_log_counts(header_pcr, events, kind):
    """A CCEL has one SHA-384 bank and RTMR indices; nothing is measured into MRTD (rule 46)."""
    builder = LogBuilder(banks=("sha384",), header_pcr=header_pcr)
    for pcr in events:
        builder.event(pcr, 0x4, bytes(4))
    assert decode_boot_log(builder.bytes).registers is kind


def test_a_bank_that_is_missing_or_not_computable_is_refused(monkeypatch):
    """No other bank takes its place (rules 6, 39)."""
    log = decode_boot_log(good_log().bytes)
    with pytest.raises(AlgorithmUnsupported):
        replay(log, HashAlgorithm.SHA384)
    monkeypatch.setitem(_CONSTRUCTORS, HashAlgorithm.SM3_256, None)
    with pytest.raises(AlgorithmUnsupported):
        hash_constructor(HashAlgorithm.SM3_256)


def test_a_digest_can_only_be_asked_of_a_verified_event():
    """An event without a digest is a programming error that refuses, never an empty digest."""
    builder = good_log()
    checked = verify(builder, quoted_of(builder))
    bare = checked.events[0]._replace(digests=(None, None))
    with pytest.raises(LogRejected):
        checked.digest(bare)


def test_boots_of_a_file_are_taken_apart():
    """Registers begin anew where firmware measures itself into PCR 0 again (rule 47)."""
    builder = good_log().restart().boot().event(8, IPL, b"resumed")
    log = decode_boot_log(builder.bytes)
    first, second = log.boots()
    assert (first.boot, second.boot, first.of_boots, second.of_boots) == (1, 2, 2, 2)
    assert (first.starts, second.starts) == (log.starts[:1], log.starts[1:])
    assert first.events + second.events == log.events
    assert replay(first, BANK).values == good_log().registers["sha256"]
    assert replay(second, BANK).values == builder.registers["sha256"]
    single = decode_boot_log(good_log().bytes)
    assert single.boots() == (single,)


def test_a_log_without_pcr_0_goes_on_with_its_boot():
    """The log of a dynamic launch stands behind the firmware's, whose registers stay (rule 47)."""
    builder = good_log().header().event(17, 0x402, b"SINIT").restart().boot().header()
    builder.event(0, NO_ACTION, b"StartupLocality\0\0").event(18, 0x402, b"MLE")
    log = decode_boot_log(builder.bytes)
    first, second = log.boots()
    assert first.starts + second.starts == log.starts
    assert len(log.starts) == 4
    assert 17 in replay(first, BANK).values
    assert replay(second, BANK).values == builder.registers["sha256"]


@pytest.mark.parametrize("version", [b"00", b"02"])
def test_boots_of_a_legacy_log(version):
    """Headers of the PC client's and of the EFI specification for TPM 1.2 begin a log (rule 47)."""
    builder = LogBuilder(legacy=True).header().boot().restart().boot()
    raw = builder.bytes.replace(b"Spec ID Event00", b"Spec ID Event" + version)
    first, second = decode_boot_log(raw).boots()
    assert replay(second, HashAlgorithm.SHA1).values == builder.registers["sha1"]
    assert len(first.events) == len(second.events)


def test_registers_of_a_confidential_vm_are_one_boot():
    """RTMRs are never reset while the VM lives (rules 46, 47)."""
    builder = LogBuilder(banks=("sha384",), header_pcr=1).event(1, 4, bytes(4))
    log = decode_boot_log(builder.header().event(1, 4, bytes(4)).bytes)
    assert log.registers is RegisterKind.RTMR
    assert log.boots() == (log,)


def test_events_of_a_log_by_register():
    """EV_NO_ACTION is not an event of its register (rule 36)."""
    log = decode_boot_log(good_log().bytes)
    assert [event.type_name for event in log.in_register(0)] == [
        "EV_S_CRTM_VERSION",
        "EV_SEPARATOR",
    ]
    assert log.digest(log.events[1], HashAlgorithm.SHA384) is None


MISSING = {
    Quirk.EXIT_BOOT_SERVICES_MISSING: ("Invocation", "Returned with Success"),
    Quirk.EXIT_BOOT_SERVICES_INVOCATION_ONLY: ("Invocation",),
    Quirk.EXIT_BOOT_SERVICES_FAILED_ONCE: (
        "Invocation",
        "Returned with Failure",
        "Invocation",
        "Returned with Success",
    ),
}


@pytest.mark.parametrize("quirk", list(MISSING), ids=str)
def test_missing_exit_boot_services_events_are_known_by_name_only(quirk):
    """A quirk that policy names explains exactly its case; no other does, and none by default (rule 43)."""
    logged, measured = good_log(), good_log()
    for outcome in MISSING[quirk]:
        measured.event(5, 0x80000007, f"Exit Boot Services {outcome}".encode())
    quoted = quoted_of(measured)
    assert [found.pcr for found in verify(logged, quoted).differences] == [5]
    others = frozenset(MISSING) - {quirk}
    assert [found.pcr for found in verify(logged, quoted, quirks=others).differences] == [5]
    explained = verify(logged, quoted, quirks=frozenset({quirk}))
    assert explained.passed
    assert explained.quirks == {5: quirk}


def test_a_quirk_excuses_no_other_change():
    """With every quirk allowed, a changed register stays changed (rule 43)."""
    builder = good_log()
    quoted = quoted_of(builder)
    assert verify(builder, quoted, quirks=frozenset(Quirk)).quirks == {}
    for pcr in (4, 5):
        changed = quoted | {pcr: digest("sha256", b"other")}
        checked = verify(builder, changed, quirks=frozenset(Quirk))
        assert [found.pcr for found in checked.differences] == [pcr]
    log = decode_boot_log(LogBuilder().event(4, IPL, b"x").bytes)
    checked = verify_boot_log(log, quoted, bank=BANK, pcrs=[5], quirks=frozenset(Quirk))
    assert [found.pcr for found in checked.differences] == [5]
