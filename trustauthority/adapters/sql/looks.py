"""What decisions would look at, for many (VM, host) at once: a few reads however many are asked.

What it guarantees: for each question the rows that ``placement.decide`` judges, None where there is
no such row. What it does not do: decide. It reads a snapshot, so its answers are advice.
Source: design 6.5 ("CheckPlacement"), promises N47.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from sqlalchemy import BindParameter, RowMapping, Select, Table, bindparam, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from trustauthority.adapters.sql import key_tables, tables
from trustauthority.adapters.sql.compile import NEW_GRANTS_WINDOW_MS
from trustauthority.adapters.sql.rows import record
from trustauthority.model.lease import OnLeaseLoss
from trustauthority.model.placement import (
    NO_CLUSTER,
    AuthorityRecord,
    ClusterRecord,
    HostStanding,
    Intent,
    KeyState,
    PlacementState,
    Sharing,
    VmRecord,
    VmState,
)
from trustauthority.model.releasepolicy import ReleasePolicyRecord

_host, _vm, _intent, _grant = tables.host, tables.vm, tables.intent, tables.grant


def _columns(table: Table, kind: type[Any]) -> list[Any]:
    """The columns that a record's fields name."""
    return [table.c[each.name] for each in fields(kind) if each.name in table.c]


def _many(name: str) -> BindParameter[Any]:
    return bindparam(name, expanding=True)


_VMS = select(*_columns(_vm, VmRecord)).where(_vm.c.vm_id.in_(_many("vms")))
_live_grants = select(func.count()).where(_vm.c.owner == _host.c.host_id).scalar_subquery()
_new_grants = (
    select(func.count())
    .where(_grant.c.host_id == _host.c.host_id, _grant.c.authorised_at_ms > bindparam("since"))
    .scalar_subquery()
)
_HOSTS = select(
    *_columns(_host, HostStanding),
    _host.c.reserved_name,
    _live_grants.label("live_grants"),
    _new_grants.label("new_grants"),
).where(or_(_host.c.host_id.in_(_many("hosts")), _host.c.reserved_name.in_(_many("hosts"))))
_INTENTS = (
    select(_intent)
    .where(_intent.c.vm_id.in_(_many("vms")), _intent.c.used_by.is_(None))
    .order_by(_intent.c.expires_ms)  # the last one stays
)
_policy = key_tables.release_policy
_POLICIES = select(*_columns(_policy, ReleasePolicyRecord)).where(_policy.c.vm_id.in_(_many("vms")))
_CLUSTERS = select(tables.cluster).where(tables.cluster.c.cluster_id.in_(_many("clusters")))


class Looks:
    """One snapshot of everything that some questions are about."""

    def __init__(self, connection: AsyncConnection, now_ms: int) -> None:
        self._connection = connection
        self._now_ms = now_ms

    async def answer(self, questions: Sequence[tuple[str, str]]) -> Sequence[PlacementState]:
        """The rows for each (VM id, host id or name), in order."""
        named_hosts = {host for _, host in questions}
        vms = await self._vms({vm for vm, _ in questions})
        hosts = await self._hosts(named_hosts)
        intents = await self._intents(vms)
        policies = await self._policies(vms)
        clusters = await self._clusters({host.cluster_id for host in hosts.values()})
        authority = record(AuthorityRecord, (await self._all(select(tables.authority)))[0])
        owned = {(vm.owner, vm_id) for vm_id, vm in vms.items()}
        states = []
        for vm_id, named in questions:
            host = hosts.get(named)
            if host is not None and (host.host_id, vm_id) in owned:
                host = _without_the_vm(host)
            states.append(
                PlacementState(
                    authority=authority,
                    cluster=NO_CLUSTER if host is None else clusters[host.cluster_id],
                    host=host,
                    vm=vms.get(vm_id),
                    policy=policies.get(vm_id),
                    intent=None if host is None else intents.get((vm_id, host.host_id)),
                )
            )
        return states

    async def _vms(self, wanted: Collection[str]) -> Mapping[str, VmRecord]:
        return {
            row["vm_id"]: record(
                VmRecord,
                {**row, "key_state": row["key_state"] or KeyState.PRE_ACTIVE},
                state=VmState,
                key_state=KeyState,
                sharing=Sharing,
                on_lease_loss=OnLeaseLoss,
            )
            for row in await self._all(_VMS, vms=list(wanted))
        }

    async def _hosts(self, wanted: Collection[str]) -> Mapping[str, HostStanding]:
        """Hosts by what they were asked for as: the id is a stronger claim than the name."""
        since = self._now_ms - NEW_GRANTS_WINDOW_MS
        found: dict[str, HostStanding] = {}
        for row in await self._all(_HOSTS, hosts=list(wanted), since=since):
            host = found[row["host_id"]] = record(HostStanding, row)
            if row["reserved_name"]:
                found.setdefault(row["reserved_name"], host)
        return found

    async def _intents(self, vms: Collection[str]) -> Mapping[tuple[str, str], Intent]:
        rows = await self._all(_INTENTS, vms=list(vms))
        return {(row["vm_id"], row["destination"]): record(Intent, row) for row in rows}

    async def _policies(self, vms: Collection[str]) -> Mapping[str, ReleasePolicyRecord]:
        rows = await self._all(_POLICIES, vms=list(vms))
        return {row["vm_id"]: record(ReleasePolicyRecord, row) for row in rows}

    async def _clusters(self, wanted: Collection[str]) -> Mapping[str, ClusterRecord]:
        rows = await self._all(_CLUSTERS, clusters=list(wanted))
        return {row["cluster_id"]: record(ClusterRecord, row) for row in rows}

    async def _all(self, query: Select[Any], **bound: Any) -> Sequence[RowMapping]:
        found: Sequence[RowMapping] = (
            (await self._connection.execute(query, bound)).mappings().all()
        )
        return found


def _without_the_vm(host: HostStanding) -> HostStanding:
    """The VM asked for does not count against the cap of the host that owns it."""
    return replace(host, live_grants=host.live_grants - 1)
