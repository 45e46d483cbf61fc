"""Release policies of VMs, and regions of hosts, on SQL."""

from dataclasses import fields
from typing import Any

from sqlalchemy import insert, select, update

from trustauthority.adapters.sql import key_tables, tables
from trustauthority.adapters.sql.catalogue import Repository
from trustauthority.adapters.sql.rows import columns, record
from trustauthority.model.identifiers import HostId, VmId
from trustauthority.model.releasepolicy import ReleasePolicyEntry, ReleasePolicyRecord

_policy, _vm, _host = key_tables.release_policy, tables.vm, tables.host


class SqlReleasePolicies(Repository):
    """The ReleasePolicies port."""

    async def get(self, vm: VmId) -> ReleasePolicyEntry | None:
        """The newest release policy of a VM."""
        query = select(_policy).where(_policy.c.vm_id == vm)
        row = (await self._connection.execute(query)).mappings().first()
        if row is None:
            return None
        kept: dict[str, Any] = {
            each.name: row[each.name] for each in fields(ReleasePolicyEntry) if each.name in row
        }
        return ReleasePolicyEntry(record=record(ReleasePolicyRecord, row), **kept)

    async def put(self, entry: ReleasePolicyEntry, *, after_version: int) -> bool:
        """Put the next version in force; False when another one came first."""
        vm, version = entry.record.vm_id, entry.record.version
        moved = await self._connection.execute(
            update(_vm)
            .where(_vm.c.vm_id == vm, _vm.c.policy_version == after_version)
            .values(policy_version=version)
        )
        if moved.rowcount != 1:
            return False
        values = {
            **columns(entry.record),
            "document": entry.document,
            "signature": entry.signature,
            "set_at_ms": entry.set_at_ms,
            "set_by": entry.set_by,
        }
        changed = await self._connection.execute(
            update(_policy).where(_policy.c.vm_id == vm).values(**values)
        )
        if changed.rowcount == 0:
            await self._connection.execute(insert(_policy).values(**values))
        return True

    async def region(self, host: HostId) -> str:
        """A host's region; empty when it has none."""
        query = select(_host.c.region).where(_host.c.host_id == host)
        return str(await self._connection.scalar(query) or "")

    async def set_region(self, host: HostId, region: str) -> bool:
        """Say in which region a host is; False when there is no such host."""
        done = await self._connection.execute(
            update(_host).where(_host.c.host_id == host).values(region=region)
        )
        return done.rowcount == 1
