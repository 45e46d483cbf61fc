"""Baselines: captured from a verified boot log, compared event by event.

What it trusts: a VerifiedBootLog, so that each digest is proven by the quote. What it guarantees: a
PCR matches only when every digest does, in order; the first difference is named with the event and
its meaning. Event types and texts are for people, never compared (pitfalls.md rules 37, 38).
"""

import json
from collections.abc import Iterable

from trustauthority.model.baseline import Baseline, ExpectedEvent
from trustauthority.model.identifiers import ClusterId
from trustauthority.model.verdict import Check, CheckState
from trustauthority.verification.meaning import describe
from trustauthority.verification.replay import VerifiedBootLog

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
    14: "shim: MOK lists and SBAT",
}
REMEDY = "If the change was meant, capture a baseline from this host and approve it."


def capture_baseline(
    name: str, cluster: ClusterId, log: VerifiedBootLog, pcrs: Iterable[int]
) -> Baseline:
    """Take the verified events of a host as the expected ones."""
    return Baseline(
        name=name,
        cluster=cluster,
        bank=str(log.bank),
        pcrs={pcr: _events(log, pcr) for pcr in sorted(set(pcrs))},
    )


def encode_baseline(baseline: Baseline) -> str:
    """Canonical JSON of a baseline: what is hashed, shown and approved."""
    return json.dumps(
        {
            "version": 1,
            "name": baseline.name,
            "cluster": baseline.cluster,
            "bank": baseline.bank,
            "pcrs": {
                str(pcr): [
                    {"type": event.type, "digest": event.digest, "meaning": event.meaning}
                    for event in events
                ]
                for pcr, events in baseline.pcrs.items()
            },
        },
        sort_keys=True,
        separators=(",", ":"),
    )


def decode_baseline(document: str) -> Baseline:
    """Read back what ``encode_baseline`` wrote."""
    values = json.loads(document)
    return Baseline(
        name=values["name"],
        cluster=ClusterId(values["cluster"]),
        bank=values["bank"],
        pcrs={
            int(pcr): tuple(ExpectedEvent(**event) for event in events)
            for pcr, events in values["pcrs"].items()
        },
    )


def compare_baseline(log: VerifiedBootLog, baseline: Baseline) -> tuple[Check, ...]:
    """One check per PCR of a baseline."""
    return tuple(_compare_pcr(log, pcr, events) for pcr, events in sorted(baseline.pcrs.items()))


def closest_baseline(
    log: VerifiedBootLog, baselines: Iterable[Baseline]
) -> tuple[Baseline, tuple[Check, ...]] | None:
    """The baseline with the fewest differing PCRs, and its checks; None when there is none."""
    compared = [(baseline, compare_baseline(log, baseline)) for baseline in baselines]
    return min(compared, key=_differences, default=None)


def _differences(compared: tuple[Baseline, tuple[Check, ...]]) -> tuple[int, str]:
    baseline, checks = compared
    return sum(check.state is not CheckState.PASSED for check in checks), baseline.name


def _events(log: VerifiedBootLog, pcr: int) -> tuple[ExpectedEvent, ...]:
    return tuple(
        ExpectedEvent(
            type=event.type_name,
            digest=log.digest(event).hex(),
            meaning=describe(event, log.digest(event), log.bank).text,
        )
        for event in log.in_register(pcr)
    )


def _compare_pcr(log: VerifiedBootLog, pcr: int, expected: tuple[ExpectedEvent, ...]) -> Check:
    title = f"PCR {pcr}: {PCR_TITLES.get(pcr, 'measurements')}"
    check_id = f"baseline.pcr-{pcr}"
    if pcr not in log.verified_pcrs:
        return Check(
            id=check_id,
            title=title,
            state=CheckState.FAILED,
            pcr=pcr,
            detail="the boot log does not explain this PCR",
        )
    found = log.in_register(pcr)
    for position in range(max(len(found), len(expected))):
        wanted = expected[position] if position < len(expected) else None
        event = found[position] if position < len(found) else None
        if wanted and event and log.digest(event).hex() == wanted.digest:
            continue
        said = describe(event, log.digest(event), log.bank) if event else None
        return Check(
            id=check_id,
            title=title,
            state=CheckState.FAILED,
            pcr=pcr,
            event_index=-1 if event is None else event.number,
            expected=f"{wanted.meaning} ({wanted.digest[:16]}…)" if wanted else "no further event",
            found=(
                f"{said.text} ({log.digest(event).hex()[:16]}…)"
                if said and event
                else "no further event"
            ),
            detail=(
                f"event #{event.number} {event.type_name} differs"
                if event
                else f"the log ends before {wanted.type if wanted else 'it'}"
            ),
            remedy=REMEDY,
        )
    return Check(id=check_id, title=title, state=CheckState.PASSED, pcr=pcr)


def summary_lines(baseline: Baseline) -> tuple[str, ...]:
    """A line per PCR for people."""
    return tuple(
        f"PCR {pcr}: {PCR_TITLES.get(pcr, 'measurements')}, {len(events)} events"
        for pcr, events in baseline.pcrs.items()
    )
