"""Checks of the boot: the log explains the PCRs, Secure Boot is enforced, nothing forged stands in it.

What it trusts: VerifiedBootLogs, of which only proven events are reachable. Pitfalls.md rules 34-44.
"""

from trustauthority.appraisal.bootfacts import boot_facts
from trustauthority.appraisal.states import state_of
from trustauthority.model.bootfacts import BootFacts, BootFinding, SecureBootFacts, Severity
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.policy import BootPolicy, Requirement
from trustauthority.model.verdict import Check, CheckState
from trustauthority.verification.bootreplay import BankReplay
from trustauthority.verification.replay import VerifiedBootLog

_FIRMWARE_PCRS = range(8)


def boot_log_checks(bank: HashAlgorithm, replay: BankReplay, *, claimed: bool) -> tuple[Check, ...]:
    """Checks of one quoted bank: every active bank must replay (TPM Carte Blanche, rule 40)."""
    check_id, title = f"boot-log.{bank}", f"the log reproduces the {bank} bank"
    if replay.log is None:
        return (
            Check(
                id=check_id,
                title=title,
                state=CheckState.FAILED,
                detail=replay.problem,
                remedy="Check that the agent may read the boot log, and that the boot loader passes it on.",
            ),
        )
    log = replay.log
    differences = tuple(
        Check(
            id=f"{check_id}.pcr-{each.pcr}",
            title=f"PCR {each.pcr}",
            state=CheckState.FAILED,
            pcr=each.pcr,
            expected="no event" if each.replayed is None else each.replayed.hex(),
            found=each.quoted.hex(),
            detail=str(each),
            remedy="The log was changed, or something extended this PCR without logging it.",
        )
        for each in log.differences
    )
    allowed = tuple(
        Check(
            id=f"{check_id}.quirk.pcr-{pcr}",
            title=f"PCR {pcr}, by a known deviation",
            state=CheckState.PASSED,
            pcr=pcr,
            found=str(quirk),
            detail=f"the log alone does not give PCR {pcr}; the policy allows {quirk}, which does",
        )
        for pcr, quirk in log.quirks.items()
    )
    state = CheckState.PASSED if log.of_newest else CheckState.WARNING
    if differences or log.defects:
        state = CheckState.FAILED
    shown = Check(
        id=check_id,
        title=title if claimed else f"{title}; no claim rests on it",
        state=state,
        found=f"{len(log.events)} events reproduce {len(log.verified_pcrs)} PCRs{_of_boots(log)}",
        children=(*differences, *allowed),
    )
    return (shown, _capped(bank, log)) if claimed else (shown,)


def _of_boots(log: VerifiedBootLog) -> str:
    """Which boot of the file the quote is of, when there are several (pitfalls 47)."""
    return f", boot {log.boot} of the {log.of_boots} in the file" if log.of_boots > 1 else ""


def _capped(bank: HashAlgorithm, log: VerifiedBootLog) -> Check:
    """A firmware PCR that nothing was extended into could be filled by anybody (rule 40)."""
    empty = [pcr for pcr in _FIRMWARE_PCRS if pcr in log.verified_pcrs and not log.in_register(pcr)]
    return Check(
        id=f"boot-log.{bank}.measured",
        title="firmware measured into each of PCRs 0-7",
        state=CheckState.FAILED if empty else CheckState.PASSED,
        found=f"no event in PCR {', '.join(map(str, empty))}" if empty else "all",
        pcr=empty[0] if empty else -1,
    )


def secure_boot_checks(log: VerifiedBootLog | None, policy: BootPolicy) -> tuple[Check, ...]:
    """Checks of Secure Boot and of what a genuine log can't contain."""
    if log is None:
        return (
            Check(
                id="secure-boot.log",
                title="a verified boot log",
                state=CheckState.FAILED,
                pcr=7,
                detail="without a boot log nothing is known of Secure Boot",
            ),
        )
    facts = boot_facts(log, quirks=policy.quirks)
    return (
        _enforced(facts, policy),
        *(_finding(each, policy) for each in facts.findings),
    )


def _enforced(facts: BootFacts, policy: BootPolicy) -> Check:
    secure = facts.secure_boot
    said = {True: "on", False: "off", None: "unknown"}[secure.enabled]
    return Check(
        id="secure-boot.enforced",
        title="Secure Boot is enforced",
        state=state_of(policy.secure_boot, good=secure.enforced),
        expected="on, and used to accept what was loaded",
        found=said
        if secure.enforced or secure.enabled is not True
        else "on, but not proven in force",
        detail="" if secure.enforced else _why_not(secure),
        remedy="" if secure.enforced else _what_to_do(secure),
        pcr=7,
    )


def _why_not(secure: SecureBootFacts) -> str:
    """Why Secure Boot is not enforced: the first reason, since one is enough (rules 41, 42)."""
    if secure.enabled is not True:
        return f"Secure Boot is {'unknown' if secure.enabled is None else 'off'}"
    if secure.setup_mode is not False:
        return "no platform key is proven: in setup mode anybody may enrol keys"
    if secure.audit_mode:
        return "the firmware is in audit mode: it starts what nobody signed"
    return "PCR 7 does not prove that Secure Boot decided what was started: the findings say why"


def _what_to_do(secure: SecureBootFacts) -> str:
    if secure.enabled is not True:
        return "Turn Secure Boot on in the firmware setup and reboot."
    if secure.setup_mode is not False or secure.audit_mode:
        return "Enrol a platform key, leave setup and audit mode in the firmware setup, and reboot."
    return "Look at PCR 7 of the boot log with ta evidence eventlog."


def _finding(finding: BootFinding, policy: BootPolicy) -> Check:
    weighty = finding.severity is Severity.REFUSE or policy.debug is Requirement.REQUIRED
    state = CheckState.FAILED if weighty else CheckState.WARNING
    return Check(
        id=f"secure-boot.{finding.id}",
        title=finding.message,
        state=state,
        detail=finding.message,
        pcr=finding.pcr,
        event_index=finding.event,
    )
