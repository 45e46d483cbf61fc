"""Entries of the audit log: what was decided, about whom, by whom, and why."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """One decision, before it has a place in the log."""

    actor: str
    """``host:<id>``, ``identity:<name>`` or ``authority``."""
    operation: str
    """Noun and verb, such as ``key.release``."""
    subject: str
    decision: str
    """``done``, ``allowed``, ``refused``, ``passed`` or ``failed``."""
    reason: str = ""
    details: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One row of the log."""

    sequence: int
    content: bytes
    leaf: bytes


def canonical_entry(event: AuditEvent, *, sequence: int, time_ms: int) -> bytes:
    """Encode an event as the canonical JSON that is hashed into the tree (docs/reference/audit.md)."""
    return json.dumps(
        {
            "sequence": sequence,
            "time_ms": time_ms,
            "actor": event.actor,
            "operation": event.operation,
            "subject": event.subject,
            "decision": event.decision,
            "reason": event.reason,
            "details": dict(event.details),
        },
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=True,
    ).encode()
