"""Checks of the TPM itself: its firmware has no published flaw and did not go back.

Trusts on entry a verified quote, whose AK lives in the endorsement hierarchy (for other keys the TPM
obfuscates the version), and what enrolment and the evidence before it proved. The version that the EK
certificate names is the factory's and counts for nothing: firmware gets updated. Pitfall 17.
"""

from dataclasses import dataclass

from trustauthority.appraisal.states import state_of
from trustauthority.model.policy import Requirement, TpmPolicy
from trustauthority.model.verdict import Check, CheckState
from trustauthority.verification.firmware import flaws_of
from trustauthority.verification.quote import VerifiedQuote


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmKnowledge:
    """What is known of a host's TPM besides its evidence."""

    manufacturer: str = ""
    """As its verified EK certificate says (``IFX``, ``STM`` …); empty without certificate."""
    firmware_before: int | None = None
    """firmwareVersion that it must not fall below; None before the first evidence."""


def tpm_checks(quote: VerifiedQuote, policy: TpmPolicy, known: TpmKnowledge) -> tuple[Check, ...]:
    """Judge the firmware of the TPM that quoted."""
    return _flaws(quote.firmware_version, policy, known), _rollback(quote, policy, known)


def oldest_acceptable(quote: VerifiedQuote, known: TpmKnowledge, *, passed: bool) -> int:
    """The firmwareVersion that the next evidence must not fall below.

    An older one is taken over only by a verdict that passed: a host that fails for it goes on failing.
    """
    before = known.firmware_before
    return (
        quote.firmware_version if passed or before is None else max(before, quote.firmware_version)
    )


def version_text(version: int) -> str:
    """A firmwareVersion as vendors write it: ``7.62.0.3126`` (four 16-bit numbers)."""
    return ".".join(str(version >> shift & 0xFFFF) for shift in (48, 32, 16, 0))


def _flaws(version: int, policy: TpmPolicy, known: TpmKnowledge) -> Check:
    title = "the firmware has no published flaw"
    found = f"{known.manufacturer} {version_text(version)}".strip()
    if not known.manufacturer:
        # without a certificate nobody says whose versions these are: unknown is not good
        state = CheckState.SKIPPED
        if policy.firmware_flaws is Requirement.REQUIRED:
            state = CheckState.FAILED
        why = "the TPM has no EK certificate that says who made it"
        return Check(id="tpm-firmware.flaws", title=title, state=state, found=found, detail=why)
    flaws = flaws_of(known.manufacturer, version)
    return Check(
        id="tpm-firmware.flaws",
        title=title,
        state=state_of(policy.firmware_flaws, good=not flaws),
        found=found,
        detail="; ".join(f"{flaw.identifier}: {flaw.effect}" for flaw in flaws),
        remedy="Update the TPM's firmware with its vendor's tool." if flaws else "",
    )


def _rollback(quote: VerifiedQuote, policy: TpmPolicy, known: TpmKnowledge) -> Check:
    before = known.firmware_before
    good = before is None or quote.firmware_version >= before
    return Check(
        id="tpm-firmware.rollback",
        title="the firmware is not older than it was",
        state=state_of(policy.firmware_rollback, good=good),
        expected="" if before is None else f"{version_text(before)} or newer",
        found=version_text(quote.firmware_version),
        detail=""
        if good
        else "somebody put older firmware on the TPM, maybe for a flaw that it has",
        remedy=""
        if good
        else "Update the TPM's firmware again; or, if the older one is wanted, set "
        "tpm.firmware_rollback to warn until the host has attested.",
    )
