"""Real boots as variants: what a quote would prove of a log, and what tests change in it."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from trustauthority.appraisal.baseline import capture_baselines
from trustauthority.codec.eventlog import decode_boot_log
from trustauthority.model.baseline import Baseline
from trustauthority.model.bootlog import BootEvent, BootLog
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.identifiers import ClusterId
from trustauthority.verification.replay import VerifiedBootLog, replay, verify_boot_log

BOOTS = Path(__file__).resolve().parents[1] / "vectors" / "boots"
CAPTURES = Path(__file__).resolve().parents[3] / "shared" / "captures"
PCRS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 14)
BANK = HashAlgorithm.SHA256


def boot_log(folder: Path) -> BootLog:
    """The boot log of a capture."""
    return decode_boot_log((folder / "eventlog.bin").read_bytes())


def proven(
    log: BootLog, *, pcrs: Iterable[int] = range(16), bank: HashAlgorithm = BANK
) -> VerifiedBootLog:
    """What is proven of a log by a TPM that was extended with exactly its digests."""
    values = replay(log, bank)
    quoted = {pcr: value for pcr in pcrs if (value := values.value(pcr)) is not None}
    return verify_boot_log(log, quoted, bank=bank, pcrs=quoted)


def good_boot(name: str = "good") -> VerifiedBootLog:
    """A boot of this project's own captures."""
    return proven(boot_log(BOOTS / name))


def changed(
    log: VerifiedBootLog, change: Callable[[BootEvent], BootEvent | None]
) -> VerifiedBootLog:
    """A log with each event changed or (None) left out, still proven: digests are what was extended."""
    events = tuple(made for event in log.events if (made := change(event)) is not None)
    return replace(log, events=events)


def with_digest(log: VerifiedBootLog, event: BootEvent, digest: bytes) -> BootEvent:
    """The event, of something else."""
    digests = list(event.digests)
    digests[log.position] = digest
    return event._replace(digests=tuple(digests))


def variants(
    log: VerifiedBootLog, name: str = "golden", *, pcrs: Iterable[int] = PCRS, host_class: str = ""
) -> tuple[Baseline, ...]:
    """A variant of each component of a boot."""
    return capture_baselines(name, ClusterId("prod"), log, pcrs, host_class=host_class)
