"""What is known of the runtime log of one boot: what the next delta continues, in a stored form.

What it trusts: the stored form, which is ours. What it guarantees: a judgement under other rules than
those in force is none, so that entries which those rules never saw are looked at from the first one.
"""

import json
from dataclasses import asdict, dataclass

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
    """
    if not stored:
        return None
    values = json.loads(stored)
    progress = values["progress"]
    progress["value"] = bytes.fromhex(progress["value"])
    progress["aggregate"] = BootAggregate(progress["aggregate"])
    files = values["files"]
    if files is not None:
        files["named"] = tuple(RefusedEntry(**each) for each in files["named"])
        files = FileJudgement(**files)
    if rules and (files is None or files.rules != rules):
        return None
    return KnownRuntime(progress=RuntimeProgress(**progress), files=files)
