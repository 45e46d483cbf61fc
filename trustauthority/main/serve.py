"""``trustauthority serve``: wire the roles, open the listeners, drain on SIGTERM."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from cryptography.hazmat.primitives import serialization
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from trustauthority.adapters.clock import SystemClock
from trustauthority.adapters.keyfiles import ADMIN_CA, CHALLENGE_KEY, HOST_CA, RELEASE_KEY, KeyFiles
from trustauthority.adapters.keyroom import ChildKeyRoom, KeyRoomSettings
from trustauthority.adapters.kms.settings import KmipSettings
from trustauthority.adapters.sql.store import open_store
from trustauthority.errors import ConfigurationInvalid
from trustauthority.ports import Journal, KeyRoom, Store
from trustauthority.rpc.administration import AuditRpc, HealthProbe, IdentityRpc, StatusRpc
from trustauthority.rpc.attestation import AttestationRpc, EnrolmentRpc
from trustauthority.rpc.authorize import Listener
from trustauthority.rpc.clusters import ClusterRpc
from trustauthority.rpc.hosts import HostRpc, ReportRpc
from trustauthority.rpc.identity import CallerResolver, TrustRoots
from trustauthority.rpc.interceptor import CallInterceptor
from trustauthority.rpc.keyprovider import KeyProviderRpc, VmRpc
from trustauthority.rpc.limits import PeerLimits
from trustauthority.rpc.placement import PlacementRpc
from trustauthority.rpc.watch import Watchers
from trustauthority.services.attestation import AttestationService
from trustauthority.services.audit import AuditService
from trustauthority.services.baselines import BaselineService
from trustauthority.services.catalogue import CatalogueService
from trustauthority.services.enrolment import EnrolmentService
from trustauthority.services.hosts import HostService
from trustauthority.services.identities import IdentityService
from trustauthority.services.keys import KeyService
from trustauthority.services.placement import PlacementService
from trustauthority.services.secrets import AuthoritySecrets
from trustauthority.settings import Settings
from trustauthority.telemetry.journal import StructlogJournal, configure_logging
from trustauthority.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    attestation_pb2,
    attestation_pb2_grpc,
    keyprovider_pb2,
    keyprovider_pb2_grpc,
    placement_pb2,
    placement_pb2_grpc,
)

ROLES = frozenset({"attest", "key", "placement", "admin"})
VERSION = "0.1.0"
DRAIN_S = 5

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


def parse_roles(text: str) -> frozenset[str]:
    """Roles from the command line.

    Raises:
        ConfigurationInvalid: an unknown one, or none.
    """
    roles = frozenset(each.strip() for each in text.split(",") if each.strip())
    if not roles or not roles <= ROLES:
        raise ConfigurationInvalid(
            f"--roles takes some of {', '.join(sorted(ROLES))}", field="roles"
        )
    return roles


@dataclass(slots=True)
class _Process:
    """What the roles of one process share."""

    settings: Settings
    roles: frozenset[str]
    files: KeyFiles
    store: Store
    journal: Journal
    keys: AuthoritySecrets
    audit: AuditService
    watchers: Watchers = field(default_factory=Watchers)
    limits: PeerLimits = field(default_factory=PeerLimits)
    room: KeyRoom | None = None
    probes: list[HealthProbe] = field(default_factory=list)
    servers: list[grpc.aio.Server] = field(default_factory=list)


async def serve_roles(settings: Settings, roles: frozenset[str]) -> None:
    """Serve until SIGTERM or SIGINT."""
    configure_logging()
    journal = StructlogJournal(node=settings.node, roles=",".join(sorted(roles)))
    files = KeyFiles(settings.state_dir)
    keys = load_secrets(settings, files, roles)
    store = await open_store(files.database, SystemClock(), must_exist=True)
    process = _Process(
        settings=settings,
        roles=roles,
        files=files,
        store=store,
        journal=journal,
        keys=keys,
        audit=AuditService(store, keys, journal),
    )
    try:
        await _open_listeners(process)
        journal.record("serving", listeners=", ".join(_addresses(process)))
        notify("READY=1")
        await _until_told(process)
    finally:
        notify("STOPPING=1")
        await asyncio.gather(*(server.stop(DRAIN_S) for server in process.servers))
        if process.room is not None:
            await process.room.close()
        await store.close()
        journal.record("stopped")


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


async def _open_listeners(process: _Process) -> None:
    listen = process.settings.listen
    if "attest" in process.roles:
        server = _server(process, Listener.ENROL)
        enrolment = _enrolment_rpc(process)
        attestation_pb2_grpc.add_EnrolmentServiceServicer_to_server(enrolment, server)
        await _start(process, server, listen.enrol, "server-attest", mutual=False)
    server = _server(process, Listener.MUTUAL)
    names = _register(process, server)
    if "key" in process.roles:
        names += _register_key_role(process, server)
    await _register_standard(server, names)
    own = "server-key" if process.roles == {"key"} else "server-attest"
    await _start(process, server, listen.mutual_for(process.roles), own, mutual=True)


def _server(process: _Process, listener: Listener) -> grpc.aio.Server:
    roots = _roots(process.files) if listener is Listener.MUTUAL else None
    interceptor = CallInterceptor(
        CallerResolver(process.store, roots, listener),
        process.audit,
        process.journal,
        process.limits,
    )
    return grpc.aio.server(interceptors=(interceptor,), options=OPTIONS)


async def _start(
    process: _Process, server: grpc.aio.Server, address: str, name: str, *, mutual: bool
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


def _roots(files: KeyFiles) -> TrustRoots:
    return TrustRoots(host_ca=files.certificate(HOST_CA), admin_ca=files.certificate(ADMIN_CA))


def _enrolment_rpc(process: _Process) -> EnrolmentRpc:
    release_public = process.keys.release_public
    if release_public is None:
        raise ConfigurationInvalid("the attest role needs the release key's public part")
    spki = release_public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    service = EnrolmentService(process.store, process.keys)
    return EnrolmentRpc(service, process.audit, spki)


def _register(process: _Process, server: grpc.aio.Server) -> list[str]:
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
    if "placement" in roles:
        placement_pb2_grpc.add_PlacementServiceServicer_to_server(
            PlacementRpc(PlacementService(store), store), server
        )
        names.append(_full_name(placement_pb2, "PlacementService"))
    if "admin" in roles:
        names += _register_admin(process, server, hosts)
    return names


def _register_admin(process: _Process, server: grpc.aio.Server, hosts: HostService) -> list[str]:
    store = process.store
    admin_pb2_grpc.add_ClusterServiceServicer_to_server(
        ClusterRpc(CatalogueService(store), BaselineService(store), store), server
    )
    admin_pb2_grpc.add_HostServiceServicer_to_server(HostRpc(hosts, process.watchers), server)
    admin_pb2_grpc.add_ReportServiceServicer_to_server(
        ReportRpc(hosts, process.files.report_keys()), server
    )
    admin_pb2_grpc.add_IdentityServiceServicer_to_server(
        IdentityRpc(IdentityService(store, process.keys)), server
    )
    admin_pb2_grpc.add_AuditServiceServicer_to_server(AuditRpc(process.audit), server)
    admin_pb2_grpc.add_StatusServiceServicer_to_server(_status(process), server)
    if "key" not in process.roles:
        keyprovider_pb2_grpc.add_VmServiceServicer_to_server(
            VmRpc(PlacementService(store), store), server
        )
    services = ("Cluster", "Host", "Report", "Identity", "Audit", "Status")
    return [_full_name(admin_pb2, f"{each}Service") for each in services]


def _register_key_role(process: _Process, server: grpc.aio.Server) -> list[str]:
    settings, store = process.settings.key, process.store
    room = ChildKeyRoom(
        KeyRoomSettings(
            providers={
                name: KmipSettings(**provider.model_dump())
                for name, provider in settings.providers.items()
            },
            release_key=process.files.path(RELEASE_KEY),
            batch=settings.batch,
            timeout_s=settings.timeout_s,
        )
    )
    process.room = room
    keys = KeyService(store, room, process.files.report_keys(), process.journal)
    process.probes.append(lambda: _kms_health(keys))
    keyprovider_pb2_grpc.add_KeyProviderServiceServicer_to_server(KeyProviderRpc(keys), server)
    keyprovider_pb2_grpc.add_VmServiceServicer_to_server(
        VmRpc(PlacementService(store), store), server
    )
    names = [_full_name(keyprovider_pb2, f"{each}Service") for each in ("KeyProvider", "Vm")]
    if "admin" not in process.roles:
        admin_pb2_grpc.add_StatusServiceServicer_to_server(_status(process), server)
        names.append(_full_name(admin_pb2, "StatusService"))
    return names


def _status(process: _Process) -> StatusRpc:
    return StatusRpc(
        process.store, version=VERSION, roles=sorted(process.roles), probes=process.probes
    )


async def _kms_health(keys: KeyService) -> Sequence[admin_pb2.HealthItem]:
    good, detail = await keys.health()
    state = admin_pb2.HEALTH_OK if good else admin_pb2.HEALTH_ERROR
    return [admin_pb2.HealthItem(name="kms default", health=state, detail=detail)]


async def _register_standard(server: grpc.aio.Server, names: Sequence[str]) -> None:
    """gRPC health per service and for the whole, and reflection."""
    servicer = health.aio.HealthServicer()
    for name in ("", *names):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)


async def _until_told(process: _Process) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), timeout=10)
        notify("WATCHDOG=1")
        if "attest" in process.roles:
            async with process.store.transaction() as tx:
                await tx.enrolments.purge()


def _addresses(process: _Process) -> list[str]:
    listen, roles = process.settings.listen, process.roles
    found = [f"enrol {listen.enrol}"] if "attest" in roles else []
    return [*found, f"mutual {listen.mutual_for(roles)}"]


def _full_name(module: Any, service: str) -> str:
    return str(module.DESCRIPTOR.services_by_name[service].full_name)


def notify(state: str) -> None:
    """Tell systemd (sd_notify); nothing happens where there is none."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect(address)
        channel.sendall(state.encode())
