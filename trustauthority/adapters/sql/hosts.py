"""Hosts on SQL: insert-only identities, verdicts that only move the TPM's position forward."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from sqlalchemy import ColumnElement, RowMapping, case, select, tuple_, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from trustauthority.adapters.sql import tables
from trustauthority.adapters.sql.rows import insert_once, record
from trustauthority.model.baseline import Component, matched_by_component
from trustauthority.model.host import Admission, HostRecord, PendingEnrolment
from trustauthority.model.identifiers import HostId
from trustauthority.placement.release_policy import COMPONENTS

_host = tables.host
_NEVER_ATTESTED: dict[str, object] = {
    "revoked": False,
    "draining": False,
    "warned": False,
    "trust_epoch": 1,
    "challenged_at_ms": 0,
    "attested_until_ms": 0,
    "no_report_before_ms": 0,
    "verdict_trust_epoch": 0,
    "verdict_policy_epoch": 0,
    "verdict_global_epoch": 0,
    "region": "",
    "baseline": "",
    **{f"variant_{each}": "" for each in COMPONENTS},
    "reason": "",
    "boot": b"",
    "tpm_position": b"",
    "tpm_firmware": b"",
    "boot_log_sha256": b"",
    "ima_state": b"",
    "ima_offset": 0,
}


class SqlHosts:
    """The Hosts port."""

    def __init__(self, connection: AsyncConnection, now_ms: int) -> None:
        self._connection = connection
        self._now_ms = now_ms

    async def get(self, name_or_id: str) -> HostRecord | None:
        """Find a host by id, or by reserved name."""
        # a name may look like another host's id; the id is the stronger claim
        by_id = await self._one(_host.c.host_id == name_or_id)
        return by_id or await self._one(_host.c.reserved_name == name_or_id)

    async def by_tls_key(self, spki_sha256: str) -> HostRecord | None:
        """Find the host whose TLS key a connection showed."""
        return await self._one(_host.c.tls_spki_sha256 == spki_sha256)

    async def page(self, *, cluster: str, after: str, limit: int) -> Sequence[HostRecord]:
        """List hosts ordered by name, then id; ``after`` is the last host id of the page before."""
        query = select(_host).order_by(_host.c.name, _host.c.host_id).limit(limit)
        if after:
            last = _host.alias()
            name = select(last.c.name).where(last.c.host_id == after).scalar_subquery()
            query = query.where(tuple_(_host.c.name, _host.c.host_id) > tuple_(name, after))
        if cluster:
            query = query.where(_host.c.cluster_id == cluster)
        return [_record(row) for row in (await self._connection.execute(query)).mappings()]

    async def enrol(self, pending: PendingEnrolment, admission: Admission) -> bool:
        """Insert a host once; False when its id, AK, keys or name belong to another one."""
        enrolment = pending.enrolment
        admitted = admission is Admission.ADMITTED
        identity = asdict(enrolment)
        identity["cluster_id"] = identity.pop("cluster")
        row = (
            _NEVER_ATTESTED
            | identity
            | {
                "reserved_name": enrolment.name if admitted else None,
                "enrolled_at_ms": self._now_ms,
                "admission": str(admission),
                "admitted": admitted,
                "host_class": pending.inventory_class,
            }
        )
        return await insert_once(self._connection, _host, row)

    async def set_admission(
        self, host: HostId, admission: Admission, *, name: str | None, host_class: str | None = None
    ) -> bool:
        """Admit (reserving ``name``) or remove; False when the name is taken.

        A class that is given replaces the one before; either that or a removal voids every verdict so far.
        """
        values: dict[str, object] = {
            "admission": str(admission),
            "admitted": admission is Admission.ADMITTED,
            "reserved_name": name,
        }
        if name is not None:
            values["name"] = name
        if host_class is not None:
            values["host_class"] = host_class
        if admission is Admission.REMOVED or host_class is not None:
            values |= {"trust_epoch": _host.c.trust_epoch + 1, "attested_until_ms": 0}
        try:
            async with self._connection.begin_nested():
                done = await self._connection.execute(
                    update(_host).where(_host.c.host_id == host).values(**values)
                )
        except IntegrityError:
            return False
        return done.rowcount == 1

    async def set_revoked(self, host: HostId, *, revoked: bool) -> int:
        """Revoke or reinstate; either way every verdict so far is void."""
        done = await self._connection.execute(
            update(_host)
            .where(_host.c.host_id == host)
            .values(revoked=revoked, trust_epoch=_host.c.trust_epoch + 1, attested_until_ms=0)
            .returning(_host.c.trust_epoch)
        )
        return int(done.scalar_one())

    async def record_verdict(
        self, host: HostId, *, position: bytes, values: Mapping[str, object]
    ) -> bool:
        """Write the newest verdict if the TPM's position moved forward.

        Positions are 16-byte big-endian blobs, compared as such: as unsigned numbers (N17, N84).
        """
        matched = matched_by_component(str(values.get("baseline", "")))
        variants = {f"variant_{each.name.lower()}": matched.get(each, "") for each in Component}
        done = await self._connection.execute(
            update(_host)
            .where(_host.c.host_id == host, _host.c.tpm_position < position)
            .values(tpm_position=position, boot=position[:8], **values, **variants)
        )
        return done.rowcount == 1

    async def revoke_all(self, *, no_report_before_ms: int) -> int:
        """Void every verdict so far: one row. The bound on evidence only rises."""
        authority = tables.authority
        known_ms = authority.c.no_report_before_ms
        done = await self._connection.execute(
            update(authority)
            .values(
                global_epoch=authority.c.global_epoch + 1,
                no_report_before_ms=case(
                    (known_ms > no_report_before_ms, known_ms), else_=no_report_before_ms
                ),
            )
            .returning(authority.c.global_epoch)
        )
        return int(done.scalar_one())

    async def _one(self, condition: ColumnElement[bool]) -> HostRecord | None:
        rows = await self._connection.execute(select(_host).where(condition))
        row = rows.mappings().first()
        return None if row is None else _record(row)


def _record(row: RowMapping) -> HostRecord:
    return record(HostRecord, row, admission=Admission)
