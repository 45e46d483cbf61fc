"""Baselines: captured from evidence that was verified, approved by the hash of what was looked at."""

import hashlib
import json
from collections.abc import Sequence

from trustauthority.appraisal.baseline import (
    capture_baseline,
    compare_baseline,
    decode_baseline,
    encode_baseline,
)
from trustauthority.codec.eventlog import decode_boot_log
from trustauthority.codec.tpm import decode_public
from trustauthority.errors import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
)
from trustauthority.model.audit import AuditEvent
from trustauthority.model.baseline import BaselineState
from trustauthority.model.catalogue import BaselineEntry
from trustauthority.model.host import HostRecord
from trustauthority.model.identifiers import ClusterId, is_name
from trustauthority.model.policy import Policy
from trustauthority.model.verdict import Check, CheckState
from trustauthority.ports import Store, Transaction
from trustauthority.services.hosts import find_host
from trustauthority.services.policies import cluster_policy
from trustauthority.verification.quote import (
    authenticate_quote,
    check_pcr_digest,
    split_pcr_values,
)
from trustauthority.verification.replay import VerifiedBootLog, verify_boot_log


class BaselineService:
    """Administration of baselines."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def capture(self, cluster: str, name: str, host_name: str, *, by: str) -> BaselineEntry:
        """Propose a baseline from a host's newest evidence; nothing is in force by it."""
        if not is_name(name):
            raise InvalidRequest("name: 1-63 characters of a-z 0-9 . _ -", field="name")
        async with self._store.transaction() as tx:
            _, policy = await cluster_policy(tx, cluster)
            host = await find_host(tx, host_name)
            if host.cluster_id != cluster:
                raise FailedPrecondition(f"{host_name} is in cluster {host.cluster_id}")
            log = await stored_boot_log(tx, host, policy)
            if not log.passed:
                raise FailedPrecondition(
                    f"the boot log of {host_name} does not explain its PCRs: "
                    + "; ".join(str(each) for each in log.differences[:3])
                )
            document = encode_baseline(
                capture_baseline(name, ClusterId(cluster), log, policy.boot.baseline_pcrs)
            )
            entry = BaselineEntry(
                cluster_id=ClusterId(cluster),
                name=name,
                state=BaselineState.PROPOSED,
                document=document,
                sha256=hashlib.sha256(document.encode()).hexdigest(),
                captured_from=host.name,
                captured_at_ms=tx.now_ms,
                approved_by="",
                last_matched_at_ms=None,
            )
            if not await tx.baselines.propose(entry):
                raise AlreadyExists(f"there is a baseline {name!r}", kind="baseline", name=name)
            await _audit(tx, by, "baseline.capture", entry)
        return entry

    async def entries(self, cluster: str) -> Sequence[BaselineEntry]:
        """List baselines."""
        async with self._store.snapshot() as tx:
            return await tx.baselines.entries(cluster)

    async def approve(
        self, cluster: str, name: str, *, sha256: str, by: str, dry_run: bool
    ) -> tuple[BaselineEntry, int]:
        """Put a baseline in force, exactly as it was looked at; hosts must attest anew."""
        return await self._set_state(
            cluster, name, BaselineState.APPROVED, sha256=sha256, by=by, dry_run=dry_run
        )

    async def retire(
        self, cluster: str, name: str, *, by: str, dry_run: bool
    ) -> tuple[BaselineEntry, int]:
        """Take a baseline out of force."""
        return await self._set_state(
            cluster, name, BaselineState.RETIRED, sha256="", by=by, dry_run=dry_run
        )

    async def diff(self, cluster: str, name: str, host_name: str) -> tuple[bool, tuple[Check, ...]]:
        """Compare a host's newest evidence with a baseline."""
        async with self._store.snapshot() as tx:
            _, policy = await cluster_policy(tx, cluster)
            entry = await _find(tx, cluster, name)
            log = await stored_boot_log(tx, await find_host(tx, host_name), policy)
        checks = compare_baseline(log, decode_baseline(entry.document))
        return all(check.state is CheckState.PASSED for check in checks), checks

    async def _set_state(
        self, cluster: str, name: str, state: BaselineState, *, sha256: str, by: str, dry_run: bool
    ) -> tuple[BaselineEntry, int]:
        async with self._store.transaction() as tx:
            current, _ = await cluster_policy(tx, cluster)
            entry = await _find(tx, cluster, name)
            if sha256 and entry.sha256 != sha256:
                raise Conflict(
                    "the baseline is not the one that was looked at", kind="baseline", name=name
                )
            if entry.state is state:
                raise FailedPrecondition(f"baseline {name} is {state} already")
            if dry_run:
                return entry, current.policy_epoch
            epoch = await tx.baselines.set_state(
                entry.cluster_id, name, state, sha256=entry.sha256, by=by
            )
            if epoch is None:
                raise Conflict("the baseline changed meanwhile", kind="baseline", name=name)
            verb = "approve" if state is BaselineState.APPROVED else "retire"
            await _audit(tx, by, f"baseline.{verb}", entry)
            return await _find(tx, cluster, name), epoch


async def stored_boot_log(tx: Transaction, host: HostRecord, policy: Policy) -> VerifiedBootLog:
    """Verify a host's newest stored evidence again and return the proven part of its boot log.

    Raises:
        FailedPrecondition: the host never sent evidence.
        EvidenceRejected, MalformedEvidence: what is stored does not verify any more.
    """
    verdict = None if host.verdict_id is None else await tx.archive.get_verdict(host.verdict_id)
    if verdict is None:
        raise FailedPrecondition(f"{host.name} has not attested yet")
    manifest = await tx.archive.get_blob(bytes.fromhex(str(verdict["evidence_sha256"])))
    parts = json.loads(manifest or b"{}")

    async def part(name: str) -> bytes:
        return await tx.archive.get_blob(bytes.fromhex(parts[name])) or b""

    values = await part("pcr_values")
    quote, signature = authenticate_quote(
        attest=await part("attest"),
        signature=await part("signature"),
        attestation_key=decode_public(host.ak_public),
    )
    check_pcr_digest(quote, values, signature.hash)
    bank = policy.evidence.bank
    return verify_boot_log(
        decode_boot_log(await part("boot_log")),
        split_pcr_values(quote.selection, values)[bank],
        bank=bank,
        pcrs=policy.evidence.replayed_pcrs,
    )


async def _find(tx: Transaction, cluster: str, name: str) -> BaselineEntry:
    for entry in await tx.baselines.entries(cluster):
        if entry.name == name:
            return entry
    raise NotFound(f"there is no baseline {name!r}", kind="baseline", name=name)


async def _audit(tx: Transaction, by: str, operation: str, entry: BaselineEntry) -> None:
    await tx.audit.append(
        AuditEvent(
            actor=by,
            operation=operation,
            subject=entry.name,
            decision="done",
            details={"cluster": entry.cluster_id, "sha256": entry.sha256},
        )
    )
