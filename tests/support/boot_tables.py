"""What is read out of the project's own boots: each event's component, its proof and words, and the facts.

Of the good boot everything is written; of the others the lines that the good one does not have.
"""

from collections.abc import Iterator

from support.variants import BOOTS, PCRS, good_boot, variants
from trustauthority.appraisal.baseline import summary_lines
from trustauthority.appraisal.bootfacts import boot_facts
from trustauthority.appraisal.components import split_components
from trustauthority.verification.meaning import describe
from trustauthority.verification.replay import VerifiedBootLog

GOOD = "good"
NAMES = (
    GOOD,
    *sorted(path.parent.name for path in BOOTS.glob("*/eventlog.bin") if path.parent.name != GOOD),
)


def table() -> list[str]:
    """The lines of all boots."""
    good = list(lines(good_boot(GOOD)))
    said = [f"# {GOOD}", *good]
    for name in NAMES[1:]:
        said += [f"# {name}", *(line for line in lines(good_boot(name)) if line not in set(good))]
    return said


def lines(log: VerifiedBootLog) -> Iterator[str]:
    """A line per event, per summary of a variant, and per fact."""
    split = split_components(log, PCRS)
    places = {
        event.number: f"{part} after {run.after}"
        for part, registers in split.runs.items()
        for runs in registers.values()
        for run in runs
        for event in run.events
    }
    for event in log.events:
        meaning = describe(event, log.digest(event), log.bank)
        place = places.get(event.number, "of no component")
        yield f"{event.number} pcr={event.pcr} {place} {meaning.proof} | {meaning.text}"
    for each in variants(log):
        yield f"variant {each.component}: {'; '.join(summary_lines(each))}"
    yield from _facts(log)


def _facts(log: VerifiedBootLog) -> Iterator[str]:
    found = boot_facts(log)
    secure = found.secure_boot
    yield f"Secure Boot {secure.enabled}, enforced {secure.enforced}"
    yield f"setup {secure.setup_mode}, audit {secure.audit_mode}, deployed {secure.deployed_mode}"
    for each in (*secure.databases.values(), *secure.authorities, *found.images, *found.files):
        yield str(each)
    yield f"command lines {found.command_lines}, option ROMs {found.option_roms}"
    yield f"SBAT {found.sbat_level!r}, profile {found.uki_profile}"
    for finding in found.findings:
        yield str(finding)
