"""An authority in this process: real listeners on 127.0.0.1, real database, a clock and KMS of tests.

``initialised`` sets one up below a folder as ``trustauthority init`` does; ``Authority`` opens its
listeners on free ports. The key room is ``fakes.keyroom``, which says that it is a fake.
"""

import hashlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trustauthority.rpc  # isort: skip  # noqa: F401 - sets the TLS version before grpc is loaded

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fakes.clock import FakeClock
from fakes.keyroom import FakeKeyRoom, make_key_room
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from sqlalchemy import select

from support.stores import pending
from trustauthority.adapters.clock import SystemClock
from trustauthority.adapters.keyfiles import ADMIN_CA, HOST_CA, SERVER_CA, KeyFiles, private_pem
from trustauthority.adapters.sql import tables
from trustauthority.adapters.sql.store import SqlStore
from trustauthority.codec.tlog import Checkpoint, encode_checkpoint, encode_note
from trustauthority.main.compose import Process, Surroundings, running
from trustauthority.main.initialise import InitPlan, initialise
from trustauthority.model.catalogue import IdentityEntry, Role
from trustauthority.model.escrow import EscrowKey
from trustauthority.model.host import Admission
from trustauthority.ports import KeyRoom
from trustauthority.rpc.limits import PeerLimits
from trustauthority.services.certificates import CertificateAuthority
from trustauthority.settings import ListenSettings, Settings
from trustauthority.v1 import (
    admin_pb2,
    attestation_pb2,
    breakglass_pb2,
    escrow_pb2,
    keyadmin_pb2,
    keyprovider_pb2,
    placement_pb2,
)

ALL_ROLES = frozenset({"attest", "key", "placement", "admin"})
ORIGIN = "test.trustauthority.local"
PROTOCOL = (
    attestation_pb2,
    keyadmin_pb2,
    keyprovider_pb2,
    placement_pb2,
    admin_pb2,
    escrow_pb2,
    breakglass_pb2,
)
DAY_MS = 24 * 3_600_000
TIMEOUT_S = 10


# --- the protocol, by its descriptors --------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpc:
    """One call of the protocol."""

    service: str
    name: str
    request: type[Message]
    reply: type[Message]
    streams_requests: bool
    streams_replies: bool

    @property
    def path(self) -> str:
        """Its full method name."""
        return f"/trustauthority.v1.{self.service}/{self.name}"

    def __str__(self) -> str:
        return f"{self.service}.{self.name}"


def every_rpc() -> Iterator[Rpc]:
    """Every call that the protocol has."""
    for module in PROTOCOL:
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield Rpc(
                    service=service.name,
                    name=method.name,
                    request=GetMessageClass(method.input_type),
                    reply=GetMessageClass(method.output_type),
                    streams_requests=method.client_streaming,
                    streams_replies=method.server_streaming,
                )


RPCS = tuple(every_rpc())


@dataclass(slots=True)
class Answer:
    """What a call came to."""

    code: grpc.StatusCode
    text: str
    replies: list[Message]
    infos: list[error_details_pb2.ErrorInfo]
    retries: list[error_details_pb2.RetryInfo]
    trailing: dict[str, Any]

    @property
    def reason(self) -> str:
        """The reason of its one ErrorInfo; empty when it went well."""
        assert len(self.infos) <= 1, self.infos
        return self.infos[0].reason if self.infos else ""

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata of its ErrorInfo."""
        return dict(self.infos[0].metadata)

    @property
    def reply(self) -> Any:
        """Its one reply."""
        assert self.code is grpc.StatusCode.OK, (self.code, self.text, self.reason)
        (reply,) = self.replies
        return reply


async def call(
    channel: grpc.aio.Channel,
    rpc: Rpc,
    request: Message | bytes | None = None,
    *,
    metadata: Sequence[tuple[str, Any]] = (),
    timeout_s: float = TIMEOUT_S,
    first_only: bool = True,
    requests: Sequence[Message | bytes] | None = None,
    **options: Any,
) -> Answer:
    """Make a call with a message, or with bytes; of endless streams only the first reply is read."""
    sent = (
        list(requests) if requests is not None else [rpc.request() if request is None else request]
    )
    kind = ("stream" if rpc.streams_requests else "unary") + (
        "_stream" if rpc.streams_replies else "_unary"
    )
    stub = getattr(channel, kind)(
        rpc.path, request_serializer=_bytes, response_deserializer=rpc.reply.FromString
    )
    going = stub(
        _each(sent) if rpc.streams_requests else sent[0],
        timeout=timeout_s,
        metadata=tuple(metadata),
        **options,
    )
    replies: list[Message] = []
    try:
        if rpc.streams_replies:
            async for reply in going:
                replies.append(reply)
                if first_only:
                    going.cancel()
                    return Answer(grpc.StatusCode.OK, "", replies, [], [], {})
        else:
            replies.append(await going)
        trailing = dict(await going.trailing_metadata())
        return Answer(grpc.StatusCode.OK, "", replies, [], [], trailing)
    except grpc.aio.AioRpcError as error:
        infos, retries = details_of(error)
        trailing = dict(error.trailing_metadata())
        return Answer(error.code(), error.details() or "", replies, infos, retries, trailing)


def details_of(
    error: grpc.aio.AioRpcError,
) -> tuple[list[error_details_pb2.ErrorInfo], list[error_details_pb2.RetryInfo]]:
    """The rich details of an error."""
    infos, retries = [], []
    status = rpc_status.from_call(error)
    for packed in () if status is None else status.details:
        for kind, found in (
            (error_details_pb2.ErrorInfo, infos),
            (error_details_pb2.RetryInfo, retries),
        ):
            if packed.Is(kind.DESCRIPTOR):
                one = kind()
                packed.Unpack(one)
                found.append(one)
    return infos, retries


def _bytes(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


async def _each(messages: Sequence[Any]) -> AsyncIterator[Any]:
    for message in messages:
        yield message


# --- clients ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """A certificate chain and its key, PEM."""

    chain: bytes
    key: bytes = field(repr=False)


def self_signed(name: str = "nobody") -> Credentials:
    """A certificate that vouches for itself."""
    authority = _now_authority(name)
    return Credentials(chain=authority.pem, key=private_pem(authority.key))


def issue(
    authority: CertificateAuthority, path: str, *, now_ms: int, ttl_ms: int = DAY_MS
) -> Credentials:
    """A fresh key with a client certificate."""
    return certify(authority, ec.generate_private_key(ec.SECP256R1()), path, now_ms, ttl_ms)


def certify(
    authority: CertificateAuthority,
    key: ec.EllipticCurvePrivateKey,
    path: str,
    now_ms: int,
    ttl_ms: int = DAY_MS,
) -> Credentials:
    """A client certificate for a key."""
    chain = authority.issue_client(key.public_key(), path=path, now_ms=now_ms, ttl_ms=ttl_ms)
    return Credentials(chain=chain, key=private_pem(key))


def spki_sha256(credentials: Credentials) -> str:
    """How the authority knows the key of a certificate."""
    certificate = x509.load_pem_x509_certificate(credentials.chain)
    return hashlib.sha256(
        certificate.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    ).hexdigest()


def _now_authority(name: str) -> CertificateAuthority:
    from trustauthority.services.certificates import new_authority

    return new_authority(name, now_ms=SystemClock().now_ms(), ttl_ms=DAY_MS)


def foreign_authority() -> CertificateAuthority:
    """A CA with the names of ours and other keys."""
    return _now_authority(f"{ORIGIN} {ADMIN_CA}")


# --- the authority ---------------------------------------------------------------------------


class RecordingJournal:
    """The Journal port: remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.crashes: list[tuple[str, str, BaseException]] = []

    def record(self, event: str, **facts: str | float | bool) -> None:
        """Remember an event."""
        self.events.append((event, facts))

    def crash(self, error_id: str, where: str, error: BaseException) -> None:
        """Remember an unexpected exception."""
        self.crashes.append((error_id, where, error))

    def of(self, event: str) -> list[dict[str, Any]]:
        """The facts of all events of one name."""
        return [facts for name, facts in self.events if name == event]


def generous_limits() -> PeerLimits:
    """Limits that a sweep does not meet."""
    return PeerLimits(enrolment_per_second=100_000, calls_per_second=100_000)


async def initialised(folder: Path, *, escrow: EscrowKey | None = None, **changes: Any) -> Path:
    """Set up an authority below a folder, as ``trustauthority init`` does; returns its configuration."""
    values: dict[str, Any] = {
        "state_dir": folder / "authority",
        "node": "ta-1",
        "origin": ORIGIN,
        "listen": ListenSettings(
            enrol="127.0.0.1:0", mutual="127.0.0.1:0", key="127.0.0.1:0", admin="127.0.0.1:0"
        ),
    }
    settings = Settings.model_validate(values | changes)
    config = folder / "authority.toml"
    await initialise(
        InitPlan(
            settings=settings,
            config=config,
            server_names=("localhost", "127.0.0.1"),
            admin="admin",
            identity_dir=folder / "identity",
            server=settings.listen.mutual,
            escrow=escrow,
        )
    )
    return config


def real_time_clock() -> FakeClock:
    """A clock that begins now, since certificates are checked against the real one, and stands still."""
    return FakeClock(wall_ms=SystemClock().now_ms(), boot_ms=10_000_000)


@dataclass(slots=True)
class Authority:
    """A running authority and its callers."""

    folder: Path
    process: Process
    clock: Any
    journal: RecordingJournal
    room: KeyRoom
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    # --- callers -------------------------------------------------------------------------------

    @property
    def files(self) -> KeyFiles:
        """Its keys."""
        return self.process.files

    @property
    def store(self) -> SqlStore:
        """Its store."""
        assert isinstance(self.process.store, SqlStore)
        return self.process.store

    @property
    def admin(self) -> Credentials:
        """The first identity: every role."""
        folder = self.folder / "identity"
        return Credentials(
            chain=(folder / "admin.crt").read_bytes(), key=(folder / "admin.key").read_bytes()
        )

    def authority(self, name: str) -> CertificateAuthority:
        """One of its CAs."""
        return self.files.authority(name)

    async def identity(self, name: str, *roles: Role, registered: bool = True) -> Credentials:
        """A certificate of the admin CA, and (unless told otherwise) its registered key."""
        made = issue(self.authority(ADMIN_CA), f"/identity/{name}", now_ms=SystemClock().now_ms())
        if registered:
            async with self.store.transaction() as tx:
                assert await tx.identities.put(
                    IdentityEntry(
                        key_sha256=spki_sha256(made),
                        name=name,
                        roles=frozenset(roles),
                        revoked=False,
                        certificate_expires_ms=tx.now_ms + DAY_MS,
                        issued_by="test",
                    )
                )
        return made

    async def host(
        self, host_id: str, *, cluster: str = "lab", admission: Admission = Admission.ADMITTED
    ) -> Credentials:
        """A host row, with a certificate of the host CA for its key; it has no TPM behind it."""
        made = issue(self.authority(HOST_CA), f"/host/{host_id}", now_ms=SystemClock().now_ms())
        row = pending(
            host_id, cluster=cluster, name=f"name-{host_id}", tls_spki_sha256=spki_sha256(made)
        )
        async with self.store.transaction() as tx:
            assert await tx.hosts.enrol(row, admission)
        return made

    def channel(
        self,
        credentials: Credentials | None,
        listener: str = "mutual",
        options: Sequence[tuple[str, Any]] = (),
    ) -> grpc.aio.Channel:
        """A connection to a listener; closed with the authority."""
        secure = grpc.ssl_channel_credentials(
            root_certificates=self.files.path(SERVER_CA, "crt").read_bytes(),
            private_key=None if credentials is None else credentials.key,
            certificate_chain=None if credentials is None else credentials.chain,
        )
        channel = grpc.aio.secure_channel(
            self.process.addresses[listener],
            secure,
            options=(
                ("grpc.enable_http_proxy", 0),
                ("grpc.use_local_subchannel_pool", 1),
                *options,
            ),
        )
        self.channels.append(channel)
        return channel

    # --- state ---------------------------------------------------------------------------------

    async def dump(self, *without: str) -> dict[str, list[dict[str, Any]]]:
        """Every row of every table but ``authority``'s clock, and the tables that are named."""
        clock = ("high_water_ms", "hold_owners_until_ms", "boot_id", "least_offset_ms")
        found: dict[str, list[dict[str, Any]]] = {}
        async with self.store._engine.connect() as plain:
            connection = await plain.execution_options(reading=True)
            for table in tables.metadata.sorted_tables:
                if table.name in without:
                    continue
                rows = await connection.execute(select(table).order_by(*table.primary_key))
                found[table.name] = [dict(row) for row in rows.mappings()]
        for row in found.get("authority", ()):
            for column in clock:
                row.pop(column)
        return found


@asynccontextmanager
async def served(
    folder: Path,
    *,
    roles: frozenset[str] = ALL_ROLES,
    clock: Any = None,
    room: KeyRoom | None = None,
    limits: PeerLimits | None = None,
    drain_s: float = 0.2,
    settings: Settings | None = None,
) -> AsyncIterator[Authority]:
    """Serve the authority that was set up below a folder; one is set up when there is none."""
    from trustauthority.settings import load_settings

    config = folder / "authority.toml"
    if not config.exists():
        await initialised(folder)
    settings = settings or load_settings(config)
    files = KeyFiles(settings.state_dir)
    clock = clock or real_time_clock()
    room = room or fake_room(files)
    journal = RecordingJournal()
    around = Surroundings(
        clock=clock, journal=journal, room=room, limits=limits or generous_limits(), drain_s=drain_s
    )
    async with running(settings, roles, around) as process:
        authority = Authority(
            folder=folder, process=process, clock=clock, journal=journal, room=room
        )
        try:
            yield authority
        finally:
            for channel in authority.channels:
                await channel.close()


def named(name: str) -> Rpc:
    """The one call of that name."""
    (rpc,) = (rpc for rpc in RPCS if rpc.name == name)
    return rpc


# --- checkpoints -----------------------------------------------------------------------------


def note_of(
    authority: Authority,
    *,
    size: int,
    root: bytes,
    era: int = 0,
    origin: str = ORIGIN,
    key: Any = None,
) -> bytes:
    """A signed checkpoint as the authority, or somebody else, would make it."""
    key = key or authority.process.keys.audit_key
    text = encode_checkpoint(
        Checkpoint(origin=origin, size=size, root=root, extensions=(f"era {era}",))
    )
    public = key.public_key().public_bytes_raw()
    return encode_note(
        text=text, name=origin, public_key=public, signature=key.sign(text.encode())
    ).encode()


async def newest(authority: Authority) -> bytes:
    """The checkpoint that answers carry now."""
    return (await authority.process.audit.checkpoint()).encode()


async def halted(authority: Authority) -> str:
    """Why releases are stopped, or empty."""
    async with authority.store.snapshot() as tx:
        return await tx.audit.halted_because()


def fake_room(files: KeyFiles) -> FakeKeyRoom:
    """A key room without a KMS that signs with the authority's own release key."""
    return make_key_room(files.ec_key("release-key"))
