"""Attestation: evidence in, a recorded verdict and a signed report out (design.md 6.2).

What it guarantees: one transaction uses the challenge up, moves the TPM's position forward, writes
verdict, seal, report and audit entry, or none of them. Rejected evidence leaves an audit entry and
changes nothing else.
"""

import hashlib
import os
from dataclasses import dataclass, replace

from trustauthority.appraisal.runtimestate import encode_runtime
from trustauthority.errors import (
    ChallengeAlreadyUsed,
    EvidenceRejected,
    FailedPrecondition,
    MalformedEvidence,
    TpmClockRolledBack,
    TrustAuthorityError,
)
from trustauthority.model.audit import AuditEvent
from trustauthority.model.evidence import Evidence
from trustauthority.model.host import HostRecord
from trustauthority.model.policy import Policy
from trustauthority.model.tpm import PcrSelection
from trustauthority.model.verdict import Verdict
from trustauthority.ports import Journal, Store, Transaction
from trustauthority.services.judgement import (
    CHALLENGE_TTL_MS,
    Judged,
    Judgement,
    report_ttl_ms,
)
from trustauthority.services.policies import cluster_policy
from trustauthority.services.secrets import AuthoritySecrets
from trustauthority.services.statements import Statement, sign_report, sign_verdict
from trustauthority.services.verdicts import (
    archive_evidence,
    firmware_to_remember,
    known_runtime,
    require_unchanged,
    verdict_document,
)
from trustauthority.verification import challenge as challenges


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownLogs:
    """What need not be sent again."""

    boot_log_sha256: bytes
    reset_count: int
    restart_count: int
    ima_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """A challenge and what to quote."""

    challenge: bytes
    expires_in_ms: int
    selections: tuple[PcrSelection, ...]
    known_logs: KnownLogs


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested:
    """The answer to evidence: FAILED is an answer too."""

    verdict: Verdict
    verdict_id: str
    evidence_sha256: str
    report: str
    invitation: Invitation
    attest_again_in_ms: int


class AttestationService:
    """Invitations and verdicts."""

    def __init__(self, store: Store, keys: AuthoritySecrets, journal: Journal, node: str) -> None:
        self._store = store
        self._keys = keys
        self._journal = journal
        self._node = node
        self._judgement = Judgement(store, keys)

    async def invite(self, host: HostRecord) -> Invitation:
        """Issue a challenge of purpose attest."""
        async with self._store.snapshot() as tx:
            _, policy = await cluster_policy(tx, host.cluster_id)
            return self._invitation(
                host,
                policy,
                issued_at_ms=tx.now_ms,
                purpose=challenges.Purpose.ATTEST,
                ttl_ms=CHALLENGE_TTL_MS,
            )

    async def known_boot_log(self, host: HostRecord, sha256: bytes) -> bytes:
        """The body of a boot log that was sent before.

        Raises:
            FailedPrecondition: it is not known; send it.
        """
        if not sha256:
            return b""
        body = None
        if sha256 == host.boot_log_sha256:
            async with self._store.snapshot() as tx:
                body = await tx.archive.get_blob(sha256)
        if body is None:
            raise FailedPrecondition("this boot log is not known here; send its body")
        return body

    async def attest(self, host: HostRecord, evidence: Evidence) -> Attested:
        """Verify, appraise and record.

        Raises:
            EvidenceRejected, MalformedEvidence: nothing but the audit log was changed.
            FailedPrecondition: the host was removed, revoked or enrolled anew meanwhile.
        """
        try:
            return await self._attest(host, evidence)
        except (EvidenceRejected, MalformedEvidence, FailedPrecondition) as error:
            await self._record_refusal(host, error.reason, error.message)
            raise
        except TrustAuthorityError:
            raise
        except Exception as error:
            # a defect of ours is no verdict either; its trace goes to the journal, not in here
            await self._record_refusal(host, TrustAuthorityError.reason, type(error).__name__)
            raise

    async def _attest(self, host: HostRecord, evidence: Evidence) -> Attested:
        judged = await self._judge(host, evidence)
        policy, verdict = judged.policy, judged.verdict
        async with self._store.transaction() as tx:
            await require_unchanged(tx, judged.host)
            used_until_ms = judged.challenge.issued_at_ms + report_ttl_ms(policy) + 60_000
            if not await tx.enrolments.consume_challenge(
                judged.challenge.challenge_id, expires_at_ms=used_until_ms
            ):
                raise ChallengeAlreadyUsed("a verdict was recorded for this challenge before")
            recorded = await self._record(tx, judged, evidence)
            invitation = self._invitation(
                recorded.host,
                policy,
                issued_at_ms=tx.now_ms,
                purpose=challenges.Purpose.ATTEST_NEXT,
                ttl_ms=report_ttl_ms(policy),
            )
        self._journal.record(
            "attestation", host=host.host_id, standing="passed" if verdict.passed else "failed"
        )
        return Attested(
            verdict=verdict,
            verdict_id=recorded.verdict_id,
            evidence_sha256=recorded.evidence_sha256,
            report=recorded.report,
            invitation=invitation,
            attest_again_in_ms=policy.evidence.attest_interval_ms,
        )

    async def _record_refusal(self, host: HostRecord, reason: str, why: str) -> None:
        """Keep a trace of evidence that proved nothing: a relay or a rollback shows up here."""
        async with self._store.transaction() as tx:
            await tx.audit.append(
                AuditEvent(
                    actor=f"host:{host.host_id}",
                    operation="host.attest",
                    subject=host.host_id,
                    decision="refused",
                    reason=reason,
                    details={"name": host.name, "why": why},
                )
            )
        self._journal.record("attestation", host=host.host_id, standing="refused", reason=reason)

    async def _judge(self, host: HostRecord, evidence: Evidence) -> Judged:
        return await self._judgement.judge(host, evidence)

    def _invitation(
        self,
        host: HostRecord,
        policy: Policy,
        *,
        issued_at_ms: int,
        purpose: challenges.Purpose,
        ttl_ms: int,
    ) -> Invitation:
        kid = max(self._keys.challenge_keys)
        position = host.tpm_position or bytes(16)
        return Invitation(
            challenge=challenges.encode(
                kid=kid,
                key=self._keys.challenge_keys[kid],
                cluster=host.cluster_id,
                purpose=purpose,
                host=host.host_id,
                issued_at_ms=issued_at_ms,
                random=os.urandom(challenges.RANDOM_SIZE),
            ),
            expires_in_ms=ttl_ms,
            selections=tuple(
                PcrSelection(bank=bank, indices=policy.evidence.pcrs)
                for bank in policy.evidence.quoted_banks
            ),
            known_logs=KnownLogs(
                boot_log_sha256=host.boot_log_sha256,
                reset_count=int.from_bytes(position[:4], "big"),
                restart_count=int.from_bytes(position[4:8], "big"),
                ima_offset=host.ima_offset if known_runtime(host, policy) else 0,
            ),
        )

    async def _record(self, tx: Transaction, judged: Judged, evidence: Evidence) -> "_Recorded":
        host, verified, verdict = judged.host, judged.verified, judged.verdict
        policy = judged.policy
        kept = await archive_evidence(tx, evidence, before=host)
        evidence_sha256, boot_log_sha256 = kept.evidence, kept.boot_log
        document = verdict_document(verdict, evidence_sha256)
        verdict_id = hashlib.sha256(document.encode()).hexdigest()
        clock = verified.quote.clock_info
        stated = Statement(
            host=host,
            verified=verified,
            verdict=verdict,
            verdict_id=verdict_id,
            evidence_sha256=evidence_sha256,
            challenge_sha256=hashlib.sha256(evidence.challenge).hexdigest(),
        )
        report = sign_report(stated, self._keys, node=self._node)
        await tx.archive.put_verdict(
            verdict_id,
            {
                "host_id": host.host_id,
                "decided_at_ms": tx.now_ms,
                "document": document,
                "seal": sign_verdict(stated, self._keys, judged.global_epoch, policy),
                "report": report,
                "passed": verdict.passed,
                "evidence_sha256": evidence_sha256,
                "boot_log_sha256": boot_log_sha256,
                "ima_log_sha256": kept.ima_log,
                "userspace_log_sha256": kept.userspace_log,
            },
        )
        progress, runtime = verified.runtime.progress, encode_runtime(judged.runtime)
        values: dict[str, object] = {
            "verdict_id": verdict_id,
            "passed": verdict.passed,
            "warned": verdict.warned,
            "decided_at_ms": tx.now_ms,
            "standing_since_ms": (
                host.standing_since_ms if host.passed == verdict.passed else tx.now_ms
            ),
            "challenged_at_ms": judged.challenge.issued_at_ms,
            "attested_until_ms": verdict.attested_until_ms if verdict.passed else 0,
            "verdict_trust_epoch": host.trust_epoch,
            "verdict_policy_epoch": verdict.policy_epoch,
            "verdict_global_epoch": judged.global_epoch,
            "baseline": verdict.baseline,
            "reason": verdict.reason,
            "tpm_firmware": firmware_to_remember(host, verified.quote, passed=verdict.passed),
            "boot_log_sha256": boot_log_sha256,
            "ima_state": runtime,
            "ima_offset": progress.offset,
        }
        position = clock.counter_bytes + clock.clock_bytes
        if not await tx.hosts.record_verdict(host.host_id, position=position, values=values):
            raise TpmClockRolledBack("newer evidence of this TPM was recorded before")
        if verdict.passed and judged.unremembered:
            await tx.baselines.matched(host.cluster_id, judged.unremembered)
        await tx.audit.append(
            AuditEvent(
                actor=f"host:{host.host_id}",
                operation="host.attest",
                subject=host.host_id,
                decision="passed" if verdict.passed else "failed",
                reason=verdict.reason,
                details={
                    "name": host.name,
                    "verdict": verdict_id,
                    "evidence": evidence_sha256,
                    "policy_epoch": verdict.policy_epoch,
                    "trust_epoch": host.trust_epoch,
                    "baseline": verdict.baseline,
                },
            )
        )
        moved = replace(
            host,
            tpm_position=position,
            boot_log_sha256=boot_log_sha256,
            ima_offset=progress.offset,
            ima_state=runtime,
        )
        return _Recorded(
            host=moved, verdict_id=verdict_id, evidence_sha256=evidence_sha256, report=report
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recorded:
    host: HostRecord
    verdict_id: str
    evidence_sha256: str
    report: str
