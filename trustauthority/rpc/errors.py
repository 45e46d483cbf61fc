"""One table from our errors to gRPC codes, and one ``google.rpc.ErrorInfo`` per error (AIP-193)."""

from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from trustauthority import errors
from trustauthority.errors import DOMAIN, TrustAuthorityError

_C = grpc.StatusCode

CODES: dict[type[TrustAuthorityError], grpc.StatusCode] = {
    TrustAuthorityError: _C.INTERNAL,
    errors.InvalidRequest: _C.INVALID_ARGUMENT,
    errors.EvidenceRejected: _C.UNAUTHENTICATED,
    errors.ChallengeExpired: _C.ABORTED,
    errors.ChallengeAlreadyUsed: _C.ALREADY_EXISTS,
    errors.LogRejected: _C.FAILED_PRECONDITION,
    errors.EndorsementRejected: _C.PERMISSION_DENIED,
    errors.ResidencyUnproven: _C.UNAUTHENTICATED,
    errors.NotFound: _C.NOT_FOUND,
    errors.AlreadyExists: _C.ALREADY_EXISTS,
    errors.Conflict: _C.ABORTED,
    errors.FailedPrecondition: _C.FAILED_PRECONDITION,
    errors.Unauthenticated: _C.UNAUTHENTICATED,
    errors.RoleRequired: _C.PERMISSION_DENIED,
    errors.ReleaseRefused: _C.FAILED_PRECONDITION,
    errors.KeyNotPermitted: _C.PERMISSION_DENIED,
    errors.OwnerSignatureInvalid: _C.PERMISSION_DENIED,
    errors.RollbackDetected: _C.FAILED_PRECONDITION,
    errors.MoveRefused: _C.FAILED_PRECONDITION,
    errors.EscrowRejected: _C.FAILED_PRECONDITION,
    errors.ReportRejected: _C.INVALID_ARGUMENT,
    errors.CheckpointInvalid: _C.INVALID_ARGUMENT,
    errors.DependencyUnavailable: _C.UNAVAILABLE,
    errors.RateLimited: _C.RESOURCE_EXHAUSTED,
    errors.InsecureFile: _C.FAILED_PRECONDITION,
    errors.ConfigurationInvalid: _C.FAILED_PRECONDITION,
}
"""A class without a row of its own has the code of its nearest base."""
MAX_TEXT_BYTES = 1024
RETRY_MS = {errors.DependencyUnavailable: 2_000, errors.RateLimited: 1_000}


def code_of(kind: type[TrustAuthorityError]) -> grpc.StatusCode:
    """The gRPC code of an error class."""
    for base in kind.__mro__:
        if base in CODES:
            return CODES[base]
    return _C.INTERNAL


def status_of(error: TrustAuthorityError) -> status_pb2.Status:
    """The rich status of an error: exactly one ErrorInfo, and RetryInfo where retrying may help."""
    code = code_of(type(error))
    metadata = {key: bounded(value) for key, value in error.metadata.items()}
    details = [
        _packed(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    ]
    retry_ms = _retry_ms(error)
    if retry_ms is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(retry_ms)
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status_pb2.Status(
        code=getattr(code_pb2, code.name), message=bounded(error.message), details=details
    )


def bounded(text: str) -> str:
    """Cut a text that a request made long: a status rides in metadata, and clients take 8 KiB of it."""
    content = text.encode("utf-8", "replace")
    if len(content) <= MAX_TEXT_BYTES:
        return content.decode()
    return content[: MAX_TEXT_BYTES - 3].decode("utf-8", "ignore") + "…"


async def abort(
    context: "grpc.aio.ServicerContext[Any, Any]", error: TrustAuthorityError
) -> NoReturn:
    """End a call with an error; trailing metadata that was set before goes with it."""
    status = rpc_status.to_status(status_of(error))
    trailing = (*(context.trailing_metadata() or ()), *status.trailing_metadata)
    await context.abort(status.code, status.details, trailing)
    raise AssertionError("abort returns never")


def _retry_ms(error: TrustAuthorityError) -> int | None:
    if "retryAfterMs" in error.metadata:
        return int(error.metadata["retryAfterMs"])
    for kind, retry_ms in RETRY_MS.items():
        if isinstance(error, kind):
            return retry_ms
    return None


def _packed(message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
