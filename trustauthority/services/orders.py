"""From a decided grant to the order that the key room gets: the end of transaction 1.

What it trusts: rows that the transaction returned, and a seal whose signature was checked. What it
guarantees: every value of an order comes from the signed verdict or the decided rows, none from the
caller. What it does not do: decide who holds a VM, or touch a key. Source: design.md 6.4.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from trustauthority.codec.tpm import decode_public, object_name
from trustauthority.errors import Conflict, NotFound, TrustAuthorityError
from trustauthority.keyrelease.decide import QuoteTime, release
from trustauthority.model.grant import GrantBinding, ReleaseOrder
from trustauthority.model.host import HostRecord
from trustauthority.model.identifiers import VmId
from trustauthority.model.placement import LeaseTerms, PlacementState, Purpose
from trustauthority.model.report import VerdictSeal
from trustauthority.ports import Transaction
from trustauthority.services.policies import cluster_policy
from trustauthority.services.releasepolicies import require_intact


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorised:
    """What transaction 1 decided, and what the key room is told of it."""

    order: ReleaseOrder
    grant_epoch: int
    terms: LeaseTerms
    profile_sha256: bytes
    held_by: Mapping[str, str]
    """What the host was when the key went to it: TPM, matched baseline, verdict."""
    by_glass: bool = False
    """Whether a break-glass stands for the host's verdict."""


class Undone(Exception):
    """A refusal after the decision: transaction 1 must not commit, its refusal must be recorded."""

    def __init__(self, refusal: TrustAuthorityError) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


async def plan_release(
    tx: Transaction, host: HostRecord, state: PlacementState, seal: VerdictSeal
) -> Authorised:
    """Plan the release of a grant that was decided in this transaction.

    Raises:
        Undone: it can't be released; the transaction must not commit.
    """
    try:
        return await _order(tx, host, state, seal)
    except TrustAuthorityError as error:
        raise Undone(error) from error


async def _order(
    tx: Transaction, host: HostRecord, state: PlacementState, seal: VerdictSeal
) -> Authorised:
    """What the key room is told: every value from the signed verdict or the decided rows."""
    if state.grant is None or state.vm is None:
        raise Conflict("the grant is not there; repeat with the same request id")
    key, vm = await tx.keys.current(state.vm.vm_id), await tx.vms.get(state.vm.vm_id)
    if key is None or vm is None:
        raise NotFound("the VM has no key", kind="key", name=state.vm.vm_id)
    await require_intact(tx, vm.vm_id)
    _, policy = await cluster_policy(tx, host.cluster_id)
    plan = release(
        state.grant,
        key_state=key.state,
        key_epoch=key.key_epoch,
        quote=QuoteTime(
            boot=seal.counters, clock_ms=seal.clock_ms, received_ms=seal.quote_received_ms
        ),
        now_ms=tx.now_ms,
        open_by_limit_ms=policy.grants.open_by_ms,
        quote_age_limit_ms=policy.grants.max_quote_age_ms,
    )
    binding = GrantBinding(
        vm_id=state.vm.vm_id,
        host_id=host.host_id,
        storage_name=object_name(decode_public(seal.storage_public)),
        grant_epoch=state.grant.grant_epoch,
        key_epoch=key.key_epoch,
        request_id=state.grant.request_id,
        purpose=state.grant.purpose,
        clock_bound=plan.clock_limit_ms,
    )
    order = ReleaseOrder(
        binding=binding,
        provider=key.provider,
        kek_id=key.kek_id,
        wrapped=key.wrapped,
        aad=wrapping_aad(key.vm_id, key.key_epoch, key.provider),
        storage_public=seal.storage_public,
        sealed_pcrs=seal.sealed_pcrs,
        counters=seal.counters,
    )
    return Authorised(
        order=order,
        grant_epoch=state.grant.grant_epoch,
        terms=_terms(state, tx.now_ms, ends_early=await tx.break_glass.let_through(state.grant)),
        profile_sha256=vm.profile_sha256,
        held_by={"tpm": host.tpm, "baseline": host.baseline, "verdict": seal.verdict_id},
        by_glass=state.glass is not None,
    )


def _terms(state: PlacementState, now_ms: int, *, ends_early: bool) -> LeaseTerms:
    """How long the key may be held: the VM's lease to run it, the preparation to receive it.

    What a break-glass gave ends with it, also for a retry that needs none any more: its replay
    lengthens no lease, and the host's lease must not outlast the one that is written.
    """
    if state.grant is not None and state.grant.purpose is Purpose.PREPARE:
        return LeaseTerms(lease_ms=state.cluster.prepare_for_ms, skew_ms=0)
    return terms_of(state, now_ms, ends_early=ends_early)


def wrapping_aad(vm: VmId, key_epoch: int, provider: str) -> bytes:
    """What a wrapped key is bound to: it unwraps for no other VM, epoch or provider."""
    return json.dumps(
        {"format": "ta-vm-key-v1", "keyEpoch": key_epoch, "provider": provider, "vm": vm},
        sort_keys=True,
        separators=(",", ":"),
    ).encode()


def terms_of(state: PlacementState, now_ms: int, *, ends_early: bool = False) -> LeaseTerms:
    """The lease terms of a decided VM; under a break-glass they end with it."""
    if state.vm is None:
        raise Conflict("the VM is gone; repeat")
    if state.glass is None and not ends_early:
        return state.vm.terms
    left_ms = state.vm.lease_until_ms - now_ms
    return replace(state.vm.terms, lease_ms=min(state.vm.lease_ms, left_ms))
