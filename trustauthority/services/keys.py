"""VM keys are released in two transactions with the KMS between them (design.md 6.4).

What it guarantees: no key leaves before a durable audit record of the release exists (S9); the KMS is
never asked inside a transaction; a refusal is recorded with its reason; a retry of a request id gets
the same grant. The plaintext of a key never comes into this process: ``ports.KeyRoom``.
"""

import hashlib
from dataclasses import dataclass

from joserfc.jwk import KeySet

from trustauthority.errors import (
    HostNotAttested,
    HostRevoked,
    KmsUnavailable,
    QuoteTooOld,
    ReleaseRefused,
    TrustAuthorityError,
)
from trustauthority.model.host import HostRecord
from trustauthority.model.identifiers import HostId, RequestId, VmId
from trustauthority.model.placement import LeaseTerms
from trustauthority.model.report import VerdictSeal
from trustauthority.model.requests import (
    BreakGlassConfirmRequest,
    ConfirmRequest,
    FailRequest,
    GiveBackRequest,
    GrantRequest,
    PrepareRequest,
    RenewRequest,
    ShareRequest,
)
from trustauthority.placement.authority import refusal, retry_after_ms
from trustauthority.ports import Journal, KeyRoom, Store, Transaction
from trustauthority.report.seal import open_seal
from trustauthority.services.break_glass import ask_by_glass, renew_by_glass
from trustauthority.services.decisions import audit_decision, audit_refusal
from trustauthority.services.orders import (
    Authorised,
    Undone,
    plan_release,
    terms_of,
)
from trustauthority.services.policies import cluster_policy

_Asked = GrantRequest | PrepareRequest | ShareRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedKey:
    """What the host gets."""

    request_id: str
    grant_epoch: int
    terms: LeaseTerms
    key_grant: bytes
    profile_sha256: bytes = b""
    """Of the definition that the VM was protected with; empty when any will do."""


class KeyService:
    """Release of VM keys."""

    def __init__(self, store: Store, room: KeyRoom, verdict_keys: KeySet, journal: Journal) -> None:
        self._store = store
        self._room = room
        self._verdict_keys = verdict_keys
        self._journal = journal

    async def request(
        self,
        host: HostRecord,
        *,
        vm: str,
        request_id: str,
        move_id: str = "",
        shared: bool = False,
    ) -> ReleasedKey:
        """Release a key to a host: to run a VM, as the destination of a move, or to share a secret.

        Raises:
            ReleaseRefused: a predicate of the decision failed; the reason says which.
            KmsUnavailable: nothing left, nothing is lost; repeat with the same request id.
        """
        request = _grant_request(
            host.host_id, VmId(vm), RequestId(request_id), move_id, shared=shared
        )
        try:
            authorised = await self._authorise(host, request)
        except Undone as undone:
            # nothing of transaction 1 stands, so that the refusal needs one of its own
            await self._record_refusal(host, VmId(vm), undone.refusal)
            raise undone.refusal from None
        try:
            grant = await self._room.release(authorised.order)
        except KmsUnavailable as error:
            await self._record_failure(host, VmId(vm), RequestId(request_id), error)
            raise
        await self._confirm(host, authorised, grant)
        self._journal.record("key_release", decision="released", host=host.host_id, vm=vm)
        return ReleasedKey(
            request_id=request_id,
            grant_epoch=authorised.grant_epoch,
            terms=authorised.terms,
            key_grant=grant,
            profile_sha256=authorised.profile_sha256,
        )

    async def renew(
        self, host: HostRecord, *, vm: str, grant_epoch: int, request_id: str
    ) -> LeaseTerms:
        """Let the owner go on."""
        request = RenewRequest(
            request_id=RequestId(request_id),
            vm_id=VmId(vm),
            host_id=host.host_id,
            grant_epoch=grant_epoch,
        )
        return await self._decide(host, vm, "lease.renew", request)

    async def give_back(
        self, host: HostRecord, *, vm: str, grant_epoch: int, request_id: str
    ) -> None:
        """The owner says that its QEMU is dead and the key wiped."""
        request = GiveBackRequest(
            request_id=RequestId(request_id),
            vm_id=VmId(vm),
            host_id=host.host_id,
            grant_epoch=grant_epoch,
        )
        await self._decide(host, vm, "key.give-back", request)

    async def _decide(
        self, host: HostRecord, vm: str, operation: str, request: RenewRequest | GiveBackRequest
    ) -> LeaseTerms:
        async with self._store.transaction() as tx:
            state, failed = await tx.placement.decide(request)
            await tx.audit.append(
                audit_decision(host, vm, operation, failed, {"epoch": request.grant_epoch})
            )
            if failed and isinstance(request, RenewRequest):
                by_glass = await renew_by_glass(tx, host, request)
                if by_glass is not None:
                    state, failed = by_glass, ()
            now_ms = tx.now_ms
        if failed:
            raise refusal(failed, retry_after_ms=retry_after_ms(state, now_ms))
        return terms_of(state, now_ms)

    async def _authorise(self, host: HostRecord, request: _Asked) -> Authorised:
        """Transaction 1: the grant, the lease and the audit row *authorised*."""
        authorised: Authorised | None = None
        vm, request_id = request.vm_id, request.request_id
        async with self._store.transaction() as tx:
            current = await tx.hosts.get(host.host_id)
            if current is None:
                raise HostNotAttested("the host was removed")
            try:
                seal = await self._seal(tx, current)
                await _require_recent(tx, current, seal)
            except ReleaseRefused as error:
                refused: TrustAuthorityError = error
                await tx.audit.append(audit_refusal(host, vm, "key.request", error))
            else:
                state, failed = await tx.placement.decide(request)
                await tx.audit.append(
                    audit_decision(host, vm, "key.request", failed, {"request": request_id})
                )
                refused = refusal(failed, retry_after_ms=retry_after_ms(state, tx.now_ms))
                if not failed:
                    authorised = await plan_release(tx, current, state, seal)
            if authorised is None and isinstance(request, GrantRequest):
                authorised = await self._by_glass(tx, current, request, instead_of=refused)
        # a refusal is recorded too, so it is raised only after its transaction was committed
        if authorised is None:
            self._journal.record("key_release", decision="refused", reason=refused.reason)
            raise refused
        return authorised

    async def _by_glass(
        self,
        tx: Transaction,
        host: HostRecord,
        request: GrantRequest,
        *,
        instead_of: TrustAuthorityError,
    ) -> Authorised | None:
        """The same by an open break-glass, where the ordinary way is closed."""
        glass = await tx.break_glass.open_for(request.vm_id, host.host_id)
        if glass is None:
            return None
        try:
            seal = await self._seal(tx, host, may_have_failed=True)
        except ReleaseRefused:
            return None
        state = await ask_by_glass(tx, host, request, glass, instead_of=instead_of)
        if state is None:
            return None
        self._journal.record("break_glass", host=host.host_id, vm=request.vm_id)
        return await plan_release(tx, host, state, seal)

    async def _seal(
        self, tx: Transaction, host: HostRecord, *, may_have_failed: bool = False
    ) -> VerdictSeal:
        """The signed verdict that the host's row names: a status column alone releases nothing."""
        stored = None if host.verdict_id is None else await tx.archive.get_verdict(host.verdict_id)
        if stored is None or host.verdict_id is None:
            raise HostNotAttested("the host has not attested")
        if host.revoked:
            raise HostRevoked("the host is revoked")
        if not host.passed and not may_have_failed:
            raise HostNotAttested(f"the host's newest verdict is FAILED: {host.reason}")
        seal = open_seal(
            str(stored["seal"]),
            keys=self._verdict_keys,
            host=host.host_id,
            verdict_id=host.verdict_id,
            may_have_failed=may_have_failed,
        )
        epochs = (seal.policy_epoch, seal.trust_epoch, seal.global_epoch)
        signed = (*epochs, seal.counters, seal.warned)
        row = (
            host.verdict_policy_epoch,
            host.verdict_trust_epoch,
            host.verdict_global_epoch,
            host.boot,
            host.warned,
        )
        # a revocation shortens the row's time; nothing may lengthen it
        if signed != row or host.attested_until_ms > seal.attested_until_ms:
            raise HostNotAttested("the host's row does not say what its signed verdict says")
        return seal

    async def _confirm(self, host: HostRecord, authorised: Authorised, grant: bytes) -> None:
        """Transaction 2: epochs still current, audit row *released* with the response hash."""
        binding = authorised.order.binding
        response_hash = hashlib.sha256(grant).digest()
        asked = BreakGlassConfirmRequest if authorised.by_glass else ConfirmRequest
        request = asked(
            request_id=binding.request_id,
            vm_id=binding.vm_id,
            host_id=host.host_id,
            response_hash=response_hash,
        )
        async with self._store.transaction() as tx:
            _, failed = await tx.placement.decide(request)
            details: dict[str, str | int] = {
                "request": binding.request_id,
                "grant_epoch": binding.grant_epoch,
                "key_epoch": binding.key_epoch,
                "purpose": str(binding.purpose),
                "response_sha256": response_hash.hex(),
                **authorised.held_by,
            }
            await tx.audit.append(
                audit_decision(host, binding.vm_id, "key.release", failed, details)
            )
        if failed:
            raise refusal(failed)

    async def _record_refusal(self, host: HostRecord, vm: VmId, error: TrustAuthorityError) -> None:
        async with self._store.transaction() as tx:
            await tx.audit.append(audit_refusal(host, vm, "key.request", error))
        self._journal.record("key_release", decision="refused", reason=error.reason)

    async def _record_failure(
        self, host: HostRecord, vm: VmId, request_id: RequestId, error: KmsUnavailable
    ) -> None:
        async with self._store.transaction() as tx:
            await tx.placement.decide(
                FailRequest(request_id=request_id, vm_id=vm, host_id=host.host_id)
            )
            await tx.audit.append(audit_refusal(host, vm, "key.release", error))
        self._journal.record("key_release", decision="failed", reason=error.reason)


async def _require_recent(tx: Transaction, host: HostRecord, seal: VerdictSeal) -> None:
    _, policy = await cluster_policy(tx, host.cluster_id)
    age_ms = tx.now_ms - seal.quote_received_ms
    if not 0 <= age_ms <= policy.grants.max_quote_age_ms:
        raise QuoteTooOld(
            f"the host's newest quote is {age_ms} ms old; attest and repeat",
            ageMs=age_ms,
            limitMs=policy.grants.max_quote_age_ms,
        )


def _grant_request(
    host: HostId, vm: VmId, request_id: RequestId, move_id: str, *, shared: bool
) -> _Asked:
    if shared:
        return ShareRequest(request_id=request_id, vm_id=vm, host_id=host)
    if move_id:
        return PrepareRequest(
            request_id=request_id, move_id=RequestId(move_id), vm_id=vm, host_id=host
        )
    return GrantRequest(request_id=request_id, vm_id=vm, host_id=host)
