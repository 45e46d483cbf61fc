"""Edges of the verifier that mutation testing found untested."""

import hashlib
import struct
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from support import tpm_structures as build
from support.logbuilder import (
    NO_ACTION,
    LogBuilder,
    digest,
    ima_record,
    legacy_record,
    ng_data,
    sized,
)
from support.logbuilder import variable as variable_data
from support.storage_key import storage_public

from trustauthority.codec.eventlog import decode_boot_log
from trustauthority.codec.ima import decode_ima_binary
from trustauthority.codec.tpm import decode_public, decode_signature
from trustauthority.errors import QuoteSignatureInvalid
from trustauthority.model.bootlog import EventType
from trustauthority.model.digest import HashAlgorithm
from trustauthority.verification.meaning import describe
from trustauthority.verification.protect import SHARING_ENTROPY, kdfa, kdfe, share_secret
from trustauthority.verification.replay import replay, verify_boot_log
from trustauthority.verification.runtime import BootAggregate, check_boot_aggregate
from trustauthority.verification.runtimelog import RuntimeProgress, replay_runtime_log
from trustauthority.verification.signature import check_signature

SHA256 = HashAlgorithm.SHA256
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@pytest.mark.parametrize("first", [b"\0", b"\xff", b"\x5a"])
def test_the_ephemeral_key_is_the_entropy_modulo_the_order(first):
    """FIPS 186-5 A.2.1: 64 bits more than the order, reduced to 1 … n-1; the ends included."""
    key = ec.derive_private_key(7, ec.SECP256R1())
    entropy = first * SHARING_ENTROPY
    secret = share_secret(storage_public(key), b"DUPLICATE", entropy)
    scalar = int.from_bytes(entropy[:40], "big") % (ORDER - 1) + 1
    point = ec.derive_private_key(scalar, ec.SECP256R1()).public_key().public_numbers()
    x, y = point.x.to_bytes(32, "big"), point.y.to_bytes(32, "big")
    assert secret.encrypted == struct.pack(">H", 32) + x + struct.pack(">H", 32) + y


@pytest.mark.parametrize("bits", [0, -8, 1, 7, 129])
def test_derivations_give_whole_bytes(bits):
    """Nothing, less than nothing, or part of a byte is a mistake of ours, told at once."""
    with pytest.raises(ValueError, match="whole bytes"):
        kdfa(SHA256, b"k", b"L", b"", b"", bits)
    with pytest.raises(ValueError, match="whole bytes"):
        kdfe(SHA256, b"z", b"L", b"", b"", bits)


def test_a_key_that_leaves_its_scheme_open_is_refused_by_name():
    """Whoever wrote the signature would choose the scheme (pitfall 11)."""
    key = build.SoftwareKey.ecdsa()
    public = decode_public(key.public)
    public = replace(public, parameters=replace(public.parameters, scheme=None))
    with pytest.raises(QuoteSignatureInvalid, match="leaves its scheme open"):
        check_signature(public, b"m", decode_signature(key.sign(b"m")))


# --- the boot log --------------------------------------------------------------------------------


def defects(raw: bytes) -> tuple:
    """What no firmware writes, of a log that replays."""
    log = decode_boot_log(raw)
    values = {pcr: replay(log, HashAlgorithm.SHA1).value(pcr) for pcr in (0, 4)}
    return verify_boot_log(log, values, bank=HashAlgorithm.SHA1, pcrs=values).defects


@pytest.mark.parametrize(
    ("value", "known"),
    [
        (bytes(20), True),
        (hashlib.sha1(b"note", usedforsecurity=False).digest(), True),
        (b"\x07" * 20, False),
    ],
)
def test_digests_of_informational_events_of_old_firmware(value, known):
    """TCG 1.2 firmware hashes them though they extend nothing; any other digest is a defect (rule 36)."""
    legacy = LogBuilder(legacy=True).boot().bytes
    found = defects(legacy + legacy_record(0, NO_ACTION, value, b"note"))
    assert (found == defects(legacy)) is known


def test_hashed_informational_events_of_new_firmware_are_defects():
    """In a crypto-agile log their digests are zero (rule 36)."""
    good = LogBuilder(banks=("sha1",)).boot()
    before = defects(good.bytes)
    assert defects(good.event(0, NO_ACTION, b"note", zero=False).bytes) != before


@pytest.mark.parametrize(
    ("size", "shown"), [(0, "(empty)"), (1, "01"), (16, "01" * 16), (17, "17 bytes")]
)
def test_short_values_of_variables_are_shown(size, shown):
    """Sixteen bytes fit a line."""
    data = variable_data("Lang", b"\x01" * size)
    log = decode_boot_log(LogBuilder().event(1, int(EventType.EFI_VARIABLE_BOOT), data).bytes)
    event = log.events[-1]
    assert describe(event, event.digests[1], SHA256).text == f"EFI variable Lang = {shown}"


# --- the runtime log -----------------------------------------------------------------------------


def aggregate(values, last: int):
    """The first entry of a log that names PCRs 0 to ``last``."""
    joined = b"".join(values[pcr] for pcr in range(last + 1))
    data = sized(b"sha256:\0" + digest("sha256", joined)) + sized(b"boot_aggregate\0")
    return decode_ima_binary(ima_record(data))[0]


@pytest.mark.parametrize("quoted", range(7, 11))
def test_an_aggregate_over_registers_that_were_not_quoted(quoted):
    """PCRs that the quote leaves out prove nothing, and their absence is no crash (rule 56)."""
    values = {pcr: bytes((pcr,)) * 32 for pcr in range(11)}
    some = {pcr: value for pcr, value in values.items() if pcr < quoted}
    seven, nine = aggregate(values, 7), aggregate(values, 9)
    expected = BootAggregate.PCRS_0_7 if quoted > 7 else BootAggregate.MISMATCH
    assert check_boot_aggregate(seven, {SHA256: some}) is expected
    expected = BootAggregate.PCRS_0_9 if quoted > 9 else BootAggregate.MISMATCH
    assert check_boot_aggregate(nine, {SHA256: some}) is expected


def test_what_was_counted_before_is_added_to():
    """Violations and defects of a boot only grow, delta by delta (rules 52, 55, 58)."""
    first = ima_record(ng_data(b"/a"))
    violation = ima_record(ng_data(b"/b"), value=bytes(20))
    value = digest("sha256", bytes(32) + b"\xff" * 32)
    start = RuntimeProgress(value=bytes(32), count=5, offset=100, violations=2, defects=3)
    found = replay_runtime_log(violation, start, {SHA256: {10: value}}, bank=SHA256)
    assert (found.progress.violations, found.progress.count) == (3, 6)
    assert found.progress.offset == 100 + len(violation)
    wrong = ima_record(ng_data(b"/c"), value=b"\x07" * 20)
    value = digest("sha256", bytes(32) + digest("sha256", ng_data(b"/c")))
    found = replay_runtime_log(wrong, start, {SHA256: {10: value}}, bank=SHA256)
    assert (found.progress.defects, found.progress.violations) == (4, 2)
    assert found.defective == {5}
    assert replay_runtime_log(first, start, {SHA256: {}}, bank=SHA256).problem
