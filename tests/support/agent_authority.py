"""An authority for tests of the host agent: real gRPC, real TLS, real signatures, no judgement.

It says what a test tells it to say, remembers what it was asked, and fails on demand. What it hands
out is genuine: certificates of its CA, signed checkpoints, KeyGrants that only one storage key opens.
"""

import base64
import hashlib
import hmac
import secrets
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID
from google.protobuf import duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from trustauthority.codec.tlog import encode_note
from trustauthority.codec.tpm import decode_public
from trustauthority.codec.tpm_key import public_key
from trustauthority.keyrelease.wrap import GRANT_ENTROPY, build_key_grant
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.grant import GrantBinding
from trustauthority.model.placement import Purpose
from trustauthority.v1 import attestation_pb2 as at
from trustauthority.v1 import attestation_pb2_grpc as at_grpc
from trustauthority.v1 import common_pb2 as common
from trustauthority.v1 import keyprovider_pb2 as kp
from trustauthority.v1 import keyprovider_pb2_grpc as kp_grpc
from trustauthority.v1 import placement_pb2 as pl
from trustauthority.v1 import placement_pb2_grpc as pl_grpc

ORIGIN = "authority.test/audit"
_PURPOSES = {
    kp.KEY_PURPOSE_START: Purpose.RUN,
    kp.KEY_PURPOSE_MIGRATE: Purpose.PREPARE,
    kp.KEY_PURPOSE_SHARE: Purpose.SHARE,
}
VM_KEY = b"canary-secret-of-vm-0123456789ab"


@dataclass(frozen=True)
class Trouble:
    """One failure on demand."""

    code: int = code_pb2.UNAVAILABLE
    reason: str = "STORE_UNAVAILABLE"
    retry_ms: int | None = None
    size: int | None = None  # size of the checkpoint that rides on it


def refusal(reason: str, code: int = code_pb2.FAILED_PRECONDITION) -> Trouble:
    return Trouble(code=code, reason=reason)


class Authority:
    """Two listeners on 127.0.0.1."""

    def __init__(self) -> None:
        self.ca_key = ec.generate_private_key(ec.SECP256R1())
        self.ca = self._certificate("test CA", self.ca_key.public_key(), is_ca=True)
        self.audit_key = ed25519.Ed25519PrivateKey.generate()
        self.release_key = ec.generate_private_key(ec.SECP256R1())
        self.tree_size = 7
        self.root = hashlib.sha256(b"root").digest()
        self.trouble: dict[str, list[Trouble]] = defaultdict(list)
        self.asked: list[tuple[str, object, dict[str, bytes | str]]] = []
        self.standing = common.STANDING_PASSED
        self.admission = at.ADMISSION_ADMITTED
        self.certificate_life = timedelta(hours=1)
        self.secret, self.key_epoch = VM_KEY, 1
        self.lease_ms, self.continue_ms, self.skew_ms = 3_600_000, 0, 0
        self.known = at.KnownLogs()
        self.evidence: list[dict[str, object]] = []
        self.again_ms = 60_000
        self.renew_with_report = False
        self.make_credential = None  # (EnrolRequest, secret) -> (blob, encrypted); None: in clear
        self.check_enrolment = lambda request: None
        self.keys: dict[str, bytes] = {}
        self.pending: dict[str, _Pending] = {}
        self.host: _Pending | None = None
        self.pushes: list[at.WatchHostResponse] = []
        self._servers: list[grpc.aio.Server] = []
        self.enrol_port = self.mtls_port = 0

    @property
    def ca_pem(self) -> bytes:
        return self.ca.public_bytes(serialization.Encoding.PEM)

    async def start(self) -> None:
        enrol, mtls = grpc.aio.server(), grpc.aio.server()
        at_grpc.add_EnrolmentServiceServicer_to_server(_Enrolment(self), enrol)
        at_grpc.add_AttestationServiceServicer_to_server(_Attestation(self), mtls)
        kp_grpc.add_KeyProviderServiceServicer_to_server(_Keys(self), mtls)
        pl_grpc.add_PlacementServiceServicer_to_server(_Placement(self), mtls)
        self.enrol_port = enrol.add_secure_port("127.0.0.1:0", self._credentials(mutual=False))
        self.mtls_port = mtls.add_secure_port(
            f"127.0.0.1:{self.mtls_port}", self._credentials(mutual=True)
        )
        for server in (enrol, mtls):
            await server.start()
            self._servers.append(server)

    async def stop(self) -> None:
        servers, self._servers = self._servers, []
        for server in servers:
            await server.stop(0)

    def asked_for(self, method: str) -> list[object]:
        return [request for name, request, _ in self.asked if name == method]

    def metadata_of(self, method: str) -> list[dict[str, bytes | str]]:
        return [metadata for name, _, metadata in self.asked if name == method]

    def note(self, *, size: int | None = None, root: bytes | None = None) -> bytes:
        root64 = base64.b64encode(root or self.root).decode()
        text = f"{ORIGIN}\n{self.tree_size if size is None else size}\n{root64}\n"
        public = self.audit_key.public_key().public_bytes_raw()
        signature = self.audit_key.sign(text.encode())
        return encode_note(text=text, name=ORIGIN, public_key=public, signature=signature).encode()

    def issue(self, key: object, name: str = "host") -> bytes:
        leaf = self._certificate(name, key, life=self.certificate_life)
        return leaf.public_bytes(serialization.Encoding.PEM)

    def _credentials(self, *, mutual: bool) -> grpc.ServerCredentials:
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        leaf = self._certificate("127.0.0.1", key.public_key())
        pair = (pem, leaf.public_bytes(serialization.Encoding.PEM))
        roots = self.ca_pem if mutual else None
        return grpc.ssl_server_credentials([pair], roots, mutual)

    def _certificate(self, name, key, *, is_ca=False, life=timedelta(days=1)):
        now = datetime.now(UTC)
        common_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = common_name if is_ca else self.ca.subject
        return (
            x509.CertificateBuilder()
            .subject_name(common_name)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + life)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName(
                    [x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))]
                ),
                critical=False,
            )
            .sign(self.ca_key, hashes.SHA256())
        )

    async def enter(self, method: str, request: object, context) -> None:
        """Remember a call; fail it if the test said so; put the checkpoint on it."""
        metadata = dict(context.invocation_metadata())
        self.asked.append((method, request, metadata))
        if self.trouble[method]:
            trouble = self.trouble[method].pop(0)
            status = status_of(trouble)
            note = ("ta-checkpoint-bin", self.note(size=trouble.size))
            # aborting replaces metadata that was set before
            await context.abort(status.code, status.details, (*status.trailing_metadata, note))
        context.set_trailing_metadata((("ta-checkpoint-bin", self.note()),))


@dataclass
class _Pending:
    request: at.EnrolRequest
    secret: bytes
    pending_hash: bytes
    tls_key: object
    host_id: str = field(default="")


class _Enrolment(at_grpc.EnrolmentServiceServicer):
    def __init__(self, authority: Authority) -> None:
        self.authority = authority

    async def GetEnrolmentChallenge(self, request, context):
        await self.authority.enter("GetEnrolmentChallenge", request, context)
        return at.GetEnrolmentChallengeResponse(challenge=b"enrol-challenge", expires_in_ms=60_000)

    async def Enrol(self, request, context):
        authority = self.authority
        await authority.enter("Enrol", request, context)
        authority.check_enrolment(request)
        secret, pending_hash = secrets.token_bytes(32), secrets.token_bytes(32)
        host_id = "h-" + hashlib.sha256(request.ek_public).hexdigest()[:32]
        tls_key = public_key(decode_public(request.tls_public))
        authority.pending["p1"] = _Pending(request, secret, pending_hash, tls_key, host_id)
        blob, encrypted = secret, b"in clear"
        if authority.make_credential is not None:
            blob, encrypted = authority.make_credential(request, secret)
        return at.EnrolResponse(
            pending_id="p1",
            credential_blob=blob,
            encrypted_secret=encrypted,
            pending_hash=pending_hash,
            expires_in_ms=60_000,
        )

    async def Activate(self, request, context):
        authority = self.authority
        await authority.enter("Activate", request, context)
        pending = authority.pending[request.pending_id]
        expected = hmac.digest(pending.secret, pending.pending_hash, "sha256")
        if not hmac.compare_digest(expected, request.proof):
            await context.abort_with_status(status_of(refusal("RESIDENCY_UNPROVEN")))
        authority.host = pending
        reply = at.ActivateResponse(
            host_id=pending.host_id,
            name=pending.request.name,
            admission=authority.admission,
            certificate_chain=authority.issue(pending.tls_key),
            release_public_key=authority.release_key.public_key().public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            ),
            audit_public_key=authority.audit_key.public_key().public_bytes_raw(),
            audit_origin=ORIGIN,
            attest_interval_ms=authority.again_ms,
        )
        reply.certificate_expires_at.FromDatetime(datetime.now(UTC) + authority.certificate_life)
        return reply


class _Attestation(at_grpc.AttestationServiceServicer):
    def __init__(self, authority: Authority) -> None:
        self.authority = authority

    async def GetChallenge(self, request, context):
        await self.authority.enter("GetChallenge", request, context)
        return at.GetChallengeResponse(
            challenge=b"challenge-" + secrets.token_bytes(8),
            expires_in_ms=60_000,
            selections=[common.PcrSelection(bank="sha256", indices=range(16))],
            known_logs=self.authority.known,
        )

    async def Attest(self, request_iterator, context):
        authority = self.authority
        await authority.enter("Attest", None, context)
        evidence: dict[str, object] = {"boot": b"", "ima": b"", "sizes": []}
        async for message in request_iterator:
            evidence["sizes"].append(message.ByteSize())
            match message.WhichOneof("part"):
                case "quote":
                    evidence["quote"] = message.quote
                case "boot_log_chunk":
                    evidence["boot"] += message.boot_log_chunk
                case "ima_chunk":
                    evidence["ima"] += message.ima_chunk
        authority.evidence.append(evidence)
        chain = b""
        if authority.renew_with_report:
            chain = authority.issue(authority.host.tls_key)
        checks = [
            common.Check(id="boot", state=common.CHECK_STATE_PASSED),
            common.Check(
                id="boot.kernel-command-line",
                state=common.CHECK_STATE_FAILED,
                title="Kernel command line",
            ),
        ]
        passed = authority.standing == common.STANDING_PASSED
        return at.AttestResponse(
            verdict=common.Verdict(
                verdict_id="v1", standing=authority.standing, checks=checks[: 1 if passed else 2]
            ),
            next_challenge=b"next-" + secrets.token_bytes(8),
            next_challenge_expires_in_ms=60_000,
            selections=[common.PcrSelection(bank="sha256", indices=range(16))],
            known_logs=authority.known,
            attest_again_in_ms=authority.again_ms,
            certificate_chain=chain,
        )

    async def WatchHost(self, request, context):
        self.authority.asked.append(("WatchHost", request, {}))
        yield at.WatchHostResponse()
        for push in self.authority.pushes:
            yield push
        self.authority.pushes = []
        await context.abort_with_status(status_of(Trouble()))


class _Keys(kp_grpc.KeyProviderServiceServicer):
    def __init__(self, authority: Authority) -> None:
        self.authority = authority

    def _terms(self) -> common.LeaseTerms:
        a = self.authority
        return common.LeaseTerms(
            lease_ms=a.lease_ms, continue_for_ms=a.continue_ms, skew_ms=a.skew_ms
        )

    async def RequestKey(self, request, context):
        authority = self.authority
        await authority.enter("RequestKey", request, context)
        host = authority.host
        storage = decode_public(host.request.storage_public)
        binding = GrantBinding(
            vm_id=request.vm_id,
            host_id=host.host_id,
            storage_name=b"\x00\x0b" + hashlib.sha256(host.request.storage_public).digest(),
            grant_epoch=5,
            key_epoch=authority.key_epoch,
            request_id=request.request_id,
            purpose=_PURPOSES[request.purpose],
            clock_bound=1 << 40,
        )
        grant = build_key_grant(
            binding=binding,
            vm_key=authority.secret,
            storage=storage,
            pcrs={HashAlgorithm.SHA256: {7: bytes(32)}},
            counters=bytes(8),
            entropy=secrets.token_bytes(GRANT_ENTROPY),
            release_key=authority.release_key,
        )
        return kp.RequestKeyResponse(
            request_id=request.request_id,
            grant_epoch=5,
            lease=self._terms(),
            key_grant=grant.wire,
        )

    async def RenewLease(self, request, context):
        await self.authority.enter("RenewLease", request, context)
        return kp.RenewLeaseResponse(
            request_id=request.request_id, grant_epoch=request.grant_epoch, lease=self._terms()
        )

    async def GiveBackKey(self, request, context):
        await self.authority.enter("GiveBackKey", request, context)
        return kp.GiveBackKeyResponse(request_id=request.request_id)


class _Placement(pl_grpc.PlacementServiceServicer):
    def __init__(self, authority: Authority) -> None:
        self.authority = authority

    async def OfferMove(self, request, context):
        await self.authority.enter("OfferMove", request, context)
        return pl.OfferMoveResponse(request_id=request.request_id)

    async def SwitchMove(self, request, context):
        await self.authority.enter("SwitchMove", request, context)
        return pl.SwitchMoveResponse(request_id=request.request_id, grant_epoch=6)

    async def AbortMove(self, request, context):
        await self.authority.enter("AbortMove", request, context)
        return pl.AbortMoveResponse(request_id=request.request_id)


def status_of(trouble: Trouble):
    status = status_pb2.Status(code=trouble.code, message=f"test: {trouble.reason}")
    info = error_details_pb2.ErrorInfo(reason=trouble.reason, domain="trustauthority.dev")
    status.details.add().Pack(info)
    if trouble.retry_ms is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(trouble.retry_ms)
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return rpc_status.to_status(status)
