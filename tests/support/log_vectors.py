"""Boot-log and IMA-log vectors, NAME = DEFECT: what an expert verifier must answer, and why."""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from support.logbuilder import (
    ACTION_EFI,
    APPLICATION,
    AUTHORITY,
    DATABASE,
    DRIVER_CONFIG,
    GLOBAL,
    HCRTM,
    IPL,
    NO_ACTION,
    SEPARATOR,
    VERSION,
    LogBuilder,
    digest,
    good_log,
    guid,
    ima_record,
    ima_register,
    legacy_record,
    ng_data,
    signature_list,
    sized,
    spec_id,
    variable,
)

STARTUP = b"StartupLocality\0"
SHA256 = (0x0B, 32)


@dataclass(frozen=True, kw_only=True)
class LogVector:
    """A file and the answer that is right."""

    name: str
    raw: bytes
    expect: str
    """accepted, refused or malformed."""
    why: str
    reason: str | None = None
    pcrs: dict[str, dict[str, str]] = field(default_factory=dict)
    enabled: bool | None = None
    enforced: bool = False
    part: str | None = None
    offset: int | None = None

    def entry(self) -> dict[str, object]:
        """The line of the index."""
        return {
            "name": self.name,
            "expect": self.expect,
            "reason": self.reason,
            "why": self.why,
            "pcrs": self.pcrs,
            "enabled": self.enabled,
            "enforced": self.enforced,
            "part": self.part,
            "offset": self.offset,
        }


def _registers(builder: LogBuilder) -> dict[str, dict[str, str]]:
    return {
        bank: {str(pcr): values[pcr].hex() for pcr in sorted(values)}
        for bank, values in builder.registers.items()
    }


def _accepted(
    name: str,
    builder: LogBuilder,
    why: str,
    *,
    tail: bytes = b"",
    enabled: bool | None = True,
    enforced: bool | None = None,
) -> LogVector:
    return LogVector(
        name=name,
        raw=builder.bytes + tail,
        expect="accepted",
        why=why,
        pcrs=_registers(builder),
        enabled=enabled,
        enforced=bool(enabled) if enforced is None else enforced,
    )


def _refused(
    name: str, builder: LogBuilder, reason: str, why: str, *, enabled: bool | None = True
) -> LogVector:
    return LogVector(
        name=name,
        raw=builder.bytes,
        expect="refused",
        reason=reason,
        why=why,
        pcrs=_registers(builder),
        enabled=enabled,
    )


def _malformed(name: str, raw: bytes, offset: int, why: str, part: str = "event log") -> LogVector:
    return LogVector(
        name=name,
        raw=raw,
        expect="malformed",
        reason="EVIDENCE_MALFORMED",
        why=why,
        part=part,
        offset=offset,
    )


def event_log_vectors() -> list[LogVector]:
    """All boot logs, in the order of the index."""
    return [*_good(), *_refusals(), *_resumes(), *_doubts(), *_broken_records(), *_broken_headers()]


def _good() -> Iterable[LogVector]:
    yield _accepted("good_agile", good_log(), "an ordinary boot")
    for banks in (("sha256", "sha384"), ("sha384", "sha512"), ("sha1", "sha256", "sm3_256")):
        yield _accepted(f"good_{'_'.join(banks)}", good_log(banks), "any set of banks")
    yield _accepted("good_legacy", LogBuilder(legacy=True).boot(), "TCG 1.2 records, SHA-1")
    for locality in (0, 3, 4):
        builder = LogBuilder().event(0, NO_ACTION, STARTUP + bytes((locality,)))
        builder.start(0, locality)
        yield _accepted(
            f"good_startup_locality_{locality}", builder.boot(), "PCR 0 begins at the locality"
        )
    hcrtm = LogBuilder().start(0, 4).event(0, HCRTM, b"HCRTM", hashed=b"boot guard")
    yield _accepted("good_hcrtm", hcrtm.boot(), "PCR 0 begins at 4 after an H-CRTM")
    both = LogBuilder().event(0, NO_ACTION, STARTUP + b"\x04").start(0, 4)
    both.event(0, HCRTM, b"HCRTM", hashed=b"boot guard")
    yield _accepted("good_hcrtm_and_locality_4", both.boot(), "both say the same")
    reference = LogBuilder().event(0, NO_ACTION, b"SP800-155 Event3" + bytes(40))
    yield _accepted("good_sp800_155", reference.boot(), "EV_NO_ACTION is never extended")
    trust_point = good_log().event(0xFFFFFFFF, NO_ACTION, b"WBCL trust point", zero=False)
    yield _accepted("good_trust_point", trust_point, "a trust point belongs to no register")
    yield _accepted("good_padding_zero", good_log(), "zeros to the end", tail=bytes(4096))
    yield _accepted("good_padding_ff", good_log(), "0xff to the end", tail=b"\xff" * 4096)
    ones = LogBuilder().event(0, VERSION, b"1").policy().separators((7,), b"\xff" * 4)
    ones.separators(data=b"\xff" * 4)
    ones.event(7, AUTHORITY, variable("db", guid(GLOBAL) + bytes(32), DATABASE))
    yield _accepted("good_separator_ones", ones, "0xffffffff is a separator as well")
    dynamic = good_log().event(17, 0x402, b"SINIT")
    yield _accepted("good_drtm", dynamic, "a dynamic launch resets PCR 17 to zero")
    two = good_log().header().event(17, 0x402, b"SINIT")
    yield _accepted("good_two_logs", two, "the log of a dynamic launch goes on with the same boot")
    resumed = good_log().restart().boot().event(12, IPL, b"resumed")
    yield _accepted("good_resumed", resumed, "PCRs begin anew with each boot of the file")
    old = LogBuilder(legacy=True).header().boot().restart().boot()
    yield _accepted("good_resumed_legacy", old.event(12, IPL, b"resumed"), "TCG 1.2 logs as well")
    located = LogBuilder().event(0, NO_ACTION, STARTUP + b"\x03").boot().restart()
    yield _accepted("good_resumed_other_locality", located.boot(), "and so does the locality")
    ccel = LogBuilder(banks=("sha384",), header_pcr=1)
    for name, value in (("SecureBoot", b"\x01"), ("PK", signature_list([bytes(32)]))):
        ccel.event(1, DRIVER_CONFIG, variable(name, value))
    ccel.event(1, SEPARATOR, bytes(4)).event(1, SEPARATOR, bytes(4)).event(2, SEPARATOR, bytes(4))
    ccel.event(1, AUTHORITY, variable("db", guid(GLOBAL) + bytes(32), DATABASE))
    yield _accepted("good_ccel", ccel, "registers of a CCEL are RTMRs, shared by several PCRs")
    unknown = _unknown_bank()
    yield LogVector(
        name="good_unknown_bank",
        raw=unknown,
        expect="accepted",
        why="an unknown algorithm is skipped by the size that the header gives",
        pcrs={"sha256": {"4": digest("sha256", bytes(32) + digest("sha256", b"x")).hex()}},
    )
    yield LogVector(
        name="good_digests_reordered",
        raw=_reordered(),
        expect="accepted",
        why="digests may come in another order than the header says",
        pcrs={
            bank: {"4": digest(bank, bytes(len(digest(bank, b""))) + digest(bank, b"x")).hex()}
            for bank in ("sha1", "sha256")
        },
    )


def _unknown_bank() -> bytes:
    header = legacy_record(0, NO_ACTION, bytes(20), spec_id([(0x27, 40), SHA256]))
    record = struct.pack("<IIIH", 4, IPL, 2, 0x27) + bytes(40)
    return header + record + struct.pack("<H", 0x0B) + digest("sha256", b"x") + sized(b"x")


def _reordered() -> bytes:
    header = LogBuilder().bytes
    record = struct.pack("<IIIH", 4, IPL, 2, 0x0B) + digest("sha256", b"x")
    return header + record + struct.pack("<H", 0x04) + digest("sha1", b"x") + sized(b"x")


def _refusals() -> Iterable[LogVector]:
    yield LogVector(
        name="log_empty",
        raw=b"",
        expect="refused",
        reason="NO_EVENT_LOG",
        why="no log is not a clean log",
    )
    yield LogVector(
        name="log_of_padding",
        raw=b"\xff" * 512,
        expect="refused",
        reason="NO_EVENT_LOG",
        why="a table that firmware never filled",
    )
    locality = STARTUP + b"\x03"
    twice = LogBuilder().event(0, NO_ACTION, locality).event(0, NO_ACTION, STARTUP + b"\x00")
    twice.start(0, 3).boot()
    yield _refused("locality_twice", twice, "STARTUP_LOCALITY_TWICE", "the second one was inserted")
    late = good_log().event(0, NO_ACTION, locality)
    yield _refused("locality_late", late, "STARTUP_LOCALITY_NOT_FIRST", "after the first event")
    invalid = LogBuilder().event(0, NO_ACTION, STARTUP + b"\x09").boot()
    yield _refused("locality_9", invalid, "STARTUP_LOCALITY_INVALID", "only 0, 3 and 4 exist")
    long = LogBuilder().event(0, NO_ACTION, STARTUP + b"\x03\x00").boot()
    yield _refused("locality_long", long, "STARTUP_LOCALITY_INVALID", "one byte, not two")
    other = LogBuilder().event(0, NO_ACTION, locality).start(0, 4)
    other.event(0, HCRTM, b"HCRTM", hashed=b"boot guard").boot()
    yield _refused(
        "locality_contradicts_hcrtm",
        other,
        "STARTUP_LOCALITY_CONTRADICTS_HCRTM",
        "an H-CRTM means locality 4",
    )
    spoof = good_log().event(5, NO_ACTION, b"Exit Boot Services Invocation", zero=False)
    yield _refused(
        "no_action_with_digest", spoof, "NO_ACTION_WITH_DIGEST", "looks measured, is not extended"
    )
    again = good_log().event(7, SEPARATOR, bytes(4))
    yield _refused("separator_twice", again, "SEPARATOR_TWICE", "PCR 7 has one separator")
    failed = LogBuilder().event(0, VERSION, b"1").policy().separators((7,), b"\x01\0\0\0")
    yield _refused("separator_error", failed, "SEPARATOR_ERROR", "firmware says the boot failed")
    forged = LogBuilder().event(0, VERSION, b"1").policy()
    forged.event(7, SEPARATOR, bytes(4), hashed=b"something else")
    yield _refused("separator_forged", forged, "SEPARATOR_INVALID", "the digest hides an event")
    strange = LogBuilder().event(0, VERSION, b"1").policy().separators((7,), b"\x02\0\0\0")
    yield _refused("separator_strange", strange, "SEPARATOR_INVALID", "no such separator")
    after = LogBuilder().separators((7,)).variable("SecureBoot", b"\x01")
    yield _refused(
        "secure_boot_after_separator",
        after,
        "VARIABLE_AFTER_SEPARATOR",
        "an operating system wrote this record",
        enabled=None,
    )
    doubled = LogBuilder().variable("SecureBoot", b"\x01").policy(b"\x00").separators((7,))
    yield _refused("secure_boot_twice", doubled, "VARIABLE_TWICE", "which one is it?", enabled=None)
    unproven = LogBuilder()
    unproven.event(7, DRIVER_CONFIG, variable("SecureBoot", b"\x01"), hashed=b"\x00")
    unproven.separators((7,))
    yield _refused(
        "secure_boot_unproven",
        unproven,
        "VARIABLE_UNPROVEN",
        "data that the digest does not cover",
        enabled=None,
    )
    value_only = LogBuilder()
    value_only.event(7, DRIVER_CONFIG, variable("SecureBoot", b"\x01"), hashed=b"\x01")
    value_only.separators((7,))
    yield _refused(
        "secure_boot_value_only",
        value_only,
        "VARIABLE_UNPROVEN",
        "a digest of the value alone lets the name be exchanged",
        enabled=None,
    )
    hidden = LogBuilder().event(7, 0x2, b"was an authority").policy().separators((7,))
    yield _refused(
        "event_hidden_by_type",
        hidden,
        "EVENT_TYPE_UNEXPECTED",
        "no digest covers the type: an unused type in PCR 7 hides what was measured",
    )
    cut = LogBuilder()
    cut.event(7, DRIVER_CONFIG, variable("SecureBoot", b"\x01")[:-1]).separators((7,))
    yield _refused(
        "variable_cut", cut, "VARIABLE_MALFORMED", "lengths do not fill the data", enabled=None
    )
    action = LogBuilder().policy().event(7, ACTION_EFI, b"harmless", hashed=b"UEFI Debug Mode")
    action.separators((7,))
    yield _refused(
        "action_renamed", action, "ACTION_UNPROVEN", "the text of an action was exchanged"
    )
    partial = LogBuilder(banks=("sha256",)).event(4, APPLICATION, bytes(32), banks=())
    yield LogVector(
        name="no_bank_complete",
        raw=partial.bytes,
        expect="refused",
        reason="NO_COMPLETE_BANK",
        why="an event without a digest proves nothing",
    )
    yield LogVector(
        name="only_unknown_banks",
        raw=legacy_record(0, NO_ACTION, bytes(20), spec_id([(0x27, 40)])),
        expect="refused",
        reason="NO_COMPLETE_BANK",
        why="no bank that can be computed",
    )


def _resumes() -> Iterable[LogVector]:
    """Files with several boots, each of which must be one."""
    twice = good_log().separators((4,)).restart().boot()
    yield _refused("resumed_from_bad_boot", twice, "SEPARATOR_TWICE", "the earlier boot is none")
    late = good_log().restart().boot().separators((4,))
    yield _refused("resumed_into_bad_boot", late, "SEPARATOR_TWICE", "the newest boot is none")
    same = good_log().header().separators((4,))
    yield _refused("second_log_same_boot", same, "SEPARATOR_TWICE", "PCR 0 says: no other boot")


def _doubts() -> Iterable[LogVector]:
    def policy(value: bytes) -> LogBuilder:
        return LogBuilder().event(0, VERSION, b"1").policy(value).separators((7,)).separators()

    yield _accepted("secure_boot_off", policy(b"\x00"), "firmware says no", enabled=False)
    yield _accepted("secure_boot_empty", policy(b""), "never enabled", enabled=None)
    yield _accepted("secure_boot_two_bytes", policy(b"\x01\x00"), "never enabled", enabled=None)
    yield _accepted("secure_boot_2", policy(b"\x02"), "never enabled", enabled=None)
    missing = LogBuilder().event(0, VERSION, b"1").separators((7,)).separators()
    yield _accepted("secure_boot_missing", missing, "never enabled", enabled=None)
    other = LogBuilder().variable("SecureBoot", b"\x01", DATABASE).separators((7,)).separators()
    yield _accepted(
        "secure_boot_other_guid", other, "another vendor's variable of that name", enabled=None
    )
    no_authority = policy(b"\x01")
    yield _accepted(
        "authority_missing", no_authority, "enabled, but nothing was verified", enforced=False
    )
    setup = LogBuilder().variable("SecureBoot", b"\x01").variable("PK", b"").separators((7,))
    setup.event(7, AUTHORITY, variable("db", guid(GLOBAL) + bytes(32), DATABASE))
    yield _accepted("setup_mode", setup, "anyone may enrol keys", enforced=False)
    audit = LogBuilder().variable("AuditMode", b"\x01").policy().separators((7,))
    audit.event(7, AUTHORITY, variable("db", guid(GLOBAL) + bytes(32), DATABASE))
    yield _accepted("audit_mode", audit, "violations are only recorded", enforced=False)
    weak = LogBuilder().event(7, ACTION_EFI, b"UEFI Debug Mode").policy()
    weak.event(7, ACTION_EFI, b"DMA Protection Disabled").separators((7,))
    weak.event(7, AUTHORITY, variable("db", guid(GLOBAL) + bytes(32), DATABASE))
    yield _accepted("debug_and_dma", weak, "findings for policy to weigh")
    partial = good_log()
    partial.event(9, IPL, b"late", banks=("sha256",))
    del partial.registers["sha1"][9]
    yield _accepted(
        "sha1_bank_incomplete", partial, "one bank proves nothing for PCR 9, the other does"
    )


def _broken_records() -> Iterable[LogVector]:
    good = good_log()
    start = good.offsets[5]
    raw = good.bytes
    for name, size in (("register", 2), ("digest_count", 10), ("digest", 30), ("data_size", 70)):
        at = {2: start, 10: start + 8, 30: start + 14, 70: start + 68}[size]
        yield _malformed(f"cut_in_{name}", raw[: start + size], at, "truncation is never the end")
    yield _malformed("cut_in_data", raw[: start + 75], start + 68, "truncation is never the end")
    head = struct.pack("<III", 4, IPL, 2)
    digests = b"\x04\x00" + bytes(20) + b"\x0b\x00" + bytes(32)
    base = LogBuilder().bytes
    at = len(base)
    yield _malformed(
        "size_4_gib", base + head + digests + b"\xff" * 4, at + 68, "a size beyond the file"
    )
    yield _malformed(
        "size_one_too_many",
        base + head + digests + struct.pack("<I", 4) + b"abc",
        at + 68,
        "a size beyond the file",
    )
    count = struct.pack("<III", 4, IPL, 0xFFFFFFFF)
    yield _malformed("digests_4_gi", base + count + digests, at + 8, "more digests than banks")
    unknown = head + b"\x0c\x00" + bytes(48) + b"\x0b\x00" + bytes(32) + sized(b"")
    yield _malformed(
        "digest_of_no_bank", base + unknown, at + 12, "an algorithm the header does not announce"
    )
    doubled = head + b"\x04\x00" + bytes(20) + b"\x04\x00" + bytes(20) + sized(b"") + bytes(32)
    yield _malformed("digest_twice", base + doubled, at + 34, "one digest per algorithm")
    for pcr in (24, 32, 0x7FFFFFFF):
        wrong = LogBuilder().event(pcr, IPL, b"x")
        yield _malformed(f"pcr_{pcr}", wrong.bytes, at, "PCRs end at 23")
    nowhere = LogBuilder().event(0xFFFFFFFF, IPL, b"x")
    yield _malformed("pcr_none_extends", nowhere.bytes, at, "only EV_NO_ACTION has no register")
    garbage = raw + bytes(64) + b"garbage"
    yield _malformed("padding_with_garbage", garbage, len(garbage) - 3, "padding goes to the end")
    legacy = LogBuilder(legacy=True).boot()
    yield _malformed(
        "legacy_cut_in_header",
        legacy.bytes + b"\x04\0\0\0\x0d\0\0\0" + b"\x11" * 8,
        len(legacy.bytes),
        "truncation is never the end",
    )
    yield _malformed(
        "legacy_size_4_gib",
        legacy.bytes + legacy_record(4, IPL, b"\x11" * 20, b"", 0xFFFFFFFF),
        len(legacy.bytes) + 28,
        "a size beyond the file",
    )
    yield _malformed("text", b"#!/bin/sh\necho measured\n" * 4, 0, "no log at all")


def _broken_headers() -> Iterable[LogVector]:
    def header(content: bytes) -> bytes:
        return legacy_record(0, NO_ACTION, bytes(20), content)

    part = "Spec ID header"
    cases = (
        ("algorithms_4_gi", spec_id([SHA256], count=0xFFFFFFFF), 56, "a count to allocate by"),
        ("algorithms_none", spec_id([]), 56, "a log without a bank"),
        ("algorithm_twice", spec_id([SHA256, SHA256]), 68, "two sizes for one algorithm"),
        ("sha256_of_20_bytes", spec_id([(0x0B, 20)]), 60, "the registry says 32"),
        ("unknown_of_0_bytes", spec_id([(0x27, 0)]), 60, "no digest has no bytes"),
        ("unknown_of_64_kib", spec_id([(0x27, 0xFFFF)]), 60, "no digest has 64 KiB"),
        ("vendor_info_beyond", spec_id([SHA256], vendor_size=200), 65, "beyond the header"),
        ("header_trailing_byte", spec_id([SHA256], trailing=b"\0"), 65, "beyond the structure"),
        ("header_cut", spec_id([SHA256])[:30], 62, "algorithms are cut off"),
    )
    for name, content, offset, why in cases:
        yield _malformed(name, header(content), offset, why, part)
    second = LogBuilder(banks=("sha256",)).event(4, IPL, b"x")
    at = len(second.bytes)
    other = LogBuilder(banks=("sha384",))
    yield _malformed(
        "second_log_of_other_banks",
        second.bytes + other.bytes,
        at,
        "logs of one boot have the same banks",
    )


# --- IMA -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ImaVector:
    """A runtime log and the answer that is right."""

    name: str
    raw: bytes
    expect: str
    why: str
    reason: str | None = None
    entries: int | None = None
    violations: int = 0
    sha256: str | None = None
    offset: int | None = None

    def entry(self) -> dict[str, object]:
        """The line of the index."""
        return {
            "name": self.name,
            "expect": self.expect,
            "reason": self.reason,
            "why": self.why,
            "entries": self.entries,
            "violations": self.violations,
            "sha256": self.sha256,
            "offset": self.offset,
        }


SIGNATURE = b"\x03\x02\x04" + bytes(4) + sized(b"\x30")


def ima_templates() -> dict[str, bytes]:
    """Template data of one entry per template."""
    content = digest("sha256", b"content")
    digest_ng, name = sized(b"sha256:\0" + content), sized(b"/bin/tool\0")
    digest_v2 = sized(b"verity:sha256:\0" + content)
    return {
        "ima-ng": digest_ng + name,
        "ima-ngv2": digest_v2 + name,
        "ima-sig": digest_ng + name + sized(SIGNATURE),
        "ima-sigv2": digest_v2 + name + sized(SIGNATURE),
        "ima-buf": digest_ng + sized(b"kexec-cmdline\0") + sized(b"ro quiet"),
        "ima-modsig": digest_ng
        + name
        + sized(b"")
        + sized(b"sha512:\0" + digest("sha512", b"module"))
        + sized(b"\x30\x82"),
        "evm-sig": digest_ng
        + name
        + sized(b"\x05")
        + sized(b"security.ima\0")
        + sized(struct.pack("<I", 3))
        + sized(b"abc")
        + sized(struct.pack("<I", 1000))
        + sized(struct.pack("<I", 100))
        + sized(struct.pack("<H", 0o100644)),
        "d-ng|n-ng|sig": digest_ng + name + sized(b""),
    }


def old_entry(path: bytes, content: bytes = b"content", *, value: bytes | None = None) -> bytes:
    """A record of the first template, ``ima``: no data length, a digest without a name."""
    file_digest = digest("sha1", content)
    hashed = file_digest + path.ljust(256, b"\0")
    logged = digest("sha1", hashed) if value is None else value
    return struct.pack("<I", 10) + logged + sized(b"ima") + file_digest + sized(path)


def ima_vectors() -> list[ImaVector]:
    """All runtime logs, in the order of the index."""
    return [*_good_runtime(), *_refused_runtime(), *_broken_runtime()]


def _good_runtime() -> Iterable[ImaVector]:
    aggregate = ng_data(b"boot_aggregate", b"pcrs")
    tool = ng_data(b"/usr/bin/tool")
    yield ImaVector(
        name="good_ng",
        raw=ima_record(aggregate) + ima_record(tool),
        expect="accepted",
        why="an ordinary log",
        entries=2,
        sha256=ima_register([aggregate, tool]).hex(),
    )
    for template, data in ima_templates().items():
        yield ImaVector(
            name=f"good_{template.replace('|', '_')}",
            raw=ima_record(data, template.encode()),
            expect="accepted",
            why="each template of the kernel, and one spelt out",
            entries=1,
            sha256=ima_register([data]).hex(),
        )
    old = digest("sha1", b"content") + b"/bin/old".ljust(256, b"\0")
    yield ImaVector(
        name="good_ima",
        raw=old_entry(b"/bin/old"),
        expect="accepted",
        why="the first template, without a data length",
        entries=1,
        sha256=ima_register([old]).hex(),
    )
    yield ImaVector(
        name="violation",
        raw=ima_record(aggregate) + ima_record(tool, value=bytes(20)),
        expect="accepted",
        why="a violation extends 0xff; policy weighs it",
        entries=2,
        violations=1,
        sha256=ima_register([aggregate, b""]).hex(),
    )
    yield ImaVector(
        name="violation_20_zeros",
        raw=ima_record(aggregate)
        + ima_record(sized(b"sha256:\0" + bytes(20)) + sized(b"/open\0"), value=bytes(20)),
        expect="accepted",
        why="kernels that name SHA-256 and write 20 zero bytes for a violation",
        entries=2,
        violations=1,
        sha256=ima_register([aggregate, b""]).hex(),
    )
    yield ImaVector(
        name="good_sha256_template_digest",
        raw=ima_record(tool, value=digest("sha256", tool)),
        expect="accepted",
        why="new kernels name the file after the hash of the template digest",
        entries=1,
        sha256=ima_register([tool]).hex(),
    )
    for name, path in (("empty", b""), ("spaces", b"/a b/c d"), ("not_utf8", b"/\xff\xfe")):
        data = ng_data(path)
        yield ImaVector(
            name=f"good_name_{name}",
            raw=ima_record(data),
            expect="accepted",
            why="file names are bytes",
            entries=1,
            sha256=ima_register([data]).hex(),
        )
    text = (
        f"10 {digest('sha1', aggregate).hex()} ima-ng sha256:{digest('sha256', b'pcrs').hex()} "
        f"boot_aggregate\n10 {digest('sha1', tool).hex()} ima-ng "
        f"sha256:{digest('sha256', b'content').hex()} /usr/bin/tool\n"
    )
    yield ImaVector(
        name="good_text",
        raw=text.encode(),
        expect="accepted",
        why="the text form gives the same entries",
        entries=2,
        sha256=ima_register([aggregate, tool]).hex(),
    )


def _refused_runtime() -> Iterable[ImaVector]:
    data = ng_data(b"/bin/tool")

    def refused(name: str, raw: bytes, reason: str, why: str, entries: int = 1) -> ImaVector:
        return ImaVector(
            name=name, raw=raw, expect="refused", reason=reason, why=why, entries=entries
        )

    yield refused("log_empty", b"", "NO_RUNTIME_LOG", "no log is not a clean log", 0)
    yield refused(
        "template_digest_wrong",
        ima_record(data, value=b"\x01" * 20),
        "TEMPLATE_DIGEST_MISMATCH",
        "the data is not what was measured, although the register replays",
    )
    yield refused(
        "pcr_other", ima_record(data, pcr=11), "ENTRY_OF_ANOTHER_PCR", "IMA extends one register"
    )
    yield refused(
        "template_unknown",
        ima_record(data, b"ima-new"),
        "TEMPLATE_OR_HASH_UNKNOWN",
        "unverifiable is refused, never skipped",
    )
    yield refused(
        "template_field_unknown",
        ima_record(data, b"d-ng|n-ng|new"),
        "TEMPLATE_OR_HASH_UNKNOWN",
        "unverifiable is refused, never skipped",
    )
    unknown = sized(b"unknown:\0" + bytes(29)) + sized(b"/data\0")
    yield refused(
        "hash_unknown",
        ima_record(unknown),
        "TEMPLATE_OR_HASH_UNKNOWN",
        "a hash name outside the list",
    )
    fields = {
        "digest_without_nul": sized(b"sha256:" + b"\x11" * 32) + sized(b"/data\0"),
        "digest_of_sha1_size": sized(b"sha256:\0" + b"\x11" * 20) + sized(b"/data\0"),
        "digest_short": sized(b"sha256:\0" + bytes(31)) + sized(b"/data\0"),
        "digest_type_unknown": sized(b"other:sha256:\0" + bytes(32)) + sized(b"/data\0"),
        "name_without_nul": sized(b"sha256:\0" + bytes(32)) + sized(b"/data"),
        "name_with_two_nuls": sized(b"sha256:\0" + bytes(32)) + sized(b"/da\0ta\0"),
        "field_beyond_data": sized(b"sha256:\0" + bytes(32)) + struct.pack("<I", 99) + b"/\0",
        "data_trailing_byte": data + b"\0",
        "data_empty": b"",
    }
    for name, content in fields.items():
        template = b"ima-ngv2" if name == "digest_type_unknown" else b"ima-ng"
        yield refused(
            name,
            ima_record(content, template),
            "TEMPLATE_DATA_MALFORMED",
            "fields that do not fill the template data",
        )


def _broken_runtime() -> Iterable[ImaVector]:
    data = ng_data(b"/bin/tool")
    record = ima_record(data)

    def broken(name: str, raw: bytes, offset: int, why: str) -> ImaVector:
        return ImaVector(
            name=name,
            raw=raw,
            expect="malformed",
            reason="EVIDENCE_MALFORMED",
            why=why,
            offset=offset,
        )

    for size in (3, 20, 27, 31, 36, len(record) - 1):
        yield broken(
            f"cut_at_{size}", record + record[:size], len(record), "truncation is never the end"
        )
    huge = struct.pack("<I", 10) + bytes(20) + sized(b"ima-ng") + b"\xff" * 4
    yield broken("data_4_gib", huge, 34, "a size beyond any entry")
    yield broken(
        "template_name_4_gib",
        struct.pack("<I", 10) + bytes(20) + b"\xff" * 4 + bytes(40),
        0,
        "a size beyond any name",
    )
    yield broken("template_name_empty", struct.pack("<I", 10) + bytes(20) + bytes(40), 0, "no name")
    yield broken(
        "template_name_control",
        struct.pack("<I", 10) + bytes(20) + sized(b"ima\n") + sized(bytes(400)),
        0,
        "names are printable",
    )
    yield broken(
        "old_name_too_long",
        struct.pack("<I", 10) + bytes(20) + sized(b"ima") + bytes(20) + sized(b"x" * 256),
        51,
        "at most 255 bytes",
    )
    yield broken("text_cut", b"10 00112233", 0, "a line has four parts")
    yield broken("text_register", b"99 " + b"0" * 40 + b" ima-ng x y\n", 0, "PCRs end at 23")
    yield broken("text_digest", b"10 xyz ima-ng a b\n", 0, "hex only")
    yield broken(
        "text_fields", b"10 " + b"0" * 40 + b" ima-ng sha256:zz /x\n", 0, "the digest is no hex"
    )
