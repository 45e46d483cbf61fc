"""Errors as RFC 9457 problem documents, with the authority's stable reasons.

Stage: edge. Guarantees that each failure has one reason of docs/reference/errors.md or of the
transport, and that an unexpected exception says nothing but an id that the log explains.
"""

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from trustauthority import errors
from trustauthority.client import reasons
from trustauthority.client.errors import ClientError

MEDIA_TYPE = "application/problem+json"
_E = errors
STATUS: Mapping[str, int] = {
    _E.InvalidRequest.reason: 400,
    _E.MalformedEvidence.reason: 400,
    _E.PolicyInvalid.reason: 400,
    _E.Unauthenticated.reason: 401,
    _E.RoleRequired.reason: 403,
    _E.KeyNotPermitted.reason: 403,
    reasons.PERMISSION_DENIED: 403,
    _E.NotFound.reason: 404,
    _E.AlreadyExists.reason: 409,
    _E.Conflict.reason: 409,
    _E.FailedPrecondition.reason: 409,
    _E.MoveRefused.reason: 409,
    _E.RollbackDetected.reason: 409,
    _E.RateLimited.reason: 429,
    reasons.RESOURCE_EXHAUSTED: 429,
    reasons.UNIMPLEMENTED: 501,
    reasons.AUTHORITY_UNVERIFIED: 502,
    _E.DependencyUnavailable.reason: 503,
    _E.StoreUnavailable.reason: 503,
    reasons.UNAVAILABLE: 503,
    reasons.CANCELLED: 503,
    reasons.DEADLINE_EXCEEDED: 504,
}
"""By reason; any other of the authority's is a conflict with its state, or a bug."""
TITLES: Mapping[int, str] = {
    400: "The request is wrong",
    401: "Who are you?",
    403: "Not allowed",
    404: "No such thing",
    405: "Not this way",
    409: "The answer is no",
    413: "Too large",
    415: "JSON is expected",
    429: "Too much, too fast",
    500: "A bug",
    501: "Not served there",
    502: "The authority is not who it should be",
    503: "No answer now",
    504: "No answer in time",
}
_OURS = frozenset({"address"})
"""Metadata that the client adds for people at its own machine."""
UNAUTHENTICATED_GATEWAY = "GATEWAY_NOT_ACCEPTED"
"""The authority does not accept the gateway's own certificate: nothing that a caller can mend."""


class Refused(Exception):
    """The gateway itself says no."""

    def __init__(self, status: int, reason: str, detail: str, **metadata: str) -> None:
        super().__init__(detail)
        self.status, self.reason, self.detail, self.metadata = status, reason, detail, metadata


def problem(
    status: int,
    reason: str,
    detail: str,
    *,
    metadata: Mapping[str, str] | None = None,
    retry_after_s: float | None = None,
    request_id: str = "",
) -> JSONResponse:
    """A problem document."""
    content: dict[str, Any] = {
        "type": f"urn:trustauthority:error:{reason}",
        "title": TITLES.get(status, "Failed"),
        "status": status,
        "detail": detail,
        "reason": reason,
        "metadata": dict(metadata or {}),
    }
    if request_id:
        content["requestId"] = request_id
    headers = {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if retry_after_s is not None or status in {429, 503}:
        headers["Retry-After"] = str(max(1, round(retry_after_s or 1)))
    return JSONResponse(content, status, headers=headers, media_type=MEDIA_TYPE)


def of_authority(error: ClientError) -> JSONResponse:
    """The problem that a call to the authority came to."""
    if error.reason == errors.Unauthenticated.reason:
        detail = "the authority does not accept this gateway's certificate"
        return problem(502, UNAUTHENTICATED_GATEWAY, detail, request_id=error.request_id)
    internal = error.reason == errors.TrustAuthorityError.reason
    return problem(
        STATUS.get(error.reason, 500 if internal else 409),
        error.reason,
        error.message,
        metadata={key: value for key, value in error.metadata.items() if key not in _OURS},
        retry_after_s=error.retry_after_s,
        request_id=error.request_id,
    )
