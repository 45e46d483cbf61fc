"""Turn what the lease machine wants sent into calls, and answers into its replies.

Stage: edge of the agent. Trusts nothing beyond what ``channel`` authenticated. Guarantees that a
definitive refusal becomes a reply and that silence, overload and doubt never do: those raise, and
the same request goes out again. Does not retry and does not open grants.
"""

from dataclasses import dataclass, field
from typing import assert_never

from hostagent.channel import AuthorityLink
from hostagent.failure import CallFailed, FailureKind
from hostagent.lease_model import Operation, Reply, Send
from trustauthority.v1 import keyprovider_pb2 as keys
from trustauthority.v1 import placement_pb2 as placement
from trustauthority.v1.common_pb2 import ON_LEASE_LOSS_DESTROY, LeaseTerms

UNLIMITED_MS = 100 * 365 * 86_400_000
"""What «0, unlimited» on the wire means to the lease machine: a hundred years."""

_PURPOSES = {
    Operation.REQUEST: keys.KEY_PURPOSE_START,
    Operation.PREPARE: keys.KEY_PURPOSE_MIGRATE,
    Operation.SHARE: keys.KEY_PURPOSE_SHARE,
}
_MAY_BE_UNLIMITED = frozenset({Operation.REQUEST, Operation.RENEW, Operation.SHARE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A reply, with the grant when one came along."""

    reply: Reply
    key_grant: bytes = field(default=b"", repr=False)
    detail: str = ""
    """Why not, in words; empty when accepted."""
    exit_code: int = 0
    profile_sha256: bytes = b""
    """Of the definition that the VM was protected with; empty when any will do."""


async def send(link: AuthorityLink, vm_id: str, asked: Send, timeout_s: float) -> Answered:
    """Send one request. Raises CallFailed when there is no definitive answer."""
    try:
        return await _send(link, vm_id, asked, timeout_s)
    except CallFailed as error:
        failure = error.failure
        if failure.kind is not FailureKind.REFUSED:
            raise
        refused = Reply(
            operation=asked.operation,
            request_id=asked.request_id,
            accepted=False,
            reason=failure.reason,
        )
        return Answered(reply=refused, detail=failure.detail, exit_code=failure.exit_code)


async def _send(link: AuthorityLink, vm_id: str, asked: Send, timeout_s: float) -> Answered:
    metadata = link.metadata(asked.request_id)
    match asked.operation:
        case Operation.REQUEST | Operation.PREPARE | Operation.SHARE:
            return await _request_key(link, vm_id, asked, timeout_s)
        case Operation.RENEW:
            renewed = await link.answer(
                link.keys.RenewLease(
                    keys.RenewLeaseRequest(
                        vm_id=vm_id, grant_epoch=asked.grant_epoch, request_id=asked.request_id
                    ),
                    timeout=timeout_s,
                    metadata=metadata,
                )
            )
            return _accepted(asked, renewed.request_id, renewed.grant_epoch, renewed.lease)
        case Operation.GIVE_BACK:
            given = await link.answer(
                link.keys.GiveBackKey(
                    keys.GiveBackKeyRequest(
                        vm_id=vm_id, grant_epoch=asked.grant_epoch, request_id=asked.request_id
                    ),
                    timeout=timeout_s,
                    metadata=metadata,
                )
            )
            return _accepted(asked, given.request_id)
        case Operation.OFFER | Operation.SWITCH | Operation.ABORT:
            return await _move(link, vm_id, asked, timeout_s)
        case _:
            assert_never(asked.operation)


async def _request_key(link: AuthorityLink, vm_id: str, asked: Send, timeout_s: float) -> Answered:
    prepares = asked.operation is Operation.PREPARE
    reply = await link.answer(
        link.keys.RequestKey(
            keys.RequestKeyRequest(
                vm_id=vm_id,
                request_id=asked.request_id,
                purpose=_PURPOSES[asked.operation],
                move_id=asked.move_id if prepares else "",
            ),
            timeout=timeout_s,
            metadata=link.metadata(asked.request_id),
        )
    )
    answered = _accepted(asked, reply.request_id, reply.grant_epoch, reply.lease)
    return Answered(
        reply=answered.reply, key_grant=reply.key_grant, profile_sha256=reply.profile_digest
    )


async def _move(link: AuthorityLink, vm_id: str, asked: Send, timeout_s: float) -> Answered:
    metadata = link.metadata(asked.request_id)
    if asked.operation is Operation.OFFER:
        offered = await link.answer(
            link.placement.OfferMove(
                placement.OfferMoveRequest(
                    vm_id=vm_id,
                    grant_epoch=asked.grant_epoch,
                    destination=asked.destination,
                    request_id=asked.request_id,
                ),
                timeout=timeout_s,
                metadata=metadata,
            )
        )
        return _accepted(asked, offered.request_id)
    if asked.operation is Operation.SWITCH:
        switched = await link.answer(
            link.placement.SwitchMove(
                placement.SwitchMoveRequest(vm_id=vm_id, request_id=asked.request_id),
                timeout=timeout_s,
                metadata=metadata,
            )
        )
        return _accepted(asked, switched.request_id, switched.grant_epoch)
    aborted = await link.answer(
        link.placement.AbortMove(
            placement.AbortMoveRequest(vm_id=vm_id, request_id=asked.request_id),
            timeout=timeout_s,
            metadata=metadata,
        )
    )
    return _accepted(asked, aborted.request_id)


def _accepted(
    asked: Send, echoed_id: str, grant_epoch: int = 0, lease: LeaseTerms | None = None
) -> Answered:
    terms = lease if lease is not None else LeaseTerms()
    # a lease may be unlimited; a preparation never is
    unlimited = asked.operation in _MAY_BE_UNLIMITED and terms.lease_ms == 0
    reply = Reply(
        operation=asked.operation,
        request_id=echoed_id,  # the machine ignores a reply that echoes another id
        accepted=True,
        grant_epoch=grant_epoch,
        lease_ms=UNLIMITED_MS if unlimited else terms.lease_ms,
        continue_for_ms=terms.continue_for_ms,
        skew_ms=terms.skew_ms,
        destroys_at_once=terms.on_lease_loss == ON_LEASE_LOSS_DESTROY,
    )
    return Answered(reply=reply)
