"""Registered identities on SQL."""

from collections.abc import Sequence

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from trustauthority.adapters.sql import tables
from trustauthority.adapters.sql.rows import columns, insert_once, record
from trustauthority.model.catalogue import IdentityEntry, Role

_identity = tables.identity


class SqlIdentities:
    """The Identities port."""

    def __init__(self, connection: AsyncConnection, now_ms: int) -> None:
        self._connection = connection
        self._now_ms = now_ms

    async def put(self, entry: IdentityEntry) -> bool:
        """Insert an identity, or renew the same name and key; False when either is another's."""
        values = columns(entry, roles=",".join(sorted(entry.roles)))
        renewed = await self._connection.execute(
            update(_identity)
            .where(
                _identity.c.name == entry.name,
                _identity.c.key_sha256 == entry.key_sha256,
                _identity.c.revoked.is_(False),
            )
            .values(**values)
        )
        if renewed.rowcount == 1:
            return True
        return await insert_once(self._connection, _identity, values)

    async def by_key(self, key_sha256: str) -> IdentityEntry | None:
        """Find the identity of a connection's key."""
        rows = await self._connection.execute(
            select(_identity).where(_identity.c.key_sha256 == key_sha256)
        )
        row = rows.mappings().first()
        return None if row is None else record(IdentityEntry, row, roles=_roles)

    async def entries(self) -> Sequence[IdentityEntry]:
        """List identities by name."""
        rows = await self._connection.execute(select(_identity).order_by(_identity.c.name))
        return [record(IdentityEntry, row, roles=_roles) for row in rows.mappings()]

    async def revoke(self, name: str) -> bool:
        """Revoke an identity; False when there is none."""
        done = await self._connection.execute(
            update(_identity)
            .where(_identity.c.name == name, _identity.c.revoked.is_(False))
            .values(revoked=True)
        )
        return done.rowcount == 1


def _roles(text: str) -> frozenset[Role]:
    return frozenset(Role(each) for each in text.split(",") if each)
