"""Connections to the authority: TLS 1.3, one pinned CA, a private key that stays in the TPM.

Stage: edge of the agent. Trusts the pinned CA certificate. Guarantees that no call reaches a server
whose certificate that CA did not issue, that each call carries the highest signed checkpoint and a
request id, that the checkpoint on each answer (errors too) is looked at before the answer is used,
and that every failure is a ``CallFailed``. Does not retry and does not decide.
``grpc.experimental`` is used here and nowhere else. Source: design sections 6.1 and 7.
"""

import asyncio
import hashlib
import secrets
import warnings
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import grpc
import grpc.experimental
import structlog

from hostagent.checkpoint import CheckpointMemory, Observation
from hostagent.failure import CallFailed, Failure, FailureKind, failure_of
from trustauthority.v1.attestation_pb2_grpc import AttestationServiceStub, EnrolmentServiceStub
from trustauthority.v1.keyprovider_pb2_grpc import KeyProviderServiceStub
from trustauthority.v1.placement_pb2_grpc import PlacementServiceStub

CHECKPOINT_KEY = "ta-checkpoint-bin"
REQUEST_ID_KEY = "ta-request-id"
MAX_MESSAGE = 4 * 1024 * 1024
"""Bytes of a reply: a check tree has tens of KiB."""

Metadata = tuple[tuple[str, str | bytes], ...]
DigestSigner = Callable[[bytes], bytes]
"""SHA-256 digest to DER ECDSA signature; called from threads of gRPC."""

_log = structlog.get_logger("hostagent.channel")
_Reply = TypeVar("_Reply")
_Call: TypeAlias = grpc.aio.UnaryUnaryCall[Any, _Reply] | grpc.aio.StreamUnaryCall[Any, _Reply]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """How the authority is recognised."""

    ca_pem: bytes
    server_name: str | None = None
    """Expected in the server certificate when it is not the name of the address."""


class EnrolmentLink:
    """A connection to the enrolment listener: the server shows a certificate, we show none."""

    def __init__(self, address: str, pinned: Pinned) -> None:
        credentials = grpc.ssl_channel_credentials(root_certificates=pinned.ca_pem)
        self._channel = _channel(address, credentials, pinned)
        self.enrolment = EnrolmentServiceStub(self._channel)

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def answer(self, call: _Call[_Reply]) -> _Reply:
        """The reply to a call. Raises CallFailed."""
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise CallFailed(failure_of(error)) from error
        except asyncio.CancelledError as cancelled:
            raise _closed_under_us(cancelled) from cancelled

    def metadata(self, request_id: str | None = None) -> Metadata:
        """What a call carries beside its message."""
        return ((REQUEST_ID_KEY, request_id or new_request_id()),)


class AuthorityLink:
    """Kept connections over mutual TLS, one per address."""

    def __init__(
        self,
        *,
        mtls: str,
        key: str,
        placement: str,
        pinned: Pinned,
        certificate_chain: bytes,
        sign: DigestSigner,
        checkpoints: CheckpointMemory,
    ) -> None:
        credentials = _mutual(pinned.ca_pem, certificate_chain, sign)
        self._checkpoints = checkpoints
        self._channels = {
            address: _channel(address, credentials, pinned) for address in {mtls, key, placement}
        }
        self.attestation = AttestationServiceStub(self._channels[mtls])
        self.keys = KeyProviderServiceStub(self._channels[key])
        self.placement = PlacementServiceStub(self._channels[placement])

    async def close(self, grace_s: float | None = None) -> None:
        """Close the connections, after at most ``grace_s`` for calls that are under way."""
        for channel in self._channels.values():
            await channel.close(grace_s)

    def metadata(self, request_id: str | None = None) -> Metadata:
        """What a call carries beside its message: request id and the highest checkpoint."""
        mine: Metadata = ((REQUEST_ID_KEY, request_id or new_request_id()),)
        note = self._checkpoints.note
        return (*mine, (CHECKPOINT_KEY, note)) if note else mine

    async def answer(self, call: _Call[_Reply]) -> _Reply:
        """The reply to a call, after its checkpoint was looked at. Raises CallFailed."""
        try:
            reply = await call
        except grpc.aio.AioRpcError as error:
            self.observe(error.initial_metadata(), error.trailing_metadata())
            raise CallFailed(failure_of(error)) from error
        except asyncio.CancelledError as cancelled:
            raise _closed_under_us(cancelled) from cancelled
        self.observe(await call.initial_metadata(), await call.trailing_metadata())
        return reply

    async def pushed(self, stream: grpc.aio.UnaryStreamCall[Any, _Reply]) -> AsyncIterator[_Reply]:
        """What a server stream says until it ends. Raises CallFailed."""
        try:
            async for said in stream:
                yield said
        except grpc.aio.AioRpcError as error:
            raise CallFailed(failure_of(error)) from error
        except asyncio.CancelledError as cancelled:
            raise _closed_under_us(cancelled) from cancelled

    def observe(self, *metadata: Iterable[tuple[str, str | bytes]] | None) -> None:
        """Look at the checkpoint of an answer. Raises CallFailed on a split view."""
        for pairs in metadata:
            for key, value in pairs or ():
                if key == CHECKPOINT_KEY and isinstance(value, bytes):
                    self._observe(value)

    def _observe(self, note: bytes) -> None:
        try:
            seen = self._checkpoints.observe(note)
        except OSError as failure:  # a full disk must not end leases; memory has it until a restart
            _log.error("checkpoint-not-stored", detail=str(failure))
            return
        if seen is Observation.INVALID:
            _log.warning("checkpoint-not-kept", reason="not signed by the pinned audit key")
        if seen is Observation.SPLIT_VIEW:
            detail = "two signed audit checkpoints of one size differ: both are kept as proof"
            raise CallFailed(
                Failure(kind=FailureKind.ROLLED_BACK, reason="SPLIT_VIEW", detail=detail)
            )


def new_request_id() -> str:
    """An unguessable request id: 22 characters of A-Z a-z 0-9 _ -."""
    return secrets.token_urlsafe(16)


def _channel(
    address: str, credentials: grpc.ChannelCredentials, pinned: Pinned
) -> grpc.aio.Channel:
    options: list[tuple[str, str | int]] = [
        ("grpc.max_receive_message_length", MAX_MESSAGE),
        ("grpc.enable_http_proxy", 0),
        # not more often than servers take for granted (five minutes without data)
        ("grpc.keepalive_time_ms", 310_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.max_reconnect_backoff_ms", 10_000),
        ("grpc.primary_user_agent", "trustauthority-hostagent"),
        # a retry is the state machine's business, with the request id it keeps
        ("grpc.enable_retries", 0),
    ]
    if pinned.server_name is not None:
        options.append(("grpc.ssl_target_name_override", pinned.server_name))
    return grpc.aio.secure_channel(address, credentials, options=options)


def _mutual(ca_pem: bytes, chain: bytes, sign: DigestSigner) -> grpc.ChannelCredentials:
    algorithms = grpc.experimental.PrivateKeySignatureAlgorithm

    def sign_in_tpm(data: bytes, algorithm: object, _on_complete: object) -> bytes:
        if algorithm != algorithms.ECDSA_SECP256R1_SHA256:
            raise ValueError(f"the TLS identity does not sign with {algorithm}")
        return sign(hashlib.sha256(data).digest())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", grpc.experimental.ExperimentalApiWarning)
        credentials: grpc.ChannelCredentials = (
            grpc.experimental.ssl_channel_credentials_with_custom_signer(
                private_key_sign_fn=sign_in_tpm,
                root_certificates=ca_pem,
                certificate_chain=chain,
            )
        )
    return credentials


def _closed_under_us(cancelled: asyncio.CancelledError) -> CallFailed:
    """A call ends as cancelled when its channel is closed; that is no wish to end the caller.

    Raises CancelledError when it is one.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise cancelled
    return CallFailed(Failure(kind=FailureKind.NO_ANSWER, reason="CONNECTION_CLOSED", exit_code=5))
