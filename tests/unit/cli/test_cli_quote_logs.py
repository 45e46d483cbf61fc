"""The logs of ``ta evidence quote``: what replays but was written by no genuine firmware is refused."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.boots import ima_entry
from support.logbuilder import userspace_record

from trustauthority.cli.quote_logs import judge_boot, judge_runtime
from trustauthority.codec.eventlog import decode_boot_log
from trustauthority.codec.ima_log import decode_ima_log
from trustauthority.errors import LogRejected
from trustauthority.model.bootlog import EventType
from trustauthority.model.digest import HashAlgorithm
from trustauthority.verification.replay import replay
from trustauthority.verification.runtime import extend_entries

GOOD = Path(__file__).resolve().parents[2] / "vectors" / "boots" / "good"
LOG = (GOOD / "eventlog.bin").read_bytes()
IMA = (GOOD / "ima.bin").read_bytes()
SECOND = (GOOD.parent / "changed-cmdline" / "eventlog.bin").read_bytes()
SHA256 = HashAlgorithm.SHA256


def replayed(log: bytes) -> dict[int, bytes]:
    """PCR values that follow from a log: a quote over them, seemingly in order."""
    return dict(replay(decode_boot_log(log), SHA256).values)


def record(event_type: EventType, pcr: int) -> bytes:
    """The bytes of the first record of a type in a PCR of the good log."""
    events = decode_boot_log(LOG).events
    ends = [event.offset for event in events[1:]] + [len(LOG)]
    return next(
        LOG[event.offset : end]
        for event, end in zip(events, ends, strict=True)
        if (event.type, event.pcr) == (event_type, pcr)
    )


def test_good_log_is_explained():
    """The standing case, which each test below changes in one thing."""
    judged = judge_boot(LOG, {SHA256: replayed(LOG)}, SHA256)
    assert judged.findings == ()
    assert judged.document["secureBoot"]["enabled"] is True


def test_second_separator():
    """A log that replays and has two separators in one PCR is no boot (pitfall 41)."""
    log = LOG + record(EventType.SEPARATOR, 0)
    with pytest.raises(LogRejected, match="boot log: "):
        judge_boot(log, {SHA256: replayed(log)}, SHA256)


def test_no_action_event_with_digests():
    """EV_NO_ACTION never extends, so digests in one are a lie (pitfall 36)."""
    separator = record(EventType.SEPARATOR, 0)
    log = LOG + separator[:4] + (3).to_bytes(4, "little") + separator[8:]
    with pytest.raises(LogRejected, match="no-action-with-digest") as caught:
        judge_boot(log, {SHA256: replayed(log)}, SHA256)
    assert caught.value.metadata["finding"] == "no-action-with-digest"


@pytest.mark.parametrize("pcr", range(10))
def test_pcr_that_differs_is_named(pcr):
    """Each PCR of the firmware and boot loader is compared, and the refusal names it (N13)."""
    quoted = replayed(LOG)
    quoted[pcr] = b"\x55" * 32
    with pytest.raises(LogRejected, match=f"PCR {pcr}:") as caught:
        judge_boot(LOG, {SHA256: quoted}, SHA256)
    assert caught.value.metadata == {"pcr": str(pcr), "bank": "sha256"}


@pytest.mark.parametrize("pcr", [11, 12, 13, 15])
def test_user_space_register_gives_a_finding(pcr):
    """User space extends 11-13 and 15 without a log: said, not refused (pitfall 49)."""
    judged = judge_boot(LOG, {SHA256: replayed(LOG) | {pcr: b"\x55" * 32}}, SHA256)
    assert [f"PCR {pcr}:" in finding for finding in judged.findings] == [True]
    assert pcr not in judged.document["verifiedPcrs"]


@pytest.mark.parametrize("pcr", [11, 12, 13, 15])
def test_user_space_register_with_its_log(pcr):
    """With the log that systemd keeps the register is explained (pitfall 49)."""
    log = userspace_record("ready", pcr)
    start = replayed(LOG).get(pcr, bytes(32))
    digest = hashlib.sha256(b"ready").digest()
    quoted = replayed(LOG) | {pcr: hashlib.sha256(start + digest).digest()}
    judged = judge_boot(LOG, {SHA256: quoted}, SHA256, userspace=log)
    assert judged.findings == ()
    assert pcr in judged.document["verifiedPcrs"]


def test_bank_that_firmware_left_alone():
    """A quoted bank at its reset value, while the log has events for it, is refused (pitfall 40)."""
    banks = {SHA256: replayed(LOG), HashAlgorithm.SHA1: {0: bytes(20)}}
    with pytest.raises(LogRejected, match="bank sha1: PCR 0"):
        judge_boot(LOG, banks, SHA256)


def test_violations_are_counted():
    """A violation is said; whether it is acceptable is a question of policy (pitfall 52)."""
    log = IMA + ima_entry("/etc/shadow", b"", violation=True).encode()
    pcrs = json.loads((GOOD / "pcrs.json").read_text())["sha256"]
    quoted = {int(index): bytes.fromhex(value) for index, value in pcrs.items()}
    quoted[10] = extend_entries(decode_ima_log(log).entries, SHA256).value
    judged = judge_runtime(log, {SHA256: quoted}, SHA256)
    assert judged.findings == ("runtime log: 1 violations",)


# --- several boots in one file (pitfall 47) --------------------------------------------------


def test_boots_in_a_row_are_refused():
    """PCRs are reset between boots: values of both logs in a row are no TPM's (pitfall 47)."""
    log = decode_boot_log(LOG)
    row = {SHA256: dict(replay(replace(log, events=log.events * 2), SHA256).values)}
    with pytest.raises(LogRejected, match="PCR 0:"):
        judge_boot(LOG + LOG, row, SHA256)


def test_newest_boot_of_several():
    """The quote is held against one boot, and the answer says which."""
    judged = judge_boot(SECOND + LOG, {SHA256: replayed(LOG)}, SHA256)
    assert (judged.document["boot"], judged.document["boots"], judged.findings) == (2, 2, ())
    assert judged.document["events"] == len(decode_boot_log(LOG).events)


def test_earlier_boot_of_several():
    """An old quote is genuine for its own boot; that it is not the newest one is said."""
    judged = judge_boot(LOG + SECOND, {SHA256: replayed(LOG)}, SHA256)
    assert judged.document["boot"] == 1
    assert judged.findings == ("boot log: the quote is of boot 1 of 2, not of the newest",)


def test_a_bad_boot_among_several():
    """A boot that no firmware wrote is refused wherever it stands, when it is the quoted one."""
    bad = LOG + record(EventType.SEPARATOR, 0)
    for log in (bad + SECOND, SECOND + bad):
        with pytest.raises(LogRejected, match="separator"):
            judge_boot(log, {SHA256: replayed(bad)}, SHA256)
