"""What a failed call means to the caller: one reason, a message, whether to come again.

Stage: client. Trusts nothing on entry: status details come from a server. Guarantees on exit that
every failed call, with or without ``google.rpc.ErrorInfo``, becomes a ``ClientError`` whose reason
is never empty. Does not decide what to print or which exit code to use (``cli.exit`` does).
Source: AIP-193.
"""

import re

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from trustauthority import errors
from trustauthority.client.reasons import (
    AUTHORITY_UNVERIFIED,
    CANCELLED,
    DEADLINE_EXCEEDED,
    PERMISSION_DENIED,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    UNIMPLEMENTED,
)

_REASONS = {
    grpc.StatusCode.UNAVAILABLE: UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED: UNIMPLEMENTED,
    grpc.StatusCode.PERMISSION_DENIED: PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED: CANCELLED,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated.reason,
    grpc.StatusCode.NOT_FOUND: errors.NotFound.reason,
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequest.reason,
    grpc.StatusCode.ABORTED: errors.Conflict.reason,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExists.reason,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FailedPrecondition.reason,
}
_NO_CONNECTION = "failed to connect to all addresses"
_NOISE = re.compile(
    r"^failed to connect to all addresses; last error: (?:UNKNOWN|UNAVAILABLE): "
    r"|(?<=: )Failed to connect to remote host: "
    r"|(?<=: )(?:Tls|Ssl) handshake failed \(\w+\): SSL_ERROR_SSL: error:\w+:[\w ]+:OPENSSL_internal:"
    r"|: OK$"
)
_UNVERIFIED_SIGNS = ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification Check failed")


class ClientError(Exception):
    """A call that was not answered as hoped, whoever is to blame."""

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        metadata: dict[str, str] | None = None,
        retry_after_s: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.metadata = metadata or {}
        self.retry_after_s = retry_after_s
        """Seconds after which the server thinks that another try makes sense, when it said so."""
        self.not_sent = False
        """Whether no connection was made, so that nothing can have happened."""
        self.request_id = request_id
        """To find the call in the server's log."""


def client_error(error: grpc.RpcError, *, request_id: str = "") -> ClientError:
    """Translate what grpc raised. The message is the server's own and may hold anything."""
    call = _call_of(error)
    code = grpc.StatusCode.UNKNOWN if call is None else call.code()
    text = (str(error) if call is None else call.details()) or ""
    info, retry_after_s = (None, None) if call is None else _details(call)
    if info is not None and info.reason:
        return ClientError(
            text or info.reason,
            reason=info.reason,
            metadata=dict(info.metadata),
            retry_after_s=retry_after_s,
            request_id=request_id,
        )
    reason = _REASONS.get(code, errors.TrustAuthorityError.reason)
    if reason == UNAVAILABLE and any(sign in text for sign in _UNVERIFIED_SIGNS):
        reason = AUTHORITY_UNVERIFIED
    failure = ClientError(
        _in_short(text) or f"the call ended with {code.name}",
        reason=reason,
        retry_after_s=retry_after_s,
        request_id=request_id,
    )
    failure.not_sent = code is grpc.StatusCode.UNAVAILABLE and text.startswith(_NO_CONNECTION)
    return failure


def _in_short(text: str) -> str:
    """Drop what gRPC's core puts before the cause; what a server says is not touched."""
    return _NOISE.sub("", text).strip()


def _call_of(error: object) -> grpc.Call | None:
    """What grpc raises is a call too, except for errors of a channel that never made one."""
    return error if isinstance(error, grpc.Call) else None


def _details(call: grpc.Call) -> tuple[error_details_pb2.ErrorInfo | None, float | None]:
    """ErrorInfo of our domain and the delay of RetryInfo, as far as they are there and readable."""
    try:
        status = rpc_status.from_call(call)
    except ValueError:  # the details contradict the status: believe the status alone
        return None, None
    info: error_details_pb2.ErrorInfo | None = None
    delay: float | None = None
    for detail in status.details if status is not None else ():
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            found = error_details_pb2.ErrorInfo()
            detail.Unpack(found)
            info = found if found.domain == errors.DOMAIN else info
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            delay = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    return info, delay
