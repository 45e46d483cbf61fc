"""The log of userspace: what systemd extends after the firmware's log ends (rules 49, 65)."""

import json

import pytest
from support.logbuilder import IPL, LogBuilder, digest

from trustauthority.codec import cel
from trustauthority.codec.cel import MAX_CEL_BYTES, decode_userspace_log
from trustauthority.codec.eventlog import decode_boot_log
from trustauthority.errors import MalformedEvidence
from trustauthority.model.digest import HashAlgorithm
from trustauthority.verification.meaning import Proof, describe
from trustauthority.verification.replay import replay, verify_boot_log

BANK = HashAlgorithm.SHA256


def record(word: str, pcr: object = 11, **changes: object) -> dict[str, object]:
    """A record as systemd-pcrextend writes it."""
    digests = [
        {"hashAlg": bank, "digest": digest(bank, word.encode()).hex()}
        for bank in ("sha1", "sha256")
    ]
    content = {"eventType": "phase", "string": word, "bootId": "0" * 32}
    return {"pcr": pcr, "digests": digests, "content_type": "systemd", "content": content} | changes


def lines(*records: object, separator: bytes = b"\x1e") -> bytes:
    """A file of records."""
    return b"".join(separator + json.dumps(item).encode() + b"\n" for item in records)


def test_phases_extend_the_register_after_the_boot_log():
    """PCR 11 of a unified kernel image is the log's value, then the phases (rule 49)."""
    builder = LogBuilder().event(11, IPL, b"x")
    log = decode_boot_log(builder.bytes)
    later = LogBuilder().event(11, IPL, b"x").event(11, IPL, b"sysinit").event(11, IPL, b"ready")
    quoted = later.registers["sha256"]
    assert verify_boot_log(log, quoted, bank=BANK, pcrs=[11]).differences
    records = decode_userspace_log(lines(record("sysinit"), record("ready")))
    whole = log.with_userspace(records)
    checked = verify_boot_log(whole, quoted, bank=BANK, pcrs=[11])
    assert checked.passed
    event = checked.in_register(11)[-1]
    found = describe(event, checked.digest(event), BANK)
    assert (found.text, found.proof) == ("measured by userspace: ready", Proof.DATA)
    assert [item.number for item in whole.events] == list(range(len(log.events) + 2))


@pytest.mark.parametrize(
    "order", [("ready", "sysinit"), ("sysinit",), ("sysinit", "ready", "ready")]
)
def test_a_changed_second_log_is_refused(order):
    """Each record and its order count as in the first log (N13)."""
    log = decode_boot_log(LogBuilder().event(11, IPL, b"x").bytes)
    later = LogBuilder().event(11, IPL, b"x").event(11, IPL, b"sysinit").event(11, IPL, b"ready")
    whole = log.with_userspace(decode_userspace_log(lines(*map(record, order))))
    checked = verify_boot_log(whole, later.registers["sha256"], bank=BANK, pcrs=[11])
    assert [found.pcr for found in checked.differences] == [11]


def test_a_record_without_the_bank_makes_its_register_unverifiable():
    """No bank stands in for another one (rule 39)."""
    only = record("ready", digests=[{"hashAlg": "sha384", "digest": "00" * 48}])
    log = decode_boot_log(LogBuilder().event(11, IPL, b"x").bytes)
    whole = log.with_userspace(decode_userspace_log(lines(only)))
    assert replay(whole, BANK).value(11) is None


def test_records_of_nv_indices_and_blank_lines_extend_no_pcr():
    """Only PCRs are replayed; separators and blank lines are form."""
    counter = {"nvIndexName": "hardware", "digests": [], "content_type": "systemd"}
    data = lines(counter, record("ready"), separator=b"") + b"\n \n"
    assert [item.pcr for item in decode_userspace_log(data)] == [11]
    assert decode_userspace_log(b"") == ()
    bare = decode_userspace_log(
        lines(record("ready", content={"other": 1}), record("x", content=7))
    )
    assert [item.content for item in bare] == [b"", b""]
    unknown = record("x", digests=[{"hashAlg": "sha3", "digest": "00"}])
    assert decode_userspace_log(lines(unknown))[0].digests == {"sha3": b"\0"}


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"\xff",
        b'{"pcr": 11, "pcr": 12}',
        b"[" * 100_000,
        lines(record("x", pcr=24)),
        lines(record("x", pcr=-1)),
        lines(record("x", pcr=True)),
        lines(record("x", pcr="11")),
        lines(record("x", pcr=None)),
        lines(record("x", digests=[])),
        lines(record("x", digests={})),
        lines(record("x", digests=[7])),
        lines(record("x", digests=[{"hashAlg": "sha256", "digest": "00"}])),
        lines(record("x", digests=[{"hashAlg": "sha256", "digest": "zz" * 32}])),
        lines(record("x", digests=[{"hashAlg": "sha256", "digest": ""}])),
        lines(record("x", digests=[{"hashAlg": "sha256"}])),
        lines(record("x", digests=[{"hashAlg": "sha1", "digest": "00" * 20}] * 2)),
    ],
    ids=lambda line: str(line[:70]),
)
def test_a_line_that_is_no_record_is_malformed(line):
    """Doubled keys, other types and sizes that do not fit are refused with their place (rule 65)."""
    good = lines(record("ready"))
    with pytest.raises(MalformedEvidence) as caught:
        decode_userspace_log(good + line)
    assert caught.value.offset == len(good)


def test_limits(monkeypatch):
    """A log has a greatest size and a greatest number of records (rule 45)."""
    with pytest.raises(MalformedEvidence):
        decode_userspace_log(b" " * (MAX_CEL_BYTES + 1))
    monkeypatch.setattr(cel, "MAX_RECORDS", 3)
    small = b'{"pcr":1,"digests":[{"hashAlg":"a","digest":"00"}]}\n'
    assert len(decode_userspace_log(small * 3)) == 3
    with pytest.raises(MalformedEvidence):
        decode_userspace_log(small * 4)
