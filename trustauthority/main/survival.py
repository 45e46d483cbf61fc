"""Wire the key room, escrow and break-glass: for the day on which something is lost or broken."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import grpc

from trustauthority.adapters.keyfiles import ESCROW_KEY, IMPORT_KEY, RELEASE_KEY, KeyFiles
from trustauthority.adapters.keyroom import ChildKeyRoom, EscrowSettings, KeyRoomSettings
from trustauthority.adapters.kms.escrow import load_escrow_key
from trustauthority.adapters.kms.settings import provider_from_json
from trustauthority.errors import ConfigurationInvalid
from trustauthority.ports import EscrowRoom, KeyRoom, Store
from trustauthority.rpc.administration import HealthProbe
from trustauthority.rpc.breakglass import BreakGlassRpc, break_glass_health
from trustauthority.rpc.escrow import EscrowRpc
from trustauthority.services.break_glass import BreakGlassService
from trustauthority.services.escrow import EscrowService
from trustauthority.settings import Settings
from trustauthority.v1 import (
    admin_pb2,
    breakglass_pb2,
    breakglass_pb2_grpc,
    escrow_pb2,
    escrow_pb2_grpc,
)

NO_ESCROW = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Survival:
    """What escrow and break-glass are made of."""

    store: Store
    room: KeyRoom
    settings: Settings


def child_room(settings: Settings, files: KeyFiles) -> ChildKeyRoom:
    """The key room of the configuration: child processes in front of its KMSes."""
    role = settings.key
    return ChildKeyRoom(
        KeyRoomSettings(
            providers={
                name: provider_from_json(provider.model_dump())
                for name, provider in role.providers.items()
            },
            release_key=files.path(RELEASE_KEY),
            import_key=files.path(IMPORT_KEY),
            escrow=escrow_settings(settings, files),
            batch=role.batch,
            timeout_s=role.timeout_s,
        )
    )


def escrow_settings(settings: Settings, files: KeyFiles) -> EscrowSettings | None:
    """What the key room is told of the offline key, if one was chosen."""
    if settings.key.escrow == NO_ESCROW:
        return None
    return EscrowSettings(
        public_key=files.path(ESCROW_KEY, "pub"),
        key_id=settings.key.escrow,
        origin=settings.origin,
    )


def register_survival(
    parts: Survival,
    server: grpc.aio.Server,
    *,
    probes: list[HealthProbe],
    at_start: list[Callable[[], Awaitable[None]]],
) -> list[str]:
    """Register both services, what they say of their health, and what they do at start."""
    store, settings = parts.store, parts.settings
    if not isinstance(parts.room, EscrowRoom):
        raise ConfigurationInvalid("this key room does no escrow")
    escrow = EscrowService(
        store,
        parts.room,
        origin=settings.origin,
        key_id="" if settings.key.escrow == NO_ESCROW else settings.key.escrow,
    )
    at_start.append(escrow.note_key)
    probes.append(lambda: escrow_health(escrow, settings))
    probes.append(lambda: break_glass_health(store))
    escrow_pb2_grpc.add_EscrowServiceServicer_to_server(
        EscrowRpc(escrow, origin=settings.origin), server
    )
    breakglass_pb2_grpc.add_BreakGlassServiceServicer_to_server(
        BreakGlassRpc(BreakGlassService(store), store), server
    )
    modules = (escrow_pb2, breakglass_pb2)
    return [
        service.full_name
        for module in modules
        for service in module.DESCRIPTOR.services_by_name.values()
    ]


async def escrow_health(
    escrow: EscrowService, settings: Settings
) -> Sequence[admin_pb2.HealthItem]:
    """Whether the VMs would survive the loss of the KMS."""
    chosen = escrow_settings(settings, KeyFiles(settings.state_dir))
    if chosen is None:
        return [
            admin_pb2.HealthItem(
                name="escrow",
                health=admin_pb2.HEALTH_WARNING,
                detail="none: whoever loses the KMS loses every VM; trustauthority escrow-key",
            )
        ]
    try:
        load_escrow_key(chosen.public_key, chosen.key_id)
    except ConfigurationInvalid as error:
        return [
            admin_pb2.HealthItem(name="escrow", health=admin_pb2.HEALTH_ERROR, detail=error.message)
        ]
    missing, detail = await escrow.count_missing(), f"to key {chosen.key_id[:16]}"
    if missing:
        detail += f", without the keys of {missing} VMs: ta key escrow reseal"
    health = admin_pb2.HEALTH_WARNING if missing else admin_pb2.HEALTH_OK
    return [admin_pb2.HealthItem(name="escrow", health=health, detail=detail)]
