"""Protected VMs, intents, advice for schedulers, and the steps of a move."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from trustauthority.errors import AlreadyExists, InvalidRequest, NotFound
from trustauthority.model.audit import AuditEvent
from trustauthority.model.host import Admission, HostRecord
from trustauthority.model.identifiers import ClusterId, RequestId, VmId, is_name
from trustauthority.model.placement import (
    UNLIMITED_MS,
    LeaseClass,
    Move,
    PlacementState,
    Sharing,
)
from trustauthority.model.policy import LeasePolicy
from trustauthority.model.requests import AbortRequest, OfferRequest, SwitchRequest
from trustauthority.model.vm import IntentEntry, VmEntry
from trustauthority.placement.authority import refusal
from trustauthority.placement.candidates import Candidate, rank
from trustauthority.placement.decide import ADVICE, MoveDecision, PlacementQuestion, advise, place
from trustauthority.ports import Store, Transaction
from trustauthority.services.decisions import audit_decision
from trustauthority.services.hosts import find_host
from trustauthority.services.policies import cluster_policy

DEFAULT_INTENT_MS = 10 * 60_000
MAX_INTENT_MS = 24 * 3_600_000
MAX_CANDIDATES = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVm:
    """A VM to protect."""

    vm_id: str
    cluster: str
    lease_class: LeaseClass
    any_host: bool
    profile_sha256: bytes
    sharing: Sharing = Sharing.EXCLUSIVE


class PlacementService:
    """VMs, intents, advice and moves."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def protect(self, vm: NewVm, *, by: str) -> VmEntry:
        """Record a VM with the lease terms that its cluster's policy gives its class."""
        if not is_name(vm.vm_id):
            raise InvalidRequest("vm_id: 1-63 characters of a-z 0-9 . _ -", field="vm_id")
        if len(vm.profile_sha256) not in (0, 32):
            raise InvalidRequest("profile_digest has 32 bytes, or none", field="profile_digest")
        if vm.sharing is Sharing.SHARED and vm.profile_sha256:
            raise InvalidRequest("a shared secret has no domain profile", field="profile_digest")
        async with self._store.transaction() as tx:
            _, policy = await cluster_policy(tx, vm.cluster)
            entry = VmEntry(
                vm_id=VmId(vm.vm_id),
                cluster_id=ClusterId(vm.cluster),
                key_state=None,
                key_epoch=0,
                profile_sha256=vm.profile_sha256,
                lease_class=vm.lease_class,
                lease_ms=lease_ms(policy.leases, vm.lease_class),
                continue_for_ms=policy.leases.continue_for_ms,
                skew_ms=policy.leases.skew_ms,
                sharing=vm.sharing,
                on_lease_loss=policy.leases.on_lease_loss,
                # each renewal is a release of its own: an intent for each would be no decision
                any_host_of_cluster=vm.any_host or vm.sharing is Sharing.SHARED,
                owner=None,
                last_owner=None,
                grant_epoch=0,
                lease_until_ms=0,
                fence_until_ms=0,
                move_id=None,
            )
            if not await tx.vms.protect(entry, by=by):
                raise AlreadyExists(f"there is a VM {vm.vm_id!r}", kind="vm", name=vm.vm_id)
            await tx.audit.append(
                AuditEvent(
                    actor=by,
                    operation="vm.protect",
                    subject=vm.vm_id,
                    decision="done",
                    details={
                        "cluster": vm.cluster,
                        "lease_class": str(vm.lease_class),
                        "any_host": int(vm.any_host),
                        "sharing": str(vm.sharing),
                    },
                )
            )
        return entry

    async def page(self, *, after: str, limit: int, host: str = "") -> Sequence[VmEntry]:
        """List VMs, of one owner (id or name) or of all."""
        async with self._store.snapshot() as tx:
            owner = (await find_host(tx, host)).host_id if host else ""
            return await tx.vms.page(after=after, limit=limit, owner=owner)

    async def get(self, vm: str) -> VmEntry:
        """One VM."""
        async with self._store.snapshot() as tx:
            return await find_vm(tx, vm)

    async def check(self, candidates: Sequence[tuple[str, str]]) -> Sequence[MoveDecision]:
        """Answer "may this VM run there?" for each (VM, host); advice, never a grant."""
        if not 0 < len(candidates) <= MAX_CANDIDATES:
            raise InvalidRequest(f"1 to {MAX_CANDIDATES} candidates", field="candidates")
        async with self._store.snapshot() as tx:
            found = await tx.placement.weigh(candidates, ADVICE)
        return advise(candidates, found)

    async def candidates(self, vm: str) -> Sequence[Candidate]:
        """Rank the hosts of the VM's cluster for it; advice, never a grant."""
        async with self._store.snapshot() as tx:
            entry = await find_vm(tx, vm)
            page = await tx.hosts.page(cluster=entry.cluster_id, after="", limit=MAX_CANDIDATES)
            hosts = [host for host in page if host.admission is not Admission.REMOVED]
            states = await tx.placement.look([(vm, host.host_id) for host in hosts])
            now_ms = tx.now_ms
        return rank(
            Candidate(
                name=host.name,
                state=state,
                decision=place(
                    PlacementQuestion(vm_id=entry.vm_id, host_id=host.host_id), state, now_ms
                ),
            )
            for host, state in zip(hosts, states, strict=True)
        )

    async def create_intent(self, vm: str, host_name: str, *, ttl_ms: int, by: str) -> IntentEntry:
        """Write a single-use, expiring reason for a host to ask: necessary, never sufficient."""
        if not 0 <= ttl_ms <= MAX_INTENT_MS:
            raise InvalidRequest("ttl_ms is at most 24 hours", field="ttl_ms")
        async with self._store.transaction() as tx:
            host = await find_host(tx, host_name)
            await find_vm(tx, vm)
            entry = IntentEntry(
                intent_id=RequestId(secrets.token_urlsafe(16)),
                vm_id=VmId(vm),
                destination=host.host_id,
                created_by=by,
                created_at_ms=tx.now_ms,
                expires_ms=tx.now_ms + (ttl_ms or DEFAULT_INTENT_MS),
                used_by=None,
            )
            await tx.vms.put_intent(entry)
            await tx.audit.append(
                AuditEvent(
                    actor=by,
                    operation="placement.intent",
                    subject=vm,
                    decision="done",
                    details={"host": host.name, "host_id": host.host_id},
                )
            )
        return entry

    async def intents(self, vm: str) -> Sequence[IntentEntry]:
        """List intents."""
        async with self._store.snapshot() as tx:
            return await tx.vms.intents(vm)

    async def offer(
        self, host: HostRecord, *, vm: str, grant_epoch: int, destination: str, move_id: str
    ) -> Move:
        """The owner offers a VM to one destination."""
        async with self._store.transaction() as tx:
            target = (await find_host(tx, destination)).host_id
        request = OfferRequest(
            move_id=RequestId(move_id),
            vm_id=VmId(vm),
            host_id=host.host_id,
            grant_epoch=grant_epoch,
            destination=target,
        )
        return _move_of(await self._decide(host, vm, "move.offer", request))

    async def switch(self, host: HostRecord, *, vm: str, move_id: str) -> int:
        """The paused owner hands over; returns the destination's grant epoch."""
        request = SwitchRequest(move_id=RequestId(move_id), vm_id=VmId(vm), host_id=host.host_id)
        state = await self._decide(host, vm, "move.switch", request)
        return _move_of(state).grant_epoch + 1

    async def abort(self, host: HostRecord, *, vm: str, move_id: str) -> None:
        """Either party ends a move for good."""
        request = AbortRequest(move_id=RequestId(move_id), vm_id=VmId(vm), host_id=host.host_id)
        await self._decide(host, vm, "move.abort", request)

    async def outcome(
        self, host: HostRecord, *, vm: str, move_id: str
    ) -> tuple[Move | None, VmEntry | None]:
        """What became of a move, for one of its two parties; to others there is no such move."""
        async with self._store.snapshot() as tx:
            move = await tx.placement.move(RequestId(move_id))
            entry = await tx.vms.get(vm)
        if move is None or entry is None or move.vm_id != entry.vm_id:
            return None, None
        if host.host_id not in (move.source, move.destination):
            return None, None
        return move, entry

    async def _decide(
        self,
        host: HostRecord,
        vm: str,
        operation: str,
        request: OfferRequest | SwitchRequest | AbortRequest,
    ) -> PlacementState:
        async with self._store.transaction() as tx:
            state, failed = await tx.placement.decide(request)
            await tx.audit.append(
                audit_decision(host, vm, operation, failed, {"move": request.move_id})
            )
        if failed:
            raise refusal(failed)
        return state


async def find_vm(tx: Transaction, vm: str) -> VmEntry:
    """Find a VM.

    Raises:
        NotFound: there is none.
    """
    entry = await tx.vms.get(vm)
    if entry is None:
        raise NotFound(f"there is no VM {vm!r}; see ta vm list", kind="vm", name=vm)
    return entry


def lease_ms(policy: LeasePolicy, lease_class: LeaseClass) -> int:
    """The length of a lease class."""
    return {
        LeaseClass.STRICT: policy.strict_ms,
        LeaseClass.STANDARD: policy.standard_ms,
        LeaseClass.UNLIMITED: UNLIMITED_MS,
    }[lease_class]


def _move_of(state: PlacementState) -> Move:
    if state.move is None:
        raise NotFound("there is no such move", kind="move", name="")
    return state.move
