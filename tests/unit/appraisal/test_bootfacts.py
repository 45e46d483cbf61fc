"""Facts of a boot, from verified events only (rules 37, 38, 41, 42, 44)."""

import hashlib
import struct

import pytest
from support.corpus import corpus_folder
from support.logbuilder import (
    ACTION_EFI,
    APPLICATION,
    AUTHORITY,
    DATABASE,
    DRIVER_CONFIG,
    GLOBAL,
    IPL,
    SEPARATOR,
    LogBuilder,
    digest,
    good_log,
    guid,
    signature_list,
    variable,
)

from trustauthority.appraisal.bootfacts import boot_facts
from trustauthority.codec.eventlog import decode_boot_log
from trustauthority.model.bootfacts import Severity
from trustauthority.model.bootlog import RegisterKind
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.quirk import Quirk
from trustauthority.verification.replay import replay, verify_boot_log

BANK = HashAlgorithm.SHA256
DB_ENTRY = guid(GLOBAL) + bytes(32)


def facts(builder: LogBuilder, *, without: tuple[int, ...] = (), **options):
    """Facts of a log whose registers a quote proves, but those of ``without``."""
    values = builder.registers["sha256"]
    quoted = {pcr: bytes(32) if pcr in without else value for pcr, value in values.items()}
    log = decode_boot_log(builder.bytes)
    return boot_facts(verify_boot_log(log, quoted, bank=BANK, pcrs=quoted), **options)


def ids(found) -> list[str]:
    """Ids of the findings."""
    return [finding.id for finding in found.findings]


def test_facts_of_a_good_boot():
    """What an operator wants to know, each proven by a digest."""
    found = facts(good_log())
    boot = found.secure_boot
    assert (boot.enabled, boot.enforced, boot.setup_mode) == (True, True, False)
    assert (boot.audit_mode, boot.deployed_mode) == (None, None)
    lists = signature_list([b"\x01" * 32, b"\x02" * 32])
    assert boot.databases["dbx"].entries == 2
    assert boot.databases["dbx"].sha256 == hashlib.sha256(lists).hexdigest()
    (used,) = boot.authorities
    assert (used.variable, used.guid, used.before_separator) == ("db", DATABASE, False)
    assert used.sha256 == hashlib.sha256(DB_ENTRY).hexdigest()
    assert [image.digest for image in found.images] == [digest("sha256", b"boot loader").hex()]
    assert found.command_lines == ("console=ttyS0",)
    assert [file.name for file in found.files] == ["/initrd"]
    assert (found.option_roms, found.uefi_debug, found.dma_protection_disabled) == (0, False, False)
    assert not found.findings
    assert not found.refused


def test_an_unverified_register_says_nothing_about_secure_boot():
    """PCR 7 does not replay: nothing is claimed, whatever its events say (rule 38)."""
    found = facts(good_log(), without=(7,))
    assert (found.secure_boot.enabled, found.secure_boot.enforced) == (None, False)
    assert not found.secure_boot.databases
    assert "secure-boot-unverified" in ids(found)


@pytest.mark.parametrize("pcr", [4, 8, 9])
def test_an_unverified_register_yields_no_facts(pcr):
    """Images, command lines and files come from verified registers only (rule 38)."""
    found = facts(good_log(), without=(pcr,))
    assert bool(found.images) is (pcr != 4)
    assert bool(found.command_lines) is (pcr != 8)
    assert bool(found.files) is (pcr != 9)


def test_weaknesses_that_firmware_admits():
    """Debug mode and missing DMA protection are measured into PCR 7 (rule 42)."""
    builder = LogBuilder().event(7, ACTION_EFI, b"UEFI Debug Mode").policy()
    builder.event(7, ACTION_EFI, b"DMA Protection Disabled\0").separators((7,))
    found = facts(builder)
    assert (found.uefi_debug, found.dma_protection_disabled) == (True, True)
    assert {"uefi-debug-mode", "dma-protection-disabled"} <= set(ids(found))


@pytest.mark.parametrize(
    ("name", "value", "attribute", "expected"),
    [
        ("SetupMode", b"\x01", "setup_mode", True),
        ("SetupMode", b"\x00", "setup_mode", False),
        ("AuditMode", b"\x01", "audit_mode", True),
        ("DeployedMode", b"\x01", "deployed_mode", True),
        ("DeployedMode", b"\x01\x00", "deployed_mode", None),
    ],
)
def test_modes_where_firmware_measures_them(name, value, attribute, expected):
    """Setup, audit and deployed mode are reported as claims (rule 42)."""
    builder = LogBuilder().variable(name, value).policy().separators((7,))
    builder.event(7, AUTHORITY, variable("db", DB_ENTRY, DATABASE))
    found = facts(builder).secure_boot
    assert getattr(found, attribute) is expected
    assert found.enforced is not (name in {"SetupMode", "AuditMode"} and value == b"\x01")


def test_a_driver_authority_comes_before_the_separator():
    """Option ROMs are accepted before the separator; they are no proof for the boot loader (rule 41)."""
    builder = LogBuilder().policy()
    builder.event(7, AUTHORITY, variable("db", DB_ENTRY, DATABASE)).separators((7,))
    found = facts(builder)
    assert found.secure_boot.authorities[0].before_separator
    assert not found.secure_boot.enforced
    assert "authority-missing" in ids(found)


def test_authorities_that_prove_nothing():
    """An authority whose digest is not that of its data is named and does not count (rule 38)."""
    builder = LogBuilder().policy().separators((7,))
    builder.event(7, AUTHORITY, variable("db", DB_ENTRY, DATABASE), hashed=b"other")
    builder.event(7, AUTHORITY, b"too short")
    found = facts(builder)
    assert not found.secure_boot.authorities
    assert not found.secure_boot.enforced
    assert {"authority-unproven", "authority-malformed"} <= set(ids(found))


def test_the_shim_quirk_makes_an_old_authority_count():
    """Old shim logs a byte too much: counted only where policy names the quirk (rule 43)."""
    builder = LogBuilder().policy().separators((7,))
    data = variable("db", DB_ENTRY, DATABASE)
    builder.event(7, AUTHORITY, data + b"\0", hashed=data)
    assert not facts(builder).secure_boot.enforced
    assert facts(builder, quirks=[Quirk.SHIM_TRAILING_BYTES]).secure_boot.enforced


def test_a_database_that_does_not_parse_is_still_named_by_its_digest():
    """A baseline compares digests; a count is only for people."""
    builder = LogBuilder().variable("SecureBoot", b"\x01").variable("PK", b"garbage")
    found = facts(builder.separators((7,))).secure_boot.databases["PK"]
    assert (found.entries, found.size) == (-1, 7)
    assert found.sha256 == hashlib.sha256(b"garbage").hexdigest()


def test_sbat_level_of_shim():
    """The revocation level that shim applied (rule 42)."""
    builder = good_log().event(7, AUTHORITY, variable("SbatLevel", b"sbat,1,2025\n"))
    assert facts(builder).sbat_level == "sbat,1,2025\n"


def test_an_unexpected_type_is_named_and_taints_only_claims():
    """No digest covers the type: in PCR 7 it refuses, elsewhere it is a warning (rule 37)."""
    builder = good_log().event(2, 0x8401, b"\x01")
    found = facts(builder)
    assert list(found.unrecognised) == [2]
    assert found.secure_boot.enforced
    assert not found.refused
    tainted = facts(good_log().event(7, IPL, b"x"))
    assert tainted.refused
    assert not tainted.secure_boot.enforced


@pytest.mark.parametrize("hidden", [0x2, 0xD, 0x80000002, 0x12345678])
def test_renaming_an_event_of_pcr_7_hides_nothing(hidden):
    """The EV_UNUSED trick: an attacker renames what she does not want to be read (rule 37)."""
    builder = (
        LogBuilder().event(7, hidden, variable("SecureBoot", b"\x00")).policy().separators((7,))
    )
    builder.event(7, AUTHORITY, variable("db", DB_ENTRY, DATABASE))
    found = facts(builder)
    assert not found.secure_boot.enforced
    assert found.refused


def test_an_application_before_the_boot_option():
    """Firmware that announces boot options does so first; exceptions are a named quirk (rule 44)."""
    builder = LogBuilder().event(4, APPLICATION, bytes(32), hashed=b"vendor tool")
    builder.event(4, APPLICATION, bytes(32), hashed=b"another")
    builder.event(4, ACTION_EFI, b"Calling EFI Application from Boot Option")
    builder.event(4, APPLICATION, bytes(32), hashed=b"boot loader")
    found = [item for item in facts(builder).findings if item.pcr == 4]
    assert [(item.id, item.event) for item in found if "separator" not in item.id] == [
        ("application-before-calling-event", 1)
    ]
    allowed = facts(builder, quirks=[Quirk.APPLICATION_BEFORE_CALLING_EVENT])
    assert "application-before-calling-event" not in ids(allowed)
    silent = LogBuilder().event(4, APPLICATION, bytes(32), hashed=b"boot loader")
    assert "application-before-calling-event" not in ids(facts(silent))


def test_images_and_files_by_register():
    """Option ROMs are those of PCR 2; sections of a unified kernel image those of PCR 11."""
    path = struct.pack("<QQQQ", 1, 2, 3, 4) + b"\x7f\xff\x04\x00"
    builder = LogBuilder().event(2, 0x80000004, path, hashed=b"rom")
    builder.event(4, APPLICATION, struct.pack("<QQQQ", 1, 2, 3, 99), hashed=b"loader")
    builder.event(11, IPL, ".linux\0".encode("utf-16-le"), hashed=b".linux\0")
    builder.event(11, IPL, ".linux\0".encode("utf-16-le"), hashed=b"the kernel")
    builder.event(9, 0x6, struct.pack("<II", 0x8F3B22ED, 13) + b"Linux initrd\0", hashed=b"initrd")
    found = facts(builder)
    assert found.option_roms == 1
    assert [image.pcr for image in found.images] == [2, 4]
    assert [(file.pcr, file.name) for file in found.files] == [(11, ".linux"), (9, "Linux initrd")]


def test_an_empty_log_has_no_facts():
    """No log is no claim."""
    checked = verify_boot_log(decode_boot_log(b""), {}, bank=BANK, pcrs=())
    found = boot_facts(checked)
    assert (found.secure_boot.enabled, found.secure_boot.enforced) == (None, False)
    assert ids(found) == ["secure-boot-unverified"]
    assert found.findings[0].severity is Severity.WARNING


SHIM_LOCK = "605dab50-e046-4300-abb6-3dd810dd8b23"
SHIM_OFF = variable("MokSBState", b"\x01", SHIM_LOCK)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (AUTHORITY, SHIM_OFF),
        (AUTHORITY, b"something else"),
        (ACTION_EFI, SHIM_OFF),
        (DRIVER_CONFIG, SHIM_OFF),
        (0x800000E4, SHIM_OFF),
        (SEPARATOR, bytes(4)),
    ],
    ids=["as-shim-logs-it", "other-data", "action", "configuration", "device", "separator"],
)
def test_a_shim_that_checks_nothing_is_found_whatever_its_event_is_called(kind, data):
    """MokSBState = 1 voids Secure Boot; its digest tells, whatever type and data say (rules 37, 42)."""
    log = good_log().event(7, kind, data, hashed=SHIM_OFF)
    found = facts(log)
    assert "shim-validation-disabled" in ids(found)
    assert found.secure_boot.enabled is True
    assert found.secure_boot.enforced is False


@pytest.mark.parametrize("value", [b"\1", b"\2", b"\1\0", b"\0\1", b"\0\0"])
def test_a_shim_state_that_nobody_knows_is_doubt(value):
    """Only nothing and one zero byte say that shim checks; all else voids the claim (rules 37, 42)."""
    found = facts(good_log().event(7, AUTHORITY, variable("MokSBState", value, SHIM_LOCK)))
    assert ids(found) == ["shim-validation-disabled"]
    assert found.secure_boot.enforced is False


@pytest.mark.parametrize(
    "text", [b"UEFI Debug ModeX", b"XUEFI Debug Mode", b"DMA Protection Disabled.", b"~ !"]
)
def test_other_words_are_no_weakness(text):
    """Firmware admits debug mode and missing DMA protection in exactly these words (rule 42)."""
    found = facts(good_log().event(7, ACTION_EFI, text))
    assert (found.uefi_debug, found.dma_protection_disabled) == (False, False)
    assert ids(found) == []


def test_a_shim_that_checks_is_no_finding():
    """The variable is there on some machines with the value 0 (rule 42)."""
    found = facts(good_log().event(7, AUTHORITY, variable("MokSBState", b"\0", SHIM_LOCK)))
    assert ids(found) == []
    assert found.secure_boot.enforced is True


@pytest.mark.parametrize(
    ("kind", "data", "finding"),
    [
        (DRIVER_CONFIG, variable("MokListTrusted", b"\x01", SHIM_LOCK), "variable-after-separator"),
        (ACTION_EFI, b"\x01\x02\x03", "action-not-text"),
        (ACTION_EFI, b"", "action-not-text"),
        (ACTION_EFI, b"some text \xff", "action-not-text"),
        (ACTION_EFI, b"some text \n", "action-not-text"),
        (0x5, "UEFI Debug Mode".encode("utf-16-le"), "action-not-text"),
        (0x800000E3, variable("MokListRT", b"\x01", SHIM_LOCK), "device-variable-unknown"),
        (0x800000E4, b"cut", "device-variable-unknown"),
    ],
)
def test_what_another_type_would_hide_voids_the_claim(kind, data, finding):
    """Types are covered by no digest: each one of PCR 7 takes only what belongs to it (rule 37)."""
    found = facts(good_log().event(7, kind, data))
    assert finding in ids(found)
    assert found.secure_boot.enforced is False


def test_a_database_of_devices_is_no_finding():
    """devdb is what firmware with SPDM measures into PCR 7 (rule 37)."""
    for behind in (b"", b"a device"):
        data = variable("devdb", b"\x01", DATABASE) + behind
        assert ids(facts(good_log().event(7, 0x800000E3, data))) == []


@pytest.mark.parametrize("pcr", [0, 7])
def test_firmware_that_admits_a_lower_security_level(pcr):
    """HP firmware measures that it was downgraded: a finding, when its digest proves it (rule 42)."""
    text = b"Security Level is Downgraded to 0"
    assert "security-level-downgraded" in ids(facts(good_log().event(pcr, ACTION_EFI, text)))
    other = facts(good_log().event(0, ACTION_EFI, text, hashed=b"another text"))
    assert "security-level-downgraded" not in ids(other)


def tagged(number: int, text: str) -> bytes:
    """TCG_PCClientTaggedEvent with UTF-16 text, as systemd-stub writes it."""
    content = (text + "\0").encode("utf-16-le")
    return struct.pack("<II", number, len(content)) + content


def test_facts_of_a_unified_kernel_image():
    """Load options and the chosen profile, as systemd-stub measures them; only what is proven."""
    line = "quiet root=LABEL=root\0".encode("utf-16-le")
    profile = tagged(0x13AED6DB, "2")
    log = good_log().event(12, IPL, line).event(12, 0x6, profile, hashed=profile[8:])
    found = facts(log)
    assert found.command_lines == ("console=ttyS0", "quiet root=LABEL=root")
    assert found.uki_profile == "2"


@pytest.mark.parametrize(
    ("data", "hashed"),
    [
        (tagged(0x13AED6DB, "2"), b"other"),
        (tagged(0x13AED6DC, "2"), tagged(0x13AED6DC, "2")[8:]),
        (tagged(0x13AED6DB, "2")[:-1], tagged(0x13AED6DB, "2")[8:]),
        (b"\xdb\xd6\xae\x13", b"\xdb\xd6\xae\x13"),
    ],
    ids=["unproven", "other-tag", "cut", "no-length"],
)
def test_a_profile_that_no_digest_proves_is_none(data, hashed):
    """The tag is a hint; the number counts only where the digest is that of it (rule 38)."""
    assert facts(good_log().event(12, 0x6, data, hashed=hashed)).uki_profile is None


@pytest.mark.parametrize("pcr", range(8, 16))
def test_files_are_those_of_the_registers_that_hold_files(pcr):
    """Files and sections stand in PCR 9 and 11 to 14; elsewhere data that prove nothing are no file."""
    before = len(facts(good_log()).files)
    found = facts(good_log().event(pcr, IPL, b"/file", hashed=b"its content")).files[before:]
    assert bool(found) is (pcr in {9, 11, 12, 13, 14})


@pytest.mark.parametrize("pcr", range(8, 16))
def test_load_options_are_those_of_the_stub_s_registers(pcr):
    """systemd-stub measures its options into PCR 12, and into PCR 8 before version 251."""
    line = "quiet\0".encode("utf-16-le")
    found = facts(good_log().event(pcr, IPL, line)).command_lines
    assert ("quiet" in found) is (pcr in {8, 12})


def test_a_command_line_of_old_grub():
    """Old GRUB of Red Hat writes another label (rule 38)."""
    found = facts(good_log().event(8, IPL, b"grub_kernel_cmdline ro\0", hashed=b"ro"))
    assert found.command_lines[-1] == "ro"


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        *((name, GLOBAL) for name in ("SecureBoot", "SetupMode", "AuditMode", "DeployedMode")),
        *((name, GLOBAL) for name in ("PK", "KEK")),
        *((name, DATABASE) for name in ("db", "dbx", "dbt", "dbr")),
    ],
)
def test_variables_that_decide_have_one_owner_and_come_once(name, owner):
    """Rule 41: a second one is refused; one of another owner is no setting of Secure Boot's."""

    def log(*owners):
        builder = LogBuilder()
        for each in owners:
            builder.variable(name, b"\1", each)
        if name != "SecureBoot":
            builder.variable("SecureBoot", b"\1")
        if name != "PK":
            builder.variable("PK", signature_list([bytes(32)]))
        builder.separators((7,))
        return facts(builder.event(7, AUTHORITY, variable("db", DB_ENTRY, DATABASE)))

    assert "variable-twice" in ids(log(owner, owner))
    assert not log(owner, owner).secure_boot.enforced
    foreign = log(SHIM_LOCK, SHIM_LOCK)
    assert "variable-twice" not in ids(foreign)
    assert name not in foreign.secure_boot.databases
    decides = name in {"PK", "KEK", "db", "dbx", "dbt", "dbr"}
    assert (name in log(owner).secure_boot.databases) is decides


@pytest.mark.parametrize("name", ["PK", "KEK", "db", "dbx", "dbt", "dbr", "Shim", "SbatLevel"])
def test_an_authority_is_one_of_a_database(name):
    """Rule 41: what accepted the boot loader comes out of a database of keys, not out of shim's variables."""
    builder = LogBuilder().policy().separators((7,))
    found = facts(builder.event(7, AUTHORITY, variable(name, DB_ENTRY, DATABASE)))
    assert found.secure_boot.enforced is (name not in {"Shim", "SbatLevel"})


def test_an_empty_command_line_is_one():
    """What was proven to be empty is shown as empty, not left out (rule 38)."""
    found = facts(good_log().event(8, IPL, b"kernel_cmdline: \0", hashed=b""))
    assert found.command_lines == ("console=ttyS0", "")


def test_load_options_that_no_digest_proves_are_none():
    """A command line is claimed only from its digest (rule 38)."""
    line = "init=/bin/sh\0".encode("utf-16-le")
    assert facts(good_log().event(12, IPL, line, hashed=b"other")).command_lines == (
        "console=ttyS0",
    )


@pytest.mark.parametrize("name", [b"DMA Protection Disabled", b"UEFI Debug Mode"])
def test_a_weakness_does_not_hide_as_a_setting_of_the_firmware(name):
    """An event renamed to a variable that nobody knows voids the claim: its digest is another (rule 37)."""
    builder = LogBuilder().event(7, DRIVER_CONFIG, variable("Vendor", b"x"), hashed=name)
    builder.policy().separators((7,))
    found = facts(builder.event(7, AUTHORITY, variable("db", DB_ENTRY, DATABASE)))
    assert "variable-unproven" in ids(found)
    assert found.secure_boot.enforced is False


def test_a_setting_of_the_firmware_is_no_finding():
    """Vendors measure variables of their own, proven and before the separator (rule 41)."""
    builder = LogBuilder().variable("VendorKeys", b"\0").policy().separators((7,))
    builder.event(7, AUTHORITY, variable("db", DB_ENTRY, DATABASE))
    found = facts(builder)
    assert not found.refused
    assert found.secure_boot.enforced


def test_secure_boot_of_a_confidential_vm_is_in_its_first_rtmr():
    """Rules 42, 46: the policy of a TD stands in RTMR 0, which a CCEL calls index 1."""
    path = corpus_folder("eventlogs") / "go-eventlog__testdata__eventlogs__ccel__event_log.bin"
    log = decode_boot_log(path.read_bytes())
    (bank,) = log.algorithms
    values = {index: value for index in range(4) if (value := replay(log, bank).value(index))}
    kind = RegisterKind.RTMR
    whole = verify_boot_log(log, values, bank=bank, pcrs=values, registers=kind)
    found = boot_facts(whole)
    assert (found.secure_boot.enabled, found.secure_boot.setup_mode) == (False, True)
    assert set(found.secure_boot.databases) == {"PK", "KEK", "db", "dbx"}
    assert not found.unrecognised
    assert not found.findings
    part = verify_boot_log(log, values, bank=bank, pcrs={0, 2, 3}, registers=kind)
    unproven = boot_facts(part)
    assert unproven.secure_boot.enabled is None
    assert [(each.id, each.pcr) for each in unproven.findings] == [("secure-boot-unverified", 1)]
