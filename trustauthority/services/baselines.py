"""Baselines: captured from evidence that was verified, approved by the hash of what was looked at."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from trustauthority.appraisal.alternatives import compare_variant
from trustauthority.appraisal.baseline import (
    capture_baselines,
    content_sha256,
    decode_baseline,
    encode_baseline,
)
from trustauthority.appraisal.predict import predict_update
from trustauthority.codec.tpm import decode_public
from trustauthority.errors import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
)
from trustauthority.model.audit import AuditEvent
from trustauthority.model.baseline import Baseline, BaselineState, Component, MatchedVariant
from trustauthority.model.catalogue import BaselineEntry
from trustauthority.model.host import HostRecord
from trustauthority.model.identifiers import ClusterId, is_name
from trustauthority.model.policy import Policy
from trustauthority.model.prediction import Prediction, UpdatedFile
from trustauthority.model.verdict import Check, CheckState
from trustauthority.ports import Store, Transaction
from trustauthority.services.hosts import find_host
from trustauthority.services.policies import cluster_policy
from trustauthority.services.verdicts import archived_evidence
from trustauthority.verification.bootreplay import replay_boot
from trustauthority.verification.quote import (
    authenticate_quote,
    check_pcr_digest,
    split_pcr_values,
)
from trustauthority.verification.replay import VerifiedBootLog

MATCHED_EVERY_MS = 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantName:
    """Which variants an operation is about."""

    cluster: str
    name: str
    component: Component | None = None
    """None for every component that has a variant of this name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposed:
    """New variants, and what approving them would put in force."""

    entries: tuple[BaselineEntry, ...]
    sha256: str
    """Names everything of this name that is not approved yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """An announced update, and the boot that it changes: of a host, or the variants of a name."""

    host: str
    base: str
    files: tuple[Mapping[str, UpdatedFile], ...]
    """Each file by bank."""
    command_line: str


class BaselineService:
    """Administration of baselines."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def capture(
        self, wanted: VariantName, host_name: str, *, host_class: str = "", by: str
    ) -> Proposed:
        """Propose variants from a host's newest evidence; nothing is in force by it."""
        async with self._store.transaction() as tx:
            host, log, policy = await _good_boot(tx, wanted.cluster, host_name)
            captured = capture_baselines(
                wanted.name,
                ClusterId(wanted.cluster),
                log,
                policy.boot.baseline_pcrs,
                host_class=host_class,
            )
            return await _propose(
                tx, wanted, captured, source=host.name, by=by, operation="baseline.capture"
            )

    async def predict(
        self, wanted: VariantName, update: Update, *, by: str, dry_run: bool
    ) -> tuple[Prediction, Proposed]:
        """Propose what an announced update will measure; nothing is in force by it."""
        async with self._store.transaction() as tx:
            base, source = await _base(tx, wanted, update)
            files = [_in_bank(each, base) for each in update.files]
            prediction = predict_update(
                base, name=wanted.name, files=files, command_line=update.command_line
            )
            changed = [each.role for each in files]
            if update.command_line:
                changed.append("command line")
            source = f"{source} with another {', '.join(changed)}"
            if dry_run:
                entries = [
                    _entry(each, source=source, now_ms=tx.now_ms) for each in prediction.variants
                ]
                return prediction, Proposed(entries=tuple(entries), sha256="")
            proposed = await _propose(
                tx,
                wanted,
                prediction.variants,
                source=source,
                by=by,
                operation="baseline.predict",
            )
            return prediction, proposed

    async def entries(self, cluster: str) -> Sequence[BaselineEntry]:
        """List variants."""
        async with self._store.snapshot() as tx:
            return sorted(await tx.baselines.entries(cluster), key=_order)

    async def approve(
        self, wanted: VariantName, *, sha256: str, by: str, dry_run: bool
    ) -> tuple[Sequence[BaselineEntry], int]:
        """Put variants in force, exactly as they were looked at; hosts must attest anew."""
        return await self._set_state(
            wanted, BaselineState.APPROVED, sha256=sha256, by=by, dry_run=dry_run
        )

    async def retire(
        self, wanted: VariantName, *, by: str, dry_run: bool
    ) -> tuple[Sequence[BaselineEntry], int]:
        """Take variants out of force."""
        return await self._set_state(
            wanted, BaselineState.RETIRED, sha256="", by=by, dry_run=dry_run
        )

    async def diff(self, wanted: VariantName, host_name: str) -> tuple[bool, tuple[Check, ...]]:
        """Compare a host's newest evidence with variants."""
        async with self._store.snapshot() as tx:
            _, policy = await cluster_policy(tx, wanted.cluster)
            entries = await _find(tx, wanted)
            log = await stored_boot_log(tx, await find_host(tx, host_name), policy)
        checks = tuple(
            compare_variant(log, decode_baseline(each.document), policy.boot) for each in entries
        )
        return all(check.state is CheckState.PASSED for check in checks), checks

    async def _set_state(
        self, wanted: VariantName, state: BaselineState, *, sha256: str, by: str, dry_run: bool
    ) -> tuple[Sequence[BaselineEntry], int]:
        async with self._store.transaction() as tx:
            current, _ = await cluster_policy(tx, wanted.cluster)
            entries = [each for each in await _find(tx, wanted) if each.state is not state]
            if not entries:
                raise FailedPrecondition(f"baseline {wanted.name} is {state} already")
            if sha256 and _content(entries) != sha256:
                raise Conflict(
                    "the baseline is not the one that was looked at",
                    kind="baseline",
                    name=wanted.name,
                )
            if dry_run:
                return entries, current.policy_epoch
            if not await tx.baselines.set_state(entries, state, by=by):
                raise Conflict("the baseline changed meanwhile", kind="baseline", name=wanted.name)
            verb = "approve" if state is BaselineState.APPROVED else "retire"
            for entry in entries:
                await _audit(tx, by, f"baseline.{verb}", entry)
            epoch = await tx.baselines.raise_policy_epoch(entries[0].cluster_id)
            changed = {each.component for each in entries}
            stored = [each for each in await _find(tx, wanted) if each.component in changed]
            return stored, epoch


def _content(entries: Iterable[BaselineEntry]) -> str:
    return content_sha256({each.component: each.sha256 for each in entries})


async def _propose(
    tx: Transaction,
    wanted: VariantName,
    captured: Iterable[Baseline],
    *,
    source: str,
    by: str,
    operation: str,
) -> Proposed:
    """Store variants as proposals; of ``wanted.component`` only, where it is given."""
    if not is_name(wanted.name):
        raise InvalidRequest("name: 1-63 characters of a-z 0-9 . _ -", field="name")
    entries = tuple(
        _entry(each, source=source, now_ms=tx.now_ms)
        for each in captured
        if wanted.component in {None, each.component}
    )
    if not entries:
        raise FailedPrecondition(f"there is no {wanted.component} in the boot of {source}")
    for entry in entries:
        if not await tx.baselines.propose(entry):
            raise AlreadyExists(
                f"there is a {entry.component} baseline {wanted.name!r}",
                kind="baseline",
                name=wanted.name,
            )
        await _audit(tx, by, operation, entry)
    waiting = [each for each in await _find(tx, wanted) if each.state is not BaselineState.APPROVED]
    return Proposed(entries=entries, sha256=_content(waiting))


def _entry(baseline: Baseline, *, source: str, now_ms: int) -> BaselineEntry:
    document = encode_baseline(baseline)
    return BaselineEntry(
        cluster_id=baseline.cluster,
        component=baseline.component,
        name=baseline.name,
        host_class=baseline.host_class,
        state=BaselineState.PROPOSED,
        document=document,
        sha256=hashlib.sha256(document.encode()).hexdigest(),
        captured_from=source,
        captured_at_ms=now_ms,
        approved_by="",
        last_matched_at_ms=None,
    )


async def _base(
    tx: Transaction, wanted: VariantName, update: Update
) -> tuple[Mapping[Component, Baseline], str]:
    """The boot that an update changes, by component, and what to call it."""
    if bool(update.host) == bool(update.base):
        raise InvalidRequest("give a host or a baseline to start from, not both", field="host")
    if update.base:
        entries = await _find(tx, VariantName(cluster=wanted.cluster, name=update.base))
        known = [decode_baseline(entry.document) for entry in entries]
        return {each.component: each for each in known}, update.base
    host, log, policy = await _good_boot(tx, wanted.cluster, update.host)
    captured = capture_baselines(
        wanted.name, ClusterId(wanted.cluster), log, policy.boot.baseline_pcrs
    )
    return {each.component: each for each in captured}, host.name


def _in_bank(file: Mapping[str, UpdatedFile], base: Mapping[Component, Baseline]) -> UpdatedFile:
    bank = next(iter(base.values())).bank
    if bank not in file:
        raise InvalidRequest(f"the digests of a file in {bank} are missing", field="files")
    return file[bank]


async def _good_boot(
    tx: Transaction, cluster: str, host_name: str
) -> tuple[HostRecord, VerifiedBootLog, Policy]:
    """A host of the cluster with its newest boot log, which must explain its PCRs."""
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
    return host, log, policy


async def stored_boot_log(tx: Transaction, host: HostRecord, policy: Policy) -> VerifiedBootLog:
    """Verify a host's newest stored evidence again and return the proven part of its boot log.

    Raises:
        FailedPrecondition: the host never sent evidence.
        EvidenceRejected, MalformedEvidence: what is stored does not verify any more.
    """
    verdict = None if host.verdict_id is None else await tx.archive.get_verdict(host.verdict_id)
    if verdict is None:
        raise FailedPrecondition(f"{host.name} has not attested yet")
    archived = await archived_evidence(tx, str(verdict["evidence_sha256"]))
    evidence = archived.evidence
    quote, signature = authenticate_quote(
        attest=evidence.attest,
        signature=evidence.signature,
        attestation_key=decode_public(host.ak_public),
    )
    values = evidence.pcr_values
    check_pcr_digest(quote, values, signature.hash)
    bank = policy.evidence.bank
    replayed = replay_boot(
        evidence.boot_log,
        {bank: split_pcr_values(quote.selection, values)[bank]},
        pcrs=policy.evidence.replayed_pcrs,
        quirks=frozenset(policy.boot.quirks),
        userspace=evidence.userspace_log,
    )[bank]
    if replayed.log is None:
        raise FailedPrecondition(f"the boot log of {host.name}: {replayed.problem}")
    return replayed.log


async def approved_variants(tx: Transaction, cluster: str) -> list[BaselineEntry]:
    """What is in force in a cluster."""
    entries = await tx.baselines.entries(cluster)
    return [entry for entry in entries if entry.state is BaselineState.APPROVED]


def matched_again(
    matched: Iterable[MatchedVariant], approved: Iterable[BaselineEntry], now_ms: int
) -> tuple[MatchedVariant, ...]:
    """Which matches are worth writing down: a fleet that attests writes each once an hour."""
    stale = {
        (entry.component, entry.name)
        for entry in approved
        if (entry.last_matched_at_ms or 0) <= now_ms - MATCHED_EVERY_MS
    }
    return tuple(each for each in matched if (each.component, each.name) in stale)


async def _find(tx: Transaction, wanted: VariantName) -> list[BaselineEntry]:
    """The variants of a name, in the order of their components."""
    found = [
        entry
        for entry in await tx.baselines.entries(wanted.cluster)
        if entry.name == wanted.name and wanted.component in {None, entry.component}
    ]
    if not found:
        which = f"{wanted.component} baseline" if wanted.component else "baseline"
        raise NotFound(f"there is no {which} {wanted.name!r}", kind="baseline", name=wanted.name)
    return sorted(found, key=_order)


def _order(entry: BaselineEntry) -> tuple[str, str, int]:
    return entry.name, entry.cluster_id, list(Component).index(entry.component)


async def _audit(tx: Transaction, by: str, operation: str, entry: BaselineEntry) -> None:
    await tx.audit.append(
        AuditEvent(
            actor=by,
            operation=operation,
            subject=entry.name,
            decision="done",
            details={
                "cluster": entry.cluster_id,
                "component": str(entry.component),
                "host_class": entry.host_class,
                "sha256": entry.sha256,
                "from": entry.captured_from,
            },
        )
    )
