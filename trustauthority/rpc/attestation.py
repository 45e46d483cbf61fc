"""EnrolmentService and AttestationService."""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

from trustauthority.codec.evidence import decode_evidence
from trustauthority.errors import InvalidRequest, RoleRequired
from trustauthority.model.evidence import (
    MAX_BOOT_LOG_BYTES,
    MAX_IMA_BYTES,
    MAX_USERSPACE_LOG_BYTES,
)
from trustauthority.model.host import HostRecord
from trustauthority.rpc import convert
from trustauthority.rpc.interceptor import current_caller
from trustauthority.rpc.watch import Watchers
from trustauthority.services.attestation import AttestationService, Attested, Invitation
from trustauthority.services.audit import AuditService
from trustauthority.services.enrolment import EnrolmentClaim, EnrolmentService
from trustauthority.services.hosts import HostService
from trustauthority.v1 import attestation_pb2 as pb
from trustauthority.v1 import attestation_pb2_grpc, common_pb2
from trustauthority.verification.residency import KeyCertification

RENEW_CERTIFICATE_BELOW_MS = 12 * 3_600_000
"""A host that attests gets a new certificate when half of the old one's life is over."""
STILL_HERE_S = 30
_PENDING_ID = re.compile(r"[0-9a-f]{32}")


def calling_host() -> HostRecord:
    """The host that makes this call."""
    host = current_caller().host
    if host is None:
        raise RoleRequired("only a host may make this call", role="host")
    return host


class EnrolmentRpc(attestation_pb2_grpc.EnrolmentServiceServicer):
    """Enrolment, on the listener without client certificates."""

    def __init__(
        self, service: EnrolmentService, audit: AuditService, release_public_key: bytes
    ) -> None:
        self._service = service
        self._audit = audit
        self._release_public_key = release_public_key

    async def GetEnrolmentChallenge(
        self, request: pb.GetEnrolmentChallengeRequest, context: Any
    ) -> pb.GetEnrolmentChallengeResponse:
        """Issue a stateless challenge."""
        cluster = convert.name(request.cluster, "cluster")
        token, ttl_ms = await self._service.challenge(cluster=cluster, ek_public=request.ek_public)
        return pb.GetEnrolmentChallengeResponse(challenge=token, expires_in_ms=ttl_ms)

    async def Enrol(self, request: pb.EnrolRequest, context: Any) -> pb.EnrolResponse:
        """Check a TPM's claims and answer with a credential."""
        claim = EnrolmentClaim(
            cluster=convert.name(request.cluster, "cluster"),
            name=convert.name(request.name, "name"),
            challenge=request.challenge,
            ek_public=request.ek_public,
            ek_certificate=request.ek_certificate,
            ek_intermediates=tuple(request.ek_intermediates),
            ak_public=request.ak_public,
            tls_public=request.tls_public,
            storage_public=request.storage_public,
            tls_certification=_certification(request.tls_certification, "tls_certification"),
            storage_certification=_certification(
                request.storage_certification, "storage_certification"
            ),
        )
        pending = await self._service.enrol(claim, peer=current_caller().peer)
        return pb.EnrolResponse(
            pending_id=pending.pending_id,
            credential_blob=pending.credential_blob,
            encrypted_secret=pending.encrypted_secret,
            pending_hash=pending.pending_sha256,
            expires_in_ms=pending.expires_in_ms,
        )

    async def Activate(self, request: pb.ActivateRequest, context: Any) -> pb.ActivateResponse:
        """Accept the proof of residency and issue the host certificate."""
        if not _PENDING_ID.fullmatch(request.pending_id):
            raise InvalidRequest("pending_id is as Enrol gave it", field="pending_id")
        activated = await self._service.activate(request.pending_id, request.proof)
        return pb.ActivateResponse(
            host_id=activated.host.host_id,
            name=activated.host.name,
            admission=convert.ADMISSIONS[activated.host.admission],
            certificate_chain=activated.certificate_chain,
            certificate_expires_at=convert.timestamp(activated.certificate_expires_ms),
            release_public_key=self._release_public_key,
            audit_public_key=self._audit.public_key,
            audit_origin=self._audit.origin,
            attest_interval_ms=activated.attest_interval_ms,
        )


class AttestationRpc(attestation_pb2_grpc.AttestationServiceServicer):
    """Evidence in, standing out."""

    def __init__(
        self,
        service: AttestationService,
        hosts: HostService,
        watchers: Watchers,
        enrolment: EnrolmentService,
    ) -> None:
        self._service = service
        self._hosts = hosts
        self._watchers = watchers
        self._enrolment = enrolment

    async def GetChallenge(
        self, request: pb.GetChallengeRequest, context: Any
    ) -> pb.GetChallengeResponse:
        """Issue a challenge and say what is known."""
        invitation = await self._service.invite(calling_host())
        return pb.GetChallengeResponse(
            challenge=invitation.challenge,
            expires_in_ms=invitation.expires_in_ms,
            selections=convert.selections(invitation.selections),
            known_logs=_known(invitation),
        )

    async def Attest(
        self, request_iterator: AsyncIterator[pb.AttestRequest], context: Any
    ) -> pb.AttestResponse:
        """Collect one piece of evidence and judge it."""
        host = calling_host()
        quote, logs = await _collect(request_iterator)
        boot_log = bytes(logs["boot_log_chunk"])
        digest = hashlib.sha256(boot_log).digest() if boot_log else quote.boot_log_sha256
        if boot_log and quote.boot_log_sha256 not in (b"", digest):
            raise InvalidRequest("the boot log is not the one of its hash", field="boot_log")
        if not boot_log:
            boot_log = await self._service.known_boot_log(host, quote.boot_log_sha256)
        evidence = decode_evidence(
            challenge=quote.challenge,
            attest=quote.attest,
            signature=quote.signature,
            pcr_values=quote.pcr_values,
            boot_log=boot_log,
            ima_offset=quote.ima_offset,
            ima_log=bytes(logs["ima_chunk"]),
            userspace_log=bytes(logs["userspace_log_chunk"]),
        )
        attested = await self._service.attest(host, evidence)
        return _attested(attested, self._renewed(host, attested.verdict.decided_at_ms))

    def _renewed(self, host: HostRecord, now_ms: int) -> bytes:
        """A new certificate, or nothing while the present one is young."""
        if current_caller().certificate_ends_ms - now_ms > RENEW_CERTIFICATE_BELOW_MS:
            return b""
        return self._enrolment.certify(host, now_ms=now_ms)[0]

    async def WatchHost(
        self, request: pb.WatchHostRequest, context: Any
    ) -> AsyncIterator[pb.WatchHostResponse]:
        """Push wishes to a host: best effort."""
        host = calling_host()
        with self._watchers.subscribe(host.host_id) as queue:
            yield pb.WatchHostResponse(detail="watching")
            while True:
                try:
                    wish = await asyncio.wait_for(queue.get(), timeout=STILL_HERE_S)
                except TimeoutError:
                    wish = pb.WatchHostResponse(detail="still here")
                if wish is None:
                    return
                yield wish


_LIMITS = {
    "boot_log_chunk": MAX_BOOT_LOG_BYTES,
    "ima_chunk": MAX_IMA_BYTES,
    "userspace_log_chunk": MAX_USERSPACE_LOG_BYTES,
}


async def _collect(
    parts: AsyncIterator[pb.AttestRequest],
) -> tuple[pb.QuoteEvidence, Mapping[str, bytearray]]:
    """Join the parts of a stream, within their size limits as they come (N41)."""
    quote: pb.QuoteEvidence | None = None
    logs = {name: bytearray() for name in _LIMITS}
    async for part in parts:
        name = part.WhichOneof("part")
        if name == "quote" and quote is None:
            quote = part.quote
        elif name in logs and quote is not None:
            logs[name] += getattr(part, name)
            if len(logs[name]) > _LIMITS[name]:
                raise InvalidRequest("a log is longer than its limit", field="part")
        else:
            raise InvalidRequest("the quote comes first, exactly once", field="part")
    if quote is None:
        raise InvalidRequest("the stream has no quote", field="quote")
    return quote, logs


def _certification(message: pb.KeyCertification, field: str) -> KeyCertification:
    if not 0 < len(message.attest) <= 4096 or not 0 < len(message.signature) <= 4096:
        raise InvalidRequest(f"{field} is missing or too long", field=field)
    return KeyCertification(attest=message.attest, signature=message.signature)


def _known(invitation: Invitation) -> pb.KnownLogs:
    known = invitation.known_logs
    return pb.KnownLogs(
        boot_log_sha256=known.boot_log_sha256,
        reset_count=known.reset_count,
        restart_count=known.restart_count,
        ima_offset=known.ima_offset,
    )


def _attested(attested: Attested, chain: bytes) -> pb.AttestResponse:
    verdict = attested.verdict
    return pb.AttestResponse(
        verdict=common_pb2.Verdict(
            verdict_id=attested.verdict_id,
            host_id=verdict.host_id,
            standing=(common_pb2.STANDING_PASSED if verdict.passed else common_pb2.STANDING_FAILED),
            decided_at=convert.timestamp(verdict.decided_at_ms),
            attested_until=convert.timestamp(verdict.attested_until_ms),
            policy=verdict.policy,
            policy_epoch=verdict.policy_epoch,
            baseline=verdict.baseline,
            checks=[convert.check(each) for each in verdict.checks],
            evidence_sha256=attested.evidence_sha256,
        ),
        report=attested.report,
        next_challenge=attested.invitation.challenge,
        next_challenge_expires_in_ms=attested.invitation.expires_in_ms,
        selections=convert.selections(attested.invitation.selections),
        known_logs=_known(attested.invitation),
        attest_again_in_ms=attested.attest_again_in_ms,
        certificate_chain=chain,
    )
