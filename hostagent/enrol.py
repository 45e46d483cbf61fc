"""Enrolment: show which TPM this is and prove that three keys live in it; get a certificate.

Stage: protocol of the agent. Trusts the pinned CA. Guarantees that the certifications are made for
this authority, cluster, name and challenge, so that a relayed enrolment is worthless, that the
proof answers exactly the pending row that was shown, and that an authority that shows another audit
key or another host id than before is not followed silently. Does not store: the caller does.
Source: design section 6.1; the certified data as in ``certification_data``.
"""

import asyncio
import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hostagent.channel import EnrolmentLink
from hostagent.events import Admission
from hostagent.failure import CallFailed, Failure, FailureKind, local_failure
from hostagent.identity import Identity
from hostagent.keys import HostKeys
from hostagent.ports import TpmPort
from hostagent.tpm import Attested, TpmError
from trustauthority.v1 import attestation_pb2 as pb

_LABEL = b"trustauthority/enrol/v1\0"
_ADMISSIONS = {
    pb.ADMISSION_ADMITTED: Admission.ADMITTED,
    pb.ADMISSION_WAITING: Admission.WAITING,
    pb.ADMISSION_REMOVED: Admission.REMOVED,
}
_T = TypeVar("_T")

StepSeen = Callable[[str, float], None]
"""Told of each finished protocol step: its name and how many seconds it took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolAs:
    """Where and as what this host enrols."""

    cluster: str
    name: str
    ca: x509.Certificate
    """The pinned CA; its hash goes into what the AK certifies."""
    timeout_ms: int


def certification_data(
    host: EnrolAs, *, challenge: bytes, ek_public: bytes, ak_name: bytes, role: str
) -> bytes:
    """The extraData of a certification: 32 bytes; role ``tls`` or ``storage``.

    SHA-256 over ``trustauthority/enrol/v1`` NUL, the SHA-256 of the authority CA certificate (DER),
    and then the SHA-256 of each of: cluster, name, challenge, TPMT_PUBLIC of the EK, AK name, role.
    """
    parts = (host.cluster.encode(), host.name.encode(), challenge, ek_public, ak_name)
    hashes = b"".join(hashlib.sha256(part).digest() for part in (*parts, role.encode()))
    ca = hashlib.sha256(host.ca.public_bytes(Encoding.DER)).digest()
    return hashlib.sha256(_LABEL + ca + hashes).digest()


async def enrol(
    link: EnrolmentLink, tpm: TpmPort, keys: HostKeys, host: EnrolAs, seen: StepSeen
) -> Identity:
    """Run the four steps; the same TPM and keys get a new certificate by the same steps.

    Raises CallFailed.
    """
    timeout = host.timeout_ms / 1000
    ek_public = keys.endorsement.key.public
    # (1) a challenge, bound to this EK and cluster
    challenge = await _timed(
        seen,
        "challenge",
        link.answer(
            link.enrolment.GetEnrolmentChallenge(
                pb.GetEnrolmentChallengeRequest(cluster=host.cluster, ek_public=ek_public),
                timeout=timeout,
                metadata=link.metadata(),
            )
        ),
    )
    # (2) the AK certifies the two other keys for it
    request = await _timed(seen, "certify", _request(tpm, keys, host, challenge.challenge))
    # (3) a credential that only this TPM opens, and only for this AK
    pending = await _timed(
        seen,
        "enrol",
        link.answer(link.enrolment.Enrol(request, timeout=timeout, metadata=link.metadata())),
    )
    proof = await _timed(seen, "open-credential", _proof(tpm, keys, pending))
    # (4) the proof over the pending row that was shown
    activated = await _timed(
        seen,
        "activate",
        link.answer(
            link.enrolment.Activate(
                pb.ActivateRequest(pending_id=pending.pending_id, proof=proof),
                timeout=timeout,
                metadata=link.metadata(),
            )
        ),
    )
    return _identity(activated, host.cluster)


def accept_identity(before: Identity | None, new: Identity) -> Identity:
    """Follow a re-enrolment only where it changes nothing that was pinned.

    Raises CallFailed when host id, audit log or release key changed: an operator must look.
    """
    if before is None:
        return new
    pinned = {
        "host id": (before.host_id, new.host_id),
        "audit log": (before.audit_origin, new.audit_origin),
        "audit key": (before.audit_public_key, new.audit_public_key),
        "release key": (before.release_public_key, new.release_public_key),
    }
    changed = [what for what, (old, fresh) in pinned.items() if old != fresh]
    if changed:
        raise CallFailed(
            Failure(
                kind=FailureKind.REFUSED,
                reason="AUTHORITY_CHANGED",
                detail=f"the authority shows another {', '.join(changed)} than at enrolment; if it "
                "was replaced on purpose, run hostagent enrol --accept-new-authority",
                exit_code=4,
            )
        )
    return new


async def _request(
    tpm: TpmPort, keys: HostKeys, host: EnrolAs, challenge: bytes
) -> pb.EnrolRequest:
    ek = keys.endorsement

    def certify() -> tuple[Attested, Attested]:
        made = [
            tpm.certify(
                keys.ak,
                key,
                certification_data(
                    host,
                    challenge=challenge,
                    ek_public=ek.key.public,
                    ak_name=keys.ak.name,
                    role=role,
                ),
            )
            for role, key in (("tls", keys.identity), ("storage", keys.storage))
        ]
        return made[0], made[1]

    tls, storage = await _on_tpm(certify)
    return pb.EnrolRequest(
        cluster=host.cluster,
        name=host.name,
        challenge=challenge,
        ek_public=ek.key.public,
        ek_certificate=ek.certificate,
        ek_intermediates=ek.intermediates,
        ak_public=keys.ak.public,
        tls_public=keys.identity.public,
        storage_public=keys.storage.public,
        tls_certification=pb.KeyCertification(attest=tls.attest, signature=tls.signature),
        storage_certification=pb.KeyCertification(
            attest=storage.attest, signature=storage.signature
        ),
    )


async def _proof(tpm: TpmPort, keys: HostKeys, pending: pb.EnrolResponse) -> bytes:
    def prove() -> bytes:
        secret = bytearray(
            tpm.activate_credential(
                keys.endorsement, keys.ak, pending.credential_blob, pending.encrypted_secret
            )
        )
        try:
            return hmac.digest(secret, pending.pending_hash, "sha256")
        finally:
            secret[:] = bytes(len(secret))

    return await _on_tpm(prove)


def _identity(activated: pb.ActivateResponse, cluster: str) -> Identity:
    expires = activated.certificate_expires_at
    if activated.certificate_chain:
        _check_chain(activated.certificate_chain)
    return Identity(
        host_id=activated.host_id,
        name=activated.name,
        cluster=cluster,
        admission=_ADMISSIONS.get(activated.admission, Admission.UNKNOWN),
        certificate_chain=activated.certificate_chain,
        certificate_expires_at=expires.seconds + expires.nanos / 1e9,
        release_public_key=activated.release_public_key,
        audit_public_key=activated.audit_public_key,
        audit_origin=activated.audit_origin,
        attest_interval_ms=activated.attest_interval_ms,
    )


def _check_chain(chain: bytes) -> None:
    try:
        x509.load_pem_x509_certificates(chain)
    except ValueError as failure:
        raise CallFailed(
            Failure(
                kind=FailureKind.REFUSED,
                reason="CERTIFICATE_INVALID",
                detail="the authority's answer holds no PEM certificate",
            )
        ) from failure


async def _on_tpm(work: Callable[[], _T]) -> _T:
    try:
        return await asyncio.to_thread(work)
    except TpmError as failure:
        raise CallFailed(local_failure("TPM_REFUSED", failure)) from failure


async def _timed(seen: StepSeen, step: str, work: Awaitable[_T]) -> _T:
    began = time.perf_counter()
    done = await work
    seen(step, time.perf_counter() - began)
    return done
