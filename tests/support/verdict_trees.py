"""What a verdict says of a host, case by case, in a form that can be read and compared.

Each case is one thing that is wrong (or good) with a host, with what enrolment knew of it, or with what
its policy asks. Of the good case each check is written; of the others the checks that the good one does
not have.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from support.check_lines import lines
from support.logbuilder import IPL, LogBuilder, good_log
from support.secure_boot_trees import SECURE_BOOT
from support.small_bundle import BASELINES, CONTEXT, EXPECTED, GOOD, POLICY, RULES
from support.variants import PCRS, changed, good_boot, proven, variants, with_digest
from trustauthority.appraisal.alternatives import judge_boot
from trustauthority.appraisal.appraise import appraise, judge_runtime
from trustauthority.appraisal.runtimefiles import FileJudgement, RefusedEntry
from trustauthority.appraisal.tpm import TpmKnowledge
from trustauthority.codec.eventlog import decode_boot_log
from trustauthority.model.bootlog import EventType
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.policy import BootPolicy, Requirement
from trustauthority.model.verdict import Check, CheckState
from trustauthority.verification.bootreplay import BankReplay
from trustauthority.verification.pipeline import verify_evidence
from trustauthority.verification.runtime import BootAggregate

Checks = tuple[Check, ...]
Case = Callable[[], Checks]
SHA256 = HashAlgorithm.SHA256
OFF, WARN, REQUIRED = Requirement.OFF, Requirement.WARN, Requirement.REQUIRED
VERIFIED = verify_evidence(GOOD, EXPECTED, POLICY, RULES)


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


def _files(*, refused: int, path: str = "/evil") -> FileJudgement:
    one = RefusedEntry(number=7, path=path, digest="sha256:ee", why="the rules do not name it")
    return FileJudgement(
        rules=RULES.sha256, by_digest=5, by_signature=2, excluded=3, refused=refused, named=(one,)
    )


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
    "files that nothing approves": lambda: _verdict(files=_files(refused=2)),
    "one file that can't be read": lambda: _verdict(files=_files(refused=1, path="")),
    "files were not judged": lambda: _verdict(files=None),
    "no rules are named": lambda: _runtime(rules=""),
    "files not asked for, nor rules": lambda: _runtime(rules="", files=OFF),
    "the runtime log not asked for": lambda: _runtime(ima=OFF, boot_aggregate=OFF, violations=OFF),
}


# --- baselines -----------------------------------------------------------------------------------

GOLDEN = good_boot()
WIDE = (*PCRS, 13, 15)


def _variants(log, name: str = "golden", *, pcrs=WIDE, host_class: str = ""):
    return variants(log, name, pcrs=pcrs, host_class=host_class)


APPROVED = _variants(GOLDEN)


def _judged(log=GOLDEN, approved=APPROVED, *, host_class: str = "", paired=OFF) -> Checks:
    wanted = BootPolicy(baseline_pcrs=WIDE, host_class=paired)
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
    "approved for other registers": lambda: _judged(approved=_variants(GOLDEN, pcrs=WIDE[:-1])),
    "approved in another bank": lambda: _judged(
        approved=tuple(replace(each, bank="sha384") for each in APPROVED)
    ),
    "approved for another class": lambda: _judged(
        approved=_variants(GOLDEN, "r650", host_class="r650"), host_class="edge"
    ),
    "approved for a class, and the host has none": lambda: _judged(
        approved=_variants(GOLDEN, "r650", host_class="r650")
    ),
    "a class is asked for": lambda: _judged(host_class="r650", paired=REQUIRED),
    "a class is asked for, and shown": lambda: _judged(
        approved=_variants(GOLDEN, "r650", host_class="r650"), host_class="r650", paired=REQUIRED
    ),
    "no boot loader and no command line": lambda: _judged(
        changed(GOLDEN, lambda e: None if e.pcr in {8, 14} else e), paired=WARN
    ),
    "the closest of two, of which one is for another class": lambda: _judged(
        _other(14),
        (*_variants(GOLDEN, "a", host_class="r650"), *_variants(GOLDEN, "b")),
        host_class="edge",
    ),
    "the closest of two": lambda: _judged(
        _other(14),
        (*_variants(good_boot("other-kernel-build"), "6.12"), *APPROVED),
    ),
}
FAMILIES: Mapping[str, Mapping[str, Case]] = {
    "verdict": VERDICTS,
    "secure-boot": SECURE_BOOT,
    "baseline": BASELINE,
}
