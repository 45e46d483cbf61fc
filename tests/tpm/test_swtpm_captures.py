"""Two readers of one truth: the codec and the tests' own reader agree on every captured byte."""

import pytest
from support.bootlogs import read_event_log, read_ima_log
from support.boots import BOOTS

from trustauthority.codec.eventlog import decode_boot_log
from trustauthority.codec.ima import decode_ima_binary
from trustauthority.model.ima import BOOT_AGGREGATE

CAPTURES = sorted(path.parent for path in BOOTS.glob("*/eventlog.bin"))


def test_all_five_boots_are_here():
    """The project's own captures; a lost folder must not silently shrink every test."""
    assert [path.name for path in CAPTURES] == [
        "changed-cmdline",
        "good",
        "good-second-boot",
        "other-kernel-build",
        "secureboot-off",
    ]


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda path: path.name)
def test_codec_and_oracle_read_the_same_events(capture):
    """Same registers, types, digests and data from two independent readers (rules 36, 45)."""
    raw = (capture / "eventlog.bin").read_bytes()
    log = decode_boot_log(raw)
    banks = [str(algorithm) for algorithm in log.algorithms]
    assert [
        (event.pcr, event.type, dict(zip(banks, event.digests, strict=True)), event.data)
        for event in log.events[1:]
    ] == [(event.pcr, event.kind, event.digests, event.data) for event in read_event_log(raw)]


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda path: path.name)
def test_codec_and_oracle_read_the_same_measurements(capture):
    """IMA entries of 6.1 and 6.12 kernels, boot_aggregate first (rules 51, 56)."""
    raw = (capture / "ima.bin").read_bytes()
    entries = decode_ima_binary(raw)
    assert BOOT_AGGREGATE.encode() in entries[0].data
    assert [(entry.template_digest, entry.template, entry.data) for entry in entries] == [
        (entry.template_hash, entry.template, entry.data) for entry in read_ima_log(raw)
    ]


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda path: path.name)
def test_the_oracle_writes_what_it_read(capture):
    """Appended entries are encoded as the kernel does: reading and encoding is the identity."""
    raw = (capture / "ima.bin").read_bytes()
    assert b"".join(entry.encode() for entry in read_ima_log(raw)) == raw
