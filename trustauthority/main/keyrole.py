"""The key role's services, and its work that nobody waits for: rewrap jobs, keys to be destroyed."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field

import grpc

from trustauthority.adapters.keyfiles import KeyFiles
from trustauthority.adapters.tombstones import TOMBSTONES, FileTombstones
from trustauthority.ports import Journal, KeyRoom, Store
from trustauthority.rpc.keyadmin import KeyAdminRpc
from trustauthority.rpc.keyprovider import KeyProviderRpc
from trustauthority.services.destruction import Destruction
from trustauthority.services.holders import HolderService
from trustauthority.services.keyadmin import KeyAdministration
from trustauthority.services.keyproviders import KeyProviderService
from trustauthority.services.keyroll import KeyRollService
from trustauthority.services.keys import KeyService
from trustauthority.services.releasepolicies import ReleasePolicyService
from trustauthority.services.rewrap import RewrapService, work_quietly
from trustauthority.settings import Settings
from trustauthority.v1 import keyadmin_pb2_grpc, keyprovider_pb2_grpc

POLL_S = 5.0
"""How often a process looks for jobs that another one began or left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRole:
    """Services of the key role."""

    store: Store
    room: KeyRoom
    journal: Journal
    keys: KeyService
    providers: KeyProviderService
    admin: KeyAdministration
    rewrap: RewrapService
    policies: ReleasePolicyService
    roll: KeyRollService
    destruction: Destruction
    import_public: bytes
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a job was begun here: nobody waits for the next look."""

    def register(self, server: grpc.aio.Server) -> None:
        """Add its servicers."""
        keyprovider_pb2_grpc.add_KeyProviderServiceServicer_to_server(
            KeyProviderRpc(self.keys, self.admin, self.policies), server
        )
        keyadmin_pb2_grpc.add_KeyAdministrationServiceServicer_to_server(
            KeyAdminRpc(
                self.admin,
                self.providers,
                self.rewrap,
                HolderService(self.store),
                self.policies,
                self.roll,
                self.wake,
                self.import_public,
            ),
            server,
        )

    async def work(self, stopping: asyncio.Event) -> None:
        """Do jobs until the process stops."""
        while not stopping.is_set():
            self.wake.clear()
            await work_quietly(self.rewrap, self.journal)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.wake.wait(), timeout=POLL_S)


def open_key_role(
    settings: Settings, files: KeyFiles, store: Store, room: KeyRoom, journal: Journal
) -> KeyRole:
    """The services over a store and a key room."""
    providers = KeyProviderService(store, room)
    tombstones = FileTombstones(settings.state_dir / TOMBSTONES, files.audit_key())
    delay_ms = 1_000 * settings.key.destroy_delay_s
    return KeyRole(
        store=store,
        room=room,
        journal=journal,
        keys=KeyService(store, room, files.report_keys(), journal),
        providers=providers,
        admin=KeyAdministration(store, room, providers, destroy_delay_ms=delay_ms),
        rewrap=RewrapService(store, room, providers, journal),
        policies=ReleasePolicyService(store),
        roll=KeyRollService(store, room, providers),
        destruction=Destruction(store, tombstones),
        import_public=files.import_public(),
    )
