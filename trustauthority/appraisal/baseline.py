"""Baselines: variants of components, captured from a verified boot log and compared event by event.

What it trusts: a VerifiedBootLog split by component, so that each digest is proven by the quote. What it
guarantees: a variant matches only when in every PCR asked for the component's runs are exactly its digests,
in order and in the same place among the other components. Event types and texts are for people, never
compared (pitfalls.md rules 37, 38). It puts nothing in force and judges nothing: see
``appraisal.alternatives``.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from trustauthority.appraisal.components import ComponentLog, Run, split_components
from trustauthority.errors import FailedPrecondition
from trustauthority.model.baseline import Baseline, Component, ExpectedEvent, ExpectedRun
from trustauthority.model.bootlog import BootEvent
from trustauthority.model.identifiers import ClusterId
from trustauthority.verification.meaning import describe
from trustauthority.verification.replay import VerifiedBootLog

DOCUMENT_VERSION = 2
_DECODED = 512
_INSIDE = "inside"
"""The place of an event that follows another one of its run; no component has this name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Where a component's events first differ from a variant, in one PCR."""

    pcr: int
    expected: ExpectedEvent | None
    """None when the variant expects nothing more, or nothing here."""
    found: BootEvent | None
    """None when the log ends before."""
    moved: bool = False
    """The event is the expected one; the component before it is not."""
    uncovered: bool = False
    """The variant was made before this PCR was asked for, and says nothing about it."""


def capture_baselines(
    name: str,
    cluster: ClusterId,
    log: VerifiedBootLog,
    pcrs: Iterable[int],
    *,
    host_class: str = "",
) -> tuple[Baseline, ...]:
    """Take the verified boot of a host as one variant of each component that occurs in it.

    Raises:
        FailedPrecondition: an event is of no component, so that no host would ever match it.
    """
    split = split_components(log, pcrs)
    for pcr, events in split.unrecognised.items():
        said = describe(events[0], log.digest(events[0]), log.bank).text
        raise FailedPrecondition(
            f"PCR {pcr}: event #{events[0].number} ({said}) is of no component that is known here;"
            " leave this PCR out of boot.baseline_pcrs"
        )
    return tuple(
        Baseline(
            name=name,
            cluster=cluster,
            component=component,
            host_class=host_class,
            bank=str(log.bank),
            pcrs={
                pcr: tuple(_expected(log, run) for run in split.runs_of(component, pcr))
                for pcr in sorted(split.pcrs)
            },
        )
        for component in Component
        if component in split.runs
    )


def encode_baseline(baseline: Baseline) -> str:
    """Canonical JSON of a variant: what is hashed, shown and approved."""
    return json.dumps(
        {
            "version": DOCUMENT_VERSION,
            "name": baseline.name,
            "cluster": baseline.cluster,
            "component": str(baseline.component),
            "host_class": baseline.host_class,
            "bank": baseline.bank,
            "pcrs": {
                str(pcr): [_plain(run) for run in runs] for pcr, runs in baseline.pcrs.items()
            },
        },
        sort_keys=True,
        separators=(",", ":"),
    )


@lru_cache(maxsize=_DECODED)
def decode_baseline(document: str) -> Baseline:
    """Read back what ``encode_baseline`` wrote. Decoded once per document: attestation reads all.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, RecursionError: it is something else.
    """
    values = json.loads(document)
    if not all(isinstance(values[key], str) for key in ("name", "cluster", "host_class", "bank")):
        raise ValueError("a name in the baseline is no text")
    if values["version"] != DOCUMENT_VERSION:
        raise ValueError("a version of baselines that is not known here")
    return Baseline(
        name=values["name"],
        cluster=ClusterId(values["cluster"]),
        component=Component(values["component"]),
        host_class=values["host_class"],
        bank=values["bank"],
        pcrs=MappingProxyType(
            {
                int(pcr): tuple(
                    ExpectedRun(
                        after=None if run["after"] is None else Component(run["after"]),
                        events=tuple(ExpectedEvent(**event) for event in run["events"]),
                    )
                    for run in runs
                )
                for pcr, runs in values["pcrs"].items()
            }
        ),
    )


def content_sha256(documents: Mapping[Component, str]) -> str:
    """Name what is approved together: the hash of one variant, or a hash over those of several.

    Args:
        documents: the hex SHA-256 of each variant's document.
    """
    if len(documents) == 1:
        return next(iter(documents.values()))
    lines = [f"{part}={documents[part]}\n" for part in Component if part in documents]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def differences(split: ComponentLog, variant: Baseline) -> tuple[Difference, ...]:
    """The first difference in each PCR, by PCR; none when the component's boot is this variant."""
    found = []
    for pcr in sorted(split.pcrs):
        runs = split.runs_of(variant.component, pcr)
        expected = variant.pcrs.get(pcr)
        if expected is None:
            found.append(Difference(pcr=pcr, expected=None, found=None, uncovered=True))
            continue
        difference = _first_difference(split.log, pcr, runs, expected) if runs or expected else None
        if difference is not None:
            found.append(difference)
    return tuple(found)


def _first_difference(
    log: VerifiedBootLog, pcr: int, found: tuple[Run, ...], expected: tuple[ExpectedRun, ...]
) -> Difference | None:
    measured = _in_places(found)
    wanted = _in_places(expected)
    for position in range(max(len(measured), len(wanted))):
        if position >= len(measured):
            return Difference(pcr=pcr, expected=wanted[position][1], found=None)
        after, event = measured[position]
        if position >= len(wanted):
            return Difference(pcr=pcr, expected=None, found=event)
        wanted_after, wanted_event = wanted[position]
        if log.digest(event).hex() != wanted_event.digest:
            return Difference(pcr=pcr, expected=wanted_event, found=event)
        if after != wanted_after:
            return Difference(pcr=pcr, expected=wanted_event, found=event, moved=True)
    return None


def _in_places(runs: Iterable[Any]) -> list[tuple[Component | str | None, Any]]:
    """The events of runs, each with its place: what its run comes after, or that it is inside one."""
    return [
        (_INSIDE if position else run.after, event)
        for run in runs
        for position, event in enumerate(run.events)
    ]


def _expected(log: VerifiedBootLog, run: Run) -> ExpectedRun:
    return ExpectedRun(
        after=run.after,
        events=tuple(
            ExpectedEvent(
                type=event.type_name,
                digest=log.digest(event).hex(),
                meaning=describe(event, log.digest(event), log.bank).text,
            )
            for event in run.events
        ),
    )


def _plain(run: ExpectedRun) -> dict[str, object]:
    return {
        "after": None if run.after is None else str(run.after),
        "events": [
            {"type": event.type, "digest": event.digest, "meaning": event.meaning}
            for event in run.events
        ],
    }


def summary_lines(baseline: Baseline) -> tuple[str, ...]:
    """A line per PCR in which the variant measures something, for people."""
    counted = {pcr: sum(len(run.events) for run in runs) for pcr, runs in baseline.pcrs.items()}
    return tuple(
        f"PCR {pcr}: {count} event{'' if count == 1 else 's'}"
        for pcr, count in sorted(counted.items())
        if count
    )
