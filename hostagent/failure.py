"""What went wrong with a call, in terms of what the agent does next.

Stage: edge of the agent. Trusts nothing in an error but its gRPC code and, when it is there, the
one ``google.rpc.ErrorInfo`` (AIP-193). Guarantees that each gRPC error becomes one ``Failure``; an
unknown reason is a refusal. Does not retry: the state machine decides.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import cast

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status


class FailureKind(StrEnum):
    """What kind of reaction a failure asks for."""

    NO_ANSWER = "no-answer"
    """Nobody answered, or the outcome is unknown: the same request again, later."""
    BUSY = "busy"
    """Too many requests: later, not before ``retry_after_ms``."""
    STALE = "stale"
    """The challenge or a log offset is out of date: the same with a new challenge."""
    UNKNOWN_CALLER = "unknown-caller"
    """The certificate is not accepted: enrol again."""
    ROLLED_BACK = "rolled-back"
    """The authority's database lacks what it showed before: trust nothing new from it."""
    REFUSED = "refused"
    """The answer is no."""
    LOCAL = "local"
    """This host's own TPM, disk or files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One failed call. Only ``reason`` and ``detail`` are shown; neither ever holds a secret."""

    kind: FailureKind
    reason: str
    """Stable reason of the authority's error hierarchy, or the gRPC code."""
    detail: str = ""
    retry_after_ms: int | None = None
    exit_code: int = 1
    """As the command line ends with it: 1 no, 2 usage, 3 not found, 4 denied, 5 retry."""


class CallFailed(Exception):
    """A call to the authority, or a local step of it, failed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.reason}: {failure.detail}")
        self.failure = failure


_STALE_REASONS = frozenset({"CHALLENGE_EXPIRED", "CHALLENGE_ALREADY_USED", "LOG_REJECTED"})
_ANSWER_IS_NO = frozenset({"KEY_NOT_PERMITTED", "HOST_NOT_ADMITTED", "HOST_REVOKED"})
"""PERMISSION_DENIED by code, but an answer about trust and not about the caller's role."""
_NO_ANSWER_CODES = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)
_EXIT_CODES = {
    grpc.StatusCode.INVALID_ARGUMENT: 2,
    grpc.StatusCode.UNIMPLEMENTED: 2,
    grpc.StatusCode.NOT_FOUND: 3,
    grpc.StatusCode.UNAUTHENTICATED: 4,
    grpc.StatusCode.PERMISSION_DENIED: 4,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 5,
    **dict.fromkeys(_NO_ANSWER_CODES, 5),
}


def failure_of(error: grpc.aio.AioRpcError) -> Failure:
    """Sort a gRPC error by code, ``ErrorInfo.reason`` and ``RetryInfo``."""
    reason, retry_after_ms = _details(error)
    code = error.code()
    kind = _kind(code, reason)
    exit_code = 5 if kind is FailureKind.STALE else _EXIT_CODES.get(code, 1)
    return Failure(
        kind=kind,
        reason=reason or code.name,
        detail=error.details() or "",
        retry_after_ms=retry_after_ms,
        exit_code=1 if reason in _ANSWER_IS_NO else exit_code,
    )


def local_failure(reason: str, error: Exception) -> Failure:
    """A failure on this host: TPM, disk, file modes."""
    return Failure(kind=FailureKind.LOCAL, reason=reason, detail=str(error))


def _kind(code: grpc.StatusCode, reason: str) -> FailureKind:
    if reason == "ROLLBACK_DETECTED":
        return FailureKind.ROLLED_BACK
    if reason in _STALE_REASONS:
        return FailureKind.STALE
    if code is grpc.StatusCode.UNAUTHENTICATED and reason in {"", "UNAUTHENTICATED"}:
        return FailureKind.UNKNOWN_CALLER
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return FailureKind.BUSY
    if code in _NO_ANSWER_CODES:
        return FailureKind.NO_ANSWER
    return FailureKind.REFUSED


def _details(error: grpc.aio.AioRpcError) -> tuple[str, int | None]:
    """The reason and the retry delay, each absent when the details do not hold or decode to it."""
    reason, retry_after_ms = "", None
    try:
        status = rpc_status.from_call(cast("grpc.Call", error))  # it has the three methods used
    except ValueError:  # details that contradict the code: believe the code
        return reason, retry_after_ms
    for detail in status.details if status is not None else ():
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason = info.reason
            hint = info.metadata.get("retryAfterMs", "")
            if retry_after_ms is None and hint.isascii() and hint.isdigit():
                retry_after_ms = int(hint)
        elif detail.Unpack(retry):
            retry_after_ms = retry.retry_delay.ToMilliseconds()
    return reason, retry_after_ms
