"""What is kept of a verdict and of the evidence that led to it, in canonical, hashed forms.

Evidence can be judged again later from what stands here (rule 67).
"""

import json
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from trustauthority.appraisal.runtimestate import KnownRuntime, decode_runtime
from trustauthority.appraisal.tpm import TpmKnowledge, oldest_acceptable
from trustauthority.codec.evidence import decode_evidence
from trustauthority.errors import FailedPrecondition, NotFound
from trustauthority.model.evidence import Evidence
from trustauthority.model.host import HostRecord
from trustauthority.model.policy import Policy
from trustauthority.model.tpm import ClockInfo
from trustauthority.model.verdict import Verdict
from trustauthority.ports import Transaction
from trustauthority.verification import challenge as challenges
from trustauthority.verification.pipeline import ExpectedEvidence, expect_evidence
from trustauthority.verification.quote import VerifiedQuote


def verdict_document(verdict: Verdict, evidence_sha256: str) -> str:
    """Canonical JSON of a verdict; its hash is the verdict's id."""
    values = _plain(verdict) | {"evidence_sha256": evidence_sha256}
    return json.dumps(values, default=_plain, sort_keys=True, separators=(",", ":"))


def _plain(value: Any) -> dict[str, Any]:
    """A check or another part of a verdict as an object; ``asdict`` would copy each of its texts."""
    return {name: getattr(value, name) for name in _names(value.__class__)}


@cache
def _names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(each.name for each in fields(kind))


def known_runtime(host: HostRecord, policy: Policy) -> KnownRuntime | None:
    """What a host's next delta continues; None when its log must be read from its beginning."""
    return decode_runtime(host.ima_state, policy.runtime.rules)


def tpm_knowledge(host: HostRecord) -> TpmKnowledge:
    """What is known of a host's TPM besides its evidence."""
    before = int.from_bytes(host.tpm_firmware, "big") if host.tpm_firmware else None
    return TpmKnowledge(manufacturer=host.tpm_manufacturer, firmware_before=before)


def firmware_to_remember(host: HostRecord, quote: VerifiedQuote, *, passed: bool) -> bytes:
    """The firmwareVersion that the next evidence must not fall below, as the row keeps it."""
    return oldest_acceptable(quote, tpm_knowledge(host), passed=passed).to_bytes(8, "big")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceHashes:
    """What a verdict rests on: hashes of what the archive keeps."""

    evidence: str
    """Hex SHA-256 of the evidence's small parts, in which the logs stand by their hash."""
    boot_log: bytes
    ima_log: bytes


async def archive_evidence(
    tx: Transaction, evidence: Evidence, *, before: HostRecord
) -> EvidenceHashes:
    """Keep the evidence so that it can be judged again: small parts here, logs by their hash.

    Args:
        tx: the transaction of the verdict.
        evidence: the evidence.
        before: the host as it was judged: where its TPM stood, and what an IMA delta continues.
    """
    boot_log = await tx.archive.put_blob(evidence.boot_log)
    ima_log = await tx.archive.put_blob(evidence.ima_log)
    manifest = {
        "version": 1,
        "challenge": evidence.challenge.hex(),
        "attest": evidence.attest.hex(),
        "signature": evidence.signature.hex(),
        "pcr_values": evidence.pcr_values.hex(),
        "boot_log_sha256": boot_log.hex(),
        "ima_offset": evidence.ima_offset,
        "ima_log_sha256": ima_log.hex(),
        "runtime_before": before.ima_state.decode() if evidence.ima_offset else "",
        "position_before": before.tpm_position.hex(),
        "firmware_before": before.tpm_firmware.hex(),
    }
    encoded = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    kept = await tx.archive.put_blob(encoded)
    return EvidenceHashes(evidence=kept.hex(), boot_log=boot_log, ima_log=ima_log)


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
    return expect_evidence(
        ak_public=host.ak_public,
        ek_public=host.ek_public,
        tls_public=host.tls_public,
        challenge=evidence.challenge,
        purpose=challenges.Purpose.ATTEST,
        last_clock=last,
        progress=None if known is None else known.progress,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedEvidence:
    """Evidence as it was judged, and what was known of its host then."""

    evidence: Evidence
    position_before: bytes
    """Where the TPM stood: counters and clock, 16 bytes; empty at the first evidence."""
    firmware_before: bytes
    """firmwareVersion that it must not fall below, 8 bytes; empty at the first evidence."""
    runtime_before: bytes
    """The stored form of what its IMA delta continues; empty for a whole log."""


async def archived_evidence(tx: Transaction, evidence_sha256: str) -> ArchivedEvidence:
    """Evidence as it was archived.

    Raises:
        NotFound: it is not kept any more.
    """
    manifest = await tx.archive.get_blob(bytes.fromhex(evidence_sha256))
    if manifest is None:
        raise NotFound("this evidence is not kept any more", kind="evidence", name=evidence_sha256)
    values = json.loads(manifest)
    logs = [
        await tx.archive.get_blob(bytes.fromhex(values[f"{name}_sha256"]))
        for name in ("boot_log", "ima_log")
    ]
    boot_log, ima_log = (log or b"" for log in logs)
    evidence = decode_evidence(
        challenge=bytes.fromhex(values["challenge"]),
        attest=bytes.fromhex(values["attest"]),
        signature=bytes.fromhex(values["signature"]),
        pcr_values=bytes.fromhex(values["pcr_values"]),
        boot_log=boot_log,
        ima_offset=values["ima_offset"],
        ima_log=ima_log,
    )
    return ArchivedEvidence(
        evidence=evidence,
        position_before=bytes.fromhex(values["position_before"]),
        firmware_before=bytes.fromhex(values["firmware_before"]),
        runtime_before=values["runtime_before"].encode(),
    )


async def require_unchanged(tx: Transaction, judged: HostRecord) -> None:
    """What was judged outside of the transaction must be the row that the verdict is written to.

    Raises:
        FailedPrecondition: other keys (N03), another cluster, or a revocation came between.
    """
    now = await tx.hosts.get(judged.host_id)
    if now is None or _standing_on(now) != _standing_on(judged):
        raise FailedPrecondition("the host was removed, revoked or enrolled anew meanwhile")


def _standing_on(host: HostRecord) -> tuple[object, ...]:
    keys = (host.ek_public, host.ak_public, host.tls_public, host.storage_public)
    what = (host.cluster_id, host.admission, host.host_class, host.revoked, host.trust_epoch)
    return (*keys, *what)
