"""Encrypt etcd's data keys with a shared secret that this host holds under a lease.

Stage: edge of the agent, a gRPC server on a unix socket of mode 0600 for kube-apiserver. Trusts whoever
may open that socket. Guarantees that nothing is encrypted or decrypted without a running lease, that a
ciphertext opens only with the secret and key epoch that it names, and that plaintexts are in no log.
What it does not do: keep older secrets. A new key epoch of the subject makes what was encrypted before
unreadable; to rotate, add a second subject (docs/how-to/kubernetes-kms.md).
Source: KMS v2 of Kubernetes (``kms_v2.proto``); RFC 5869; NIST SP 800-38D.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

import grpc
import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hostagent.kubernetes import kms_v2_pb2 as pb
from hostagent.kubernetes import kms_v2_pb2_grpc
from hostagent.shared import HeldSecret

FORMAT_KEY = "format.trustauthority.dev"
_FORMAT = b"1"
"""Version of the ciphertext: nonce (12 bytes) and AES-256-GCM."""
_INFO = b"trustauthority kubernetes kms v2\0"
_NONCE = 12
_MAX = 64 * 1024
"""Bytes of the longest plaintext; a data key or its seed is far below."""

_log = structlog.get_logger("hostagent.kubernetes")


class KmsPlugin(kms_v2_pb2_grpc.KeyManagementServiceServicer):
    """KMS v2 over one held secret."""

    def __init__(self, held: HeldSecret) -> None:
        self._held = held

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusResponse:  # noqa: N802, ARG002
        """Whether the lease runs, and the id of the key."""
        current = self._held.current()
        if current is None:
            return pb.StatusResponse(version="v2", healthz=f"no lease: {self._held.refusal}")
        return pb.StatusResponse(version="v2", healthz="ok", key_id=self._key_id(current[1]))

    async def Encrypt(self, request: pb.EncryptRequest, context: Any) -> pb.EncryptResponse:  # noqa: N802
        """Seal a data key."""
        if len(request.plaintext) > _MAX:
            await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "the plaintext is too long")
        secret, epoch = await self._secret(context)
        key_id, nonce = self._key_id(epoch), os.urandom(_NONCE)
        sealed = _cipher(secret).encrypt(nonce, request.plaintext, key_id.encode())
        return pb.EncryptResponse(
            ciphertext=nonce + sealed, key_id=key_id, annotations={FORMAT_KEY: _FORMAT}
        )

    async def Decrypt(self, request: pb.DecryptRequest, context: Any) -> pb.DecryptResponse:  # noqa: N802
        """Open a data key."""
        secret, epoch = await self._secret(context)
        key_id = self._key_id(epoch)
        if request.key_id != key_id:
            await _refuse(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                f"encrypted with key {request.key_id}, this host holds {key_id}",
            )
        if request.annotations.get(FORMAT_KEY) != _FORMAT:
            await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "of another format")
        nonce, sealed = request.ciphertext[:_NONCE], request.ciphertext[_NONCE:]
        try:
            opened = _cipher(secret).decrypt(nonce, sealed, key_id.encode())
        except (InvalidTag, ValueError):
            await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "the ciphertext was changed")
        return pb.DecryptResponse(plaintext=opened)

    async def _secret(self, context: Any) -> tuple[bytearray, int]:
        current = self._held.current()
        if current is None:
            await _refuse(
                context,
                grpc.StatusCode.UNAVAILABLE,
                f"this host holds no lease of {self._held.subject}: {self._held.refusal}",
            )
        return current

    def _key_id(self, epoch: int) -> str:
        return f"{self._held.subject}/{epoch}"


@asynccontextmanager
async def kms_served(path: Path, held: HeldSecret) -> AsyncIterator[grpc.aio.Server]:
    """Serve the plug-in for the time of the block. Raises OSError when it can't listen."""
    _remove(path)
    server = grpc.aio.server(options=(("grpc.max_receive_message_length", 4 * _MAX),))
    kms_v2_pb2_grpc.add_KeyManagementServiceServicer_to_server(KmsPlugin(held), server)
    mask = os.umask(0o177)  # the socket must never exist with a wider mode
    try:
        try:
            server.add_insecure_port(f"unix:{path}")
        except RuntimeError as failure:
            raise OSError(f"can't listen on {path}") from failure
    finally:
        os.umask(mask)
    await server.start()
    _log.info("kubernetes", action="serving", socket=str(path), subject=held.subject)
    try:
        yield server
    finally:
        await server.stop(1)
        _remove(path)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


async def _refuse(context: Any, code: grpc.StatusCode, detail: str) -> NoReturn:
    _log.warning("kubernetes", action="refused", code=code.name, detail=detail)
    await context.abort(code, detail)
    raise AssertionError


def _cipher(secret: bytearray) -> AESGCM:
    derived = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=_INFO)
    return AESGCM(derived.derive(secret))
