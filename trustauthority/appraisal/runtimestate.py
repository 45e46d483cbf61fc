"""What is known of the runtime log of one boot: what the next delta continues, in a stored form.

What it trusts: the stored form, which is ours, or the authority's word in a bundle; its shape is checked,
since a bundle may say anything. What it guarantees: a judgement under other rules than those in force is
none, so that entries which those rules never saw are looked at from the first one.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trustauthority.appraisal.runtimefiles import FileJudgement, RefusedEntry
from trustauthority.verification.runtime import BootAggregate
from trustauthority.verification.runtimelog import RuntimeProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRuntime:
    """What is known of the runtime log of a host's newest boot."""

    progress: RuntimeProgress
    files: FileJudgement | None
    """What was found of its files; None when nothing judged them."""


def encode_runtime(known: KnownRuntime) -> bytes:
    """The stored form."""
    progress = asdict(known.progress) | {"value": known.progress.value.hex()}
    files = None if known.files is None else asdict(known.files)
    values = {"progress": progress, "files": files}
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def decode_runtime(stored: bytes, rules: str) -> KnownRuntime | None:
    """What the next delta continues; None when the log must be read from its beginning.

    Args:
        stored: as ``encode_runtime`` wrote it, or empty.
        rules: hash of the runtime rules in force, or empty.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, RecursionError: not what ``encode_runtime`` writes.
    """
    if not stored:
        return None
    values = json.loads(stored)
    progress = values["progress"]
    _require(progress, int, "count", "offset", "violations", "defects")
    progress["value"] = bytes.fromhex(progress["value"])
    progress["aggregate"] = BootAggregate(progress["aggregate"])
    files = values["files"]
    if files is not None:
        _require(files, int, "by_digest", "by_signature", "excluded", "violations", "refused")
        _require(files, str, "rules")
        for each in files["named"]:
            _require(each, int, "number")
            _require(each, str, "path", "digest", "why")
        files["named"] = tuple(RefusedEntry(**each) for each in files["named"])
        files = FileJudgement(**files)
    if rules and (files is None or files.rules != rules):
        return None
    return KnownRuntime(progress=RuntimeProgress(**progress), files=files)


def _require(values: Mapping[str, Any], kind: type, *names: str) -> None:
    """Texts, and counts that no later one can cancel; ValueError for anything else."""
    for name in names:
        value = values[name]
        if type(value) is not kind or (isinstance(value, int) and value < 0):
            raise ValueError(f"{name} is not what it must be")
