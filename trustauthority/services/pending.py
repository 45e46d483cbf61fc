"""The identity that a claim would have, and the immutable row that waits for its proof.

What it trusts: public areas that were decoded. What it guarantees: nobody can choose a host's id, and
every field of a pending row counts in what the host answers over (N77, N78).
"""

import hashlib

from cryptography.hazmat.primitives import serialization

from trustauthority.codec.tpm import public_key
from trustauthority.errors import ResidencyUnproven
from trustauthority.model.audit import AuditEvent
from trustauthority.model.host import PendingEnrolment
from trustauthority.model.identifiers import HostId
from trustauthority.model.tpm import TpmPublic


def unproven(pending: PendingEnrolment) -> AuditEvent:
    """The record that somebody claimed a TPM and could not open what only that TPM opens (N05)."""
    return AuditEvent(
        actor=f"host:{pending.enrolment.host_id}",
        operation="host.enrol",
        subject=pending.enrolment.host_id,
        decision="refused",
        reason=ResidencyUnproven.reason,
        details={"name": pending.enrolment.name},
    )


def host_id_of(ek_public: bytes) -> HostId:
    """The id of the host with this EK: nobody can choose one (N77)."""
    return HostId("h-" + hashlib.sha256(ek_public).hexdigest()[:32])


def approval_of(name: str, *publics: bytes) -> str:
    """Hex hash of what an operator approves: the name, then the EK, AK, TLS and storage publics."""
    approval = hashlib.sha256()
    for part in (name.encode(), *publics):
        approval.update(len(part).to_bytes(4, "big") + part)
    return approval.hexdigest()


def spki_sha256(public: TpmPublic) -> str:
    """Hex SHA-256 of a TPM key's SubjectPublicKeyInfo: how a connection shows it."""
    der = public_key(public).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).hexdigest()


def pending_hash(pending_id: str, pending: PendingEnrolment) -> bytes:
    """The hash of a pending row that the host answers over; every field counts (N78)."""
    return hashlib.sha256(f"{pending_id}|{pending!r}".encode()).digest()
