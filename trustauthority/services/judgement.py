"""From evidence to a judgement: the challenge, the verifier and the appraisal, outside of the write lock.

What it trusts: the store and the authority's keys. What it guarantees: nothing is written here; what was
read is returned with the judgement, so that the transaction that records it can require it unchanged.
What it remembers between hosts changes no answer: rules by the hash of their document, boots by
that of their log and of all else that their replay follows from.
"""

import asyncio
from dataclasses import dataclass, replace
from functools import partial

from trustauthority.appraisal.appraise import AppraisalContext, appraise, judge_runtime
from trustauthority.appraisal.baseline import decode_baseline
from trustauthority.appraisal.runtimefiles import FileJudgement
from trustauthority.appraisal.runtimestate import KnownRuntime
from trustauthority.errors import FailedPrecondition
from trustauthority.model.baseline import Baseline, MatchedVariant
from trustauthority.model.evidence import Evidence
from trustauthority.model.host import HostRecord
from trustauthority.model.policy import Policy
from trustauthority.model.runtimerules import RuntimeRules
from trustauthority.model.verdict import Verdict
from trustauthority.ports import Store
from trustauthority.services.baselines import approved_variants, matched_again
from trustauthority.services.policies import cluster_policy
from trustauthority.services.runtimerules import LoadedRules
from trustauthority.services.secrets import AuthoritySecrets
from trustauthority.services.trustlists import TakenBack
from trustauthority.services.verdicts import expected_evidence, known_runtime, tpm_knowledge
from trustauthority.verification import challenge as challenges
from trustauthority.verification.bootreplay import KnownBoots
from trustauthority.verification.pipeline import (
    ExpectedEvidence,
    VerifiedEvidence,
    verify_evidence,
)

CHALLENGE_TTL_MS = 60_000
MAX_INLINE_BYTES = 256 * 1024
"""Bytes of logs that are judged without leaving the event loop: some 10 ms for 2,000 entries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What evidence led to, before it is recorded: its parts are preconditions of the record."""

    host: HostRecord
    policy: Policy
    challenge: challenges.Challenge
    verified: VerifiedEvidence
    verdict: Verdict
    runtime: KnownRuntime
    global_epoch: int
    unremembered: tuple[MatchedVariant, ...]
    """Variants that matched, and of which that was last written a while ago."""


def report_ttl_ms(policy: Policy) -> int:
    """A challenge that rides in a report lives for the attest interval, and some slack."""
    return policy.evidence.attest_interval_ms + CHALLENGE_TTL_MS


class Judgement:
    """Judges evidence of any host."""

    def __init__(self, store: Store, keys: AuthoritySecrets) -> None:
        self._store = store
        self._keys = keys
        self._rules = LoadedRules()
        self._boots = KnownBoots()
        self._taken_back = TakenBack()

    async def judge(self, host: HostRecord, evidence: Evidence) -> Judged:
        """Verify and appraise on a snapshot: the expensive part, outside of the write lock.

        Everything it read is a precondition of the write: the TPM's position, and the epochs that
        the verdict carries and that a release compares.
        """
        async with self._store.snapshot() as tx:
            current = await tx.hosts.get(host.host_id)
            if current is None or current.ak_public != host.ak_public:
                raise FailedPrecondition("the host was removed or enrolled anew")
            cluster, policy = await cluster_policy(tx, current.cluster_id)
            approved = await approved_variants(tx, current.cluster_id)
            global_epoch = (await tx.placement.authority()).global_epoch
            rules = await self._rules.of(tx, policy.runtime.rules)
            lists = await tx.trust_lists.entries(current.cluster_id)
            now_ms = tx.now_ms
        known = known_runtime(current, policy)
        challenge = self._check_challenge(evidence, current, policy, now_ms)
        expected = expected_evidence(evidence, current, known)
        context = AppraisalContext(
            host_id=current.host_id,
            cluster=current.cluster_id,
            endorsement=f"{current.tpm} ({current.anchor})",
            policy_sha256=cluster.policy_sha256,
            policy_epoch=cluster.policy_epoch,
            issued_at_ms=challenge.issued_at_ms,
            now_ms=now_ms,
            host_class=current.host_class,
            revoked=current.revoked,
            tpm=tpm_knowledge(current),
            taken_back=self._taken_back.reason(current, lists, policy.endorsement, now_ms),
        )
        baselines = [decode_baseline(entry.document) for entry in approved]
        grounds = _Grounds(policy=policy, rules=rules, baselines=baselines, known=known)
        appraise_it = partial(self._appraise, evidence, expected, grounds, context)
        # long logs would keep every other host waiting
        long = len(evidence.ima_log) + len(evidence.boot_log) > MAX_INLINE_BYTES
        verified, files, verdict = await asyncio.to_thread(appraise_it) if long else appraise_it()
        return Judged(
            host=current,
            policy=policy,
            challenge=challenge,
            verified=verified,
            verdict=verdict,
            runtime=KnownRuntime(progress=verified.runtime.progress, files=files),
            global_epoch=global_epoch,
            unremembered=matched_again(verdict.variants, approved, now_ms),
        )

    def _check_challenge(
        self, evidence: Evidence, host: HostRecord, policy: Policy, now_ms: int
    ) -> challenges.Challenge:
        rode = challenges.claimed_purpose(evidence.challenge) is challenges.Purpose.ATTEST_NEXT
        return challenges.check(
            evidence.challenge,
            keys=self._keys.challenge_keys,
            cluster=host.cluster_id,
            purpose=challenges.Purpose.ATTEST_NEXT if rode else challenges.Purpose.ATTEST,
            host=host.host_id,
            now_ms=now_ms,
            ttl_ms=report_ttl_ms(policy) if rode else CHALLENGE_TTL_MS,
        )

    def _appraise(
        self,
        evidence: Evidence,
        expected: ExpectedEvidence,
        grounds: "_Grounds",
        context: AppraisalContext,
    ) -> tuple[VerifiedEvidence, FileJudgement | None, Verdict]:
        policy, rules, known = grounds.policy, grounds.rules, grounds.known
        verified = verify_evidence(evidence, expected, policy, rules, self._boots)
        before = known.files if known is not None and verified.same_boot else None
        files = judge_runtime(verified.runtime, rules, before)
        context = replace(context, files=files)
        return verified, files, appraise(verified, policy, grounds.baselines, context)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grounds:
    """What evidence is judged by."""

    policy: Policy
    rules: RuntimeRules | None
    baselines: list[Baseline]
    known: KnownRuntime | None
