"""Judges a boot against the approved variants: each component must be one of its alternatives.

What it trusts: a VerifiedBootLog and the approved variants. What it guarantees: a check passes for a
component only when one variant, for hosts of this class, explains all of its events in all PCRs at once, and for
a PCR only when each of its events belongs to a component. Nothing passes because it is absent: components
that every boot has must be there.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from trustauthority.appraisal.baseline import Difference, differences
from trustauthority.appraisal.components import ComponentLog, split_components
from trustauthority.appraisal.states import state_of
from trustauthority.model.baseline import Baseline, Component, MatchedVariant
from trustauthority.model.bootlog import BootEvent
from trustauthority.model.policy import BootPolicy, Requirement
from trustauthority.model.verdict import Check, CheckState
from trustauthority.verification.meaning import describe
from trustauthority.verification.replay import VerifiedBootLog

TITLES = {
    Component.FIRMWARE: "firmware and its drivers",
    Component.SECURE_BOOT: "Secure Boot keys and databases",
    Component.BOOT_LOADER: "boot loader and its configuration",
    Component.KERNEL: "kernel and initrd",
    Component.COMMAND_LINE: "kernel command line",
}
PCR_TITLES = {
    0: "firmware",
    1: "firmware configuration",
    2: "option ROMs and drivers",
    3: "driver configuration",
    4: "boot loader",
    5: "boot loader configuration and partitions",
    6: "platform manufacturer",
    7: "Secure Boot configuration and authorities",
    8: "boot commands and kernel command line",
    9: "files that the boot loader read: kernel and initrd",
    11: "sections of the unified kernel image",
    12: "what is passed to the kernel",
    13: "extensions of the initrd",
    14: "shim: MOK lists and SBAT",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BootJudgement:
    """What the comparison with baselines says."""

    checks: tuple[Check, ...]
    matched: tuple[MatchedVariant, ...]
    complete: bool
    """Whether every component of this boot matched."""


def judge_boot(
    log: VerifiedBootLog, variants: Iterable[Baseline], policy: BootPolicy, *, host_class: str
) -> BootJudgement:
    """Compare a boot with the approved variants.

    Args:
        log: the verified boot log of the host.
        variants: approved ones, of any component and class.
        policy: which PCRs count.
        host_class: class of the host; empty when it has none.
    """
    split = split_components(log, policy.baseline_pcrs)
    known = tuple(variants)
    asked = [part for part in Component if part in split.runs or part in split.required]
    judged = [_judge_component(split, part, known, host_class) for part in asked]
    return BootJudgement(
        checks=(
            *(check for check, _ in judged),
            *_judge_class(policy, host_class, [variant for _, variant in judged]),
            *(_judge_pcr(split, pcr) for pcr in sorted(split.pcrs)),
        ),
        matched=tuple(
            MatchedVariant(component=part, name=variant.name)
            for part, (_, variant) in zip(asked, judged, strict=True)
            if variant is not None
        ),
        complete=all(variant is not None for _, variant in judged),
    )


def compare_variant(log: VerifiedBootLog, variant: Baseline, policy: BootPolicy) -> Check:
    """Compare one component of a boot with one variant, whatever its class and state."""
    split = split_components(log, policy.baseline_pcrs)
    found = differences(split, variant)
    if not found:
        return _check(variant.component, state=CheckState.PASSED, found=variant.name)
    return _differs(split, variant, found)


def _judge_component(
    split: ComponentLog, part: Component, variants: tuple[Baseline, ...], host_class: str
) -> tuple[Check, Baseline | None]:
    """The check of one component, and the variant it is."""
    if part not in split.runs:
        return _absent(part), None
    ours = [
        each for each in variants if each.component is part and each.bank == str(split.log.bank)
    ]
    compared = sorted(
        ((each, differences(split, each)) for each in ours),
        key=lambda pair: (
            len(pair[1]),
            not _fits(pair[0], host_class),
            not pair[0].host_class,
            pair[0].name,
        ),
    )
    for variant, found in compared:
        if not found and _fits(variant, host_class):
            return _check(part, state=CheckState.PASSED, found=variant.name), variant
    if not compared:
        return _unknown(part), None
    closest, found = compared[0]
    if not found:
        return _other_class(closest, host_class), None
    return _differs(split, closest, found), None


def _fits(variant: Baseline, host_class: str) -> bool:
    return variant.host_class in {"", host_class}


def _judge_class(
    policy: BootPolicy, host_class: str, matched: list[Baseline | None]
) -> tuple[Check, ...]:
    """An EK of one class must not meet the firmware of another: pairing, where policy asks for it."""
    if policy.host_class is Requirement.OFF:
        return ()
    paired = any(
        variant is not None
        and variant.component is Component.FIRMWARE
        and variant.host_class == host_class
        for variant in matched
    )
    good = bool(host_class) and paired
    detail = "" if good else "the host has no class"
    if host_class and not paired:
        detail = f"no firmware variant for hosts of class {host_class} matches"
    return (
        Check(
            id="baseline.host-class",
            title="the firmware is a variant for this class of hosts",
            state=state_of(policy.host_class, good=good),
            expected="a firmware variant with the class of the host",
            found=f"class {host_class}" if host_class else "a host without class",
            detail=detail,
            remedy=""
            if good
            else "ta host admit HOST --class CLASS; ta baseline capture NAME --component firmware"
            " --class CLASS --host HOST",
        ),
    )


def _judge_pcr(split: ComponentLog, pcr: int) -> Check:
    """A PCR is claimed only when all its events are recognised, whatever the components say."""
    check_id = f"baseline.pcr-{pcr}"
    title = f"every event of PCR {pcr} is recognised: {PCR_TITLES.get(pcr, 'measurements')}"
    if pcr not in split.log.verified_pcrs:
        return Check(
            id=check_id,
            title=title,
            state=CheckState.FAILED,
            pcr=pcr,
            detail="the boot log does not explain this PCR",
        )
    unknown = split.unrecognised.get(pcr, ())
    if not unknown:
        return Check(id=check_id, title=title, state=CheckState.PASSED, pcr=pcr)
    event = unknown[0]
    return Check(
        id=check_id,
        title=title,
        state=CheckState.FAILED,
        pcr=pcr,
        event_index=event.number,
        found=f"{_said(split, event)} and {len(unknown) - 1} more"
        if len(unknown) > 1
        else _said(split, event),
        detail=f"event #{event.number} {event.type_name} belongs to no component that is known here",
        remedy="Find out what measured it; or leave this PCR out of boot.baseline_pcrs.",
    )


# --- what a check says -----------------------------------------------------------------------


def _check(
    part: Component,
    *,
    state: CheckState,
    expected: str = "",
    found: str = "",
    detail: str = "",
    remedy: str = "",
    children: tuple[Check, ...] = (),
) -> Check:
    return Check(
        id=f"baseline.{part}",
        title=TITLES[part],
        state=state,
        expected=expected,
        found=found,
        detail=detail,
        remedy=remedy,
        children=children,
    )


def _absent(part: Component) -> Check:
    return _check(
        part,
        state=CheckState.FAILED,
        expected="at least one measurement",
        found="none",
        detail=f"no event of the PCRs in boot.baseline_pcrs measures the {part}",
        remedy="Every boot has this component: look at the boot log with ta evidence eventlog.",
    )


def _unknown(part: Component) -> Check:
    return _check(
        part,
        state=CheckState.FAILED,
        expected="an approved variant",
        found="none is approved",
        detail=f"no {part} baseline is approved in this cluster",
        remedy="ta baseline capture NAME --host HOST, then ta baseline approve NAME",
    )


def _other_class(variant: Baseline, host_class: str) -> Check:
    return _check(
        variant.component,
        state=CheckState.FAILED,
        expected=f"a host of class {variant.host_class}",
        found=f"class {host_class}" if host_class else "a host without class",
        detail=f"the boot is {variant.name}, which is for hosts of class {variant.host_class} only",
        remedy="ta host admit --class, if the machine is one of that class;"
        " else approve the variant for this class",
    )


def _differs(split: ComponentLog, variant: Baseline, found: tuple[Difference, ...]) -> Check:
    return _check(
        variant.component,
        state=CheckState.FAILED,
        expected=f"{variant.name}, the closest variant",
        found=f"differs in PCR {', '.join(str(each.pcr) for each in found)}",
        children=tuple(_difference(split, variant, each) for each in found),
    )


def _difference(split: ComponentLog, variant: Baseline, found: Difference) -> Check:
    part, event, expected = variant.component, found.found, found.expected
    if found.uncovered:
        detail = f"{variant.name} was captured before this PCR was asked for"
    elif event is None:
        detail = f"the log ends before {expected.type if expected else 'it'}"
    elif found.moved:
        detail = f"event #{event.number} {event.type_name} stands after another component"
    else:
        detail = f"event #{event.number} {event.type_name} differs"
    return Check(
        id=f"baseline.{part}.pcr-{found.pcr}",
        title=f"PCR {found.pcr}: {PCR_TITLES.get(found.pcr, 'measurements')}",
        state=CheckState.FAILED,
        pcr=found.pcr,
        event_index=-1 if event is None else event.number,
        expected=f"{expected.meaning} ({expected.digest[:16]}…)"
        if expected
        else "no further event",
        found=_said(split, event) if event else "no further event",
        detail=detail,
        remedy=f"was the change meant?  ta baseline capture NEW --component {part} --host HOST   then"
        "   ta baseline approve NEW",
    )


def _said(split: ComponentLog, event: BootEvent) -> str:
    digest = split.log.digest(event)
    return f"{describe(event, digest, split.log.bank).text} ({digest.hex()[:16]}…)"
