"""A new beginning after a restore or an accepted rollback: nothing stale may ever be current again.

Every epoch jumps past what the lost decisions can have reached, every verdict is void, and no VM
changes its owner before the longest fence, since a host may run it under a lease that was forgotten
(S6, N64, N91).
"""

from sqlalchemy import ColumnElement, case, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from trustauthority.adapters.sql import tables

EPOCH_JUMP = 1_000
"""More than any authority decides about one row between two backups that are worth restoring."""


class SqlRestart:
    """The restart of an authority, inside of one transaction."""

    def __init__(self, connection: AsyncConnection, now_ms: int) -> None:
        self._connection = connection
        self._now_ms = now_ms

    async def jump(self) -> None:
        """Jump epochs, void verdicts, hold owners, and allow releases again."""
        authority, host, vm = tables.authority, tables.host, tables.vm
        known = select(authority.c.hold_owners_until_ms, authority.c.longest_fence_ms)
        row = (await self._connection.execute(known)).one()
        held_until_ms = max(row.hold_owners_until_ms, self._now_ms + row.longest_fence_ms)
        await self._connection.execute(
            update(authority).values(
                global_epoch=authority.c.global_epoch + EPOCH_JUMP,
                no_report_before_ms=self._now_ms,
                hold_owners_until_ms=held_until_ms,
                halted_because="",
                # the time: larger than any era that a later, lost database can have reached
                era=_larger(authority.c.era + 1, literal(self._now_ms)),
            )
        )
        await self._connection.execute(
            update(host).values(trust_epoch=host.c.trust_epoch + EPOCH_JUMP, attested_until_ms=0)
        )
        await self._connection.execute(
            update(tables.cluster).values(policy_epoch=tables.cluster.c.policy_epoch + EPOCH_JUMP)
        )
        glass = tables.break_glass
        await (
            self._connection.execute(  # one that was used since would let a second request through
                update(glass)
                .where(glass.c.closed_at_ms == 0)
                .values(closed_at_ms=self._now_ms, closed_by="authority")
            )
        )
        await self._connection.execute(
            update(vm).values(
                grant_epoch=vm.c.grant_epoch + EPOCH_JUMP,
                # one that was free may have been granted since: it has a fence like the others
                fence_until_ms=_larger(vm.c.fence_until_ms, literal(held_until_ms)),
                move_id=None,
                move_until_ms=0,
            )
        )


def _larger(left: ColumnElement[int], right: ColumnElement[int]) -> ColumnElement[int]:
    return case((left > right, left), else_=right)
