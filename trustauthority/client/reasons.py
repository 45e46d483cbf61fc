"""Reasons that the client makes itself, because a status carried none of the authority's."""

UNAVAILABLE = "UNAVAILABLE"
"""No answer from the address: nothing listens, the handshake failed, or the connection broke."""
DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
"""No answer in time; what became of a change is unknown."""
UNIMPLEMENTED = "UNIMPLEMENTED"
"""The process at this address does not serve that call."""
PERMISSION_DENIED = "PERMISSION_DENIED"
"""Refused without a reason of ours: something in between did it."""
RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
"""An answer or a question larger than the limits, or a limit of something in between."""
CANCELLED = "CANCELLED"
"""The call was given up."""
AUTHORITY_UNVERIFIED = "AUTHORITY_UNVERIFIED"
"""The peer did not show a certificate of the pinned CA for this address."""

TRANSPORT_REASONS = (
    UNAVAILABLE,
    DEADLINE_EXCEEDED,
    UNIMPLEMENTED,
    PERMISSION_DENIED,
    RESOURCE_EXHAUSTED,
    CANCELLED,
    AUTHORITY_UNVERIFIED,
)
"""Reasons that are made here, because the status carried none of the authority's."""
