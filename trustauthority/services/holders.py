"""Which keys a host ever held, and which were exposed to hosts that turned out to be bad.

What it guarantees: every release that the audit log records is looked at, page by page; a release counts
as held until the host itself gave the VM back or handed it over, never until its lease merely ended.
What it does not do: say what became of a key in a host's memory, or re-encrypt a disk.
Source: design 8 ("who held what"), promises section 9.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trustauthority.errors import InvalidRequest
from trustauthority.model.identifiers import VmId
from trustauthority.ports import Store, Transaction
from trustauthority.services.hosts import find_host


@dataclass(frozen=True, slots=True, kw_only=True)
class HolderQuestion:
    """Which holders are meant; what is empty or 0 is not asked about."""

    host: str = ""
    baseline: str = ""
    """A variant's name, or ``component=name``."""
    tpm: str = ""
    """A part of the TPM's description, such as its maker or its firmware."""
    since_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldKey:
    """One release, and until when the host said that it had the VM."""

    vm_id: str
    key_epoch: int
    current_key_epoch: int
    """Of the VM's current key; another one where the VM got a new key since."""
    host_id: str
    host_name: str
    grant_epoch: int
    purpose: str
    tpm: str
    baseline: str
    verdict_id: str
    released_at_ms: int
    ended_at_ms: int
    """0 when the host never said that it ended."""


class HolderService:
    """Answers from the audit log."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def page(
        self, question: HolderQuestion, *, after: int, limit: int
    ) -> tuple[Sequence[HeldKey], int | None]:
        """Look at some releases.

        Args:
            question: which ones count.
            after: place in the log after which to look; -1 for the beginning.
            limit: how many releases to look at.

        Returns: those that count, and the place to go on from; None at the end of the log.

        Raises:
            InvalidRequest: nothing is asked about. NotFound: no such host.
        """
        if not (question.host or question.baseline or question.tpm):
            raise InvalidRequest("ask about a host, a baseline or a TPM", field="host")
        async with self._store.snapshot() as tx:
            actor = ""
            if question.host:
                actor = f"host:{(await find_host(tx, question.host)).host_id}"
            entries = await tx.key_history.releases(actor=actor, after=after, limit=limit)
            found = []
            for entry in entries:
                content = json.loads(entry.content)
                if _is_meant(content, question):
                    held = await _held(tx, entry.sequence, content)
                    if not held.ended_at_ms or held.ended_at_ms >= question.since_ms:
                        found.append(held)
        return found, entries[-1].sequence if len(entries) == limit else None


def _is_meant(content: Mapping[str, Any], question: HolderQuestion) -> bool:
    details = content["details"]
    return (
        content["decision"] == "allowed"
        and (not question.baseline or matches_baseline(details["baseline"], question.baseline))
        and question.tpm.casefold() in details["tpm"].casefold()
    )


def matches_baseline(matched: str, wanted: str) -> bool:
    """Whether a host that matched these variants matched the one that is asked about.

    Args:
        matched: as hosts record it: one name that all components share, or ``component=name`` each.
        wanted: a name, or ``component=name``.
    """
    component, _, name = wanted.rpartition("=")
    words = matched.split(" ")
    if len(words) == 1 and "=" not in matched:
        return matched == name
    if component:
        return wanted in words
    return any(word.rpartition("=")[2] == name for word in words)


async def _held(tx: Transaction, sequence: int, content: Mapping[str, Any]) -> HeldKey:
    details, vm = content["details"], content["subject"]
    ends = await tx.key_history.ends(actor=content["actor"], subject=vm, after=sequence)
    ended_at_ms = next(
        (each["time_ms"] for each in map(_content, ends) if each["decision"] == "allowed"), 0
    )
    current = await tx.keys.current(VmId(vm))
    return HeldKey(
        vm_id=vm,
        key_epoch=details["key_epoch"],
        current_key_epoch=0 if current is None else current.key_epoch,
        host_id=content["actor"].removeprefix("host:"),
        host_name=details["host"],
        grant_epoch=details["grant_epoch"],
        purpose=details["purpose"],
        tpm=details["tpm"],
        baseline=details["baseline"],
        verdict_id=details["verdict"],
        released_at_ms=content["time_ms"],
        ended_at_ms=ended_at_ms,
    )


def _content(entry: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(entry.content)
    return found
