"""What a verdict says of a host, case by case, in a form that can be read and compared.

Each case is one thing that is wrong (or good) with a host, with what enrolment knew of it, or with what
its policy asks. Of the good case each check is written; of the others the checks that the good one does
not have.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from support.check_lines import lines
from support.logbuilder import (
    ACTION_EFI,
    APPLICATION,
    AUTHORITY,
    DATABASE,
    DRIVER_CONFIG,
    GLOBAL,
    HCRTM,
    IPL,
    SEPARATOR,
    LogBuilder,
    good_log,
    guid,
    variable,
)
from support.small_bundle import BASELINES, CONTEXT, EXPECTED, GOOD, POLICY, RULES
from support.variants import PCRS, changed, good_boot, proven, variants, with_digest
from trustauthority.appraisal.alternatives import judge_boot
from trustauthority.appraisal.appraise import appraise, judge_runtime
from trustauthority.appraisal.boot import secure_boot_checks
from trustauthority.appraisal.tpm import TpmKnowledge
from trustauthority.codec.eventlog import decode_boot_log
from trustauthority.model.bootlog import EventType
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.policy import BootPolicy, Requirement
from trustauthority.model.quirk import Quirk
from trustauthority.model.verdict import Check, CheckState
from trustauthority.verification.bootreplay import BankReplay
from trustauthority.verification.pipeline import verify_evidence
from trustauthority.verification.runtime import BootAggregate

Checks = tuple[Check, ...]
Case = Callable[[], Checks]
SHA256 = HashAlgorithm.SHA256
OFF, WARN, REQUIRED = Requirement.OFF, Requirement.WARN, Requirement.REQUIRED
VERIFIED = verify_evidence(GOOD, EXPECTED, POLICY, RULES)
_DB_ENTRY = guid(GLOBAL) + bytes(32)
_SHIM_LOCK = "605dab50-e046-4300-abb6-3dd810dd8b23"


def table(family: str) -> list[str]:
    """The lines of a family: the name of each case, and below it what is said."""
    cases = FAMILIES[family]
    good = set(lines(cases["good"]()))
    said = ["# good", *lines(cases["good"]())]
    for name, case in cases.items():
        if name != "good":
            said += [f"# {name}", *(line for line in lines(case()) if line not in good)]
    return said


# --- whole verdicts ----------------------------------------------------------------------------


def _verdict(evidence=VERIFIED, policy=POLICY, baselines=BASELINES, **context) -> Checks:
    known = {"files": judge_runtime(evidence.runtime, RULES, None)} | context
    verdict = appraise(evidence, policy, baselines, replace(CONTEXT, **known))
    summary = Check(
        id="verdict",
        title=verdict.reason,
        state=CheckState.PASSED if verdict.passed else CheckState.FAILED,
        found=f"passed {verdict.passed}, until {verdict.attested_until_ms}, baseline {verdict.baseline}",
    )
    return summary, *verdict.checks


def _booted(builder: LogBuilder) -> Checks:
    """The verdict on a host whose TPM was extended with exactly this log."""
    log = proven(decode_boot_log(builder.bytes), pcrs=POLICY.evidence.pcrs)
    return _verdict(replace(VERIFIED, boot={**VERIFIED.boot, SHA256: BankReplay(log=log)}))


def _sent(raw: bytes) -> Checks:
    """The verdict on the good quote with another boot log."""
    return _verdict(verify_evidence(replace(GOOD, boot_log=raw), EXPECTED, POLICY, RULES))


def _measured(change: Callable[[bytes], bytes]) -> Checks:
    """The verdict on the good quote with another runtime log."""
    sent = replace(GOOD, ima_log=change(GOOD.ima_log))
    return _verdict(verify_evidence(sent, EXPECTED, POLICY, RULES))


def _progress(**changes: object) -> Checks:
    replayed = replace(VERIFIED.runtime, progress=replace(VERIFIED.runtime.progress, **changes))
    return _verdict(replace(VERIFIED, runtime=replayed))


def _boot(**changes: object) -> Checks:
    return _verdict(policy=replace(POLICY, boot=replace(POLICY.boot, **changes)))


def _runtime(**changes: object) -> Checks:
    return _verdict(policy=replace(POLICY, runtime=replace(POLICY.runtime, **changes)))


def _clock_unsafe() -> Checks:
    clock = replace(VERIFIED.quote.clock_info, safe=False)
    return _verdict(replace(VERIFIED, quote=replace(VERIFIED.quote, clock_info=clock)))


def _crashed() -> Checks:
    """A register whose events have no digest: nothing like it comes out of the verification."""
    log = VERIFIED.boot[SHA256].log
    assert log is not None
    broken = tuple(event._replace(digests=(None, None)) for event in log.events)
    boot = {SHA256: BankReplay(log=replace(log, events=broken))}
    return _verdict(replace(VERIFIED, boot=boot))


_STRICT_TPM = replace(POLICY.tpm, firmware_flaws=REQUIRED, firmware_rollback=REQUIRED)


def _tpm(known: TpmKnowledge) -> Checks:
    return _verdict(policy=replace(POLICY, tpm=_STRICT_TPM), tpm=known)


VERDICTS: Mapping[str, Case] = {
    "good": _verdict,
    "the host is revoked": lambda: _verdict(revoked=True),
    "its certificate counts no more": lambda: _verdict(taken_back="its CA was revoked"),
    "a vendor stands behind its TPM": lambda: _tpm(TpmKnowledge(manufacturer="STM")),
    "TPM firmware older than before": lambda: _tpm(TpmKnowledge(firmware_before=2 << 48)),
    "TPM firmware of nobody knows whom": lambda: _tpm(TpmKnowledge()),
    "the clock is not safe": _clock_unsafe,
    "a check crashes": _crashed,
    "no boot log": lambda: _sent(b""),
    "a boot log that can't be read": lambda: _sent(GOOD.boot_log[:-1]),
    "the last record left out": lambda: _sent(GOOD.boot_log[: good_log().offsets[-1]]),
    "nothing measured": lambda: _booted(LogBuilder().event(8, IPL, b"x")),
    "no bank was quoted": lambda: _verdict(replace(VERIFIED, boot={})),
    "no baseline": lambda: _verdict(baselines=()),
    "no baseline, warned of": lambda: _verdict(
        policy=replace(POLICY, boot=replace(POLICY.boot, baseline=WARN)), baselines=()
    ),
    "baselines not asked for": lambda: _boot(baseline=OFF),
    "Secure Boot not asked for": lambda: _boot(secure_boot=OFF),
    "another boot, warned of": lambda: _verdict(
        policy=replace(POLICY, boot=replace(POLICY.boot, baseline=WARN)),
        baselines=tuple(variants(good_boot(), "other", pcrs=POLICY.boot.baseline_pcrs)),
    ),
    "a runtime log of another host": lambda: _measured(lambda log: log[:-1] + b"\1"),
    "no runtime log": lambda: _measured(lambda _: b""),
    "entries with a wrong digest": lambda: _progress(defects=2),
    "files changed while they were measured": lambda: _progress(violations=3),
    "the aggregate of another boot": lambda: _progress(aggregate=BootAggregate.MISMATCH),
    "no aggregate": lambda: _progress(aggregate=BootAggregate.MISSING),
    "files were not judged": lambda: _verdict(files=None),
    "no rules are named": lambda: _runtime(rules=""),
    "files not asked for, nor rules": lambda: _runtime(rules="", files=OFF),
    "the runtime log not asked for": lambda: _runtime(ima=OFF, boot_aggregate=OFF, violations=OFF),
}


# --- what firmware and boot loaders measured -----------------------------------------------------


def _secure(builder: LogBuilder, *quirks: Quirk) -> Checks:
    """What is said of Secure Boot, of a log that a TPM proves."""
    log = proven(decode_boot_log(builder.bytes))
    return secure_boot_checks(log, BootPolicy(quirks=quirks))


def _started() -> LogBuilder:
    """Firmware with its policy and separators, and an authority for the boot loader."""
    return _accepted(LogBuilder().policy().separators((7,)).separators())


def _accepted(builder: LogBuilder) -> LogBuilder:
    return builder.event(7, AUTHORITY, variable("db", _DB_ENTRY, DATABASE))


def _configured(*settings: tuple[str, bytes]) -> LogBuilder:
    builder = LogBuilder()
    for name, value in settings:
        builder.variable(name, value)
    return _accepted(builder.separators((7,)).separators())


def _tampered(pcr: int, data: bytes) -> LogBuilder:
    """A separator of one register that is none."""
    builder = LogBuilder().policy().separators((7,))
    builder.separators([each for each in range(7) if each != pcr])
    return _accepted(builder).event(pcr, SEPARATOR, data)


_OFF = variable("MokSBState", b"\1", _SHIM_LOCK)
SECURE_BOOT: Mapping[str, Case] = {
    "good": lambda: _secure(good_log()),
    "no log": lambda: secure_boot_checks(None, BootPolicy()),
    "off": lambda: _secure(LogBuilder().policy(b"\0").separators((7,)).separators()),
    "not measured": lambda: _secure(_configured(("PK", b"x"))),
    "empty": lambda: _secure(_configured(("SecureBoot", b""))),
    "two bytes": lambda: _secure(_configured(("SecureBoot", b"\1\0"))),
    "the value 2": lambda: _secure(_configured(("SecureBoot", b"\2"))),
    "measured twice": lambda: _secure(_configured(("SecureBoot", b"\1"), ("SecureBoot", b"\1"))),
    "measured after the separator": lambda: _secure(_started().variable("SecureBoot", b"\1")),
    "measured with another digest": lambda: _secure(
        _accepted(
            LogBuilder()
            .event(7, DRIVER_CONFIG, variable("SecureBoot", b"\1"), hashed=b"another")
            .separators((7,))
            .separators()
        )
    ),
    "a variable that can't be read": lambda: _secure(_started().event(7, DRIVER_CONFIG, b"cut")),
    "a vendor's setting after the separator": lambda: _secure(_started().variable("V", b"\1")),
    "setup mode": lambda: _secure(
        _configured(("SecureBoot", b"\1"), ("SetupMode", b"\1"), ("PK", b"x"))
    ),
    "audit mode": lambda: _secure(
        _configured(("SecureBoot", b"\1"), ("AuditMode", b"\1"), ("PK", b"x"))
    ),
    "no platform key": lambda: _secure(_configured(("SecureBoot", b"\1"), ("PK", b""))),
    "no authority used": lambda: _secure(LogBuilder().policy().separators((7,)).separators()),
    "an authority that nothing proves": lambda: _secure(
        _started().event(7, AUTHORITY, variable("db", b"x", DATABASE), hashed=b"y")
    ),
    "an authority that can't be read": lambda: _secure(_started().event(7, AUTHORITY, b"cut")),
    "shim checks nothing": lambda: _secure(_started().event(7, AUTHORITY, _OFF)),
    "shim checks nothing, said twice": lambda: _secure(
        _started().event(7, AUTHORITY, _OFF).event(7, IPL, b"x", hashed=_OFF)
    ),
    "an action that nothing proves": lambda: _secure(
        _started().event(7, ACTION_EFI, b"all is well", hashed=b"UEFI Debug Mode")
    ),
    "an action that is no text": lambda: _secure(_started().event(7, ACTION_EFI, b"\x7f")),
    "a database that is none of devices": lambda: _secure(
        _started().event(7, 0x800000E3, variable("MokListRT", b"x", _SHIM_LOCK))
    ),
    "device data that can't be read": lambda: _secure(_started().event(7, 0x800000E4, b"cut")),
    "debug mode": lambda: _secure(
        _accepted(
            LogBuilder().event(7, ACTION_EFI, b"UEFI Debug Mode").policy().separators(range(8))
        )
    ),
    "no DMA protection": lambda: _secure(
        _started().event(7, ACTION_EFI, b"DMA Protection Disabled")
    ),
    "downgraded firmware": lambda: _secure(
        _started().event(0, ACTION_EFI, b"Security Level is Downgraded to 1\0")
    ),
    "the boot failed": lambda: _secure(_tampered(3, b"\1\0\0\0")),
    "a separator that is none": lambda: _secure(_tampered(3, b"\2\0\0\0")),
    "a separator twice": lambda: _secure(_started().separators((5,))),
    "a separator of the operating system": lambda: _secure(_started().separators((8, 8))),
    "no separator": lambda: _secure(
        _accepted(LogBuilder().policy().separators((7,)).separators((0, 1, 2, 4, 5, 6)))
    ),
    "a type that does not belong into PCR 2": lambda: _secure(
        _started().event(2, IPL, b"x").event(2, AUTHORITY, b"y")
    ),
    "a type that does not belong into PCR 7": lambda: _secure(_started().event(7, IPL, b"x")),
    "an application before the boot option": lambda: _secure(_early()),
    "an application before the boot option, as allowed": lambda: _secure(
        _early(), Quirk.APPLICATION_BEFORE_CALLING_EVENT
    ),
    "a locality that comes late": lambda: _secure(_started().event(0, 3, b"StartupLocality\0\x03")),
    "an H-CRTM and another locality": lambda: _secure(_contradicting()),
    "PCR 7 does not replay": lambda: secure_boot_checks(
        proven(decode_boot_log(good_log().bytes), pcrs=range(7)), BootPolicy()
    ),
    "findings refuse where the policy says so": lambda: secure_boot_checks(
        proven(decode_boot_log(_early().bytes)), BootPolicy(debug=REQUIRED)
    ),
}


def _early() -> LogBuilder:
    builder = LogBuilder().policy().separators((7,))
    builder.event(4, APPLICATION, bytes(32), hashed=b"a tool of the vendor")
    builder.event(4, ACTION_EFI, b"Calling EFI Application from Boot Option\0")
    return _accepted(builder.separators())


def _contradicting() -> LogBuilder:
    builder = LogBuilder().event(0, 3, b"StartupLocality\0\x03").start(0, 4)
    return _accepted(builder.event(0, HCRTM, b"HCRTM").policy().separators(range(8)))


# --- baselines -----------------------------------------------------------------------------------

GOLDEN = good_boot()
APPROVED = variants(GOLDEN)


def _judged(log=GOLDEN, approved=APPROVED, *, host_class: str = "", paired=OFF) -> Checks:
    wanted = BootPolicy(baseline_pcrs=PCRS, host_class=paired)
    judged = judge_boot(log, approved, wanted, host_class=host_class)
    matched = ", ".join(f"{each.component}={each.name}" for each in judged.matched)
    words = f"complete {judged.complete}: {matched}"
    state = CheckState.PASSED if judged.complete else CheckState.FAILED
    return Check(id="judgement", title=words, state=state), *judged.checks


def _without(text: bytes):
    return changed(GOLDEN, lambda event: None if event.data.startswith(text) else event)


def _with(**fields: object):
    """The good boot and one event more."""
    extra = GOLDEN.events[-1]._replace(number=99, **fields)
    return replace(GOLDEN, events=(*GOLDEN.events, extra))


def _other(pcr: int):
    """The good boot, in which the first event of a register is of something else."""
    first = GOLDEN.in_register(pcr)[0]
    return changed(
        GOLDEN,
        lambda event: with_digest(GOLDEN, event, b"\xee" * 32) if event is first else event,
    )


def _early_line():
    """The kernel's command line, extended before GRUB's commands."""
    line = [e for e in GOLDEN.events if e.data.startswith((b"grub_cmd: linux", b"kernel_cmdline"))]
    rest = [event for event in GOLDEN.events if event not in line]
    at = next(number for number, event in enumerate(rest) if event.pcr == 8)
    return replace(GOLDEN, events=(*rest[:at], *line, *rest[at:]))


_IPL = int(EventType.IPL)
BASELINE: Mapping[str, Case] = {
    "good": _judged,
    "another command line": lambda: _judged(good_boot("changed-cmdline")),
    "another kernel": lambda: _judged(good_boot("other-kernel-build")),
    "Secure Boot off": lambda: _judged(good_boot("secureboot-off")),
    "other firmware": lambda: _judged(_other(0)),
    "an initrd left out": lambda: _judged(_without(b"/initrd.img")),
    "one measurement more": lambda: _judged(_with(pcr=14, type=_IPL, data=b"MokMore")),
    "an unknown measurement": lambda: _judged(_with(pcr=9, type=0x8401, data=b"?")),
    "two unknown measurements": lambda: _judged(
        replace(
            GOLDEN,
            events=(
                *GOLDEN.events,
                GOLDEN.events[-1]._replace(number=98, pcr=9, type=0x8401, data=b"?"),
                GOLDEN.events[-1]._replace(number=99, pcr=9, type=0x8402, data=b"!"),
            ),
        )
    ),
    "the command line in another place": lambda: _judged(_early_line()),
    "no kernel": lambda: _judged(changed(GOLDEN, lambda e: None if e.pcr in {4, 9} else e)),
    "a register that does not replay": lambda: _judged(
        replace(
            GOLDEN,
            events=tuple(event for event in GOLDEN.events if event.pcr != 14),
            verified_pcrs=GOLDEN.verified_pcrs - {14},
        )
    ),
    "nothing approved": lambda: _judged(approved=()),
    "approved for other registers": lambda: _judged(approved=variants(GOLDEN, pcrs=PCRS[:-1])),
    "approved in another bank": lambda: _judged(
        approved=tuple(replace(each, bank="sha384") for each in APPROVED)
    ),
    "approved for another class": lambda: _judged(
        approved=variants(GOLDEN, "r650", host_class="r650"), host_class="edge"
    ),
    "approved for a class, and the host has none": lambda: _judged(
        approved=variants(GOLDEN, "r650", host_class="r650")
    ),
    "a class is asked for": lambda: _judged(host_class="r650", paired=REQUIRED),
    "a class is asked for, and shown": lambda: _judged(
        approved=variants(GOLDEN, "r650", host_class="r650"), host_class="r650", paired=REQUIRED
    ),
    "no boot loader and no command line": lambda: _judged(
        changed(GOLDEN, lambda e: None if e.pcr in {8, 14} else e), paired=WARN
    ),
    "the closest of two, of which one is for another class": lambda: _judged(
        _other(14),
        (*variants(GOLDEN, "a", host_class="r650"), *variants(GOLDEN, "b")),
        host_class="edge",
    ),
    "the closest of two": lambda: _judged(
        _other(14),
        (*variants(good_boot("other-kernel-build"), "6.12"), *APPROVED),
    ),
}
FAMILIES: Mapping[str, Mapping[str, Case]] = {
    "verdict": VERDICTS,
    "secure-boot": SECURE_BOOT,
    "baseline": BASELINE,
}
