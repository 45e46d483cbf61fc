"""BreakGlassService: a host gets a VM once, whatever its verdict says. Served by the key role."""

from collections.abc import Sequence
from typing import Any

from trustauthority.model.vm import BreakGlassEntry
from trustauthority.ports import Store
from trustauthority.rpc import convert
from trustauthority.rpc.interceptor import current_caller
from trustauthority.services.break_glass import BreakGlassService
from trustauthority.v1 import breakglass_pb2 as pb
from trustauthority.v1 import breakglass_pb2_grpc
from trustauthority.v1.admin_pb2 import HEALTH_WARNING, HealthItem


class BreakGlassRpc(breakglass_pb2_grpc.BreakGlassServiceServicer):
    """Opened, listed, closed."""

    def __init__(self, service: BreakGlassService, store: Store) -> None:
        self._service = service
        self._store = store

    async def OpenBreakGlass(
        self, request: pb.OpenBreakGlassRequest, context: Any
    ) -> pb.OpenBreakGlassResponse:
        """Let a host have a VM once."""
        entry = await self._service.open(
            convert.name(request.vm_id, "vm_id"),
            convert.name(request.host, "host"),
            reason=convert.text(request.why, "why"),
            ttl_ms=request.ttl_ms,
            by=current_caller().name,
        )
        return pb.OpenBreakGlassResponse(glass=(await self._messages([entry]))[0])

    async def ListBreakGlasses(
        self, request: pb.ListBreakGlassesRequest, context: Any
    ) -> pb.ListBreakGlassesResponse:
        """Those that are open, or all."""
        entries, _ = await self._service.listed(every=request.all)
        return pb.ListBreakGlassesResponse(glasses=await self._messages(entries))

    async def CloseBreakGlass(
        self, request: pb.CloseBreakGlassRequest, context: Any
    ) -> pb.CloseBreakGlassResponse:
        """End one before its time."""
        glass_id = convert.request_id(request.glass_id, "glass_id")
        entry = await self._service.close(glass_id, by=current_caller().name)
        return pb.CloseBreakGlassResponse(glass=(await self._messages([entry]))[0])

    async def _messages(self, entries: Sequence[BreakGlassEntry]) -> list[pb.BreakGlass]:
        return await break_glass_messages(self._store, entries)


async def break_glass_messages(
    store: Store, entries: Sequence[BreakGlassEntry]
) -> list[pb.BreakGlass]:
    """Break-glasses with the labels of their hosts."""
    messages = []
    async with store.snapshot() as tx:
        for entry in entries:
            host = await tx.hosts.get(entry.host_id)
            messages.append(
                pb.BreakGlass(
                    glass_id=entry.glass_id,
                    vm_id=entry.vm_id,
                    host_id=entry.host_id,
                    host_name="" if host is None else host.name,
                    reason=entry.reason,
                    opened_by=entry.opened_by,
                    opened_at=convert.timestamp(entry.opened_at_ms),
                    expires_at=convert.timestamp(entry.expires_ms),
                    closed_at=convert.timestamp(entry.closed_at_ms),
                    closed_by=entry.closed_by,
                    used_by=entry.used_by or "",
                    grant_epoch=entry.grant_epoch,
                    open=entry.is_open(tx.now_ms),
                )
            )
    return messages


async def open_break_glasses(store: Store, vm: str = "") -> list[pb.BreakGlass]:
    """Those that are open now, of one VM or of all."""
    entries, _ = await BreakGlassService(store).listed(every=False)
    return await break_glass_messages(store, [e for e in entries if vm in {"", e.vm_id}])


async def break_glass_health(store: Store) -> Sequence[HealthItem]:
    """A warning for each that is open."""
    return [
        HealthItem(
            name="break-glass",
            health=HEALTH_WARNING,
            detail=f"{glass.host_name or glass.host_id} may have VM {glass.vm_id} whatever its"
            f" verdict says, until {glass.expires_at.ToDatetime():%Y-%m-%d %H:%M:%SZ}"
            f" ({glass.reason}; opened by {glass.opened_by}{', used' if glass.used_by else ''}):"
            f" ta key break-glass close {glass.glass_id}",
        )
        for glass in await open_break_glasses(store)
    ]
