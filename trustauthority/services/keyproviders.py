"""Key providers: names for KEKs in a KMS, their versions, and which one a cluster uses.

What it guarantees: a KEK is recorded, and audited, before a key rests on it; a version is taken once.
What it does not do: decide which keys move to a new version (``services.rewrap``).
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trustauthority.errors import AlreadyExists, NotFound
from trustauthority.model.audit import AuditEvent
from trustauthority.model.keyjob import KekEntry
from trustauthority.model.kms import KmsHealth
from trustauthority.ports import KeyRoom, Store

DEFAULT_PROVIDER = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderView:
    """A provider as people see it."""

    name: str
    configured: bool
    """Whether the key role's configuration has a KMS for it."""
    versions: Sequence[KekEntry]
    """Newest first; empty before the first key."""
    keys_by_kek: Mapping[str, int]
    clusters: Sequence[str]
    """Whose default it is."""
    health: KmsHealth


class KeyProviderService:
    """Administration of key providers."""

    def __init__(self, store: Store, room: KeyRoom) -> None:
        self._store = store
        self._room = room

    async def views(self) -> Sequence[ProviderView]:
        """Every provider that is configured or wraps keys."""
        async with self._store.snapshot() as tx:
            recorded = await tx.key_providers.names()
            names = sorted({*self._room.providers, *recorded})
            defaults = await tx.key_providers.defaults()
            versions = [await tx.key_providers.versions(name) for name in names]
            counts = [await tx.key_providers.keys_by_kek(name) for name in names]
        health = await asyncio.gather(*(self._room.health(name) for name in names))
        return [
            ProviderView(
                name=name,
                configured=name in self._room.providers,
                versions=versions[index],
                keys_by_kek=counts[index],
                clusters=sorted(c for c, chosen in defaults.items() if chosen == name),
                health=health[index],
            )
            for index, name in enumerate(names)
        ]

    async def view(self, name: str) -> ProviderView:
        """One provider. Raises NotFound."""
        for each in await self.views():
            if each.name == name:
                return each
        raise _unknown(name)

    async def health(self) -> Mapping[str, KmsHealth]:
        """How the KMS of each provider is doing; without any, the default one is missed."""
        names = sorted(self._room.providers) or [DEFAULT_PROVIDER]
        answers = await asyncio.gather(*(self._room.health(name) for name in names))
        return dict(zip(names, answers, strict=True))

    async def create(self, name: str, *, by: str) -> KekEntry:
        """Make the first KEK of a configured provider.

        Raises:
            NotFound: nothing is configured under this name. AlreadyExists: it has a KEK.
            KmsUnavailable: the KMS made none.
        """
        if name not in self._room.providers:
            raise _unknown(name)
        async with self._store.snapshot() as tx:
            if await tx.key_providers.current(name) is not None:
                raise AlreadyExists(f"provider {name!r} has a KEK", kind="provider", name=name)
        made = await self._room.create_kek(name)
        return await self._add(name, 1, made, operation="provider.create", by=by)

    async def kek(self, name: str, *, by: str) -> KekEntry:
        """The current KEK of a provider; the first one is made when it is first needed."""
        async with self._store.snapshot() as tx:
            current = await tx.key_providers.current(name)
        if current is not None:
            return current
        made = await self._room.create_kek(name)
        return await self._add(name, 1, made, operation="provider.create", by=by)

    async def rotate(self, name: str, *, by: str) -> KekEntry:
        """Make the next version of a provider's KEK, by which new keys are wrapped from now on."""
        current = await self.kek(name, by=by)
        made = await self._room.rotate_kek(name, current.kek_id)
        version = current.version + 1
        return await self._add(name, version, made, operation="provider.rotate", by=by)

    async def set_default(self, cluster: str, provider: str, *, by: str) -> None:
        """Choose the provider of a cluster's new keys.

        Raises:
            NotFound: no such cluster, or no such provider in the configuration.
        """
        if provider not in self._room.providers:
            raise _unknown(provider)
        async with self._store.transaction() as tx:
            known = {entry.cluster_id for entry in await tx.catalogue.clusters()}
            if cluster not in known:
                raise NotFound(f"there is no cluster {cluster!r}", kind="cluster", name=cluster)
            await tx.key_providers.set_default(cluster, provider)
            await tx.audit.append(
                AuditEvent(
                    actor=by,
                    operation="provider.set-default",
                    subject=provider,
                    decision="done",
                    details={"cluster": cluster},
                )
            )

    async def _add(
        self, name: str, version: int, kek_id: str, *, operation: str, by: str
    ) -> KekEntry:
        """Record a KEK that the KMS made; if another call was first, its KEK is the one."""
        async with self._store.transaction() as tx:
            made = KekEntry(
                provider=name,
                version=version,
                kek_id=kek_id,
                created_at_ms=tx.now_ms,
                created_by=by,
            )
            if not await tx.key_providers.add_kek(made):
                return await tx.key_providers.current(name) or made
            await tx.audit.append(
                AuditEvent(
                    actor=by,
                    operation=operation,
                    subject=name,
                    decision="done",
                    details={"kek": kek_id, "version": version},
                )
            )
        return made


def _unknown(name: str) -> NotFound:
    return NotFound(
        f"no KMS is configured for key provider {name!r}; see ta key provider list",
        kind="provider",
        name=name,
    )
