"""Audit entries of decisions about one VM, accepted or refused."""

from collections.abc import Mapping

from trustauthority.errors import TrustAuthorityError
from trustauthority.model.audit import AuditEvent
from trustauthority.model.host import HostRecord
from trustauthority.placement.condition import Rule


def audit_decision(
    host: HostRecord,
    vm: str,
    operation: str,
    failed: tuple[Rule, ...],
    details: Mapping[str, str | int],
) -> AuditEvent:
    """The audit entry of a decided request."""
    return AuditEvent(
        actor=f"host:{host.host_id}",
        operation=operation,
        subject=vm,
        decision="refused" if failed else "allowed",
        reason=", ".join(rule.name for rule in failed),
        details={"host": host.name, **details},
    )


def audit_refusal(
    host: HostRecord, vm: str, operation: str, error: TrustAuthorityError
) -> AuditEvent:
    """The audit entry of a request that was not decided."""
    return AuditEvent(
        actor=f"host:{host.host_id}",
        operation=operation,
        subject=vm,
        decision="refused",
        reason=error.reason,
        details={"host": host.name, "why": error.message},
    )
