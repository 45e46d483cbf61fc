"""Wire the roles of one process: store, services, listeners. Nothing here knows of signals or systemd.

What comes from outside (clock, journal, key room, limits) is an argument, so that tests compose the
same process with others; nobody else does.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from cryptography.hazmat.primitives import serialization
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from trustauthority.adapters.keyfiles import ADMIN_CA, CHALLENGE_KEY, HOST_CA, KeyFiles
from trustauthority.adapters.sql.store import open_store
from trustauthority.errors import ConfigurationInvalid
from trustauthority.main.certificates import certificate_health
from trustauthority.main.keyrole import KeyRole, open_key_role
from trustauthority.main.survival import Survival, child_room, register_survival
from trustauthority.ports import Clock, Journal, KeyRoom, Store
from trustauthority.rpc.administration import AuditRpc, HealthProbe, IdentityRpc, StatusRpc
from trustauthority.rpc.attestation import AttestationRpc, EnrolmentRpc
from trustauthority.rpc.authorize import Listener
from trustauthority.rpc.clusters import ClusterRpc
from trustauthority.rpc.convert_keys import HEALTH
from trustauthority.rpc.hosts import HostRpc, ReportRpc
from trustauthority.rpc.identity import CallerResolver, TrustRoots
from trustauthority.rpc.interceptor import CallInterceptor
from trustauthority.rpc.keyprovider import VmRpc
from trustauthority.rpc.limits import PeerLimits
from trustauthority.rpc.placement import PlacementRpc
from trustauthority.rpc.watch import Watchers, tell_of_orders
from trustauthority.services.attestation import AttestationService
from trustauthority.services.audit import AuditService
from trustauthority.services.baselines import BaselineService
from trustauthority.services.catalogue import CatalogueService
from trustauthority.services.enrolment import EnrolmentService
from trustauthority.services.follow import Follower
from trustauthority.services.hosts import HostService
from trustauthority.services.identities import IdentityService
from trustauthority.services.keyproviders import KeyProviderService
from trustauthority.services.placement import PlacementService
from trustauthority.services.secrets import AuthoritySecrets
from trustauthority.settings import Settings
from trustauthority.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    attestation_pb2,
    attestation_pb2_grpc,
    keyadmin_pb2,
    keyprovider_pb2,
    keyprovider_pb2_grpc,
    placement_pb2,
    placement_pb2_grpc,
)

VERSION = "0.1.0"
DRAIN_S = 5.0
MAX_CANCELLATIONS = 5

MAX_MESSAGE_BYTES = 1024 * 1024
"""Logs come in chunks, so that no message has to be larger (N41)."""
OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    (
        "grpc.compression_enabled_algorithms_bitset",
        1,
    ),  # identity only: keys and compression don't mix
    ("grpc.server_handshake_timeout_ms", 3_000),
    ("grpc.max_concurrent_streams", 128),
    ("grpc.max_connection_idle_ms", 15 * 60_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.so_reuseport", 0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a process needs of the world."""

    clock: Clock
    journal: Journal
    room: KeyRoom | None = None
    """Instead of child processes and a KMS; whoever passes one knows that it protects nothing."""
    limits: PeerLimits = field(default_factory=PeerLimits)
    drain_s: float = DRAIN_S


@dataclass(slots=True)
class Process:
    """What the roles of one process share."""

    settings: Settings
    roles: frozenset[str]
    files: KeyFiles
    store: Store
    journal: Journal
    keys: AuthoritySecrets
    audit: AuditService
    limits: PeerLimits
    follower: Follower = field(init=False)
    watchers: Watchers = field(default_factory=Watchers)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    room: KeyRoom | None = None
    key_role: KeyRole | None = None
    probes: list[HealthProbe] = field(default_factory=list)
    at_start: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    servers: list[grpc.aio.Server] = field(default_factory=list)
    checkers: list[health.aio.HealthServicer] = field(default_factory=list)
    addresses: dict[str, str] = field(default_factory=dict)
    """Where the listeners really listen: ``enrol``, ``mutual``."""

    def __post_init__(self) -> None:
        self.follower = Follower(store=self.store, stopping=self.stopping)


@asynccontextmanager
async def running(
    settings: Settings, roles: frozenset[str], surroundings: Surroundings
) -> AsyncIterator[Process]:
    """Open the listeners of some roles; drain and close them when the block is left.

    Raises:
        ConfigurationInvalid, InsecureFile, StoreUnavailable: nothing is served.
    """
    files = KeyFiles(settings.state_dir)
    files.require_private()
    keys = load_secrets(settings, files, roles)
    store = await open_store(files.database, surroundings.clock, must_exist=True)
    process = Process(
        settings=settings,
        roles=roles,
        files=files,
        store=store,
        journal=surroundings.journal,
        keys=keys,
        audit=AuditService(store, keys, surroundings.journal),
        limits=surroundings.limits,
        room=surroundings.room,
    )
    working: asyncio.Task[None] | None = None
    try:
        if "key" in process.roles:
            working = await _begin_key_role(process)
        await _open_listeners(process)
        yield process
    finally:
        if working is not None:
            working.cancel()
            await asyncio.wait({working})
        await drain(process, surroundings.drain_s)
        if process.room is not None:
            await process.room.close()
        await process.store.close()
        await _end_stuck_closings()


async def _begin_key_role(process: Process) -> asyncio.Task[None]:
    room = process.room = process.room or child_room(process.settings, process.files)
    role = process.key_role = open_key_role(
        process.settings, process.files, process.store, room, process.journal
    )
    await role.destruction.replay()  # before anything is released
    return asyncio.create_task(role.work(process.stopping))


async def _end_stuck_closings() -> None:
    """End the closings of connections that can never end by themselves.

    A call that is cancelled twice inside of a statement leaves SQLAlchemy's task of this name waiting
    for an aiosqlite thread that was stopped already; asyncio.run would wait for it for ever, since
    one cancellation does not end it.
    """
    for task in asyncio.all_tasks():
        coroutine = task.get_coro()
        if getattr(coroutine, "__name__", "") == "_terminate_graceful_close":
            for _ in range(MAX_CANCELLATIONS):
                task.cancel()
                await asyncio.wait({task}, timeout=0.05)


async def drain(process: Process, drain_s: float) -> None:
    """Say that we stop, end the endless streams, and let the other calls finish for some seconds."""
    for servicer in process.checkers:
        await servicer.enter_graceful_shutdown()
    process.stopping.set()
    process.watchers.close()
    await asyncio.gather(*(server.stop(drain_s) for server in process.servers), *process.tasks)


def load_secrets(settings: Settings, files: KeyFiles, roles: frozenset[str]) -> AuthoritySecrets:
    """Read the keys that these roles need, and no others."""
    attest = "attest" in roles
    return AuthoritySecrets(
        origin=settings.origin,
        authority_ca_sha256=files.authority_ca_sha256(),
        audit_key=files.audit_key(),
        challenge_keys={1: files.secret(CHALLENGE_KEY)} if attest else {},
        host_ca=files.authority(HOST_CA) if attest else None,
        admin_ca=files.authority(ADMIN_CA) if "admin" in roles else None,
        report_key=files.report_key() if attest else None,
        release_public=files.release_public() if attest else None,
    )


async def _open_listeners(process: Process) -> None:
    listen = process.settings.listen
    if "attest" in process.roles:
        server = _server(process, Listener.ENROL)
        enrolment = _enrolment_rpc(process)
        attestation_pb2_grpc.add_EnrolmentServiceServicer_to_server(enrolment, server)
        await _start(process, server, listen.enrol, "server-attest", mutual=False)
    server = _server(process, Listener.MUTUAL)
    names = _register(process, server)
    if process.key_role is not None:
        names += _register_key_role(process, server, process.key_role)
    for step in process.at_start:
        await step()
    await _register_standard(process, server, names)
    own = "server-key" if process.roles == {"key"} else "server-attest"
    await _start(process, server, listen.mutual_for(process.roles), own, mutual=True)


def _server(process: Process, listener: Listener) -> grpc.aio.Server:
    roots = _roots(process.files) if listener is Listener.MUTUAL else None
    interceptor = CallInterceptor(
        CallerResolver(process.store, roots, listener),
        process.audit,
        process.journal,
        process.limits,
    )
    return grpc.aio.server(interceptors=(interceptor,), options=OPTIONS)


async def _start(
    process: Process, server: grpc.aio.Server, address: str, name: str, *, mutual: bool
) -> None:
    files = process.files
    credentials = grpc.ssl_server_credentials(
        [(files.secret(name), files.path(name, "crt").read_bytes())],
        root_certificates=_roots(files).pem if mutual else None,
        require_client_auth=mutual,
    )
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError:
        port = 0
    if port == 0:
        raise ConfigurationInvalid(f"can't listen on {address}: is it in use?", field="listen")
    await server.start()
    process.servers.append(server)
    process.addresses["mutual" if mutual else "enrol"] = f"{address.rpartition(':')[0]}:{port}"


def _roots(files: KeyFiles) -> TrustRoots:
    return TrustRoots(host_ca=files.certificate(HOST_CA), admin_ca=files.certificate(ADMIN_CA))


def _enrolment_rpc(process: Process) -> EnrolmentRpc:
    release_public = process.keys.release_public
    if release_public is None:
        raise ConfigurationInvalid("the attest role needs the release key's public part")
    spki = release_public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    service = EnrolmentService(process.store, process.keys)
    return EnrolmentRpc(service, process.audit, spki)


def _register(process: Process, server: grpc.aio.Server) -> list[str]:
    """Register the services of the attest, placement and admin roles."""
    store, roles, names = process.store, process.roles, []
    hosts = HostService(store)
    if "attest" in roles:
        attestation = AttestationService(
            store, process.keys, process.journal, process.settings.node
        )
        attestation_pb2_grpc.add_AttestationServiceServicer_to_server(
            AttestationRpc(
                attestation, hosts, process.watchers, EnrolmentService(store, process.keys)
            ),
            server,
        )
        names.append(_full_name(attestation_pb2, "AttestationService"))
        hints = tell_of_orders(process.follower, process.watchers, process.journal)
        process.tasks.append(asyncio.create_task(hints))
    if "placement" in roles:
        placement_pb2_grpc.add_PlacementServiceServicer_to_server(
            PlacementRpc(PlacementService(store), store, process.follower), server
        )
        names.append(_full_name(placement_pb2, "PlacementService"))
    if "admin" in roles:
        names += _register_admin(process, server, hosts)
    return names


def _register_admin(process: Process, server: grpc.aio.Server, hosts: HostService) -> list[str]:
    store = process.store
    admin_pb2_grpc.add_ClusterServiceServicer_to_server(
        ClusterRpc(CatalogueService(store), BaselineService(store), store), server
    )
    admin_pb2_grpc.add_HostServiceServicer_to_server(
        HostRpc(hosts, process.watchers, store), server
    )
    admin_pb2_grpc.add_ReportServiceServicer_to_server(
        ReportRpc(hosts, process.files.report_keys()), server
    )
    admin_pb2_grpc.add_IdentityServiceServicer_to_server(
        IdentityRpc(IdentityService(store, process.keys)), server
    )
    admin_pb2_grpc.add_AuditServiceServicer_to_server(
        AuditRpc(process.audit, process.stopping), server
    )
    admin_pb2_grpc.add_StatusServiceServicer_to_server(_status(process), server)
    if "key" not in process.roles:
        keyprovider_pb2_grpc.add_VmServiceServicer_to_server(
            VmRpc(PlacementService(store), store, process.follower), server
        )
    services = ("Cluster", "Host", "Report", "Identity", "Audit", "Status")
    return [_full_name(admin_pb2, f"{each}Service") for each in services]


def _register_key_role(process: Process, server: grpc.aio.Server, role: KeyRole) -> list[str]:
    role.register(server)
    keyprovider_pb2_grpc.add_VmServiceServicer_to_server(
        VmRpc(PlacementService(process.store), process.store, process.follower), server
    )
    process.probes.append(lambda: _kms_health(role.providers))
    names = [_full_name(keyprovider_pb2, f"{each}Service") for each in ("KeyProvider", "Vm")]
    names.append(_full_name(keyadmin_pb2, "KeyAdministrationService"))
    parts = Survival(store=process.store, room=role.room, settings=process.settings)
    names += register_survival(parts, server, probes=process.probes, at_start=process.at_start)
    if "admin" not in process.roles:
        admin_pb2_grpc.add_StatusServiceServicer_to_server(_status(process), server)
        names.append(_full_name(admin_pb2, "StatusService"))
    return names


def _status(process: Process) -> StatusRpc:
    process.probes.append(lambda: certificate_health(process.files))
    return StatusRpc(
        process.store, version=VERSION, roles=sorted(process.roles), probes=process.probes
    )


async def _kms_health(keys: KeyProviderService) -> Sequence[admin_pb2.HealthItem]:
    return [
        admin_pb2.HealthItem(
            name=f"kms {provider}", health=HEALTH[health.state], detail=health.detail
        )
        for provider, health in (await keys.health()).items()
    ]


async def _register_standard(
    process: Process, server: grpc.aio.Server, names: Sequence[str]
) -> None:
    """gRPC health per service and for the whole, and reflection."""
    servicer = health.aio.HealthServicer()
    process.checkers.append(servicer)
    for name in ("", *names):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)


def _full_name(module: Any, service: str) -> str:
    return str(module.DESCRIPTOR.services_by_name[service].full_name)
