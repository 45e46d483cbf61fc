"""What is kept of a verdict and of the evidence that led to it, in canonical, hashed forms.

Evidence can be judged again later from what stands here (rule 67).
"""

import json
from dataclasses import asdict, dataclass

from trustauthority.appraisal.runtimefiles import FileJudgement, RefusedEntry
from trustauthority.codec.tpm import (
    decode_public,
    object_name,
    primary_qualified_name,
    qualified_name,
)
from trustauthority.model.evidence import Evidence
from trustauthority.model.host import HostRecord
from trustauthority.model.policy import Policy
from trustauthority.model.tpm import HANDLE_ENDORSEMENT, ClockInfo
from trustauthority.model.verdict import Verdict
from trustauthority.ports import Transaction
from trustauthority.verification import challenge as challenges
from trustauthority.verification.pipeline import ExpectedEvidence, RuntimeProgress
from trustauthority.verification.runtime import BootAggregate


def verdict_document(verdict: Verdict, evidence_sha256: str) -> str:
    """Canonical JSON of a verdict; its hash is the verdict's id."""
    return json.dumps(
        asdict(verdict) | {"evidence_sha256": evidence_sha256},
        sort_keys=True,
        separators=(",", ":"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRuntime:
    """What is known of the runtime log of a host's newest boot."""

    progress: RuntimeProgress
    files: FileJudgement | None
    """What was found of its files; None when nothing judged them."""


def encode_runtime(known: KnownRuntime) -> bytes:
    """The stored form of what is known of a host's runtime log."""
    progress = asdict(known.progress) | {"value": known.progress.value.hex()}
    files = None if known.files is None else asdict(known.files)
    values = {"progress": progress, "files": files}
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def known_runtime(host: HostRecord, policy: Policy) -> KnownRuntime | None:
    """What a host's next delta continues; None when its log must be read from its beginning.

    A judgement under other rules than those in force is none: entries that were approved by them
    must be looked at again, and so must those that nothing judged.
    """
    if not host.ima_state:
        return None
    stored = json.loads(host.ima_state)
    progress = stored["progress"]
    progress["value"] = bytes.fromhex(progress["value"])
    progress["aggregate"] = BootAggregate(progress["aggregate"])
    files = stored["files"]
    if files is not None:
        files["named"] = tuple(RefusedEntry(**each) for each in files["named"])
        files = FileJudgement(**files)
    if policy.runtime.rules and (files is None or files.rules != policy.runtime.rules):
        return None
    return KnownRuntime(progress=RuntimeProgress(**progress), files=files)


async def archive_evidence(tx: Transaction, evidence: Evidence, boot_log_sha256: bytes) -> str:
    """Keep the evidence so that it can be judged again: parts by hash, and a manifest over them."""
    manifest = {
        "version": 1,
        "challenge": (await tx.archive.put_blob(evidence.challenge)).hex(),
        "attest": (await tx.archive.put_blob(evidence.attest)).hex(),
        "signature": (await tx.archive.put_blob(evidence.signature)).hex(),
        "pcr_values": (await tx.archive.put_blob(evidence.pcr_values)).hex(),
        "boot_log": boot_log_sha256.hex(),
        "ima_offset": evidence.ima_offset,
        "ima_log": (await tx.archive.put_blob(evidence.ima_log)).hex(),
    }
    encoded = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    return (await tx.archive.put_blob(encoded)).hex()


def expected_evidence(
    evidence: Evidence, host: HostRecord, known: KnownRuntime | None
) -> ExpectedEvidence:
    """What this evidence must be, from the host's row: its AK, its challenge, its TPM's position."""
    position = host.tpm_position
    last = (
        ClockInfo.from_bytes(clock=position[8:], counters=position[:8], safe=True)
        if position
        else None
    )
    return ExpectedEvidence(
        ak_public=host.ak_public,
        ak_qualified_name=qualified_name(
            primary_qualified_name(HANDLE_ENDORSEMENT, object_name(decode_public(host.ek_public))),
            object_name(decode_public(host.ak_public)),
        ),
        qualifying_data=challenges.qualifying_data(
            evidence.challenge,
            object_name(decode_public(host.tls_public)),
            challenges.Purpose.ATTEST,
        ),
        last_clock=last,
        progress=None if known is None else known.progress,
    )
