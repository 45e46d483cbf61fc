"""Facts of a measured boot, from verified events only.

Trusts on entry: a ``VerifiedBootLog``. Guarantees on exit: every fact rests on a digest that a quote
proves; names and paths that no digest covers are kept apart as hints; registers with records of an
unknown or misplaced type are named, so that nothing is claimed from them (pitfalls 37).

Source: TCG PC Client Platform Firmware Profile 1.06, table 1 (what each PCR holds) and table 27.
"""

from collections.abc import Iterable, Mapping
from struct import Struct
from types import MappingProxyType
from weakref import WeakKeyDictionary

from trustauthority.appraisal.secureboot import POLICY_PCR, PolicyRegister
from trustauthority.codec.efi_text import byte_text, looks_like_utf16, utf16_text
from trustauthority.model.bootfacts import (
    BootFacts,
    BootFinding,
    LoadedImage,
    MeasuredFile,
    Severity,
)
from trustauthority.model.bootlog import BootEvent, EventType, RegisterKind
from trustauthority.model.quirk import Quirk
from trustauthority.verification.banks import hash_constructor
from trustauthority.verification.meaning import Proof, boot_string, prove
from trustauthority.verification.replay import ReplayFinding, VerifiedBootLog

_IMAGES = frozenset(
    {
        EventType.EFI_BOOT_SERVICES_APPLICATION,
        EventType.EFI_BOOT_SERVICES_DRIVER,
        EventType.EFI_RUNTIME_SERVICES_DRIVER,
    }
)
_IMAGE_TYPES = frozenset(int(event_type) for event_type in _IMAGES)
_IPL = int(EventType.IPL)
_EVENT_TAG = int(EventType.EVENT_TAG)
_SEPARATOR = int(EventType.SEPARATOR)
_FILE_TYPES = frozenset({_IPL, _EVENT_TAG})
_FILE_PCRS = frozenset({9, 11, 12, 13, 14})
_GOOD_SEPARATORS = (b"\0\0\0\0", b"\xff\xff\xff\xff")
_ERROR_SEPARATOR = b"\x01\0\0\0"
_COMMAND_LINES = (b"kernel_cmdline: ", b"grub_kernel_cmdline ")
_STUB_PCRS = frozenset({8, 12})
"""Where systemd-stub measures load options: PCR 12, and PCR 8 before version 251."""
_UKI_PROFILE = 0x13AED6DB
"""Tag of the event in which systemd-stub names the chosen profile of a unified kernel image."""
_TAG = Struct("<II")
_DOWNGRADED = b"Security Level is Downgraded"
_ACTIONS = frozenset({int(EventType.EFI_ACTION), int(EventType.ACTION)})
_CALLING = b"Calling EFI Application from Boot Option"

_ANYWHERE = frozenset({EventType.SEPARATOR, EventType.EFI_ACTION, EventType.ACTION})
_CODE = frozenset(
    {
        EventType.POST_CODE,
        EventType.POST_CODE2,
        EventType.EFI_PLATFORM_FIRMWARE_BLOB,
        EventType.EFI_PLATFORM_FIRMWARE_BLOB2,
        EventType.NONHOST_CODE,
        EventType.NONHOST_CONFIG,
        EventType.NONHOST_INFO,
        EventType.EVENT_TAG,
        EventType.TABLE_OF_DEVICES,
        EventType.PLATFORM_CONFIG_FLAGS,
        EventType.CPU_MICROCODE,
        EventType.EFI_HANDOFF_TABLES,
        EventType.EFI_HANDOFF_TABLES2,
        EventType.EFI_VARIABLE_BOOT,
        EventType.EFI_VARIABLE_BOOT2,
        EventType.EFI_VARIABLE_DRIVER_CONFIG,
        *_IMAGES,
    }
)
EXPECTED_TYPES: Mapping[int, frozenset[EventType]] = MappingProxyType(
    {
        0: _ANYWHERE
        | _CODE
        | {EventType.S_CRTM_CONTENTS, EventType.S_CRTM_VERSION, EventType.EFI_HCRTM_EVENT},
        1: _ANYWHERE | _CODE,
        2: _ANYWHERE | _CODE | {EventType.EFI_SPDM_FIRMWARE_BLOB},
        3: _ANYWHERE | _CODE | {EventType.EFI_SPDM_FIRMWARE_CONFIG},
        4: _ANYWHERE
        | _IMAGES
        | {EventType.IPL, EventType.COMPACT_HASH, EventType.OMIT_BOOT_DEVICE_EVENTS},
        5: _ANYWHERE
        | {
            EventType.EFI_GPT_EVENT,
            EventType.EFI_GPT_EVENT2,
            EventType.IPL,
            EventType.IPL_PARTITION_DATA,
            EventType.EVENT_TAG,
            EventType.EFI_VARIABLE_BOOT,
        },
        6: _ANYWHERE | {EventType.COMPACT_HASH, EventType.EVENT_TAG},
        7: _ANYWHERE
        | {
            EventType.EFI_VARIABLE_DRIVER_CONFIG,
            EventType.EFI_VARIABLE_AUTHORITY,
            EventType.EFI_SPDM_DEVICE_POLICY,
            EventType.EFI_SPDM_DEVICE_AUTHORITY,
        },
    }
)
"""Types that belong into the firmware's registers; those of the operating system are its own."""

_KNOWN: WeakKeyDictionary[VerifiedBootLog, dict[frozenset[Quirk], BootFacts]] = WeakKeyDictionary()


def boot_facts(log: VerifiedBootLog, *, quirks: Iterable[Quirk] = ()) -> BootFacts:
    """Say what a verified boot log shows.

    Args:
        log: the verified part of a log; registers that do not replay are not in it.
        quirks: deviations that policy allows by name.

    Remembered for as long as the log is: it does not change, nor do its facts.
    """
    allowed = frozenset(quirks)
    known = _KNOWN.setdefault(log, {})
    facts = known.get(allowed)
    if facts is None:
        facts = known[allowed] = _boot_facts(log, allowed)
    return facts


def _boot_facts(log: VerifiedBootLog, allowed: frozenset[Quirk]) -> BootFacts:
    # (1) Defects of the log as a whole.
    findings = [_replay_finding(defect) for defect in log.defects]
    # (2) Separators, types that do not belong where they are, the order of applications.
    unrecognised = _unrecognised(log)
    findings += _separators(log)
    findings += _unrecognised_findings(unrecognised)
    findings += _application_order(log, allowed)
    # (3) Secure Boot, of which nothing is claimed once anything above is not genuine.
    doubtful = any(finding.severity is Severity.REFUSE for finding in findings)
    policy = PolicyRegister(log, allowed, doubtful=doubtful)
    secure_boot = policy.walk()
    findings += policy.findings
    findings += _weaknesses(policy)
    findings += _downgrades(log)
    # (4) What was loaded.
    images = tuple(
        [
            LoadedImage(pcr=event.pcr, digest=log.digest(event).hex(), event=event.number)
            for event in log.events
            if event.type in _IMAGE_TYPES
        ]
    )
    command_lines, files, profile = _operating_system(log)
    sbat = policy.sbat_level
    return BootFacts(
        secure_boot=secure_boot,
        images=images,
        option_roms=sum(image.pcr == 2 for image in images),
        command_lines=command_lines,
        files=files,
        sbat_level=None if sbat is None else sbat.decode("utf-8", "backslashreplace"),
        uki_profile=profile,
        uefi_debug=policy.uefi_debug,
        dma_protection_disabled=policy.dma_protection_disabled,
        unrecognised=MappingProxyType(unrecognised),
        findings=tuple(findings),
    )


def _warning(name: str, message: str, *, pcr: int = -1, event: int = -1) -> BootFinding:
    return BootFinding(id=name, severity=Severity.WARNING, message=message, pcr=pcr, event=event)


def _refuse(name: str, message: str, *, pcr: int = -1, event: int = -1) -> BootFinding:
    return BootFinding(id=name, severity=Severity.REFUSE, message=message, pcr=pcr, event=event)


def _replay_finding(found: ReplayFinding) -> BootFinding:
    return _refuse(
        str(found.defect), "a record that no genuine firmware writes", event=found.event_number
    )


def _separators(log: VerifiedBootLog) -> list[BootFinding]:
    """Exactly one separator in each of PCR 0-7, with proven data (pitfalls 41).

    A CCEL has several per register by construction: PCRs share RTMRs. Registers from 8 on belong to
    the operating system, which may write separators of its own.
    """
    digest_of = hash_constructor(log.bank)
    good = {digest_of(data).digest() for data in _GOOD_SEPARATORS}
    found: list[BootFinding] = []
    seen: set[int] = set()
    for event in log.events:
        pcr = event.pcr
        if event.type != _SEPARATOR or pcr > POLICY_PCR:
            continue
        if event.data == _ERROR_SEPARATOR:
            name, message = "separator-error", "the boot failed"
        elif event.data not in _GOOD_SEPARATORS or log.digest(event) not in good:
            name, message = "separator-invalid", "the digest is not that of a separator"
        elif pcr in seen and log.registers is RegisterKind.PCR:
            name, message = "separator-twice", "a second separator"
        else:
            name, message = "", ""
        if name:
            found.append(_refuse(name, message, pcr=pcr, event=event.number))
        seen.add(pcr)
    if log.registers is RegisterKind.PCR and log.events:
        found += [
            _warning("separator-missing", f"PCR {pcr} has no separator", pcr=pcr)
            for pcr in range(POLICY_PCR + 1)
            if pcr in log.verified_pcrs and pcr not in seen
        ]
    return found


def _unrecognised(log: VerifiedBootLog) -> dict[int, tuple[int, ...]]:
    if log.registers is not RegisterKind.PCR:
        return {}
    found: dict[int, list[int]] = {}
    for number, _, pcr, event_type, _, _ in log.events:
        if pcr <= POLICY_PCR and event_type not in EXPECTED_TYPES[pcr]:
            found.setdefault(pcr, []).append(number)
    return {pcr: tuple(numbers) for pcr, numbers in found.items()}


def _unrecognised_findings(unrecognised: Mapping[int, tuple[int, ...]]) -> list[BootFinding]:
    """A type is covered by no digest: renaming an event must not hide it (pitfalls 37)."""
    return [
        BootFinding(
            id="event-type-unexpected",
            severity=Severity.REFUSE if pcr == POLICY_PCR else Severity.WARNING,
            message=f"{len(numbers)} records of a type that does not belong into PCR {pcr}",
            pcr=pcr,
            event=numbers[0],
        )
        for pcr, numbers in unrecognised.items()
    ]


def _weaknesses(policy: PolicyRegister) -> list[BootFinding]:
    found = []
    if policy.uefi_debug:
        found.append(_warning("uefi-debug-mode", "firmware runs in debug mode", pcr=policy.pcr))
    if policy.dma_protection_disabled:
        found.append(
            _warning("dma-protection-disabled", "devices may write to all memory", pcr=policy.pcr)
        )
    return found


def _application_order(log: VerifiedBootLog, quirks: frozenset[Quirk]) -> list[BootFinding]:
    """Firmware that announces boot options does so before it starts one (pitfalls 44)."""
    if Quirk.APPLICATION_BEFORE_CALLING_EVENT in quirks or log.registers is not RegisterKind.PCR:
        return []
    early: BootEvent | None = None
    for event in log.in_register(4):
        if event.type == EventType.EFI_BOOT_SERVICES_APPLICATION:
            early = early or event
        elif event.type == EventType.EFI_ACTION and event.data.rstrip(b"\0") == _CALLING:
            if early is None:
                return []
            return [
                _warning(
                    "application-before-calling-event",
                    "an application started before a boot option was called",
                    pcr=4,
                    event=early.number,
                )
            ]
    return []


def _downgrades(log: VerifiedBootLog) -> list[BootFinding]:
    """Firmware that says it runs with less security than it was made for (HP does; pitfalls 42)."""
    return [
        _warning(
            "security-level-downgraded", byte_text(event.data), pcr=event.pcr, event=event.number
        )
        for event in log.events
        if event.type in _ACTIONS
        and event.data.startswith(_DOWNGRADED)
        and prove(event, log.digest(event), log.bank) is Proof.DATA
    ]


def _operating_system(
    log: VerifiedBootLog,
) -> tuple[tuple[str, ...], tuple[MeasuredFile, ...], str | None]:
    """Proven command lines, files (a digest, and a name that none covers), the profile of a UKI."""
    lines: list[str] = []
    files: list[MeasuredFile] = []
    profile: str | None = None
    position, bank = log.position, log.bank
    for event in log.events:
        number, _, pcr, event_type, digests, data = event
        if event_type not in _FILE_TYPES:
            continue
        digest = digests[position] or b""
        if data.startswith(_COMMAND_LINES):
            if prove(event, digest, bank) is Proof.VALUE:
                lines.append(byte_text(boot_string(data) or b""))
        elif event_type == _IPL and pcr in _STUB_PCRS and looks_like_utf16(data):
            if prove(event, digest, bank) is Proof.DATA:
                lines.append(utf16_text(data))
        elif event_type == _EVENT_TAG and _tag(data) == _UKI_PROFILE:
            if prove(event, digest, bank) is Proof.VALUE:
                profile = utf16_text(data[_TAG.size :])
        elif pcr in _FILE_PCRS and prove(event, digest, bank) is Proof.NONE:
            shown = data[8:] if event_type == _EVENT_TAG else data
            name = utf16_text(shown) if looks_like_utf16(shown) else byte_text(shown)
            files.append(MeasuredFile(pcr=pcr, digest=digest.hex(), name=name, event=number))
    return tuple(lines), tuple(files), profile


def _tag(data: bytes) -> int | None:
    """The tag of a TCG_PCClientTaggedEvent whose length fits."""
    if len(data) < _TAG.size:
        return None
    tag, size = _TAG.unpack_from(data)
    return int(tag) if size == len(data) - _TAG.size else None
